"""One of two processes that torchrun starts: joins the other and leaves it, as often as is asked.

Both share a core, so that the threads of a group come late.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from trainer.hardware.device import Placement
from trainer.hardware.distributed import Processes


def join_and_leave() -> None:
    """What a run does with the other processes: gradients are averaged, and the main process does something last."""
    with Processes.join(Placement.of("cpu", "fp32")) as processes:
        model = processes.data_parallel(nn.Linear(4, 4))
        model(torch.ones(2, 4)).sum().backward()
        processes.on_main(lambda: None)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    main, address = os.environ["RANK"] == "0", os.environ["MASTER_ADDR"]
    agent = dist.TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # it would remember the addresses of those that have left
    stores = []  # all stay, so that no port comes again: one that did was refused as in use
    for turn in range(int(sys.argv[1])):
        if main:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                address, 0, is_master=True, wait_for_workers=False, multi_tenant=True
            )
            stores.append(store)
            agent.set(f"port {turn}", str(store.port))
        os.environ["MASTER_PORT"] = agent.get(f"port {turn}").decode()
        join_and_leave()

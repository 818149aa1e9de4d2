"""The processes that train together: one, or those that torchrun started, on one machine or several.

Each computes its shard of every batch; gradients, batch norm statistics and logged terms are those of the whole batch.
NCCL carries what is on GPUs, Gloo what is on CPUs.

PyTorch's `DistributedDataParallel` is not used: its sums depend on how it has grouped the gradients, which a resumed
run does anew, and with Gloo it can hang when the program ends (its reducer outlives the group).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import InterruptedRunError, NonFiniteLossError, TrainerError
from trainer.hardware.batch_norm import synchronise
from trainer.hardware.device import Placement
from trainer.hardware.shard import Shard

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Fleet:
    """This process among those that train together.

    Attributes:
        shard: which images of a batch are this process's.
    """

    shard: Shard = field(default_factory=Shard)

    @classmethod
    @contextmanager
    def join(cls, place: Placement) -> Iterator[Fleet]:
        """Meets the other processes, if torchrun started several, and parts from them at the end.

        What stops all of them alike is told by the leader alone.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()
            return
        if place.device.type == "cuda":
            torch.cuda.set_device(place.device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo")
        fleet = cls(Shard(dist.get_rank(), dist.get_world_size()))
        try:
            yield fleet
        except (InterruptedRunError, NonFiniteLossError) as error:
            if fleet.leads:
                raise
            raise SystemExit(error.exit_code) from error
        finally:
            dist.destroy_process_group()

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.shard.size

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.shard.rank == 0

    def prepare(self, model: nn.Module) -> None:
        """Has the batch norms of a model take their statistics over all processes."""
        if self.size > 1:
            synchronise(model)

    def add_gradients(self, model: nn.Module) -> None:
        """Gives every process the sum of the processes' gradients, in one message."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message)
        parts = torch.split(message, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def lead(self, work: Callable[[], ResultT]) -> ResultT:
        """Has the leader do something that touches the run folder, and tells the others what came of it.

        Raises:
            Exception: the work failed; the other processes end with the same exit code.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = work()
            except BaseException as error:  # whatever it is, the others wait to hear of it
                outcome[1] = error.exit_code if isinstance(error, TrainerError) else 1
                dist.broadcast_object_list(outcome, device=torch.device("cpu"))
                raise
        dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        result, exit_code = outcome
        if exit_code is not None:
            raise SystemExit(exit_code)
        done: ResultT = result
        return done

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The largest that any process gave of each number; on the host, so that no GPU is waited for."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

"""The processes that train together: one, or those that torchrun started, on one machine or several.

NCCL carries what is on GPUs, Gloo what is on CPUs. Each process computes its part of every batch; gradients are
averaged by `DistributedDataParallel`, and batch norm sees the whole batch, so the loss is that of one process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import InterruptedRunError, NonFiniteLossError, TrainerError
from trainer.hardware.device import ModuleT, Placement

ResultT = TypeVar("ResultT")

# To the group that was joined last. Where data-parallel models alone hold a group, PyTorch ends it under Python's lock,
# and a thread of the group may be waiting for that lock: a deadlock. Where Python lets go last, it gives the lock up.
_last_reference: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0  # its number, from 0 on; 0 is the main process
    world_size: int = 1  # how many there are

    @classmethod
    @contextmanager
    def join(cls, place: Placement) -> "Iterator[Processes]":
        """Joins the other processes, if torchrun started several; leaves them at the end.

        Of an error that stops all of them alike, the main process alone prints the message.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()
            return
        global _last_reference  # noqa: PLW0603
        gpu = place.device.type == "cuda"
        if gpu:
            torch.cuda.set_device(place.device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
        _last_reference = dist.group.WORLD
        processes = cls(dist.get_rank(), dist.get_world_size())
        try:
            yield processes
        except (InterruptedRunError, NonFiniteLossError) as error:
            if processes.is_main:
                raise
            raise SystemExit(error.exit_code) from error
        finally:
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and logs."""
        return self.rank == 0

    def synchronise_batch_norm(self, model: ModuleT) -> ModuleT:
        """A model whose batch norms take their training statistics over all processes; its weights stay the same."""
        if self.world_size == 1:
            return model
        if next(model.parameters()).device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = CpuSyncBatchNorm2d
        return model

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """A model whose gradients are averaged over the processes."""
        return model if self.world_size == 1 else DistributedDataParallel(model, broadcast_buffers=False)

    def on_main(self, work: Callable[[], ResultT]) -> ResultT:
        """Does something in the main process and gives all of them the result.

        Raises:
            Exception: it failed; the other processes end with the same exit code.
        """
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        try:
            if self.is_main:
                outcome[0] = work()
        except BaseException as error:  # the others wait to hear of it, whatever it is
            outcome[1] = error.exit_code if isinstance(error, TrainerError) else 1
            raise
        finally:
            dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        result, exit_code = outcome
        if exit_code is not None:
            raise SystemExit(exit_code)
        done: ResultT = result
        return done

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors."""
        total: Tensor = tensor if self.world_size == 1 else _Sum.apply(tensor)  # type: ignore[no-untyped-call]
        return total

    def max(self, *numbers: int) -> tuple[int, ...]:
        """The largest that any process gave of each number; on the host, so that no GPU is waited for."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes; ours, as PyTorch's `SyncBatchNorm` refuses CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W), of which a process may have none, in float32."""
        if not self.training:
            return super().forward(input)
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        images, dims, shape = input.float(), (0, 2, 3), (1, -1, 1, 1)
        count = images.new_tensor(images.numel() / images.shape[1])
        dist.all_reduce(count)
        mean: Tensor = _Sum.apply(images.sum(dims)) / count  # type: ignore[no-untyped-call]
        centred = images - mean.view(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(dims)) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.num_batches_tracked += 1
            for running, batch in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
                assert running is not None
                running.lerp_(batch, self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes; the gradient of a sum that every process uses is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradients[0].contiguous())  # type: ignore[no-untyped-call]
        return total

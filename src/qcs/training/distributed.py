"""What the processes of a run share: gradients, statistics, flags before a step, test outputs.

A loss that is not finite must end the run before it reaches the weights. A request to stop, which
one process may receive, must end the run in all processes after the same step. An error of one
ends them all, and is told once.

B batch, R roles.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from timm.utils import distribute_bn
from torch import Tensor, distributed, nn

from qcs.config.errors import UserError

END = 30.0  # seconds that the other processes have to end by themselves


def process_rank() -> int:
    """Return the number of this process among those of the run, 0 for the first."""
    function: Any = rank_zero_only  # Lightning keeps the rank as an attribute of this function
    return function.rank


def is_first_process() -> bool:
    """Return whether this process writes the run's files; it is known before there is a trainer."""
    return process_rank() == 0 and os.environ.get("NODE_RANK", "0") == "0"


class NonFiniteLoss(UserError):
    """The training loss is NaN or infinite.

    Attributes:
        rows: (B, R), the rows of the batch's images in the training split.
    """

    def __init__(self, message: str, rows: np.ndarray) -> None:
        super().__init__(message)
        self.rows = rows


class PendingFlags(NamedTuple):
    """Flags that are copied from the device to the host while the device works on."""

    rows: Tensor | None  # of the batch
    values: Tensor  # (2,), whether the loss is not finite, and whether a process was asked to stop
    copied: torch.cuda.Event | None  # None on a CPU, where there is nothing to wait for


class StepFlags:
    """Collects the flags of each loss of an optimiser step, and reads them before the step.

    Attributes:
        stop_requested: whether this process was asked to stop.
        stopping: whether all processes have agreed to stop.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self.stopping = False
        self._pending: list[PendingFlags] = []

    def reduce(self, loss: Tensor, batch: dict[str, Tensor], processes: int) -> None:
        """Share with all processes whether a loss () is finite, without waiting for the device.

        Args:
            batch: of the loss; its "rows" are named in the error.
        """
        stop = torch.full_like(loss, float(self.stop_requested))
        values = torch.stack([(~loss.isfinite()).to(loss.dtype), stop]).detach()
        if processes > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if copied:
            copied.record()
        self._pending.append(PendingFlags(batch.get("rows"), values, copied))

    def check(self, where: str) -> None:
        """Read the flags of all losses since the last call.

        By this time the device is busy with the backward passes, so reading costs little.

        Raises:
            NonFiniteLoss: in all processes alike.
        """
        pending, self._pending = self._pending, []
        for rows, values, copied in pending:
            if copied:
                copied.synchronize()
            not_finite, stop = values.tolist()
            self.stopping = self.stopping or bool(stop)
            if not_finite:
                raise NonFiniteLoss(
                    f"the training loss is not finite at {where}; lower optimizer.lr, or look at "
                    "the images of the batch",
                    np.empty((0, 0), int) if rows is None else rows.cpu().numpy(),
                )


def gradient_sync(strategy: Strategy, wanted: bool) -> AbstractContextManager:
    """Return a context in which a backward pass averages the gradient over the processes.

    Args:
        strategy: Lightning's, which may be of a single process.
        wanted: False lets each process keep its own gradient.
    """
    if wanted or not isinstance(strategy, ParallelStrategy):
        return nullcontext()
    return strategy.block_backward_sync()


def average_statistics(network: nn.Module, processes: int) -> None:
    """Average BatchNorm's running statistics over the processes, each of which has its own."""
    if processes > 1:
        distribute_bn(network, processes, reduce=True)


def gather_in_order(batches: list[tuple[Tensor, ...]], processes: int) -> tuple[Tensor, ...]:
    """Join the outputs of all processes in the order of the data set.

    Args:
        batches: those of this process on the CPU; each has the rows (B,) of its images in the
            data set and then tensors (B, ...).

    Returns:
        The sorted rows (N,) and the tensors (N, ...) of all N images.
    """
    if processes > 1:
        gathered: list[Any] = [None] * processes
        distributed.all_gather_object(gathered, batches)
        batches = [batch for process in gathered for batch in process]
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    order = columns[0].argsort()
    return tuple(column[order] for column in columns)


@contextmanager
def ended_together(trainer: Trainer) -> Iterator[None]:
    """Let all processes of a run end where one of them ends by an error, which it alone tells.

    Raises:
        UserError: another process was killed, or cannot be reached.
        SystemExit: another process has told why the run ends.
    """
    started: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
    try:
        yield
    except Exception as error:
        if trainer.world_size == 1:
            raise
        first = _is_first_to_fail()
        statuses = _end(started, patience=0 if first else END)
        if not first:
            raise SystemExit(next((s for s in statuses if s > 0), 1)) from error
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise UserError(
                "another process of the run was killed or cannot be reached, most often because "
                "memory ran out: write a smaller loader.batch_size or fewer trainer.devices, or "
                f"go on with hydra.run.dir={trainer.default_root_dir} ckpt=auto "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
        raise
    except BaseException:  # all stop together
        _end(started, patience=END)
        raise


def release_others(trainer: Trainer) -> None:
    """Go on without the other processes, after the last exchange with them.

    Lightning kills the first process where one that it has started ends with an error. None has
    anything left to do now, so an error while it ends must not cost the report.
    """
    getattr(trainer.strategy.launcher, "procs", []).clear()


def _is_first_to_fail() -> bool:
    """Whether no other process has asked this; the last of them to ask are told no."""
    if not distributed.is_initialized():
        return True
    try:
        return distributed.distributed_c10d._get_default_store().add("qcs_failed", 1) == 1
    except RuntimeError:  # the process that keeps the store has told, and has ended
        return False


def _end(started: list[subprocess.Popen], patience: float) -> list[int]:
    """End the processes that this one has started; return their exit statuses.

    Args:
        started: by Lightning, which would kill this process too when it sees one of them end.
        patience: seconds that they have to end by themselves.
    """
    processes, until = started.copy(), time.monotonic() + patience
    started.clear()
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
    return [process.wait() for process in processes]

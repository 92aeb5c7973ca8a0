"""What the processes of a run tell each other: before an optimiser step, and after a test.

A loss that is not finite must end the run before it spoils the weights; a request to stop must end
it everywhere after the same step.

B batch, R roles.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, distributed

from qcs.config.errors import UserError


def is_first_process() -> bool:
    """Whether this is the process of a run that writes its files, known before the trainer is."""
    return rank_zero_only.rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


class NonFiniteLoss(UserError):
    """The training loss is NaN or infinite; `rows` (B, R) of the training split show where."""

    def __init__(self, sentence: str, rows: np.ndarray) -> None:
        super().__init__(sentence)
        self.rows = rows


class Flags(NamedTuple):
    """On their way to the host while the device works on."""

    values: Tensor  # (2,) whether the loss is not finite, whether a process was asked to stop
    arrived: torch.cuda.Event | None


class Watch:
    """Gathers flags with each loss and reads them before the step."""

    def __init__(self) -> None:
        self.asked_to_stop = False  # this process was
        self.stopping = False  # all agree to
        self._flags: list[Flags] = []

    def announce(self, loss: Tensor, processes: int) -> None:
        """Tell all processes whether a loss () is finite; waits for nothing."""
        stop = torch.full_like(loss, float(self.asked_to_stop))
        values = torch.stack([(~loss.isfinite()).to(loss.dtype), stop]).detach()
        if processes > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        arrived = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if arrived:
            arrived.record()
        self._flags.append(Flags(values, arrived))

    def heed(self, batch: dict[str, Tensor], where: str) -> None:
        """Read what was announced; by now the device is busy with the backward passes.

        Args:
            batch: the last one, whose "rows" are named.
            where: the step, for the sentence.

        Raises:
            NonFiniteLoss: in all processes alike.
        """
        flags, self._flags = self._flags, []
        for values, arrived in flags:
            if arrived:
                arrived.synchronize()
            bad, stop = values.tolist()
            self.stopping = self.stopping or bool(stop)
            if bad:
                raise NonFiniteLoss(
                    f"the training loss is not finite at {where}; lower optimizer.lr, or look at "
                    "the images of the batch",
                    batch["rows"].cpu().numpy() if "rows" in batch else np.empty((0, 0), int),
                )


def in_order(batches: list[tuple[Tensor, ...]], processes: int) -> tuple[Tensor, ...]:
    """Join what all processes saw, in the order of the data set.

    Args:
        batches: of this process, each of rows (B,) and tensors (B, ...), on the CPU.
        processes: how many there are.
    """
    if processes > 1:
        gathered: list = [None] * processes
        distributed.all_gather_object(gathered, batches)
        batches = [batch for process in gathered for batch in process]
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    order = columns[0].argsort()
    return tuple(column[order] for column in columns)

"""Every image of a data set decoded once, by several processes."""

import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from PIL import Image
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

CHUNK = 64  # images that a process hands over at once


class Decoded(NamedTuple):
    """What was made of the image of a row, or the sentence that says why there is none."""

    row: int
    value: Any
    error: str | None = None


class _Images(Dataset):
    def __init__(self, manifest: Manifest, work: Callable[[Image.Image], Any]) -> None:
        self.manifest, self.work = manifest, work

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Decoded:
        try:
            image = self.manifest.image(row)
        except UserError as error:
            return Decoded(row, None, str(error))
        return Decoded(row, self.work(image))


def decode_all(
    manifest: Manifest,
    work: Callable[[Image.Image], Any],
    rows: Sequence[int],
    num_workers: int,
    title: str | None,
) -> Generator[list[Decoded], None, None]:
    """Yield what a function makes of images, in the order of the rows, many at a time.

    Whoever stops before the end closes it, which ends the progress bar and the processes.

    Args:
        work: the function, which takes an upright RGB image; it can be pickled and returns no
            tensors.
        num_workers: processes; 0 decodes in this one.
        title: of the progress bar; None shows none.

    Raises:
        UserError: the number of processes is negative, or one of them was killed.
    """
    if num_workers < 0:
        raise UserError(f"num_workers must be 0 or more, got {num_workers}")
    chunks = [list(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
    loader = DataLoader(
        _Images(manifest, work),
        batch_sampler=chunks,
        num_workers=num_workers,
        collate_fn=list,  # PyTorch would stack the items into tensors
        worker_init_fn=_ignore_interrupts,
    )
    hidden = title is None
    try:
        yield from track(loader, title or "", len(chunks), disable=hidden, transient=True)
    except RuntimeError as error:
        if "killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a process that decodes images was killed ({error}), which is often for lack of "
            "memory; run it again with a smaller num_workers=..."
        ) from error


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""How fast data is read: quadruplets and draws a second, and memory, side by side in one run.

python scripts/bench_data.py [--images 12271] [--batches 40] [--folder /tmp/bench]

The data set has the size of RAF-DB: drawn noise as 100x100 JPEGs, 12,271 of them, seven classes;
the transforms are the paper's at 224 pixels. Tables of 283,901 rows have the size of AffectNet.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from qcs.config.errors import UserError
from qcs.data import prepared, transforms
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.data.quadruplets import AnchorSampler, QuadrupletDraw, draw_generator
from qcs.data.workers import start

RAFDB, AFFECTNET = 12_271, 283_901
SIZE, BATCH = 224, 24
CORES = os.cpu_count() or 1
By = Literal["image", "batch"]  # the images of which one draw of an augmentation is for
NAMES = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")


def make_images(folder: Path, number: int) -> Path:
    """Write smooth noise as JPEGs and a manifest.csv."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split"]
    for i in range(number):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        path = folder / f"images/{i:05d}.jpg"
        if not path.is_file():
            small.resize((100, 100), Image.Resampling.BICUBIC).save(path, quality=90)
        split = "train" if i % 50 else "test"
        lines.append(f"images/{i:05d}.jpg,{NAMES[rng.integers(7)]},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder / "manifest.csv"


def memory(pid: int, *kinds: str) -> float:
    """Megabytes of a process by the kernel's kinds; NaN where it has no /proc."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return float("nan")
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in kinds) / 1000


def children() -> list[int]:
    """Process numbers of the workers."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.is_file() else []


def family() -> float:
    """Megabytes of this process and its workers, but for the pages of the mapped store."""
    return sum(memory(pid, "Pss_Anon", "Pss_Shmem") for pid in (os.getpid(), *children()))


class Draws(Dataset):
    """What a worker does with its tables, and nothing else."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.draw = manifest, QuadrupletDraw(manifest.labels, 4)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> list[str]:
        rows = self.draw(row, draw_generator(0, 0, row))
        return [str(self.manifest.paths[r]) for r in rows]


def own_memory(manifest: Manifest) -> float:
    """Megabytes that a worker does not share with its parent, once it has drawn every row."""
    loader: DataLoader[list[str]] = DataLoader(
        Draws(manifest),
        512,
        num_workers=1,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        worker_init_fn=start,
    )
    for i, _ in enumerate(loader):
        if i == len(loader) - 3:
            return memory(children()[-1], "Private_Clean", "Private_Dirty")
    return float("nan")


def quadruplets(manifest: Manifest, by: By, workers: int, batches: int) -> tuple[float, float]:
    """Quadruplets a second, to normalised float32 batches, and the memory in MB."""
    train = transforms.training(SIZE, by=by)
    data = FaceDataModule(
        manifest,
        train,
        transforms.evaluation(SIZE),
        batch_size=BATCH,
        num_workers=workers,
        select_on="last",
    )
    torch.set_num_threads(1 if workers else CORES)
    seen, start = -5, 0.0
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch)
        seen += 1
        if seen == 0:  # workers have started
            start = time.perf_counter()
        if seen == batches:
            rate = batches * BATCH / (time.perf_counter() - start)
            return rate, family()  # all workers and their waiting batches still live
    raise UserError(f"{len(data.train)} images make fewer than {batches + 5} batches")


def once(action: Callable[[], object], number: int) -> float:
    """Microseconds of one of `number` calls."""
    start = time.perf_counter()
    for _ in range(number):
        action()
    return (time.perf_counter() - start) / number * 1e6


def bench_loading(table: Path, batches: int) -> Table:
    """Quadruplets a second with and without the store, by worker count."""
    plain = Manifest.from_csv(table, class_names=NAMES)
    start = time.perf_counter()
    folder = prepared.prepare(plain, SIZE, table.parent / "prepared", num_workers=CORES)
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e9
    found = prepared.find(plain, SIZE, table.parent / "prepared")
    assert found is not None  # it was prepared just now
    out = Table(
        "images",
        "augmentation",
        "workers",
        "quadruplets/s",
        "times the first",
        "MB",
        title=f"{len(plain)} JPEGs of 100 pixels, the paper's transforms at {SIZE} pixels",
        caption=f"preparing took {seconds:.0f} s and {size:.2f} GB (0 s where it was there)",
    )
    base = None
    ways: tuple[By, ...] = ("image", "batch")
    cases = [(images, by, w) for images in (plain, plain.with_store(found)) for by in ways
             for w in sorted({2, 1, 0, CORES}, reverse=True)]  # fmt: skip
    for manifest, by, workers in cases:
        name = "decoded" if manifest is plain else "prepared"
        rate, peak = quadruplets(manifest, by, workers, batches)
        base = base or rate
        row = (name, by, str(workers), f"{rate:.0f}", f"{rate / base:.2f}", f"{peak:.0f}")
        out.add_row(*row)
        print(*row, file=sys.stderr)
    return out


def bench_draws(folder: Path) -> Table:
    """A draw of four, an epoch's order and opening the table, at two sizes."""
    out = Table(
        "rows",
        "draw of four, us",
        "epoch of anchors, ms",
        "open manifest, s",
        "table, MB",
        "a worker's own MB",
        title="tables",
    )
    for rows in (RAFDB, AFFECTNET):
        labels = np.random.default_rng(0).integers(0, 7, rows)
        draw, sampler = QuadrupletDraw(labels, 4), AnchorSampler(labels)
        cost = once(lambda: draw(7, draw_generator(0, 0, 7)), 20_000)  # noqa: B023
        order = once(lambda: next(iter(sampler)), 5) / 1000  # noqa: B023
        images = folder / f"table-{rows}"
        images.mkdir(exist_ok=True)
        for i in range(rows):
            (images / f"{i:06d}.jpg").touch()
        table = folder / f"table-{rows}.csv"
        lines = [f"table-{rows}/{i:06d}.jpg,{NAMES[y]},train" for i, y in enumerate(labels)]
        table.write_text("path,label,split\n" + "\n".join(lines))
        opening = once(lambda: Manifest.from_csv(table, class_names=NAMES), 1) / 1e6  # noqa: B023
        manifest = Manifest.from_csv(table, class_names=NAMES)
        size = sum(c.nbytes for c in (manifest.paths, manifest.labels, manifest.splits)) / 1e6
        numbers = (f"{cost:.1f}", f"{order:.1f}", f"{opening:.2f}", f"{size:.0f}")
        out.add_row(f"{rows:,}", *numbers, f"{own_memory(manifest):.0f}")
    return out


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=RAFDB)
    parser.add_argument("--batches", type=int, default=40, help="timed batches a row")
    parser.add_argument("--folder", type=Path, help="kept between runs; temporary by default")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        Console().print(bench_draws(folder))
        Console().print(bench_loading(make_images(folder, options.images), options.batches))
    finally:
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""From a cold process to the first label of a photo: CPU seconds, wall seconds and peak memory.

    python scripts/bench_start.py [photo.jpg] [--rounds 5] [--threads 1] [--other FOLDER]

Each way is a Python process of its own, and the ways take turns, so that what else the machine does
hits all alike. The least and the median CPU seconds of the rounds are told: user and system, of all
threads. `--other` adds the same command and lines with the source tree of another checkout.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from qcs.checkpoints import zoo

ROOT = Path(__file__).parents[1]
API = "import sys, qcs; print(qcs.load(*sys.argv[2:]).predict(sys.argv[1])[0][0].label)"
LIBRARIES = "import numpy, onnx, onnxruntime, PIL.Image, pydantic"
# In a process of its own: the peak of each way counts what this one held when it started the way.
SAVE = """
import sys, torch
from qcs.checkpoints import safetensors, zoo
torch.save(safetensors.read(zoo.default_file()), sys.argv[1])
"""


class Cost(NamedTuple):
    """What a process took."""

    cpu: float  # seconds
    wall: float  # seconds
    peak: float  # MB of memory


def cost(command: list[str], threads: int, source: Path) -> Cost:
    """Run a command to its end, which must be a good one."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(source / "src")}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command} ended with status {os.waitstatus_to_exitcode(status)}")
    wall = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes, of what `ru_maxrss` counts
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * unit / 1e6)


def ways(photo: str, folder: Path, other: Path | None) -> dict[str, tuple[list[str], Path]]:
    """The processes by what they show, each with the source tree that it uses."""
    name, python = zoo.default(), [sys.executable, "-c"]
    subprocess.run([*python, SAVE, str(folder / "model.ckpt")], check=True)
    command = [sys.executable, "-m", "qcs", "predict", f"hydra.run.dir={folder / 'run'}"]
    found = {
        "the libraries alone": ([*python, LIBRARIES], ROOT),
        "qcs.load()": ([*python, API, photo], ROOT),
        'qcs.load("x.onnx")': ([*python, API, photo, f"{name}.onnx"], ROOT),
        'qcs.load("x.safetensors")': ([*python, API, photo, f"{name}.safetensors"], ROOT),
        'qcs.load("x.ckpt")': ([*python, API, photo, str(folder / "model.ckpt")], ROOT),
        "qcs predict photo.jpg": ([*command, photo], ROOT),
        "qcs predict photo.jpg ckpt=x.ckpt": (
            [*command, photo, f"ckpt={folder / 'model.ckpt'}"],
            ROOT,
        ),
    }
    if other:
        found["other: qcs.load()"] = ([*python, API, photo], other)
        found["other: qcs predict"] = ([*command, f"input={photo}"], other)
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", nargs="?", default=str(ROOT / "docs/assets/labelled_photos.jpg"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--other", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = ways(os.path.abspath(options.photo), Path(folder), options.other)
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, (command, source) in commands.items():
                costs[name].append(cost(command, options.threads, source))
    print("| | CPU s, least | CPU s, median | wall s, least | peak MB |\n|---|---|---|---|---|")
    for name, found in costs.items():
        cpu, wall, peak = zip(*found, strict=True)
        numbers = (min(cpu), statistics.median(cpu), min(wall))
        print(f"| {name} | {' | '.join(f'{n:.2f}' for n in numbers)} | {max(peak):.0f} |")


if __name__ == "__main__":
    main()

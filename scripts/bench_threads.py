"""A training step under settings of the OpenMP library, alone and beside busy processes.

    python scripts/bench_threads.py
    python scripts/bench_threads.py --settings qcs GOMP_SPINCOUNT=1000 --busy 0 2

An OpenMP library reads its environment when it is loaded, so each setting has a process of its own.
They take turns of a second, and the others sleep. A setting is `NAME=VALUE,...`; `torch` is the
library by itself, `qcs` is what `import qcs` sets. A ratio is the median over the rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

GIVEN = dict(os.environ)
TURN = 0.8  # seconds of a turn, or one step where that is longer
NETWORKS = {
    "default": "loader.batch_size=8",
    "IR-50": "experiment=qcs_rafdb speed=exact loader.batch_size=2",
    "MobileFaceNet": "experiment=ferplus_light loader.batch_size=4",
}
COUNTS = (1000, 2000, 5000, 10000, 30000)
SETTINGS = ["torch", "qcs", *(f"GOMP_SPINCOUNT={n}" for n in COUNTS)]
# torch before qcs loads the library before `import qcs` has set anything.
CODE = "import sys, {first}; sys.path[:0] = {path!r}; import bench_threads; bench_threads.serve()"


def step(overrides: list[str]) -> Callable[[], None]:
    """Training steps on one random batch of a config, without SAM."""
    import torch

    from qcs.config.compose import as_dict, compose
    from qcs.config.options import instantiate
    from qcs.models.cpu_kernels import speed_up
    from qcs.training.losses import QCSLoss

    cfg = compose("train", [*overrides, "dataset.path=unused", "run_dir=unused"])
    config = as_dict(cfg, ["backbone", "model", "speed", "optimizer", "augment", "loader"])
    torch.manual_seed(0)
    backbone = {
        k: v for k, v in config["backbone"].items() if k not in ("weights", "grad_checkpointing")
    }
    made = instantiate(config["model"], backbone=instantiate(backbone), num_classes=7)
    options = {k: v for k, v in config["speed"].items() if k != "cuda_graphs"}  # no GPU here
    network = speed_up(made.train(), **options)
    optimizer = instantiate(config["optimizer"])(network.parameters())
    roles, size = config["model"]["roles"], config["augment"]["size"]
    images = torch.randn(config["loader"]["batch_size"], roles, 3, size, size)
    labels = (torch.arange(len(images))[:, None] + torch.arange(roles) // 2) % 7
    loss = QCSLoss()

    def run() -> None:
        optimizer.zero_grad()
        loss(network.compare(images), labels)["loss"].backward()
        optimizer.step()

    return run


def serve() -> None:
    """For each name of a network in standard input, print the milliseconds of its step."""
    run, before = None, None
    print("ready", flush=True)
    for line in sys.stdin:
        if line != before or run is None:
            run, before = None, line  # the memory of the one before is freed first
            run = step(NETWORKS[line.strip()].split())
            run()
        number, start = 0, time.perf_counter()
        while not number or time.perf_counter() - start < TURN:
            run()
            number += 1
        print(1000 * (time.perf_counter() - start) / number, flush=True)


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes beside this one, which compute without end."""
    found = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in found:
            process.kill()
            process.wait()


@contextmanager
def process(setting: str) -> Iterator[Callable[[str], float]]:
    """Start the process of a setting; the function has a network take its turn in it."""
    code = CODE.format(first=setting if setting == "qcs" else "torch", path=sys.path[:1])
    pairs = [] if setting in ("qcs", "torch") else setting.split(",")
    found = subprocess.Popen(
        [sys.executable, "-c", code],
        env=GIVEN | dict(pair.split("=", 1) for pair in pairs),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines, answers = found.stdin, found.stdout
    assert lines and answers
    started = False

    def turn(network: str) -> float:
        nonlocal started
        if not started:
            started = bool(answers.readline())
        print(network, file=lines, flush=True)
        return float(answers.readline())

    try:
        yield turn
    finally:
        found.kill()
        found.wait()


def main() -> None:
    """Measure and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="ratios are to the first")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="processes beside")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with ExitStack() as stack:
        turns = {name: stack.enter_context(process(name)) for name in options.settings}
        for network in options.networks:
            for turn in turns.values():
                turn(network)  # builds it and warms up
            found = {}
            for number in options.busy:
                with busy(number):
                    rows = [[t(network) for t in turns.values()] for _ in range(options.rounds)]
                for i, name in enumerate(turns):
                    ms = statistics.median(row[i] for row in rows)
                    times = statistics.median(row[i] / row[0] for row in rows)
                    found[name, number] = f" {ms:.0f} | {times:.3f} |"
            heads = "".join(f" {number} busy: ms | times |" for number in options.busy)
            print(f"\n| {network} |{heads}\n|{'---|' * (1 + 2 * len(options.busy))}")
            for name in turns:
                print(f"| {name} |{''.join(found[name, n] for n in options.busy)}", flush=True)


if __name__ == "__main__":
    main()

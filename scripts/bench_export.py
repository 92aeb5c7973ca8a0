"""Size, speed and accuracy of a checkpoint by format, side by side in one run.

    python scripts/bench_export.py model.ckpt dataset=ferplus dataset.path=ferplus.zip

Every format takes turns on the same images, so that what else the machine does hits all alike;
the least of the rounds is told. Without a data set that can be read: speed and size alone.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from qcs.checkpoints.datasets import read_manifest
from qcs.checkpoints.load import OnnxNetwork, load_checkpoint
from qcs.checkpoints.onnx import open_export
from qcs.checkpoints.onnx_export import Exported, metadata, to_int8, to_onnx, to_program
from qcs.config.compose import as_dict, compose
from qcs.data.datasets import Faces
from qcs.data.manifest import Manifest
from qcs.models import QCSNetwork

CALIBRATION = 200


def formats(
    path: str, folder: Path, data: Manifest | None, threads: int
) -> dict[str, tuple[float, Callable[[Tensor], Tensor]]]:
    """Megabytes and the network of each format."""
    checkpoint = load_checkpoint(path)
    network = cast(QCSNetwork, checkpoint.network)
    model = Exported(network, checkpoint.recipe["transform"], False).eval()
    files = {name: folder / name for name in ("model.onnx", "int8.onnx", "model.pt2")}
    about = metadata(model, checkpoint.recipe)
    to_onnx(model, files["model.onnx"], about)
    to_program(model, files["model.pt2"], about)
    if data is None:
        batches = [model.example(8).numpy() for _ in range(4)]
    else:
        faces = Faces(data.split("train"), checkpoint.transform)
        rows = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
        some = torch.stack([faces[int(row)]["images"] for row in rows])
        batches = [part.numpy() for part in some.split(32)]
    to_int8(files["model.onnx"], files["int8.onnx"], batches)
    size = {name: file.stat().st_size / 1e6 for name, file in files.items()}
    return {
        "torch (.ckpt)": (sum(p.numel() for p in model.base.parameters()) * 4 / 1e6, model),
        "torch.export (.pt2)": (
            size["model.pt2"],
            torch.export.load(files["model.pt2"]).module(),
        ),
        "ONNX": (size["model.onnx"], OnnxNetwork(open_export(files["model.onnx"], threads))),
        "ONNX int8": (size["int8.onnx"], OnnxNetwork(open_export(files["int8.onnx"], threads))),
    }


@torch.inference_mode()
def milliseconds(run: Callable[[Tensor], Tensor], images: Tensor, least: float = 0.3) -> float:
    """Of one call, over as many as take `least` seconds."""
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < least:
        run(images)
        calls += 1
    return 1000 * (time.perf_counter() - start) / calls


@torch.inference_mode()
def accuracy(run: Callable[[Tensor], Tensor], loader: DataLoader) -> float:
    """Percent of the images."""
    hits = [(run(b["images"]).argmax(1) == b["labels"]).float() for b in loader]
    return 100 * torch.cat(hits).mean().item()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt")
    parser.add_argument("overrides", nargs="*", help="dataset=... dataset.path=...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    data, checkpoint = None, load_checkpoint(options.ckpt)
    if options.overrides:
        dataset = as_dict(compose("check", options.overrides).dataset)
        data = read_manifest(dataset, [checkpoint.recipe["transform"]])
    with tempfile.TemporaryDirectory() as folder:
        made = formats(options.ckpt, Path(folder), data, options.threads)
        size = checkpoint.recipe["transform"]["size"]
        images = {n: torch.randn(n, 3, size, size) for n in (1, 32)}
        times = {name: {n: float("inf") for n in images} for name in made}
        for _ in range(options.rounds):
            for name, (_, run) in made.items():
                for n, batch in images.items():
                    times[name][n] = min(times[name][n], milliseconds(run, batch))
        print(f"| format | MB | ms, batch 1 | ms, batch 32 | images/s | top-1 |\n{'|---' * 6}|")
        for name, (megabytes, run) in made.items():
            score = "-"
            if data is not None:
                loader = DataLoader(Faces(data.split("test"), checkpoint.transform), batch_size=64)
                score = f"{accuracy(run, loader):.2f}"
            one, many = times[name][1], times[name][32]
            rate = f"{32000 / many:.0f}"
            print(f"| {name} | {megabytes:.1f} | {one:.2f} | {many:.1f} | {rate} | {score} |")


if __name__ == "__main__":
    main()

"""Make a trained network one of `qcs zoo`: its two files, its entry in zoo.json, its figures.

    python scripts/release_network.py best.ckpt [last.ckpt] ferplus-light ferplus.zip --calibrate \
        --command "qcs train experiment=..." --card card.md

Of several checkpoints the mean of their weights is taken: of the last epochs of a run, or, with
`--statistics`, of runs from the same weights. The base branch is written as safetensors and as
ONNX, weights in float16. Both files are compared with the checkpoint in float32 and with each
other, then measured on FERPlus, beside an int8 file that is not kept. Nothing is replaced before
all of that has gone well.
"""

import argparse
import csv
import hashlib
import json
import logging
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Subset

from qcs.checkpoints import recipe, safetensors, zoo
from qcs.checkpoints.datasets import checkpoint_manifest
from qcs.checkpoints.load import Checkpoint, OnnxNetwork, load_checkpoint
from qcs.checkpoints.onnx import open_export
from qcs.checkpoints.onnx_export import Exported, metadata, to_onnx
from qcs.config.errors import UserError
from qcs.data.classes import match_classes
from qcs.data.datasets import Faces
from qcs.data.manifest import Manifest
from qcs.eval import evaluate
from qcs.evaluation import report
from qcs.evaluation.apply import apply
from qcs.evaluation.intervals import LEVEL
from qcs.evaluation.metrics import calibration
from qcs.export import export
from qcs.models import QCSNetwork

log = logging.getLogger("release")

LICENCE = (
    "labels MIT (Microsoft FERPlus); photos of FER2013 from a web search, licence unresolved: "
    "research use recommended"
)
LARGEST = 6_000_000  # bytes of a file
ROUNDED = 0.01  # of a probability, for weights in float16; measured: 0.0014
APART = 0.005  # between the two files, rounded before and after BatchNorm is folded in
REAL, RANDOM = 256, 64  # images of the comparison
BATCH = 100  # images, to estimate BatchNorm's statistics
RESAMPLES = 2000
HEADLINE = {"acc": "top-1", "mean_acc": "mean class accuracy", "ece": "expected calibration error"}


def _network(checkpoint: Checkpoint) -> QCSNetwork:
    """The network of a checkpoint of ours, which is no export."""
    return cast(QCSNetwork, checkpoint.network)


def inference(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The mean of checkpoints without what is of training alone: the cross module and the roles.

    Source: Izmailov et al., Averaging weights leads to wider optima and better generalization,
    UAI 2018; BatchNorm's statistics as well, see `estimate_statistics`.
    """
    first = checkpoints[0]
    parts = dict(first.recipe)
    parts["model"] = {**parts["model"], "roles": 1, "cross": None}
    made = first._replace(network=recipe.network(parts).eval(), recipe=parts)
    states = [_network(checkpoint).base.state_dict() for checkpoint in checkpoints]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    whole = {name: states[0][name] for name in mean if not states[0][name].is_floating_point()}
    _network(made).base.load_state_dict(mean | whole)
    return made


def estimate_statistics(checkpoint: Checkpoint, data: Manifest, number: int) -> None:
    """Estimate BatchNorm's statistics anew on so many training images, half of them mirrored.

    Those of a mean of networks from different runs are far from the mean of theirs.
    Source: Wortsman et al., Model soups, ICML 2022; Izmailov et al. 2018.
    """
    faces = Faces(data.split("train"), checkpoint.transform)
    if not 0 < number <= len(faces):
        raise UserError(f"--statistics {number}: there are {len(faces)} training images")
    rows = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))[:number]
    batches = (batch["images"] for batch in DataLoader(Subset(faces, rows.tolist()), BATCH))
    half = (torch.cat([images[::2], images[1::2].flip(-1)]) for images in batches)
    update_bn(half, checkpoint.network)


def calibrate(checkpoint: Checkpoint, data: Manifest) -> float:
    """Fold the temperature of least cross entropy on validation images into the last layer.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    if checkpoint.recipe["dataset"].get("train_on_val"):
        raise UserError("--calibrate: this network was trained on the validation images")
    images = data.split("val")
    logits = apply(checkpoint.network, images, checkpoint.transform, "cpu").double()
    labels = torch.from_numpy(images.labels)
    candidates = np.geomspace(0.25, 4, 1001).tolist()
    best = min(candidates, key=lambda t: cross_entropy(logits / t, labels).item())
    with torch.no_grad():
        for parameter in _network(checkpoint).base.encoder.head.parameters():
            parameter.div_(best)
    return best


def write(checkpoint: Checkpoint, stem: Path) -> dict[str, Path]:
    """Write both files; ONNX is made of what the safetensors hold."""
    files = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in zoo.KINDS}
    safetensors.write(files["safetensors"], _network(checkpoint), checkpoint.recipe)
    small = load_checkpoint(files["safetensors"])
    transform = small.recipe["transform"]
    model = Exported(_network(small), transform, include_transform=False, features=True).eval()
    to_onnx(model, files["onnx"], metadata(model, small.recipe), half=True)
    for file in files.values():
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file.name} has {file.stat().st_size} bytes, more than {LARGEST}")
    return files


@torch.inference_mode()
def compare(networks: dict[str, nn.Module], checkpoint: Checkpoint, data: Manifest) -> dict:
    """The largest differences of a probability, on random and on real images.

    Raises:
        UserError: a difference is beyond its bound.
    """
    generator = torch.Generator().manual_seed(0)
    size = checkpoint.recipe["transform"]["size"]
    faces = Faces(data, checkpoint.transform)
    rows = torch.randperm(len(faces), generator=generator)[:REAL].tolist()
    images = torch.cat(
        [
            torch.randn(RANDOM, 3, size, size, generator=generator),
            torch.stack([faces[row]["images"] for row in rows]),
        ]
    )
    answers = {name: network(images).double().softmax(1) for name, network in networks.items()}
    bounds = {("float32", "safetensors"): ROUNDED, ("float32", "onnx"): ROUNDED}
    bounds[("safetensors", "onnx")] = APART
    found = {}
    for (one, other), bound in bounds.items():
        difference = (answers[one] - answers[other]).abs().max().item()
        if not difference <= bound:  # NaN as well
            raise UserError(f"{one} and {other} differ by {difference:.2g}, more than {bound}")
        found[f"{one}, {other}"] = round(difference, 6)
    return found


def measure(file: Path, data: str, split: str, flip: bool, folder: Path) -> dict[str, Any]:
    """The figures of a file by `qcs eval`, and an interval of the calibration error."""
    config: dict[str, Any] = {"ckpt": str(file), "compare": None, "split": split}
    config |= {"dataset": {"path": data}}
    config |= {"flip": flip, "restrict": False, "format": "png", "resamples": RESAMPLES}
    config |= {"batch_size": 128, "num_workers": 0, "form": "eager", "device": "cpu"}
    (result,) = evaluate(config | {"store": None, "run_dir": str(folder)})
    kept = ("split", "images", "acc", "mean_acc", "f1", "ece", "intervals", "classes")
    result["intervals"]["ece"] = calibration_interval(folder / "predictions.csv")
    return {key: result[key] for key in kept}


def calibration_interval(predictions: Path) -> list[float]:
    """A bootstrap over images of the expected calibration error, from their table."""
    with predictions.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith("p_")]
    probabilities = torch.tensor([[float(row[c]) for c in columns] for row in rows])
    labels = torch.tensor([columns.index(f"p_{row['label']}") for row in rows])
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        some = torch.from_numpy(rng.integers(0, len(rows), len(rows)))
        drawn.append(float(calibration(probabilities[some], labels[some])["ece"]))
    edges = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [round(float(edge), 6) for edge in edges]


@torch.inference_mode()
def milliseconds(
    runs: Mapping[str, Callable[[Tensor], Tensor]], size: int, rounds: int = 100
) -> dict[str, float]:
    """The median CPU time of one face for each of the networks, which take turns."""
    face = torch.randn(1, 3, size, size)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 10):
        for name, run in runs.items():
            start = time.process_time()
            run(face)
            times[name].append(1000 * (time.process_time() - start))
    return {name: round(statistics.median(t[10:]), 2) for name, t in times.items()}


def int8(file: Path, data: str, split: str) -> Path:
    """Quantise a network as `qcs export int8=true` does, into a file beside its own."""
    out = file.with_name("int8.onnx")
    config: dict[str, Any] = {"ckpt": str(file), "out": str(out), "split": split}
    config |= {"dataset": {"path": data}}
    config |= {"include_transform": False, "features": False, "int8": True, "store": None}
    export(config | {"calibration_images": 200, "batch_size": 32})
    return out


def machine() -> str:
    """The processor, as figures of time name it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        named = []
    return f"one thread of {named[0] if named else platform.machine()}"


def card(name: str, entry: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"# {name}", "", *_scores(entry), "", *_classes(entry), "", *_forms(name, entry), ""]
    pairs = (f"{pair} {number:.4f}" for pair, number in entry["differences"].items())
    lines += [f"Largest difference of a probability: {'; '.join(pairs)}.", ""]
    lines += [f"Temperature of the last layer: {entry['temperature']:.3f}.", ""]
    return "\n".join(lines)


def _scores(entry: dict[str, Any]) -> list[str]:
    """The figures of all images."""
    plain, mirrored = entry["test"], entry["test_mirrored"]
    split = zoo.SPLITS[plain["split"]]
    lines = [f"On {plain['images']:,} {split} images of {entry['data']}:", ""]
    lines += ["| percent (95 % interval) | image | image and mirror image |", "|---|---|---|"]
    for key, title in HEADLINE.items():
        cells = [report.percent(f[key], f["intervals"][key]) for f in (plain, mirrored)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _classes(entry: dict[str, Any]) -> list[str]:
    """The figures by class."""
    plain, mirrored = entry["test"]["classes"], entry["test_mirrored"]["classes"]
    lines = ["| class | faces | precision | recall | recall, mirrored |", "|---|---|---|---|---|"]
    for label, row in plain.items():
        numbers = (row["precision"], row["recall"], mirrored[label]["recall"])
        cells = " | ".join(f"{100 * number:.2f}" for number in numbers)
        lines.append(f"| {label} | {row['support']} | {cells} |")
    return lines


def _forms(name: str, entry: dict[str, Any]) -> list[str]:
    """Size, time, top-1 and calibration of the checkpoint, of the two files, and of int8."""
    titles = {"float32": "checkpoint, float32", "int8": "ONNX, int8 (not shipped)"}
    titles |= {kind: f"{name}.{kind}, float16" for kind in zoo.KINDS}
    lines = ["| file | MB | ms a face | top-1 | calibration error |", "|---|---|---|---|---|"]
    for form, row in entry["forms"].items():
        share, error = 100 * row["acc"], 100 * row["ece"]
        numbers = f"{row['megabytes']:.2f} | {row['ms']:.1f} | {share:.2f} | {error:.2f}"
        lines.append(f"| {titles[form]} | {numbers} |")
    return [*lines, "", f"Times: {entry['ms_a_face']['machine']}."]


def release(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make, check and measure; put the files and the entry into the folder."""
    checkpoint = inference([load_checkpoint(path) for path in options.ckpt])
    whole = checkpoint_manifest(checkpoint.recipe, {"path": options.data}, None)
    data = match_classes(whole, checkpoint.class_names).data
    if options.statistics is not None:
        estimate_statistics(checkpoint, data, options.statistics)
    temperature = calibrate(checkpoint, data) if options.calibrate else 1.0
    files = write(checkpoint, work / options.name)
    networks: dict[str, nn.Module] = {"float32": checkpoint.network}
    networks["safetensors"] = load_checkpoint(files["safetensors"]).network
    networks["onnx"] = OnnxNetwork(open_export(files["onnx"], 1))
    entry = {
        "data": options.title,
        "trained_on": options.trained_on,
        "class_names": list(checkpoint.class_names),
        "licence": options.licence,
        "command": options.command,
        "temperature": round(temperature, 4),
        "files": {kind: described(file) for kind, file in files.items()},
        "differences": compare(networks, checkpoint, data.split(options.split)),
    }
    entry |= figures(options, files, networks, checkpoint, data.split(options.split))
    install(options, files, entry)
    return entry


def figures(
    options: argparse.Namespace,
    files: dict[str, Path],
    networks: dict[str, nn.Module],
    checkpoint: Checkpoint,
    images: Manifest,
) -> dict[str, Any]:
    """What the files are worth, and how long they take."""
    plain, mirrored = (
        measure(files["safetensors"], options.data, options.split, flip, options.reports / folder)
        for flip, folder in ((False, "image"), (True, "mirrored"))
    )
    numbers = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    size = {"float32": 4 * numbers} | {kind: file.stat().st_size for kind, file in files.items()}
    small = int8(files["safetensors"], options.data, options.split)
    size["int8"] = small.stat().st_size
    networks = networks | {"int8": OnnxNetwork(open_export(small, 1))}
    times = milliseconds(networks, checkpoint.recipe["transform"]["size"])
    forms = {}
    for form, network in networks.items():
        megabytes = round(size[form] / 1e6, 3)
        forms[form] = {"megabytes": megabytes, "ms": times[form]} | worth(
            apply(network, images, checkpoint.transform, "cpu"), torch.from_numpy(images.labels)
        )
    return {
        "test": plain,
        "test_mirrored": mirrored,
        "forms": forms,
        "ms_a_face": {
            "torch": times["safetensors"],
            "onnx": times["onnx"],
            "machine": machine(),
        },
    }


def worth(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and expected calibration error of logits (N, K)."""
    right = (logits.argmax(1) == labels).double().mean().item()
    error = calibration(logits.softmax(1), labels)["ece"].item()
    return {"acc": round(right, 6), "ece": round(error, 6)}


def described(file: Path) -> dict[str, Any]:
    """What the index says of a file."""
    content = file.read_bytes()
    return {
        "megabytes": round(len(content) / 1e6, 3),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def install(options: argparse.Namespace, files: dict[str, Path], entry: dict[str, Any]) -> None:
    """Put the files and the entry into the zoo's folder."""
    place = options.folder / zoo.INDEX
    index: dict[str, Any] = {"default": options.name, "networks": {}}
    if place.exists():
        index = zoo.index(options.folder)
    index["networks"][options.name] = entry
    if options.default:
        index["default"] = options.name
    for file in files.values():
        shutil.copyfile(file, options.folder / file.name)
    place.write_text(json.dumps(index, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", nargs="+", help="of `qcs train`; of several, their mean")
    parser.add_argument("name", help="as users will write it")
    parser.add_argument("data", help="FERPlus: its folder or zip")
    parser.add_argument("--command", required=True, help="that trained it, without your own paths")
    parser.add_argument("--split", default="test", choices=zoo.SPLITS, help="to measure on")
    parser.add_argument(
        "--statistics",
        type=int,
        metavar="N",
        help="estimate BatchNorm's statistics anew on so many training images",
    )
    parser.add_argument("--calibrate", action="store_true", help="on the validation images")
    parser.add_argument("--title", default="FERPlus", help="of the data, in a word or two")
    parser.add_argument("--trained-on", default="FERPlus, training images; from random weights")
    parser.add_argument("--licence", default=LICENCE)
    parser.add_argument("--default", action="store_true", help="make it the default network")
    parser.add_argument("--card", type=Path, help="where to write the figures as Markdown")
    parser.add_argument("--reports", type=Path, help="where to keep the reports of `qcs eval`")
    parser.add_argument("--folder", type=Path, default=zoo.FOLDER, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Release what the command line names."""
    options = parsed(sys.argv[1:])
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with tempfile.TemporaryDirectory() as folder:
            options.reports = options.reports or Path(folder) / "reports"
            entry = release(options, Path(folder))
    except UserError as error:
        sys.exit(f"error: {error}")
    text = card(options.name, entry)
    if options.card:
        options.card.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

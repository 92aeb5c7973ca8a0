"""The base branch as a file: `python -m qcs.export ckpt=... out=model.onnx` (or model.pt2)."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import TypedDict

from qcs.checkpoints.datasets import checkpoint_manifest, dataset_config
from qcs.checkpoints.load import Checkpoint, OnnxNetwork, load_checkpoint
from qcs.checkpoints.onnx import open_export
from qcs.checkpoints.onnx_export import Exported, metadata, to_int8, to_onnx, to_program
from qcs.config.bounds import Count, Workers
from qcs.config.command import command
from qcs.config.errors import UserError, reason
from qcs.config.options import resolve
from qcs.data.classes import match_classes
from qcs.data.manifest import Manifest
from qcs.data.transforms import pixels
from qcs.models import QCSNetwork

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/export.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    dataset: dict
    out: str
    include_transform: bool
    features: bool
    int8: bool
    calibration_images: Count
    split: Literal["train", "val", "test"]
    batch_size: Count
    num_workers: Workers
    store: str | None
    run_dir: str


SEED = 0
CHECKED = 8  # real images on which the file is compared with torch
# The largest difference of logits that is allowed, relative to their spread. Measured ones are
# below 1e-5. Where the file resizes, it may round a pixel up that torch rounds down.
TOLERANCE = 1e-3
TOLERANCE_OF_ROUNDING = 0.05


def export(config: dict[str, Any]) -> dict[str, float]:
    """Write the file, but only if its logits agree with those of torch.

    Returns:
        "difference", the largest one of the logits relative to their spread; for int8 also
        "images" and the accuracies on them, "before" and "after".

    Raises:
        UserError: the checkpoint, the data set or an extra is missing, the format is unknown, or
            the logits of the file differ.
    """
    out, checkpoint = _output(config), _exportable(config)
    network, transform = cast(QCSNetwork, checkpoint.network), checkpoint.recipe["transform"]
    model = Exported(network, transform, config["include_transform"], config["features"]).eval()
    data = _data(config, checkpoint)
    part = out.with_name(f"{out.stem}.part{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise UserError(
            f"out={out} cannot be written ({reason(error)}): choose another place with out="
        ) from error
    write = to_onnx if out.suffix == ".onnx" else to_program
    try:
        write(model, part, metadata(model, checkpoint.recipe))
        real = None
        if data is not None:
            split = data.split(config["split"])
            real = _inputs(model, checkpoint, split, _drawn(split, CHECKED))
        result = {"difference": check(model, part, real)}
        if config["int8"] and data is not None:  # without data, `_data` has raised
            result |= _quantise(config, model, checkpoint, data, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    size = out.stat().st_size / 1e6
    log.info("%s: %.1f MB, logits differ by %.1e of their spread", out, size, result["difference"])
    return result


def _output(config: dict[str, Any]) -> Path:
    """The file to write, whose suffix is its format."""
    out = Path(os.path.expanduser(config["out"]))
    if out.suffix not in (".onnx", ".pt2") or (config["int8"] and out.suffix != ".onnx"):
        expected = "*.onnx with int8=true" if config["int8"] else "*.onnx or *.pt2"
        raise UserError(f"out={config['out']}: the format goes by the name, {expected}")
    if os.path.isdir(out):
        raise UserError(f"out={config['out']} is a folder: name a file in it")
    return out


def _exportable(config: dict[str, Any]) -> Checkpoint:
    """The checkpoint, whose transform an exported file can describe."""
    if config["ckpt"] is None:
        raise UserError("ckpt is not set: write ckpt=model.ckpt out=model.onnx")
    checkpoint = load_checkpoint(config["ckpt"], config.get("trust"))
    name = checkpoint.recipe["transform"]["name"]
    if name != "evaluation":
        raise UserError(
            f"{config['ckpt']} has the transform {name}, and an export can describe "
            "qcs.data.transforms.evaluation alone"
        )
    return checkpoint


def _data(config: dict[str, Any], checkpoint: Checkpoint) -> Manifest | None:
    """The data set, or None where the checkpoint's own is not here and nothing needs it."""
    dataset, trust = config.get("dataset"), config.get("trust")
    try:
        return checkpoint_manifest(checkpoint.recipe, dataset, config["store"], trust)
    except UserError as error:
        own = dataset_config(checkpoint.recipe, dataset) == checkpoint.recipe["dataset"]
        if not own or config["int8"]:
            raise
        log.warning("checked on random input alone, for want of real images: %s", error)
        return None


def _drawn(data: Manifest, number: int) -> np.ndarray:
    """The rows of some images, drawn at random."""
    return np.random.default_rng(SEED).permutation(len(data))[:number]


def _inputs(model: Exported, checkpoint: Checkpoint, data: Manifest, rows: np.ndarray) -> Tensor:
    """Images of some rows as the file takes them; uint8 ones are of the transform's size."""
    images = [pixels(data, int(row), model.resize) for row in rows]
    if not model.include_transform:
        images = [checkpoint.transform(image) for image in images]
    return torch.stack(images)


@torch.inference_mode()
def check(model: Exported, path: Path, real: Tensor | None) -> float:
    """Compare a file with torch, on random batches of two sizes and on real images.

    Returns:
        The largest difference of the logits, and of the features where there are some, in units of
        their standard deviation.

    Raises:
        UserError: it is too large, or the network's own answers are not finite.
    """
    run, generator = _opened(model, path), torch.Generator().manual_seed(SEED)
    inputs = [model.example(n, generator) for n in (1, 5)] + ([] if real is None else [real])
    worst = 0.0
    for images in inputs:
        for expected, found in zip(_tensors(model(images)), run(images), strict=True):
            if not expected.isfinite().all():
                raise UserError(
                    "the network answers with numbers that are not finite: not written; export "
                    "the checkpoint of an earlier epoch"
                )
            spread = expected.std().clamp_min(torch.finfo(expected.dtype).tiny)
            difference = ((found - expected).abs().max() / spread).item()
            if not difference <= worst:  # NaN as well
                worst = difference
    limit = TOLERANCE_OF_ROUNDING if model.include_transform else TOLERANCE
    if not worst <= limit:
        raise UserError(
            f"the exported file differs from torch by {worst:.2g} of the logits' spread, more than "
            f"{limit:g}: not written; please report it with the checkpoint's config"
        )
    return worst


def _opened(model: Exported, path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A file as a function of images, with all of its outputs."""
    if path.suffix != ".onnx":
        program = torch.export.load(path).module()
        return lambda images: _tensors(program(images))
    export = open_export(path)
    run = export.embed if model.features else export.network
    assert run is not None  # the file has been written with features
    return lambda images: _tensors(run(images.numpy()))


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(map(torch.as_tensor, outputs))


def _quantise(
    config: dict[str, Any],
    model: Exported,
    checkpoint: Checkpoint,
    data: Manifest,
    path: Path,
) -> dict[str, float]:
    """Replace the file by its int8 version; return the accuracies of both, and on how many images.

    The accuracies are measured as `qcs.eval` does, on images in the classes of the checkpoint.
    """
    train = data.split("train")
    rows = _drawn(train, config["calibration_images"])
    parts = np.array_split(rows, max(len(rows) // config["batch_size"], 1))
    batches = (_inputs(model, checkpoint, train, part).numpy() for part in parts)
    small = path.with_suffix(".int8.onnx")
    try:
        to_int8(path, small, batches)
        tested = match_classes(data.split(config["split"]), checkpoint.class_names).data
        before, after = (
            _accuracy(file, model, checkpoint, tested, config["batch_size"])
            for file in (path, small)
        )
        small.replace(path)
    finally:
        small.unlink(missing_ok=True)
    log.info(
        "int8, calibrated on %d training images: top-1 %.2f %% before, %.2f %% after, on %d "
        "images of %s",
        *(len(rows), 100 * before, 100 * after, len(tested), config["split"]),
    )
    return {"images": len(tested), "before": before, "after": after}


def _accuracy(
    file: Path, model: Exported, checkpoint: Checkpoint, data: Manifest, batch_size: int
) -> float:
    """The top-1 accuracy of an ONNX file."""
    network, hits = OnnxNetwork(open_export(file)), 0
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // batch_size)):
        predicted = network(_inputs(model, checkpoint, data, rows)).argmax(1).numpy()
        hits += int((predicted == data.labels[rows]).sum())
    return hits / len(data)


@command("export")
def main(cfg: DictConfig) -> None:
    """Export the checkpoint that the command line names."""
    export(resolve(cfg, Settings))


if __name__ == "__main__":
    main()

"""The base branch as a file: `python -m qcs.export ckpt=... out=model.onnx` (or model.pt2)."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from typing_extensions import TypedDict

from qcs.checkpoints import recipe
from qcs.checkpoints.exported import Exported, metadata, to_int8, to_onnx, to_program
from qcs.checkpoints.load import Checkpoint, load_checkpoint
from qcs.checkpoints.onnx import open_onnx
from qcs.config.bounds import Count, Workers
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import resolve
from qcs.data.class_names import mapped
from qcs.data.manifest import Manifest
from qcs.data.transforms import pixels
from qcs.training import build

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/export.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    dataset: dict
    out: str
    include_transform: bool
    int8: bool
    calibration_images: Count
    split: Literal["train", "val", "test"]
    batch_size: Count
    num_workers: Workers
    store: str | None
    run_dir: str


SEED = 0
CHECKED = 8  # real images
TOLERANCE = 1e-3  # of logits, relative to their spread; measured: below 1e-5
ROUNDED = 0.05  # the same where the file resizes: a pixel may be rounded to the other side


def export(config: dict[str, Any]) -> dict[str, float]:
    """Write the file, but only when it agrees with torch.

    Returns:
        "difference", the largest of the logits relative to their spread; for int8 "before" and
        "after", the accuracies.

    Raises:
        UserError: no checkpoint or an unknown format, or the file gives other logits.
        UserError: of the checkpoint, the data set, the extra.
    """
    if config["ckpt"] is None:
        raise UserError("ckpt is not set: write ckpt=model.ckpt out=model.onnx")
    out = Path(config["out"]).expanduser()
    if out.suffix not in (".onnx", ".pt2") or (config["int8"] and out.suffix != ".onnx"):
        expected = "*.onnx with int8=true" if config["int8"] else "*.onnx or *.pt2"
        raise UserError(f"out={config['out']}: the format goes by the name, {expected}")
    checkpoint = load_checkpoint(config["ckpt"], config.get("trust"))
    transform = checkpoint.recipe["transform"]
    if transform["name"] != "evaluation":
        raise UserError(
            f"{config['ckpt']} has the transform {transform['name']}, and an export can describe "
            "qcs.data.transforms.evaluation alone"
        )
    model = Exported(checkpoint.network, transform, config["include_transform"]).eval()
    data = _data(config, checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.stem}.part{out.suffix}")
    about, write = (
        metadata(model, checkpoint.recipe),
        to_onnx if out.suffix == ".onnx" else to_program,
    )
    try:
        write(model, part, about)
        result = {"difference": check(model, part, _real(model, checkpoint, data, config["split"]))}
        if config["int8"]:
            result |= _quantise(config, model, checkpoint, data, part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    size = out.stat().st_size / 1e6
    log.info("%s: %.1f MB, logits differ by %.1e of their spread", out, size, result["difference"])
    return result


def _data(config: dict[str, Any], checkpoint: Checkpoint) -> Manifest | None:
    """The data set, or None where the checkpoint's own is not here and nothing needs it."""
    dataset = recipe.chosen_dataset(checkpoint.recipe, config.get("dataset"))
    try:
        transforms, trust = [checkpoint.recipe["transform"]], config.get("trust")
        return build.manifest(dataset, transforms, config["store"], trust)
    except UserError as error:
        if dataset != checkpoint.recipe["dataset"] or config["int8"]:
            raise
        log.warning("checked on random input alone, for want of real images: %s", error)
        return None


def _inputs(model: Exported, checkpoint: Checkpoint, data: Manifest, rows: np.ndarray) -> Tensor:
    """Images of some rows as the file takes them; uint8 ones are of the transform's size."""
    images = [pixels(data, int(row), model.resize) for row in rows]
    return torch.stack(images if model.include_transform else
                       [checkpoint.transform(image) for image in images])  # fmt: skip


def _real(
    model: Exported, checkpoint: Checkpoint, data: Manifest | None, split: str
) -> Tensor | None:
    if data is None:
        return None
    data = data.split(split)
    rows = np.random.default_rng(SEED).permutation(len(data))[:CHECKED]
    return _inputs(model, checkpoint, data, rows)


@torch.inference_mode()
def check(model: Exported, path: Path, real: Tensor | None) -> float:
    """Compare a file with torch, on random batches of two sizes and on real images.

    Returns:
        The largest difference of the logits, in units of their standard deviation.

    Raises:
        UserError: it is too large, or the network's own logits are not finite.
    """
    run = open_onnx(path)[0] if path.suffix == ".onnx" else torch.export.load(path).module()
    generator = torch.Generator().manual_seed(SEED)
    inputs = [model.example(n, generator) for n in (1, 5)] + ([] if real is None else [real])
    worst = 0.0
    for images in inputs:
        expected = model(images)
        if not expected.isfinite().all():
            raise UserError(
                "the network answers with numbers that are not finite: not written; export the "
                "checkpoint of an earlier epoch"
            )
        spread = expected.std().clamp_min(torch.finfo(expected.dtype).tiny)
        difference = ((run(images) - expected).abs().max() / spread).item()
        if not difference <= worst:  # NaN as well
            worst = difference
    limit = ROUNDED if model.include_transform else TOLERANCE
    if not worst <= limit:
        raise UserError(
            f"the exported file differs from torch by {worst:.2g} of the logits' spread, more than "
            f"{limit:g}: not written; please report it with the checkpoint's config"
        )
    return worst


def _quantise(
    config: dict[str, Any],
    model: Exported,
    checkpoint: Checkpoint,
    data: Manifest,
    path: Path,
) -> dict[str, float]:
    """Put the int8 file in the place of the float one, with the accuracies of both."""
    train = data.split("train")
    number, size = config["calibration_images"], config["batch_size"]
    rows = np.random.default_rng(SEED).permutation(len(train))[:number]
    parts = np.array_split(rows, max(len(rows) // size, 1))
    batches = (_inputs(model, checkpoint, train, part).numpy() for part in parts)
    small = path.with_suffix(".int8.onnx")
    try:
        to_int8(path, small, batches)
        tested = mapped(data.split(config["split"]), checkpoint.class_names).data  # as qcs.eval
        result = {"images": len(tested)}
        for name, file in (("before", path), ("after", small)):
            network, hits = open_onnx(file)[0], 0
            for part in np.array_split(np.arange(len(tested)), -(-len(tested) // size)):
                predicted = network(_inputs(model, checkpoint, tested, part)).argmax(1).numpy()
                hits += int((predicted == tested.labels[part]).sum())
            result[name] = hits / len(tested)
        small.replace(path)
    finally:
        small.unlink(missing_ok=True)
    log.info(
        "int8, calibrated on %d training images: top-1 %.2f %% before, %.2f %% after, on %d "
        "images of %s",
        *(len(rows), 100 * result["before"], 100 * result["after"], len(tested), config["split"]),
    )
    return result


@command("export")
def main(cfg: DictConfig) -> None:
    """Compose, check, export."""
    export(resolve(cfg, Settings))


if __name__ == "__main__":
    main()

"""Expressions in photos and videos: `python -m qcs.predict ckpt=... input=photo.jpg`.

Exit status: 0 where every file was read, with faces or without; 1 where some were not; 2 where
nothing could start.
"""

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints.load import load_classifier
from qcs.config.bounds import Count, Probability
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import plain
from qcs.evaluation.apply import pick_device
from qcs.inference.backends import Form
from qcs.inference.detector import Detector
from qcs.inference.inputs import files_of, open_items
from qcs.inference.outputs import Pictures, Records
from qcs.inference.predictor import Predictor, crop_of

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/predict.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    input: str | int | Annotated[list[str | int], MinLen(1)] | None
    out: str
    detect: Literal["auto", "none"]
    crop: str | None
    threshold: Probability
    longest: Count
    smallest: Count
    batch_size: Count
    form: Form
    device: str | None
    every: Count
    max_frames: Count | None
    annotate: bool
    save_crops: bool
    run_dir: str


def predict(config: dict[str, Any]) -> Counter:
    """Write the predictions of all images and frames; one bad file does not stop the others.

    Returns:
        Numbers: "images", "faces", "empty" (images without a face), "errors", and of each label.

    Raises:
        UserError: what keeps the whole run from starting.
    """
    for key in ("ckpt", "input"):
        if config[key] is None:
            raise UserError(f"{key} is not set: write ckpt=model.ckpt input=photo.jpg")
    files = files_of(config["input"])
    checkpoint, detector = load_classifier(config["ckpt"], config.get("trust")), None
    if config["detect"] == "auto" or config["crop"]:
        detector = Detector(config["threshold"], config["longest"], config["smallest"])
    crop, why = crop_of(checkpoint.recipe, config["crop"], detector)
    log.info("faces are cut %s", why)
    device = pick_device(config["device"])
    batch_size = 1 if files[0][0].startswith("webcam ") else config["batch_size"]  # answer at once
    predictor = Predictor(checkpoint, detector, crop, batch_size, device, config["form"])
    folder, counts = Path(config["run_dir"]), Counter()
    out = Path(config["out"])
    out = folder / out if out.parent == Path(".") else out
    items = open_items(files, config["every"], config["max_frames"])
    with (
        Records(out, checkpoint.class_names) as records,
        Pictures(folder, config["annotate"], config["save_crops"]) as pictures,
    ):
        try:
            for result in predictor.stream(items, config["detect"] == "auto"):
                records.write(result)
                pictures.write(result)
                counts["images"] += 1
                counts["faces"] += len(result.predictions)
                counts["errors"] += result.error is not None
                counts["empty"] += not result.predictions and result.error is None
                counts.update(p.label for p in result.predictions)
        except KeyboardInterrupt:  # how a webcam ends
            log.info("stopped")
    labels = {name: counts[name] for name in checkpoint.class_names if counts[name]}
    log.info(
        "%d images or frames, %d faces (%s), %d without a face, %d that could not be read: %s",
        *(counts[key] for key in ("images", "faces")),
        ", ".join(f"{name} {number}" for name, number in labels.items()) or "none",
        *(counts["empty"], counts["errors"], out),
    )
    return counts


@command("predict")
def main(cfg: DictConfig) -> None:
    """Compose, check, predict."""
    if predict(plain(cfg, Settings))["errors"]:
        sys.exit(1)


if __name__ == "__main__":
    main()

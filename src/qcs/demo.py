"""A page to try a checkpoint on: `python -m qcs.demo ckpt=...`. It listens on loopback alone."""

import html
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from omegaconf import DictConfig
from PIL import Image
from typing_extensions import TypedDict

from qcs.checkpoints.load import load_classifier
from qcs.config.bounds import Count, Probability
from qcs.config.command import command
from qcs.config.errors import UserError, missing_extra
from qcs.config.options import resolve
from qcs.evaluation.apply import pick_device
from qcs.inference.crops import crop_of
from qcs.inference.detector import Detector
from qcs.inference.page import page
from qcs.inference.predictor import Predictor
from qcs.inference.server import listen, serve

# Nothing is asked of any other machine, nor told to one.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_RUN_HISTORY": "False"}


class Settings(TypedDict):
    """The keys of conf/demo.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    port: Annotated[int, Interval(ge=0, le=65535)]
    crop: str | None
    threshold: Probability
    longest: Count
    smallest: Count
    device: str | None
    run_dir: str


def demo(config: dict[str, Any]) -> None:
    """Serve the page until it is stopped.

    Raises:
        UserError: a missing checkpoint or extra; a port in use.
    """
    if config["ckpt"] is None:
        raise UserError("ckpt is not set: write ckpt=model.ckpt")
    with (
        listen(config["port"]) as listener,
        tempfile.TemporaryDirectory() as name,  # uploads go with it
    ):
        folder = Path(name).resolve()
        os.environ |= QUIET | {"GRADIO_TEMP_DIR": str(folder)}
        logging.getLogger("httpx").setLevel(logging.WARNING)
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise missing_extra("demo", "the page needs") from error
        predictor, about = _predictor(config)
        serve(page(predictor, folder, about), listener, folder)


def _predictor(config: dict[str, Any]) -> tuple[Predictor, str]:
    """The network, ready, and what the page says of it, in Markdown."""
    device = pick_device(config["device"])
    checkpoint = load_classifier(config["ckpt"], config.get("trust"))
    detector = Detector(config["threshold"], config["longest"], config["smallest"])
    crop, why = crop_of(checkpoint.recipe, config["crop"], detector)
    predictor = Predictor(checkpoint, detector, crop, device=device)
    predictor.classify([Image.fromarray(np.zeros((64, 64, 3), np.uint8))])  # the first one is slow
    names = ", ".join(checkpoint.class_names)
    about = _literal(f"{Path(config['ckpt']).name}: {names}. Faces are cut {why}.")
    if predictor.warning:
        about += f"\n\n**Note: {_literal(predictor.warning)}.**"
    return predictor, about


def _literal(text: str) -> str:
    """A text as Markdown that shows it as it is; a checkpoint's names could hold links."""
    return re.sub(r"([\\`*_{}\[\]()#!|~$-])", r"\\\1", html.escape(text, quote=False))


@command("demo")
def main(cfg: DictConfig) -> None:
    """Compose, check, serve."""
    demo(resolve(cfg, Settings))


if __name__ == "__main__":
    main()

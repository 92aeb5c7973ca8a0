"""A page to try a checkpoint on: `python -m qcs.demo [ckpt=...]`. It listens on loopback alone."""

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

from qcs.checkpoints import zoo
from qcs.checkpoints.load import load_classifier
from qcs.config.bounds import Count, Probability
from qcs.config.command import command
from qcs.config.errors import missing_extra
from qcs.config.options import resolve
from qcs.evaluation.device import pick_device
from qcs.inference.crop import crop_of
from qcs.inference.demo_page import page
from qcs.inference.detector import Detector
from qcs.inference.predictor import Predictor
from qcs.inference.server import listen, serve

# Gradio must not contact any other machine.
OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_RUN_HISTORY": "False",
}


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
        UserError: the checkpoint or the extra is missing, or the port is in use.
    """
    with (
        listen(config["port"]) as listener,
        tempfile.TemporaryDirectory() as name,  # uploads go with it
    ):
        folder = Path(name).resolve()
        os.environ |= OFFLINE | {"GRADIO_TEMP_DIR": str(folder)}
        logging.getLogger("httpx").setLevel(logging.WARNING)
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise missing_extra("demo", "the page needs") from error
        predictor, description = _predictor(config)
        serve(page(predictor, folder, description), listener, folder)


def _predictor(config: dict[str, Any]) -> tuple[Predictor, str]:
    """The predictor, and the description of its checkpoint in Markdown."""
    device = pick_device(config["device"])
    file = config["ckpt"] or zoo.default_file()
    checkpoint = load_classifier(file, config.get("trust"))
    detector = Detector(config["threshold"], config["longest"], config["smallest"])
    crop, why = crop_of(checkpoint.recipe, config["crop"], detector)
    predictor = Predictor(checkpoint, detector, crop, device=device)
    predictor.classify([Image.fromarray(np.zeros((64, 64, 3), np.uint8))])  # the first call is slow
    names = ", ".join(checkpoint.class_names)
    name = Path(config["ckpt"] or zoo.default()).name
    description = _literal(f"{name}: {names}. Faces are cropped {why}.")
    if predictor.warning:
        description += f"\n\n**Note: {_literal(predictor.warning)}.**"
    return predictor, description


def _literal(text: str) -> str:
    """Escape a text for Markdown, as the names in a checkpoint could hold links."""
    return re.sub(r"([\\`*_{}\[\]()#!|~$-])", r"\\\1", html.escape(text, quote=False))


@command("demo")
def main(cfg: DictConfig) -> None:
    """Serve the page for the checkpoint that the command line names."""
    demo(resolve(cfg, Settings))


if __name__ == "__main__":
    main()

"""A page to try a checkpoint on: `python -m qcs.demo ckpt=...`. It listens on loopback alone."""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

from qcs import plots
from qcs.checkpoints.load import load_classifier
from qcs.config.bounds import Count, Probability
from qcs.config.command import command
from qcs.config.errors import UserError, missing_extra
from qcs.config.options import plain
from qcs.data.sources import synthetic
from qcs.data.transforms import unnormalised
from qcs.evaluation.apply import pick_device
from qcs.inference.detector import Detector
from qcs.inference.outputs import annotated
from qcs.inference.predictor import Item, Predictor, Result, as_image, crop_of
from qcs.models import QCSNetwork
from qcs.models.attention_maps import class_token_attention, pair_maps

if TYPE_CHECKING:
    import gradio

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/demo.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    port: Annotated[int, Interval(ge=1, le=65535)]
    crop: str | None
    threshold: Probability
    longest: Count
    smallest: Count
    device: str | None
    run_dir: str


HOST = "127.0.0.1"
MOST = 8  # faces compared at once
MISSING = "no face found: turn off 'find the faces' for an image of a cut face"


def analyse(predictor: Predictor, path: str | None, detect: bool) -> Result:
    """Find and classify the faces of one file.

    Raises:
        UserError: no file, not an image, or no face in it.
    """
    if not path:
        raise UserError("no image: upload one, take one with the webcam, or choose an example")
    name = Path(path).name
    try:
        image = as_image(path)
    except ValueError as error:
        raise UserError(str(error).replace(path, name)) from error
    result = next(predictor.stream([Item(name, image)], detect))
    if not result.predictions:
        raise UserError(MISSING)
    return result


def inputs(predictor: Predictor, crops: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Cut faces as the network takes them, and as pixels in [0, 1], each (M, 3, H, W)."""
    images = torch.stack([predictor.transform(crop) for crop in crops])
    return images, unnormalised(images, predictor.transform)


def looked_at(predictor: Predictor, crop: Image.Image, folder: Path) -> str | None:
    """Draw the base branch's attention on a face; None where the network does not show it."""
    if not isinstance(predictor.network, QCSNetwork):  # an export
        return None
    images, pixels = inputs(predictor, [crop])
    levels = class_token_attention(predictor.network, images.to(predictor.device)).cpu()
    path, number = _new(folder), levels.shape[1]
    names = [f"level {n}: {100 * share:.0f} %" for n, share in enumerate(levels[0].sum(-1), 1)]
    # Shares of all tokens together, so that the levels can be compared.
    plots.class_token_maps(pixels.expand(number, -1, -1, -1), levels * number, [names], path)
    return str(path)


def compared(
    predictor: Predictor, crops: Sequence[Image.Image], labels: Sequence[str], folder: Path
) -> str:
    """Draw the maps between faces: what two of one label share, what tells two others apart.

    Raises:
        UserError: fewer than two faces, or a network that cannot compare.
    """
    if not isinstance(predictor.network, QCSNetwork):
        raise UserError("an exported file holds the base branch alone: compare with the .ckpt")
    if len(crops) < 2:
        raise UserError(f"maps between faces need two faces or more, got {len(crops)}")
    images, pixels = inputs(predictor, crops)
    same = torch.tensor([[a == b for b in labels] for a in labels], device=predictor.device)
    maps = pair_maps(predictor.network, images.to(predictor.device), same).mean(2).cpu()
    path = _new(folder)
    plots.pair_grid(pixels, maps, labels, path)
    return str(path)


def _new(folder: Path) -> Path:
    handle, name = tempfile.mkstemp(".png", dir=folder)
    os.close(handle)
    return Path(name)


def examples(folder: Path) -> list[list[Any]]:
    """Example files, each with whether its faces are to be found: a photo, and drawn faces."""
    rows: list[list[Any]] = []
    try:
        import skimage.data

        Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.jpg", quality=92)
        rows.append([str(folder / "astronaut.jpg"), True])
    except ImportError:  # it comes with the detector
        pass
    for number, name in enumerate(synthetic.EXPRESSIONS[:3]):
        path = folder / f"drawn_{name.lower()}.png"
        Image.fromarray(synthetic.draw_face(7, number, name, 192)).save(path)
        rows.append([str(path), False])
    return rows


def page(predictor: Predictor, folder: Path, about: str) -> "gradio.Blocks":
    """Build the page.

    Args:
        predictor: of the checkpoint.
        folder: for pictures.
        about: a line on the checkpoint.
    """
    import gradio as gr

    def said(error: Exception) -> Exception:
        return gr.Error(str(error), title="", print_exception=False)

    def classify(path: str | None, detect: bool) -> tuple:
        try:
            result = analyse(predictor, path, detect)
        except (ValueError, ImportError) as error:
            raise said(error) from error
        captions = [f"{p.label} {100 * p.probability:.0f} %" for p in result.predictions]
        gallery = list(zip(result.crops, captions, strict=True))
        drawn = annotated(result.image, result.predictions)
        return drawn, gallery, result, *chosen(result, 0)

    def chosen(result: Result, number: int) -> tuple:
        face = result.predictions[number]
        picture = looked_at(predictor, result.crops[number], folder)
        return face.probabilities, picture

    def select(result: Result, event: gr.SelectData) -> tuple:
        return chosen(result, event.index)

    def compare(paths: list[str] | None, detect: bool) -> tuple:
        try:
            results = [analyse(predictor, path, detect) for path in paths or []]
            crops = [crop for result in results for crop in result.crops][:MOST]
            labels = [p.label for result in results for p in result.predictions][:MOST]
            return compared(predictor, crops, labels, folder)
        except (ValueError, ImportError) as error:
            raise said(error) from error

    picture = {"interactive": False, "buttons": ["fullscreen", "download"]}
    one_at_a_time = {"concurrency_id": "network", "concurrency_limit": 1}
    with gr.Blocks(title="QCS", analytics_enabled=False) as blocks:
        gr.Markdown(f"# QCS: facial expressions\n{about}")
        with gr.Tab("One image"), gr.Row():
            with gr.Column():
                image = gr.Image(
                    type="filepath", sources=["upload", "webcam", "clipboard"], label="Image"
                )
                detect = gr.Checkbox(True, label="find the faces (off: the image is a cut face)")
                image.preprocess = lambda data: data and data.path  # we say what is wrong with it
                button = gr.Button("Classify", variant="primary")
                gr.Examples(examples(folder), [image, detect], cache_examples=False)
            with gr.Column():
                drawn = gr.Image(label="Faces", **picture)
                gallery = gr.Gallery(label="Choose a face", columns=4, height=220, buttons=[])
                bars = gr.Label(label="Probabilities", num_top_classes=len(predictor.class_names))
                gr.Markdown("Where the base branch looks, and its share of the attention:")
                attention = gr.Image(show_label=False, **picture)
            state = gr.State()
            outputs = [drawn, gallery, state, bars, attention]
            button.click(classify, [image, detect], outputs, **one_at_a_time)
            gallery.select(select, [state], [bars, attention], **one_at_a_time)
        with gr.Tab("Compare faces"):
            files = gr.File(file_count="multiple", type="filepath", label="Two or more images")
            all_detect = gr.Checkbox(True, label="find the faces (off: the images are cut faces)")
            start = gr.Button("Compare", variant="primary")
            gr.Markdown("What each row's face shows when it is compared with each column's:")
            maps = gr.Image(show_label=False, **picture)
            start.click(compare, [files, all_detect], maps, **one_at_a_time)
    return blocks


def serve(config: dict[str, Any]) -> None:
    """Serve the page until it is stopped.

    Raises:
        UserError: a missing checkpoint or extra.
    """
    if config["ckpt"] is None:
        raise UserError("ckpt is not set: write ckpt=model.ckpt")
    with tempfile.TemporaryDirectory() as folder:  # uploads go with it
        _serve(config, Path(folder))


def _serve(config: dict[str, Any], folder: Path) -> None:
    # Nothing is asked of any other machine, nor told to one.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_SERVER_PORT": str(config["port"])}
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        import gradio
    except ImportError as error:
        raise missing_extra("demo", "the page needs") from error
    checkpoint = load_classifier(config["ckpt"], config.get("trust"))
    detector = Detector(config["threshold"], config["longest"], config["smallest"])
    crop, why = crop_of(checkpoint.recipe, config["crop"], detector)
    device = pick_device(config["device"])
    predictor = Predictor(checkpoint, detector, crop, device=device)
    predictor.classify([Image.fromarray(np.zeros((64, 64, 3), np.uint8))])  # the first one is slow
    names = ", ".join(checkpoint.class_names)
    about = f"`{Path(config['ckpt']).name}`: {names}. Faces are cut {why}."
    blocks = page(predictor, folder, about)
    blocks.launch(
        server_name=HOST,
        share=False,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
        allowed_paths=[str(folder)],
        footer_links=[],
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    print(f"open {blocks.local_url} (Ctrl-C stops)", flush=True)
    blocks.block_thread()


@command("demo")
def main(cfg: DictConfig) -> None:
    """Compose, check, serve."""
    serve(plain(cfg, Settings))


if __name__ == "__main__":
    main()

"""The page on which a network is tried: what it shows, and what it makes of an upload.

`qcs.inference.server` serves it. Whatever comes from a browser is checked here as well: a path is
only opened where it lies in the page's own folder.
"""

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from qcs import plots
from qcs.config.errors import UserError
from qcs.data.image_files import FORMATS, open_file, printable
from qcs.data.sources import synthetic
from qcs.data.transforms import unnormalised
from qcs.inference.inputs import Item, as_image
from qcs.inference.pictures import annotated
from qcs.inference.predictor import Prediction, Predictor, Result
from qcs.models import QCSNetwork
from qcs.models.attention_maps import class_token_attention, pair_maps

if TYPE_CHECKING:
    import gradio

MOST = 8  # faces compared at once
MEGAPIXELS = 64  # of an upload; a phone's photos have 12 to 50
KEPT = 3600  # seconds that a visitor's faces are remembered
MISSING = "no face found: turn off 'find the faces' for an image of a cut face"

Faces = tuple[list[Prediction], list[Image.Image]]  # of one image, with their crops


def uploaded(path: Any, folder: Path) -> Path:
    """Check that a path which a browser sent is a file that was uploaded.

    Args:
        path: anything.
        folder: the page's own.

    Raises:
        UserError: it is not a regular file inside the folder, links followed; one sentence for all
            reasons, so that it does not tell which files exist.
    """
    try:
        place = Path(path).resolve(strict=True)
        if place.is_file() and place.is_relative_to(folder.resolve()):
            return place
    except (OSError, ValueError, TypeError, RuntimeError):
        pass
    raise UserError("that is no file which was uploaded here")


def opened(path: Any, folder: Path) -> Image.Image:
    """Read an upload as upright RGB; its size is looked at before it is decoded.

    Raises:
        UserError: as `uploaded`; too many pixels, or not an image.
    """
    place = uploaded(path, folder)
    try:
        with open_file(place) as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # a damaged file can make Pillow's readers raise anything
        raise UserError(f"cannot read {place.name} as an image (not an image)") from error
    if width * height > MEGAPIXELS * 1_000_000:
        raise UserError(
            f"{place.name} has {width} x {height} pixels: more than {MEGAPIXELS} million are not "
            "taken here, make it smaller"
        )
    try:
        return as_image(place)
    except UserError as error:
        raise UserError(str(error).replace(str(place), place.name)) from error


def analyse(predictor: Predictor, path: Any, detect: bool, folder: Path) -> Result:
    """Find and classify the faces of one upload.

    Raises:
        UserError: no file, not an image, or no face in it.
    """
    if not path:
        raise UserError("no image: upload one, take one with the webcam, or choose an example")
    image = opened(path, folder)
    result = next(predictor.stream([Item(Path(path).name, image)], detect))
    if not result.predictions:
        raise UserError(MISSING)
    return result


def chosen(faces: Faces | None, event: Any) -> int:
    """The number of the face that an event of the gallery names.

    Raises:
        UserError: there is no such face.
    """
    index = getattr(event, "_data", None)
    index = index.get("index") if isinstance(index, dict) else None
    if faces is None or type(index) is not int or not 0 <= index < len(faces[0]):
        raise UserError("there is no such face: classify an image first, then choose one")
    return index


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


class Actions:
    """What the page's buttons do; a mistake of the user's is shown as a sentence.

    Args:
        predictor: of the checkpoint.
        folder: of uploads and pictures.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self.predictor, self.folder = predictor, folder

    def classify(self, path: Any, detect: bool) -> tuple:
        """The faces of an image, and the largest of them in detail."""
        result = analyse(self.predictor, path, detect, self.folder)
        captions = [f"{p.label} {100 * p.probability:.0f} %" for p in result.predictions]
        gallery = list(zip(result.crops, captions, strict=True))
        faces = (result.predictions, result.crops)
        drawn = annotated(result.image, result.predictions)
        return drawn, gallery, faces, *self._detail(faces, 0)

    def select(self, faces: Faces | None, event: Any) -> tuple:
        """A face of the gallery in detail."""
        return self._detail(faces, chosen(faces, event))

    def _detail(self, faces: Faces, number: int) -> tuple:
        picture = looked_at(self.predictor, faces[1][number], self.folder)
        return faces[0][number].probabilities, picture

    def compare(self, paths: Any, detect: bool) -> str:
        """The maps between the faces of several images."""
        paths = paths if isinstance(paths, list) else []
        if len(paths) > MOST:
            raise UserError(f"{len(paths)} images: at most {MOST} are compared at once")
        results = [analyse(self.predictor, path, detect, self.folder) for path in paths]
        crops = [crop for result in results for crop in result.crops][:MOST]
        labels = [p.label for result in results for p in result.predictions][:MOST]
        return compared(self.predictor, crops, labels, self.folder)


def page(predictor: Predictor, folder: Path, about: str) -> "gradio.Blocks":
    """Lay out the page.

    Args:
        predictor: of the checkpoint.
        folder: of uploads and pictures.
        about: Markdown on the checkpoint.
    """
    import gradio as gr

    actions = Actions(predictor, folder)

    def said(action: Callable) -> Callable:
        @functools.wraps(action)
        def wrapper(*arguments: Any) -> Any:
            try:
                return action(*arguments)
            except UserError as error:
                raise gr.Error(printable(error), title="", print_exception=False) from error

        return wrapper

    def select(faces: Faces | None, event: gr.EventData = None) -> tuple:
        return actions.select(faces, event)

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
            state = gr.State(time_to_live=KEPT)
            outputs = [drawn, gallery, state, bars, attention]
            button.click(said(actions.classify), [image, detect], outputs, **one_at_a_time)
            gallery.select(said(select), [state], [bars, attention], **one_at_a_time)
        with gr.Tab("Compare faces"):
            files = gr.File(file_count="multiple", type="filepath", label="Two or more images")
            all_detect = gr.Checkbox(True, label="find the faces (off: the images are cut faces)")
            start = gr.Button("Compare", variant="primary")
            gr.Markdown("What each row's face shows when it is compared with each column's:")
            maps = gr.Image(show_label=False, **picture)
            start.click(said(actions.compare), [files, all_detect], maps, **one_at_a_time)
    return blocks.queue(max_size=32)

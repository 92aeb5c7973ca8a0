"""The web page on which a user tries a network; `qcs.inference.server` serves it."""

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
from qcs.config.escape import terminal
from qcs.data.sources import synthetic
from qcs.data.transforms import unnormalised
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Item
from qcs.inference.pictures import annotated
from qcs.inference.predictor import Predictor
from qcs.inference.uploads import open_upload
from qcs.models import QCSNetwork
from qcs.models.attention_maps import class_token_attention, pair_maps

if TYPE_CHECKING:
    import gradio

MAX_FACES = 8  # that are compared at once
TIME_TO_LIVE = 3600  # seconds for which a visitor's faces are kept
NO_FACE = "no face found: turn off 'find the faces' for an image of a cut face"

Faces = tuple[list[Prediction], list[Image.Image]]  # of one image, with their crops


def analyse(predictor: Predictor, path: Any, detect: bool, folder: Path) -> Result:
    """Find and classify the faces of one upload.

    Args:
        path: as the browser sent it.
        detect: whether to find the faces; else the image is a face.

    Raises:
        UserError: there is no file, it is not an image, or no face was found in it.
    """
    if not path:
        raise UserError("no image: upload one, take one with the webcam, or choose an example")
    image = open_upload(path, folder)
    result = next(predictor.stream([Item(Path(path).name, image)], detect))
    if not result.predictions:
        raise UserError(NO_FACE)
    return result


def selected_face(faces: Faces | None, event: Any) -> int:
    """Return the number of the face that was selected in the gallery.

    Args:
        event: of gradio; its data come from the browser.

    Raises:
        UserError: there is no such face.
    """
    index = getattr(event, "_data", None)
    index = index.get("index") if isinstance(index, dict) else None
    if faces is None or type(index) is not int or not 0 <= index < len(faces[0]):
        raise UserError("there is no such face: classify an image first, then choose one")
    return index


def network_inputs(predictor: Predictor, crops: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Return faces as the network takes them, and as pixels in [0, 1], each (M, 3, H, W)."""
    images = torch.stack([predictor.transform(crop) for crop in crops])
    return images, unnormalised(images, predictor.transform)


def attention_picture(predictor: Predictor, crop: Image.Image, folder: Path) -> str | None:
    """Draw the attention of the base branch on a face; None for an export, which shows none."""
    if not isinstance(predictor.network, QCSNetwork):
        return None
    images, pixels = network_inputs(predictor, [crop])
    levels = class_token_attention(predictor.network, images.to(predictor.device)).cpu()
    path, number = _new_file(folder), levels.shape[1]
    names = [f"level {n}: {100 * share:.0f} %" for n, share in enumerate(levels[0].sum(-1), 1)]
    # The maps of all levels together sum to 1, and the picture expects that of each map.
    plots.class_token_maps(pixels.expand(number, -1, -1, -1), levels * number, [names], path)
    return str(path)


def comparison_picture(
    predictor: Predictor, crops: Sequence[Image.Image], labels: Sequence[str], folder: Path
) -> str:
    """Draw the maps between faces: what two of one label share, or what tells two labels apart.

    Raises:
        UserError: there are fewer than two faces, or the network cannot compare faces.
    """
    if not isinstance(predictor.network, QCSNetwork):
        raise UserError("an exported file holds the base branch alone: compare with the .ckpt")
    if len(crops) < 2:
        raise UserError(f"maps between faces need two faces or more, got {len(crops)}")
    images, pixels = network_inputs(predictor, crops)
    same = torch.tensor([[a == b for b in labels] for a in labels], device=predictor.device)
    maps = pair_maps(predictor.network, images.to(predictor.device), same).mean(2).cpu()
    path = _new_file(folder)
    plots.pair_grid(pixels, maps, labels, path)
    return str(path)


def _new_file(folder: Path) -> Path:
    handle, name = tempfile.mkstemp(".png", dir=folder)
    os.close(handle)
    return Path(name)


def examples(folder: Path) -> list[list[Any]]:
    """Write the examples, a photo and drawn faces: path, and whether its faces are to be found."""
    rows: list[list[Any]] = []
    try:
        import skimage.data

        Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.jpg", quality=92)
        rows.append([str(folder / "astronaut.jpg"), True])
    except ImportError:  # an example less; scikit-image comes with the extra `demo`
        pass
    for number, name in enumerate(synthetic.EXPRESSIONS[:3]):
        path = folder / f"drawn_{name.lower()}.png"
        Image.fromarray(synthetic.draw_face(7, number, name, 192)).save(path)
        rows.append([str(path), False])
    return rows


class Actions:
    """What the buttons of the page do; they raise `UserError` for a mistake of the user."""

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self.predictor, self.folder = predictor, folder

    def classify(self, path: Any, detect: bool) -> tuple:
        """Return the image with its faces marked, the faces, and the details of the largest one."""
        result = analyse(self.predictor, path, detect, self.folder)
        captions = [f"{p.label} {100 * p.probability:.0f} %" for p in result.predictions]
        gallery = list(zip(result.crops, captions, strict=True))
        faces = (result.predictions, result.crops)
        assert result.image is not None  # it has predictions
        drawn = annotated(result.image, result.predictions)
        return drawn, gallery, faces, *self._detail(faces, 0)

    def select(self, faces: Faces | None, event: Any) -> tuple:
        """Return the details of the face that was selected in the gallery."""
        number = selected_face(faces, event)
        assert faces is not None  # else `selected_face` has raised
        return self._detail(faces, number)

    def _detail(self, faces: Faces, number: int) -> tuple:
        picture = attention_picture(self.predictor, faces[1][number], self.folder)
        return faces[0][number].probabilities, picture

    def compare(self, paths: Any, detect: bool) -> str:
        """Return the picture of the maps between the faces of several images."""
        paths = paths if isinstance(paths, list) else []
        if len(paths) > MAX_FACES:
            raise UserError(f"{len(paths)} images: at most {MAX_FACES} are compared at once")
        results = [analyse(self.predictor, path, detect, self.folder) for path in paths]
        crops = [crop for result in results for crop in result.crops][:MAX_FACES]
        labels = [p.label for result in results for p in result.predictions][:MAX_FACES]
        return comparison_picture(self.predictor, crops, labels, self.folder)


# Output pictures; one job uses the network at a time.
PICTURE: dict[str, Any] = {"interactive": False, "buttons": ["fullscreen", "download"]}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1}


def page(predictor: Predictor, folder: Path, description: str) -> "gradio.Blocks":
    """Lay out the page.

    Args:
        description: of the checkpoint, in Markdown.
    """
    import gradio as gr

    actions = Actions(predictor, folder)
    with gr.Blocks(title="QCS", analytics_enabled=False) as blocks:
        gr.Markdown(f"# QCS: facial expressions\n{description}")
        with gr.Tab("One image"), gr.Row():
            _classify_tab(actions)
        with gr.Tab("Compare faces"):
            _compare_tab(actions)
    return blocks.queue(max_size=32)


def _classify_tab(actions: Actions) -> None:
    import gradio as gr

    with gr.Column():
        image = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="Image")
        # `open_upload` says what is wrong with a file, in place of gradio.
        image.preprocess = lambda data: data and data.path  # type: ignore
        detect = gr.Checkbox(True, label="find the faces (off: the image is a cut face)")
        button = gr.Button("Classify", variant="primary")
        gr.Examples(examples(actions.folder), [image, detect], cache_examples=False)
    with gr.Column():
        drawn = gr.Image(label="Faces", **PICTURE)
        gallery = gr.Gallery(label="Choose a face", columns=4, height=220, buttons=[])
        classes = len(actions.predictor.class_names)
        bars = gr.Label(label="Probabilities", num_top_classes=classes)
        gr.Markdown("Where the base branch looks, and its share of the attention:")
        attention = gr.Image(show_label=False, **PICTURE)
    state = gr.State(time_to_live=TIME_TO_LIVE)

    # Gradio fills `event` in by its type; a forged request can leave it out.
    def select(faces: Faces | None, event: gr.EventData = None) -> tuple:  # type: ignore[assignment]
        return actions.select(faces, event)

    outputs = [drawn, gallery, state, bars, attention]
    button.click(_with_messages(actions.classify), [image, detect], outputs, **ONE_AT_A_TIME)
    gallery.select(_with_messages(select), [state], [bars, attention], **ONE_AT_A_TIME)


def _compare_tab(actions: Actions) -> None:
    import gradio as gr

    files = gr.File(file_count="multiple", type="filepath", label="Two or more images")
    detect = gr.Checkbox(True, label="find the faces (off: the images are cut faces)")
    button = gr.Button("Compare", variant="primary")
    gr.Markdown("What each row's face shows when it is compared with each column's:")
    maps = gr.Image(show_label=False, **PICTURE)
    button.click(_with_messages(actions.compare), [files, detect], maps, **ONE_AT_A_TIME)


def _with_messages(action: Callable) -> Callable:
    """Show the sentence of a `UserError` on the page."""
    import gradio as gr

    @functools.wraps(action)
    def wrapper(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except UserError as error:
            raise gr.Error(terminal(error), title="", print_exception=False) from error

    return wrapper

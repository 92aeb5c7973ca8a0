"""Load a trained network from its file, with everything that is needed to use it.

This works without Lightning and Hydra, so neither of them is imported.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from qcs.checkpoints import reading, recipe, safetensors
from qcs.checkpoints.onnx import Export, open_export, pixels_of
from qcs.checkpoints.plain_data import short_repr
from qcs.checkpoints.reading import PREFIX
from qcs.checkpoints.registry import TABLE, Trust
from qcs.config.errors import UserError
from qcs.data.datasets import Transform
from qcs.data.transforms import evaluation

SHARED = 2  # how often the numbers of a file may be used, on average
HARMLESS = 1 << 30  # bytes that any machine has, however small the file


class Checkpoint(NamedTuple):
    """A trained network with everything that is needed to use it."""

    network: nn.Module  # in eval mode: a `QCSNetwork`, or the classifier of an export
    class_names: tuple[str, ...]
    transform: Transform  # PIL image to (3, H, W)
    recipe: dict[str, Any]  # see `qcs.checkpoints.recipe.parse`


def load_checkpoint(path: str | os.PathLike, trust: Trust = None) -> Checkpoint:
    """Rebuild the network of a checkpoint from its file alone, on the CPU.

    The checksums of the file are verified. Only tensors and plain values are read from it, and
    only networks, transforms and data sets of the closed table in `qcs.checkpoints.registry` are
    built.

    Args:
        path: a file of a training run, or a .safetensors of ours; or a name of `qcs zoo`.
        trust: import paths of the user's own code that may be built too, as "mine.TinyBackbone".

    Raises:
        UserError: there is no such file, it is damaged, or it is not a checkpoint of this package.

    Examples:
        >>> from PIL import Image
        >>> from qcs.checkpoints.load import load_checkpoint
        >>> checkpoint = load_checkpoint("model.ckpt")
        >>> checkpoint.class_names
        ('red', 'green', 'blue')
        >>> image = Image.open("photo.png").convert("RGB")
        >>> checkpoint.network(checkpoint.transform(image)[None]).shape
        torch.Size([1, 3])
    """
    path = reading.network_file(path, f"no checkpoint at ckpt={path}; a run's are in checkpoints/")
    try:
        if path.suffix in (".onnx", ".pt2"):
            raise UserError("an export only classifies")
        content = (safetensors if path.suffix == ".safetensors" else reading).read(path)
    except UserError as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read safely: {error}"
        ) from error.__cause__
    if not isinstance(content, dict) or not isinstance(content.get("qcs"), dict):
        raise UserError(
            f"{path} is no checkpoint of `qcs.train`; `qcs.convert` makes one of the authors'"
        )
    parts = recipe.parse(content["qcs"], str(path), trust)
    network = _network(parts, _state(content.get("state_dict"), path), path, trust)
    return Checkpoint(network, tuple(parts["class_names"]), _transform(parts, path, trust), parts)


def load_classifier(path: str | os.PathLike, trust: Trust = None) -> Checkpoint:
    """Load a checkpoint or an .onnx file of `python -m qcs.export`, which can only classify.

    Raises:
        UserError: as for `load_checkpoint` and `qcs.checkpoints.onnx.open_export`.
    """
    if not str(path).endswith(".onnx"):
        return load_checkpoint(path, trust)
    export = open_export(path, trust=trust)
    parts = export.recipe
    transform = _transform(parts, Path(path), trust)
    if parts["include_transform"]:  # the file crops and normalises itself, and takes pixels
        side = pixels_of(parts)
        transform = v2.Compose([v2.PILToTensor(), v2.Resize([side, side], antialias=True)])
    return Checkpoint(OnnxNetwork(export).eval(), export.class_names, transform, parts)


class OnnxNetwork(nn.Module):
    """An export that is called like a network: images in, logits (B, K) out."""

    def __init__(self, export: Export) -> None:
        super().__init__()
        self.run = export.network

    def forward(self, images: Tensor) -> Tensor:
        """Classify images as the file takes them.

        Raises:
            UserError: a logit is not finite.
        """
        return torch.from_numpy(self.run(images.cpu().numpy()))


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the network's tensors by name.

    Raises:
        UserError: there are none, or one of them is not a plain tensor.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no weights: its state_dict is {short_repr(content)}")
    tensors = {str(k): v for k, v in content.items() if str(k).startswith(PREFIX)}
    for key, tensor in tensors.items():
        if not reading.is_plain(tensor):
            raise UserError(f"{path}: {short_repr(key)} in its state_dict is not a plain tensor")
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


def _network(
    parts: dict[str, Any], state: dict[str, Tensor], path: Path, trust: Trust
) -> nn.Module:
    """Build the network, load its weights, and put it into eval mode.

    It is built on the meta device first, which takes no memory, so that a recipe cannot ask for a
    network larger than the weights in the file. The user's own code may not support that device,
    so for such code this step is left out.
    """
    ours = all(parts[kind]["name"] in TABLE[kind] for kind in ("backbone", "model"))
    try:
        if ours:
            _require_held(state, path)
            with torch.device("meta"):
                require_fit(state, recipe.network(parts).state_dict())
        network = recipe.network(parts, trust)
        require_fit(state, network.state_dict())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__
    except Exception as error:
        if not ours:
            raise  # the traceback shows the user where the own code fails
        raise UserError(f"{path}: its network cannot be built: {reading.reason(error)}") from error
    network.load_state_dict(state)
    return network.eval()


def _require_held(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are far larger than the file: all elements of one can be one number."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    held = path.stat().st_size
    if size > max(SHARED * held, HARMLESS):
        raise UserError(f"its weights take {size} bytes of memory, and the file holds {held}")


def require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that weights have exactly the names, shapes and kinds of numbers of a state dict `own`.

    Raises:
        UserError: names the first weight that differs.
    """
    if missing := [key for key in own if key not in state]:
        raise UserError(f"its weights lack {missing[0]} and {len(missing) - 1} more of the network")
    if more := [key for key in state if key not in own]:
        raise UserError(f"its weights have {short_repr(more[0])}, which the network has not")
    for key, tensor in own.items():
        found = state[key]
        if found.shape != tensor.shape:
            raise UserError(
                f"its weights have {key} of shape {tuple(found.shape)}, and the network that it "
                f"describes has {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() and not found.is_floating_point():
            raise UserError(f"its weights have {key} of type {found.dtype}, not {tensor.dtype}")
        if found.is_floating_point() and not found.isfinite().all():
            raise UserError(
                f"its weights have numbers in {key} that are not finite: the training diverged, so "
                "choose a checkpoint of before"
            )


def _transform(parts: dict[str, Any], path: Path, trust: Trust) -> Transform:
    """The transform in PyTorch, which takes prepared images as well."""
    node = parts["transform"]
    try:
        if node["name"] == "evaluation":
            return evaluation(**{key: value for key, value in node.items() if key != "name"})
        return recipe.transform(parts, trust)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__

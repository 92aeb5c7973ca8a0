"""From the file of a trained network to the network and all that it takes to use it."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.transforms import v2

from qcs.checkpoints import onnx as onnx_files
from qcs.checkpoints import pretrained
from qcs.config.errors import UserError
from qcs.config.options import instantiate
from qcs.data.datasets import Transform
from qcs.models import QCSNetwork
from qcs.training import build

# A checkpoint names what rebuilds its network; a file from elsewhere must not name anything else.
TRUSTED_TARGETS = ("qcs.models.", "qcs.data.", "timm.create_model")


class Checkpoint(NamedTuple):
    """A trained network and all that it takes to use it."""

    network: QCSNetwork | nn.Module  # in eval mode; of an export, it only classifies
    class_names: tuple[str, ...]
    transform: Transform  # PIL image to (3, H, W)
    recipe: dict[str, Any]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Rebuild the network of one of our checkpoints from the file alone, on the CPU.

    Only tensors and plain values are read (`weights_only`), and only our own and timm's
    classes are built.

    Raises:
        UserError: no such file.
        UserError: not a checkpoint of ours, or one that names a foreign class.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no checkpoint at ckpt={path}; a run's are in checkpoints/")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = "an export only classifies" if path.suffix == ".onnx" else pretrained.reason(error)
        raise UserError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(content, dict) or not isinstance(content.get("qcs"), dict):
        raise UserError(
            f"{path} is no checkpoint of `qcs.train`; `qcs.convert` makes one of the authors'"
        )
    parts = content["qcs"]
    _trust(parts, path)
    net = build.network(parts)
    prefix = "network."
    state = content["state_dict"]
    net.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    transform = instantiate(parts["transform"])
    return Checkpoint(net.eval(), tuple(parts["class_names"]), transform, parts)


def load_classifier(path: str | Path) -> Checkpoint:
    """As `load_checkpoint`, and takes an .onnx of `python -m qcs.export`, which only classifies.

    Raises:
        UserError: as `load_checkpoint`, and as
            `qcs.checkpoints.onnx.open_onnx`.
    """
    path = Path(path).expanduser()
    if path.suffix != ".onnx" or not path.is_file():
        return load_checkpoint(path)
    network, parts = onnx_files.open_onnx(path)
    _trust(parts, path)
    transform = instantiate(parts["transform"])
    if parts["include_transform"]:  # what it resizes itself is of its size already
        side = parts["transform"].get("resize") or parts["transform"]["size"]
        transform = v2.Compose([v2.PILToTensor(), v2.Resize([side, side], antialias=True)])
    return Checkpoint(network, tuple(parts["class_names"]), transform, parts)


def _trust(node: Any, path: Path) -> None:
    """Refuse a recipe that would build anything but networks and data sets."""
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(TRUSTED_TARGETS):
            raise UserError(f"{path} asks to build {target!r}, which is not trusted; not loaded")
        for value in node.values():
            _trust(value, path)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _trust(value, path)

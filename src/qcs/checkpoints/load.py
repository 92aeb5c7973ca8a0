"""From the file of a trained network to the network and all that it takes to use it.

Neither Lightning nor Hydra is needed, so neither is imported.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from qcs.checkpoints import onnx as onnx_files
from qcs.checkpoints import reading, recipe
from qcs.checkpoints.names import TABLE, Trust
from qcs.checkpoints.plain_data import shown
from qcs.config.errors import UserError
from qcs.data.datasets import Transform
from qcs.models import QCSNetwork

PREFIX = "network."  # of the network's tensors in a checkpoint
SHARED = 2  # how often the numbers of a file may be used, on average


class Checkpoint(NamedTuple):
    """A trained network and all that it takes to use it."""

    network: QCSNetwork | nn.Module  # in eval mode; of an export, it only classifies
    class_names: tuple[str, ...]
    transform: Transform  # PIL image to (3, H, W)
    recipe: dict[str, Any]  # see `qcs.checkpoints.recipe.parse`


def load_checkpoint(path: str | os.PathLike, trust: Trust = None) -> Checkpoint:
    """Rebuild the network of one of our checkpoints from the file alone, on the CPU.

    Checksums are verified, only tensors and plain values are read, and only what the closed table
    of `qcs.checkpoints.recipe` names is built.

    Args:
        path: the file.
        trust: names of the user's own code that may be built too, as "mine.TinyBackbone".

    Raises:
        UserError: no such file, a damaged one, or not a checkpoint of ours, with the reason.
    """
    path = reading.located(path, f"no checkpoint at ckpt={path}; a run's are in checkpoints/")
    try:
        if path.suffix in (".onnx", ".pt2"):
            raise UserError("an export only classifies")
        content = reading.read(path)
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
    """As `load_checkpoint`, and takes an .onnx of `python -m qcs.export`, which only classifies.

    Raises:
        UserError: as `load_checkpoint` and `qcs.checkpoints.onnx.open_onnx`.
    """
    if not str(path).endswith(".onnx"):
        return load_checkpoint(path, trust)
    path = reading.located(path, f"no export at ckpt={path}")
    network, parts = onnx_files.open_onnx(path, trust=trust)
    transform = _transform(parts, path, trust)
    if parts["include_transform"]:  # what it resizes itself is of its size already
        side = parts["transform"].get("resize") or parts["transform"]["size"]
        transform = v2.Compose([v2.PILToTensor(), v2.Resize([side, side], antialias=True)])
    return Checkpoint(network, tuple(parts["class_names"]), transform, parts)


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    """The network's tensors by name.

    Raises:
        UserError: there are none, or what is there is no plain tensor.
    """
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no weights: its state_dict is {shown(content)}")
    named = {str(k): v for k, v in content.items() if str(k).startswith(PREFIX)}
    for key, tensor in named.items():
        if not reading.is_plain(tensor):
            raise UserError(f"{path}: {shown(key)} in its state_dict is not a plain tensor")
    return {key.removeprefix(PREFIX): tensor for key, tensor in named.items()}


def _network(
    parts: dict[str, Any], state: dict[str, Tensor], path: Path, trust: Trust
) -> nn.Module:
    """Build the network and give it the weights, in eval mode.

    It is built without memory first, so that a recipe cannot ask for more than the weights that
    the file holds. That is left out where it is the user's own code, which may not know how.
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
            raise  # the user's own code tells what is wrong with it
        raise UserError(f"{path}: its network cannot be built: {reading.reason(error)}") from error
    network.load_state_dict(state)
    return network.eval()


def _require_held(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are far larger than the file: all elements of one can be one number."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    held = path.stat().st_size
    if size > SHARED * held:
        raise UserError(f"its weights take {size} bytes of memory, and the file holds {held}")


def require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not, name by name, of the network's shapes and kinds."""
    if missing := [key for key in own if key not in state]:
        raise UserError(f"its weights lack {missing[0]} and {len(missing) - 1} more of the network")
    if more := [key for key in state if key not in own]:
        raise UserError(f"its weights have {shown(more[0])}, which the network has not")
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
    try:
        return recipe.transform(parts, trust)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__

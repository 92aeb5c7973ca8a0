"""A network for inference as one small file: safetensors with the recipe in its metadata.

Weights of two or more axes are float16; the statistics of BatchNorm and biases, which are few, stay
float32. The network that is built of the file computes in float32.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from qcs.checkpoints import checksum, reading
from qcs.config.errors import UserError
from qcs.models import QCSNetwork

METADATA = "qcs"  # the key of the recipe, which is JSON


def write(path: Path, network: QCSNetwork, recipe: dict[str, Any]) -> None:
    """Write a network with its recipe (`qcs.checkpoints.recipe`) and a checksum over all of it."""
    state = {f"{reading.PREFIX}{k}": _small(v) for k, v in network.state_dict().items()}
    about = {METADATA: json.dumps(recipe, allow_nan=False), checksum.KEY: checksum.EMPTY}
    content = safetensors.torch.save(state, about)
    path.write_bytes(checksum.sealed(content, checksum.SAFETENSORS))


def _small(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def read(path: Path) -> dict[str, Any]:
    """Read a file of `write`: its "qcs" and its "state_dict", as in one of our checkpoints.

    Raises:
        UserError: the reason alone, without the file's name: it is another kind of file, damaged,
            or holds weights without a recipe.
    """
    if found := reading.foreign(path):
        raise UserError(found)
    try:
        content = path.read_bytes()
        state = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")  # of the header, which is JSON
        about = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except Exception as error:  # of the disk, and safetensors' own, which has no public class
        raise UserError(f"it is no whole safetensors file ({reading.reason(error)})") from error
    if METADATA not in about:
        raise UserError(
            "it holds weights without a recipe of qcs: a backbone can start from them with "
            "backbone.weights=..."
        )
    if not checksum.right(content, checksum.SAFETENSORS):
        raise UserError("it was damaged or changed, its checksum is wrong: copy it anew")
    try:
        recipe = json.loads(about[METADATA])
    except (ValueError, RecursionError) as error:
        raise UserError(f"its recipe is not JSON: {reading.reason(error)}") from error
    return {"qcs": recipe, "state_dict": state}

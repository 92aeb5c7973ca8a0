"""Weights from elsewhere: read without running anything, and the backbone taken out of them.

Files: safetensors, or what torch.save writes (a plain state dict, or one under "state_dict").
Backbones: our checkpoints, the authors', ArcFace's IR files (face.evoLVe; ir50.pth), timm's.
"""

import importlib.util
import logging
import pickle
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qcs.convert import translate

log = logging.getLogger(__name__)

PREFIX = re.compile(r"^(module\.)?(network\.)?")
ARCFACE = re.compile(r"(input_layer|body\d|output_layer)\.")
SHOWN = 3  # keys of a sentence
# They rebuild arrays and call nothing else.
ARRAYS = {"multiarray._reconstruct", "multiarray.scalar", "ndarray", "dtype"}


class Inert:
    """Stands in for an object of a class that does not exist here; holds nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: str | Path) -> dict[str, Any]:
    """Read a file of weights; objects of unknown classes become inert, nothing is run.

    Returns:
        The content; a state dict alone comes under "state_dict".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file, or names something that a pickle could call.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_stand_ins(path)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a file of weights that can be read: {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return dict(content)
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict; save model.state_dict()")
    return {"state_dict": dict(content)}


def _stand_ins(path: Path) -> list[Any]:
    """What the file names beside tensors: arrays as they are, unknown classes inert.

    Raises:
        ValueError: something else, which exists here and could be called.
    """
    if not zipfile.is_zipfile(path):  # torch's old format: plain weights or nothing
        return []
    found: list[Any] = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        module, _, attribute = name.rpartition(".")
        top = IMPORT_MAPPING.get(module, module).split(".")[0]  # pickle writes Python 2's names
        short = name.removeprefix("numpy.").removeprefix("_core.").removeprefix("core.")
        if top == "numpy" and short in ARRAYS:
            parts = {"ndarray": np.ndarray, "dtype": np.dtype}
            found.append((parts.get(short) or getattr(np._core.multiarray, attribute), name))
        elif top == "numpy" and module == "numpy.dtypes":
            found.append(getattr(np.dtypes, attribute))
        elif top == "__main__" or importlib.util.find_spec(top) is None:
            found.append((type(attribute, (Inert,), {}), name))
        else:
            raise ValueError(f"{path} names {name}, which weights do not need; not read")
    if any(isinstance(f, tuple) and f[1].startswith("numpy") for f in found):
        found += [getattr(np.dtypes, n) for n in np.dtypes.__all__]
    return found


def _own_name(key: str, units: list[int]) -> str:
    """The name that a file's key has in a backbone of ours with these units a stage."""
    key = PREFIX.sub("", key)
    if flat := re.match(r"body\.(\d+)\.(.+)", key):  # one sequence over all stages
        unit, stage = int(flat[1]), 0
        while stage < len(units) and unit >= units[stage]:
            unit, stage = unit - units[stage], stage + 1
        key = f"body{stage + 1}.{unit}.{flat[2]}"
    if ARCFACE.match(key):
        key = f"ir_back.{key}"
    if key.startswith("ir_back."):
        key = translate(key) or key
    return key.removeprefix("base.backbone.")


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Take a backbone's weights out of a file; what does not match is said.

    Raises:
        FileNotFoundError, ValueError: as `read`; fewer than half of the backbone's tensors match.
    """
    units = [len(m) for name, m in backbone.named_children() if re.fullmatch(r"stage\d", name)]
    given = {_own_name(k, units): v for k, v in read(path)["state_dict"].items()}
    wanted = backbone.state_dict()
    wrong = [k for k in wanted if k in given and given[k].shape != wanted[k].shape]
    taken = {k: given[k] for k in wanted if k in given and k not in wrong}
    counted = [k for k in wanted if not k.endswith("num_batches_tracked")]
    missing = [k for k in counted if k not in taken and k not in wrong]
    others = sorted(set(given) - set(wanted))
    if sum(k in taken for k in counted) * 2 < len(counted):
        raise ValueError(
            f"backbone.weights={path} matches {sum(k in taken for k in counted)} of the backbone's "
            f"{len(counted)} tensors: it wants {', '.join([*wrong, *missing][:SHOWN])} and the "
            f"file has {', '.join(others[:SHOWN])}; is it of another backbone?"
        )
    for key in wrong:
        shapes = f"{tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        log.warning("backbone.weights: %s is %s: left as initialised", key, shapes)
    for key in missing:
        log.warning("backbone.weights: %s is not in the file: left as initialised", key)
    backbone.load_state_dict(taken, strict=False)
    log.info(
        "backbone.weights: took %d of %d tensors from %s; %d others are of no use to the backbone",
        sum(k in taken for k in counted),
        len(counted),
        path,
        len(others),
    )

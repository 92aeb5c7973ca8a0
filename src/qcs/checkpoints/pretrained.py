"""Weights from files: read without running anything, and taken over by a backbone."""

import _compat_pickle
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from qcs.checkpoints.matching import match
from qcs.checkpoints.reading import damage, is_plain, located, reason
from qcs.config.errors import UserError

log = logging.getLogger(__name__)

# Where training files keep theirs.
STATE_DICTS = ("state_dict", "model_state_dict", "net_state_dict", "model")
# The config key of each part's file.
KEYS = {"backbone": "backbone.weights", "landmark network": "model.base.landmarks.weights"}


class Weights(NamedTuple):
    """A file that was read."""

    state_dict: dict[str, Tensor]  # keys as in the file
    content: Any  # everything in it


class StandIn:
    """In the place of an object whose class is not here: inert, it keeps what it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_state_dict(path: str | Path) -> Weights:
    """Read a file of weights on the CPU without running anything that it names.

    Tensors, plain values and numpy arrays are read; objects of a training script's own classes
    (`__main__`, or a module that is not installed here) become a `StandIn`.

    Raises:
        UserError: no such file.
        UserError: not a file of weights, a broken one, or one that names other code.
    """
    path = located(path, f"no file of weights at {path}")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        elif found := damage(path, legacy=True):
            raise UserError(found)
        else:
            with torch.serialization.safe_globals(_allowed(path)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle fails in any way
        raise UserError(f"{path} cannot be read as weights: {reason(error)}") from error
    found = content if isinstance(content, Mapping) else {}
    found = next((found[k] for k in STATE_DICTS if isinstance(found.get(k), Mapping)), found)
    tensors = {k: v for k, v in found.items() if isinstance(k, str) and is_plain(v)}
    if not tensors:
        raise UserError(
            f"{path} holds no tensors by name, neither at its top nor under {list(STATE_DICTS)}"
        )
    return Weights(tensors, content)


def _allowed(path: Path) -> list[tuple[Any, str]]:
    """What a pickle names besides tensors and plain values, with what is put in its place.

    Raises:
        UserError: a name that is neither numpy's arrays nor unknown here.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # torch's format before 1.6: torch alone refuses all names
            return []
    rebuild, scalar = (x.__reduce__()[0] for x in (np.zeros(0), np.float64(0)))
    known = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        known |= {f"{core}._reconstruct": rebuild, f"{core}.scalar": scalar}
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    known |= {name: StandIn for name in names if _foreign(name)}
    if refused := [name for name in names if name not in known]:
        raise UserError(f"it names {', '.join(refused)}, which is not run here")
    # torch sets the state of a dtype only where its class is allowed as well.
    kinds = [(getattr(np.dtypes, k), f"numpy.dtypes.{k}") for k in np.dtypes.__all__]
    return [(known[name], name) for name in names] + (kinds if names else [])


def _foreign(name: str) -> bool:
    """Whether a dotted name is a training script's, or of a module that is not installed."""
    top = name.split(".")[0]
    if top in _compat_pickle.IMPORT_MAPPING:  # Python 2's name of a module that is here
        return False
    return top == "__main__" or importlib.util.find_spec(top) is None


def load_backbone(backbone: nn.Module, path: str | Path, part: str = "backbone") -> None:
    """Start a backbone from a file; other parts of the file are left out.

    What the file lacks, or has in another shape, keeps its values and is named in a warning.

    Args:
        backbone: as `qcs.models.base_branch.BaseBranch` holds it.
        path: safetensors or torch's format, a layout of `qcs.checkpoints.matching`.
        part: "backbone" or "landmark network", what it is in the whole network.

    Raises:
        UserError: as `read_state_dict`; ValueError as well where less than
            half of the backbone's tensors are in the file.
    """
    where = f"{KEYS[part]}={path}"
    path = located(path, f"no file at {where}; write the path of yours")
    tensors = read_state_dict(path).state_dict
    own = backbone.state_dict()
    found = match(backbone, tensors, part)
    if 2 * len(found.fits) < len(own):
        taken = set(found.fits.values())
        ours = [*found.shapes, *found.missing][:3]
        theirs = [key for key in tensors if key not in taken][:3]
        raise UserError(
            f"{where} fits {len(found.fits)} of the {part}'s {len(own)} tensors: "
            f"without a partner are the {part}'s {'; '.join(ours)} and the file's "
            f"{', '.join(theirs) or 'none'}; choose the {part} that the file was made for"
        )
    chosen = {ours: tensors[theirs] for ours, theirs in found.fits.items()}
    for key, tensor in chosen.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{where} has numbers that are not finite in {found.fits[key]}")
    backbone.load_state_dict(chosen, strict=False)
    for what, keys in {
        "not in the file, kept as they were": found.missing,
        "of another shape in the file, kept as they were": found.shapes,
        "in the file alone": found.inside,
    }.items():
        if keys:
            names = ", ".join(keys)
            log.warning("%s: %d tensors %s: %s", where, len(keys), what, names)
    taken = f"took {len(found.fits)} of {len(own)} tensors"
    log.info(
        "%s: %s, left out %d of other parts of the file (heads, later stages)",
        *(where, taken, found.extras),
    )

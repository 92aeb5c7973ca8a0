"""Pretrained weights: files are read without running any code in them, and fill a backbone."""

import _compat_pickle
import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from qcs.checkpoints import zoo
from qcs.checkpoints.matching import Match, match
from qcs.checkpoints.reading import damage, is_plain, located, reason
from qcs.config.errors import UserError

log = logging.getLogger(__name__)

# The keys under which training files keep their state dict.
STATE_DICTS = ("state_dict", "model_state_dict", "net_state_dict", "model")
# The config key of each part's file.
KEYS = {"backbone": "backbone.weights", "landmark network": "model.base.landmarks.weights"}


class Weights(NamedTuple):
    """A file that was read."""

    state_dict: dict[str, Tensor]  # keys as in the file
    content: Any  # everything in it


class StandIn:
    """Stands in for an object whose class is not installed here: it runs nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_state_dict(path: str | Path) -> Weights:
    """Read a file of weights on the CPU without running anything that it names.

    Tensors, plain values and numpy arrays are read; objects of a training script's own classes
    (`__main__`, or a module that is not installed here) become a `StandIn`.

    Raises:
        UserError: there is no such file, or it is not a file of weights, is damaged, or names code
            that would have to be run.
    """
    path = located(path, f"no file of weights at {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        elif broken := damage(path, legacy=True):
            raise UserError(broken)
        else:
            with torch.serialization.safe_globals(_allowed(path)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle fails in any way
        raise UserError(f"{path} cannot be read as weights: {reason(error)}") from error
    top = content if isinstance(content, Mapping) else {}
    state = next((top[k] for k in STATE_DICTS if isinstance(top.get(k), Mapping)), top)
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and is_plain(v)}
    if not tensors:
        raise UserError(
            f"{path} holds no tensors by name, neither at its top nor under {list(STATE_DICTS)}"
        )
    return Weights(tensors, content)


def _allowed(path: Path) -> list[Callable | tuple[Callable, str]]:
    """What a pickle may name besides tensors and plain values, with what is used in its place.

    Raises:
        UserError: a name that is neither numpy's arrays nor unknown here.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # torch's format before 1.6: torch alone refuses all names
            return []
    rebuild, scalar = (x.__reduce__()[0] for x in (np.zeros(0), np.float64(0)))
    known: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        known |= {f"{core}._reconstruct": rebuild, f"{core}.scalar": scalar}
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    known |= {name: StandIn for name in names if _foreign(name)}
    if refused := [name for name in names if name not in known]:
        raise UserError(f"it names {', '.join(refused)}, which is not run here")
    # torch sets the state of a dtype only where its class is allowed as well.
    kinds = [(getattr(np.dtypes, k), f"numpy.dtypes.{k}") for k in np.dtypes.__all__]
    return [*((known[name], name) for name in names), *(kinds if names else [])]


def _foreign(name: str) -> bool:
    """Whether a dotted name is a training script's, or of a module that is not installed."""
    top = name.split(".")[0]
    if top in _compat_pickle.IMPORT_MAPPING:  # Python 2's name of a module that is here
        return False
    return top == "__main__" or importlib.util.find_spec(top) is None


def load_backbone(backbone: nn.Module, path: str | Path, part: str = "backbone") -> None:
    """Load the weights of a backbone from a file; other parts of the file are left out.

    Tensors that the file lacks, or has in another shape, keep their values, and a warning names
    them.

    Args:
        path: safetensors or torch's format, a layout of `qcs.checkpoints.matching`; or a name of
            `qcs zoo`.
        part: what the backbone is in the whole network, "backbone" or "landmark network".

    Raises:
        UserError: as `read_state_dict`, or less than half of the backbone's tensors are in the
            file.
    """
    where = f"{KEYS[part]}={path}"
    path = zoo.find(path) or path
    path = located(path, f"no file at {where}; write the path of yours, or a name of `qcs zoo`")
    zoo.verify(path)
    tensors = read_state_dict(path).state_dict
    own = backbone.state_dict()
    found = match(backbone, tensors, part)
    if 2 * len(found.fits) < len(own):
        raise _mismatch(found, tensors, len(own), part, where)
    weights = {ours: tensors[theirs] for ours, theirs in found.fits.items()}
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{where} has numbers that are not finite in {found.fits[key]}")
    backbone.load_state_dict(weights, strict=False)
    for what, keys in {
        "not in the file, kept as they were": found.missing,
        "of another shape in the file, kept as they were": found.shapes,
        "in the file alone": found.inside,
    }.items():
        if keys:
            names = ", ".join(keys)
            log.warning("%s: %d tensors %s: %s", where, len(keys), what, names)
    log.info(
        "%s: took %d of %d tensors, left out %d of other parts of the file (heads, later stages)",
        *(where, len(found.fits), len(own), found.extras),
    )


def _mismatch(
    found: Match, tensors: Mapping[str, Tensor], number: int, part: str, where: str
) -> UserError:
    """The error for a file that was made for another network."""
    taken = set(found.fits.values())
    ours = [*found.shapes, *found.missing][:3]
    theirs = [key for key in tensors if key not in taken][:3]
    return UserError(
        f"{where} fits {len(found.fits)} of the {part}'s {number} tensors: without a partner are "
        f"the {part}'s {'; '.join(ours)} and the file's {', '.join(theirs) or 'none'}; choose the "
        f"{part} that the file was made for"
    )

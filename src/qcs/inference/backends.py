"""Which library computes a network's answers: onnxruntime, which starts at once, or PyTorch.

B batch, K classes, H and W pixels.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from qcs.checkpoints import zoo
from qcs.checkpoints.onnx import Export, open_export
from qcs.checkpoints.registry import Trust
from qcs.config.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from torch import nn

    from qcs.checkpoints.load import Checkpoint

Form = Literal["eager", "compiled", "compiled_bf16", "compiled_int8"]


def open_network(
    path: str | os.PathLike | None = None,
    device: str = "cpu",
    form: Form = "eager",
    trust: Trust = None,
) -> "Checkpoint | Export":
    """Open a network for a predictor, on onnxruntime where that can compute it.

    onnxruntime takes an exported .onnx, and a network of `qcs zoo` that is named without a suffix,
    on the CPU and in eager form, where onnxruntime is installed. PyTorch takes everything else.

    Args:
        path: a checkpoint, an exported .onnx, or a name of `qcs zoo`, whose default None means.
        trust: import paths of the user's own code that may be built, as ["mine.TinyBackbone"].

    Raises:
        UserError: as for `qcs.checkpoints.load.load_checkpoint` and `open_export`.
    """
    file = zoo.default_file() if path is None else zoo.find(path) or path
    named = path is None or (file is not path and not os.path.splitext(path)[1])
    if named and device == "cpu" and form == "eager" and has_onnxruntime():
        file = Path(file).with_suffix(".onnx")
    if str(file).endswith(".onnx"):
        return open_export(file, trust=trust)
    from qcs.checkpoints.load import load_checkpoint

    return load_checkpoint(file, trust)


def has_onnxruntime() -> bool:
    """Whether .onnx files can be opened here."""
    return all(map(find_spec, ("onnxruntime", "onnx")))


def require_form(form: str, export: bool) -> None:
    """Check the form of a network.

    Raises:
        UserError: it is unknown, or the network is an export, which cannot be compiled.
    """
    if form not in get_args(Form):
        raise UserError(f"form={form} is none of {', '.join(get_args(Form))}")
    if export and form != "eager":
        raise UserError(f"form={form} compiles a .ckpt: of an exported .onnx write form=eager")


def in_torch(network: "nn.Module", device: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a network of PyTorch as a function of arrays: images (B, 3, H, W) to logits (B, K)."""
    import torch

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(images).to(device)).double().cpu().numpy()

    return run


def embed_in_torch(
    network: "nn.Module", device: str
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """Do the same for logits and features (B, C); None where the network has no base branch."""
    import torch

    base = getattr(network, "base", None)
    if base is None:
        return None

    @torch.no_grad()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features, _ = base(torch.from_numpy(images).to(device))
        return logits.double().cpu().numpy(), features.float().cpu().numpy()

    return run


def in_batches(
    run: Callable[[np.ndarray], Any], images: Iterable[Any], size: int, device: str
) -> Iterator[Any]:
    """Yield what a function of arrays answers for batches of images, each (3, H, W).

    Args:
        run: as of `in_torch` or `embed_in_torch`.
        size: of a batch, at most.
        device: on which it computes.

    Raises:
        UserError: an answer is not finite, or a batch does not fit into memory.
    """
    waiting = iter(images)
    while batch := list(itertools.islice(waiting, size)):
        try:
            found = run(np.stack(batch))
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"{len(batch)} faces at once do not fit into the memory of {device}: write a "
                f"smaller batch_size than {size}"
            ) from error
        if not all(np.isfinite(x).all() for x in (found if type(found) is tuple else [found])):
            raise UserError(
                "the network's answers are not finite numbers, so its file is damaged or its "
                "training went astray: use another checkpoint (form=eager, if another was set)"
            )
        yield found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (F, K) into probabilities, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

"""QCS: quadruplet cross similarity for facial expression recognition.

import qcs
faces = qcs.load().predict(["photo.jpg"])  # the network that comes with it, or a "model.ckpt"
"""

import os
from typing import TYPE_CHECKING

from qcs.config import threads
from qcs.config.version import __version__

if TYPE_CHECKING:
    from qcs.checkpoints.registry import Trust
    from qcs.inference.backends import Form
    from qcs.inference.predictor import Predictor

__all__ = ["__version__", "load"]

# Large tensors on the CPU in large pages (Linux): the first touch of a fresh batch costs a fifth.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# onnxruntime tells Microsoft of its use unless this is set before anything imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Before torch is imported, for the processes that this one starts as well.
threads.prepare()


def load(
    path: str | os.PathLike | None = None,
    device: str = "cpu",
    crop: str | None = None,
    form: "Form" = "eager",
    trust: "Trust" = None,
) -> "Predictor":
    """Make a predictor of a trained network that comes with the package, or of a file.

    Args:
        path: a checkpoint or an exported .onnx; or a name of `qcs zoo`, whose default is taken
            where there is none. See `qcs.inference.backends.open_network` for what is computed
            with onnxruntime.
        device: the network's.
        crop: how faces are cut, see `qcs.inference.crop.crop_of`.
        form: see `qcs.inference.predictor.Predictor`.
        trust: import paths of the user's own code that may be built, as ["mine.TinyBackbone"].

    Raises:
        UserError: as for `open_network`, `crop_of`, `qcs.evaluation.device.pick_device` and
            `qcs.inference.compiled.in_form`; or another package named `qcs` is installed as well.

    Examples:
        >>> import qcs
        >>> qcs.load("model.ckpt").class_names
        ('red', 'green', 'blue')
    """
    import qcs_fer
    from qcs.config.errors import UserError
    from qcs.evaluation.device import pick_device
    from qcs.inference.backends import open_network
    from qcs.inference.crop import crop_of
    from qcs.inference.predictor import Predictor

    if found := qcs_fer.beside_ours():
        raise UserError(found)
    device = pick_device(device)
    checkpoint = open_network(path, device, form, trust)
    how, _ = crop_of(checkpoint.recipe, crop)
    return Predictor(checkpoint, crop=how, device=device, form=form)

"""QCS: quadruplet cross similarity for facial expression recognition.

import qcs
faces = qcs.load().predict(["photo.jpg"])  # the network that comes with it, or a "model.ckpt"
"""

import os
from typing import TYPE_CHECKING

from qcs.config import threads
from qcs.config.version import __version__

if TYPE_CHECKING:
    from qcs.checkpoints.names import Trust
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
    """Make a predictor of a trained network; see `qcs.inference.predictor.load`."""
    import qcs_fer
    from qcs.config.errors import UserError
    from qcs.inference import predictor  # torch only when it is needed

    if found := qcs_fer.beside_ours():
        raise UserError(found)
    return predictor.load(path, device, crop, form, trust)

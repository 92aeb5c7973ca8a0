"""The evaluation transform in numpy gives the numbers of torchvision's."""

from inspect import signature

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional._geometry import _do_native_uint8_resize_on_cpu

from qcs.config.errors import UserError
from qcs.data import numpy_transforms, transforms

# On a CPU with AVX2 alone, and with AVX512 not in all versions.
NATIVE = _do_native_uint8_resize_on_cpu(InterpolationMode.BILINEAR)
OTHERWISE = "torchvision resizes in floating point here"


def images(number: int):
    """Noise, of which every other image is black and white, in many sizes."""
    rng = np.random.default_rng(0)
    for n in range(number):
        shape = (*rng.integers(1, 200, 2), 3)
        pixels = rng.integers(0, 256, shape) if n % 2 else 255 * rng.integers(0, 2, shape)
        yield Image.fromarray(pixels.astype(np.uint8)), int(rng.integers(1, 130))


@pytest.mark.skipif(not NATIVE, reason=OTHERWISE)
def test_pixels_are_equal_bit_for_bit():
    for image, size in images(200):
        expected = transforms.resized(image, size).numpy()
        np.testing.assert_array_equal(numpy_transforms.resized(image, size), expected)


@pytest.mark.skipif(not NATIVE, reason=OTHERWISE)
@pytest.mark.parametrize(
    "options",
    [
        {"size": 48},
        {"size": 16, "resize": 21},
        {"size": 15, "resize": 20, "mean": [0.1, 0.5, 0.9], "std": [1.0, 0.2, 0.01]},
    ],
)
def test_the_whole_transform_is_equal_bit_for_bit(options):
    theirs, ours = transforms.evaluation(**options), numpy_transforms.evaluation(**options)
    for image, _ in images(20):
        found = ours(image)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, theirs(image).numpy())


def test_both_take_the_same_options_and_refuse_the_same():
    theirs, ours = (signature(m.evaluation).parameters for m in (transforms, numpy_transforms))
    assert str(theirs) == str(ours)
    for module in (transforms, numpy_transforms):
        with pytest.raises(UserError, match="resize=8 is smaller than size=9"):
            module.evaluation(9, 8)
        with pytest.raises(UserError, match="three numbers each"):
            module.evaluation(9, mean=[0.5])

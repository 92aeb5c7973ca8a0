"""The examples in the docstrings of what users call."""

import doctest
import importlib
from pathlib import Path

import pytest
from PIL import Image

from conftest import tiny_checkpoint

MODULES = [
    "qcs",
    "qcs.checkpoints.load",
    "qcs.data.datamodule",
    "qcs.data.manifest",
    "qcs.data.quadruplets",
    "qcs.evaluation.intervals",
    "qcs.evaluation.metrics",
    "qcs.inference.faces",
    "qcs.inference.predictor",
    "qcs.models.cross_similarity",
    "qcs.models.network",
    "qcs.training.losses",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with the checkpoint and the photo that examples use."""
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("model.ckpt"))
    Image.new("RGB", (20, 20), "red").save("photo.png")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, folder):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed

"""The examples in the docstrings of what users call."""

import doctest
import importlib

import pytest

MODULES = [
    "qcs.data.datamodule",
    "qcs.data.manifest",
    "qcs.data.sampling",
    "qcs.evaluation.metrics",
    "qcs.models.cross_similarity",
    "qcs.models.network",
    "qcs.training.losses",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed

"""The examples in the docstrings of what users call give what they say."""

import doctest
from importlib import import_module

import pytest

MODULES = ["qcs.data.datamodule", "qcs.data.manifest", "qcs.data.sampling"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    found = doctest.testmod(import_module(name))
    assert found.attempted and not found.failed

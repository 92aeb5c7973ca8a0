"""Compiled forms of a network answer as the network itself."""

import pytest
import torch
from test_cpu_kernels import images
from torch import nn
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.inference import compiled


class Doubled(nn.Module):
    """A base branch of which the answers are known."""

    def forward(self, images):
        assert len(images) == 4
        return images.mean((1, 2, 3))[:, None].repeat(1, 2), None, None


@pytest.mark.parametrize("number", [1, 3, 4, 9])
def test_a_compiled_form_takes_any_number_of_images(number, monkeypatch):
    """Batches are filled up or cut to the size that is compiled, once."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: made.append(1) or module)
    form = compiled.Compiled(Doubled(), "compiled", 4)
    faces = torch.rand(number, 3, 8, 8)
    for _ in range(2):
        torch.testing.assert_close(form(faces), faces.mean((1, 2, 3))[:, None].repeat(1, 2))
    assert made == [1]


def test_what_has_no_form_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"\.onnx write form=eager"):
        compiled.in_form(nn.Identity(), "compiled", 1)
    with pytest.raises(UserError, match="none of eager, compiled"):
        compiled.in_form(tiny_network(), "fast", 1)
    network = tiny_network()
    assert compiled.in_form(network, "eager", 1) is network

    def absent():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    with pytest.raises(UserError, match=r"form=compiled needs a C\+\+ compiler"):
        compiled.in_form(network, "compiled", 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["compiled", "compiled_bf16", "compiled_int8"])
def test_a_form_answers_as_the_network(form):
    """Runs the real compiler, which needs g++, and torchao for int8."""
    network = tiny_network().eval()
    faces = images(4, torch.float32).flatten(0, 1)
    found = compiled.in_form(network, form, len(faces))(faces)
    expected = network(faces)
    allowed = {"compiled": 1e-5, "compiled_bf16": 0.05, "compiled_int8": 0.15}[form]
    assert ((found - expected).square().mean().sqrt() / expected.std()).item() < allowed

"""Which library computes, and what becomes of its answers."""

import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import qcs
from conftest import tiny_checkpoint
from qcs.config.errors import UserError
from qcs.inference.backends import softmax

FACE = Image.new("RGB", (20, 20), "red")


def test_a_name_of_the_zoo_is_computed_by_onnxruntime_where_that_can(monkeypatch):
    assert qcs.load().backend == qcs.load("ferplus-light").backend == "onnxruntime"
    assert qcs.load("ferplus-light.safetensors").backend == "torch"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert qcs.load().backend == qcs.load("ferplus-light").backend == "torch"
    with pytest.raises(UserError, match=r"\[faces\]"):
        qcs.load("ferplus-light.onnx")


def test_both_libraries_give_the_same_answers():
    photo = Image.fromarray(skimage.data.astronaut())
    one, other = (qcs.load(f"ferplus-light{s}").predict(photo)[0][0] for s in ("", ".safetensors"))
    assert one.label == other.label == "Happiness" and one.box == other.box
    assert one.probabilities == pytest.approx(other.probabilities, abs=0.005)


@pytest.mark.parametrize("form", ["compiled", "fast"])
def test_an_export_has_no_other_form(form):
    with pytest.raises(UserError, match=f"form={form} "):
        qcs.load("ferplus-light.onnx", form=form)


def test_answers_that_are_not_finite_are_refused(tmp_path):
    predictor = qcs.load(tiny_checkpoint(tmp_path / "a.ckpt"))
    with torch.no_grad():
        next(predictor.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        predictor.predict(FACE, detect=False)


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_too_little_memory_is_a_sentence(error, tmp_path, monkeypatch):
    predictor = qcs.load(tiny_checkpoint(tmp_path / "a.ckpt"))

    def forward(*_):
        raise error

    monkeypatch.setattr(predictor.network, "forward", forward)
    with pytest.raises(UserError, match="write a smaller batch_size"):
        predictor.predict(FACE, detect=False)
    error = RuntimeError("a bug of ours")
    with pytest.raises(RuntimeError, match="a bug of ours"):
        predictor.predict(FACE, detect=False)


def test_softmax_is_that_of_pytorch():
    logits = np.random.default_rng(0).normal(0, 300, (50, 7)).astype(np.float32)
    expected = torch.from_numpy(logits).double().softmax(1).numpy()
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-12)

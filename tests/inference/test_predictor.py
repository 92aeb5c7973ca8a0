"""What a predictor refuses and warns of."""

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import nms

import qcs
from conftest import tiny_checkpoint
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.config.threads import threads
from qcs.evaluation.device import pick_device
from qcs.inference.detector import OVERLAP, Detector, suppress
from qcs.inference.predictor import Predictor

FACE = Image.new("RGB", (20, 20), "red")


def test_drawn_faces_are_warned_of_once_and_others_are_not(tmp_path):
    drawn = qcs.load(tiny_checkpoint(tmp_path / "a.ckpt", "synthetic"))
    with pytest.warns(UserWarning, match="trained on drawn faces"):
        drawn.predict(FACE, detect=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn.predict(FACE, detect=False)
        qcs.load(tiny_checkpoint(tmp_path / "b.ckpt")).predict(FACE, detect=False)


@pytest.mark.parametrize("device", ["cuda:99", "mps:7", "gpu", "meta", ""])
def test_a_device_that_is_not_there_is_a_sentence(device, tmp_path):
    with pytest.raises(UserError, match="is not on this machine, which has cpu"):
        pick_device(device)
    with pytest.raises(UserError, match="is not on this machine"):
        qcs.load(tiny_checkpoint(tmp_path / "a.ckpt"), device=device)
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("threshold", [0, 1, -1, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(UserError, match="threshold="):
        Detector(threshold)


def test_a_batch_of_no_image_is_refused(tmp_path):
    checkpoint = load_checkpoint(tiny_checkpoint(tmp_path / "a.ckpt"))
    with pytest.raises(UserError, match="batch_size must be 1 or more"):
        Predictor(checkpoint, batch_size=0)


def test_the_detector_computes_with_the_threads_of_pytorch():
    assert Detector().session.get_session_options().intra_op_num_threads == torch.get_num_threads()
    assert Detector(threads=3).session.get_session_options().intra_op_num_threads == 3


def test_an_image_of_one_column_is_answered(tmp_path):
    predictor = qcs.load(tiny_checkpoint(tmp_path / "a.ckpt"))
    odd = np.zeros((20_000, 1, 3), dtype=np.uint8)
    assert predictor.predict(odd) == [[]] and len(predictor.predict(odd, detect=False)[0]) == 1


def test_without_pytorch_the_threads_are_those_of_the_process(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    for value in ("", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads() >= 1


def test_boxes_that_overlap_are_suppressed_as_torchvision_does():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (300, 2))], 1).astype(np.float32)
    scores = rng.uniform(0, 1, 300).astype(np.float32)
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), OVERLAP).tolist()
    assert suppress(boxes, scores) == expected and 1 < len(expected) < 200
    assert suppress(boxes[:0], scores[:0]) == []

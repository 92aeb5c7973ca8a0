"""What the page opens and answers, whatever a browser sends."""

import os
from types import SimpleNamespace

import pytest
from PIL import Image

from conftest import tiny_checkpoint
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.inference import uploads
from qcs.inference.demo_page import Actions, selected_face
from qcs.inference.predictor import Predictor
from qcs.inference.uploads import open_upload, uploaded_file


def test_a_path_is_opened_in_the_folder_alone(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "in.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "ring.png").symlink_to("ring.png")
    os.mkfifo(folder / "pipe.png")
    assert open_upload(str(folder / "in.png"), folder).size == (8, 8)
    outside = [tmp_path / "out.png", folder / "link.png", folder / "ring.png", folder / "pipe.png",
               folder / "none.png", folder, "\0", 5, None, {}, f"{folder}/../out.png"]  # fmt: skip
    said = set()
    for path in outside:
        with pytest.raises(UserError) as error:
            uploaded_file(path, folder)
        said.add(str(error.value))
    assert len(said) == 1  # it does not tell which files exist


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (13_304, 13_304)).save(tmp_path / "bomb.png")  # 177 million in 30 kB
    monkeypatch.setattr(uploads, "as_image", lambda path: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="bomb.png has 13304 x 13304 pixels"):
        open_upload(str(tmp_path / "bomb.png"), tmp_path)


@pytest.mark.parametrize("data", [None, {}, 5, "x", [0], *({"index": i} for i in (
    -1, 2, 10**30, 1.0, True, None, "0", [0]))])  # fmt: skip
def test_a_face_that_is_not_there_is_a_sentence(data):
    faces = ([None, None], [None, None])
    with pytest.raises(UserError, match="there is no such face"):
        selected_face(faces, SimpleNamespace(_data=data))
    with pytest.raises(UserError, match="classify an image first"):
        selected_face(None, SimpleNamespace(_data={"index": 0}))
    assert selected_face(faces, SimpleNamespace(_data={"index": 1})) == 1


def test_what_is_compared_is_limited(tmp_path):
    actions = Actions(Predictor(load_checkpoint(tiny_checkpoint(tmp_path / "m.ckpt"))), tmp_path)
    with pytest.raises(UserError, match="at most 8"):
        actions.compare(["a.png"] * 9, False)
    for nothing in (None, [], "x", 5):
        with pytest.raises(UserError, match="two faces or more"):
            actions.compare(nothing, False)


def test_a_face_is_classified_with_a_picture_of_where_the_network_looks(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "face.png")
    actions = Actions(Predictor(load_checkpoint(tiny_checkpoint(tmp_path / "m.ckpt"))), tmp_path)
    *_, picture = actions.classify(str(tmp_path / "face.png"), detect=False)
    assert Image.open(picture).width > 300

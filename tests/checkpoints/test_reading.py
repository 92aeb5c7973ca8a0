"""Damaged files, bombs and what is no checkpoint at all are refused in one sentence."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_recipe import one_sentence

from conftest import tiny_checkpoint
from qcs.checkpoints.load import load_checkpoint, load_classifier
from qcs.checkpoints.pretrained import read_state_dict
from qcs.config.errors import UserError


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt")


def _picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _zip(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, value in members.items():
            file.writestr(name.replace("__", "/"), value)
    return buffer.getvalue()


class Call:
    def __reduce__(self):
        return os.system, ("touch hacked",)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NO_CHECKPOINTS = {
    "empty": (b"", "it is empty"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "page2": (b"<html lang=en>", "a web page"),
    "pointer": (POINTER, "git lfs pull"),
    "png": (_picture("PNG"), "a picture"),
    "jpeg": (_picture("JPEG"), "a picture"),
    "text": (b"no model at all\n", "a text file"),
    "latin": ("größe".encode("latin1") * 9, "it is no file of torch.save"),
    "utf8": ("größe ✓".encode() * 99, "a text file"),
    "json": (b'{"qcs": {}}', "a text file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "compressed with gzip"),
    "zeros": (bytes(9999), "it is no file of torch.save"),
    "noise": (np.random.default_rng(0).bytes(9999), "it is no file of torch.save"),
    "pickle": (pickle.dumps({"qcs": 1}), "it is no file of torch.save"),
    "zip": (_zip(a=b"1"), "a zip file that torch.save did not write"),
    "cut zip": (_zip(archive__data__pkl=b"1")[:-9], "damaged or cut short"),
    "bomb": (_zip(zipfile.ZIP_DEFLATED, **{"a__data.pkl": bytes(50_000_000)}), "compressed"),
    "call": (pickle.dumps(Call()), "it is no file of torch.save"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
@pytest.mark.parametrize("load", [load_checkpoint, read_state_dict])
def test_a_file_that_is_no_checkpoint_is_one_sentence(name, load, tmp_path):
    value, sentence = NO_CHECKPOINTS[name]
    (tmp_path / "file.ckpt").write_bytes(value)
    assert re.search(sentence, one_sentence(tmp_path / "file.ckpt", load))
    assert not Path("hacked").exists()


@pytest.mark.parametrize("load", [load_checkpoint, load_classifier, read_state_dict])
def test_what_is_no_regular_file_is_one_sentence(load, tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert "a pipe or a device" in one_sentence(tmp_path / "pipe.ckpt", load)  # and does not wait
    assert "is a folder" in one_sentence(tmp_path, load)
    assert "cannot be opened: File name too long" in one_sentence(tmp_path / ("x" * 300), load)
    (tmp_path / "file").write_text("x")
    for missing in ("nowhere.ckpt", "file/model.ckpt", ""):
        with pytest.raises(UserError, match=f"^no .* (at|ckpt=).*{missing}"):
            load(missing and tmp_path / missing)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """Members that overlap: each is stored, and together they are larger than the file."""
    whole = _zip(**{"a__data.pkl": bytes(1000), "a__b": bytes(1000)})
    whole = whole.replace((1000).to_bytes(4, "little"), (2**31).to_bytes(4, "little"))
    (tmp_path / "bomb.ckpt").write_bytes(whole)
    assert "larger than the file" in one_sentence(tmp_path / "bomb.ckpt")


@pytest.mark.parametrize("load", [load_checkpoint, read_state_dict])
def test_flipped_bits_are_noticed_wherever_weights_are(load, file, tmp_path):
    """Each in the middle of a tensor, where torch itself notices nothing."""
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as members:
        tensors = [m for m in members.infolist() if "/data/" in m.filename and m.file_size > 64]
    rng = np.random.default_rng(0)
    for member in rng.choice(np.array(tensors, object), 10):
        place = member.header_offset + member.file_size // 2 + 128
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "flipped.ckpt").write_bytes(damaged)
        assert "damaged" in one_sentence(tmp_path / "flipped.ckpt", load)


def test_a_file_that_was_cut_short_is_noticed(file, tmp_path):
    whole = file.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.ckpt").write_bytes(whole[: int(share * len(whole))])
        assert "damaged or cut short" in one_sentence(tmp_path / "cut.ckpt")


def test_authors_files_of_before_torch_1_6_are_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_state_dict(tmp_path / "old.pth").state_dict["a"].tolist() == [1, 1, 1]


def test_a_flipped_bit_of_the_directory_does_not_make_a_tensor_a_folder(file, tmp_path):
    whole, path = bytearray(file.read_bytes()), tmp_path / "flipped.ckpt"
    with zipfile.ZipFile(file) as opened:
        entry = opened.start_dir
    while whole[entry : entry + 4] == b"PK\x01\x02":
        whole[entry + 38] ^= 0x10
        path.write_bytes(whole)
        assert "it is damaged" in one_sentence(path)
        whole[entry + 38] ^= 0x10
        entry += 46 + sum(int.from_bytes(whole[entry + k : entry + k + 2], "little")
                          for k in (28, 30, 32))  # fmt: skip

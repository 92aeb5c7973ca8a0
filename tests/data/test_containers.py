"""Where the images of a data set lie, and which zip files are refused in a sentence."""

import io
import zipfile

import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.data import containers
from qcs.data.containers import ZipImages


def damaged_zip(path, kind: str):
    file = io.BytesIO()
    Image.new("L", (9, 9)).save(file, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x.png", file.getvalue())
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    if kind == "encrypted":
        content[6] |= 1
        content[central + 8] |= 1
    elif kind == "method":
        content[8] = content[central + 10] = 99
    elif kind == "content":
        content[45] ^= 255
    path.write_bytes(content)
    return ZipImages(path)


@pytest.mark.parametrize("kind", ["encrypted", "method", "content"])
def test_a_zip_member_that_cannot_be_read_is_a_sentence(kind, tmp_path):
    with pytest.raises(UserError, match="password|compression|CRC"):
        damaged_zip(tmp_path / "x.zip", kind).open("a/x.png")


def test_a_member_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="larger than"):
        damaged_zip(tmp_path / "x.zip", "whole").open("a/x.png")

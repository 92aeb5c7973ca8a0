"""The images of tar files as inputs."""

import io
import tarfile

import numpy as np
from PIL import Image

from qcs.inference.inputs import open_items
from qcs.inference.sources import files_of


def read(source, **options) -> dict:
    return {item.key.name: item for item in open_items(files_of(str(source), **options))}


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "png")
    return file.getvalue()


def tar(path, members: dict) -> bytes:
    """A tar of bytes, or of the attributes of a member."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                file.addfile(info)
    return path.read_bytes()


def test_the_images_of_a_tar_are_read_and_nothing_else(tmp_path, caplog):
    members = {"000.png": png(), "000.json": b"{}", "deep/001.JPG": png(), "._x.png": b"junk"}
    members |= {"../../evil.png": png(), "/etc/evil.png": png(), "broken.png": b"no image"}
    members |= {"link.png": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}}
    members |= {"hard.png": {"type": tarfile.LNKTYPE, "linkname": "000.png"}}
    members |= {"null.png": {"type": tarfile.CHRTYPE}, "pipe.png": {"type": tarfile.FIFOTYPE}}
    tar(tmp_path / "s.tar", members)
    before = sorted(tmp_path.rglob("*"))
    items = list(open_items(files_of(str(tmp_path))))
    good = {item.key.member: item.key.name for item in items if item.error is None}
    assert good == {
        "000.png": "s.tar/000.png",
        "deep/001.JPG": "s.tar/deep/001.JPG",
        "../../evil.png": "s.tar/evil.png",
        "/etc/evil.png": "s.tar/etc/evil.png",
    }
    bad = {item.key.member: item.error for item in items if item.error}
    assert set(bad) == {"broken.png", "link.png", "hard.png", "null.png", "pipe.png"}
    assert f"cannot read broken.png in {tmp_path}/s.tar as an image" in bad["broken.png"]
    assert "link, a device" in bad["link.png"]
    assert "1 members that are no images (000.json)" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_or_damaged_tar_is_one_line_after_what_can_be_read(tmp_path):
    whole = tar(tmp_path / "s.tar", {f"{n}.png": png() for n in range(5)})
    size = whole.index(b"1.png")
    for length in (0, 100, size, size + 512, 2 * size + 1, 5 * size, 5 * size - 700):
        (tmp_path / "s.tar").write_bytes(whole[:length])
        items = list(open_items(files_of(str(tmp_path / "s.tar"))))
        broken = [item.error for item in items if item.error and item.key.member is None]
        assert len(broken) == 1 and "as a tar" in broken[0], length
        assert sum(item.error is None for item in items) == length // size, length
    damaged = bytearray(whole)
    damaged[2 * size + 20] ^= 255  # in the third header
    (tmp_path / "s.tar").write_bytes(damaged)
    items = list(open_items(files_of(str(tmp_path / "s.tar"))))
    assert len(items) == 3 and "truncated or damaged after 2 images" in items[2].error
    for content in ({}, {"a.txt": b"text"}):
        tar(tmp_path / "s.tar", content)
        (item,) = open_items(files_of(str(tmp_path / "s.tar")))
        assert "no image" in item.error


def test_tars_of_random_damage_end_with_items(tmp_path):
    whole, rng = (
        tar(tmp_path / "s.tar", {f"{n}.png": png() for n in range(3)}),
        np.random.default_rng(0),
    )
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole) // 3, 4):
            damaged[place] = rng.integers(256)
        (tmp_path / "s.tar").write_bytes(damaged)
        assert len(list(open_items(files_of(str(tmp_path / "s.tar"))))) < 9


def test_a_member_that_claims_a_negative_or_huge_size_is_refused(tmp_path, monkeypatch):
    tar(tmp_path / "s.tar", {"a.png": png(), "b.png": png()})
    monkeypatch.setattr("qcs.inference.tars.MAX_BYTES", 50)
    assert all("larger than" in item.error for item in read(tmp_path / "s.tar").values())
    monkeypatch.undo()
    header = tarfile.TarInfo("c.png")
    header.size = -1024
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "s.tar").write_bytes(data)
    (item,) = open_items(files_of(str(tmp_path / "s.tar")))
    assert "as a tar" in item.error

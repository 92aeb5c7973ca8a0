"""Lists, tables, tars and names in braces as inputs."""

import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference.inputs import open_items
from qcs.inference.sources import files_of, inside


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "ü c.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / "in" / name)
    return tmp_path


def read(source, **options) -> dict:
    return {item.key.name: item for item in open_items(files_of(str(source), **options))}


def test_the_paths_of_a_list_start_from_its_folder(photos, monkeypatch):
    monkeypatch.chdir("/")
    lines = ["in/a.png", "", str(photos / "in/b.png"), "in/ü c.png", "in/none.png", "in"]
    lines += ["https://example.org/a.png", "s3://bucket/b.png"]
    for text, ending in (("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n")):
        (photos / "list.txt").write_bytes(ending.join(lines).encode(text))
        items = list(open_items(files_of(str(photos / "list.txt"))))
        assert [item.error is None for item in items] == [True] * 3 + [False] * 4
        assert items[0].key.file == str(photos / "in/a.png")
        assert "No such file" in items[3].error and "not a regular file" in items[4].error
        assert (
            "line 7 names https://example.org/a.png: a list holds files of this" in items[5].error
        )
    (photos / "list.txt").write_bytes(b"in/bad\xff.png\n")
    os.rename(photos / "in/a.png", os.fsencode(photos) + b"/in/bad\xff.png")
    assert [item.error for item in read(photos / "list.txt").values()] == [None]


def test_a_list_leads_no_picture_out_of_its_folder():
    """Its entries name the pictures that annotate=true writes."""
    for entry in ("../../x.png", "/x.png", "a/../../x.png", "..", "/", ""):
        assert inside(entry) in ("x.png", "a/x.png", "unnamed")


def test_a_column_of_a_table_holds_paths(photos):
    (photos / "t.csv").write_text("path;label\nin/a.png;1\nin/b.png;2\n")
    table = {"path": ["in/a.png", None, "in/b.png"], "image": ["in/ü c.png"] * 3, "n": [1, 2, 3]}
    pq.write_table(pa.table(table), photos / "t.parquet")
    dictionary = pa.table({"path": pa.array(["in/a.png"] * 2).dictionary_encode()})
    (photos / "parts.parquet").mkdir()
    pq.write_table(dictionary, photos / "parts.parquet/part-1.parquet")
    (photos / "parts.parquet/.part.tmp").write_text("left")
    assert list(read(photos / "t.csv")) == ["in/a.png", "in/b.png"]
    items = list(open_items(files_of(str(photos / "t.parquet"))))
    assert "row 2 has no path" in items[1].error and items[2].error is None
    assert list(read(photos / "t.parquet", path_column="image")) == ["in/ü c.png"]
    assert len(files_of(str(photos / "parts.parquet"))) == 2
    for column, reason in (("no", "has no column 'no', it has path, image, n"), ("n", "no texts")):
        with pytest.raises(UserError, match=reason):
            files_of(str(photos / "t.parquet"), column)
    with pytest.raises(UserError, match="lacks the column 'file'"):
        files_of(str(photos / "t.csv"), "file")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"PAR1 no table PAR1"])
def test_a_broken_list_is_a_sentence(content, tmp_path):
    for name in ("a.txt", "a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        if content.startswith(b"PAR1") and name != "a.parquet":
            continue
        with pytest.raises(UserError, match=name):
            files_of(str(tmp_path / name))


def test_braces_stand_for_names(photos):
    found = files_of(f"{photos}/in/{{a,b}}.png")
    assert [file.name for file in found] == ["a.png", "b.png"]
    for number in (8, 9, 10):
        (photos / f"s-{number:03d}.tar").touch()
    found = files_of(f"{photos}/s-{{008..010}}.tar")
    assert [(file.name, file.kind) for file in found] == [
        (f"s-{number:03d}.tar", "tar") for number in (8, 9, 10)
    ]
    found = files_of(f"{photos}/s-{{008..011}}.tar")
    assert "nothing to read" in found[3].error
    (photos / "{a,b}.png").write_bytes((photos / "in/a.png").read_bytes())
    assert [file.name for file in files_of(f"{photos}/{{a,b}}.png")] == ["{a,b}.png"]
    for wrong in ("{9..1}", "{0..99999999999}"):
        with pytest.raises(UserError, match="is not a range"):
            files_of(f"s-{wrong}.tar")


# -- tars --------------------------------------------------------------------------------


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

"""Lists and tables of paths as inputs."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference.inputs import open_items
from qcs.inference.sources import files_of


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

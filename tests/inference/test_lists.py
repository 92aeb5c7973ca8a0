"""Lists and tables of paths as inputs."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qcs.config.errors import UserError
from qcs.inference.inputs import open_items
from qcs.inference.sources import files_of


def read(source, **options) -> dict:
    return {item.key.name: item for item in open_items(files_of(str(source), **options))}


def test_the_paths_of_a_list_start_from_its_folder(named_photos, monkeypatch):
    monkeypatch.chdir("/")
    lines = ["in/a.png", "", str(named_photos / "in/b.png"), "in/ü c.png", "in/none.png", "in"]
    lines += ["https://example.org/a.png", "s3://bucket/b.png"]
    for text, ending in (("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n")):
        (named_photos / "list.txt").write_bytes(ending.join(lines).encode(text))
        items = list(open_items(files_of(str(named_photos / "list.txt"))))
        assert [item.error is None for item in items] == [True] * 3 + [False] * 4
        assert items[0].key.file == str(named_photos / "in/a.png")
        assert "No such file" in items[3].error and "not a regular file" in items[4].error
        assert (
            "line 7 names https://example.org/a.png: a list holds files of this" in items[5].error
        )
    (named_photos / "list.txt").write_bytes(b"in/bad\xff.png\n")
    os.rename(named_photos / "in/a.png", os.fsencode(named_photos) + b"/in/bad\xff.png")
    assert [item.error for item in read(named_photos / "list.txt").values()] == [None]


def test_a_list_may_start_from_the_users_home(named_photos, monkeypatch):
    monkeypatch.setenv("HOME", str(named_photos))
    (named_photos / "in/list.txt").write_text("~/in/a.png\n~a.png\n")
    first, second = read(named_photos / "in/list.txt").values()
    assert first.error is None and "in/~a.png" in second.error


def test_a_column_of_a_table_holds_paths(named_photos):
    (named_photos / "t.csv").write_text("path;label\nin/a.png;1\nin/b.png;2\n")
    table = {"path": ["in/a.png", None, "in/b.png"], "image": ["in/ü c.png"] * 3, "n": [1, 2, 3]}
    pq.write_table(pa.table(table), named_photos / "t.parquet")
    dictionary = pa.table({"path": pa.array(["in/a.png"] * 2).dictionary_encode()})
    (named_photos / "parts.parquet").mkdir()
    pq.write_table(dictionary, named_photos / "parts.parquet/part-1.parquet")
    (named_photos / "parts.parquet/.part.tmp").write_text("left")
    (named_photos / "parts.parquet/_delta_log").mkdir()  # a table of Delta Lake
    pq.write_table(pa.table({"add": [1]}), named_photos / "parts.parquet/_delta_log/1.parquet")
    assert list(read(named_photos / "t.csv")) == ["in/a.png", "in/b.png"]
    items = list(open_items(files_of(str(named_photos / "t.parquet"))))
    assert "row 2 has no path" in items[1].error and items[2].error is None
    assert list(read(named_photos / "t.parquet", path_column="image")) == ["in/ü c.png"]
    assert len(files_of(str(named_photos / "parts.parquet"))) == 2
    for column, reason in (("no", "has no column 'no', it has path, image, n"), ("n", "no texts")):
        with pytest.raises(UserError, match=reason):
            files_of(str(named_photos / "t.parquet"), column)
    with pytest.raises(UserError, match="lacks the column 'file'"):
        files_of(str(named_photos / "t.csv"), "file")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"PAR1 no table PAR1"])
def test_a_broken_list_is_a_sentence(content, tmp_path):
    for name in ("a.txt", "a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        if content.startswith(b"PAR1") and name != "a.parquet":
            continue
        with pytest.raises(UserError, match=name):
            files_of(str(tmp_path / name))

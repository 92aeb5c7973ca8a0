"""What counts as an image, as junk and as the content of a folder."""

import os
import socket
from pathlib import Path

import pytest

from qcs.config.errors import UserError
from qcs.data import images
from qcs.data.folders import images_below, is_junk, list_files, same_name
from qcs.data.images import is_image


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_suffixes_in_capitals_or_not():
    assert all(map(is_image, ("a.JPG", "b.jfif", "c.Jpe", "d.tif", "e.pgm", "f.webp")))
    assert not any(map(is_image, ("a.eps", "b.txt", "jpg", "c.jpg.part", "d.wmf")))


def test_junk_is_passed_over_without_a_word(tmp_path, caplog):
    for name in ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        assert is_junk(name)
        touch(tmp_path / name)
    for name in ("__MACOSX", "@eaDir", "__pycache__", ".git"):
        touch(tmp_path / name / "x.png")
    touch(tmp_path / "x.png")
    assert images_below(tmp_path) == [tmp_path / "x.png"]
    assert not caplog.text


def test_other_files_are_named_and_counted(tmp_path, caplog):
    touch(tmp_path / "a.png", tmp_path / "b/note.txt", tmp_path / "c.heic")
    assert len(images_below(tmp_path)) == 1 + images.HAS_HEIF
    if images.HAS_HEIF:
        assert "1 files that are no images (note.txt)" in caplog.text
    else:
        assert "2 files that are no images (note.txt, c.heic)" in caplog.text
        assert "pip install pillow-heif" in caplog.text


def test_links_are_followed_once_and_rings_end(tmp_path, caplog):
    touch(tmp_path / "pool/1.png", tmp_path / "top/2.png")
    (tmp_path / "top/linked").symlink_to(tmp_path / "pool")
    (tmp_path / "top/ring").symlink_to(tmp_path / "top")
    (tmp_path / "pool/back").symlink_to(tmp_path / "top")
    (tmp_path / "top/itself").symlink_to(tmp_path / "top/itself")
    (tmp_path / "top/gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [file.relative_to(tmp_path).as_posix() for file in images_below(tmp_path / "top")]
    assert found == ["top/2.png", "top/linked/1.png"]
    assert "gone.png cannot be read (No such file" in caplog.text


def test_pipes_and_sockets_are_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        found = list_files(tmp_path)
    assert not found.files and len(found.problems) == 2
    assert "is not a regular file" in found.problems[0]
    with pytest.raises(UserError, match="not a regular file"):
        images.open_file(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="not a regular file"):
        images.open_file("/dev/zero")


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    touch(tmp_path / "a/x.png", tmp_path / "b/y.png")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert list_files(tmp_path).files == [tmp_path / "a/x.png"]
    with pytest.raises(UserError, match=r"folder .*b cannot be read \(Permission denied\)"):
        images_below(tmp_path)


def test_one_class_whatever_its_case_and_blanks():
    assert same_name(" Anger ") == same_name("ANGER") == "anger"
    assert same_name("U\u0308bel") == same_name("\u00dcbel")
    assert same_name("very sad") == same_name("very  sad") != same_name("verysad")

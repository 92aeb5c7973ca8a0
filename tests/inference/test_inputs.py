"""Which files an input means, and that an odd one never ends the work."""

import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.inference.inputs import as_image, open_items
from qcs.inference.sources import files_of


def image(path, size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def read(source, **options):
    return {item.key.name: item for item in open_items(files_of(source), **options)}


def test_what_exists_on_disk_comes_before_a_webcam(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "webcam 1.jpg")
    image(tmp_path / "2024" / "a.png")
    (tmp_path / "7").write_bytes(b"")
    assert [f.kind for f in files_of("webcam 1.jpg")] == ["image"]
    assert [f.name for f in files_of(2024)] == [f.name for f in files_of("2024")] == ["a.png"]
    assert files_of(7)[0].kind == "image"
    assert files_of(0) == files_of("0") and files_of("0")[0].kind == "webcam"
    assert read(".")["webcam 1.jpg"].image.size == (20, 10)


def test_odd_files_are_items_with_an_error_and_the_rest_is_read(tmp_path):
    folder = tmp_path / "in"
    for name in ("a.png", "z.png", "deep/er/b.png", "photo[1].png"):
        image(folder / name)
    (folder / "junk.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "broken.mp4").write_text("no film")
    (folder / "._a.png").write_bytes(b"left by a system")
    image(folder / "__MACOSX" / "c.png")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "ring.jpg").symlink_to("ring.jpg")
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "device.png").symlink_to("/dev/zero")
    here = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(folder), listener.bind("socket.png")
        os.fchdir(here), os.chdir("/")
    items: dict = {}
    worker = threading.Thread(target=lambda: items.update(read(str(folder))), daemon=True)
    worker.start()
    worker.join(20)
    assert not worker.is_alive(), "a pipe was waited for"
    good = {name for name, item in items.items() if item.error is None}
    assert good == {"a.png", "z.png", "deep/er/b.png", "photo[1].png"}
    bad = {"junk.jpg", "empty.jpg", "script.jpg", "broken.mp4", "pipe.jpg", "pipe.mp4", "gone.jpg",
           "ring.jpg", "device.png", "socket.png"}  # fmt: skip
    assert set(items) - good == bad
    # The file is to blame, so it keeps its stamp, and an archive does not try it at each run.
    for name in ("pipe.jpg", "socket.png", "device.png"):
        assert "not a regular file" in items[name].error
        assert items[name].key.stamp


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
    odd = os.fsencode(tmp_path) + b"/bad\xff.png"
    image(tmp_path / "x.png").rename(os.fsdecode(odd))
    assert [item.image.size for item in read(str(tmp_path)).values()] == [(20, 10)]


def test_a_folder_that_may_not_be_read_is_an_error_of_its_own(tmp_path, monkeypatch):
    for name in ("a.png", "shut/b.png", "z/c.png"):
        image(tmp_path / name)
    real = os.listdir

    def listdir(path):
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    for source in (str(tmp_path), f"{tmp_path}/**/*.png"):
        items = read(source)
        shut = [item for item in items.values() if item.error]
        assert [item.key.name for item in shut] == ["shut"]
        assert "cannot read the folder" in shut[0].error and "Permission denied" in shut[0].error
        assert {"a.png", "z/c.png"} < set(items)


def test_a_file_that_vanishes_is_an_error(tmp_path):
    image(tmp_path / "a.png"), image(tmp_path / "b.png")
    files = files_of(str(tmp_path))
    (tmp_path / "a.png").unlink()
    first, second = open_items(files)
    assert "cannot read" in first.error and second.image is not None


def test_a_list_goes_on_after_what_is_not_there(tmp_path):
    found = list(open_items(files_of([str(tmp_path / "no.png"), str(image(tmp_path / "a.png"))])))
    assert "nothing to read" in found[0].error and found[1].error is None
    for nothing in ([], [str(tmp_path / "no.png")], ""):
        with pytest.raises(UserError):
            files_of(nothing)


@pytest.mark.parametrize("options", [{"every": 0}, {"max_frames": 0}, {"max_frames": -1}])
def test_numbers_of_frames_are_checked_before_anything_is_read(options, tmp_path):
    with pytest.raises(UserError, match="must be 1 or more"):
        open_items(files_of(str(image(tmp_path / "a.png"))), **options)


def test_an_open_image_is_treated_as_its_file(tmp_path):
    """EXIF turns, transparency and 16 bits are one decoder's."""
    pixels = np.zeros((10, 20, 4), dtype=np.uint8)
    pixels[:, :10] = 255, 0, 0, 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    Image.fromarray((np.arange(200).reshape(10, 20) * 300).astype(np.uint16)).save(
        tmp_path / "deep.png"
    )
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for name in ("clear.png", "deep.png", "turned.jpg"):
        with Image.open(tmp_path / name) as opened:
            found = as_image(opened)
        assert found.tobytes() == as_image(tmp_path / name).tobytes()
    assert as_image(tmp_path / "turned.jpg").size == (10, 20)
    assert as_image(tmp_path / "clear.png").getpixel((15, 5)) == (255, 255, 255)
    with pytest.raises(UserError, match="the PIL image"):
        as_image(Image.new("F", (4, 4)))

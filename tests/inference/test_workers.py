"""Photos read by worker processes: the same answers in order, whatever happens to a worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

import qcs
from qcs.config.errors import UserError
from qcs.inference import workers
from qcs.inference.crop import LOOSE
from qcs.inference.inputs import Item, Key, open_items
from qcs.inference.sources import Source, files_of
from qcs.inference.workers import looks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need Linux or macOS")
# Sources that do something to the process that reads them, which imports this module.
ODD = """
import os, signal, time
from pathlib import Path
from PIL import Image
from qcs.inference.sources import Source

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Kills(Source):
    data = property(lambda self: die())

class KillsOnce(Source):
    @property
    def data(self):
        tried = Path(self.file + ".tried")
        if not tried.exists():
            tried.touch()
            die()

class KillsAsImage:
    width = height = 1
    convert = lambda self, mode: die()

class KillsDecoding(Source):
    @property
    def data(self):
        Image.Image.convert = lambda image, mode: (time.sleep(0.5), die())
        return Path(self.file).read_bytes()

class Hangs(Source):
    data = property(lambda self: time.sleep(1000))

class Fails(Source):
    data = property(lambda self: {}["a bug"])
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    (tmp_path / "odd_sources.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("odd_sources", None)
    import odd_sources

    return odd_sources


def photos(folder: Path, number: int) -> list[Source]:
    """Photos of growing width, by which they are known."""
    folder.mkdir(exist_ok=True)
    for i in range(number):
        Image.new("RGB", (10 + i, 10), (i, 0, 0)).save(folder / f"{i:03d}.png")
    return files_of(str(folder))


def test_answers_are_those_of_one_process_with_odd_files_among_them(tmp_path):
    folder = tmp_path / "in"
    photos(folder, 3)
    astronaut = Image.fromarray(skimage.data.astronaut())
    for name in ("a.jpg", "m.png", "z.webp"):
        astronaut.crop((96, 0, 352, 256)).save(folder / name)
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:5000])
    (folder / "c.jpg").write_bytes(b"")
    os.mkfifo(folder / "d.jpg")
    files = files_of(str(folder))
    (folder / "000.png").unlink()
    predictor = qcs.load()

    def run(number: int, **options):
        results = list(predictor.stream(open_items(files, later=True), True, number, **options))
        crops = [[crop.tobytes() for crop in result.crops] for result in results]
        return [(r.key, r.error, r.predictions) for r in results], crops, [r.image for r in results]

    rows, crops, images = run(2)
    assert (rows, crops, images) == run(0)
    assert [key.name for key, *_ in rows] == [file.name for file in files]
    errors = {key.name for key, error, _ in rows if error}
    assert errors == {"000.png", "b.jpg", "c.jpg", "d.jpg"}
    assert [len(found) for *_, found in rows if found] == [1, 1, 1]
    assert run(2, keep=False)[2] == [None] * len(files)


def test_python_answers_with_workers_as_without(tmp_path):
    paths = [Path(file.file) for file in photos(tmp_path, 5)]
    images = [*paths, np.zeros((9, 9, 3), np.uint8)]
    predictor = qcs.load()
    assert predictor.predict(images, False, workers=2) == predictor.predict(images, False)
    with pytest.raises(UserError, match=r"cannot read .*no\.png"):
        predictor.predict([*paths, tmp_path / "no.png"], False, workers=2)


def test_a_photo_that_kills_two_workers_is_an_error_and_the_rest_goes_on(tmp_path, odd, caplog):
    files = photos(tmp_path / "in", 12)
    files[3], files[7] = odd.Kills(*files[3]), odd.KillsOnce(*files[7])
    found = list(looks(files, 2, None, LOOSE))
    assert [look.item.key.name for look in found] == [file.name for file in files]
    errors = {look.item.key.name: look.item.error for look in found if look.item.error}
    assert list(errors) == ["003.png"]
    gave_up = f"gave up {files[3].file}: a second worker process ended with signal 9"
    assert errors["003.png"].startswith(gave_up)
    assert [look.crops[0].width for look in found if look.crops] == [
        10 + i for i in range(12) if i != 3
    ]
    assert len([r for r in caplog.records if "which is tried again" in r.message]) == 2


def test_what_failed_here_has_no_stamp_and_what_is_broken_keeps_it(tmp_path, odd):
    (file,) = photos(tmp_path / "in", 1)
    key, file = Key("a.mp4", "a.mp4", 3, 0.1, stamp=(1, 2)), file._replace(stamp=(1, 2))
    frame = Item(key, Image.new("RGB", (9, 9)))
    items = [
        frame._replace(image=odd.KillsAsImage()),
        file._replace(error="a"),
        Item(key, error="b"),
    ]
    found = [look.item for look in looks(items, 1, None, LOOSE._replace(grey=True))]
    assert [item.key.stamp for item in found] == [None, (1, 2), (1, 2)]
    assert all(item.error for item in found) and found[0].key.frame == 3
    assert found[0].error.startswith("gave up frame 3 of a.mp4: a second worker process ended")


def test_a_photo_that_takes_too_long_is_an_error_and_the_rest_goes_on(tmp_path, odd):
    files = photos(tmp_path / "in", 6)
    files[2] = odd.Hangs(*files[2])
    found = list(looks(files, 1, None, LOOSE, timeout=2))
    assert [look.item.error is None for look in found] == [True, True, False, True, True, True]
    slow = f"gave up {files[2].file}: a worker process took longer than 2 seconds"
    assert found[2].item.error == slow


def test_a_bug_keeps_its_traceback_and_a_worker_that_cannot_start_is_a_sentence(
    tmp_path, odd, monkeypatch
):
    files = photos(tmp_path / "in", 2)
    with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
        list(looks([odd.Fails(*files[0])], 1, None, LOOSE))
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="ended with status 1 .* while it started"):
        list(looks(files, 1, None, LOOSE))


def test_workers_that_are_kept_go_on_unless_an_answer_was_left(tmp_path, odd):
    files, kept = photos(tmp_path / "in", 6), []
    assert len(list(looks(files, 1, None, LOOSE, kept=kept))) == 6
    (first,) = [worker.process for worker in kept]
    files[1] = odd.Kills(*files[1])
    assert sum(look.item.error is None for look in looks(files, 1, None, LOOSE, kept=kept)) == 5
    (second,) = [worker.process for worker in kept]
    assert first.poll() == -9 and second.poll() is None
    found = looks(files[2:], 1, None, LOOSE, kept=kept)
    assert next(found).item.error is None and kept[0].process is second
    found.close()
    assert not kept and second.poll() == -9


def test_memory_is_bounded_while_nobody_takes_the_answers(monkeypatch):
    taken = []

    def frames(number: int, side: int):
        for i in range(number):
            taken.append(i)
            yield Item(i, Image.new("RGB", (side, side)))

    found = looks(frames(200, 10), 2, None, LOOSE)
    next(found), next(found)
    assert len(taken) <= 2 + 2 * 2 * workers.AHEAD
    found.close()
    taken.clear()
    monkeypatch.setattr(workers, "MAX_WAITING", 3 * 50 * 50)
    found = looks(frames(40, 50), 2, None, LOOSE)
    assert next(found).item.key == 0 and len(taken) <= 4
    assert [look.item.key for look in found] == list(range(1, 40))


def test_large_photos_are_decoded_one_after_the_other(tmp_path):
    files = photos(tmp_path, 4)
    for i in (0, 1):
        Image.new("1", (4200, 4000)).save(files[i].file)
    found = list(looks(files, 2, None, LOOSE))
    assert [look.pixels for look in found] == [16_800_000, 16_800_000, 120, 130]


def test_a_large_photo_that_kills_its_workers_lets_the_next_one_go(tmp_path, odd):
    files = photos(tmp_path / "in", 2)
    for file in files:
        Image.new("1", (4200, 4000)).save(file.file)
    files[0] = odd.KillsDecoding(*files[0])
    found = list(looks(files, 2, None, LOOSE))
    assert [look.item.error is None for look in found] == [False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_caller(how, tmp_path, odd):
    files = photos(tmp_path / "in", 2)
    code = (
        f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}\n"
        "import odd_sources\n"
        "from qcs.inference import crop, workers\n"
        f"hanging = [odd_sources.Hangs(*file) for file in {[tuple(file) for file in files]!r}]\n"
        "print('ready', flush=True)\n"
        "list(workers.looks(hanging, 2, None, crop.LOOSE))"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert caller.stdout.readline()
    listed = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
    while len(children := listed.read_text().split()) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    caller.send_signal(how)
    caller.communicate(timeout=30)
    end = time.monotonic() + 30
    while any(_runs(child) for child in children):
        assert time.monotonic() < end, "a worker is still there"
        time.sleep(0.05)


def _runs(child: str) -> bool:
    try:
        return "worker_process" in Path(f"/proc/{child}/cmdline").read_text()
    except OSError:
        return False

"""Prepared images: the same pixels, current, whole or absent, resumable."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import three_colours
from qcs.config.errors import UserError
from qcs.data import decoding, prepared, store, transforms
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.data.transforms import pixels, resized

OPTIONS = {"num_workers": 0, "progress": False}


def make_store(faces: Manifest, tmp_path: Path, **options) -> store.Store:
    prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS | options)
    return prepared.find(faces, 16, tmp_path / "stores")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_holds_what_decoding_and_resizing_give(workers, faces, tmp_path):
    assert prepared.find(faces, 16, tmp_path / "stores") is None
    found = make_store(faces, tmp_path, num_workers=workers)
    test = faces.with_store(found).split("test")
    for row in range(len(test)):
        torch.testing.assert_close(pixels(test, row), resized(test.image(row), 16))
    copy = pickle.loads(pickle.dumps(test))
    torch.testing.assert_close(pixels(copy, 3), pixels(test, 3))
    assert len(pickle.dumps(test)) < 20_000  # the images are mapped, not sent


@pytest.mark.parametrize("by", ["image", "batch"])
def test_training_with_a_store_equals_training_without(by, faces, tmp_path):
    seen = []
    for manifest in (faces, faces.with_store(make_store(faces, tmp_path))):
        data = FaceDataModule(
            manifest,
            transforms.training(12, 16, rotation=9, by=by),
            transforms.evaluation(12, 16),
            batch_size=8,
            num_workers=0,
        )
        batches = [data.on_after_batch_transfer(b) for b in data.train_dataloader()]
        batches += list(data.test_dataloader())
        seen.append(torch.cat([b["images"].flatten() for b in batches]))
    torch.testing.assert_close(seen[0], seen[1], atol=0, rtol=0)


def test_another_size_or_another_file_list_has_another_store(faces, tmp_path):
    make_store(faces, tmp_path)
    assert prepared.find(faces, 17, tmp_path / "stores") is None
    assert prepared.find(faces.select(np.arange(9)), 16, tmp_path / "stores") is None


def test_a_changed_source_is_noticed_and_prepared_anew(faces, tmp_path, caplog):
    before = make_store(faces, tmp_path)
    victim = faces.root / faces.paths[4]
    victim.write_bytes((faces.root / faces.paths[20]).read_bytes())
    os.utime(victim, ns=(1, 1))
    assert prepared.find(faces, 16, tmp_path / "stores") is None
    assert f"1 of {len(faces)} files changed, the first is {faces.paths[4]}" in caplog.text
    after = make_store(faces, tmp_path)
    assert np.array_equal(after[4], after[20]) and not np.array_equal(before[4], after[4])


def test_a_whole_store_is_not_made_again(faces, tmp_path):
    folder = make_store(faces, tmp_path).folder
    before = (folder / "images.u8").stat().st_mtime_ns
    (tmp_path / "stores" / f"{folder.name}.lock").unlink()
    (tmp_path / "stores" / f"{folder.name}.lock").mkdir()  # as of another user
    make_store(faces, tmp_path)
    assert (folder / "images.u8").stat().st_mtime_ns == before


def test_an_undecodable_image_fails_or_is_left_out_and_listed(faces, tmp_path, caplog):
    bad = str(faces.paths[7])
    (faces.root / bad).write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"cannot read image {bad} .* on_error=skip"):
        prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS)
    assert prepared.find(faces, 16, tmp_path / "stores") is None
    found = make_store(faces, tmp_path, on_error="skip")
    listed = prepared.skipped_images(found.folder)
    assert [(bad["row"], bad["path"]) for bad in listed] == [(7, bad)]
    assert "1 images that cannot be decoded are left out" in caplog.text
    rest = faces.with_store(found)
    assert len(rest) == len(faces) - 1 and bad not in rest.paths
    torch.testing.assert_close(pixels(rest, 7), resized(faces.image(8), 16))
    with pytest.raises(UserError, match="cannot read image"):  # asked to fail, it does
        prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS)


def test_an_error_ends_the_progress_bar(faces, tmp_path, monkeypatch):
    """Else a notebook that prepares once more has two, which older versions of rich refuse."""
    ended = []

    def track(loader, *_, **__):
        try:
            yield from loader
        finally:
            ended.append(True)

    monkeypatch.setattr(decoding, "track", track)
    (faces.root / str(faces.paths[0])).write_bytes(b"nothing")
    with pytest.raises(UserError) as error:  # which keeps the generator alive
        prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS)
    assert ended and error


def test_nothing_but_broken_images_is_an_error(faces, tmp_path):
    for path in faces.paths:
        (faces.root / path).write_bytes(b"")
    with pytest.raises(UserError, match="no image of .* can be decoded"):
        prepared.prepare(faces, 16, tmp_path / "stores", on_error="skip", **OPTIONS)


SLOW = """
import sys, time
from pathlib import Path
from qcs.data import decoding, prepared, store
from qcs.data.manifest import Manifest
write = store.StoreWriter.write
def slow(*arguments):
    write(*arguments)
    print("chunk", flush=True)
    time.sleep(0.3)
store.StoreWriter.write, decoding.CHUNK = slow, 6
faces = Manifest.from_csv(sys.argv[1], class_names=("red", "green", "blue"))
prepared.prepare(faces, 16, Path(sys.argv[2]), num_workers=0, progress=False)
"""


def test_a_killed_preparation_goes_on_where_it_was(faces, tmp_path, monkeypatch, caplog):
    faces.to_csv(faces.root / "table.csv")
    command = [sys.executable, "-c", SLOW, faces.root / "table.csv", tmp_path / "stores"]
    source = str(Path(prepared.__file__).parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": source}
    ) as process:
        for _ in range(3):
            assert process.stdout.readline() == b"chunk\n"
        process.send_signal(signal.SIGKILL)
    assert prepared.find(faces, 16, tmp_path / "stores") is None  # half is not whole
    decoded = []
    image = Manifest.image
    monkeypatch.setattr(
        Manifest, "image", lambda self, row: decoded.append(row) or image(self, row)
    )
    found = make_store(faces, tmp_path)
    assert 0 < len(decoded) <= len(faces) - 18  # three chunks of six were done
    monkeypatch.undo()
    whole = faces.with_store(found)
    for row in range(len(faces)):
        torch.testing.assert_close(pixels(whole, row), resized(faces.image(row), 16))
    assert [p.name for p in (tmp_path / "stores").glob("*.part")] == []


def test_two_preparations_of_the_same_images_are_kept_apart(faces, tmp_path):
    base = tmp_path / "stores"
    base.mkdir()
    lock = prepared.folder_of(faces, 16, base)
    with (
        prepared._locked(lock.with_name(lock.name + ".lock")),
        pytest.raises(UserError, match="another process is preparing these images"),
    ):
        prepared.prepare(faces, 16, base, **OPTIONS)
    assert len(make_store(faces, tmp_path).images) == len(faces)


def test_too_little_space_is_said_before_anything_is_written(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10}))
    with pytest.raises(UserError, match="0.0 GB are needed and 0.0 GB are free"):
        prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS)


def test_a_size_beyond_every_disk_is_said(faces, tmp_path):
    with pytest.raises(UserError, match="GB are needed"):
        prepared.prepare(faces, 10**9, tmp_path / "stores", **OPTIONS)


def test_index_json_says_what_was_made(faces, tmp_path):
    index = json.loads((make_store(faces, tmp_path).folder / "index.json").read_text())
    assert isinstance(index.pop("checksum"), int)
    assert index == {"version": store.VERSION, "size": 16, "images": len(faces), "skipped": []}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "zeros": ("images.u8", lambda path: path.write_bytes(bytes(path.stat().st_size))),
    "a flipped bit": ("images.u8", lambda path: flip(path, 5000)),
    "truncated": ("images.u8", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "gone": ("images.u8", lambda path: path.unlink()),
    "rows": ("rows.i8", lambda path: flip(path, 16)),
    "rows cut": ("rows.i8", lambda path: path.write_bytes(path.read_bytes()[:-24])),
    "a byte more": ("images.u8", lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "rows and a byte": ("rows.i8", lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "index and a byte": ("index.json", lambda path: path.write_bytes(path.read_bytes() + b"\n")),
    "rows odd": ("rows.i8", lambda path: path.write_bytes(b"x")),
    "no rows": ("rows.i8", lambda path: path.unlink()),
    "index": ("index.json", lambda path: path.write_text("{")),
    "deep index": ("index.json", lambda path: path.write_text("[" * 100_000)),
    "index of nothing": ("index.json", lambda path: path.write_text("[]")),
    "index of null": ("index.json", lambda path: path.write_text("null")),
    "empty index": ("index.json", lambda path: path.write_bytes(b"")),
    "binary index": ("index.json", lambda path: path.write_bytes(b"\xff\xfe\0")),
    "lying index": (
        "index.json",
        lambda path: path.write_text(path.read_text().replace("[]", '[{"row": 3}]')),
    ),
    "no checksum": (
        "index.json",
        lambda path: path.write_text('{"version": 1, "size": 16, "images": 54, "skipped": []}'),
    ),
    "version": (
        "index.json",
        lambda path: path.write_text(path.read_text().replace('"version": 1', '"version": 0')),
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_store_is_not_used_and_made_again(kind, faces, tmp_path, caplog):
    found = make_store(faces, tmp_path)
    expected, (name, damage) = np.array(found.images), DAMAGE[kind]
    damage(found.folder / name)
    assert prepared.find(faces, 16, tmp_path / "stores", "the command") is None
    sentence = caplog.records[-1].getMessage()
    assert sentence.startswith("prepared images are not used") and "`the command`" in sentence
    assert str(found.folder) in sentence
    assert np.array_equal(make_store(faces, tmp_path).images, expected)


def test_what_a_stopped_preparation_left_damaged_is_decoded_again(faces, tmp_path):
    bad = faces.root / faces.paths[50]
    whole = bad.read_bytes()
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError):
        prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS)
    (part,) = (tmp_path / "stores").glob("*.part")
    flip(part / "images.u8", 100)
    bad.write_bytes(whole)
    found = make_store(faces, tmp_path)
    assert np.array_equal(found[0], resized(faces.image(0), 16))


def test_a_disk_that_fills_up_is_a_sentence_and_what_is_done_stays(faces, tmp_path, monkeypatch):
    write, calls = store.StoreWriter.write, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(store.StoreWriter, "write", full)
    monkeypatch.setattr("qcs.data.decoding.CHUNK", 6)
    with pytest.raises(UserError, match=r"\(No space left on device\); what is done is kept"):
        prepared.prepare(faces, 16, tmp_path / "stores", **OPTIONS)
    monkeypatch.undo()
    decoded, image = [], Manifest.image
    monkeypatch.setattr(
        Manifest, "image", lambda self, row: decoded.append(row) or image(self, row)
    )
    make_store(faces, tmp_path)
    assert len(decoded) == len(faces) - 12


def test_a_folder_that_cannot_be_written_is_a_sentence(faces, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write prepared images into .*Not a directory"):
        prepared.prepare(faces, 16, tmp_path / "file/stores", **OPTIONS)


def test_names_that_are_not_utf8_are_prepared(tmp_path):
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    faces = three_colours(folder)
    odd = str(faces.paths[3]).replace("train", "tr\udce9in")
    (folder / faces.paths[3]).rename(folder / odd)
    rows = [(odd if i == 3 else p, label, split) for i, (p, label, split) in
            enumerate(zip(faces.paths, faces.labels, faces.splits, strict=True))]  # fmt: skip
    faces = Manifest.build(folder, rows, faces.class_names)
    (folder / faces.paths[5]).write_bytes(b"x")
    assert len(make_store(faces, tmp_path, on_error="skip").kept) == len(faces) - 1


def test_where_there_is_no_home_it_is_a_sentence(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(UserError, match="neither XDG_CACHE_HOME nor HOME is set"):
        prepared.base("auto")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert prepared.base("auto") == Path("/c/qcs/prepared")

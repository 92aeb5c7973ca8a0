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

from qcs.config.errors import UserError
from qcs.data import preparation, prepared, transforms
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.data.transforms import pixels, resized

OPTIONS = {"num_workers": 0, "progress": False}


def make_store(faces: Manifest, tmp_path: Path, **options) -> prepared.Store:
    preparation.prepare(faces, 16, tmp_path / "stores", **OPTIONS | options)
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
    make_store(faces, tmp_path)
    assert (folder / "images.u8").stat().st_mtime_ns == before


def test_an_undecodable_image_fails_or_is_left_out_and_listed(faces, tmp_path, caplog):
    bad = str(faces.paths[7])
    (faces.root / bad).write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"cannot read image {bad} .* on_error=skip"):
        preparation.prepare(faces, 16, tmp_path / "stores", **OPTIONS)
    assert prepared.find(faces, 16, tmp_path / "stores") is None
    found = make_store(faces, tmp_path, on_error="skip")
    listed = prepared.skipped_images(found.folder)
    assert [(bad["row"], bad["path"]) for bad in listed] == [(7, bad)]
    assert "1 images that cannot be decoded are left out" in caplog.text
    rest = faces.with_store(found)
    assert len(rest) == len(faces) - 1 and bad not in rest.paths
    torch.testing.assert_close(pixels(rest, 7), resized(faces.image(8), 16))
    with pytest.raises(UserError, match="cannot read image"):  # asked to fail, it does
        preparation.prepare(faces, 16, tmp_path / "stores", **OPTIONS)


def test_nothing_but_broken_images_is_an_error(faces, tmp_path):
    for path in faces.paths:
        (faces.root / path).write_bytes(b"")
    with pytest.raises(UserError, match="no image of .* can be decoded"):
        preparation.prepare(faces, 16, tmp_path / "stores", on_error="skip", **OPTIONS)


SLOW = """
import sys, time
from pathlib import Path
from qcs.data import preparation
from qcs.data.manifest import Manifest
decode = preparation.Decoded.__getitems__
def slow(self, rows):
    time.sleep(0.3)
    print("chunk", flush=True)
    return decode(self, rows)
preparation.Decoded.__getitems__, preparation.CHUNK = slow, 6
faces = Manifest.from_csv(sys.argv[1], class_names=("red", "green", "blue"))
preparation.prepare(faces, 16, Path(sys.argv[2]), num_workers=0, progress=False)
"""


def test_a_killed_preparation_goes_on_where_it_was(faces, tmp_path, monkeypatch, caplog):
    faces.to_csv(faces.root / "table.csv")
    command = [sys.executable, "-c", SLOW, faces.root / "table.csv", tmp_path / "stores"]
    source = str(Path(prepared.__file__).parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": source}
    ) as process:
        for _ in range(4):
            assert process.stdout.readline() == b"chunk\n"
        process.send_signal(signal.SIGKILL)
    assert prepared.find(faces, 16, tmp_path / "stores") is None  # half is not whole
    decoded = []
    decode = preparation.Decoded.__getitems__
    monkeypatch.setattr(
        preparation.Decoded,
        "__getitems__",
        lambda self, rows: decoded.extend(rows) or decode(self, rows),
    )
    found = make_store(faces, tmp_path)
    assert 0 < len(decoded) <= len(faces) - 18  # three chunks of six were done
    whole = faces.with_store(found)
    for row in range(len(faces)):
        torch.testing.assert_close(pixels(whole, row), resized(faces.image(row), 16))
    assert [p.name for p in (tmp_path / "stores").glob("*.part")] == []


def test_two_preparations_of_the_same_images_are_kept_apart(faces, tmp_path):
    base = tmp_path / "stores"
    base.mkdir()
    lock = prepared.folder_of(faces, 16, base)
    with (
        preparation._locked(lock.with_name(lock.name + ".lock")),
        pytest.raises(UserError, match="another process is preparing these images"),
    ):
        preparation.prepare(faces, 16, base, **OPTIONS)
    assert len(make_store(faces, tmp_path).images) == len(faces)


def test_too_little_space_is_said_before_anything_is_written(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(
        preparation.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10})
    )
    with pytest.raises(UserError, match="0.0 GB are needed and 0.0 GB are free"):
        preparation.prepare(faces, 16, tmp_path / "stores", **OPTIONS)


def test_index_json_says_what_was_made(faces, tmp_path):
    index = json.loads((make_store(faces, tmp_path).folder / "index.json").read_text())
    assert index == {"version": prepared.VERSION, "size": 16, "images": len(faces), "skipped": []}

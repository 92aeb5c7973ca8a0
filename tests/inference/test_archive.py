"""An archive of Parquet parts: nothing is lost or there twice, whatever ends the process."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_predict import settings

from conftest import tiny_checkpoint
from qcs.config.errors import UserError
from qcs.inference import inputs
from qcs.inference.archive import Archive
from qcs.inference.faces import Prediction, Result
from qcs.inference.inputs import Key, open_items, stamp
from qcs.inference.pictures import Written
from qcs.inference.shards import Shard
from qcs.inference.sources import files_of
from qcs.inference.video import FilmWriter

NAMES = ("sad", "happy")
FACE = Prediction(
    "sad", 0.75, {"sad": 0.75, "happy": 0.25}, (1.0, 2.0, 3.0, 4.0), ((5.0, 6.0),) * 5
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (20, 10), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def opened(folder: Path, source, **options) -> Archive:
    made = options.pop("made", {"detect": "auto"})
    return Archive(folder, files_of(str(source)), NAMES, None, made, **options)


def label(folder: Path, source, **options) -> list[str]:
    """Write a row for each image that is not there yet, and return their names."""
    found = []
    with opened(folder, source, **options) as writer:
        for item in open_items(writer.files, done=writer.done):
            found.append(item.key.name)
            writer.write(Result(item.key, item.image, item.error, [FACE], []), Written())
    return found


def table(folder: Path) -> pd.DataFrame:
    columns = ["file", "member", "frame", "face"]
    return pd.read_parquet(folder).sort_values(columns).reset_index(drop=True)


def test_a_row_holds_a_face_in_typed_columns_and_the_file_names_its_classes(photos, tmp_path):
    label(tmp_path / "a.parquet", photos / "0.png")
    (part,) = (tmp_path / "a.parquet").glob("*.parquet")
    columns = pq.read_schema(part)
    assert [str(columns.field(name).type) for name in ("left", "face")] == ["float", "int32"]
    label_type = columns.field("label").type  # older versions of pyarrow read wider indices
    assert pa.types.is_dictionary(label_type) and label_type.value_type == pa.string()
    assert json.loads(columns.metadata[b"class_names"]) == list(NAMES)
    assert json.loads(columns.metadata[b"settings"])["detect"] == "auto"
    (row,) = pq.read_table(part).to_pylist()
    assert row["file"] == str(photos / "0.png") and row["label"] == "sad" and row["face"] == 0
    assert [row[side] for side in ("left", "top", "right", "bottom")] == [1, 2, 3, 4]
    assert row["landmarks"] == [5, 6] * 5 and row["probabilities"] == [0.75, 0.25]
    assert row["error"] is None and row["bytes"] == (photos / "0.png").stat().st_size


def test_an_image_without_a_face_and_a_broken_one_are_rows_without_a_face(photos, tmp_path):
    (photos / "1.png").write_text("no image")
    with opened(tmp_path / "a.parquet", photos) as writer:
        for item in open_items(writer.files, done=writer.done):
            writer.write(Result(item.key, item.image, item.error, [], []), Written())
    rows = table(tmp_path / "a.parquet")
    assert rows["face"].isna().all() and rows["label"].isna().all()
    assert [bool(error) for error in rows["error"].notna()] == [False, True] + [False] * 4


def test_the_same_again_does_what_is_missing_or_has_changed(photos, tmp_path):
    out = tmp_path / "a.parquet"
    assert len(label(out, photos)) == 6 and label(out, photos) == []
    os.utime(photos / "3.png", (1, 1))
    (photos / "4.png").write_bytes((photos / "4.png").read_bytes() + b" ")
    Image.new("RGB", (9, 9)).save(photos / "new.png")
    assert label(out, photos) == ["3.png", "4.png", "new.png"] and label(out, photos) == []
    rows = table(out)
    assert len(rows) == 7 and rows["file"].is_unique
    assert rows["modified"][3].timestamp() == 1


def test_errors_are_counted_again_and_tried_again_where_the_file_is_not_to_blame(
    photos, tmp_path, monkeypatch
):
    out = tmp_path / "a.parquet"
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:50])
    reader = inputs.read_image

    def refuse(path, opened=None):
        if path.endswith("2.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        if path.endswith("3.png"):
            raise MemoryError
        return reader(path, opened)

    monkeypatch.setattr(inputs, "read_image", refuse)
    assert len(label(out, photos)) == 6
    assert table(out)["error"].notna().tolist() == [False, True, True, True, False, False]
    monkeypatch.undo()
    with opened(out, photos) as writer:  # it stops before these two are done
        assert [file.name for file in writer.files if not writer.done(file)] == ["2.png", "3.png"]
        assert (writer.skipped, writer.failed) == (4, 1)
    assert label(out, photos) == ["2.png", "3.png"] and label(out, photos) == []
    assert table(out)["error"].notna().tolist() == [False, True, False, False, False, False]


def test_other_settings_are_refused_until_it_begins_anew(photos, tmp_path):
    out = tmp_path / "a.parquet"
    label(out, photos)
    other = {"made": {"detect": "none"}}
    with pytest.raises(UserError, match='detect="auto", and now it is "none".*restart=true'):
        label(out, photos, **other)
    assert len(label(out, photos, restart=True, **other)) == 6 and len(table(out)) == 6


def test_rows_of_other_inputs_stay(photos, tmp_path):
    out = tmp_path / "a.parquet"
    assert label(out, photos / "0.png") == ["0.png"]
    assert label(out, photos / "*[01].png") == ["1.png"]
    assert len(table(out)) == 2


def test_a_folder_with_other_files_is_not_taken(photos, tmp_path):
    out = tmp_path / "a.parquet"
    out.mkdir()
    (out / "letters.txt").write_text("mine")
    for restart in (False, True):
        with pytest.raises(UserError, match="holds letters.txt"):
            label(out, photos, restart=restart)
    (tmp_path / "b.parquet").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        label(tmp_path / "b.parquet", photos)


def test_a_damaged_part_is_named(photos, tmp_path):
    out = tmp_path / "a.parquet"
    label(out, photos)
    (part,) = out.glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{part.name} is damaged"):
        label(out, photos)
    part.unlink()
    assert len(label(out, photos)) == 6


def test_two_processes_do_not_write_the_same(photos, tmp_path):
    out = tmp_path / "a.parquet"
    with opened(out, photos), pytest.raises(UserError, match="another process is writing"):
        label(out, photos)
    assert len(label(out, photos)) == 6


def test_shards_write_beside_each_other(photos, tmp_path):
    out, files = tmp_path / "a.parquet", files_of(str(photos))
    first, second = (
        Archive(out, shard.share(files), NAMES, None, {}, shard)
        for shard in (Shard(1, 2), Shard(2, 2))
    )
    with first, second:
        for pair in zip(*(open_items(w.files, done=w.done) for w in (first, second)), strict=True):
            for writer, item in zip((first, second), pair, strict=True):
                writer.write(Result(item.key, item.image, None, [FACE], []), Written())
    assert table(out)["file"].tolist() == [file.file for file in files]
    assert {path.name for path in out.glob("*.parquet")} == {
        "part-1-of-2-000000.parquet",
        "part-2-of-2-000000.parquet",
    }
    assert label(out, photos, made={}) == []  # done by whatever shards
    with pytest.raises(UserError, match="restart=true would let each shard delete"):
        opened(out, photos, shard=Shard(1, 2), restart=True)


def test_what_is_listed_twice_is_done_once(photos, tmp_path, caplog):
    (tmp_path / "list.txt").write_text("in/1.png\nin/2.png\nin/1.png\n")
    out = tmp_path / "a.parquet"
    assert label(out, tmp_path / "list.txt") == ["in/1.png", "in/2.png"]
    assert "listed twice: " in caplog.text


def test_rows_that_are_there_twice_are_taken_out(photos, tmp_path):
    """As when a file was added while shards were started, so that two took one for theirs."""
    out = tmp_path / "a.parquet"
    label(out, photos / "0.png", shard=Shard(1, 2))
    (part,) = out.glob("*.parquet")
    (out / "part-2-of-2-000000.parquet").write_bytes(part.read_bytes())
    assert len(table(out)) == 2
    assert len(label(out, photos)) == 5 and len(table(out)) == 6


def test_a_part_that_another_shard_takes_away_has_no_rows(photos, tmp_path, monkeypatch):
    out, parts = tmp_path / "a.parquet", Archive._parts
    label(out, photos / "0.png")
    gone = out / "part-1-of-2-000000.parquet"  # listed before it was emptied
    monkeypatch.setattr(Archive, "_parts", lambda archive: [gone, *parts(archive)])
    assert len(label(out, photos, shard=Shard(2, 2))) == 5


def test_a_webcam_is_recorded_once_and_kept_when_it_is_stopped(tmp_path):
    out, frame = tmp_path / "a.parquet", Key("webcam 0", "webcam-0", 0, 0.0)
    with pytest.raises(KeyboardInterrupt), opened(out, 0) as writer:
        writer.write(Result(frame, None, None, [FACE], []), Written())
        raise KeyboardInterrupt
    assert len(table(out)) == 1
    with pytest.raises(UserError, match="holds a recording of webcam 0"), opened(out, 0):
        pass
    with opened(out, 0, restart=True):
        pass
    assert not list(out.glob("*.parquet"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_a_film_that_was_stopped_in_the_middle_is_done_again(error, photos, tmp_path):
    film = FilmWriter(photos / "a.mp4", (32, 32))
    for number in range(8):
        film.add(Image.new("RGB", (32, 32), (9 * number, 0, 0)), number / 10)
    film.close()
    out = tmp_path / "a.parquet"
    with pytest.raises(error), opened(out, photos) as writer:
        for item in open_items(writer.files, done=writer.done):
            if item.key.frame == 5:
                raise error
            writer.write(Result(item.key, item.image, None, [FACE], []), Written())
    assert len(table(out)) == 6
    assert label(out, photos) == ["a.mp4"] * 8 and len(table(out)) == 14


def test_a_full_disk_is_a_sentence_and_loses_no_part(photos, tmp_path, monkeypatch):
    out = tmp_path / "a.parquet"
    label(out, photos / "0.png")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written .No space left on device"):
        label(out, photos)
    monkeypatch.undo()
    assert len(table(out)) == 1 and not list(out.glob(".*tmp"))
    assert len(label(out, photos)) == 5


def test_a_time_that_parquet_cannot_hold_is_no_error(photos, tmp_path):
    os.utime(photos / "0.png", (2**34, 2**34))  # the year 2514
    assert len(label(tmp_path / "a.parquet", photos)) == 6
    assert stamp(str(photos / "0.png"))[1] == 2**63 - 1
    assert label(tmp_path / "a.parquet", photos) == []


def test_names_that_are_not_utf_8_are_done_once(photos, tmp_path):
    os.rename(photos / "0.png", os.fsencode(photos) + b"/bad\xff.png")
    assert len(label(tmp_path / "a.parquet", photos)) == 6
    assert label(tmp_path / "a.parquet", photos) == []


KILLED = """
import json, os, random, signal, sys, time
import av, pandas, pyarrow.parquet, timm  # once, and not in each fork
from qcs.checkpoints import load
from qcs.inference import archive
from qcs.predict import predict

archive.SECONDS = 0  # a part for each image
config, chance = json.loads(sys.argv[1]), random.Random(int(sys.argv[2]))

def parts():
    return sum(n.startswith("part") for n in os.listdir("killed.parquet"))

def start(out):
    child = os.fork()
    if not child:
        predict(config | {"out": out})
        os._exit(0)
    return child

os.mkdir("killed.parquet")
assert os.waitpid(start("quiet.parquet"), 0)[1] == 0
for kill in range(10):
    child, before, more = start("killed.parquet"), parts(), kill and chance.randrange(1, 9)
    while parts() < before + more:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
assert os.waitpid(start("killed.parquet"), 0)[1] == 0
"""


def test_killed_ten_times_it_has_the_rows_of_a_quiet_run(tmp_path):
    tiny_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(120):
        pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{number}.png")
    (tmp_path / "in/broken.png").write_text("no image")
    film = FilmWriter(tmp_path / "in/a.mp4", (32, 32))
    for number in range(20):
        film.add(Image.new("RGB", (32, 32), (9 * number, 0, 0)), number / 10)
    film.close()
    config = settings(ckpt="model.ckpt", input="in", run_dir="run", batch_size=4)
    seed = int.from_bytes(os.urandom(2))
    command = [sys.executable, "-c", KILLED, json.dumps(config), str(seed)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, (seed, done.stderr)
    quiet, killed = table(tmp_path / "quiet.parquet"), table(tmp_path / "killed.parquet")
    assert len(quiet) == 141
    numbers = ["probability", "probabilities"]
    pd.testing.assert_frame_equal(quiet.drop(columns=numbers), killed.drop(columns=numbers))
    for name in numbers:
        np.testing.assert_allclose(
            np.stack(quiet[name].dropna()), np.stack(killed[name].dropna()), atol=1e-6
        )

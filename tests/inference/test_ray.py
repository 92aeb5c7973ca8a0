"""Ray does what one process does, on a cluster of two processors that starts and ends here."""

import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image
from test_predict import settings

from conftest import tiny_checkpoint
from qcs.config.errors import UserError
from qcs.inference import ray as cluster
from qcs.inference.crop import LOOSE
from qcs.inference.done import Done
from qcs.inference.sources import Source
from qcs.predict import predict

RUN = """
import json, sys
from qcs.predict import predict
print(json.dumps([predict(config)["images"] for config in json.loads(sys.argv[1])]))
"""


def on_ray(*configs: dict) -> list[int]:
    """Predict in a process of its own, and return how many images each run has read."""
    command = [sys.executable, "-c", RUN, json.dumps(configs)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (20, 10), (30 * i, 200 - 9 * i, 0)).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    with tarfile.open(folder / "more.tar", "w") as tar:
        for name in ("0.png", "1.png", "broken.png"):
            tar.add(folder / name, name)
    tiny_checkpoint(tmp_path / "model.ckpt")
    return folder


def rows(folder: Path) -> pd.DataFrame:
    found = pd.read_parquet(folder)
    return found.sort_values(["file", "member"]).reset_index(drop=True)


def on(engine: str, **options) -> dict:
    """The settings of a run with an engine."""
    ray = {"address": None, "photos": 4, "classifiers": None, "gpus": 1}
    return settings(engine=engine, ray=ray, workers="auto", **options)


def test_rows_are_those_of_one_process_and_only_what_is_missing_is_done(photos, tmp_path):
    pytest.importorskip("ray")
    given = {"ckpt": str(tmp_path / "model.ckpt"), "run_dir": str(tmp_path), "embeddings": True}
    out = {"out": str(tmp_path / "ray.parquet"), **given}
    assert predict(on("local", input=str(photos / "[0-3].png"), **out))["images"] == 4
    os.utime(photos / "3.png", (1, 1))
    config = on("ray", input=str(photos), **out)
    assert on_ray(config, config) == [10, 0]
    predict(on("local", input=str(photos), out=str(tmp_path / "here.parquet"), **given))
    here, there = rows(tmp_path / "here.parquet"), rows(tmp_path / "ray.parquet")
    assert len(here) == 13 and here["error"].notna().sum() == 3
    pd.testing.assert_frame_equal(here, there, atol=1e-6)


def test_what_ray_cannot_do_is_said_before_it_starts(photos, tmp_path, monkeypatch):
    config = on("ray", ckpt=str(tmp_path / "model.ckpt"), input=str(photos), run_dir="run")
    archive = {"out": str(tmp_path / "a.parquet")}
    for wrong, sentence in (
        ({}, "engine=ray writes Parquet and no pictures"),
        (archive | {"save_crops": True}, "without annotate and save_crops"),
        (archive | {"workers": 0}, "workers=0 leaves engine=ray no actor"),
    ):
        with pytest.raises(UserError, match=sentence):
            predict(config | wrong)
    (photos / "film.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="share films with shard"):
        predict(config | archive)
    (photos / "film.mp4").unlink()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"engine=ray needs `pip install -e '\.\[ray\]'`"):
        predict(config | archive)


def job(device: str | None) -> cluster.Job:
    network = {"path": None, "device": device, "form": "eager", "trust": None}
    return cluster.Job("", None, LOOSE, 1.0, network, 32, False)


@pytest.mark.parametrize(
    "device, resources, number, gpus, expected",
    [
        (None, {"CPU": 2}, None, 1, (1, 0, "cpu")),
        ("cpu", {"CPU": 40, "GPU": 1}, None, 1, (5, 0, "cpu")),
        (None, {"CPU": 40, "GPU": 3}, None, 0.5, (6, 0.5, "cuda")),
        ("cuda", {"CPU": 40, "GPU": 1}, 3, 0.25, (3, 0.25, "cuda")),
        ("cuda", {"CPU": 40, "GPU": 1}, 2, 1, "needs more GPUs than the 1"),
        ("cuda", {"CPU": 40}, None, 1, "needs more GPUs than the 0"),
    ],
)
def test_classifiers_get_the_gpus_that_are_there(device, resources, number, gpus, expected):
    keys: cluster.Settings = {"address": None, "photos": 1, "classifiers": number, "gpus": gpus}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            cluster._classifiers(resources, job(device), keys)
    else:
        found, each, told = cluster._classifiers(resources, job(device), keys)
        assert (found, each, told.network["device"]) == expected


def test_an_error_of_the_user_travels_as_an_answer(tmp_path):
    gone = job("cpu")._replace(folder=str(tmp_path / "gone"))
    given = cluster._table([UserError("a sentence")])
    for told, sentence in ((gone, "cannot enter"), (job("cpu")._replace(folder="."), "a sentence")):
        (answer,) = cluster._Classifier(told)(given)
        (error,) = map(pickle.loads, answer["pickled"].to_pylist())
        assert isinstance(error, UserError) and sentence in str(error)


def test_a_tar_that_is_listed_twice_is_read_once(caplog):
    photo, tar, other = (
        Source(name, name, kind)
        for name, kind in (("a.png", "image"), ("a.tar", "tar"), ("b.tar", "tar"))
    )
    archive = SimpleNamespace(files=[photo, tar, other, tar], done=Done())
    photos, work = cluster._missing(archive)
    assert photos == [photo] and [sources for sources, _ in work] == [[tar], [other]]
    assert "left out, as it is listed twice: a.tar" in caplog.text

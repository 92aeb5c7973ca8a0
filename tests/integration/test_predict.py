"""Faces in raw photos: found where they are, cut as the training crops were, and answered for."""

import csv
import json
import os
import tarfile
from collections import Counter

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from PIL import Image
from test_train import qcs

import qcs as package
from conftest import tiny_checkpoint
from qcs.config.errors import UserError
from qcs.inference import video
from qcs.inference.crop import CROPS, LOOSE, Crop, crop_of, cut, fit, measure
from qcs.inference.detector import Detector, decode
from qcs.inference.inputs import Item
from qcs.inference.sources import files_of
from qcs.inference.video import FilmWriter, film
from qcs.predict import _status, predict


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    """A real photo, 512 pixels, with one smiling face about (224, 118)."""
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="module")
def face(astronaut) -> Image.Image:
    return astronaut.crop((144, 38, 304, 198))


# -- finding -----------------------------------------------------------------------------


def _reference_decode(heat, scale, offset, points, threshold):
    """CenterFace's maps read in plain loops, without suppression."""
    faces = []
    for row, column in zip(*np.nonzero(heat[0] > threshold), strict=True):
        height, width = (4 * np.exp(scale[axis, row, column]) for axis in (0, 1))
        y, x = (4 * (n + offset[axis, row, column] + 0.5) for axis, n in ((0, row), (1, column)))
        limit_y, limit_x = (4 * n for n in heat.shape[1:])
        left, top = np.clip(x - width / 2, 0, limit_x), np.clip(y - height / 2, 0, limit_y)
        right, bottom = np.clip(x + width / 2, 0, limit_x), np.clip(y + height / 2, 0, limit_y)
        marks = [
            (
                points[2 * k + 1, row, column] * width + left,
                points[2 * k, row, column] * height + top,
            )
            for k in range(5)
        ]
        faces.append(([left, top, right, bottom], marks, heat[0, row, column]))
    return sorted(faces, key=lambda face: -face[2])


def test_maps_become_boxes_and_landmarks():
    rng = np.random.default_rng(0)
    heat = np.zeros((1, 20, 30), dtype=np.float32)
    heat[0, [3, 10, 18], [4, 20, 2]] = 0.9, 0.6, 0.8  # apart, one at the border
    scale, offset = (rng.normal(0.5, 0.3, (2, 20, 30)).astype(np.float32) for _ in range(2))
    points = rng.random((10, 20, 30), dtype=np.float32)
    boxes, landmarks, scores = decode(heat, scale, offset, points, 0.5)
    expected = _reference_decode(heat, scale, offset, points, 0.5)
    np.testing.assert_allclose(boxes, [e[0] for e in expected], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(landmarks, [e[1] for e in expected], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores, [e[2] for e in expected])


def test_a_face_is_found_where_it_is(detector, astronaut):
    (found,) = detector(astronaut)
    left, top, right, bottom = found.box
    assert 170 < left < 195 and 45 < top < 75 and 255 < right < 285 and 165 < bottom < 190
    assert abs(found.landmarks[:2] - [[203, 102], [247, 104]]).max() < 6  # eyes, seen by hand
    assert found.score > 0.8


def test_many_faces_small_and_tilted_are_found_largest_first(detector, face):
    scene = Image.fromarray(skimage.data.coffee()).resize((900, 600))
    places = {(20, 30): (160, 0), (400, 40): (110, 20), (700, 60): (70, -15), (100, 400): (90, 40)}
    for place, (size, angle) in places.items():
        turned = face.rotate(angle, Image.Resampling.BICUBIC)
        scene.paste(turned.resize((size, size), Image.Resampling.LANCZOS), place)
    found = detector(scene)
    centres = [(f.box[:2] + f.box[2:]) / 2 for f in found]
    assert len(found) == 4
    for (x, y), (size, _) in places.items():
        assert min(np.hypot(*(c - [x + size / 2, y + size / 2])) for c in centres) < size / 5
    sizes = [(f.box[2:] - f.box[:2]).prod() for f in found]
    assert sizes == sorted(sizes, reverse=True)
    assert not detector(Image.fromarray(skimage.data.coffee()))


def test_a_huge_photo_is_looked_at_reduced(detector, astronaut):
    (small,), (huge,) = detector(astronaut), detector(astronaut.resize((5120, 5120)))
    np.testing.assert_allclose(huge.box / 10, small.box, atol=8)
    assert Detector(longest=64)(astronaut) == []  # twelve pixels are too small a face


# -- cutting -----------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0, 20, -25])
@pytest.mark.parametrize("name", ["rafdb", "ferplus"])
def test_landmarks_of_a_crop_are_where_the_data_set_has_them(name, angle, detector, astronaut):
    turned = astronaut.rotate(angle, Image.Resampling.BICUBIC, center=(224, 118))
    crop = CROPS[name]
    found = max(detector(turned), key=lambda f: f.score)
    image = cut(turned, found.landmarks, crop._replace(size=200))
    again = max(detector(image), key=lambda f: f.score).landmarks / 200
    tilt = np.degrees(np.angle((again[1] - again[0]) @ [1, 1j]))
    assert abs(tilt + (0 if crop.level else angle)) < 6
    if crop.level or angle == 0:
        assert np.abs(again - crop.landmarks).max() < 0.09


def test_the_fit_is_a_similarity_and_exact_where_it_can_be():
    crop = Crop(CROPS["rafdb"].landmarks, level=True)
    a, b = 0.01 * np.exp(0.6j), 0.3 - 0.2j
    photo = (np.array(crop.landmarks) @ [1, 1j] - b) / a
    found = fit(np.stack([photo.real, photo.imag], axis=1), crop)
    np.testing.assert_allclose(found, (a, b), rtol=1e-10)
    tilted = fit(np.stack([photo.real, photo.imag], axis=1), crop._replace(level=False))
    assert tilted[0] == pytest.approx(a)  # 34 degrees are beyond what such data sets hold
    photo = photo * np.exp(0.3j)  # 17 degrees are left as they are
    tilted = fit(np.stack([photo.real, photo.imag], axis=1), crop._replace(level=False))
    assert tilted[0] == pytest.approx(0.01)


def test_a_crop_has_the_size_and_colours_of_its_data_set(astronaut, detector):
    landmarks = detector(astronaut)[0].landmarks
    small = cut(astronaut, landmarks, CROPS["ferplus"])
    pixels = np.asarray(small)
    assert small.size == (48, 48) and np.ptp(pixels, axis=2).max() == 0
    assert np.ptp(np.asarray(cut(astronaut, landmarks, LOOSE)), axis=2).max() > 50


def test_beyond_the_border_the_edge_is_repeated(astronaut, detector):
    found = detector(astronaut)[0]
    near = astronaut.crop((190, 80, 512, 512))  # through the forehead and the cheek
    inside = np.asarray(cut(astronaut, found.landmarks, LOOSE), dtype=int)
    beyond = np.asarray(cut(near, found.landmarks - [190, 80], LOOSE), dtype=int)
    assert inside.shape == beyond.shape and beyond[0].max() > 0
    half = len(inside) // 2
    assert np.abs(inside - beyond)[half:, half:].mean() < 1
    assert (beyond[:3] == beyond[0]).mean() > 0.9  # rows above the photo are alike


def test_how_crops_were_cut_is_measured(detector, astronaut):
    crop = Crop(((0.35, 0.38), (0.65, 0.38), (0.5, 0.55), (0.38, 0.7), (0.62, 0.7)), True, 96)
    images = []
    for angle in range(-30, 31, 5):
        photo = astronaut.rotate(angle, Image.Resampling.BICUBIC, center=(224, 118))
        images.append(cut(photo, max(detector(photo), key=lambda f: f.score).landmarks, crop))
    found = measure(images, detector)
    assert found.level and found.size == 96 and not found.grey
    assert np.abs(np.array(found.landmarks) - crop.landmarks).max() < 0.06
    with pytest.raises(UserError, match="a face was found in 0 of the images"):
        measure([Image.new("RGB", (64, 64))] * 12, detector)


def test_the_crop_follows_the_checkpoint_unless_told_otherwise(tmp_path):
    recipe = {"dataset": {"name": "rafdb"}}
    assert crop_of(recipe)[0] == CROPS["rafdb"]
    assert crop_of(recipe, "ferplus")[0] == CROPS["ferplus"]
    other = {"dataset": {"name": "image_folder"}}
    assert crop_of(other)[0] == LOOSE and "not known" in crop_of(other)[1]
    with pytest.raises(UserError, match="nor a folder of training faces"):
        crop_of(recipe, str(tmp_path / "nowhere"))


# -- predicting --------------------------------------------------------------------------


def test_two_lines_of_python(tmp_path, astronaut):
    astronaut.save(tmp_path / "photo.png")
    tiny_checkpoint(tmp_path / "model.ckpt")
    predictor = package.load(tmp_path / "model.ckpt")
    inputs = [
        tmp_path / "photo.png",
        astronaut,
        np.asarray(astronaut),
        np.zeros((64, 64), np.uint8),
    ]
    results = predictor.predict(inputs)
    assert [len(faces) for faces in results] == [1, 1, 1, 0]
    (prediction,) = results[0]
    for (other,) in results[1:3]:
        assert (other.label, other.box) == (prediction.label, prediction.box)
        assert other.probability == pytest.approx(prediction.probability, abs=1e-6)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.probability == max(prediction.probabilities.values())
    assert list(prediction.probabilities) == ["red", "green", "blue"]
    assert predictor.predict(str(tmp_path / "photo.png"))[0][0].box == prediction.box
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), tmp_path / "no.png"):
        with pytest.raises(UserError, match="an image of shape|cannot read"):
            predictor.predict([wrong])


def test_cut_faces_are_classified_as_by_the_network_itself(tmp_path, faces):
    tiny_checkpoint(tmp_path / "model.ckpt")
    predictor = package.load(tmp_path / "model.ckpt")
    predictor.batch_size = 4  # several batches
    images = [faces.image(row) for row in range(11)]
    found = predictor.predict(images, detect=False)
    with torch.inference_mode():
        batch = torch.stack([predictor.transform(image) for image in images])
        expected = predictor.network(batch).double().softmax(1)
    got = torch.tensor([list(one[0].probabilities.values()) for one in found], dtype=torch.double)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert found[0][0].box is None


def test_a_stream_is_answered_in_order_and_in_batches(tmp_path, faces, monkeypatch):
    tiny_checkpoint(tmp_path / "model.ckpt")
    predictor = package.load(tmp_path / "model.ckpt")
    predictor.batch_size = 4
    read = []

    def items():
        for key in range(10):
            read.append(key)
            image = None if key == 2 else faces.image(key)
            yield Item(key, image, None if image else "broken")

    seen = [(result.key, result.error, len(read)) for result in predictor.stream(items(), False)]
    assert [key for key, *_ in seen] == list(range(10)) and seen[2][1] == "broken"
    assert seen[0][2] == 5 and seen[5][2] == 9  # four faces each, one image has none
    monkeypatch.setattr("qcs.inference.predictor.MAX_WAITING", 800)  # two of these images
    read.clear()
    assert [len(read) for _ in predictor.stream(items(), False)][:2] == [2, 2]


def test_embeddings_are_the_features_of_the_base_branch(tmp_path, faces):
    predictor = package.load(tiny_checkpoint(tmp_path / "model.ckpt"))
    predictor.batch_size = 4
    images = [faces.image(row) for row in range(6)]
    found = predictor.predict(images, detect=False, embeddings=True)
    with torch.inference_mode():
        batch = torch.stack([predictor.transform(image) for image in images])
        expected = predictor.network.base(batch)[1].numpy()
    assert found.embeddings.shape == (6, 16) and found.embeddings.dtype == np.float16
    np.testing.assert_allclose(found.embeddings, expected, atol=2e-3)
    plain = predictor.predict(images, detect=False)
    assert [one[0].label for one in plain] == [one[0].label for one in found]
    with pytest.raises(UserError, match="embeddings=True"):
        _ = plain.embeddings
    nothing = predictor.predict(Image.new("RGB", (99, 99)), embeddings=True)
    assert nothing == [[]] and nothing.embeddings.shape == (0, 16)
    assert list(nothing.to_pandas()) == list(found.to_pandas())


def test_a_table_of_faces_in_python(tmp_path, astronaut):
    astronaut.save(tmp_path / "photo.png")
    predictor = package.load(tiny_checkpoint(tmp_path / "model.ckpt"))
    blank = Image.new("RGB", (99, 99))
    found = predictor.predict([blank, str(tmp_path / "photo.png"), astronaut])
    table = found.to_pandas()
    assert table["image"].tolist() == [1, 2] and table["face"].tolist() == [0, 0]
    assert table["file"][0] == str(tmp_path / "photo.png") and pandas.isna(table["file"][1])
    face, row = found[1][0], table.iloc[0]
    assert (row["label"], row["probability"]) == (face.label, face.probability)
    assert tuple(row[["left", "top", "right", "bottom"]]) == face.box
    assert (row["nose_x"], row["nose_y"]) == face.landmarks[2]
    assert row[["p_red", "p_green", "p_blue"]].tolist() == list(face.probabilities.values())


TIMES = (0, 0.2, 0.4, 0.6, 1.1, 1.2)  # of the frames of a film


@pytest.fixture(scope="module")
def photos(tmp_path_factory, astronaut, face):
    """A folder as users have them, and a checkpoint beside it."""
    top = tmp_path_factory.mktemp("photos")
    folder = top / "in"
    (folder / "older").mkdir(parents=True)
    tiny_checkpoint(top / "model.ckpt", "ferplus")
    astronaut.save(folder / "one.jpg", quality=95)
    exif = Image.Exif()
    exif[274] = 6  # taken with the camera turned
    astronaut.rotate(90, expand=True).save(
        folder / "older" / "gedreht ü.jpg", exif=exif, quality=95
    )
    two = Image.new("RGB", (400, 200), "grey")
    two.paste(face, (20, 20))
    two.paste(face, (220, 20))
    two.save(folder / "two.png")
    Image.fromarray(skimage.data.coffee()).save(folder / "coffee.webp")
    (folder / "broken.jpg").write_bytes((folder / "one.jpg").read_bytes()[:9000])
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("left out")
    clip = FilmWriter(folder / "clip.mp4", astronaut.size)
    for shift, seconds in enumerate(TIMES):
        moved = np.roll(np.asarray(astronaut), 4 * shift, axis=1)
        clip.add(Image.fromarray(moved), seconds)
    clip.close()
    (folder / "broken.mp4").write_text("not a video")
    return top


def test_a_folder_is_answered_file_by_file(photos):
    options = ["ckpt=model.ckpt", "input=in", "annotate=true", "save_crops=true", "every=2"]
    done = qcs("predict", *options, "hydra.run.dir=out", cwd=photos, ok=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "left out of in: 1 files" in done.stdout
        and "the way the FERPlus data set crops them" in done.stdout
    )
    lines = (photos / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {}
    for row in map(json.loads, lines):
        rows.setdefault(row["file"].removeprefix("in/"), []).append(row)
    assert "not an image" in rows["text.png"][0]["error"]
    assert "truncated" in rows["broken.jpg"][0]["error"]
    assert "cannot read in/broken.mp4 as a video" in rows["broken.mp4"][0]["error"]
    assert rows["coffee.webp"][0]["note"] == "no face found"
    assert [row["face"] for row in rows["two.png"]] == [0, 1]
    upright, turned = rows["one.jpg"][0], rows["older/gedreht ü.jpg"][0]
    np.testing.assert_allclose(upright["box"], turned["box"], atol=6)
    assert [row["frame"] for row in rows["clip.mp4"]] == [0, 2, 4]
    assert [row["seconds"] for row in rows["clip.mp4"]] == [0, 0.4, 1.1]
    moved = rows["clip.mp4"][2]["box"][0] - rows["clip.mp4"][0]["box"][0]
    assert 10 < moved < 22  # sixteen pixels
    assert set(upright["landmarks"]) == {
        "left_eye",
        "right_eye",
        "nose",
        "mouth_left",
        "mouth_right",
    }
    crop = Image.open(photos / "out/crops/older/gedreht ü.jpg-0.png")
    assert crop.size == (48, 48)
    drawn = np.asarray(Image.open(photos / "out/annotated/two.png"), dtype=int)
    difference = np.abs(drawn - np.asarray(Image.open(photos / "in/two.png"), dtype=int)).sum(2) > 0
    assert difference[:, :200].any() and difference[:, 200:].any() and difference.mean() < 0.3
    drawn = film(photos / "out" / rows["clip.mp4"][0]["annotated"])
    assert [round(frame.seconds, 3) for frame in drawn] == [0, 0.4, 1.1]
    for name in ("text.png", "broken.jpg", "broken.mp4"):
        assert f"cannot read in/{name}" in done.stdout


def test_a_table_of_cut_faces(photos):
    options = ["ckpt=model.ckpt", "input=in/*o*.*g", "detect=none", "out=table.csv"]
    qcs("predict", *options, "hydra.run.dir=cut", cwd=photos, ok=False)  # broken.jpg is among them
    with (photos / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"in/one.jpg", "in/two.png", "in/broken.jpg"}
    row = rows["in/one.jpg"]
    shares = [float(row[f"p_{name}"]) for name in ("red", "green", "blue")]
    assert sum(shares) == pytest.approx(1, abs=1e-5) and row["left"] == row["error"] == ""
    assert (
        float(row["probability"]) == max(shares) and "truncated" in rows["in/broken.jpg"]["error"]
    )


def test_inputs(photos, tmp_path):
    folder = photos / "in"
    assert [file.name for file in files_of(f"{folder}/**/*.jpg")] == [
        "broken.jpg",
        "older/gedreht ü.jpg",
        "one.jpg",
    ]
    both = files_of([str(folder / "one.jpg"), str(folder / "older")])
    assert [file.name for file in both] == ["one.jpg", "gedreht ü.jpg"]
    for nothing in (str(tmp_path), f"{folder}/*.gif"):
        with pytest.raises(UserError, match="holds no image or video"):
            files_of(nothing)
    with pytest.raises(UserError, match="nothing to read at input="):
        files_of(str(tmp_path / "nowhere.jpg"))


def settings(**options) -> dict:
    """Those of conf/predict.yaml."""
    config = {"out": None, "detect": "none", "crop": None, "threshold": 0.5, "longest": 1280}
    config |= {"smallest": 12, "batch_size": 32, "form": "eager", "device": "cpu", "every": 1}
    config |= {"engine": "local"}
    config |= {"path_column": "path", "shard": None, "restart": False, "embeddings": False}
    config |= {"workers": 0, "timeout": 120.0}
    config |= {"track": False, "smooth": 0.5, "causal": False, "gap": 1.0}
    return config | {"max_frames": None, "annotate": False, "save_crops": False} | options


@pytest.mark.parametrize("workers", [0, 2])
def test_an_odd_file_is_one_record_and_named_on_the_console(workers, tmp_path, caplog):
    """Names of 254 bytes, or none of UTF-8, a strip, a pipe, a broken link; and one good photo."""
    tiny_checkpoint(tmp_path / "model.ckpt", "synthetic")
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"good.png", b"n" * 250 + b".png", b"bad\xff.png", b"=red\x1b[31m.png"):
        Image.new("RGB", (20, 20)).save(folder / os.fsdecode(name))
    Image.new("L", (1, 80_000)).save(folder / "strip.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    drawn = settings(annotate=True, save_crops=True, run_dir=str(tmp_path / "run"))
    drawn["workers"] = workers
    counts = predict(drawn | {"ckpt": str(tmp_path / "model.ckpt"), "input": str(folder)})
    assert (counts["images"], counts["faces"], counts["errors"]) == (7, 5, 2)
    lines = (tmp_path / "run/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["file"].removeprefix(f"{folder}/"): row for row in map(json.loads, lines)}
    assert len(rows) == 7 and rows["=red\x1b[31m.png"]["label"]
    assert all((tmp_path / "run" / os.fsencode(row["crop"]).decode()).is_file()
               for name, row in rows.items() if "crop" in row and "bad" not in name)  # fmt: skip
    assert {name for name, row in rows.items() if "error" in row} == {"pipe.png", "gone.jpg"}
    assert f"cannot read {folder}/pipe.png" in caplog.text and "\x1b" not in caplog.text
    assert "trained on drawn faces" in caplog.text


def test_results_land_where_the_user_stands_and_overwrite_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("a.png")
    tiny_checkpoint(tmp_path / "model.ckpt")
    config = settings(ckpt="model.ckpt", input="a.png", run_dir="run", out="faces.csv")
    predict(config)
    assert (tmp_path / "faces.csv").is_file()
    (tmp_path / "list.csv").write_text("path\na.png\n")
    before = (tmp_path / "model.ckpt").read_bytes()
    config |= {"input": ["a.png", "list.csv"]}
    refused = {
        "a.png": "no .png",
        "model.ckpt": "no .ckpt",
        "list.csv": "overwrite",
        ".": "written",
    }
    for place, reason in refused.items():
        with pytest.raises(UserError, match=reason):
            predict(config | {"out": place})
    assert (tmp_path / "list.csv").read_text() == "path\na.png\n"
    assert (tmp_path / "model.ckpt").read_bytes() == before
    assert Image.open("a.png").size == (20, 20)


def rows_of(folder) -> list[dict]:
    return pq.read_table(folder).to_pylist()


def test_an_archive_has_the_rows_of_the_json_lines_and_embeddings(photos, tmp_path):
    given = {"ckpt": str(photos / "model.ckpt"), "input": str(photos / "in"), "detect": "auto"}
    config = settings(**given, embeddings=True, run_dir=str(tmp_path), every=2)
    counts = predict(config)
    assert predict(config | {"out": str(tmp_path / "a.parquet")}) == counts
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for line, row in zip(map(json.loads, lines), rows_of(tmp_path / "a.parquet"), strict=True):
        for key in ("file", "frame", "seconds", "face", "label", "error"):
            assert line.get(key) == row[key]
        if "label" in line:
            box = [row[side] for side in ("left", "top", "right", "bottom")]
            assert line["box"] == pytest.approx(box, abs=0.06)
            marks = [x for point in line["landmarks"].values() for x in point]
            assert marks == pytest.approx(row["landmarks"], abs=0.06)
            shares = list(line["probabilities"].values())
            assert shares == pytest.approx(row["probabilities"], abs=1e-5)
            assert line["embedding"] == pytest.approx(row["embedding"], rel=1e-3)
            assert len(line["embedding"]) == 16
    again = predict(config | {"out": str(tmp_path / "a.parquet")})
    assert +again == {"errors": counts["errors"]}  # the files that could not be read before
    with pytest.raises(UserError, match="made with embeddings=true, and now it is false"):
        predict(config | {"out": str(tmp_path / "a.parquet"), "embeddings": False})
    with pytest.raises(UserError, match="no place in a CSV"):
        predict(config | {"out": str(tmp_path / "a.csv")})


def test_shards_of_any_output_do_not_clash(tmp_path):
    ckpt = str(tiny_checkpoint(tmp_path / "model.ckpt"))
    (tmp_path / "in").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"in/{number}.png")
    config = settings(ckpt=ckpt, input=str(tmp_path / "in"), run_dir=str(tmp_path))
    for out in ("a.jsonl", "a.parquet"):
        parts = [predict(config | {"out": str(tmp_path / out), "shard": f"{n}/2"}) for n in (1, 2)]
        assert [part["images"] for part in parts] == [3, 2]
    files = [tmp_path / f"a-{n}-of-2.jsonl" for n in (1, 2)]
    lines = [json.loads(x) for file in files for x in file.read_text().splitlines()]
    named = [
        sorted(row["file"] for row in rows) for rows in (lines, rows_of(tmp_path / "a.parquet"))
    ]
    assert named[0] == named[1] == sorted(map(str, (tmp_path / "in").iterdir()))
    assert not predict(config | {"out": str(tmp_path / "a.parquet"), "shard": "9/99"})["images"]


def test_a_broken_file_is_a_status_but_stops_no_other_rank_of_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    given = [{}, {"errors": 2}, {"errors": 2, "stopped": 143}]
    assert [_status(Counter(counts)) for counts in given] == [0, 1, 143]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert [_status(Counter(counts)) for counts in given] == [0, 0, 143]


def test_pictures_of_a_tar_stay_in_the_runs_folder(photos, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("../../evil.png", "two.png"):
            tar.add(photos / "in/two.png", name)
    config = settings(ckpt=str(photos / "model.ckpt"), input=str(tmp_path / "s.tar"))
    run = tmp_path / "deep/er/run"
    config |= {"run_dir": str(run), "out": str(tmp_path / "a.parquet"), "annotate": True}
    assert predict(config | {"save_crops": True})["errors"] == 0
    written = {str(path.relative_to(run)) for path in run.rglob("*.png")}
    assert written >= {"annotated/s.tar/evil.png", "annotated/s.tar/two.png"}
    assert not list(tmp_path.glob("*.png")) + list((tmp_path / "deep").glob("*.png"))
    rows = rows_of(tmp_path / "a.parquet")
    assert [row["member"] for row in rows] == ["../../evil.png", "two.png"]
    assert all((tmp_path / row["crop"]).is_file() for row in rows)


def test_a_list_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("a.png")
    (tmp_path / "list.csv").write_text("path\na.png\n")
    config = settings(ckpt=str(tiny_checkpoint(tmp_path / "m.ckpt")), run_dir="run")
    for given in ("list.csv", ["list.csv"]):
        with pytest.raises(UserError, match="would overwrite list.csv"):
            predict(config | {"input": given, "out": "list.csv"})
    with pytest.raises(UserError, match=r"write out=faces\.parquet"):
        predict(config | {"input": "list.csv", "out": "faces/"})


@pytest.mark.parametrize("out", ["faces.xls", "labelled.jpg", "faces.csv.gz"])
def test_a_format_that_is_not_written_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("a.png")
    with pytest.raises(UserError, match=r"no \.(xls|jpg|gz) is written; name a \.csv, \.jsonl or"):
        predict(settings(ckpt=None, input="a.png", out=out, run_dir="run"))
    assert not (tmp_path / out).exists()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[faces\]'"):
        Detector()


# -- films with persons ------------------------------------------------------------------


@pytest.fixture(scope="module")
def meeting(tmp_path_factory, face):
    """A film of two persons who walk past each other, at uneven times, and a checkpoint."""
    folder = tmp_path_factory.mktemp("meeting")
    tiny_checkpoint(folder / "model.ckpt", "ferplus")
    small = face.resize((96, 96))
    writer = FilmWriter(folder / "film.mp4", (352, 224))
    for number in range(13):
        seconds = 0.1 * number + 0.05 * (number % 2)
        frame = Image.new("RGB", (352, 224), "grey")
        frame.paste(small, (round(240 * seconds / 1.25), 8))
        frame.paste(small, (240 - round(240 * seconds / 1.25), 118))
        writer.add(frame, seconds)
    writer.close()
    return folder


def test_persons_of_a_film_are_in_the_records_a_table_a_timeline_and_the_film(meeting, capsys):
    run = meeting / "run"
    options = settings(detect="auto", track=True, annotate=True, run_dir=str(run))
    films = [str(meeting / "film.mp4")] * 2
    counts = predict(options | {"ckpt": str(meeting / "model.ckpt"), "input": films})
    assert (counts["images"], counts["errors"]) == (26, 0)
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for start in (0, 1):  # of either film
        faces = [row for row in lines[start * len(lines) // 2 :][: len(lines) // 2] if "box" in row]
        assert len(faces) > 20 and {row["person"] for row in faces} == {1, 2}
        for row in faces:  # one walks above, the other below
            assert (row["box"][1] < 112) == (
                row["person"] == next(f["person"] for f in faces if f["box"][1] < 112)
            )
    with (run / "persons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["person"] for row in rows] == ["1", "2", "1", "2"]
    shares = [sum(float(row[f"share_{n}"]) for n in ("red", "green", "blue")) for row in rows]
    assert shares == pytest.approx([1] * 4, abs=1e-3)
    assert all(float(row["last_seen"]) > 1.2 for row in rows)
    assert sorted(p.name for p in (run / "timelines").iterdir()) == ["1-film.png", "2-film.png"]
    assert "seen" in capsys.readouterr().out
    drawn = list(film(run / "annotated/film.mp4"))
    assert [f.seconds for f in drawn] == pytest.approx(
        [f.seconds for f in film(meeting / "film.mp4")], abs=1e-3
    )


def test_persons_are_followed_through_a_webcam(meeting, tmp_path, monkeypatch):
    camera = {"file": str(meeting / "film.mp4")}
    monkeypatch.setattr(video, "_camera", lambda av, number: camera)
    given = {"ckpt": str(meeting / "model.ckpt"), "run_dir": str(tmp_path), "input": 0}
    more = {"detect": "auto", "track": True, "annotate": True, "max_frames": 4}
    assert predict(settings(**given, **more))["errors"] == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert {(row["file"], row["person"]) for row in lines} == {("webcam 0", 1), ("webcam 0", 2)}
    assert (tmp_path / "timelines/1-webcam-0.png").is_file()
    assert len(list(film(tmp_path / "annotated/webcam-0.mp4"))) == 4


def test_a_stopped_archive_of_films_sums_up_all_and_a_shard_may_have_no_film(meeting, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((meeting / "film.mp4").read_bytes())
    given = {"ckpt": str(meeting / "model.ckpt"), "out": str(tmp_path / "faces.parquet")}
    given |= {"detect": "auto", "track": True, "max_frames": 3, "every": 3}
    runs = [
        (["a.mp4"], {"shard": "1/2"}, 3),
        (["a.mp4"], {"shard": "2/2"}, 0),
        (["a.mp4", "b.mp4"], {}, 3),
    ]
    for number, (names, more, frames) in enumerate(runs):
        films = [str(tmp_path / name) for name in names]
        run = settings(input=films, run_dir=str(tmp_path / f"{number}"), **given, **more)
        assert predict(run)["images"] == frames
    with (tmp_path / "2/persons.csv").open(newline="") as file:
        rows = [list(row.values())[1:] for row in csv.DictReader(file)]
    assert len(rows) == 4 and rows[:2] == rows[2:] and {row[0] for row in rows} == {"1", "2"}
    assert len(list((tmp_path / "2/timelines").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "detect", "reason"),
    [("photo.png", "auto", "names none"), ("film.mp4", "none", "leave detect=none out")],
)
def test_what_cannot_be_followed_is_said(name, detect, reason, meeting, monkeypatch):
    monkeypatch.chdir(meeting)
    Image.new("RGB", (20, 20)).save("photo.png")
    config = settings(detect=detect, track=True, run_dir="none", ckpt="model.ckpt", input=name)
    with pytest.raises(UserError, match=reason):
        predict(config)

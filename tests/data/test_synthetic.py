"""The synthetic faces: pure drawing, disjoint identities, a set that is whole or absent."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.data.sources import synthetic
from qcs.data.sources.synthetic import EXPRESSIONS, draw_face, make, read

COUNTS = {"train": 3, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("synthetic") / "set", size=32, **COUNTS)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_same_arguments_same_face() -> None:
    first = draw_face(5, 2, "Fear", size=48, seed=3)
    assert np.array_equal(first, draw_face(5, 2, "Fear", size=48, seed=3))
    for other in (
        draw_face(5, 2, "Fear", size=48, seed=4),
        draw_face(6, 2, "Fear", size=48, seed=3),
        draw_face(5, 3, "Fear", size=48, seed=3),
        draw_face(5, 2, "Anger", size=48, seed=3),
    ):
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [32, 128, 200])
def test_sizes(size: int) -> None:
    face = draw_face(1, 0, "Happiness", size=size)
    assert face.shape == (size, size, 3)
    assert face.dtype == np.uint8
    assert face.std() > 10


def test_every_person_can_be_drawn() -> None:
    for identity in range(60):
        face = draw_face(identity, 1, EXPRESSIONS[identity % 7], size=32, seed=9)
        assert 5 < face.mean() < 250


def test_unknown_expression() -> None:
    with pytest.raises(UserError, match="unknown expression 'Joy'; choose from Surprise, Fear"):
        draw_face(0, 0, "Joy")


def test_what_is_not_expression_does_not_depend_on_the_class() -> None:
    """Above the face and in its corners, noise included, all classes have the same pixels."""
    for identity in range(12):
        faces = [draw_face(identity, 4, expression, size=64) for expression in EXPRESSIONS]
        for face in faces[1:]:
            assert np.array_equal(face[:6], faces[0][:6])
            assert np.array_equal(face[:20, :3], faces[0][:20, :3])
            assert not np.array_equal(face, faces[0])


def test_counts_and_files(made: Path) -> None:
    counts = Counter((row["split"], row["label"]) for row in rows(made))
    expected = {(split, label): n for split, n in COUNTS.items() for label in EXPRESSIONS}
    assert counts == expected
    for row in rows(made):
        with Image.open(made / row["path"]) as image:
            assert image.size == (32, 32)
            assert image.mode == "RGB"
    assert "SYNTHETIC" in (made / "README.txt").read_text(encoding="utf-8")


def test_splits_share_no_identity(made: Path) -> None:
    people: dict[str, set[str]] = {}
    for row in rows(made):
        people.setdefault(row["split"], set()).add(Path(row["path"]).stem.split("-")[1])
    assert {split: len(ids) for split, ids in people.items()} == COUNTS
    assert len(set.union(*people.values())) == sum(COUNTS.values())


def test_second_call_draws_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "draw_face", None)
    assert make(made) == made


def test_killed_run_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-made drafts are not taken for the set, and a failed run removes its own."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    leftover = tmp_path / ".set-0.part" / "images"
    leftover.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_face", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "set", size=32, train=1, val=1, test=1)
    assert [path.name for path in tmp_path.iterdir()] == [".set-0.part"]
    make(tmp_path / "set", size=32, train=1, val=1, test=1)
    assert len(rows(tmp_path / "set")) == 21


def test_loser_of_a_race_uses_the_winners_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = synthetic._publish

    def late(draft: Path, folder: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(synthetic, "_publish", publish)
            make(folder, size=32, train=1, val=1, test=1)
        (folder / "winner").touch()
        publish(draft, folder)

    monkeypatch.setattr(synthetic, "_publish", late)
    folder = make(tmp_path / "set", size=32, train=1, val=1, test=1)
    assert (folder / "winner").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="is not empty and has no manifest.csv"):
        make(tmp_path)


def test_processes_draw_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_IMAGES_PER_WORKER", 20)
    folder = make(tmp_path / "set", size=32, workers=2, **COUNTS)
    assert rows(folder) == rows(made)
    for row in rows(folder):
        assert (folder / row["path"]).read_bytes() == (made / row["path"]).read_bytes()


def test_read_names_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    manifest = read(seed=2, size=32, train=2, val=1, test=1)
    assert tuple(manifest.class_names) == EXPRESSIONS
    name = f"synthetic-v{synthetic.VERSION}-s2-32px-2-1-1"
    assert (tmp_path / "qcs" / name / "manifest.csv").is_file()

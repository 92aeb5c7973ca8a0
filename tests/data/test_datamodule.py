"""Manifests, sources, transforms and loaders on small made-up copies of the real layouts."""

import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qcs.config.errors import UserError
from qcs.data import transforms, workers
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.data.sources import ferplus, image_folder

VOTES = {  # the ten votes of a row -> label, or None where it is dropped
    "4,0,0,1,3,2,0,0,0,0": None,  # 4 of 9 that count: no majority
    "5,1,1,1,1,1,0,0,0,0": 0,  # single votes are dropped
    "0,5,5,0,0,0,0,0,0,0": None,  # half is not more than half
    "0,0,0,0,0,0,6,0,4,0": 6,
    "1,0,0,0,0,0,0,0,9,0": None,  # unknown wins
    "0,1,0,0,0,0,0,0,0,9": None,  # not a face wins
    "0,10,0,0,0,0,0,0,0,0": 1,
}


def make_ferplus(root: Path) -> Path:
    for folder in ferplus.FOLDERS:
        target = root / "data" / folder
        target.mkdir(parents=True)
        rows = [f'fer{i}.png,"(0, 0, 48, 48)",{votes}' for i, votes in enumerate(VOTES)]
        rows.append(',"(0, 0, 48, 48)",10,0,0,0,0,0,0,0,0,0')  # no image
        (target / "label.csv").write_text("\n".join(rows) + "\n")
        for i in range(len(VOTES)):
            Image.fromarray(np.full((48, 48), i, dtype=np.uint8)).save(target / f"fer{i}.png")
    return root


@pytest.mark.parametrize("layout", ["folder", "enclosed", "zip"])
def test_ferplus_in_each_layout(layout, tmp_path):
    root = make_ferplus(tmp_path / "x" / "FERPlus")
    if layout == "enclosed":
        root = tmp_path / "x"
    if layout == "zip":
        root = tmp_path / "ferplus.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for file in (tmp_path / "x").rglob("*.*"):
                archive.write(file, file.relative_to(tmp_path / "x"))
    manifest = ferplus.read(str(root))
    train = manifest.split("train")
    assert train.labels.tolist() == [y for y in VOTES.values() if y is not None]
    assert np.array(train.image(0)).tolist() == np.full((48, 48, 3), 1).tolist()  # fer1.png
    assert len(manifest.split("val")) == len(manifest.split("test")) == 3
    assert not ferplus.read(str(root), train_on_val=True).has("val")
    copy = pickle.loads(pickle.dumps(train))
    assert np.array_equal(np.array(copy.image(1)), np.array(train.image(1)))


def _reference(votes: list[int]) -> int:
    kept = [v if v > 1 else 0 for v in votes]
    best = kept.index(max(kept))
    return best if kept[best] * 2 > sum(kept) and best < 8 else -1


def test_majority_matches_plain_loops():
    votes = np.random.default_rng(0).multinomial(10, [0.4, 0.2] + [0.05] * 8, size=500)
    assert ferplus.majority(votes).tolist() == [_reference(row) for row in votes.tolist()]


def test_ferplus_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="dataset.path is not set: FERPlus"):
        ferplus.read()
    with pytest.raises(UserError, match="FER2013Train/label.csv"):
        ferplus.read(str(tmp_path))
    root = make_ferplus(tmp_path / "FERPlus")
    (root / "data/FER2013Test/fer1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 9 images .*FER2013Test/fer1.png"):
        ferplus.read(str(root))
    (root / "data/FER2013Test/label.csv").write_text("a,b,c\n")
    with pytest.raises(UserError, match="not the owners' table"):
        ferplus.read(str(root))


def make_folder(root: Path, *folders: str, number: int = 10) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(number):
            Image.new("L", (9, 9), i).save(root / folder / f"{i}.png")
        (root / folder / "notes.txt").touch()
    return root


def test_image_folder_with_splits(tmp_path):
    names = [f"{s}/{c}" for s in ("train", "valid", "test") for c in ("sad", "happy")]
    manifest = image_folder.read(str(make_folder(tmp_path, *names)))
    assert manifest.class_names == ("happy", "sad")
    assert manifest.split("val").counts().tolist() == [10, 10]


def test_image_folder_of_one_level_is_split_by_seed(tmp_path):
    root = make_folder(tmp_path, "sad", "happy")
    one, same, other = (image_folder.read(str(root), seed=s) for s in (0, 0, 1))
    assert one.split("test").counts().tolist() == [2, 2]
    assert one.split("train").counts().tolist() == [8, 8]
    assert one.splits.tolist() == same.splits.tolist() != other.splits.tolist()


def test_image_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no images"):
        image_folder.read(str(tmp_path))
    make_folder(tmp_path, "train/sad", "train/happy", "test/angry")
    with pytest.raises(UserError, match="of the class 'angry', which the training folder"):
        image_folder.read(str(tmp_path))


@pytest.mark.parametrize(
    "text,sentence",
    [
        ("path,label\na,b\n", "lacks the column"),
        ("path,label,split\na.png,angry,train\nb.png,x,train\n", "label 'x'"),
        ("path,label,split\na.png,sad,dev\n", "line 2 .* the label 'sad' and the split 'dev'"),
        ("path,label,split\n", "no rows"),
    ],
)
def test_a_bad_table_is_one_sentence(text, sentence, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        Manifest.from_csv(tmp_path / "table.csv", class_names=["sad", "angry"])


def test_a_label_out_of_range_names_the_classes(tmp_path):
    with pytest.raises(UserError, match="labels run from 0 to 2, but there are 2 classes"):
        Manifest.build(tmp_path, [("a", 0, "train"), ("b", 2, "train")], ["x", "y"])


def test_an_unreadable_image_is_named(faces):
    (faces.root / faces.paths[4]).write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"cannot read image {faces.paths[4]}"):
        faces.image(4)


def test_the_training_images_are_the_same_for_all_variants(faces):
    few = [module(faces, roles=r, train_images=9, num_workers=0).train for r in (1, 2, 4)]
    assert len({tuple(f.paths.tolist()) for f in few}) == 1 and len(few[0]) == 9
    with pytest.raises(UserError, match="loader.train_images=5000 must be from 1 to the"):
        module(faces, train_images=5000)


def test_evaluation_resizes_crops_the_centre_and_normalises():
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (5, 5, 15, 15))
    got = transforms.evaluation(size=10, resize=20, mean=(0.5,) * 3, std=(0.5,) * 3)(image)
    torch.testing.assert_close(got, torch.ones(3, 10, 10))
    with pytest.raises(UserError, match="augment.std need three numbers"):
        transforms.evaluation(10, std=(0.2, 0.2, 0.0))
    with pytest.raises(UserError, match="resize=8 is smaller than size=10"):
        transforms.evaluation(10, 8)


def test_training_transform_applies_each_option():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    plain = {"flip": 0.0, "jitter": (0, 0, 0, 0), "erase": 0.0}
    still = transforms.training(20, **plain)(image)
    torch.testing.assert_close(still, transforms.evaluation(20)(image))
    changes = ({"flip": 1.0}, {"rotation": 45.0}, {"jitter": (0.9, 0, 0, 0)}, {"erase": 1.0})
    for change in changes:
        assert not torch.equal(transforms.training(20, **plain | change)(image), still)
    assert torch.equal(transforms.training(20, **plain | {"flip": 1.0})(image), still.flip(-1))
    assert transforms.training(16, resize=20, **plain)(image).shape == (3, 16, 16)


def module(manifest: Manifest, **options) -> FaceDataModule:
    augment = transforms.training(16, 20, rotation=20)
    return FaceDataModule(
        manifest, augment, transforms.evaluation(16), batch_size=8, eval_batch_size=4, **options
    )


def test_batches_are_the_same_for_any_number_of_workers(faces):
    seen = []
    for number in (0, 2):
        loader = module(faces, num_workers=number).train_dataloader()
        for epoch in (0, 1):
            loader.batch_sampler.sampler.set_epoch(epoch)
            seen.append(torch.cat([b["images"] for b in loader]))
    torch.testing.assert_close(seen[0], seen[2], atol=0, rtol=0)
    torch.testing.assert_close(seen[1], seen[3], atol=0, rtol=0)
    assert not torch.equal(seen[0], seen[1])


def told(**options) -> SimpleNamespace:
    """What of a trainer the data module asks for."""
    default = {"global_rank": 0, "world_size": 1, "overfit_batches": 0.0}
    return SimpleNamespace(**{**default, "num_training_batches": 5, **options})


def test_an_epoch_of_fewer_batches_is_done_when_they_are(faces):
    """The next one begins with its own first batch, after a resume as well."""
    data = module(faces, num_workers=0)
    data.trainer = told(num_training_batches=3)
    batches, done = iter(data.train_dataloader()), []
    for _ in range(3):
        next(batches)
        done.append(data.state_dict()["done"])
    assert done == [1, 2, 0]


def test_batches_to_overfit_are_those_of_the_first_epoch(faces):
    rows = {}
    for name, number in (("all", 0.0), ("some", 4)):
        data = module(faces, num_workers=0)
        data.trainer = told(overfit_batches=number)
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.batch_sampler.sampler.set_epoch(epoch)
            rows[name, epoch] = torch.cat([b["rows"] for b in loader])
    assert torch.equal(rows["some", 0], rows["some", 1])
    assert not torch.equal(rows["all", 0], rows["all", 1])


def test_batches_are_groups_and_the_last_partial_one_is_kept(faces):
    batches = list(module(faces, num_workers=0).train_dataloader())
    assert [len(b["labels"]) for b in batches] == [8, 8, 8, 8, 4]
    assert batches[0]["images"].shape == (8, 4, 3, 16, 16)
    labels = torch.cat([b["labels"] for b in batches])
    assert (labels[:, 0] == labels[:, 1]).all() and (labels[:, 1] != labels[:, 2]).all()


@pytest.mark.parametrize("by", ["image", "batch"])
def test_images_may_be_in_several_groups_of_their_batch(by, faces):
    options = {"batch_size": 8, "num_workers": 0, "groups_per_image": 2}
    change = transforms.training(16, 20, by=by)
    data = FaceDataModule(faces, change, transforms.evaluation(16), **options)
    batches = list(data.train_dataloader())
    assert [len(b["images"]) for b in batches] == [8, 8, 8, 8, 4]
    assert [len(b["labels"]) for b in batches] == [16, 16, 16, 16, 8]
    batch = batches[0]
    assert torch.equal(batch["rows"][:8].flatten()[batch["groups"]], batch["rows"])
    assert torch.equal(torch.from_numpy(data.train.labels)[batch["rows"]], batch["labels"])
    with pytest.raises(UserError, match="groups_per_image=2 must be 1 or more, and 1 where"):
        FaceDataModule(faces, change, change, roles=1, **options)


def test_fetching_leaves_the_loops_random_numbers_alone(faces):
    loader = module(faces, num_workers=0).train_dataloader()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    next(iter(loader))
    assert torch.rand(1) == expected


def test_what_validation_runs_on(faces):
    bare = faces.select(faces.splits != "val")
    held = module(bare, num_workers=0, val_fraction=0.25)
    assert len(held.train) == 27 and len(held.val_dataloader().dataset) == 9
    for choice in ("test", "last"):
        assert len(module(bare, num_workers=0, select_on=choice).train) == 36
    test = module(faces, num_workers=0, select_on="test").val_dataloader()
    assert test.dataset.manifest.splits.tolist() == ["test"] * 9
    assert module(faces, num_workers=0, select_on="last").val_dataloader() == []


def test_what_is_missing_is_said_before_training(faces, caplog):
    bare = faces.select(faces.splits == "train")
    with pytest.raises(UserError, match="no test images to select on: write select_on=val"):
        module(bare, num_workers=0, select_on="test")
    one_each = bare.select(np.array([0, 12, 24]))
    with pytest.raises(UserError, match="no validation images, and no class has the two training"):
        module(one_each, num_workers=0)
    with pytest.raises(UserError, match="has no train images, only val, test"):
        module(faces.select(faces.splits != "train"), num_workers=0)
    module(faces.select((faces.splits != "train") | (faces.labels != 2)), num_workers=0)
    assert "no training image of blue: the network cannot learn it" in caplog.text


@pytest.mark.parametrize("select_on", ["val", "last", "test"])
def test_more_processes_than_images_are_refused(select_on, faces):
    few = np.flatnonzero(faces.splits == "test")[:4]
    data = module(faces, num_workers=0, select_on=select_on)
    data.require_images_for(9)
    with pytest.raises(UserError, match="10 processes cannot share the 9 test images"):
        data.require_images_for(10)
    some = faces.select(np.r_[np.flatnonzero(faces.splits != "test"), few])
    data = module(some, num_workers=0, select_on=select_on)
    with pytest.raises(UserError, match="write trainer.devices=4 or less"):
        data.require_images_for(5)


def test_a_batch_is_measured_where_shared_memory_is_scarce(faces, monkeypatch):
    data = module(faces, num_workers=2)
    group = 4 * 3 * 16 * 16 * 4  # bytes of four images
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 4 * 8 * group)
    data.train_dataloader()
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 4 * 8 * group - 1)
    with pytest.raises(UserError, match="write loader.num_workers=0"):
        data.train_dataloader()
    data.val_dataloader()
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 1000)
    with pytest.raises(UserError, match="shared memory"):
        data.val_dataloader()
    module(faces, num_workers=0).val_dataloader()

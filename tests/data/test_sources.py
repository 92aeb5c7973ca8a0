"""Every layout in which data sets come, on tiny copies; each fault is one sentence."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qcs.config.errors import UserError
from qcs.data.manifest import Manifest
from qcs.data.sources import affectnet, fer2013, ferplus, image_folder, lists, rafdb

BOM = b"\xef\xbb\xbf"


def picture(path: Path, grey: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)
    return path


def write(path: Path, *lines: str, crlf: bool = False, bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ("\r\n" if crlf else "\n").join([*lines, ""])
    path.write_bytes((BOM if bom else b"") + text.encode())
    return path


def split_labels(manifest: Manifest, split: str) -> list[int]:
    return manifest.split(split).labels.tolist()


# -- RAF-DB -----------------------------------------------------------------------------


def official_rafdb(root: Path, **style: bool) -> Path:
    names = [f"train_{i:05d}.jpg {i}" for i in range(1, 8)]
    write(root / rafdb.LIST, *names, "test_0001.jpg 7", "", "test_0002.jpg 1", **style)
    for name in [*(f"train_{i:05d}" for i in range(1, 8)), "test_0001", "test_0002"]:
        picture(root / f"Image/aligned/{name}_aligned.jpg")
        picture(root / f"Image/original/{name}.jpg", size=(40, 30))
        write(root / f"Annotation/boundingbox/{name}_boundingbox.txt", "5.0 6.2 25.0 28.9")
    return root


@pytest.mark.parametrize("style", [{}, {"crlf": True, "bom": True}])
@pytest.mark.parametrize("above", [".", "basic"])
def test_rafdb_as_its_owner_publishes_it(style, above, tmp_path):
    official_rafdb(tmp_path / above, **style)
    manifest = rafdb.read(str(tmp_path))
    assert split_labels(manifest, "train") == list(range(7))
    assert split_labels(manifest, "test") == [6, 0]
    assert manifest.class_names[0] == "Surprise" and manifest.class_names[6] == "Neutral"
    assert manifest.image(0).size == (12, 10)


def test_rafdb_original_photographs_are_cut_to_the_official_boxes(tmp_path):
    manifest = rafdb.read(str(official_rafdb(tmp_path)), images="original")
    assert manifest.image(3).size == (20, 23)
    assert manifest.split("test").boxes.tolist() == [[5, 6, 25, 29]] * 2


def repackaged_rafdb(root: Path) -> Path:
    for split in ("train", "test"):
        rows = [f"{split} é {i}.jpg,{i}" for i in range(1, 8)]  # a blank, and not ASCII
        write(root / f"{split}_labels.csv", "image,label", *rows, bom=True)
        for i in range(1, 8):
            picture(root / f"{split}/{i}/{split} é {i}.jpg")
    return root


def test_rafdb_repackaged(tmp_path):
    manifest = rafdb.read(str(repackaged_rafdb(tmp_path)))
    assert split_labels(manifest, "train") == split_labels(manifest, "test") == list(range(7))
    assert manifest.image(0).mode == "RGB"


def test_rafdb_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="RAF-DB is expected as"):
        rafdb.read(str(tmp_path))
    root = official_rafdb(tmp_path / "raf")
    table = root / rafdb.LIST
    original = table.read_text()
    for line, sentence in {
        "train_00009.jpg 8": "line 2 has the label '8', expected a whole number from 1 to 7",
        "train_00009.jpg": "line 2 is 'train_00009.jpg', expected a name",
        "other_1.jpg 3": "line 2 names 'other_1.jpg', expected train_",
        "train_00009.jpg 3": r"1 of 10 images .*train_00009_aligned.jpg \(.* line 2\)",
        "train_00001.jpg 3": "line 2 lists .*train_00001_aligned.jpg .* than line 1",
    }.items():
        lines = original.splitlines()
        table.write_text("\n".join([lines[0], line, *lines[1:]]))
        with pytest.raises(UserError, match=sentence):
            rafdb.read(str(root))
    table.write_text("")
    with pytest.raises(UserError, match="is empty"):
        rafdb.read(str(root))
    table.write_text(original)
    write(root / "Annotation/boundingbox/train_00001_boundingbox.txt", "1 2 three")
    with pytest.raises(UserError, match="does not hold four numbers"):
        rafdb.read(str(root), images="original")
    with pytest.raises(UserError, match="dataset.images=original needs the official"):
        rafdb.read(str(repackaged_rafdb(tmp_path / "kaggle")), images="original")


def test_repeated_rows_are_dropped_and_counted(tmp_path, caplog):
    root = official_rafdb(tmp_path)
    table = root / rafdb.LIST
    table.write_text(table.read_text() + "train_00001.jpg 1\n")
    assert len(rafdb.read(str(root))) == 9
    assert "dropped 1 repeated rows" in caplog.text


# -- FER2013 and FERPlus from Kaggle's tables ---------------------------------------------

USAGES = ["Training", "Training", "PublicTest", "PrivateTest"]


def kaggle(path: Path, layout: str = "fer2013.csv", pixels: int = 2304) -> Path:
    rows = []
    for i, usage in enumerate(USAGES):
        numbers = '"' + " ".join(str((i + j) % 256) for j in range(pixels)) + '"'
        rows.append(f"{i},{numbers},{usage}" if layout == "fer2013.csv" else
                    f"{i},{usage},{numbers}")  # fmt: skip
    header = "emotion,pixels,Usage" if layout == "fer2013.csv" else "emotion, Usage, pixels"
    return write(path / layout, header, *rows)


@pytest.mark.parametrize("layout", fer2013.TABLES)
@pytest.mark.parametrize("given", ["file", "folder"])
def test_fer2013_tables(layout, given, tmp_path):
    table = kaggle(tmp_path, layout)
    manifest = fer2013.read(str(table if given == "file" else tmp_path))
    assert manifest.splits.tolist() == ["train", "train", "val", "test"]
    assert manifest.labels.tolist() == [0, 1, 2, 3] and manifest.class_names[3] == "Happy"
    expected = (3 + np.arange(2304)) % 256
    assert np.array_equal(np.array(manifest.image(3))[..., 1].ravel(), expected)


def test_a_pixel_table_is_read_in_place_whatever_its_length(tmp_path, monkeypatch):
    table = kaggle(tmp_path)
    table.write_bytes(table.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    manifest = fer2013.read(str(table))
    assert [np.array(manifest.image(i))[0, 0, 0] for i in range(4)] == [0, 1, 2, 3]


def test_fer2013_tables_say_what_is_wrong(tmp_path):
    table = kaggle(tmp_path, pixels=9)
    manifest = fer2013.read(str(table))
    with pytest.raises(UserError, match="line 2 .*does not hold 2304 numbers"):
        manifest.image(0)
    table.write_text(table.read_text().replace("\n2,", "\n7,"))
    with pytest.raises(UserError, match="line 4 has the label '7', expected .* from 0 to 6"):
        fer2013.read(str(table))
    table.write_text(table.read_text()[:-12])
    with pytest.raises(UserError, match="line 5 is cut short"):
        fer2013.read(str(table))
    write(table, "a,b")
    with pytest.raises(UserError, match="line 1 is 'a,b', expected emotion,pixels,Usage"):
        fer2013.read(str(table))


def test_fer2013_folders(tmp_path):
    for name in ("train/angry/Training_1", "train/happy/Training_2", "test/happy/PublicTest_3",
                 "test/angry/PrivateTest_4", "test/angry/mine"):  # fmt: skip
        picture(tmp_path / f"{name}.jpg")
    manifest = fer2013.read(str(tmp_path))
    found = dict(zip([Path(p).stem for p in manifest.paths], manifest.splits, strict=True))
    assert found == {"Training_1": "train", "Training_2": "train", "PublicTest_3": "val",
                     "PrivateTest_4": "test", "mine": "test"}  # fmt: skip
    assert set(manifest.labels.tolist()) == {0, 3}
    picture(tmp_path / "train/bored/x.jpg")
    with pytest.raises(UserError, match="bored', which is not one of the classes angry"):
        fer2013.read(str(tmp_path))


VOTES = ["8,0,0,2,0,0,0,0,0,0", "0,6,4,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,0,9", "5,5,0,0,0,0,0,0,0,0"]


def kaggle_ferplus(root: Path) -> Path:
    kaggle(root)
    header = (
        "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    )
    rows = [f"{u},fer{i}.png,{v}" for i, (u, v) in enumerate(zip(USAGES, VOTES, strict=True))]
    write(root / ferplus.VOTES, header, *rows, crlf=True)
    return root


def test_ferplus_from_kaggles_pixels(tmp_path):
    root = str(kaggle_ferplus(tmp_path))
    majority, argmax = (ferplus.read(root, labels=rule) for rule in ("majority", "argmax"))
    assert majority.paths.tolist() == ["line 2", "line 3"] and majority.labels.tolist() == [0, 1]
    assert argmax.paths.tolist() == ["line 2", "line 3", "line 5"]
    soft = ferplus.read(root, labels="probability").targets
    np.testing.assert_allclose(soft[0, [0, 3]], [1, 0])  # 8 of 10 are three quarters
    np.testing.assert_allclose(soft[1, [1, 2]], [0.6, 0.4])
    np.testing.assert_allclose(soft[2, [0, 1]], [0.5, 0.5])
    assert majority.image(1).size == (48, 48)


def test_ferplus_soft_targets_to_train_on_and_the_majority_to_measure_on(tmp_path, monkeypatch):
    root = str(kaggle_ferplus(tmp_path))
    soft, probability = (ferplus.read(root, labels=r) for r in ("soft", "probability"))
    assert soft.paths.tolist() == ["line 2", "line 3"]  # line 5, a test image, has no majority
    np.testing.assert_array_equal(soft.targets, probability.targets[:2])
    monkeypatch.setattr(ferplus.fer2013, "USAGES", dict.fromkeys(USAGES, "test"))
    measured = ferplus.read(root, labels="soft")
    assert measured.paths.tolist() == ["line 2", "line 3"] and measured.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(measured.targets, np.eye(8)[:2])  # of the majority


def test_half_a_zip_is_one_sentence(tmp_path):
    (tmp_path / "ferplus.zip").write_bytes(b"PK" + bytes(100))
    with pytest.raises(UserError, match="is not a whole zip file .*copy it again"):
        ferplus.read(str(tmp_path / "ferplus.zip"))


def test_a_pixel_table_with_an_endless_cell_is_one_sentence(tmp_path):
    table = kaggle(tmp_path)
    table.write_bytes(table.read_bytes() + b"1," + b"7 " * 100_000)
    with pytest.raises(UserError, match="line 6: field larger than field limit"):
        fer2013.read(str(table))


def test_ferplus_tables_that_do_not_belong_together(tmp_path):
    root = kaggle_ferplus(tmp_path)
    votes = root / ferplus.VOTES
    votes.write_text(votes.read_text().replace("PublicTest", "Training"))
    with pytest.raises(UserError, match="does not belong to .* part at line 4"):
        ferplus.read(str(root))
    votes.unlink()
    with pytest.raises(UserError, match="no table at .*fer2013new.csv"):
        ferplus.read(str(root))


def probability_reference(votes: list[int]) -> list[float]:
    """The owners' loop, written out."""
    votes = [v if v > 1 else 0 for v in votes]
    total, part, count, valid, out = sum(votes), 0, 0, True, [0] * 10
    while part < 0.75 * total and count < 3 and valid:
        top = max(votes)
        for i in range(10):
            if votes[i] == top:
                out[i], votes[i] = top, 0
                part, count = part + top, count + 1
                if i >= 8:
                    valid = False
                    if sum(out) > top:
                        out[i], count = 0, count - 1
                    break
    if sum(out) <= 0.5 * total or count > 3 or int(np.argmax(out)) >= 8:
        return [0.0] * 8
    return [v / sum(out[:8]) for v in out[:8]]


def test_soft_labels_follow_the_owners_loop():
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, rng.dirichlet(np.full(10, 0.5), 500).mean(0), 300)
    votes = np.concatenate(
        [votes, rng.multinomial(10, [0.3, 0.3, 0.2, 0, 0, 0, 0, 0, 0.1, 0.1], 300)]
    )
    expected = [probability_reference(row) for row in votes.tolist()]
    np.testing.assert_allclose(ferplus.probability(votes), expected)
    assert 100 < np.any(expected, axis=1).sum() < 600


# -- AffectNet ----------------------------------------------------------------------------


def affectnet_tables(root: Path, headed: bool = True) -> Path:
    lines = {"training": [], "validation": []}
    for name, rows in lines.items():
        for label in range(11):
            image = f"{name[0]}{label}/face {label}.jpg"
            picture(root / "Manually_Annotated_Images" / image, size=(60, 50))
            sub = image.replace("/", "\\") if label == 3 else image
            rows.append(f"{sub},5,6,20,30,1;2;3,{label},0.1,0.2")
        header = ",".join(affectnet.COLUMNS)
        keep = [header] if headed or name == "training" else []
        write(root / f"Manually_Annotated_file_lists/{name}.csv", *keep, *rows)
    return root


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("classes", [7, 8])
def test_affectnet_tables(classes, headed, tmp_path):
    root = affectnet_tables(tmp_path, headed)
    manifest = affectnet.read(str(root), classes=classes)
    assert split_labels(manifest, "train") == split_labels(manifest, "test") == [*range(classes)]
    assert manifest.class_names == affectnet.CLASS_NAMES[:classes]
    assert manifest.image(3).size == (20, 30)
    assert affectnet.read(str(root), crop=False).image(0).size == (60, 50)


def test_affectnet_numpy_annotations(tmp_path):
    for folder in ("train_set", "val_set"):
        (tmp_path / folder / "annotations").mkdir(parents=True)
        for label in range(8):
            picture(tmp_path / folder / f"images/{label}.jpg")
            note = np.array(str(label)) if label % 2 else np.array([label])
            np.save(tmp_path / folder / f"annotations/{label}_exp.npy", note)
    manifest = affectnet.read(str(tmp_path), classes=7)
    assert split_labels(manifest, "train") == split_labels(manifest, "test") == [*range(7)]
    note = tmp_path / "val_set/annotations/3_exp.npy"
    np.save(note, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="3_exp.npy is not a numpy annotation"):
        affectnet.read(str(tmp_path))
    np.save(note, np.array("12"))
    with pytest.raises(UserError, match="3_exp.npy has the label '12'"):
        affectnet.read(str(tmp_path))
    note.unlink()
    with pytest.raises(UserError, match=r"3.jpg has no annotation"):
        affectnet.read(str(tmp_path))


def test_affectnet_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no training.csv and no train_set/"):
        affectnet.read(str(tmp_path))
    table = affectnet_tables(tmp_path) / "Manually_Annotated_file_lists/validation.csv"
    original = table.read_text()
    for old, new, sentence in (
        (",2,0.1", ",two,0.1", "line 4 has the label 'two'"),
        ("face 1.jpg,5,", "face 1.jpg,NULL,", "line 3 has the face box NULL,6,20,30"),
        ("face 1.jpg,5,", "face 1.jpg,inf,", "line 3 has the face box inf,6,20,30"),
        ("face 0.jpg,5,6", "face 0.jpg,5", "line 2 has 8 cells and the header 9"),
        ("v0/face 0", "v0/face 9", "1 of 7 images .*v0/face 9.jpg"),
        ("expression", "emotion", "line 1 lacks the column 'expression'"),
    ):
        table.write_text(original.replace(old, new))
        with pytest.raises(UserError, match=sentence):
            affectnet.read(str(tmp_path))
    table.write_text(original.replace("face 0.jpg,5,6,20,30", "face 0.jpg,500,6,20,30"))
    with pytest.raises(UserError, match="its face box 500,6,520,36 lies outside its 60x50"):
        affectnet.read(str(tmp_path)).split("test").image(0)


# -- lists and tables of the user ---------------------------------------------------------


def test_lists_with_backslashes_blanks_and_labels_from_one(tmp_path):
    for name in ("a b/ä 1.jpg", "a b/2.jpg", "c.jpg"):
        picture(tmp_path / name)
    write(tmp_path / "train.txt", "a b\\ä 1.jpg 1", "./a b/2.jpg\t2", "", crlf=True, bom=True)
    write(tmp_path / "test.txt", "c.jpg 2")
    options = {"class_names": ["sad", "glad"], "label_base": 1}
    manifest = lists.read(str(tmp_path), **options)
    assert manifest.paths.tolist() == ["a b/ä 1.jpg", "a b/2.jpg", "c.jpg"]
    assert manifest.labels.tolist() == [0, 1, 1] and manifest.image(0).size == (12, 10)
    with pytest.raises(UserError, match="train.txt line 2 has the label .2., expected .* 0 to 1"):
        lists.read(str(tmp_path), class_names=["sad", "glad"])
    with pytest.raises(UserError, match="dataset.class_names is not set"):
        lists.read(str(tmp_path))
    with pytest.raises(UserError, match="no list dataset.test=x.txt"):
        lists.read(str(tmp_path), test="x.txt", **options)


@pytest.mark.parametrize(
    "content,sentence",
    [
        (b"path,label,split\na.png,x,train\nb.png,x,train,7\n", "line 3 has 4 cells"),
        (b"path,label,split\na.png,x,train\nz.png,y,train\n", r"z.png \(.*line 3\)"),
        (b"path,label,split\na.png,x,train\na.png,y,train\n", "line 3 lists a.png .* line 2"),
        (b"path,label,split\na.png,x,train\n\xff\xfe,y,train\n", "line 3 is not UTF-8"),
        (b"  \n", "is empty"),
        (b"path,label,split\na.png,x,train\n" + b"x" * 200_000, "line 3 is not a line of a CSV"),
    ],
)
def test_a_users_table_names_the_line(content, sentence, tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        Manifest.from_csv(tmp_path / "t.csv")


def test_a_manifest_is_written_and_read_again(faces, tmp_path):
    faces.to_csv(tmp_path / "again.csv")
    again = Manifest.from_csv(tmp_path / "again.csv", faces.root, faces.class_names)
    for column in ("paths", "labels", "splits"):
        assert np.array_equal(getattr(again, column), getattr(faces, column))


@pytest.mark.parametrize("read", [rafdb.read, affectnet.read, image_folder.read])
def test_a_zip_that_is_not_read_in_place_is_refused(read, tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(UserError, match="nothing to read at"):
        read(str(tmp_path / "x.zip"))


@pytest.mark.parametrize(
    "content",
    [
        b"path;label;split\r\na.png;x;train\r\nb.png;y;test\r\n",
        b"path\tlabel\tsplit\ra.png\tx\ttrain\rb.png\ty\ttest",
        "\ufeffpath,label,split\na.png,x,train\nb.png,y,test\n".encode("utf-16-le"),
        b"\xef\xbb\xbfPath, Label ,SPLIT\n\na.png, x,Training\n./b.png,y , test\n\n",
        b"path,label,split\na.png,x,train\nb.png,y,test\nb.png,y,test\n",
    ],
)
def test_a_users_table_in_other_dress(content, tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "t.csv").write_bytes(content)
    manifest = Manifest.from_csv(tmp_path / "t.csv")
    assert manifest.class_names == ("x", "y")
    assert list(zip(manifest.paths, manifest.splits, strict=True)) == [
        ("a.png", "train"),
        ("b.png", "test"),
    ]


@pytest.mark.parametrize(
    "content,sentence",
    [
        (b"path,label,split\n", "has a header and no rows"),
        (b"path,label\na.png,x\n", "lacks the column 'split'"),
        (b"path,label,label,split\na.png,x,y,train\n", "has twice the column 'label'"),
        (b"path,label,split\na.png,x,train\na.png,X ,train\n", "line 3 .*'X' and line 2 'x'"),
        (b"path,label,split\na.png,,train\n", "line 2 has the path 'a.png', the label ''"),
        (b"path,label,split\na.png,x,later\n", "the split 'later'"),
        (b"path,label,split\nA.png,x,train\n", "line 2.*'a.png' differs by capitals"),
        (b"path,label,split\n../a.png,x,train\n", r"the first is ../a.png \(.*line 2"),
        (b"path,label,split\na\0/b.png,x,train\n", "not below"),
        ("path,label,split\nü.png,x,train\n".encode("latin-1"), "line 2 is not UTF-8"),
    ],
)
def test_what_a_users_table_lacks_is_a_sentence(content, sentence, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        Manifest.from_csv(tmp_path / "t.csv")


def test_labels_are_matched_to_class_names_without_case_and_blanks(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    write(tmp_path / "t.csv", "path,label,split", "a.png,anger,train", "b.png,Anger ,train",
          f"{tmp_path}/c.png,0 ,test")  # fmt: skip
    manifest = Manifest.from_csv(tmp_path / "t.csv", class_names=["Anger", 0])
    assert manifest.class_names == ("Anger", "0") and manifest.labels.tolist() == [0, 0, 1]
    assert manifest.image(2).size == (12, 10)
    with pytest.raises(UserError, match="differ by more than capitals"):
        Manifest.from_csv(tmp_path / "t.csv", class_names=["Anger", "anger ", 0])


def test_cells_that_are_formulas_are_written_as_text_and_read_again(tmp_path):
    names = ("=cmd|x", "@sum", "-1", 'a,"b"\n<script>')
    files = ["=1+1.png", "-x.png", "+ü\n.png", "a,\u2028b.png"]
    for name in files:
        picture(tmp_path / name)
    rows = [(name, i, "train") for i, name in enumerate(files)]
    Manifest.build(tmp_path, rows, names).to_csv(tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text()
    assert "./=1+1.png,'=cmd|x,train" in text and "\n=" not in text and ",=" not in text
    again = Manifest.from_csv(tmp_path / "t.csv", class_names=names)
    assert again.paths.tolist() == files and again.class_names == names
    assert again.labels.tolist() == [0, 1, 2, 3]


def test_a_table_of_images_in_a_zip(tmp_path):
    picture(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "deep/a.png")
        archive.write(tmp_path / "a.png", "../out.png")
    rows = ["path,label,split", "deep/a.png,x,train", "../out.png,y,test"]
    table = write(tmp_path / "in/t.csv", *rows)
    manifest = Manifest.from_csv(table, tmp_path / "x.zip")
    assert manifest.image(0).size == manifest.image(1).size == (12, 10)
    assert not (tmp_path / "out.png").exists()
    write(table, *rows, "b.png,x,train")
    with pytest.raises(UserError, match=r"1 of 3 images are not in .*b.png \(.*line 4"):
        Manifest.from_csv(table, tmp_path / "x.zip")
    with pytest.raises(UserError, match="nothing at dataset.root"):
        Manifest.from_csv(table, tmp_path / "y.zip")


# -- class folders ------------------------------------------------------------------------


def test_split_folders_in_capitals_and_junk_are_no_classes(tmp_path, caplog):
    for name in ("Train/Sad/1.JPG", "Train/glad/2.jfif", "TEST/sad /3.png", "Validation/Glad/4.png",
                 "__MACOSX/Train/sad/5.png", "Train/@eaDir/6.png", "Train/.git/7.png",
                 "Train/Sad/._1.png", "Train/__pycache__/8.png"):  # fmt: skip
        path = tmp_path / name
        picture(path.with_suffix(".png")).rename(path)
    write(tmp_path / "Train/Sad/desktop.ini", "x")
    write(tmp_path / "Train/notes/readme.md", "x")
    picture(tmp_path / "Train/loose.png")
    picture(tmp_path / "extra/sad/9.png")
    manifest = image_folder.read(str(tmp_path))
    assert manifest.class_names == ("Sad", "glad")
    assert manifest.paths.tolist() == [
        "TEST/sad /3.png",
        "Train/Sad/1.JPG",
        "Train/glad/2.jfif",
        "Validation/Glad/4.png",
    ]
    assert manifest.splits.tolist() == ["test", "train", "train", "val"]
    assert manifest.labels.tolist() == [0, 0, 1, 1]
    assert "1 files that are no images (readme.md)" in caplog.text
    assert "2 images (loose.png, 9.png)" in caplog.text
    assert "without an image: 1 folders (notes)" in caplog.text
    assert "desktop.ini" not in caplog.text and "._1" not in caplog.text


def test_linked_class_folders_are_followed(tmp_path):
    for name in ("pool/a/1.png", "pool/a/deep/2.png", "pool/b/3.png"):
        picture(tmp_path / name)
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train/a").symlink_to(tmp_path / "pool/a")
    (tmp_path / "set/train/b").symlink_to(tmp_path / "pool/b")
    (tmp_path / "pool/b/ring").symlink_to(tmp_path / "set")
    (tmp_path / "set/test").symlink_to(tmp_path / "set/train")
    manifest = image_folder.read(str(tmp_path / "set"))
    assert manifest.splits.tolist() == ["test"] * 3 + ["train"] * 3
    assert manifest.paths.tolist()[3:] == ["train/a/1.png", "train/a/deep/2.png", "train/b/3.png"]


@pytest.mark.parametrize(
    "names,sentence",
    [
        (["train/Sad/1.png", "train/sad /2.png"], "'Sad' and 'sad ', which differ by capitals"),
        (["test/a/1.png", "b/2.png"], "has images in test and none in train"),
        (["train/a/1.png", "train/b/1.png", "test/c/2.png"], "class 'c', which .* does not have"),
        (["a/readme.txt"], "no images in"),
    ],
)
def test_class_folders_that_are_not_clear_are_a_sentence(names, sentence, tmp_path):
    for name in names:
        picture(tmp_path / name) if name.endswith("png") else write(tmp_path / name, "x")
    with pytest.raises(UserError, match=sentence):
        image_folder.read(str(tmp_path))


def test_names_that_are_not_utf8_are_read(tmp_path):
    for name in ("a/x\udcff.png", "b\udce9/y.png"):
        picture(tmp_path / name)
    manifest = image_folder.read(str(tmp_path))
    assert [manifest.image(row).size for row in range(2)] == [(12, 10)] * 2
    with pytest.raises(UserError, match="name is not UTF-8"):
        manifest.to_csv(tmp_path / "t.csv")


def test_a_folder_or_table_that_may_not_be_read(tmp_path, monkeypatch):
    table = write(tmp_path / "t.csv", "path,label,split", "a.png,x,train")

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refused)
    with pytest.raises(UserError, match=r"folder .* cannot be read \(Permission denied\)"):
        Manifest.from_csv(table)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(UserError, match=r"t.csv cannot be read \(Permission denied\)"):
        Manifest.from_csv(table)


def test_a_home_that_does_not_exist_is_a_sentence():
    with pytest.raises(UserError, match="write the whole path"):
        image_folder.read("~nobody-of-that-name/faces")


def ferplus_zip(path: Path, content: bytes, name: str = "data/FER2013{}/label.csv") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("Train", "Valid", "Test"):
            archive.writestr("__MACOSX/" + name.format(part), b"junk")
            archive.writestr(name.format(part), content)
            archive.writestr(name.format(part).replace("label.csv", "a.png"), b"x")
    return path


def test_ferplus_in_a_zip_with_a_folder_around_and_junk_beside(tmp_path):
    row = BOM + b'a.png,"(0, 0, 48, 48)",8,2,0,0,0,0,0,0,0,0\r\n\r\n'
    path = ferplus_zip(tmp_path / "f.zip", row, "my set/data/FER2013{}/label.csv")
    manifest = ferplus.read(str(path))
    assert manifest.paths.tolist()[0] == "my set/data/FER2013Train/a.png" and len(manifest) == 3


def test_an_encrypted_zip_is_a_sentence(tmp_path):
    path = ferplus_zip(tmp_path / "f.zip", b"a.png,box,8,2,0,0,0,0,0,0,0,0")
    content = path.read_bytes().replace(
        b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"
    )
    path.write_bytes(content)
    with pytest.raises(UserError, match="label.csv of .*f.zip cannot be read .*password"):
        ferplus.read(str(path))


@pytest.mark.parametrize(
    "content,sentence",
    [
        ("a.png,box,8,2,é".encode("latin-1"), "label.csv line 1 is not UTF-8"),
        (b"a.png,box,8,2", "is not the owners' table"),
        (b"a.png,box,8,2,0,0,0,0,0,0,0,-5", "a vote of -5"),
        (b"a.png,box,8,2,0,0,0,0,0,0,0," + b"9" * 30, "is not the owners' table"),
        (b"", "is empty"),
    ],
)
def test_votes_that_are_none_are_a_sentence(content, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        ferplus.read(str(ferplus_zip(tmp_path / "f.zip", content)))


# -- decoding -----------------------------------------------------------------------------


def one_image(tmp_path: Path, save) -> Manifest:
    save(tmp_path / "x")
    return Manifest.build(tmp_path, [("x", 0, "train")], ("a", "b"))


@pytest.mark.parametrize("mode,value,expected", [
    ("L", 100, (100, 100, 100)), ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
    ("LA", (50, 255), (50, 50, 50)), ("P", 0, (10, 20, 30)), ("1", 1, (255, 255, 255)),
    ("I;16", 257 * 77, (77, 77, 77)), ("RGB", (1, 2, 3), (1, 2, 3)),
])  # fmt: skip
def test_every_kind_of_png_becomes_rgb(mode, value, expected, tmp_path):
    image = Image.new(mode, (4, 3), value)
    if mode == "P":
        image.putpalette([10, 20, 30] + [0] * 765)
    manifest = one_image(tmp_path, lambda path: image.save(path, "PNG"))
    assert manifest.image(0).getpixel((1, 1)) == expected


def test_cmyk_and_float_images(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = one_image(tmp_path, lambda p: cmyk.save(p, "JPEG")).image(0).getpixel((4, 4))
    assert pixel[0] > 240 and max(pixel[1:]) < 20
    manifest = one_image(tmp_path, lambda p: Image.new("F", (4, 4), 0.5).save(p, "TIFF"))
    with pytest.raises(UserError, match="32-bit float pixels have no known range"):
        manifest.image(0)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    manifest = one_image(tmp_path, lambda p: image.save(p, "PNG", exif=exif))
    shown = manifest.image(0)
    assert shown.size == (10, 20)
    assert shown.getpixel((5, 2)) == (255, 0, 0) and shown.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "missing"])
def test_a_broken_jpeg_is_named(damage, tmp_path):
    path = picture(tmp_path / "é x.jpg", size=(64, 64))
    manifest = Manifest.build(tmp_path, [("é x.jpg", 0, "train")], ("a", "b"))
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "truncated": data[: len(data) - 40], "text": b"hi"}[damage])
    with pytest.raises(UserError, match="cannot read image é x.jpg of .*repair or remove"):
        manifest.image(0)

"""Exported files give torch's logits, say what they are, and are not written where they do not."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_numpy_transforms import NATIVE
from test_train import SMALL, qcs

import qcs as package
from conftest import three_colours, tiny_checkpoint, tiny_network, tiny_recipe
from qcs.checkpoints import checksum, recipe
from qcs.checkpoints.load import OnnxNetwork, load_checkpoint, load_classifier
from qcs.checkpoints.onnx import _without_prelu, open_export, open_session
from qcs.checkpoints.onnx_export import Exported, metadata, to_onnx
from qcs.config.errors import UserError
from qcs.data.sources import synthetic
from qcs.export import check, export

RECIPE = tiny_recipe()
TRANSFORM = RECIPE["transform"]
# Faces that need not be resized where torchvision would do it otherwise than a file does.
SIDE = 32 if NATIVE else 36


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Drawn faces and a trained run of one epoch."""
    folder = tmp_path_factory.mktemp("export")
    synthetic.make(folder / "faces", size=SIDE, train=8, val=2, test=4, workers=1)
    data = f"dataset.path={folder / 'faces'}"
    qcs(
        "train", *SMALL, data, "trainer.max_epochs=1", "test=false", "hydra.run.dir=run", cwd=folder
    )
    return folder


def exported(tmp_path, include_transform: bool):
    model = Exported(tiny_network().eval(), TRANSFORM, include_transform).eval()
    to_onnx(model, tmp_path / "model.onnx", metadata(model, RECIPE))
    return model, tmp_path / "model.onnx"


def test_the_file_holds_the_base_branch_alone_and_takes_any_batch(tmp_path):
    model, path = exported(tmp_path, False)
    proto = onnx.load(path)
    names = {initializer.name for initializer in proto.graph.initializer}
    assert not any("cross" in name or "theta" in name for name in names)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # a name, no number
    network = OnnxNetwork(open_export(path))
    for number in (1, 2, 7):
        images = torch.randn(number, 3, 16, 16)
        torch.testing.assert_close(network(images), model(images), atol=1e-5, rtol=1e-5)


def test_the_file_knows_its_classes_and_input_but_not_where_it_was_made(tmp_path):
    _, path = exported(tmp_path, False)
    about = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(about["class_names"]) == RECIPE["class_names"]
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406]
    assert "20" in about["input"] and "16x16" in about["input"]
    assert json.loads(about["qcs"])["dataset"] == {"name": "csv"}


def test_prelu_is_computed_in_parts_to_the_same_bits():
    graph = onnx.parser.parse_graph(
        "g (float[2, 3, 5, 5] x, float[3, 1, 1] s) => (float[2, 3, 5, 5] y) { y = PRelu(x, s) }"
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    proto = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    images = np.random.default_rng(0).standard_normal((2, 3, 5, 5), np.float32)
    images[0, 0, 0] = (np.nan, np.inf, -np.inf, 0, -1e-40)
    slopes = np.array([-0.3, 0.2, 1.7], np.float32).reshape(3, 1, 1)
    whole = open_session(proto.SerializeToString())
    parts = open_session(_without_prelu(proto).SerializeToString())
    assert [node.op_type for node in proto.graph.node] == ["Relu", "Sub", "Mul", "Add"]
    (a,), (b,) = (session.run(None, {"x": images, "s": slopes}) for session in (whole, parts))
    finite = np.isfinite(images)
    assert np.array_equal(a[finite], b[finite]) and not np.isfinite(b[~finite]).any()


def test_features_are_a_second_output_where_they_are_asked_for(run, tmp_path):
    path, images = tmp_path / "model.onnx", np.random.default_rng(0).random((3, SIDE, SIDE, 3))
    crops = [Image.fromarray((255 * image).astype(np.uint8)) for image in images]
    ckpt = package.load(run / "run/checkpoints/best.ckpt")
    expected = ckpt.predict(crops, detect=False, embeddings=True)
    for transform, tolerance in ((False, 2e-3), (True, 0.1)):
        export(options(run, out=str(path), features=True, include_transform=transform))
        assert [output.name for output in onnx.load(path).graph.output] == ["logits", "features"]
        found = package.load(path).predict(crops, detect=False, embeddings=True)
        assert found.embeddings.dtype == np.float16
        np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=tolerance)
        assert [faces[0].label for faces in found] == [faces[0].label for faces in expected]
    without = package.load(exported(tmp_path, False)[1])
    with pytest.raises(UserError, match="exported with `qcs export features=true`"):
        without.predict(crops, detect=False, embeddings=True)
    export(options(run, out=str(tmp_path / "model.pt2"), features=True))
    program = torch.export.load(tmp_path / "model.pt2").module()
    logits, features = program(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7) and features.shape == (2, ckpt.features)


def test_an_included_transform_is_torchvisions(tmp_path):
    """Within a rounded pixel here and there."""
    model, path = exported(tmp_path, True)
    transform = recipe.transform(RECIPE)  # in numpy
    network = OnnxNetwork(open_export(path))
    rng = np.random.default_rng(0)
    for size in ((40, 30), (16, 16), (333, 97)):
        coarse = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        with torch.inference_mode():
            expected = model.base(torch.from_numpy(transform(image))[None])[0]
        logits = network(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
        assert (logits - expected).abs().max() < 0.05 * expected.std()


def test_a_file_that_differs_is_refused(tmp_path):
    model, path = exported(tmp_path, False)
    assert check(model, path, None) < 1e-4
    with torch.no_grad():
        model.base.encoder.head.weight.mul_(1.01)
    with pytest.raises(UserError, match="differs from torch by"):
        check(model, path, None)


def options(run, **changes) -> dict:
    """What conf/export.yaml composes to."""
    defaults = {"ckpt": str(run / "run/checkpoints/best.ckpt"), "store": None}
    defaults["dataset"] = {"path": str(run / "faces")}
    defaults |= {
        "include_transform": False,
        "features": False,
        "int8": False,
        "calibration_images": 20,
    }
    return defaults | {"split": "test", "batch_size": 8} | changes


@pytest.mark.parametrize("transform", [False, True])
def test_onnx_predicts_as_its_checkpoint(run, transform, tmp_path):
    path = tmp_path / "model.onnx"
    export(options(run, out=str(path), include_transform=transform))
    files = sorted(map(str, (run / "faces/images/test").iterdir()))[:3]
    one, other = (
        package.load(name).predict(files, detect=False)
        for name in (run / "run/checkpoints/best.ckpt", path)
    )
    for left, right in zip(one, other, strict=True):
        assert left[0].label == right[0].label
        assert left[0].probability == pytest.approx(right[0].probability, abs=2e-3)


def test_int8_through_the_command_line_and_its_evaluation(run):
    """The accuracies that export tells are those of eval, of the checkpoint and of the file."""
    given = ["ckpt=run/checkpoints/best.ckpt", "out=small.onnx", "int8=true", "store=null"]
    given.append(f"dataset.path={run / 'faces'}")  # the checkpoint's own data set, there
    done = qcs("export", *given, "calibration_images=20", cwd=run)
    told = re.search(r"top-1 (.+) % before, (.+) % after, on 28 images of test", done.stdout)
    kinds = {node.op_type for node in onnx.load(run / "small.onnx").graph.node}
    assert "DequantizeLinear" in kinds and "logits differ by" in done.stdout
    data = ["dataset=synthetic", f"dataset.path={run / 'faces'}", "num_workers=0", "store=null"]
    for name, accuracy in {"run/checkpoints/best.ckpt": told[1], "small.onnx": told[2]}.items():
        qcs("eval", f"ckpt={name}", *data, "hydra.run.dir=e", cwd=run)
        acc = json.loads((run / "e/metrics.json").read_text())["acc"]
        assert f"{100 * acc:.2f}" == accuracy


def test_a_torch_program(run, tmp_path):
    export(options(run, out=str(tmp_path / "model.pt2")))
    about = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=about).module()
    images = torch.randn(3, 3, 32, 32)
    network = load_checkpoint(run / "run/checkpoints/best.ckpt").network
    torch.testing.assert_close(program(images), network(images), atol=1e-5, rtol=1e-5)
    assert json.loads(json.loads(about["metadata.json"])["class_names"])[0] == "Surprise"


def test_without_its_data_set_a_checkpoint_is_checked_on_random_input(run, tmp_path, caplog):
    content = torch.load(run / "run/checkpoints/best.ckpt", weights_only=True)
    content["qcs"]["dataset"] = {"name": "rafdb"}
    torch.save(content, tmp_path / "moved.ckpt")
    given = options(run, ckpt=str(tmp_path / "moved.ckpt"), dataset=None)
    export(given | {"out": str(tmp_path / "model.onnx")})
    assert "random input alone" in caplog.text and (tmp_path / "model.onnx").is_file()
    with pytest.raises(UserError, match="dataset.path is not set"):
        export(given | {"out": str(tmp_path / "q.onnx"), "int8": True})
    assert not list(tmp_path.glob("q*"))


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"ckpt": None, "out": "m.onnx"}, "ckpt is not set"),
        ({"out": "model.tflite"}, "the format goes by the name"),
        ({"out": "m.pt2", "int8": True}, r"\*.onnx with int8=true"),
        ({"out": "/dev/null/model.onnx"}, "out=.* cannot be written .*another place with out="),
    ],
)
def test_a_users_mistake_is_one_sentence(changes, sentence, run):
    with pytest.raises(UserError, match=sentence):
        export(options(run, **changes))


def test_an_export_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="an export only classifies"):
        load_checkpoint(exported(tmp_path, False)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("whole"), False)[1].read_bytes()


def resealed(whole: bytes, path, change=None, **props) -> None:
    """An export that is changed, with a checksum that is right."""
    proto = onnx.load_from_string(whole)
    about = {p.key: p.value for p in proto.metadata_props} | props
    if change:
        change(proto)
    onnx.helper.set_model_props(proto, about | {checksum.KEY: checksum.EMPTY})
    path.write_bytes(checksum.sealed(proto.SerializeToString()))


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        load_classifier(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text.partition(str(path))[2]) > 12
    return text


@pytest.mark.parametrize(
    "content,sentence",
    [
        (b"", "it is empty"),
        (b"no model\n", "a text file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89PNG\r\n", "a picture"),
        (b"PK\x03\x04" + bytes(99), "cannot be read as ONNX"),
        (bytes(1000), "cannot be read as ONNX|is not an export"),
        (np.random.default_rng(0).bytes(1000), "cannot be read as ONNX|is not an export"),
    ],
)
def test_what_is_no_export_is_one_sentence(content, sentence, tmp_path):
    (tmp_path / "file.onnx").write_bytes(content)
    assert re.search(sentence, refused(tmp_path / "file.onnx"))


def test_a_damaged_export_is_refused(whole, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "damaged.onnx"
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        refused(path)
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path)
    proto = onnx.load_from_string(whole)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    assert "is not an export of" in refused(path)
    onnx.helper.set_model_props(proto, {"qcs": json.dumps(RECIPE)})
    onnx.save(proto, path)
    assert "its checksum is wrong" in refused(path)


KEPT = {k: v for k, v in RECIPE.items() if k not in ("backbone", "model")}
KEPT |= {"include_transform": False}
FORMER = KEPT | {"format": 1, "dataset": {"_target_": "qcs.data.sources.rafdb.read"}}
FORMER |= {"transform": {"_target_": "qcs.data.transforms.evaluation", "size": 16, "resize": 20}}


@pytest.mark.parametrize(
    "about,sentence",
    [
        ("{", "its recipe is not JSON"),
        ("[" * 100_000, "its recipe is not JSON"),
        ("[1]", "its recipe is not of an export"),
        (KEPT | {"include_transform": 1}, "neither true nor false"),
        (KEPT | {"class_names": ["a", "b"]}, "its logits have shape"),
        (KEPT | {"class_names": ["a", "a", "b"]}, "two or more different names"),
        (KEPT | {"dataset": None}, "dataset is None"),
        (KEPT | {"dataset": {"name": "csv", "path": "/etc"}}, "dataset.path is a path"),
        (KEPT | {"transform": {"name": "os.system"}}, "not part of qcs"),
        (KEPT | {"transform": {"name": "evaluation"}}, "does not say the size"),
        (KEPT | {"transform": TRANSFORM | {"size": 17}}, "cannot be run as an export"),
        (KEPT | {"transform": TRANSFORM | {"size": 10**6}}, "should be from 1"),
        (KEPT | {"transform": TRANSFORM | {"mean": [float("nan")] * 3}}, "not finite"),
        (KEPT | {"format": 9}, "install a newer one"),
        (FORMER | {"transform": {"_target_": "os.system", "command": "x"}}, "not part of qcs"),
        (FORMER | {"transform": {"_target_": "qcs.data.groups.torch.load"}}, "not part of qcs"),
        (FORMER | {"dataset": {"_target_": "qcs.data.store.os.makedirs"}}, "not part of qcs"),
    ],
)
def test_a_lying_export_is_one_sentence(about, sentence, whole, tmp_path):
    text = about if isinstance(about, str) else json.dumps(about)
    resealed(whole, tmp_path / "lying.onnx", qcs=text)
    assert sentence in refused(tmp_path / "lying.onnx")


def test_an_export_with_weights_elsewhere_or_not_finite_is_refused(whole, tmp_path):
    def elsewhere(proto):
        tensor = proto.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")

    def sparse_elsewhere(proto):
        dense = onnx.numpy_helper.from_array(np.ones(1, np.float32), "values")
        places = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "indices")
        sparse = onnx.helper.make_sparse_tensor(dense, places, [8])
        sparse.values.data_location = onnx.TensorProto.EXTERNAL
        sparse.values.external_data.add(key="location", value="secret.bin")
        node = onnx.helper.make_node("Constant", [], ["extra"], sparse_value=sparse)
        proto.graph.node.insert(0, node)

    def infinite(proto):
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor) * np.float32("nan")
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    for change in (elsewhere, sparse_elsewhere):
        resealed(whole, tmp_path / "a.onnx", change)
        assert "names other files for its weights" in refused(tmp_path / "a.onnx")
    resealed(whole, tmp_path / "b.onnx", infinite)
    assert "not finite" in refused(tmp_path / "b.onnx")


def test_an_export_with_a_loop_is_refused_before_it_runs(whole, tmp_path):
    def looping(model):
        model.graph.node.append(
            onnx.helper.make_node("Loop", [], [], body=onnx.helper.make_graph([], "b", [], []))
        )

    resealed(whole, tmp_path / "loop.onnx", looping)
    assert "holds loops or branches" in refused(tmp_path / "loop.onnx")


def test_an_export_of_format_1_is_read_without_a_checksum(whole, tmp_path):
    proto = onnx.load_from_string(whole)
    former = {key: value for key, value in FORMER.items() if key != "format"}
    onnx.helper.set_model_props(proto, {"qcs": json.dumps(former)})
    onnx.save(proto, tmp_path / "former.onnx")
    made = load_classifier(tmp_path / "former.onnx")
    assert made.class_names == ("red", "green", "blue")
    assert made.recipe["dataset"] == {"name": "rafdb"}


def test_a_network_that_is_not_finite_is_not_exported(tmp_path):
    model, path = exported(tmp_path, False)
    with torch.no_grad():
        model.base.encoder.head.bias[0] = torch.nan
    with pytest.raises(UserError, match="not finite: not written"):
        check(model, path, None)


def test_int8_is_measured_on_classes_by_name(tmp_path):
    """A data set with the classes in another order has the same accuracy."""
    three_colours(tmp_path).to_csv(tmp_path / "table.csv")
    tiny_checkpoint(tmp_path / "model.ckpt")
    found = []
    for names in (["red", "green", "blue"], ["blue", "red", "green"]):
        data = {"_target_": "qcs.data.manifest.Manifest.from_csv", "class_names": names}
        data |= {"path": str(tmp_path / "table.csv")}
        given = {"ckpt": str(tmp_path / "model.ckpt"), "dataset": data, "store": None}
        given |= {
            "include_transform": False,
            "features": False,
            "int8": True,
            "calibration_images": 8,
        }
        given |= {"split": "test", "batch_size": 4, "out": str(tmp_path / "small.onnx")}
        found.append(export(given))
    assert found[0]["before"] == found[1]["before"] and found[0]["after"] == found[1]["after"]


def test_onnxruntime_tells_nobody_of_its_use(whole, tmp_path):
    """In a process of its own, in which every connection is an error, and with an empty home."""
    (tmp_path / "model.onnx").write_bytes(whole)
    script = (
        "import socket\n"
        "def closed(*args, **options): raise RuntimeError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = closed\n"
        "import qcs, numpy\n"
        f"p = qcs.load({str(tmp_path / 'model.onnx')!r})\n"
        "print(len(p.predict([numpy.zeros((64, 64, 3), 'uint8')], detect=False)))"
    )
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "1", done.stderr
    assert not [f for f in home.rglob("*") if "icrosoft" in f.name or "onnxruntime" in f.name]

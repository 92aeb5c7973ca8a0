"""Exported files give torch's logits, say what they are, and are not written where they do not."""

import json
import re

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_train import SMALL, qcs

import qcs as package
from conftest import tiny_network
from qcs.checkpoints.load import load_checkpoint, load_classifier
from qcs.checkpoints.onnx import Exported, metadata, open_onnx, to_onnx
from qcs.config.errors import UserError
from qcs.data.sources import synthetic
from qcs.export import check, export
from qcs.training import build

TRANSFORM = {"_target_": "qcs.data.transforms.evaluation", "size": 16, "resize": 20}
RECIPE = {
    "qcs_version": "0",
    "class_names": ["red", "green", "blue"],
    "transform": TRANSFORM,
    "select_on": "val",
    "dataset": {"_target_": "qcs.data.manifest.Manifest.from_csv", "path": "/home/someone/data"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Drawn faces and a trained run of one epoch."""
    folder = tmp_path_factory.mktemp("export")
    synthetic.make(folder / "faces", size=32, train=8, val=2, test=4, workers=1)
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
    network, _ = open_onnx(path)
    for number in (1, 2, 7):
        images = torch.randn(number, 3, 16, 16)
        torch.testing.assert_close(network(images), model(images), atol=1e-5, rtol=1e-5)


def test_the_file_knows_its_classes_and_input_but_not_where_it_was_made(tmp_path):
    _, path = exported(tmp_path, False)
    about = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(about["class_names"]) == RECIPE["class_names"]
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406]
    assert "20" in about["input"] and "16x16" in about["input"]
    assert "/home/someone" not in path.read_bytes().decode("latin1")


def test_an_included_transform_is_torchvisions(tmp_path):
    """Within a rounded pixel here and there."""
    model, path = exported(tmp_path, True)
    transform = build.instantiate(TRANSFORM)
    network, _ = open_onnx(path)
    rng = np.random.default_rng(0)
    for size in ((40, 30), (16, 16), (333, 97)):
        coarse = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        with torch.inference_mode():
            expected = model.base(transform(image)[None])[0]
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
    defaults = {"ckpt": str(run / "run/checkpoints/best.ckpt"), "dataset": None, "store": None}
    defaults |= {"include_transform": False, "int8": False, "calibration_images": 20}
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
    content["qcs"]["dataset"] = {"_target_": "qcs.data.sources.rafdb.read", "path": None}
    torch.save(content, tmp_path / "moved.ckpt")
    given = options(run, ckpt=str(tmp_path / "moved.ckpt"))
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
    ],
)
def test_a_users_mistake_is_one_sentence(changes, sentence, run):
    with pytest.raises(UserError, match=sentence):
        export(options(run, **changes))


def test_an_export_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="an export only classifies"):
        load_checkpoint(exported(tmp_path, False)[1])


def test_what_is_no_export_is_one_sentence(tmp_path):
    (tmp_path / "text.onnx").write_text("no")
    with pytest.raises(UserError, match="cannot be read as ONNX"):
        load_classifier(tmp_path / "text.onnx")
    _, path = exported(tmp_path, False)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match="is not an export of"):
        load_classifier(tmp_path / "bare.onnx")
    evil = json.dumps(
        {**RECIPE, "include_transform": False, "transform": {"_target_": "os.system"}}
    )
    onnx.helper.set_model_props(proto, {"qcs": evil})
    onnx.save(proto, tmp_path / "evil.onnx")
    with pytest.raises(UserError, match="not trusted"):
        load_classifier(tmp_path / "evil.onnx")

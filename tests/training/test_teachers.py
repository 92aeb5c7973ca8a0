"""Trained networks answer for each augmented image, and this becomes a part of its target."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer

from conftest import RecordedLoss, three_colours, tiny_checkpoint, tiny_network, tiny_recipe
from qcs.checkpoints import recipe
from qcs.checkpoints.load import load_checkpoint
from qcs.config.errors import UserError
from qcs.data import transforms
from qcs.data.datamodule import FaceDataModule
from qcs.training.cuda_graphs import CudaGraph
from qcs.training.mixup import Mixup
from qcs.training.module import QCSModule
from qcs.training.teachers import Teachers

NAMES = ("red", "green", "blue")
STUDENT = transforms.evaluation(16, mean=[0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7])


def checkpoint(path: Path, names: tuple[str, ...] = NAMES, **transform) -> str:
    """A network of random weights with other input than the student's."""
    parts = tiny_recipe(roles=1) | {"class_names": list(names)}
    parts["transform"] |= transform
    torch.manual_seed(len(path.name))
    state = {f"network.{k}": v for k, v in recipe.network(parts).state_dict().items()}
    torch.save({"qcs": parts, "state_dict": state}, path)
    return str(path)


def ready(teachers: Teachers, names: tuple[str, ...] = NAMES) -> Teachers:
    teachers.setup(None, SimpleNamespace(class_names=names), "fit")
    return teachers


def test_their_answer_is_the_mean_over_the_classes_of_the_student(tmp_path):
    orders = {"a": ("blue", "red", "green"), "bb": (*NAMES, "none"), "ccc": NAMES}
    files = [
        checkpoint(tmp_path / f"{n}.ckpt", o, mean=[0.1 * len(n)] * 3) for n, o in orders.items()
    ]
    pixels = torch.rand(5, 3, 16, 16)
    seen = (pixels - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1)
    found = ready(Teachers(files, temperature=2.0)).answer(seen, STUDENT)
    expected = torch.zeros(5, 3)
    for file, order in zip(files, orders.values(), strict=True):
        loaded = load_checkpoint(file)
        normalised = (pixels - loaded.recipe["transform"]["mean"][0]) / torch.tensor(
            loaded.recipe["transform"].get("std", transforms.IMAGENET_STD)
        ).view(3, 1, 1)
        logits = loaded.network(normalised)
        columns = [order.index(name) for name in NAMES]
        expected += (logits[:, columns] / 2).softmax(1) / 3
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(5))


def test_a_teacher_gets_images_of_its_size(tmp_path):
    file = tiny_checkpoint(tmp_path / "a.ckpt", roles=1)
    (teacher,) = ready(Teachers([file])).teachers
    assert teacher.side == 16
    images = torch.rand(2, 3, 40, 40)
    assert Teachers.answer(ready(Teachers([file])), images, STUDENT).shape == (2, 3)


def test_what_cannot_teach_is_refused(tmp_path):
    file = checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="does not know the class yellow"):
        ready(Teachers([file]), ("red", "yellow"))
    with pytest.raises(UserError, match="names none"):
        Teachers([])
    with pytest.raises(UserError, match="callbacks.teachers.checkpoints: no checkpoint at"):
        Teachers([str(tmp_path / "none.ckpt")])
    with pytest.raises(UserError, match="how the student's images are normalised"):
        ready(Teachers([file])).answer(torch.zeros(1, 3, 16, 16), lambda image: image)


@pytest.mark.parametrize("roles,groups", [(1, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_run_learns_from_both(roles, groups, weight, tmp_path, one_thread):
    """The loss of the first step is the cross-entropy to labels and answers, as weighed."""
    (tmp_path / "faces").mkdir()
    manifest = three_colours(tmp_path / "faces")
    views = transforms.training(16, 16, flip=0, jitter=(0, 0, 0, 0), erase=0), STUDENT
    data = FaceDataModule(
        manifest, views[0], STUDENT, roles=roles, batch_size=6, groups_per_image=groups,
        num_workers=0, select_on="last",
    )  # fmt: skip
    file = checkpoint(tmp_path / "teacher.ckpt")
    loss, seen = RecordedLoss(), []
    module = QCSModule(
        tiny_network(roles), loss, lambda p: torch.optim.SGD(p, lr=1e-3), NAMES, sam={"rho": 0.0}
    )
    compare = module.network.compare
    module.network.compare = lambda images, g=None: seen.append(compare(images, g)) or seen[-1]
    teachers, batches = Teachers([file], weight=weight), []
    teachers.on_train_batch_end = lambda *a, **k: batches.append(a[3] if len(a) > 3 else k["batch"])
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        max_steps=1, callbacks=[teachers], enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (batch,), out = batches, seen[0]
    answer = teachers.answer(batch["images"].flatten(0, 1), STUDENT)
    answer = answer.view(*batch["images"].shape[:2], 3)
    if groups > 1:
        answer = answer.flatten(0, 1)[batch["groups"]]
    own = torch.eye(3)[batch["labels"]]
    targets = (1 - weight) * own + weight * answer
    assert torch.allclose(batch["targets"], targets, atol=1e-5)
    logits = [out.base_logits] + ([out.cross_logits] if roles > 1 else [])
    entropies = [-(targets * x.log_softmax(-1)).sum(-1).mean() for x in logits]
    assert loss.values[0] == pytest.approx(torch.stack(entropies).mean().item(), abs=1e-4)


@pytest.fixture
def run(tmp_path, one_thread):
    """A function that trains for one step with teachers, and returns the batch that was learned."""
    (tmp_path / "faces").mkdir()
    manifest = three_colours(tmp_path / "faces")
    view = transforms.training(16, 20, flip=0.5, jitter=(0, 0, 0, 0), erase=0.5)

    def trained(*callbacks, groups: int = 1, number: int | None = None, **options) -> dict:
        data = FaceDataModule(
            manifest, view, STUDENT, batch_size=6, num_workers=0, select_on="last",
            groups_per_image=groups, train_images=number,
        )  # fmt: skip
        sgd = partial(torch.optim.SGD, lr=1e-3)
        module = QCSModule(tiny_network(4), RecordedLoss(), sgd, NAMES, sam={"rho": 0.0}, **options)
        batches = []
        end = Callback()
        end.on_train_batch_end = lambda *a, **k: batches.append(a[3] if len(a) > 3 else k["batch"])
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(
            max_steps=1, callbacks=[*callbacks, end], enable_model_summary=False,
            accelerator="cpu", default_root_dir=tmp_path, **silent,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        return batches[0] | {"train": data.train}

    return trained


@pytest.mark.parametrize("groups", [1, 2])
def test_answers_of_whole_images_are_asked_once(groups, run, tmp_path, monkeypatch):
    """They are the mean for an image and its mirror image, also where it was augmented."""
    file, answers = checkpoint(tmp_path / "teacher.ckpt"), tmp_path / "kept" / "answers.npz"
    teachers = Teachers([file], weight=1.0, answers=str(answers))
    batch = run(teachers, groups=groups)
    assert [path.name for path in answers.parent.iterdir()] == ["answers.npz"]
    faces = torch.stack([STUDENT(batch["train"].image(i)) for i in range(36)])
    expected = (teachers.answer(faces, STUDENT) + teachers.answer(faces.flip(-1), STUDENT)) / 2
    torch.testing.assert_close(batch["targets"], expected[batch["rows"]])

    asked = []
    monkeypatch.setattr(Teachers, "answer", lambda *a: asked.append(a))
    again = run(Teachers([file], weight=1.0, answers=str(answers)), groups=groups)
    assert not asked and torch.equal(again["targets"], batch["targets"])


def test_answers_are_not_asked_through_a_graph(run, tmp_path, monkeypatch):
    """Its results lie in memory that the next call overwrites."""
    file, answers = checkpoint(tmp_path / "teacher.ckpt"), [tmp_path / "a.npz", tmp_path / "b.npz"]
    run(Teachers([file], answers=str(answers[0])))
    monkeypatch.setattr(QCSModule, "setup", lambda self, stage: None)
    monkeypatch.setattr(CudaGraph, "__call__", lambda self, inputs: self.function(dict(inputs)))
    made = []
    monkeypatch.setattr(CudaGraph, "__init__", lambda self, *a: made.append(vars(self).update(
        function=a[0], graph=None, inputs={}, outputs=None)))  # fmt: skip
    run(Teachers([file], answers=str(answers[1])), with_cuda_graphs=True)
    first, second = (np.load(path)["answers"] for path in answers)
    assert len(made) == 1 and np.array_equal(first, second)  # that of the module


def test_answers_of_others_are_refused(run, tmp_path, monkeypatch):
    answers = tmp_path / "answers.npz"
    file = checkpoint(tmp_path / "a.ckpt")
    run(Teachers([file], answers=str(answers)))
    other = "answers of other teachers, or for other images, .* name a new file"
    with pytest.raises(UserError, match=other):
        run(Teachers([file], answers=str(answers), temperature=2.0))
    with pytest.raises(UserError, match=other):
        run(Teachers([file], answers=str(answers)), number=18)
    with pytest.raises(UserError, match=other):
        run(Teachers([checkpoint(tmp_path / "bb.ckpt")], answers=str(answers)))
    for content in (b"", b"no answers", b"PK\3\4 and no more"):
        answers.write_bytes(content)
        with pytest.raises(UserError, match=f"answers={answers} cannot be read"):
            run(Teachers([file], answers=str(answers)))
    answers.unlink()
    monkeypatch.setattr(Teachers, "_asked", lambda *a: pytest.fail("it asked in vain"))
    (tmp_path / "none").write_text("a file")
    for unusable in (tmp_path / "none" / "answers.npz", tmp_path):
        with pytest.raises(UserError, match=f"answers={unusable} cannot be (used|read)"):
            run(Teachers([file], answers=str(unusable)))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"callbacks=\[default,teachers,mixup\]"):
        run(Mixup(), Teachers([file], answers=str(answers)))
    run(Teachers([file], answers=str(answers)), Mixup())

"""A step that is recorded as a CUDA graph gives what the step itself gives, or is refused."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.training.callbacks import DropCross
from qcs.training.cuda_graphs import CudaGraph
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule

NAMES = ("a", "b", "c")
gpu = pytest.mark.gpu
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: pytest -m gpu")


def module(**options) -> QCSModule:
    sgd = partial(torch.optim.SGD, lr=0.1)
    return QCSModule(tiny_network(), QCSLoss(), sgd, NAMES, sam={"rho": 0.0}, **options).train()


def batches(sizes: list[int], device: str = "cpu") -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, size in enumerate(sizes):
        one, other = number % 3, (number + 1) % 3  # another pair of classes in each batch
        labels = torch.tensor([[one, one, other, other]]).repeat(size, 1)
        images = torch.rand(size, 4, 3, 16, 16, generator=generator)
        made.append({"images": images.to(device), "labels": labels.to(device)})
    return made


def expected(plain: QCSModule, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient by the backward pass."""
    plain.network.zero_grad()
    loss = plain.loss(plain.network.compare(batch["images"]), batch["labels"])["loss"]
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in plain.network.named_parameters()}


def test_the_gradients_are_those_of_the_backward_pass():
    plain, other = module(), module(with_cuda_graphs=True)
    (batch,) = batches([3])
    loss, gradients = expected(plain, batch)
    out, losses, found, got = other.gradients(batch)
    assert torch.equal(loss, found) and torch.equal(loss, losses["loss"])
    for (name, gradient), value in zip(gradients.items(), got, strict=True):
        assert (gradient is None and value is None) or torch.equal(gradient, value), name
    assert len({g.untyped_storage().data_ptr() for g in got if g is not None}) == sum(
        g is not None for g in got
    )
    assert not out.base_logits.requires_grad and not losses["loss_base"].requires_grad


def test_frozen_parameters_have_no_gradient():
    other = module(with_cuda_graphs=True)
    other.network.base.backbone.requires_grad_(False)
    got = other.gradients(batches([3])[0])[-1]
    names = [n for n, p in other.network.named_parameters() if p.requires_grad]
    assert len(got) == len(names) and not any("backbone" in name for name in names)


@gpu
@no_gpu
def test_steps_on_a_gpu_are_the_same_with_and_without():
    """Weights and BatchNorm's statistics after several steps, one of them of a smaller batch."""
    plain, other = module().double().cuda(), module(with_cuda_graphs=True).double().cuda()
    optimizers = [m.make_optimizer(m.network.parameters()) for m in (plain, other)]
    for batch in batches([2, 4, 4, 3, 4], "cuda"):  # recorded for 2, and anew for 4
        batch["images"] = batch["images"].double()
        loss, _ = expected(plain, batch)
        assert other.cuda_graph is not None
        _, losses, _, gradients = other.cuda_graph(batch)
        torch.testing.assert_close(losses["loss"], loss)
        for parameter, gradient in zip(other.trained(), gradients, strict=True):
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert other.cuda_graph.graph is not None
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], value, msg=name)


@gpu
@no_gpu
def test_a_gpu_in_mixed_precision():
    plain, other = module().cuda(), module(with_cuda_graphs=True).cuda()
    first, second = batches([4, 4], "cuda")
    assert other.cuda_graph is not None
    with torch.autocast("cuda", torch.bfloat16):
        other.cuda_graph(first)
        expected(plain, first)  # for BatchNorm's statistics
        _, _, loss, gradients = other.cuda_graph(second)
        wanted, reference = expected(plain, second)
    torch.testing.assert_close(loss, wanted, rtol=0.003, atol=0.003)
    pairs = [(g, v) for g, v in zip(gradients, reference.values(), strict=True) if v is not None]
    found, right = (torch.cat([x.flatten() for x in side]) for side in zip(*pairs, strict=True))
    assert (found - right).norm() < 0.05 * right.norm()


def test_without_a_gpu_it_says_so():
    other = module(with_cuda_graphs=True)
    assert other.cuda_graph is not None
    with pytest.raises(UserError, match="speed.cuda_graphs=true needs an NVIDIA GPU: leave it out"):
        other.cuda_graph(batches([2])[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sam": {"rho": 0.05}}, "sam.rho above 0"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches above 1"),
        ({"grad_checkpointing": True}, "backbone.grad_checkpointing=true"),
    ],
)
def test_what_a_graph_could_not_follow_is_refused(options, named):
    sgd = partial(torch.optim.SGD, lr=0.1)
    options = {"sam": {"rho": 0.0}} | options
    with pytest.raises(UserError, match=f"speed.cuda_graphs=true cannot be used with {named}"):
        QCSModule(tiny_network(), QCSLoss(), sgd, NAMES, with_cuda_graphs=True, **options)


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ({"accelerator": "cpu"}, "needs an NVIDIA GPU"),
        ({"accelerator": "cpu", "precision": "16-mixed"}, "needs an NVIDIA GPU"),
    ],
)
def test_it_is_refused_before_anything_is_done(trainer, named, tmp_path):
    began = []
    watch = Callback()
    watch.on_train_start = lambda *a: began.append(a)
    options = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    fit = Trainer(max_steps=1, callbacks=[watch], **options, **trainer).fit
    with pytest.raises(UserError, match=f"speed.cuda_graphs=true {named}"):
        fit(
            module(with_cuda_graphs=True),
            torch.utils.data.DataLoader(batches([2]), batch_size=None),
        )
    assert not began


@pytest.mark.parametrize("option", ["world_size", "scaler", "_detect_anomaly"])
def test_a_trainer_that_a_graph_cannot_follow_is_refused(option):
    other = module(with_cuda_graphs=True)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda")),
        world_size=2 if option == "world_size" else 1,
        precision_plugin=SimpleNamespace(scaler=object() if option == "scaler" else None),
        _detect_anomaly=option == "_detect_anomaly",
    )
    other._trainer = trainer  # type: ignore[assignment]
    with pytest.raises(UserError, match="speed.cuda_graphs=true is for one device, and neither"):
        other.setup("fit")
    trainer.world_size, trainer.precision_plugin.scaler, trainer._detect_anomaly = 1, None, False
    other.setup("fit")


def test_it_is_recorded_anew_when_the_loss_changes(monkeypatch):
    """Or the cross half would keep its part of the loss."""
    other, forgotten = module(with_cuda_graphs=True), []
    monkeypatch.setattr(CudaGraph, "forget", lambda self: forgotten.append(self))
    for epoch in range(4):
        trainer = SimpleNamespace(max_epochs=4, current_epoch=epoch)
        DropCross(after=0.5).on_train_batch_start(trainer, other, {}, 0)  # type: ignore[arg-type]
    assert forgotten == [other.cuda_graph] and other.loss.cross_weight == 0


def test_a_copy_has_a_graph_of_its_own():
    """An average of the weights copies the module."""
    other = module(with_cuda_graphs=True)
    copied = copy.deepcopy(other)
    assert copied.cuda_graph is not other.cuda_graph
    assert copied.cuda_graph.function.__self__ is copied
    assert next(iter(copied.cuda_graph.buffers())) is next(iter(copied.network.buffers()))

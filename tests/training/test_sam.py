"""SAM by hand, and through the LightningModule under what users combine it with."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.models import Comparison
from qcs.training.losses import QCSLoss
from qcs.training.module import QCSModule
from qcs.training.sam import perturbed

SAMPLE = {"similarity": {"extremes": "sample"}}


class Linear(nn.Module):
    """A network without BatchNorm, so that batches may be cut without a trace."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 3)

    def compare(self, images, groups=None):
        return Comparison(self.layer(images.flatten(2)), images.flatten(2))


def batches(number: int, size: int = 4, roles: int = 1, pixels: int = 2, classes: int = 3):
    generator = torch.Generator().manual_seed(1)
    shape = (number, size, roles, 3, pixels, pixels)
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(0, classes, (number, size, roles), generator=generator)
    return [{"images": x, "labels": y} for x, y in zip(images, labels, strict=True)]


def fit(network, data, tmp_path, optimizer=None, epochs=1, ckpt=None, trainer=None, **options):
    module = QCSModule(
        network,
        QCSLoss(),
        optimizer or (lambda p: torch.optim.SGD(p, lr=0.1)),
        class_names=["a", "b", "c"],
        **options,
    )
    settings = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=epochs, default_root_dir=tmp_path, **settings, **(trainer or {}))
    loader = torch.utils.data.DataLoader(data, batch_size=None, generator=torch.Generator())
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def _reference(network, data, optimizer, rho=0.05, adaptive=False):
    """Foret et al., algorithm 1, one parameter at a time, in fp32 and without Lightning."""
    params = list(network.parameters())
    for batch in data:

        def gradients(batch=batch):
            loss = QCSLoss()(network.compare(batch["images"]), batch["labels"])["loss"]
            return torch.autograd.grad(loss, params)

        first = gradients()
        scale = [p.detach().abs() if adaptive else torch.ones_like(p) for p in params]
        norm = sum((g * s).pow(2).sum() for g, s in zip(first, scale, strict=True)).sqrt()
        steps = [rho * g * s**2 / norm for g, s in zip(first, scale, strict=True)]
        for p, e in zip(params, steps, strict=True):
            p.data.add_(e)
        second = gradients()
        for p, e, g in zip(params, steps, second, strict=True):
            p.data.sub_(e)
            p.grad = g
        optimizer.step()
    return [p.detach().clone() for p in params]


def test_trajectory_on_a_quadratic_by_hand():
    """f = a w^2 / 2: w' = w - lr a (w + rho sign(w)), in one dimension."""
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer, by_hand = torch.optim.SGD([w], lr=0.1), 2.0
    for _ in range(3):
        (3 * w**2 / 2).sum().backward()
        with perturbed([w], rho=0.5):
            optimizer.zero_grad()
            (3 * w**2 / 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        by_hand -= 0.1 * 3 * (by_hand + 0.5)
        assert w.item() == pytest.approx(by_hand, abs=1e-12)


def test_weights_return_exactly_even_after_an_error():
    w = nn.Parameter(torch.randn(7))
    before = w.detach().clone()
    w.pow(2).sum().backward()
    with pytest.raises(KeyboardInterrupt), perturbed([w], rho=1.0):
        assert not torch.equal(w, before)
        raise KeyboardInterrupt
    assert torch.equal(w, before)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_module_follows_the_reference(make, adaptive, tmp_path):
    network, twin, data = Linear(), Linear(), batches(5)
    trainer = fit(network, data, tmp_path, make, sam={"adaptive": adaptive, "rho": 0.2})
    expected = _reference(twin, data, make(twin.parameters()), 0.2, adaptive)
    for p, e in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=1e-6, rtol=1e-5)
    assert trainer.global_step == 5


def test_rho_zero_is_the_plain_optimiser(tmp_path):
    network, twin, data = Linear(), Linear(), batches(4)
    fit(network, data, tmp_path, sam={"rho": 0.0})
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in data:
        optimizer.zero_grad()
        QCSLoss()(twin.compare(batch["images"]), batch["labels"])["loss"].backward()
        optimizer.step()
    torch.testing.assert_close(network.layer.weight, twin.layer.weight)


def test_every_second_step_is_sharpness_aware(tmp_path):
    network, twin, data = Linear(), Linear(), batches(5)
    fit(network, data, tmp_path, sam={"rho": 0.5, "every": 2})
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step, batch in enumerate(data):
        _reference(twin, [batch], optimizer, rho=0.5 if step % 2 == 0 else 0.0)
    torch.testing.assert_close(network.layer.weight, twin.layer.weight, atol=1e-6, rtol=1e-5)


def test_accumulated_batches_equal_the_whole_batch_and_count_one_step(tmp_path):
    """Both gradients of SAM are taken over the window; the last window is shorter."""
    network, twin, data = Linear(), Linear(), batches(5)
    trainer = fit(network, data, tmp_path, accumulate_grad_batches=2, sam={"rho": 0.2})
    whole = [
        {k: torch.cat([b[k] for b in data[i : i + 2]]) for k in ("images", "labels")}
        for i in (0, 2, 4)
    ]
    fit(twin, whole, tmp_path, sam={"rho": 0.2})
    torch.testing.assert_close(network.layer.weight, twin.layer.weight, atol=1e-6, rtol=1e-5)
    assert trainer.global_step == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_follows_full_precision(precision, tmp_path):
    scaler = torch.amp.GradScaler("cpu") if precision == "16-mixed" else None
    plugin = MixedPrecision(precision, "cpu", scaler)
    network, twin, data = Linear(), Linear(), batches(6)
    trainer = fit(network, data, tmp_path, trainer={"plugins": [plugin]}, sam={"rho": 0.2})
    fit(twin, data, tmp_path, sam={"rho": 0.2})
    moved = (twin.layer.weight - Linear().layer.weight).norm()
    assert (network.layer.weight - twin.layer.weight).norm() < 0.05 * moved
    assert trainer.global_step == 6


def test_an_overflow_at_16_mixed_skips_the_step_and_lowers_the_scale(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    network = Linear()
    fit(network, batches(1), tmp_path, trainer={"plugins": [plugin]}, sam={"rho": 0.2})
    torch.testing.assert_close(network.layer.weight, Linear().layer.weight, atol=0, rtol=0)
    assert scaler.get_scale() == 2.0**59


@pytest.mark.parametrize("scaled", [False, True])
def test_the_clipped_gradient_is_the_unscaled_second_one(scaled, tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    network = Linear()
    trainer = {"plugins": [plugin]} if scaled else None
    fit(network, batches(1), tmp_path, trainer=trainer, gradient_clip_norm=0.01)
    moved = torch.cat(
        [
            (p - q).flatten()
            for p, q in zip(network.parameters(), Linear().parameters(), strict=True)
        ]
    )
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("twice,passes", [(True, 2), (False, 1)])
def test_batch_norm_statistics_move_in_both_passes_or_in_one(twice, passes, tmp_path):
    network = tiny_network(4)
    data = batches(3, roles=4, pixels=16)
    fit(network, data, tmp_path, sam={"update_bn_twice": twice})
    norm = network.base.backbone.stem[1]
    assert norm.num_batches_tracked == 3 * 4 * passes
    assert norm.track_running_stats


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path):
    """Adam's moments survive, and the file holds no second copy of the weights."""
    options = {"base": {"drop": 0.2}, "cross": SAMPLE | {"drop": 0.2}}

    def run(network, epochs, ckpt=None):
        adam = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731
        return fit(network, data, tmp_path, adam, epochs, ckpt, scheduler=schedule)

    schedule = {
        "interval": "epoch",
        "schedule": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    }
    data = batches(3, roles=4, pixels=16)
    whole, first, second = (tiny_network(4, **options) for _ in range(3))
    run(whole, 2)
    file = tmp_path / "half.ckpt"
    run(first, 1).save_checkpoint(file)
    run(second, 2, file)
    for p, q in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, atol=0, rtol=0)
    state = torch.load(file, weights_only=True)["optimizer_states"][0]["state"]
    assert set(state[0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_steps_of_a_schedule_are_counted_in_windows(tmp_path):
    schedule = {
        "interval": "step",
        "schedule": lambda o, total_steps: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.1, total_steps, cycle_momentum=False
        ),
    }
    trainer = fit(
        Linear(), batches(5), tmp_path, scheduler=schedule, accumulate_grad_batches=2, epochs=2
    )
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == 6
    assert schedule.last_epoch == 6


def test_a_schedule_of_steps_cannot_be_lengthened(tmp_path):
    schedule = {
        "interval": "step",
        "schedule": lambda o, total_steps: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps),
    }
    file, data = tmp_path / "one.ckpt", batches(3)
    momentum = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
    fit(Linear(), data, tmp_path, momentum, 1, scheduler=schedule).save_checkpoint(file)
    with pytest.raises(UserError, match="scheduled for 3 steps and now has 6"):
        fit(Linear(), data, tmp_path, momentum, 2, file, scheduler=schedule)

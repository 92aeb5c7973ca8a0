import math

import pytest
import torch
from torch.nn import functional as F

from conftest import tiny_network
from qcs.config.errors import UserError
from qcs.models import Comparison
from qcs.training.losses import QCSLoss, feature_distillation, logit_distillation

LABELS = torch.tensor([[0, 0, 1, 1], [2, 2, 0, 0], [1, 1, 2, 2]])


def comparison(cross: bool = True) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    base, other = (torch.randn(3, 4, 3, generator=generator) for _ in range(2))
    features, teachers = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    tensors = [x.requires_grad_() for x in (base, features, other, teachers)]
    return Comparison(*tensors) if cross else Comparison(*tensors[:2])


def _reference(logits, labels) -> float:
    """Cross-entropy of each face by hand, averaged over the batch, then over the roles."""
    total = 0.0
    for b in range(3):
        for r in range(4):
            row = [math.exp(v) for v in logits[b, r].tolist()]
            total -= math.log(row[labels[b, r]] / sum(row))
    return total / 12


def test_default_is_the_mean_of_all_cross_entropies():
    out = comparison()
    parts = QCSLoss()(out, LABELS)
    base, cross = (_reference(x, LABELS) for x in (out.base_logits, out.cross_logits))
    assert parts["loss"].item() == pytest.approx((base + cross) / 2, rel=1e-5)
    assert parts["loss_base"].item() == pytest.approx(base, rel=1e-5)


def test_soft_targets_are_labels_where_they_are_certain():
    out, certain = comparison(), F.one_hot(LABELS, 3).float()
    torch.testing.assert_close(QCSLoss()(out, certain)["loss"], QCSLoss()(out, LABELS)["loss"])
    half = 0.5 * certain + 0.5 * certain.roll(1, -1)
    other = QCSLoss()(out, (LABELS + 1) % 3)["loss"]
    expected = 0.5 * QCSLoss()(out, LABELS)["loss"] + 0.5 * other
    torch.testing.assert_close(QCSLoss()(out, half)["loss"], expected)


def test_only_the_ratio_of_the_halves_matters():
    out = comparison()
    parts = QCSLoss(base_weight=6, cross_weight=2)(out, LABELS)
    expected = 0.75 * parts["loss_base"] + 0.25 * parts["loss_cross"]
    torch.testing.assert_close(parts["loss"], expected)


def test_smoothing_and_class_weights_are_those_of_torch():
    out, weights = comparison(False), [1.0, 2.0, 5.0]
    got = QCSLoss(label_smoothing=0.1, class_weights=weights)(out, LABELS)["loss"]
    roles = [
        F.cross_entropy(
            out.base_logits[:, r], LABELS[:, r], torch.tensor(weights), label_smoothing=0.1
        )
        for r in range(4)
    ]
    torch.testing.assert_close(got, sum(roles) / 4)


def test_without_a_cross_module_the_loss_is_the_base_half():
    parts = QCSLoss(logit_weight=1.0, feature_weight=1.0)(comparison(False), LABELS)
    by_role = {f"loss_base_{role}" for role in ("a", "p", "n", "n2")}
    assert set(parts) == {"loss", "loss_base"} | by_role
    assert not any(parts[name].requires_grad for name in by_role)


def test_logit_distillation_is_the_divergence_times_temperature_squared():
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(logit_distillation(student, teacher, 2.0), expected)
    assert logit_distillation(student, student).abs() < 1e-6


def test_feature_distillation_is_the_mean_distance():
    student, teacher = torch.zeros(2, 1, 2), torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert feature_distillation(student, teacher) == 3.0


@pytest.mark.parametrize("option", ["logit_weight", "feature_weight"])
def test_distillation_adds_up_and_teaches_the_base_half_only(option):
    out = comparison()
    parts = QCSLoss(base_weight=1, cross_weight=0, **{option: 0.5})(out, LABELS)
    part = parts[f"loss_{option.split('_')[0]}"]
    torch.testing.assert_close(parts["loss"], parts["loss_base"] + 0.5 * part)
    part.backward()
    assert all(t.grad is None for t in (out.cross_logits, out.cross_features))


@pytest.mark.parametrize(
    "options",
    [
        {"base_weight": 0.0, "cross_weight": 0.0},
        {"logit_weight": -1.0},
        {"temperature": 0.0},
        {"label_smoothing": 1.0},
        {"class_weights": "balanced"},
    ],
)
def test_bad_numbers_are_refused(options):
    with pytest.raises(UserError, match="loss"):
        QCSLoss(**options)


def test_without_the_cross_loss_the_base_half_learns_as_without_the_cross_module():
    """The control of a study: the plain classifier on the batches of QCS."""
    torch.manual_seed(0)
    network, images = tiny_network(4), torch.randn(3, 4, 3, 16, 16)
    labels = torch.randint(0, network.num_classes, (3, 4))
    gradients = []
    for _ in range(2):
        loss = QCSLoss(cross_weight=0.0)(network.compare(images), labels)
        network.zero_grad()
        loss["loss"].backward()
        network.cross = None
        gradients.append({k: p.grad.clone() for k, p in network.base.named_parameters()})
    torch.testing.assert_close(*gradients)

"""Losses of the base and the cross half: pure functions and one thin module over them.

Sources: the mean of 2R cross-entropies is Wang et al., "QCS", arXiv 2411.01988, section 3.4;
logit distillation is Hinton et al., arXiv 1503.02531. Distillation goes from the cross half
(teacher, detached) to the base half (student).

B batch, R roles, C channels, K classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcs.config.bounds import Dropout, Positive, Weight
from qcs.config.errors import UserError
from qcs.models import ROLES, Comparison


def role_cross_entropies(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of each role.

    Args:
        logits: (B, R, K).
        labels: (B, R), class indices, or (B, R, K), probabilities.
        label_smoothing: in [0, 1).
        class_weights: (K,); each role's mean is then the weighted one, as in torch.

    Returns:
        (R,).
    """
    options = {"weight": class_weights, "label_smoothing": label_smoothing}
    roles = zip(logits.unbind(1), labels.unbind(1), strict=True)
    return torch.stack([F.cross_entropy(x, y, **options) for x, y in roles])


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence of softened classes, times the temperature squared.

    Args:
        student, teacher: logits (..., K); no gradient flows into the teacher.
        temperature: above 0; higher is softer.

    Returns:
        Scalar (), the mean over everything but K.
    """
    soft = F.log_softmax(student / temperature, dim=-1).flatten(0, -2)
    target = F.log_softmax(teacher.detach() / temperature, dim=-1).flatten(0, -2)
    return F.kl_div(soft, target, log_target=True, reduction="batchmean") * temperature**2


def feature_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Euclidean distance () of features (..., C); no gradient flows into the teacher."""
    return torch.linalg.vector_norm(student - teacher.detach(), dim=-1).mean()


def _by_role(name: str, values: Tensor) -> dict[str, Tensor]:
    """The mean of a half's (R,) values and, detached, each of several."""
    roles = zip(ROLES, values.detach(), strict=False) if len(values) > 1 else ()
    return {name: values.mean(), **{f"{name}_{role}": value for role, value in roles}}


class QCSLoss(nn.Module):
    """Weighted mean of the two halves' cross-entropies, plus distillation when asked for.

    At the defaults it is the paper's mean of 2R cross-entropies.

    Args:
        base_weight, cross_weight: shares of the halves; only their ratio matters.
        label_smoothing: of every cross-entropy.
        class_weights: one weight a class, in class order; None for equal ones. "balanced" is
            for configs: `qcs.training.build.loss` puts the numbers in its place.
        logit_weight: factor of the logit distillation, 0 switches it off.
        temperature: of the logit distillation.
        feature_weight: factor of the feature distillation, 0 switches it off.

    Raises:
        UserError: a weight below 0, both shares 0, a temperature not above 0, or "balanced".
    """

    def __init__(
        self,
        base_weight: Weight = 1.0,
        cross_weight: Weight = 1.0,
        label_smoothing: Dropout = 0.0,
        class_weights: Sequence[Weight] | Literal["balanced"] | None = None,
        logit_weight: Weight = 0.0,
        temperature: Positive = 4.0,
        feature_weight: Weight = 0.0,
    ) -> None:
        super().__init__()
        if class_weights == "balanced":
            raise UserError(
                "loss.class_weights=balanced needs the data set: see qcs.training.build.loss"
            )
        weights = [base_weight, cross_weight, logit_weight, feature_weight, *(class_weights or [])]
        if min(weights) < 0 or base_weight + cross_weight == 0:
            raise UserError(f"loss weights must not be negative or all 0, got {weights}")
        if temperature <= 0 or not 0 <= label_smoothing < 1:
            raise UserError(
                "loss.temperature must be above 0 and loss.label_smoothing in [0, 1), got "
                f"{temperature} and {label_smoothing}"
            )
        self.base_weight, self.cross_weight = base_weight, cross_weight
        self.label_smoothing, self.temperature = label_smoothing, temperature
        self.logit_weight, self.feature_weight = logit_weight, feature_weight
        weights = None if class_weights is None else torch.tensor(list(class_weights))
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, out: Comparison, labels: Tensor) -> dict[str, Tensor]:
        """Return scalars: "loss" to descend on, and its parts, by half and role ("loss_base_a").

        Without a cross module the loss is the base half alone. Parts by role have no gradient.

        Args:
            out: of `QCSNetwork.compare`.
            labels: (B, R), class indices, or (B, R, K), probabilities.
        """
        options = (labels, self.label_smoothing, self.class_weights)
        parts = _by_role("loss_base", role_cross_entropies(out.base_logits, *options))
        if out.cross_logits is None:
            return {"loss": parts["loss_base"], **parts}
        parts |= _by_role("loss_cross", role_cross_entropies(out.cross_logits, *options))
        halves = self.base_weight * parts["loss_base"] + self.cross_weight * parts["loss_cross"]
        loss = halves / (self.base_weight + self.cross_weight)
        if self.logit_weight:
            parts["loss_logit"] = logit_distillation(
                out.base_logits, out.cross_logits, self.temperature
            )
            loss = loss + self.logit_weight * parts["loss_logit"]
        if self.feature_weight:
            parts["loss_feature"] = feature_distillation(out.base_features, out.cross_features)
            loss = loss + self.feature_weight * parts["loss_feature"]
        return {"loss": loss, **parts}

"""Losses of the base half and the cross half: functions, and a module that combines them.

Sources: the mean of 2R cross-entropies is Wang et al., "QCS", arXiv 2411.01988, section 3.4; logit
distillation is Hinton et al., arXiv 1503.02531. In distillation the cross half is the teacher,
which gets no gradient, and the base half is the student.

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
    """Compute the mean cross-entropy of each role.

    Args:
        logits: (B, R, K).
        labels: (B, R) class indices, or (B, R, K) probabilities.
        label_smoothing: in [0, 1).
        class_weights: (K,); the mean of each role is then the weighted one, as in torch.

    Returns:
        (R,).
    """
    roles = zip(logits.unbind(1), labels.unbind(1), strict=True)
    return torch.stack(
        [
            F.cross_entropy(x, y, weight=class_weights, label_smoothing=label_smoothing)
            for x, y in roles
        ]
    )


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Compute the Kullback-Leibler divergence of softened predictions, times temperature squared.

    Args:
        student: logits (..., K).
        teacher: logits (..., K), which get no gradient.
        temperature: above 0; logits are divided by it, so a higher one makes predictions softer.

    Returns:
        A scalar (), the mean over all axes but the last.
    """
    soft = F.log_softmax(student / temperature, dim=-1).flatten(0, -2)
    target = F.log_softmax(teacher.detach() / temperature, dim=-1).flatten(0, -2)
    return F.kl_div(soft, target, log_target=True, reduction="batchmean") * temperature**2


def feature_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean Euclidean distance () of features (..., C); the teacher gets no gradient."""
    return torch.linalg.vector_norm(student - teacher.detach(), dim=-1).mean()


def _mean_and_roles(name: str, values: Tensor) -> dict[str, Tensor]:
    """Return the mean of values (R,) and, if there are several, each one without its gradient."""
    roles = zip(ROLES, values.detach(), strict=False) if len(values) > 1 else ()
    return {name: values.mean(), **{f"{name}_{role}": value for role, value in roles}}


class QCSLoss(nn.Module):
    """The weighted mean of the cross-entropies of both halves, and distillation if wanted.

    With the default arguments it is the paper's mean of 2R cross-entropies.

    Args:
        base_weight: weight of the base half; only its ratio to `cross_weight` matters.
        cross_weight: weight of the cross half.
        label_smoothing: label smoothing of every cross-entropy, in [0, 1).
        class_weights: K weights in the order of the classes; None weighs all classes alike.
            "balanced" is for configs, where `qcs.training.build.loss` replaces it by numbers.
        logit_weight: factor of the logit distillation; 0 switches it off.
        temperature: temperature of the logit distillation, above 0.
        feature_weight: factor of the feature distillation; 0 switches it off.

    Raises:
        UserError: a weight is below 0, the weights of both halves are 0, the temperature or the
            label smoothing is out of range, or `class_weights` is "balanced".

    Examples:
        >>> import torch
        >>> from qcs.models import Comparison
        >>> from qcs.training.losses import QCSLoss
        >>> logits = torch.zeros(2, 4, 7)  # two quadruplets, seven classes, no preference
        >>> out = Comparison(logits, torch.zeros(2, 4, 24), cross_logits=logits)
        >>> labels = torch.tensor([[0, 0, 1, 1], [2, 2, 5, 5]])
        >>> values = QCSLoss()(out, labels)
        >>> torch.isclose(values["loss"], torch.tensor(7.0).log())
        tensor(True)
        >>> list(values)[:4]
        ['loss', 'loss_base', 'loss_base_a', 'loss_base_p']
    """

    class_weights: Tensor | None

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
        by_class = None if class_weights is None else torch.tensor(list(class_weights))
        self.register_buffer("class_weights", by_class, persistent=False)

    def forward(self, out: Comparison, labels: Tensor) -> dict[str, Tensor]:
        """Compute the loss and its parts.

        Args:
            out: what `QCSNetwork.compare` returns. Without a cross module the loss is that of the
                base half alone.
            labels: (B, R) class indices, or (B, R, K) probabilities.

        Returns:
            Scalars () by name: "loss", which is to be minimised; "loss_base" and "loss_cross", the
            means of the halves; "loss_base_a" and so on, the means of each role, without gradient;
            and "loss_logit" and "loss_feature" if there is distillation.
        """
        options = (labels, self.label_smoothing, self.class_weights)
        parts = _mean_and_roles("loss_base", role_cross_entropies(out.base_logits, *options))
        if out.cross_logits is None:
            return {"loss": parts["loss_base"], **parts}
        parts |= _mean_and_roles("loss_cross", role_cross_entropies(out.cross_logits, *options))
        halves = self.base_weight * parts["loss_base"] + self.cross_weight * parts["loss_cross"]
        loss = halves / (self.base_weight + self.cross_weight)
        if self.logit_weight:
            parts["loss_logit"] = logit_distillation(
                out.base_logits, out.cross_logits, self.temperature
            )
            loss = loss + self.logit_weight * parts["loss_logit"]
        if self.feature_weight:
            assert out.cross_features is not None  # they come with the logits
            parts["loss_feature"] = feature_distillation(out.base_features, out.cross_features)
            loss = loss + self.feature_weight * parts["loss_feature"]
        return {"loss": loss, **parts}

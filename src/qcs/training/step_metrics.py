"""The metrics of a training step and their names in the log.

B batch, R roles, K classes.
"""

from lightning import LightningModule
from torch import Tensor

from qcs.models import Comparison


def step_metrics(out: Comparison, losses: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Compute the losses and accuracies of a step as scalars () by name, "train/...".

    `losses` is what the loss returns, and the labels are (B, R) class indices.
    """
    values = {f"train/{name}": value.detach() for name, value in losses.items()}
    for name, logits in {"acc": out.base_logits, "acc_cross": out.cross_logits}.items():
        if logits is not None:
            hits = logits.detach().argmax(-1) == labels
            values[f"train/{name}"] = hits.float().mean()
    return values


def log_step_metrics(module: LightningModule, values: dict[str, Tensor], batch_size: int) -> None:
    """Log the metrics of a step under "..._step", and their mean over the epoch under "..._epoch".

    The values of a step are those of this process, the means are over all processes. The progress
    bar gets the loss and the accuracy of the step.
    """
    several = module.trainer.world_size > 1
    means = {f"{name}_epoch": value for name, value in values.items()}
    module.log_dict(means, on_step=False, on_epoch=True, sync_dist=several, batch_size=batch_size)
    names = ("train/loss", "train/acc")
    shown = {f"{name}_step": values[name] for name in names}
    module.log_dict(shown, on_step=True, on_epoch=False, prog_bar=True)
    others = {f"{name}_step": value for name, value in values.items() if name not in names}
    module.log_dict(others, on_step=True, on_epoch=False)

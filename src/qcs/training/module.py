"""The LightningModule: steps, metrics, optimisers. No mathematics.

Optimisation is manual, because SAM takes two gradients a step: Lightning passes no closure at
16-mixed, and its accumulation would re-run only the last batch. `optimizer.step()` is called once
a (accumulated) batch, so `global_step`, loggers and checkpoints count as usual.

B batch, R roles, K classes, H and W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ParallelStrategy
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassConfusionMatrix
from typing_extensions import TypedDict

from qcs.config.bounds import Count, Weight
from qcs.config.errors import UserError
from qcs.evaluation.metrics import scores
from qcs.models import Comparison, QCSNetwork
from qcs.training import schedules
from qcs.training.distributed import Watch, in_order
from qcs.training.losses import QCSLoss
from qcs.training.sam import frozen_statistics, gradient_norm, perturbed

Batch = dict[str, Tensor]


class SAMOptions(TypedDict, total=False):
    """Sharpness-aware minimisation; `rho` 0 is the plain optimiser."""

    rho: Weight
    every: Count  # steps; those between are the plain optimiser's
    adaptive: bool
    update_bn_twice: bool  # BatchNorm's running statistics move in the second pass too
    sync_first: bool  # several processes perturb alike, by the gradient of all


class SchedulerOptions(TypedDict, total=False):
    """A schedule and how often it moves; "step" counts optimiser steps."""

    interval: Literal["step", "epoch"]
    schedule: dict | Callable | None


class QCSModule(LightningModule):
    """Trains the network on groups of faces, validates and tests its base branch.

    Args:
        network: takes groups of R faces in training.
        loss: of a `Comparison` and labels.
        optimizer: makes the optimiser of the parameters.
        class_names: K names.
        scheduler: `schedule` makes the schedule of the optimiser; with interval "step" it is also
            given `total_steps`.
        sam: see `SAMOptions`; the defaults are the paper's.
        accumulate_grad_batches: batches of one optimiser step; SAM takes both gradients over all.
        gradient_clip_norm: largest norm of the gradient that the optimiser sees; None for any.
        seed: of dropout, anew each batch, so that a resumed run repeats the uninterrupted one.
        recomputes: whether the backbone runs again in the backward pass (gradient checkpointing),
            where BatchNorm's running statistics must not move again.
        recipe: plain data that rebuild the network, see `qcs.checkpoints.recipe`.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        network: QCSNetwork,
        loss: QCSLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        class_names: Sequence[str],
        scheduler: SchedulerOptions | None = None,
        sam: SAMOptions | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_norm: float | None = None,
        seed: int = 0,
        recomputes: bool = False,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.loss = network, loss
        self.make_optimizer, self.scheduler = optimizer, scheduler or {}
        self.class_names, self.recipe, self.seed = tuple(class_names), recipe, seed
        self.run: dict[str, Any] | None = None  # see `qcs.training.identity`
        self.recomputes = recomputes
        sam = sam or {}
        self.rho, self.adaptive = sam.get("rho", 0.05), sam.get("adaptive", False)
        self.sam_every = sam.get("every", 1)
        self.update_bn_twice = sam.get("update_bn_twice", True)
        self.sync_first = sam.get("sync_first", True)
        self.accumulate, self.clip_norm = accumulate_grad_batches, gradient_clip_norm
        clips_all = self.clip_norm is not None and self.clip_norm <= 0
        if self.rho < 0 or min(self.accumulate, self.sam_every) < 1 or clips_all:
            raise UserError(
                "sam.rho must be 0 or more, sam.every and accumulate_grad_batches 1 or more and "
                "gradient_clip_norm above 0 or null, "
                f"got {self.rho}, {self.sam_every}, {self.accumulate}, {self.clip_norm}"
            )
        self.window: list[Batch] = []
        self.watch = Watch()
        self.steps = 0  # of a schedule of steps
        self.val_confusion = MulticlassConfusionMatrix(len(class_names))
        self.test_outputs: list[tuple[Tensor, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) with the base branch: logits (B, K)."""
        return self.network(images)

    def configure_optimizers(self) -> Any:
        """The optimiser and, if any, its schedule; both are saved by Lightning."""
        optimizer = self.make_optimizer(self.network.parameters())
        schedule = self.scheduler.get("schedule")
        if schedule is None:
            return optimizer
        if self.scheduler.get("interval", "epoch") == "epoch":
            return [optimizer], [schedules.make(schedule, optimizer, None)]
        self.steps = schedules.steps_of(self.trainer, self.accumulate)
        if not self.steps:
            return optimizer
        return [optimizer], [schedules.make(schedule, optimizer, self.steps)]

    def on_train_start(self) -> None:
        """Refuse to lengthen a schedule of steps, which a resumed run brings along.

        Raises:
            UserError: it ends before the run does.
        """
        total = getattr(self.lr_schedulers(), "total_steps", None)
        if total is not None and total < self.steps:
            raise UserError(
                f"the run that goes on was scheduled for {total} steps and now has {self.steps}: "
                "keep trainer.max_epochs and the batch size, or start anew from its "
                "backbone.weights"
            )

    # -- training ------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout."""
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one batch's gradient; at the end of its window, SAM's second one, and the step."""
        number, total = batch_idx % self.accumulate + 1, self.trainer.num_training_batches
        size = min(self.accumulate, total - (batch_idx - number + 1))  # the last may be shorter
        sam = self.rho and self.global_step % self.sam_every == 0
        with self._synchronised(number == size and (self.sync_first or not sam)):
            self._log_training(batch, *self._backward(batch, size))
        if sam:
            self.window.append(batch)
        if number < size:
            return
        optimizer = self.optimizers()
        if sam and not self._overflow():
            self._second_gradient(optimizer)
        self.window.clear()
        self.watch.heed(batch, f"step {self.global_step} (epoch {self.current_epoch})")
        optimizer.step()
        optimizer.zero_grad()
        if self.scheduler.get("interval") == "step" and self.lr_schedulers():
            self.lr_schedulers().step()

    def _backward(self, batch: Batch, share: int) -> tuple[Comparison, dict[str, Tensor]]:
        """Add the gradient of 1/share of the batch's loss."""
        out = self.network.compare(batch["images"], batch.get("groups"))
        parts = self.loss(out, batch.get("targets", batch["labels"]))
        loss = parts["loss"] / share
        if "share" in batch:  # of an epoch's last batch that the processes cannot divide evenly
            loss = loss * batch["share"].flatten()[0]
        self.watch.announce(loss, self.trainer.world_size)
        with frozen_statistics(self.network) if self.recomputes else nullcontext():
            self.manual_backward(loss)
        return out, parts

    def _synchronised(self, wanted: bool) -> AbstractContextManager:
        """Where the gradients of all processes are averaged, or not."""
        strategy = self.trainer.strategy
        if wanted or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _overflow(self) -> bool:
        """Whether 16-mixed overflowed in the first pass: the scaler then skips the step."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            return False
        bad = not gradient_norm(self.network.parameters()).isfinite()
        return bad if self.sync_first else self.trainer.strategy.reduce_boolean_decision(bad, False)

    def _second_gradient(self, optimizer: Optimizer) -> None:
        """Replace the gradient at w by the one at SAM's perturbed weights."""
        statistics = nullcontext() if self.update_bn_twice else frozen_statistics(self.network)
        with perturbed(self.network.parameters(), self.rho, self.adaptive), statistics:
            optimizer.zero_grad()
            for number, batch in enumerate(self.window, start=1):
                with self._synchronised(number == len(self.window)):
                    self._backward(batch, len(self.window))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip; Lightning has unscaled the gradient by now."""
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    def on_train_epoch_end(self) -> None:
        """Move a schedule of epochs."""
        self._share_statistics()
        if self.scheduler.get("interval", "epoch") == "epoch" and self.lr_schedulers():
            self.lr_schedulers().step()

    def _log_training(self, batch: Batch, out: Comparison, parts: dict[str, Tensor]) -> None:
        values = {f"train/{name}": value.detach() for name, value in parts.items()}
        for name, logits in {"acc": out.base_logits, "acc_cross": out.cross_logits}.items():
            if logits is not None:
                hits = logits.detach().argmax(-1) == batch["labels"]
                values[f"train/{name}"] = hits.float().mean()
        # A step's values are of this process, an epoch's of all.
        options = {"on_step": False, "on_epoch": True, "sync_dist": self.trainer.world_size > 1}
        means = {f"{name}_epoch": value for name, value in values.items()}
        self.log_dict(means, batch_size=len(batch["labels"]), **options)
        shown = {f"{name}_step": values.pop(name) for name in ("train/loss", "train/acc")}
        self.log_dict(shown, on_step=True, on_epoch=False, prog_bar=True)
        others = {f"{name}_step": value for name, value in values.items()}
        self.log_dict(others, on_step=True, on_epoch=False)

    def _share_statistics(self) -> None:
        """Average BatchNorm's running statistics over the processes, which see other batches."""
        if self.trainer.world_size > 1:
            distribute_bn(self.network, self.trainer.world_size, reduce=True)

    # -- evaluation ----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Let all processes validate the same network, which may by now be an average."""
        self._share_statistics()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count hits and misses of the base branch."""
        self.val_confusion.update(self(batch["images"]), batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Log val/acc, val/mean_acc and val/f1."""
        values = scores(self.val_confusion.compute())
        values = {f"val/{k}": v.float() for k, v in values.items()}
        self.log_dict(values, prog_bar=True, sync_dist=self.trainer.world_size > 1)
        self.val_confusion.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        self.test_outputs.clear()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the rows (B,), logits (B, K) and labels (B,) for the report."""
        logits = self(batch["images"]).float()
        self.test_outputs.append(tuple(x.cpu() for x in (batch["rows"], logits, batch["labels"])))

    def on_test_epoch_end(self) -> None:
        """Put what all processes saw into the order of the data set."""
        self.test_outputs = [in_order(self.test_outputs, self.trainer.world_size)]

    # -- checkpoint ----------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the network without any configuration, and which run this is."""
        checkpoint["qcs"] = self.recipe
        if self.run is not None:
            checkpoint["run"] = self.run | {"processes": self.trainer.world_size}
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):  # so that a resumed run goes on with it
                checkpoint["wandb_id"] = logger.version

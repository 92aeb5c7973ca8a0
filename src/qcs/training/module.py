"""The LightningModule: training steps, optimiser, schedule, validation and test.

Optimisation is manual, because SAM needs two gradients for each step. With Lightning's automatic
optimisation the second one would come from a closure, but Lightning passes none at 16-mixed, and
with accumulated gradients it would run the last batch alone again. `optimizer.step()` is called
once for each accumulated batch, so `global_step`, loggers and checkpoints count as usual.

B batch, R roles, K classes, H and W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassConfusionMatrix

from qcs.config.errors import UserError
from qcs.evaluation.metrics import scores
from qcs.models import Comparison, QCSNetwork
from qcs.training import cuda_graphs, distributed, schedules
from qcs.training.cuda_graphs import CudaGraph
from qcs.training.sam import SAMOptions, frozen_statistics, gradient_norm, perturbed
from qcs.training.schedules import Schedule
from qcs.training.step_metrics import log_step_metrics, step_metrics

# "images" (B, R, 3, H, W) in training and (B, 3, H, W) otherwise, "labels" and "rows" (B, R) or
# (B,), and in training, where they are needed, "targets" (B, R, K), "groups" and "share" (B,).
Batch = dict[str, Tensor]


class QCSModule(LightningModule):
    """Trains the network on groups of faces, validates and tests its base branch.

    Args:
        network: the network; in training it compares groups of R faces.
        loss: a module that takes a `Comparison` and labels (B, R), or class probabilities
            (B, R, K), and returns scalars by name; "loss" is the one to minimise.
        optimizer: a function that makes the optimiser of the parameters.
        class_names: K names.
        scheduler: the schedule of the learning rate, see `Schedule`.
        sam: see `SAMOptions`; the defaults are the paper's.
        accumulate_grad_batches: number of batches of one optimiser step. SAM takes both of its
            gradients over all of them.
        gradient_clip_norm: largest norm of the gradient that the optimiser sees. None does not
            limit it.
        seed: dropout is seeded with it before each batch, so that a resumed run gives the same
            weights as an uninterrupted one.
        grad_checkpointing: whether the backbone runs again in the backward pass. BatchNorm's
            running statistics are then kept from being updated a second time.
        recipe: plain data from which the network can be rebuilt, see `qcs.checkpoints.recipe`.
        with_cuda_graphs: whether the losses and gradients of a batch are computed by a CUDA graph.

    Raises:
        UserError: a number is out of range, or an option cannot be used with CUDA graphs.
    """

    def __init__(
        self,
        network: QCSNetwork,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        class_names: Sequence[str],
        scheduler: Schedule | None = None,
        sam: SAMOptions | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_norm: float | None = None,
        seed: int = 0,
        grad_checkpointing: bool = False,
        recipe: dict[str, Any] | None = None,
        with_cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.loss = network, loss
        self.make_optimizer = optimizer
        self.scheduler: Schedule = scheduler or {}
        self.class_names, self.recipe, self.seed = tuple(class_names), recipe, seed
        self.run: dict[str, Any] | None = None  # see `qcs.training.resume`
        self.grad_checkpointing = grad_checkpointing
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
        self.cuda_graph: CudaGraph | None = None
        if with_cuda_graphs:
            cuda_graphs.require_options(self.rho, self.accumulate, grad_checkpointing)
            self.cuda_graph = CudaGraph(self.gradients, self.buffers)
        self.window: list[Batch] = []  # the batches of the current optimiser step, for SAM
        self.flags = distributed.StepFlags()
        self.total_steps: int | float = 0  # the length of a schedule that counts steps
        self.val_confusion = MulticlassConfusionMatrix(len(class_names))
        self.test_outputs: list[tuple[Tensor, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) with the base branch: logits (B, K)."""
        return self.network(images)

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule, if any; Lightning saves both."""
        optimizer = self.make_optimizer(self.network.parameters())
        schedule = self.scheduler.get("schedule")
        if schedule is None:
            return optimizer
        if self.scheduler.get("interval", "epoch") == "epoch":
            return [optimizer], [schedules.make_schedule(schedule, optimizer, None)]
        self.total_steps = schedules.total_steps(self.trainer, self.accumulate)
        if not self.total_steps:
            return optimizer
        return [optimizer], [schedules.make_schedule(schedule, optimizer, self.total_steps)]

    def require_graphs_fit(self, trainer: Any) -> None:
        """Check that CUDA graphs, if wanted, can be used with this trainer.

        Raises:
            UserError: there is no GPU or more than one, or an option that a graph cannot follow.
        """
        if self.cuda_graph is not None:
            cuda_graphs.require_trainer(trainer)

    def setup(self, stage: str) -> None:
        """Check the trainer once more, for those who use this class without `qcs.train`."""
        if stage == "fit":
            self.require_graphs_fit(self.trainer)

    def on_train_end(self) -> None:
        """Give back the memory of the graph."""
        self._forget_graph()

    def _forget_graph(self) -> None:
        if self.cuda_graph is not None:
            self.cuda_graph.forget()

    def on_train_start(self) -> None:
        """Check that a schedule of steps, which a resumed run takes from its checkpoint, fits.

        Raises:
            UserError: the schedule ends before the run does.
        """
        self._forget_graph()  # of a run before, whose weights lay elsewhere
        schedules.require_long_enough(self.lr_schedulers(), self.total_steps)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout, differently for each batch and each process."""
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch's gradient; after the last batch of an accumulated one, take the step."""
        number, total = batch_idx % self.accumulate + 1, self.trainer.num_training_batches
        # The last accumulated batch of an epoch may have fewer batches than the others.
        size = int(min(self.accumulate, total - (batch_idx - number + 1)))
        sam = bool(self.rho) and self.global_step % self.sam_every == 0
        averaged = number == size and (self.sync_first or not sam)
        with distributed.gradient_sync(self.trainer.strategy, averaged):
            out, losses = self._backward(batch, size)
        values = step_metrics(out, losses, batch["labels"])
        log_step_metrics(self, values, len(batch["labels"]))
        if sam:
            self.window.append(batch)
        if number == size:
            self._optimizer_step(sam)

    def _optimizer_step(self, sam: bool) -> None:
        """Take SAM's second gradient, if wanted, and the step."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        if sam and not self._overflow():
            self._second_gradient(optimizer)
        self.window.clear()
        self.flags.check(f"step {self.global_step} (epoch {self.current_epoch})")
        optimizer.step()
        optimizer.zero_grad()
        if self.scheduler.get("interval") == "step":
            self._step_schedule()

    def _step_schedule(self) -> None:
        """Let the schedule, if any, set the next learning rate."""
        schedule = self.lr_schedulers()
        if schedule and not isinstance(schedule, list):
            schedule.step()

    def _backward(self, batch: Batch, number: int) -> tuple[Comparison, dict[str, Tensor]]:
        """Add the gradient of the batch's loss divided by `number`."""
        if self.cuda_graph is not None:
            inputs = {name: value for name, value in batch.items() if name != "rows"}
            out, losses, loss, gradients = self.cuda_graph(inputs)
            for parameter, gradient in zip(self.trained(), gradients, strict=True):
                parameter.grad = gradient
            self.flags.reduce(loss, batch, self.trainer.world_size)
            return out, {name: value.clone() for name, value in losses.items()}
        out, losses, loss = self._losses(batch)
        loss = loss / number
        self.flags.reduce(loss, batch, self.trainer.world_size)
        with frozen_statistics(self.network) if self.grad_checkpointing else nullcontext():
            self.manual_backward(loss)
        return out, losses

    def _losses(self, batch: Batch) -> tuple[Comparison, dict[str, Tensor], Tensor]:
        """The outputs, the losses, and the one to minimise, of the whole batch."""
        out = self.network.compare(batch["images"], batch.get("groups"))
        losses = self.loss(out, batch.get("targets", batch["labels"]))
        loss = losses["loss"]
        if "share" in batch:  # this process has more or less than an even part of the last batch
            loss = loss * batch["share"].flatten()[0]
        return out, losses, loss

    def gradients(self, batch: Batch) -> tuple[Any, dict[str, Tensor], Tensor, list[Tensor | None]]:
        """What `_losses` returns, for good, and the gradient of each of `trained`."""
        out, losses, loss = self._losses(batch)
        parameters = self.trained()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        # Each in memory of its own, and in the layout of its parameter, as optimisers may want it.
        gradients: list[Tensor | None] = [
            None if gradient is None else torch.empty_like(parameter).copy_(gradient)
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        outputs: dict[str, Any] = {
            k: None if x is None else x.detach() for k, x in out._asdict().items()
        }
        values = {k: x.detach() for k, x in losses.items()}
        return out._replace(**outputs), values, loss.detach(), gradients

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def _overflow(self) -> bool:
        """Return whether 16-mixed overflowed in the first pass; the scaler then skips the step."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            return False
        overflow = not gradient_norm(self.network.parameters()).isfinite()
        if self.sync_first:  # all processes have the same gradient
            return overflow
        return self.trainer.strategy.reduce_boolean_decision(overflow, all=False)

    def _second_gradient(self, optimizer: LightningOptimizer) -> None:
        """Replace the gradient at the weights by the one at SAM's perturbed weights."""
        statistics = nullcontext() if self.update_bn_twice else frozen_statistics(self.network)
        with perturbed(self.network.parameters(), self.rho, self.adaptive), statistics:
            optimizer.zero_grad()
            for number, batch in enumerate(self.window, start=1):
                with distributed.gradient_sync(self.trainer.strategy, number == len(self.window)):
                    self._backward(batch, len(self.window))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, which Lightning has already unscaled."""
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)

    def on_train_epoch_end(self) -> None:
        """Average BatchNorm's statistics over the processes; step a schedule of epochs."""
        distributed.average_statistics(self.network, self.trainer.world_size)
        if self.scheduler.get("interval", "epoch") == "epoch":
            self._step_schedule()

    def on_validation_epoch_start(self) -> None:
        """Let all processes validate the same network.

        This is needed also after an epoch: a callback may have put averaged weights in its place.
        """
        distributed.average_statistics(self.network, self.trainer.world_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the base branch's predictions in the confusion matrix."""
        self.val_confusion.update(self(batch["images"]), batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Log val/acc, val/mean_acc and val/f1."""
        values = scores(self.val_confusion.compute())
        values = {f"val/{k}": v.float() for k, v in values.items()}
        self.log_dict(values, prog_bar=True, sync_dist=self.trainer.world_size > 1)
        self.val_confusion.reset()

    def on_test_epoch_start(self) -> None:
        """Clear the outputs of the test before."""
        self.test_outputs.clear()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the rows (B,), logits (B, K) and labels (B,) for the report.

        They are computed as `qcs.eval` does it, without the mixed precision of the training.
        """
        with torch.autocast(self.device.type, enabled=False):
            logits = self(batch["images"]).float()
        self.test_outputs.append(tuple(x.cpu() for x in (batch["rows"], logits, batch["labels"])))

    def on_test_epoch_end(self) -> None:
        """Gather the outputs of all processes in the order of the data set."""
        processes = self.trainer.world_size
        self.test_outputs = [distributed.gather_in_order(self.test_outputs, processes)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the network's recipe and the run's identity, with which a checkpoint is complete."""
        checkpoint["qcs"] = self.recipe
        if self.run is not None:
            checkpoint["run"] = self.run | {"processes": self.trainer.world_size}
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):  # a resumed run logs to the same W&B run
                checkpoint["wandb_id"] = logger.version

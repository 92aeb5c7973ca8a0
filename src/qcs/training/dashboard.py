"""What a run shows beside its losses: speed, gradient norm, theta, pictures.

Nothing here moves a weight, a BatchNorm
statistic or a random number. Under DDP rank zero alone draws and logs.
"""

import functools
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from qcs import plots
from qcs.config.bounds import Natural, Seed
from qcs.config.errors import UserError
from qcs.evaluation import attention
from qcs.evaluation.report import try_to_draw
from qcs.training.loggers import show
from qcs.training.sam import gradient_norm


class Dashboard(Callback):
    """Logs numbers at log steps and draws pictures every few epochs.

    Args:
        every_n_epochs: between pictures; the last epoch has them as well. 0 for none.
        seed: of the group of faces whose attention is drawn.
        upload_best: give the selected checkpoint to the W&B run as an artifact.

    Raises:
        UserError: `every_n_epochs` is negative.
    """

    def __init__(
        self,
        every_n_epochs: Natural = 10,
        seed: Seed = 0,
        upload_best: bool = False,
    ) -> None:
        if every_n_epochs < 0:
            raise UserError(
                "callbacks.dashboard.every_n_epochs must be 0 (no pictures) or more, "
                f"got {every_n_epochs}"
            )
        self.every_n_epochs, self.seed, self.upload_best = every_n_epochs, seed, upload_best
        self.epoch = self.drawn = 0
        self.due, self.norm = False, None
        self.confusion: Tensor | None = None
        self._restart()

    # -- numbers -------------------------------------------------------------------------

    def _restart(self) -> None:
        self.start, self.groups, self.faces = time.monotonic(), 0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock anew: validation within an epoch is not training."""
        self._restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notice a log step; the numbers come with the optimiser step that it belongs to."""
        logs = (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0
        self.due |= logs and trainer.is_global_zero

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Measure the gradient: unscaled, with SAM the second one, and before clipping."""
        if self.due:
            self.norm = gradient_norm(pl_module.network.parameters())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Count, and log where it is time."""
        self.groups += batch["labels"].shape[0]
        self.faces += batch["images"].shape[:2].numel()
        if self.norm is None:
            return
        values = self._numbers(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.total_batch_idx)
        self.due, self.norm = False, None
        self._restart()

    def _numbers(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """All numbers; the first one waits for the device, so the clock is read after it."""
        values = {"train/gradient_norm": self.norm.item()}
        seconds = time.monotonic() - self.start
        values["train/images_per_second"] = self.faces * trainer.world_size / seconds
        values["train/groups_per_second"] = self.groups * trainer.world_size / seconds
        if pl_module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(pl_module.device)
            values["train/gpu_memory_gib"] = peak / 2**30
        cross = pl_module.network.cross
        for level, block in enumerate(cross.attention if cross is not None else (), start=1):
            if hasattr(block, "theta"):
                values[f"train/theta_{level}"] = block.theta.item()
        return values

    # -- pictures ------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the counts, on every rank; torchmetrics then gives the module the same ones."""
        if self.every_n_epochs and not trainer.sanity_checking:
            self.confusion = pl_module.val_confusion.compute().cpu()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, where it is time."""
        self.epoch = trainer.current_epoch + 1
        if self.every_n_epochs and self.epoch % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last epoch."""
        if self.every_n_epochs and self.drawn != self.epoch:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.drawn = self.epoch
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "pictures" / f"epoch_{self.epoch:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        heading, pictures = f"after epoch {self.epoch}", {}
        if self.confusion is not None:
            parts = (self.confusion, pl_module.class_names)
            draw = functools.partial(plots.confusion, *parts, title=f"validation {heading}")
            if try_to_draw(draw, folder / "confusion.png"):
                pictures["val/confusion"] = folder / "confusion.png"
            self.confusion = None  # the next picture is of the next validation
        data, path = trainer.datamodule, folder / "attention.png"
        faces = data.train if data.select_on == "last" else data.manifest.split(data.select_on)
        options = {"network": pl_module.network, "manifest": faces, "seed": self.seed}
        options |= {"transform": data.eval_transform, "heading": f"attention {heading}"}
        if try_to_draw(functools.partial(attention.draw_attention, **options), path):
            pictures["val/attention"] = path
        show(trainer.loggers, pictures, trainer.fit_loop.total_batch_idx)

    # -- Weights & Biases ----------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Upload the selected checkpoint, the one that is tested, when asked for."""
        saved = trainer.checkpoint_callback
        if not (self.upload_best and trainer.is_global_zero and saved and saved.best_model_path):
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                name = f"model-{logger.version}"
                logger.experiment.log_artifact(saved.best_model_path, name, "model", ["best"])

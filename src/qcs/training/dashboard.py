"""A callback that logs speed, gradient norm and theta, and draws pictures of a run.

It changes no weight, no BatchNorm statistic and no random number. Under DDP only the first process
draws and logs.
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
from qcs.data.datamodule import FaceDataModule
from qcs.evaluation import attention
from qcs.evaluation.report import try_to_draw
from qcs.models.cross_similarity import CrossSimilarityBlock
from qcs.training.loggers import log_pictures
from qcs.training.module import QCSModule
from qcs.training.sam import gradient_norm
from qcs.training.trainer_attributes import (
    best_model_path,
    data_module,
    is_dry_run,
    steps_between_logs,
)


class Dashboard(Callback):
    """Logs numbers whenever metrics are logged, and draws pictures every few epochs.

    Args:
        every_n_epochs: number of epochs from one set of pictures to the next; the last epoch is
            drawn as well. 0 draws none.
        seed: seed that chooses the group of faces whose attention is drawn.
        upload_best: whether to upload the selected checkpoint to the W&B run as an artifact.

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
        self.due = False  # whether this process logs at the next optimiser step
        self.norm: Tensor | None = None  # of the gradient, measured where it is due
        self.confusion: Tensor | None = None
        self._restart()

    # -- numbers -------------------------------------------------------------------------

    def _restart(self) -> None:
        self.start, self.groups, self.faces = time.monotonic(), 0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again, because the time of a validation is not that of training."""
        self._restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that it is time to log; the numbers follow at the end of the optimiser step."""
        logs = (trainer.fit_loop.total_batch_idx + 1) % steps_between_logs(trainer) == 0
        self.due |= logs and trainer.is_global_zero

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Measure the gradient after unscaling and before clipping; with SAM, the second one."""
        if self.due:
            self.norm = gradient_norm(_trained(pl_module).network.parameters())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Count groups and faces, and log if it is time."""
        self.groups += batch["labels"].shape[0]
        self.faces += batch["images"].shape[:2].numel()
        if self.norm is None:
            return
        values = self._numbers(trainer, _trained(pl_module), self.norm)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.total_batch_idx)
        self.due, self.norm = False, None
        self._restart()

    def _numbers(self, trainer: Trainer, module: QCSModule, norm: Tensor) -> dict[str, float]:
        """Return all numbers by name."""
        values = {"train/gradient_norm": norm.item()}  # waits for the device; then read the clock
        seconds = time.monotonic() - self.start
        values["train/images_per_second"] = self.faces * trainer.world_size / seconds
        values["train/groups_per_second"] = self.groups * trainer.world_size / seconds
        if module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(module.device)
            values["train/gpu_memory_gib"] = peak / 2**30
        cross = module.network.cross
        for level, block in enumerate(cross.attention if cross is not None else (), start=1):
            if isinstance(block, CrossSimilarityBlock) and hasattr(block, "theta"):
                values[f"train/theta_{level}"] = block.theta.item()
        return values

    # -- pictures ------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the confusion matrix.

        Every process has to do so, because computing it gathers the counts of all. The module then
        gets the same matrix from torchmetrics, which keeps it.
        """
        if self.every_n_epochs and not trainer.sanity_checking:
            self.confusion = _trained(pl_module).val_confusion.compute().cpu()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, if it is time."""
        self.epoch = trainer.current_epoch + 1
        if self.every_n_epochs and self.epoch % self.every_n_epochs == 0:
            self._draw(trainer, _trained(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last epoch, unless it has been drawn."""
        if self.every_n_epochs and self.drawn != self.epoch:
            self._draw(trainer, _trained(pl_module))

    def _draw(self, trainer: Trainer, module: QCSModule) -> None:
        """Draw the pictures of an epoch and give them to the loggers."""
        self.drawn = self.epoch
        if is_dry_run(trainer) or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "pictures" / f"epoch_{self.epoch:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        pictures = self._draw_confusion(module, folder / "confusion.png")
        data = data_module(trainer)
        assert data is not None
        pictures |= self._draw_attention(module, data, folder / "attention.png")
        log_pictures(trainer.loggers, pictures, trainer.fit_loop.total_batch_idx)

    def _draw_confusion(self, module: QCSModule, path: Path) -> dict[str, Path]:
        matrix, self.confusion = self.confusion, None  # it is that of the last validation alone
        if matrix is None:
            return {}
        title = f"validation after epoch {self.epoch}"
        draw = functools.partial(plots.confusion, matrix, module.class_names, title=title)
        return {"val/confusion": path} if try_to_draw(draw, path) else {}

    def _draw_attention(
        self, module: QCSModule, data: FaceDataModule, path: Path
    ) -> dict[str, Path]:
        draw = functools.partial(
            attention.draw_attention,
            network=module.network,
            manifest=data.train
            if data.select_on == "last"
            else data.manifest.split(data.select_on),
            transform=data.eval_transform,
            seed=self.seed,
            heading=f"attention after epoch {self.epoch}",
        )
        return {"val/attention": path} if try_to_draw(draw, path) else {}

    # -- Weights & Biases ----------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Upload the selected checkpoint, which is the one that is tested, if wanted."""
        path = best_model_path(trainer.checkpoint_callback)
        if not (self.upload_best and trainer.is_global_zero and path):
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                name = f"model-{logger.version}"
                logger.experiment.log_artifact(path, name, "model", ["best"])


def _trained(module: LightningModule) -> QCSModule:
    assert isinstance(module, QCSModule)
    return module

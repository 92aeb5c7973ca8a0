"""A callback by which a training job reports to its trial of a search, and may be pruned."""

import logging
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from qcs.search.study import open_storage, optuna
from qcs.search.summary import PRUNED

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports the metric after each validation, and stops the run if the study prunes the trial.

    Args:
        trial: "storage" and "study", which name the study, and "id" of the trial.
        metric: the name of the metric that is searched for.
    """

    def __init__(self, trial: dict[str, Any], metric: str) -> None:
        study = optuna.load_study(study_name=trial["study"], storage=open_storage(trial["storage"]))
        self.trial, self.metric = optuna.Trial(study, trial["id"]), metric

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric of this epoch."""
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        step = trainer.current_epoch
        self.trial.report(float(trainer.callback_metrics[self.metric]), step)
        if self.trial.should_prune():
            self.trial.set_user_attr("pruned", step)
            (Path(trainer.default_root_dir) / PRUNED).touch()
            log.info("pruned after epoch %d: others were better", step + 1)
            trainer.should_stop = True

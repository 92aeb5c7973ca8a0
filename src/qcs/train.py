"""Train a network: `python -m qcs.train dataset=... model=... backbone=...`."""

import logging
import os
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints import files
from qcs.config import provenance, threads
from qcs.config.bounds import Count, Positive, Seed
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import BackboneOptions, resolve
from qcs.data import workers
from qcs.data.datamodule import FaceDataModule
from qcs.training import (
    build,
    distributed,
    loggers,
    multirun,
    resume,
    run_folder,
    schedules,
    wandb_login,
)
from qcs.training.final_test import test_selected
from qcs.training.last_checkpoint import exit_on_interrupt
from qcs.training.module import QCSModule
from qcs.training.sam import SAMOptions
from qcs.training.schedules import SchedulerOptions
from qcs.training.trainer_attributes import best_model_path, is_dry_run

log = logging.getLogger(__name__)

# The environment variable in which the first process of a run tells the others its folder.
RUN_DIR_VARIABLE = "QCS_RUN_DIR"


class Settings(TypedDict):
    """The keys of conf/train.yaml; the keys of a group with a `_target_` are its arguments."""

    seed: Seed
    select_on: Literal["val", "test", "last"]
    test: bool
    ckpt: str | None
    trust: str | list[str] | None
    optimized_metric: str | list[str] | None
    trial: dict | None
    accumulate_grad_batches: Count
    gradient_clip_norm: Positive | None
    sam: SAMOptions
    speed: build.SpeedOptions
    store: str | None
    run_dir: str
    dataset: dict
    backbone: BackboneOptions
    model: dict
    loss: dict
    augment: dict
    optimizer: dict
    scheduler: SchedulerOptions
    loader: dict
    trainer: dict
    callbacks: dict[str, dict | None] | None
    logger: dict[str, dict | None] | None


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train, select a checkpoint, test it once, and write everything to the run's folder.

    Until all checks have passed, nothing but a lock is written there.

    Returns:
        All metrics of the run by name, such as "val/acc" and "test/acc".

    Raises:
        UserError: something in the config, the data or the run's folder does not allow the run.
    """
    folder = Path(config["run_dir"])
    lock = run_folder.locked(folder) if distributed.is_first_process() else nullcontext()
    with run_folder.deferred_log() as log_file, lock, exit_on_interrupt(folder):
        ckpt = files.find(config["ckpt"], folder) if config["ckpt"] is not None else None
        state = files.state_of(ckpt) if ckpt else None
        resumes_here = ckpt is not None and ckpt.resolve().parent.parent == folder.resolve()
        _prepare_folder(config, folder, state if resumes_here else None)
        lightning.seed_everything(config["seed"], verbose=False)
        data = build.datamodule(config)
        run = resume.identity(config, data.manifest)
        if ckpt and state:
            resume.require_same(state.run, run, ckpt)
        module = build.module(config, data, resumes=ckpt is not None)
        module.run = run
        trainer = _trainer(config, folder, state)
        module.require_graphs_fit(trainer)
        schedules.require_makeable(module.scheduler, module.make_optimizer, trainer)
        if ckpt and state:
            resume.require_fitting(state.content, trainer, module, ckpt)
            state = state._replace(content={})  # it is large
        data.require_images_for(trainer.world_size)
        wandb_login.start(trainer.loggers)
        if trainer.is_global_zero and not is_dry_run(trainer):
            log_file.open_in(folder)
            provenance.write(folder, config)
            first_step = state.step if state and resumes_here else 0
            for logger in trainer.loggers:
                if isinstance(logger, loggers.CSVLogger):
                    loggers.drop_rows(Path(logger.log_dir), first_step)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        with distributed.ended_together(trainer):
            try:
                return _fit(config, trainer, module, data, ckpt, state)
            except (MisconfigurationException, ValueError) as error:
                *_, (frame, _) = traceback.walk_tb(error.__traceback__)
                if not frame.f_globals["__name__"].startswith("lightning."):
                    raise
                raise UserError(f"this cannot be trained as configured: {error}") from error


def _prepare_folder(config: dict[str, Any], folder: Path, resumed: files.State | None) -> None:
    """Check that the run may write to its folder; let a resumed one log to its W&B run.

    `resumed` is the state of the checkpoint, if it is of this folder.
    """
    if resumed is None:
        dry_run = bool(config["trainer"].get("fast_dev_run"))  # it writes nothing
        if distributed.is_first_process() and not dry_run and config["ckpt"] != "auto":
            run_folder.refuse_second_run(folder)
    elif resumed.wandb_id and (config["logger"] or {}).get("wandb"):
        config["logger"]["wandb"]["id"] = resumed.wandb_id


def _fit(
    config: dict[str, Any],
    trainer: lightning.Trainer,
    module: QCSModule,
    data: FaceDataModule,
    ckpt: Path | None,
    state: files.State | None,
) -> dict[str, float]:
    """Train and test, after all checks; return all metrics by name."""
    folder = Path(config["run_dir"])
    if config["select_on"] == "test":
        log.warning(
            "select_on=test: the best epoch is chosen on the test set, as the papers do; "
            "the test accuracy below is biased upwards"
        )
    millions = sum(p.numel() for p in module.parameters()) / 1e6
    where = "nothing is saved" if is_dry_run(trainer) else f"run folder {folder}"
    log.info("%.2f M parameters, threads: %d, %s", millions, threads.threads(), where)
    if ckpt:
        log.info("going on from %s", ckpt)
    with workers.translated_errors("loader."):
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    best = [c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)]
    missing = trainer.global_step and best and not any(map(best_model_path, best))
    if missing and not is_dry_run(trainer):
        if trainer.is_global_zero:
            log.warning("no epoch was validated to its end, so there is no best.ckpt")
        with workers.translated_errors("loader."):
            trainer.validate(module, data, verbose=False)  # what a sweep optimises
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    if state and trainer.global_step == state.optimizer_steps:
        log.info("the run was finished at step %d: nothing is left to train", trainer.global_step)
        for callback in trainer.checkpoint_callbacks:
            metrics |= getattr(callback, "metrics", {})
    elif trainer.global_step == 0:
        log.warning("no step was taken, so the network is not trained: it is not tested")
        return metrics
    if config["test"] and not is_dry_run(trainer):
        with workers.translated_errors("loader."):
            metrics |= test_selected(trainer, module, data, folder, config["select_on"])
    return metrics


def _trainer(config: dict[str, Any], folder: Path, state: files.State | None) -> lightning.Trainer:
    """Build the trainer.

    Raises:
        UserError: the config asks for something that Lightning or this machine cannot do, the run
            would train nothing, or it cannot be resumed with this number of processes.
    """
    if config["trainer"].get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches=0 trains nothing; for a test alone: qcs.eval")
    limit = config["trainer"].get("limit_test_batches")
    if config["test"] and repr(limit) not in ("None", "1.0"):
        raise UserError(
            f"trainer.limit_test_batches={limit}: the report at the end is of all test images; "
            "leave it out, or write test=false"
        )
    try:
        trainer = build.trainer(config, folder)
    except UserError:
        raise
    except (MisconfigurationException, ValueError) as error:  # Lightning rejects an option
        raise UserError(f"the trainer cannot be made as configured: {error}") from error
    if state:
        by_step = (config["scheduler"] or {}).get("interval") == "step"
        resume.require_same_processes(
            state.run, trainer.world_size, by_step=by_step, within_epoch=state.within_epoch
        )
    return trainer


def _choose_folder(cfg: DictConfig) -> None:
    """For ckpt=last, take the folder of the newest run, unless the user has named a folder.

    Processes that this one starts take the same folder.
    """
    inherited = os.environ.pop(RUN_DIR_VARIABLE, None)
    if inherited and distributed.process_rank():
        cfg.run_dir = inherited
        return
    job = HydraConfig.get()
    given = {o.lstrip("+").split("=", 1)[0] for o in (*job.overrides.hydra, *job.overrides.task)}
    named = bool(given & {"hydra.run.dir", "run_dir"}) or job.mode == RunMode.MULTIRUN
    if cfg.get("ckpt") == "last" and not named:
        unused = Path(cfg.run_dir)
        cfg.run_dir = os.environ[RUN_DIR_VARIABLE] = str(files.newest_beside(unused))
        with suppress(OSError):  # Hydra has made this folder, and it is empty
            unused.rmdir()


@command("train")
def main(cfg: DictConfig) -> float | list[float] | None:
    """Compose the config, check it and train; return the metrics that a sweep optimises."""
    if distributed.process_rank():
        logging.getLogger().setLevel(logging.WARNING)
    _choose_folder(cfg)
    config = resolve(cfg, Settings)
    is_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    if is_multirun:
        multirun.prepare_job(config, Path(HydraConfig.get().sweep.dir).name)
    try:
        metrics = train(config)
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:  # the next job has its own W&B run
            wandb.finish()
    return multirun.optimized_values(config, metrics) if is_multirun else None


if __name__ == "__main__":
    main()

"""Train a network: `python -m qcs.train dataset=... model=... backbone=...`."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints import files, reading
from qcs.config import provenance
from qcs.config.bounds import Count, Positive, Seed
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import BackboneOptions, resolve
from qcs.data import workers
from qcs.evaluation import report
from qcs.models.cpu_kernels import SpeedOptions
from qcs.training import build, distributed, identity, loggers, run_folder
from qcs.training.last_checkpoint import INTERRUPTED
from qcs.training.module import SAMOptions, SchedulerOptions

log = logging.getLogger(__name__)

CHOSEN = "QCS_RUN_DIR"  # environment variable: the run's folder, for processes that this one starts


class Settings(TypedDict):
    """The keys of conf/train.yaml; groups with a `_target_` take its arguments."""

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
    speed: SpeedOptions
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
    callbacks: dict | None
    logger: dict | None


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train, select, test once, and leave everything in the run's folder.

    Nothing is written there, except its lock, before it is certain that the run may.

    Args:
        config: plain and checked, of conf/train.yaml.

    Returns:
        All metrics of the run by name ("val/acc", "test/acc", ...).
    """
    folder = Path(config["run_dir"])
    first = distributed.is_first_process()
    alone = run_folder.alone_in(folder) if first else nullcontext()
    with run_folder.held_back() as log_file, alone, _interrupts(folder):
        ckpt = files.find(config["ckpt"], folder) if config["ckpt"] else None
        state = files.state_of(ckpt) if ckpt else None
        goes_on = ckpt is not None and ckpt.resolve().parent.parent == folder.resolve()
        dry = bool(config["trainer"].get("fast_dev_run"))  # writes nothing
        if first and not (goes_on or dry or config["ckpt"] == "auto"):
            run_folder.refuse_second_run(folder)
        if goes_on and state.wandb_id and (config["logger"] or {}).get("wandb"):
            config["logger"]["wandb"]["id"] = state.wandb_id
        lightning.seed_everything(config["seed"], verbose=False)
        data = build.datamodule(config)
        run = identity.identity(config, data.manifest)
        if state:
            identity.require_same(state.run, run, ckpt)
        module = build.module(config, data, resumes=ckpt is not None)
        module.run = run
        trainer = _trainer(config, folder, state)
        if trainer.is_global_zero and not dry:
            log_file.open_in(folder)
            provenance.write(folder, config)
            for logger in trainer.loggers:
                if isinstance(logger, loggers.CSVLogger):
                    loggers.forget(Path(logger.log_dir), state.step if goes_on else 0)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        return _fit(config, trainer, module, data, ckpt, state)


def _fit(
    config: dict[str, Any],
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    ckpt: Path | None,
    state: files.State | None,
) -> dict[str, float]:
    """Train and test; every check has been passed."""
    folder = Path(config["run_dir"])
    if config["select_on"] == "test":
        log.warning(
            "select_on=test: the best epoch is chosen on the test set, as the papers do; "
            "the test accuracy below is biased upwards"
        )
    log.info("%.2f M parameters, run folder %s", _millions(module), folder)
    if ckpt:
        log.info("going on from %s", ckpt)
    with workers.told():
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if state and trainer.global_step == state.optimizer_steps:
        log.info("the run was finished at step %d: nothing is left to train", trainer.global_step)
        for saved in trainer.checkpoint_callbacks:
            metrics |= getattr(saved, "metrics", {})
    elif trainer.global_step == 0:
        log.warning("no step was taken, so the network is not trained: it is not tested")
        return metrics
    if config["test"] and not trainer.fast_dev_run:
        with workers.told():
            metrics |= test(config, trainer, module, data, folder)
    return metrics


def _trainer(config: dict[str, Any], folder: Path, state: files.State | None) -> lightning.Trainer:
    """Build the trainer.

    Raises:
        UserError: what Lightning or this machine cannot do, a run that would train nothing, or one
            that cannot go on with so many processes.
    """
    if config["trainer"].get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches=0 trains nothing; for a test alone: qcs.eval")
    try:
        trainer = build.trainer(config, folder)
    except UserError:
        raise
    except (MisconfigurationException, ValueError) as error:  # of an option of the trainer
        raise UserError(f"the trainer cannot be made as configured: {error}") from error
    processes = state and state.run and state.run["processes"]
    if processes and processes != trainer.world_size:
        by_step = (config["scheduler"] or {}).get("interval") == "step"
        if by_step or state.within_epoch:
            reason = "its schedule counts their steps" if by_step else "it stands within an epoch"
            raise UserError(
                f"the run was of {processes} processes and would now be of {trainer.world_size}, "
                f"but {reason}: keep trainer.devices and trainer.num_nodes"
            )
    return trainer


@contextmanager
def _interrupts(folder: Path) -> Iterator[None]:
    """End a run that is interrupted, without being saved first, with status 130 and a sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning makes the first into the second
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if files.last(folder):
            log.warning(
                "interrupted; go on from where it was last saved with the same command and "
                "hydra.run.dir=%s ckpt=last",
                folder,
            )
        else:
            log.warning("interrupted before anything was saved")
        raise SystemExit(INTERRUPTED) from None


def test(
    config: dict[str, Any],
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    folder: Path,
) -> dict[str, float]:
    """Run the test set once, on the selected checkpoint, and write the report."""
    path = _selected(trainer)
    if path:
        # Exactly the weights of the file: callbacks that average would put others in their place.
        module.load_state_dict(reading.read(path)["state_dict"])
    trainer.test(module, data, verbose=False)
    if not trainer.is_global_zero:
        return {}
    _, logits, labels = module.test_outputs[0]
    about = {
        "dataset": data.manifest.root.resolve().name,
        "split": "test",
        "ckpt": path and str(path),
        "selected_on": config["select_on"],
    }
    result = report.write(folder / "test", logits, labels, data.manifest.split("test"), about)
    values = {f"test/{k}": result[k] for k in ("acc", "mean_acc", "f1")}
    step = trainer.fit_loop.total_batch_idx + 1  # behind all others
    loggers.log_report(trainer.loggers, folder / "test", result, step)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)
        logger.save()
    log.info("checkpoint %s, report in %s", path, folder / "test")
    return values


def _selected(trainer: lightning.Trainer) -> Path | None:
    """The first checkpoint that is there: best.ckpt, or else last.ckpt; None where none is kept."""
    found = (getattr(saved, "best_model_path", None) for saved in trainer.checkpoint_callbacks)
    return next((Path(path) for path in found if path and Path(path).is_file()), None)


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def _sweep(config: dict[str, Any]) -> None:
    """Prepare a job of a multirun.

    Raises:
        UserError: the job would start processes, each of which would start the whole multirun
            again; or what it optimises is never measured.
    """
    options = config["trainer"]
    devices, number = options.get("devices", 1), options.get("num_nodes", 1)
    if devices in ("auto", -1, "-1"):
        on_gpu = options.get("accelerator", "auto") != "cpu"
        devices = torch.cuda.device_count() if on_gpu else 1
    number *= len(devices) if isinstance(devices, list) else int(devices)
    outside = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    if number > 1 and not outside:
        raise UserError(
            "a multirun whose jobs start several processes would start itself again in each: "
            "write trainer.devices=1 (jobs side by side: hydra/launcher=joblib), or let SLURM "
            "(hydra/launcher=submitit_slurm) or Ray (hydra/launcher=ray) start them"
        )
    names = [config["optimized_metric"]]
    names = names[0] if isinstance(names[0], list) else names
    unmeasured = {
        "select_on=last": config["select_on"] == "last",
        "trainer.limit_val_batches=0": options.get("limit_val_batches") == 0,
    }
    for setting in (s for s, holds in unmeasured.items() if holds):
        if any(n and n.startswith("val/") for n in names):
            raise UserError(
                f"optimized_metric={config['optimized_metric']} is never measured with {setting}, "
                "and a sweep needs it: write select_on=val and validate on all batches"
            )
    if wandb := (config["logger"] or {}).get("wandb"):
        wandb["group"] = wandb.get("group") or Path(HydraConfig.get().sweep.dir).name


def _optimized(config: dict[str, Any], metrics: dict[str, float]) -> float | list[float] | None:
    """The metric, or metrics, that a sweep optimises."""
    wanted = config["optimized_metric"]
    names = wanted if isinstance(wanted, list) else [wanted] if wanted else []
    if unknown := [n for n in names if n not in metrics]:
        raise UserError(f"optimized_metric={unknown[0]} is not logged: {sorted(metrics)} are")
    values = [metrics[n] for n in names]
    return values if isinstance(wanted, list) else values[0] if values else None


def _choose_folder(cfg: DictConfig) -> None:
    """For ckpt=last, take the folder of the newest run of its kind, unless a folder was named.

    The processes that this one starts take the same.
    """
    told = os.environ.pop(CHOSEN, None)
    if told and rank_zero_only.rank:
        cfg.run_dir = told
        return
    job = HydraConfig.get()
    given = {o.lstrip("+").split("=", 1)[0] for o in (*job.overrides.hydra, *job.overrides.task)}
    named = bool(given & {"hydra.run.dir", "run_dir"}) or job.mode == RunMode.MULTIRUN
    if cfg.get("ckpt") == "last" and not named:
        made = Path(cfg.run_dir)
        cfg.run_dir = os.environ[CHOSEN] = str(files.newest_beside(made))
        with suppress(OSError):  # Hydra made a new one
            made.rmdir()


@command("train")
def main(cfg: DictConfig) -> float | list[float] | None:
    """Compose, check, train; return the metric that a sweep optimises."""
    if rank_zero_only.rank:
        logging.getLogger().setLevel(logging.WARNING)
    _choose_folder(cfg)
    config = resolve(cfg, Settings)
    several = HydraConfig.get().mode == RunMode.MULTIRUN
    if several:
        _sweep(config)
    try:
        metrics = train(config)
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:  # the next job has a run of its own
            wandb.finish()
    return _optimized(config, metrics) if several else None


if __name__ == "__main__":
    main()

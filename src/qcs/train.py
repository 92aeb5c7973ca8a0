"""Train a network: `python -m qcs.train dataset=... model=... backbone=...`."""

import logging
import sys
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints import files
from qcs.config import provenance
from qcs.config.bounds import Count, Positive, Seed
from qcs.config.command import command
from qcs.config.errors import UserError
from qcs.config.options import BackboneOptions, plain
from qcs.data import workers
from qcs.evaluation import report
from qcs.models.cpu_kernels import SpeedOptions
from qcs.training import build, loggers
from qcs.training.module import SAMOptions, SchedulerOptions

log = logging.getLogger(__name__)


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

    Args:
        config: plain and checked, of conf/train.yaml.

    Returns:
        All metrics of the run by name ("val/acc", "test/acc", ...).
    """
    folder = Path(config["run_dir"])
    ckpt = files.find(config["ckpt"], folder) if config["ckpt"] else None
    if ckpt and ckpt.resolve().parent.parent == folder.resolve():
        _continue(config, ckpt)
    lightning.seed_everything(config["seed"], verbose=False)
    data = build.datamodule(config)
    module = build.module(config, data, resumes=ckpt is not None)
    trainer = build.trainer(config, folder)
    if trainer.is_global_zero:
        provenance.write(folder, config)
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
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
        metrics = dict(trainer.callback_metrics)
        if config["test"] and not trainer.fast_dev_run:
            metrics |= test(config, trainer, module, data, folder)
    return {name: float(value) for name, value in metrics.items()}


def _continue(config: dict[str, Any], ckpt: Path) -> None:
    """Let the loggers of a run go on where its checkpoint stands."""
    state = files.state_of(ckpt)
    nodes = [node for node in (config["logger"] or {}).values() if node]
    for node in nodes:
        if node["_target_"] == "qcs.training.loggers.CSVLogger" and rank_zero_only.rank == 0:
            loggers.forget(Path(node["save_dir"]) / node["version"], state["step"])
        if node["_target_"].endswith("WandbLogger") and state["wandb_id"]:
            node["id"] = state["wandb_id"]


def test(
    config: dict[str, Any],
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    folder: Path,
) -> dict[str, float]:
    """Run the test set once, on the selected checkpoint, and write the report."""
    saved = trainer.checkpoint_callback  # the first: best.ckpt, or last.ckpt for select_on=last
    path = (saved and saved.best_model_path) or None
    trainer.test(module, data, ckpt_path=path, weights_only=True, verbose=False)
    if not trainer.is_global_zero:
        return {}
    _, logits, labels = module.test_outputs[0]
    about = {
        "dataset": data.manifest.root.name,
        "split": "test",
        "ckpt": str(path),
        "selected_on": config["select_on"],
    }
    result = report.write(folder / "test", logits, labels, data.manifest.split("test"), about)
    values = {f"test/{k}": result[k] for k in ("acc", "mean_acc", "f1")}
    loggers.log_report(trainer.loggers, folder / "test", result, trainer.global_step)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
        logger.save()
    log.info("checkpoint %s, report in %s", path, folder / "test")
    return values


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
    if config["select_on"] == "last" and any(n and n.startswith("val/") for n in names):
        raise UserError(
            f"optimized_metric={config['optimized_metric']} is never measured with "
            "select_on=last, and a sweep needs it: write select_on=val"
        )
    for node in (config["logger"] or {}).values():
        if node and node["_target_"].endswith("WandbLogger"):
            node["group"] = node.get("group") or Path(HydraConfig.get().sweep.dir).name


def _optimized(config: dict[str, Any], metrics: dict[str, float]) -> float | list[float] | None:
    """The metric, or metrics, that a sweep optimises."""
    wanted = config["optimized_metric"]
    names = wanted if isinstance(wanted, list) else [wanted] if wanted else []
    if config["select_on"] == "last":  # nothing was validated
        names = [n for n in names if not n.startswith("val/")]
    if unknown := [n for n in names if n not in metrics]:
        raise UserError(f"optimized_metric={unknown[0]} is not logged: {sorted(metrics)} are")
    values = [metrics[n] for n in names]
    return values if isinstance(wanted, list) else values[0] if values else None


@command("train")
def main(cfg: DictConfig) -> float | list[float] | None:
    """Compose, check, train; return the metric that a sweep optimises."""
    if rank_zero_only.rank:
        logging.getLogger().setLevel(logging.WARNING)
    if cfg.get("ckpt") == "last":  # goes on in the folder of that run
        cfg.run_dir = str(files.find("last", Path(cfg.run_dir)).parents[1])
    config = plain(cfg, Settings)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _sweep(config)
    try:
        metrics = train(config)
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:  # the next job has a run of its own
            wandb.finish()
    return _optimized(config, metrics)


if __name__ == "__main__":
    main()

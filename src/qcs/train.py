"""Train a network: `python -m qcs.train dataset=... model=... backbone=...`."""

import logging
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from qcs import build, checkpoints, loggers, provenance, report
from qcs.config import CONF, one_sentence, plain

log = logging.getLogger(__name__)


def train(config: dict[str, Any]) -> dict[str, float]:
    """Train, select, test once, and leave everything in the run's folder.

    Args:
        config: plain and checked, of conf/train.yaml.

    Returns:
        All metrics of the run by name ("val/acc", "test/acc", ...).
    """
    folder = Path(config["run_dir"])
    ckpt = checkpoints.find(config["ckpt"], folder) if config["ckpt"] else None
    if ckpt and ckpt.parents[1].resolve() == folder.resolve():
        _continue(config, ckpt)
    lightning.seed_everything(config["seed"], verbose=False)
    data = build.datamodule(config)
    module = build.module(config, data)
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
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # ours is
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    if config["test"] and not trainer.fast_dev_run:
        metrics |= test(config, trainer, module, data, folder)
    return {name: float(value) for name, value in metrics.items()}


def _continue(config: dict[str, Any], ckpt: Path) -> None:
    """Let the loggers of a run go on where its checkpoint stands."""
    state = checkpoints.state_of(ckpt)
    nodes = [node for node in (config["logger"] or {}).values() if node]
    for node in nodes:
        if node["_target_"] == "qcs.loggers.CSVLogger" and rank_zero_only.rank == 0:
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


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
@one_sentence
def main(cfg: DictConfig) -> float | None:
    """Compose, check, train; return the metric that a sweep optimises."""
    if rank_zero_only.rank:
        logging.getLogger().setLevel(logging.WARNING)
    if cfg.get("ckpt") == "last":  # goes on in the folder of that run
        cfg.run_dir = str(checkpoints.find("last", Path(cfg.run_dir)).parents[1])
    config = plain(cfg)
    name = config["optimized_metric"]
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if name and name.startswith("val/") and config["select_on"] == "last":
        if sweep:
            raise ValueError(
                f"optimized_metric={name} is never measured with select_on=last, and a sweep "
                "needs it: write select_on=val"
            )
        name = None
    metrics = train(config)
    if name and name not in metrics:
        raise ValueError(f"optimized_metric={name} is not logged; choose of {sorted(metrics)}")
    return metrics[name] if name else None


if __name__ == "__main__":
    main()

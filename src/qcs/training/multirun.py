"""A job of a multirun: what it must fulfil, and the values that a sweep optimises.

`config` is that of conf/train.yaml, resolved and checked.
"""

from typing import Any

import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from qcs.config.errors import UserError
from qcs.training.build import require_measured


def prepare_job(config: dict[str, Any], multirun_name: str) -> None:
    """Check the config of a job, and let W&B show the jobs of a multirun as one group.

    Raises:
        UserError: the job would start processes, each of which would start the whole multirun
            again; or the metric to optimise is never measured.
    """
    _require_one_process(config["trainer"])
    _require_measured(config)
    if wandb := (config["logger"] or {}).get("wandb"):
        wandb["group"] = wandb.get("group") or multirun_name


def _require_one_process(options: dict[str, Any]) -> None:
    devices, number = options.get("devices", 1), options.get("num_nodes", 1)
    if devices in ("auto", -1, "-1"):
        on_gpu = options.get("accelerator", "auto") != "cpu"
        devices = torch.cuda.device_count() if on_gpu else 1
    number *= len(devices) if isinstance(devices, list) else int(devices)
    started_outside = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    if number > 1 and not started_outside:
        raise UserError(
            "a multirun whose jobs start several processes would start itself again in each: "
            "write trainer.devices=1 (jobs side by side: hydra/launcher=joblib), or let SLURM "
            "(hydra/launcher=submitit_slurm) or Ray (hydra/launcher=ray) start them"
        )


def _require_measured(config: dict[str, Any]) -> None:
    for name in _metric_names(config):
        splits = ["val", "test"] if config["test"] else ["val"]
        require_measured("optimized_metric", name, config, splits)
    unmeasured = {
        "select_on=last": config["select_on"] == "last",
        "trainer.limit_val_batches=0": config["trainer"].get("limit_val_batches") == 0,
    }
    for setting in (s for s, holds in unmeasured.items() if holds):
        if any(name.startswith("val/") for name in _metric_names(config)):
            raise UserError(
                f"optimized_metric={config['optimized_metric']} is never measured with {setting}, "
                "and a sweep needs it: write select_on=val and validate on all batches"
            )


def _metric_names(config: dict[str, Any]) -> list[str]:
    wanted = config["optimized_metric"]
    names = wanted if isinstance(wanted, list) else [wanted]
    return [name for name in names if name]


def optimized_values(
    config: dict[str, Any], metrics: dict[str, float]
) -> float | list[float] | None:
    """Return what a sweep optimises, of all metrics of the run: a value, a list, or None.

    Raises:
        UserError: `optimized_metric` names a metric that the run has not logged.
    """
    wanted, names = config["optimized_metric"], _metric_names(config)
    if unknown := [name for name in names if name not in metrics]:
        raise UserError(f"optimized_metric={unknown[0]} is not logged: {sorted(metrics)} are")
    values = [metrics[name] for name in names]
    return values if isinstance(wanted, list) else values[0] if values else None

"""From a config to objects."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from torch import nn

from qcs.checkpoints import pretrained, recipe
from qcs.checkpoints.datasets import read_manifest
from qcs.checkpoints.files import AtomicCheckpointIO
from qcs.config.errors import UserError
from qcs.config.options import BackboneOptions, instantiate
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.models import QCSNetwork
from qcs.models.cpu_kernels import speed_up
from qcs.training import loggers, notices
from qcs.training.callbacks import ProgressBar
from qcs.training.module import QCSModule

log = logging.getLogger(__name__)


def datamodule(config: dict[str, Any]) -> FaceDataModule:
    """Read the data set and make its loaders.

    Raises:
        UserError: images are to be in several groups, and nothing compares them; or there are no
            images for the test at the end.
    """
    if config["model"].get("cross") is None and config["loader"].get("groups_per_image", 1) > 1:
        raise UserError(
            "loader.groups_per_image above 1 is of use where groups are compared, and this model "
            "has no cross module: set it to 1, or choose model=qcs or model=dcs"
        )
    recipe.require_trust(config)
    table = read_manifest(config["dataset"], list(config["augment"].values()), config["store"])
    if config["test"] and not config["trainer"].get("fast_dev_run") and not table.has("test"):
        raise UserError(
            f"data set {table.root} has no test images for the test at the end: write test=false"
        )
    return instantiate(
        config["loader"],
        manifest=table,
        train_transform=instantiate(config["augment"]["train"]),
        eval_transform=instantiate(config["augment"]["eval"]),
        roles=config["model"]["roles"],
        select_on=config["select_on"],
        seed=config["seed"],
        input_size=config["model"]["input_size"],
    )


def network(config: dict[str, Any], class_names: Sequence[str]) -> QCSNetwork:
    """Build the network of a config; the weights of its files are not in it yet."""
    backbone = {
        k: v for k, v in config["backbone"].items() if k not in BackboneOptions.__annotations__
    }
    model = config["model"]
    if landmarks := _landmarks(model):
        own = {k: v for k, v in landmarks.items() if k != "weights"}
        model = {**model, "base": {**model["base"], "landmarks": own}}
    return instantiate(model, backbone=instantiate(backbone), num_classes=len(class_names))


def _landmarks(model: dict[str, Any]) -> dict[str, Any]:
    return (model.get("base") or {}).get("landmarks") or {}


def loss(config: dict[str, Any], manifest: Manifest) -> nn.Module:
    """Build the loss; `class_weights: balanced` becomes N / (K * images of the class)."""
    options = dict(config["loss"])
    if options.get("class_weights") == "balanced":
        counts = manifest.counts()
        if not counts.all():
            missing = manifest.class_names[int(counts.argmin())]
            raise UserError(f"loss.class_weights=balanced: no training image of {missing}")
        options["class_weights"] = (len(manifest) / len(counts) / counts).tolist()
    numbers = options.get("class_weights")
    if numbers is not None and len(numbers) != len(manifest.class_names):
        raise UserError(
            f"loss.class_weights has {len(numbers)} numbers for {len(manifest.class_names)} classes"
        )
    return instantiate(options)


def module(config: dict[str, Any], data: FaceDataModule, resumes: bool = False) -> QCSModule:
    """Build the LightningModule for a data set.

    Args:
        config: plain and checked.
        data: of `datamodule`.
        resumes: whether a checkpoint brings all weights, so that none are started from.

    Raises:
        UserError: weights that are not there or do not fit, a network that
            cannot be built, or not be recomputed.
    """
    class_names, options = data.manifest.class_names, config["backbone"]
    parts = recipe.describe(config, class_names)
    net = recipe.network(parts, config.get("trust")) if resumes else network(config, class_names)
    if not resumes:
        _start(net, options.get("weights"), _landmarks(config["model"]).get("weights"))
    if options.get("grad_checkpointing"):
        _recompute(net.base.backbone)
    return QCSModule(
        network=speed_up(net, **config["speed"]),
        loss=loss(config, data.train),
        optimizer=instantiate(config["optimizer"]),
        class_names=class_names,
        scheduler=_scheduler(config["scheduler"]),
        sam=config["sam"],
        accumulate_grad_batches=config["accumulate_grad_batches"],
        gradient_clip_norm=config["gradient_clip_norm"],
        seed=config["seed"],
        recomputes=options.get("grad_checkpointing", False),
        recipe=parts,
    )


def _start(net: QCSNetwork, backbone: str | None, landmarks: str | None) -> None:
    """Take over the weights of files, where there are any."""
    if backbone:
        pretrained.load_backbone(net.base.backbone, backbone)
    if landmarks:
        pretrained.load_backbone(net.base.landmarks.net, landmarks, "landmark network")
    elif net.base.landmarks is not None:
        log.warning(
            "model.base.landmarks.weights=null: the landmark network stays as it is, so its random "
            "weights stay; write the path of its file"
        )


def _recompute(backbone: nn.Module) -> None:
    if not hasattr(backbone, "set_grad_checkpointing"):
        raise UserError(
            f"backbone.grad_checkpointing: {type(backbone).__name__} cannot be computed again "
            "(no set_grad_checkpointing); leave it false"
        )
    backbone.set_grad_checkpointing()


def _scheduler(options: dict[str, Any]) -> dict[str, Any]:
    schedule = options.get("schedule")
    return {**options, "schedule": schedule and instantiate(schedule)}


def trainer(config: dict[str, Any], folder: Path) -> Trainer:
    """Build the Trainer with its callbacks and loggers.

    Raises:
        UserError: an option that manual optimisation takes elsewhere.
    """
    notices.leave_out()
    for key, ours in {
        "accumulate_grad_batches": "accumulate_grad_batches",
        "gradient_clip_val": "gradient_clip_norm",
    }.items():
        if config["trainer"].get(key) is not None:
            raise UserError(f"trainer.{key} is {ours} at the top level here: write {ours}=...")
    parts = [c for c in (config["callbacks"] or {}).values() if c]
    if config["select_on"] == "last":  # nothing is validated, so nothing can be monitored
        if (config["callbacks"] or {}).get("early_stopping"):
            raise UserError("early_stopping watches validation: write select_on=val, not last")
        parts = [c for c in parts if "monitor" not in c]
    callbacks: list[Callback] = [instantiate(c) for c in parts]
    if config["trial"] and isinstance(config["optimized_metric"], str):
        from qcs.search.pruning import Pruning  # needs an extra

        callbacks.append(Pruning(config["trial"], config["optimized_metric"]))
    nodes = [node for node in (config["logger"] or {}).values() if node]
    bar = config["trainer"].get("enable_progress_bar", True) and sys.stdout.isatty()
    if bar:
        callbacks.append(ProgressBar())
    for node in nodes:
        loggers.require_login(node)
    ours = {"callbacks": callbacks, "logger": [instantiate(node) for node in nodes]}
    ours |= {"plugins": [AtomicCheckpointIO()], "enable_progress_bar": bar}
    # The data module shards its samplers itself.
    ours |= {"default_root_dir": str(folder), "use_distributed_sampler": False}
    return instantiate(config["trainer"], **ours)

"""Build the objects of a training run from its config: data, network, loss, module, trainer.

`config` is that of conf/train.yaml, resolved and checked.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import nn

from qcs.checkpoints import pretrained, recipe
from qcs.checkpoints.datasets import read_manifest
from qcs.checkpoints.files import AtomicCheckpointIO
from qcs.config.errors import UserError
from qcs.config.options import BackboneOptions, instantiate
from qcs.data.datamodule import FaceDataModule
from qcs.data.manifest import Manifest
from qcs.models import QCSNetwork, cpu_kernels
from qcs.training import notices, wandb_login
from qcs.training.callbacks import ProgressBar
from qcs.training.module import QCSModule
from qcs.training.schedules import Schedule

log = logging.getLogger(__name__)


class SpeedOptions(cpu_kernels.SpeedOptions, total=False):
    """The options of conf/speed: how the network is computed, and whether steps are recorded."""

    cuda_graphs: bool


def datamodule(config: dict[str, Any]) -> FaceDataModule:
    """Read the data set and make its loaders.

    Raises:
        UserError: images are to be in several groups, but the model compares no groups; or there
            are no images for the test at the end.
    """
    for group, key in (("augment", "train"), ("augment", "eval"), ("model", "roles")):
        if config[group].get(key) is None:
            raise UserError(
                f"{group}.{key} is not set: choose a file of conf/{group}/ that sets it"
            )
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
        input_size=config["model"].get("input_size"),
    )


def network(config: dict[str, Any], class_names: Sequence[str]) -> QCSNetwork:
    """Build the network of a config with random weights; no files of weights are read yet."""
    backbone = {
        k: v for k, v in config["backbone"].items() if k not in BackboneOptions.__annotations__
    }
    model = recipe.untrained(config["model"])
    return instantiate(model, backbone=instantiate(backbone), num_classes=len(class_names))


def loss(config: dict[str, Any], manifest: Manifest) -> nn.Module:
    """Build the loss for N training images of K classes.

    With `class_weights: balanced`, the weight of a class is N / (K * images of the class).

    Raises:
        UserError: there is no training image of a class whose weight is to be balanced, or another
            number of weights than of classes.
    """
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
        resumes: whether all weights will come from a checkpoint, so that no files of pre-trained
            weights are read.

    Raises:
        UserError: a file of weights does not exist or does not fit, or the network cannot be built
            or does not support gradient checkpointing.
    """
    class_names, options = data.manifest.class_names, config["backbone"]
    parts = recipe.describe(config, class_names)
    net: Any = recipe.network(parts, config.get("trust")) if resumes else None
    if net is None:
        net = network(config, class_names)
        landmarks = (config["model"].get("base") or {}).get("landmarks") or {}
        _load_weights(net, options.get("weights"), landmarks.get("weights"))
    if options.get("grad_checkpointing"):
        enable_grad_checkpointing(net.base.backbone)
    speed = dict(config["speed"])
    cuda_graphs = speed.pop("cuda_graphs", False)
    return QCSModule(
        network=cpu_kernels.speed_up(net, **speed),
        loss=loss(config, data.train),
        optimizer=instantiate(config["optimizer"]),
        class_names=class_names,
        scheduler=_schedule(config["scheduler"]),
        sam=config["sam"],
        accumulate_grad_batches=config["accumulate_grad_batches"],
        gradient_clip_norm=config["gradient_clip_norm"],
        seed=config["seed"],
        grad_checkpointing=options.get("grad_checkpointing", False),
        recipe=parts,
        with_cuda_graphs=cuda_graphs,
    )


def _load_weights(net: QCSNetwork, backbone: str | None, landmarks: str | None) -> None:
    """Load pre-trained weights into the backbone and the landmark network, if files are named."""
    if backbone:
        pretrained.load_backbone(net.base.backbone, backbone)
    branch = net.base.landmarks
    if branch is None:
        return
    if landmarks:
        pretrained.load_backbone(branch.net, landmarks, "landmark network")
    else:
        log.warning(
            "model.base.landmarks.weights=null: the landmark network stays as it is, so its random "
            "weights stay; write the path of its file"
        )


def enable_grad_checkpointing(backbone: nn.Module) -> None:
    """Let a backbone run again in the backward pass, which takes less memory and more time.

    Raises:
        UserError: the backbone does not support it.
    """
    enable: Any = getattr(backbone, "set_grad_checkpointing", None)
    if enable is None:
        raise UserError(
            f"backbone.grad_checkpointing: {type(backbone).__name__} cannot be computed again "
            "(no set_grad_checkpointing); leave it false"
        )
    for module in backbone.modules():
        if getattr(module, "inplace", False):  # which timm up to 1.0.29 cannot compute again
            module.inplace = False  # type: ignore[assignment]
    enable()


def _schedule(options: dict[str, Any]) -> Schedule:
    schedule = options.get("schedule")
    built = instantiate(schedule) if schedule else None
    return {"schedule": built, "interval": options.get("interval", "epoch")}


def trainer(config: dict[str, Any], folder: Path) -> Trainer:
    """Build the trainer with its callbacks and loggers, for a run that writes into a folder.

    Raises:
        UserError: an option of Lightning's that has another place here, or a callback or logger
            that cannot be used.
    """
    notices.silence()
    accumulate, clip = "accumulate_grad_batches", "gradient_clip_norm"
    for key, ours in ((accumulate, accumulate), ("gradient_clip_val", clip)):
        if config["trainer"].get(key) is not None:
            raise UserError(f"trainer.{key} is {ours} at the top level here: write {ours}=...")
    show_bar = config["trainer"].get("enable_progress_bar", True) and sys.stdout.isatty()
    callbacks = _callbacks(config)
    if show_bar:
        callbacks.append(ProgressBar())
    nodes = [node for node in (config["logger"] or {}).values() if node]
    for node in nodes:
        wandb_login.require_login(node)
    if not nodes:  # it refuses to run without a logger, and would have nowhere to write
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    return instantiate(
        config["trainer"],
        callbacks=callbacks,
        logger=[instantiate(node) for node in nodes],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=show_bar,
        default_root_dir=str(folder),
        use_distributed_sampler=False,  # the data module divides its samples itself
    )


def _callbacks(config: dict[str, Any]) -> list[Callback]:
    named = {name: node for name, node in (config["callbacks"] or {}).items() if node}
    if config["select_on"] == "last":  # there is no validation, so no metric to monitor
        if (config["callbacks"] or {}).get("early_stopping"):
            raise UserError("early_stopping watches validation: write select_on=val, not last")
        named = {name: node for name, node in named.items() if "monitor" not in node}
    for name, node in named.items():  # the test comes when they have done their work
        require_measured(f"callbacks.{name}.monitor", node.get("monitor"), config, ["val"])
    callbacks: list[Callback] = [instantiate(node) for node in named.values()]
    if config["trial"] and isinstance(config["optimized_metric"], str):
        from qcs.search.pruning import Pruning  # needs an extra

        callbacks.append(Pruning(config["trial"], config["optimized_metric"]))
    return callbacks


def require_measured(
    key: str, metric: str | None, config: dict[str, Any], splits: Sequence[str]
) -> None:
    """Check that a run measures a metric that one of its options names.

    The losses have names of their own, and a callback of the user's may measure anything.

    Raises:
        UserError: it is not measured.
    """
    targets = [str(node["_target_"]) for node in (config["callbacks"] or {}).values() if node]
    ours = all(target.startswith(("qcs.", "lightning.")) for target in targets)
    known = [f"{split}/{score}" for split in splits for score in ("acc", "mean_acc", "f1")]
    if metric is None or metric.startswith(("train/", "lr-")):
        return
    if ours and metric not in ("epoch", "step", *known):
        raise UserError(f"{key}={metric} is not measured; there are {', '.join(known)}, train/...")

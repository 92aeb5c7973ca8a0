"""A callback by which trained networks teach the one that is trained: knowledge distillation.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. The
teachers see each image as the student does, augmented (Beyer et al., arXiv 2106.05237), and their
mean answer becomes a part of its target, so that any loss that takes probabilities learns from it.

B batch, R roles, N images, K classes, H and W pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from qcs.checkpoints import reading
from qcs.checkpoints.load import load_checkpoint
from qcs.checkpoints.registry import Trust
from qcs.config.bounds import Positive, Probability
from qcs.config.errors import UserError
from qcs.data.transforms import unnormalised
from qcs.training.cuda_graphs import CudaGraph
from qcs.training.mixup import soft_targets
from qcs.training.module import Batch, QCSModule


class Teacher(NamedTuple):
    """A trained network and the input that it expects."""

    network: nn.Module
    side: int  # pixels
    normalize: v2.Normalize
    columns: Tensor  # (K,) where its logits have each class of the student


class Teachers(Callback):
    """Puts the mean answer of trained networks into the targets (B, R, K) of every training batch.

    Args:
        checkpoints: their files, or names of `qcs zoo`. They may be of other backbones, sizes and
            normalisations than the student's, but need its classes.
        weight: share of their answer in the target; the rest is the label's.
        temperature: their logits are divided by it, so a higher one makes the answer softer.
        trust: import paths of the user's own code that their files may name.

    Raises:
        UserError: no file is named, or one cannot be loaded or does not say how its input is made.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        weight: Probability = 0.5,
        temperature: Positive = 1.0,
        trust: Trust = None,
    ) -> None:
        if not checkpoints:
            raise UserError("callbacks.teachers.checkpoints names none: write [a.ckpt,b.ckpt]")
        self.weight, self.temperature = weight, temperature
        missing = "callbacks.teachers.checkpoints: no checkpoint at {}"
        files = [reading.network_file(path, missing.format(path)) for path in checkpoints]
        self.loaded = {path: load_checkpoint(path, trust) for path in files}
        for path, checkpoint in self.loaded.items():
            if checkpoint.recipe["transform"]["name"] != "evaluation":
                raise UserError(f"{path} cannot teach: its transform is code of its own")
        self.teachers: list[Teacher] = []
        self.cuda_graph: CudaGraph | None = None

    def setup(  # type: ignore[override] # it is our module
        self, trainer: Trainer, pl_module: QCSModule, stage: str
    ) -> None:
        """Find the student's classes among those of each teacher.

        Raises:
            UserError: a teacher lacks one of them.
        """
        self.teachers = []
        for path, (network, names, transform, recipe) in self.loaded.items():
            if missing := [name for name in pl_module.class_names if name not in names]:
                raise UserError(f"{path} cannot teach: it does not know the class {missing[0]}")
            steps: Any = transform
            (normalize,) = (step for step in steps.transforms if isinstance(step, v2.Normalize))
            side = recipe["model"].get("input_size") or recipe["transform"]["size"]
            columns = torch.tensor([names.index(name) for name in pl_module.class_names])
            self.teachers.append(Teacher(network.requires_grad_(False), side, normalize, columns))

    def on_train_start(  # type: ignore[override] # it is our module
        self, trainer: Trainer, pl_module: QCSModule
    ) -> None:
        """Move the teachers to the device of the student."""
        for number, teacher in enumerate(self.teachers):
            teacher.network.to(memory_format=torch.channels_last).to(pl_module.device)
            columns = teacher.columns.to(pl_module.device)
            self.teachers[number] = teacher._replace(columns=columns)
        self.cuda_graph = CudaGraph(self._mean) if pl_module.cuda_graph else None

    def on_train_batch_start(  # type: ignore[override] # it is our module
        self, trainer: Trainer, pl_module: QCSModule, batch: Batch, batch_idx: int
    ) -> None:
        """Ask the teachers, and change the targets of the batch."""
        transform = trainer.datamodule.eval_transform  # type: ignore[attr-defined] # ours
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            answer = self.answer(batch["images"].flatten(0, 1), transform)
        answer = answer.view(*batch["images"].shape[:2], -1)
        if "groups" in batch:
            answer = answer.flatten(0, 1)[batch["groups"]]
        targets = soft_targets(batch, len(pl_module.class_names))
        batch["targets"] = targets.lerp(answer.to(targets.dtype), self.weight)

    def answer(self, images: Tensor, transform: Any) -> Tensor:
        """The mean probabilities (N, K) of the teachers for images (N, 3, H, W).

        Args:
            images: as the student sees them.
            transform: by which its normalisation is known.

        Raises:
            UserError: the transform does not normalise by torchvision's Normalize.
        """
        if not any(isinstance(step, v2.Normalize) for step in getattr(transform, "transforms", [])):
            raise UserError(
                "callbacks.teachers has to know how the student's images are normalised: end "
                "augment.eval with torchvision's v2.Normalize"
            )
        images, seen = unnormalised(images.float(), transform), {}
        for number, teacher in enumerate(self.teachers):
            sides = (teacher.side, teacher.side)
            fits = images.shape[-2:] == sides
            x = images if fits else F.interpolate(images, sides, mode="bilinear", antialias=True)
            seen[str(number)] = teacher.normalize(x)
        return (self.cuda_graph or self._mean)(seen)

    def _mean(self, seen: dict[str, Tensor]) -> Tensor:
        """The mean probabilities (N, K) of the teachers, each for its own form of the images."""
        answers = []
        for teacher, x in zip(self.teachers, seen.values(), strict=True):
            logits = teacher.network(x)[:, teacher.columns].float()
            answers.append((logits / self.temperature).softmax(1))
        return torch.stack(answers).mean(0)

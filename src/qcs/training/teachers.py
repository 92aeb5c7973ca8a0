"""A callback by which trained networks teach the one that is trained: knowledge distillation.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. The
teachers see each image as the student does, augmented (Beyer et al., arXiv 2106.05237), and their
mean answer becomes a part of its target, so that any loss that takes probabilities learns from it.
Or they are asked once about each image as it is, which costs no more in all epochs than two passes.

B batch, R roles, N images, K classes, H and W pixels.
"""

import logging
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
from qcs.data import prepared
from qcs.data.datamodule import FaceDataModule
from qcs.data.transforms import unnormalised
from qcs.training import distributed, teacher_answers
from qcs.training.cuda_graphs import CudaGraph
from qcs.training.mixup import Mixup, soft_targets
from qcs.training.module import Batch, QCSModule
from qcs.training.trainer_attributes import data_module, is_dry_run

log = logging.getLogger(__name__)

TELL = 30  # seconds between two lines on how many images the teachers were asked about


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
        answers: a file. They are then asked once, before the training, about each training image
            without augmentation and about its mirror image, and the mean is kept in this file,
            which another run with the same teachers and images reads. None asks them about every
            image as it is augmented.
        trust: import paths of the user's own code that their files may name.

    Raises:
        UserError: no file is named, or one cannot be loaded or does not say how its input is made.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        weight: Probability = 0.5,
        temperature: Positive = 1.0,
        answers: str | None = None,
        trust: Trust = None,
    ) -> None:
        if not checkpoints:
            raise UserError("callbacks.teachers.checkpoints names none: write [a.ckpt,b.ckpt]")
        self.weight, self.temperature, self.answers = weight, temperature, answers
        missing = "callbacks.teachers.checkpoints: no checkpoint at {}"
        files = [reading.network_file(path, missing.format(path)) for path in checkpoints]
        self.loaded = {path: load_checkpoint(path, trust) for path in files}
        for path, checkpoint in self.loaded.items():
            if checkpoint.recipe["transform"]["name"] != "evaluation":
                raise UserError(f"{path} cannot teach: its transform is code of its own")
        self.teachers: list[Teacher] = []
        self.cuda_graph: CudaGraph | None = None
        self.table: Tensor | None = None  # (N, K), the answers for all N training images

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
        """Move the teachers to the device of the student, or ask them if they are asked once.

        Raises:
            UserError: the file of the answers cannot be used.
        """
        if self.answers is not None and not is_dry_run(trainer):
            self._require_whole_images(trainer, pl_module)
            path = Path(self.answers).expanduser()
            self.table = self._table(path, trainer, pl_module).to(pl_module.device)
            return
        self._move(pl_module.device)
        self.cuda_graph = CudaGraph(self._mean) if pl_module.cuda_graph else None

    def _move(self, device: torch.device) -> None:
        for number, teacher in enumerate(self.teachers):
            teacher.network.to(memory_format=torch.channels_last).to(device)
            columns = teacher.columns.to(device)
            self.teachers[number] = teacher._replace(columns=columns)

    def _require_whole_images(self, trainer: Trainer, module: QCSModule) -> None:
        """Check that the answers are of what is trained on.

        Raises:
            UserError: another callback mixes the images before, or the student's transform is code
                of its own, of which it could not be told whether it has changed.
        """
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, Mixup) for callback in callbacks[: callbacks.index(self)]):
            raise UserError(
                "callbacks.teachers.answers are of whole images: name teachers before mixup or "
                "cutmix, as in callbacks=[default,teachers,mixup]"
            )
        if module.recipe and module.recipe["transform"]["name"] != "evaluation":
            raise UserError(
                "callbacks.teachers.answers needs this package's augment.eval, not code of your own"
            )

    def _table(self, path: Path, trainer: Trainer, module: QCSModule) -> Tensor:
        """The answers (N, K) for the training images: those of the file, which is made if need be.

        Raises:
            UserError: the file is of other teachers or images, is no such file, or cannot be
                written.
        """
        data = _data(trainer)
        key = self._key(data, module)
        shape = len(data.train), len(module.class_names)
        # All processes do what the first one finds, which may be alone in seeing the file.
        if not trainer.strategy.broadcast(trainer.is_global_zero and teacher_answers.exists(path)):
            if trainer.is_global_zero:
                teacher_answers.make_folder(path)
            table = self._asked(trainer, data, module)
            # Another run may have been faster meanwhile.
            if trainer.is_global_zero and not teacher_answers.exists(path):
                teacher_answers.write(path, key, table.numpy())
        found = teacher_answers.read(path, key, shape) if trainer.is_global_zero else None
        return torch.from_numpy(trainer.strategy.broadcast(found))

    def _asked(self, trainer: Trainer, data: FaceDataModule, module: QCSModule) -> Tensor:
        """The mean answer (N, K) for each training image and its mirror image."""
        log.info("asking the teachers once about %d images", len(data.train))
        self._move(module.device)
        found: list[tuple[Tensor, ...]] = []
        transform, told = data.eval_transform, time.monotonic()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in data.eval_dataloader("train"):
                if time.monotonic() - told > TELL:
                    told, done = time.monotonic(), sum(len(rows) for rows, _ in found)
                    log.info("asked about %d images", done * trainer.world_size)
                images = batch["images"].to(module.device)
                both = [self.answer(x, transform).float() for x in (images, images.flip(-1))]
                found.append((batch["rows"], torch.stack(both).mean(0).cpu()))
        self._move(torch.device("cpu"))
        return distributed.gather_in_order(found, trainer.world_size)[1]

    def _key(self, data: FaceDataModule, module: QCSModule) -> str:
        """What the answers depend on: teachers, temperature, classes, images and their transform.

        Of an image they are its path, its box, and the size of its file in bytes.
        """
        key = blake2b(digest_size=16)
        for digest in sorted(blake2b(path.read_bytes()).digest() for path in self.loaded):
            key.update(digest)
        train = data.train
        transform = (module.recipe or {}).get("transform")
        told = [float(self.temperature), transform, data.input_size, *module.class_names]
        key.update("\n".join(map(str, [*told, *train.paths])).encode("utf-8", "surrogatepass"))
        for numbers in (train.boxes, prepared.signatures(train)[:, :1]):
            if numbers is not None:
                key.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
        return key.hexdigest()

    def on_train_batch_start(  # type: ignore[override] # it is our module
        self, trainer: Trainer, pl_module: QCSModule, batch: Batch, batch_idx: int
    ) -> None:
        """Ask the teachers, and change the targets of the batch."""
        if self.table is not None:
            answer = self.table[batch["rows"]]  # of the groups, where images are in several
        else:
            transform = _data(trainer).eval_transform
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


def _data(trainer: Trainer) -> FaceDataModule:
    """The data module of the run, by which images are known."""
    data = data_module(trainer)
    assert data is not None
    return data

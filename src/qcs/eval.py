"""Evaluate a checkpoint: `python -m qcs.eval ckpt=...`, on its own data set or another."""

import logging
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from qcs import build, report
from qcs.config import CONF, plain
from qcs.data.groups import Faces
from qcs.mistakes import one_sentence

log = logging.getLogger(__name__)


def evaluate(config: dict[str, Any]) -> dict[str, Any]:
    """Write the report of one split into the run's folder and return its numbers.

    Raises:
        ValueError: no checkpoint given, the split is empty, or the data set has other classes
            than the checkpoint.
    """
    if config["ckpt"] is None:
        raise ValueError("ckpt is not set: write ckpt=runs/.../checkpoints/best.ckpt")
    checkpoint = build.classifier(config["ckpt"])
    dataset = config.get("dataset") or checkpoint.recipe["dataset"]
    manifest = build.manifest(dataset, [checkpoint.recipe["transform"]], config["store"])
    if manifest.class_names != checkpoint.class_names:
        raise ValueError(
            f"the checkpoint knows {len(checkpoint.class_names)} classes "
            f"({', '.join(checkpoint.class_names)}) and {manifest.root} has "
            f"{len(manifest.class_names)} ({', '.join(manifest.class_names)}); "
            "they must be the same, in the same order"
        )
    manifest = manifest.split(config["split"])
    faces = Faces(manifest, checkpoint.transform)
    options = {"batch_size": config["batch_size"], "num_workers": config["num_workers"]}
    device = config["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    logits, labels = classify(checkpoint.network.to(device), DataLoader(faces, **options), device)
    about = {
        "dataset": manifest.root.name,
        "split": config["split"],
        "ckpt": str(config["ckpt"]),
        "selected_on": checkpoint.recipe["select_on"],
    }
    folder = Path(config["run_dir"])
    result = report.write(folder, logits, labels, manifest, about)
    log.info("report in %s", folder)
    return result


@torch.inference_mode()
def classify(network: torch.nn.Module, loader: DataLoader, device: str) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and labels (N,) of all images, in order, on the CPU."""
    batches = [(network(b["images"].to(device)).float().cpu(), b["labels"]) for b in loader]
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(labels)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="eval")
@one_sentence
def main(cfg: DictConfig) -> float:
    """Compose, check, evaluate; return top-1."""
    return evaluate(plain(cfg))["acc"]


if __name__ == "__main__":
    main()

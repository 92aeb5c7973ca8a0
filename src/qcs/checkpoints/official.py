"""A checkpoint of ours from a model file that the authors published."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from qcs.checkpoints import recipe as recipes
from qcs.checkpoints.files import AtomicCheckpointIO
from qcs.checkpoints.load import PREFIX, require_fit
from qcs.checkpoints.official_keys import Report, from_official
from qcs.checkpoints.pretrained import STATE_DICTS, Weights, read_state_dict
from qcs.config.compose import as_dict, compose
from qcs.config.errors import UserError
from qcs.config.keys import choices
from qcs.data.sources import affectnet, ferplus, rafdb

log = logging.getLogger(__name__)

MODELS = {1: "poster", 2: "dcs", 4: "qcs"}  # number of roles -> choice of conf/model
TITLES = {"poster": "POSTER++", "dcs": "DCS", "qcs": "QCS"}
DATASETS = {
    "rafdb": rafdb.CLASS_NAMES,
    "ferplus": ferplus.CLASS_NAMES,
    "affectnet7": affectnet.CLASS_NAMES[:7],
    "affectnet8": affectnet.CLASS_NAMES,
}
WORDS = {"raf": "rafdb", "fer": "ferplus", "affect": "affectnet"}  # in the names of files
# Published accuracies are below 70 % on AffectNet and above 90 % on RAF-DB and FERPlus.
AFFECTNET_BELOW = 80  # percent


class Converted(NamedTuple):
    """A converted model."""

    model: str  # a key of `TITLES`
    dataset: str  # a key of `DATASETS`
    recipe: dict[str, Any]


def convert(official: str | Path, out: str | Path, dataset: str | None = None) -> Converted:
    """Write a file of the authors as a checkpoint of ours, and beside it what became of each key.

    Args:
        official: a state dict, or a whole training file that holds one. No code in it is run.
        out: the checkpoint. The keys are listed in a file of the same name that ends in .keys.txt.
        dataset: on which the model was trained, a key of `DATASETS`. The weights alone do not tell
            RAF-DB from AffectNet-7, or FERPlus from AffectNet-8, whose classes differ in order.

    Raises:
        UserError: there is no such file, or `out` exists already; or the file is not a whole QCS,
            DCS or POSTER++ model, or its data set is not known.
    """
    out = Path(os.path.expanduser(out))
    if os.path.lexists(out):
        raise UserError(f"{out} is there already: remove it or write to another name")
    weights = read_state_dict(official)
    state, report = from_official(weights.state_dict)
    model, classes = variant(state, official)
    dataset = _dataset(model, classes, weights, Path(official), dataset)
    recipe = official_recipe(model, dataset)
    network = recipes.network(recipe)
    try:
        require_fit(state, network.state_dict())
    except UserError as error:
        raise UserError(f"{official} is not a whole model of the authors: {error}") from error
    content = {"qcs": recipe, "state_dict": {f"{PREFIX}{k}": v for k, v in state.items()}}
    AtomicCheckpointIO().save_checkpoint(content, out)
    _write_report(out, official, weights, report)
    return Converted(model, dataset, recipe)


def variant(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, int]:
    """Return which model a translated state dict is of, a key of `TITLES`, and its classes.

    Raises:
        UserError: it has no head of 7 or 8 classes.
    """
    head = state.get("base.encoder.head.weight")
    if head is None or head.ndim != 2 or len(head) not in (7, 8):
        found = "no head" if head is None or head.ndim != 2 else f"{len(head)} classes"
        raise UserError(f"{path} has {found}, the authors' models have 7 or 8 classes")
    roles = 4 if any(key.endswith(".theta") for key in state) else 2
    if any(key.startswith("base.landmarks.") for key in state):
        roles = 1
    return MODELS[roles], len(head)


def official_recipe(model: str, dataset: str) -> dict[str, Any]:
    """Return the recipe of an official model, from the experiment of its published setting."""
    config = compose("train", [f"experiment={model}_{dataset}"])
    keys = ("backbone", "model", "dataset", "augment", "select_on")
    return recipes.describe(as_dict(config, resolve=keys), DATASETS[dataset])


# -- which data set -----------------------------------------------------------------------------


def _candidates(model: str, classes: int) -> list[str]:
    """The data sets of that many classes on which a model was published."""
    experiments = choices("experiment")
    fitting = [name for name, names in DATASETS.items() if len(names) == classes]
    return [name for name in fitting if f"{model}_{name}" in experiments]


def _dataset(model: str, classes: int, weights: Weights, path: Path, wanted: str | None) -> str:
    """The data set that the user names, or the one that the file gives away."""
    candidates = _candidates(model, classes)
    if wanted:
        if wanted not in candidates:
            raise UserError(
                f"--dataset {wanted}: {path} has {classes} classes, so it is one of "
                f"{' or '.join(candidates)}"
            )
        return wanted
    if "caer" in path.name.lower():  # POSTER++ has one, with seven classes in another order
        raise UserError(f"{path} is of CAER-S by its name, which is no data set here")
    if len(candidates) == 1:
        return candidates[0]
    found, reason = _clue(candidates, weights, path)
    if found is None:
        raise UserError(
            f"{path} has {classes} classes, and nothing in it tells {candidates[0]} from "
            f"{candidates[1]}, whose classes differ in order: add --dataset {candidates[0]} or "
            f"--dataset {candidates[1]}"
        )
    log.info("data set %s, by %s (--dataset says otherwise)", found, reason)
    return found


def _clue(candidates: list[str], weights: Weights, path: Path) -> tuple[str | None, str]:
    """Which of two data sets, AffectNet and another one, a file is of, and what gives it away.

    The clues are the file's name, a layer that one published file alone has, and the best accuracy
    in a training file.
    """
    other, affectnet_name = sorted(candidates, key=lambda name: name.startswith("affectnet"))
    in_name = {dataset for word, dataset in WORDS.items() if word in path.name.lower()}
    for name in candidates:
        if in_name == {name.rstrip("78")}:
            return name, "the file's name"
    if any("fusion.classifier" in key for key in weights.state_dict):
        return affectnet_name, "its fusion.classifier, which only that file has"
    best = weights.content.get("best_acc") if isinstance(weights.content, Mapping) else None
    if isinstance(best, Tensor) and best.numel() == 1:
        best = best.item()
    if isinstance(best, (int, float)) and best > 1:
        found = affectnet_name if best < AFFECTNET_BELOW else other
        return found, f"its best accuracy, {best:.2f} %"
    return None, ""


# -- what became of the keys --------------------------------------------------------------------


def _write_report(out: Path, official: str | Path, weights: Weights, report: Report) -> None:
    """Write what became of every key into a file, and log a summary."""
    lines = [f"{key} -> {PREFIX}{ours}" for key, ours in report.mapped.items()]
    lines += [f"{key} dropped: {why}" for key, why in report.dropped.items()]
    listed = out.with_suffix(".keys.txt")
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    parts = Counter(".".join(ours.split(".")[:2]) for ours in report.mapped.values())
    for part, number in parts.items():
        log.info("%4d tensors of %s", number, part)
    for why, number in Counter(report.dropped.values()).items():
        log.info("%4d dropped: %s", number, why)
    if weights.content is not weights.state_dict and isinstance(weights.content, Mapping):
        taken = {*weights.state_dict, *STATE_DICTS}
        others = [str(key) for key in weights.content if key not in taken]
        log.info("left in %s: %s", official, ", ".join(others) or "nothing")
    log.info("every key: %s", listed)

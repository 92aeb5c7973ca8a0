"""The authors' checkpoints as ours: `python -m qcs.convert official.pth out.ckpt`."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from qcs.checkpoints import recipe as recipes
from qcs.checkpoints.files import AtomicCheckpointIO
from qcs.checkpoints.load import require_fit
from qcs.checkpoints.official_keys import Report, from_official
from qcs.checkpoints.pretrained import STATE_DICTS, Weights, read_state_dict
from qcs.config.command import one_sentence
from qcs.config.errors import UserError
from qcs.config.hints import command_line
from qcs.config.keys import CONF
from qcs.data.sources import affectnet, ferplus, rafdb

log = logging.getLogger(__name__)

HEADS = {1: "poster", 2: "dcs", 4: "qcs"}  # roles -> conf/model
NAMES = {"poster": "POSTER++", "dcs": "DCS", "qcs": "QCS"}
DATASETS = {
    "rafdb": rafdb.CLASS_NAMES,
    "ferplus": ferplus.CLASS_NAMES,
    "affectnet7": affectnet.CLASS_NAMES[:7],
    "affectnet8": affectnet.CLASS_NAMES,
}
WORDS = {"raf": "rafdb", "fer": "ferplus", "affect": "affectnet"}  # in the names of files
GREATEST_AFFECTNET = 80  # percent: papers stand below 70 on AffectNet, above 90 on the other two


def convert(official: str | Path, out: str | Path, dataset: str | None = None) -> dict[str, Any]:
    """Write one of the authors' files as a checkpoint of ours, and every key's fate beside it.

    Args:
        official: a state dict, or a whole training file with one. Nothing that it names is run.
        out: the checkpoint; `out` with `.keys.txt` in place of its suffix lists the keys.
        dataset: what it was trained on, a key of `DATASETS`: the weights do not tell RAF-DB from
            AffectNet-7, nor FERPlus from AffectNet-8, and their classes differ in order.

    Returns:
        The recipe in the checkpoint.

    Raises:
        UserError: no such file, one of `out` already, or not
            a whole QCS, DCS or POSTER++ model of the authors, or its data set cannot be told.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} is there already: remove it or write to another name")
    weights = read_state_dict(official)
    state, report = from_official(weights.state_dict)
    roles, classes = variant(state, official)
    model = HEADS[roles]
    dataset = _dataset(model, classes, weights, Path(official), dataset)
    recipe = official_recipe(model, dataset)
    network = recipes.network(recipe)
    _complete(state, network.state_dict(), official)
    try:
        require_fit(state, network.state_dict())
    except UserError as error:
        raise UserError(f"{official}: {error}") from error
    content = {"qcs": recipe, "state_dict": {f"network.{k}": v for k, v in state.items()}}
    AtomicCheckpointIO().save_checkpoint(content, out)
    _report(out, official, weights, report)
    log.info("%s: %s, %d classes: %s", out, NAMES[model], classes,
             ", ".join(recipe["class_names"]))  # fmt: skip
    command = command_line("qcs.eval", {"ckpt": str(out), "dataset": dataset})
    log.info("try it: %s dataset.path=...", command)
    return recipe


def variant(state: Mapping[str, Tensor], path: str | Path) -> tuple[int, int]:
    """Roles (1, POSTER++; 2 or 4) and classes of a translated state dict.

    Raises:
        UserError: it has no head of 7 or 8 classes.
    """
    head = state.get("base.encoder.head.weight")
    if head is None or head.ndim != 2 or len(head) not in (7, 8):
        found = "no head" if head is None or head.ndim != 2 else f"{len(head)} classes"
        raise UserError(f"{path} has {found}, the authors' models have 7 or 8 classes")
    if any(key.startswith("base.landmarks.") for key in state):
        return 1, len(head)
    return 4 if any(key.endswith(".theta") for key in state) else 2, len(head)


def _fitting(model: str, classes: int) -> list[str]:
    """The data sets of that many classes on which a model was published."""
    published = {f.stem for f in (CONF / "experiment").glob(f"{model}_*.yaml")}
    sizes = {name: len(classnames) for name, classnames in DATASETS.items()}
    return [k for k, n in sizes.items() if n == classes and f"{model}_{k}" in published]


def _dataset(model: str, classes: int, weights: Weights, path: Path, wanted: str | None) -> str:
    """The data set: as wanted, or from the file's name, its leftovers, or its best accuracy."""
    fitting = _fitting(model, classes)
    if wanted:
        if wanted not in fitting:
            raise UserError(f"--dataset {wanted}: {path} has {classes} classes, so it is one of "
                             f"{' or '.join(fitting)}")  # fmt: skip
        return wanted
    if "caer" in path.name.lower():  # POSTER++ has one, with seven classes in another order
        raise UserError(f"{path} is of CAER-S by its name, which is no data set here")
    if len(fitting) == 1:
        return fitting[0]
    other, affectnet_ = sorted(fitting, key=lambda name: name.startswith("affectnet"))
    named = {d for word, d in WORDS.items() if word in path.name.lower()}
    found, why = None, ""
    for name in fitting:
        if named == {name.rstrip("78")}:
            found, why = name, "the file's name"
    best = weights.content.get("best_acc") if isinstance(weights.content, Mapping) else None
    if found is None and any("fusion.classifier" in key for key in weights.state_dict):
        found, why = affectnet_, "its fusion.classifier, which only that file has"
    number = isinstance(best, (int, float)) or (isinstance(best, Tensor) and best.numel() == 1)
    if found is None and number and float(best) > 1:
        found = affectnet_ if float(best) < GREATEST_AFFECTNET else other
        why = f"its best accuracy, {float(best):.2f} %"
    if found is None:
        raise UserError(
            f"{path} has {classes} classes, and nothing in it tells {fitting[0]} from "
            f"{fitting[1]}, whose classes differ in order: add --dataset {fitting[0]} or "
            f"--dataset {fitting[1]}"
        )
    log.info("data set %s, by %s (--dataset says otherwise)", found, why)
    return found


def official_recipe(model: str, dataset: str) -> dict[str, Any]:
    """The recipe of an official model, composed from the experiment of its published setting."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={model}_{dataset}"])
    keys = ["backbone", "model", "dataset", "augment", "select_on"]
    config = OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys), resolve=True)
    return recipes.describe(config, DATASETS[dataset])


def _complete(state: Mapping[str, Tensor], ours: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ValueError where a tensor is missing, or of another shape than the network's."""
    missing = [key for key in ours if key not in state]
    wrong = [k for k in state if k not in ours or state[k].shape != ours[k].shape]
    if missing or wrong:
        raise UserError(
            f"{path} is not a whole model of the authors: {len(missing)} tensors are missing and "
            f"{len(wrong)} are of another shape, the first is {(missing + wrong)[0]}"
        )


def _report(out: Path, official: str | Path, weights: Weights, report: Report) -> None:
    """Write what became of every key, and say it in short."""
    lines = [f"{key} -> network.{ours}" for key, ours in report.mapped.items()]
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


def main(arguments: Sequence[str]) -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m qcs.convert", description=__doc__)
    parser.add_argument("official", help="the authors' file")
    parser.add_argument("out", help="the checkpoint to write")
    parser.add_argument("--dataset", choices=DATASETS, help="where nothing in the file tells it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_sentence():
        convert(options.official, options.out, options.dataset)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What a checkpoint says of its network, its input and its data: plain data that names things.

A recipe is read from files of strangers. Its names are looked up in a closed table, its arguments
are checked against the signatures of what they name, and numbers have limits. It holds no path,
so that nothing is read or written where a file's author chose. What is not of this package is
built only where the user trusts it by its name.

Format 1 had import paths in the place of names; `qcs.checkpoints.names` has those that were ever
written.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, isclass, signature
from pathlib import PureWindowsPath
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

import qcs
from qcs.checkpoints.names import NAMES, TABLE, Trust, maker
from qcs.checkpoints.plain_data import require_limits, require_plain, shown
from qcs.config.errors import UserError
from qcs.data.manifest import Manifest

FORMAT = 2
GIVEN = ("backbone", "num_classes")  # arguments of a network that are not a choice
PATHS = ("path", "root")  # arguments of a data set that stay with the user
FILES = ("train", "val", "test")  # of `lists`, names of files in the user's folder
TRAINING = ("weights", "grad_checkpointing")  # of a backbone
SELECTED = ("val", "test", "last")


# -- from a config ------------------------------------------------------------------------------


def describe(config: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the recipe of a training run.

    Args:
        config: plain and checked: backbone, model, dataset, augment, select_on, maybe trust.
        class_names: of the data set, in the model's order.

    Raises:
        UserError: the checkpoint could not be loaded again: it names what is not of this package
            and not trusted, or a number is beyond a limit.
    """
    nodes = {"backbone": config["backbone"], "model": _untrained(config["model"])}
    nodes |= {"dataset": config["dataset"], "transform": config["augment"]["eval"]}
    content = {kind: _named(kind, node) for kind, node in nodes.items()}
    backbone = {k: v for k, v in content["backbone"].items() if k not in TRAINING}
    if "pretrained" in backbone:  # the checkpoint itself holds the weights
        backbone["pretrained"] = False
    content["backbone"] = backbone
    content["dataset"] = _without_paths(content["dataset"])
    content |= {"format": FORMAT, "qcs_version": qcs.__version__, "class_names": list(class_names)}
    return parse(content | {"select_on": config["select_on"]}, trust=config.get("trust"))


def require_trust(config: Mapping[str, Any]) -> None:
    """Refuse a run whose checkpoints could not be loaded, before its data set is read.

    Raises:
        UserError: the backbone, the model, the data set or the transform of evaluation is not of
            this package, and `trust` does not name it.
    """
    nodes = {kind: config[kind] for kind in ("backbone", "model", "dataset")}
    for kind, node in (nodes | {"transform": config["augment"]["eval"]}).items():
        maker(kind, _named(kind, node)["name"], config.get("trust"))


def _named(kind: str, node: Any) -> dict[str, Any]:
    """A part with a name in the place of its `_target_`."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{kind} is {shown(node)}, which names no _target_")
    if "name" in node:
        raise UserError(f"{kind}.name is no argument that a recipe can hold: give it another name")
    options, target = dict(node), node["_target_"]
    del options["_target_"]
    return {"name": NAMES.get(target, target), **options}


def _untrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model without the file of its landmark network, which concerns training alone."""
    base = model.get("base")
    landmarks = base.get("landmarks") if isinstance(base, Mapping) else None
    if not isinstance(landmarks, Mapping):
        return dict(model)
    own = {k: v for k, v in landmarks.items() if k != "weights"}
    return {**model, "base": {**base, "landmarks": own}}


def _without_paths(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A data set without what says where it lies on the machine that trained."""
    ours = dataset["name"] in TABLE["dataset"]
    names = FILES if ours else dataset.keys() - {"name"}
    left_out = {key for key in names if isinstance(dataset.get(key), str)}
    left_out = {key for key in left_out if not _inside(dataset[key])} | set(PATHS)
    return {key: value for key, value in dataset.items() if key not in left_out}


def _inside(name: str) -> bool:
    """Whether a file's name stays inside the folder that it is relative to."""
    path = PureWindowsPath(name)  # knows both separators, and drives
    return not (path.drive or path.root or ".." in path.parts or name.startswith("~"))


# -- from a file --------------------------------------------------------------------------------


def parse(content: Any, where: str = "", trust: Trust = None) -> dict[str, Any]:
    """Check a recipe of either format, without building anything.

    Args:
        content: what a file holds: any plain data.
        where: the file, for the sentence of an error.
        trust: names outside of this package that may be built, as "mine.TinyBackbone".

    Returns:
        "format", "qcs_version", "class_names", "select_on" and the parts "backbone", "model",
        "dataset" and "transform", each with its "name" and its arguments. A recipe of an export
        has neither backbone nor model.

    Raises:
        UserError: what is wrong with it.
    """
    try:
        require_plain(content, "its recipe")
        if not isinstance(content, dict):
            raise UserError(f"its recipe is {shown(content)}, not a group of names and values")
        number = content.get("format", 1)
        if type(number) is not int or not 1 <= number <= FORMAT:
            raise UserError(
                f"its recipe has format {shown(number)}, and this version of qcs reads 1 to "
                f"{FORMAT}: install a newer one"
            )
        return _parse(content, trust)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error.__cause__


def _parse(content: dict[str, Any], trust: Trust) -> dict[str, Any]:
    names = _class_names(content.get("class_names"))
    select_on = content.get("select_on", "val")
    if select_on not in SELECTED:
        raise UserError(f"select_on={shown(select_on)} is none of {', '.join(SELECTED)}")
    parts: dict[str, Any] = {"format": FORMAT, "qcs_version": str(content.get("qcs_version"))}
    parts |= {"class_names": names, "select_on": select_on}
    kinds = ["dataset", "transform"]
    if "include_transform" in content:  # of an export, which holds the network itself
        if not isinstance(content["include_transform"], bool):
            raise UserError("include_transform is neither true nor false")
        parts["include_transform"] = content["include_transform"]
    else:
        kinds += ["backbone", "model"]
    for kind in kinds:
        node = content.get(kind)
        if content.get("format", 1) == 1:
            node = _of_format_1(kind, node, len(names))
        parts[kind] = _part(kind, node, trust, complete="include_transform" not in content)
    return parts


def _class_names(names: Any) -> list[str]:
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) and name.strip() for name in names
    ):
        raise UserError(f"class_names={shown(names)} is not a list of names")
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"class_names={shown(names)} are not two or more different names")
    return list(names)


def _of_format_1(kind: str, node: Any, classes: int) -> dict[str, Any]:
    """A part of format 1 with a name for its import path, less its path."""
    node = _named(kind, node)
    if kind == "dataset":
        return _without_paths(node)
    if kind == "model" and (number := node.pop("num_classes", classes)) != classes:
        raise UserError(f"model.num_classes={shown(number)}, but there are {classes} class_names")
    return node


def _part(kind: str, node: Any, trust: Trust, complete: bool) -> dict[str, Any]:
    """Check one part: its name, the names and types of its arguments, its numbers."""
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise UserError(f"{kind} is {shown(node)}, which has no name")
    make, options = maker(kind, node["name"], trust), {k: v for k, v in node.items() if k != "name"}
    ours = node["name"] in TABLE[kind]
    if kind == "dataset" and (told := node.keys() - _without_paths(node).keys()):
        raise UserError(f"dataset.{sorted(told)[0]} is a path, which no file may choose")
    parameters = signature(make).parameters
    takes = [n for n, p in parameters.items() if n not in GIVEN and p.kind is not p.VAR_KEYWORD]
    closed = ours or not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if closed and (unknown := [key for key in options if key not in takes]):
        raise UserError(
            f"{kind}.{shown(unknown[0])} is not an option; {node['name']} takes "
            f"{', '.join(takes) or 'none'}"
        )
    if complete:
        required = [n for n in takes if parameters[n].default is Parameter.empty]
        required = [n for n in required if parameters[n].kind is not Parameter.VAR_POSITIONAL]
        if lacking := [n for n in required if n not in options and n not in PATHS]:
            raise UserError(f"{kind} lacks {lacking[0]}")
    if ours:  # the user's own checks its values itself
        _require_types(make, options, kind)
        require_limits(options, kind)
    return dict(node)


def _require_types(make: Callable, options: Mapping[str, Any], kind: str) -> None:
    hints = get_type_hints(make.__init__ if isclass(make) else make, include_extras=True)
    config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
    for key, value in options.items():
        try:
            TypeAdapter(hints[key], config=config).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            inner = [str(step) for step in first["loc"] if isinstance(step, (int, str))]
            name = ".".join([kind, key, *inner])
            raise UserError(
                f"{name} cannot be {shown(first['input'])}: {first['msg'].lower()}"
            ) from error


# -- from names to objects ----------------------------------------------------------------------


def _bound(kind: str, node: Mapping[str, Any], trust: Trust) -> Callable:
    options = {key: value for key, value in node.items() if key != "name"}
    return partial(maker(kind, node["name"], trust), **options)


def network(recipe: Mapping[str, Any], trust: Trust = None) -> nn.Module:
    """Build the network of a recipe that was parsed, with random weights.

    Raises:
        UserError: its parts do not fit together.
    """
    backbone = _bound("backbone", recipe["backbone"], trust)()
    classes = len(recipe["class_names"])
    return _bound("model", recipe["model"], trust)(backbone=backbone, num_classes=classes)


def transform(recipe: Mapping[str, Any], trust: Trust = None) -> Callable:
    """Build what turns a PIL image into the network's input."""
    return _bound("transform", recipe["transform"], trust)()


def chosen_dataset(recipe: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the data set to read: the user's, or the recipe's at the path that the user gives."""
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if {"_target_", "name"} & given.keys():
        return given
    return {**recipe["dataset"], **given}


def read_dataset(dataset: Mapping[str, Any], trust: Trust = None) -> Manifest:
    """Read the data set of a recipe, where `path` has been added by the user.

    The drawn faces need none: they are in the user's cache folder.

    Raises:
        UserError: it has no path, or what its source raises.
    """
    name = dataset["name"]
    make = maker("dataset", name, trust)
    needs = name != "synthetic" and "path" in signature(make).parameters
    if needs and dataset.get("path") is None:
        raise UserError(
            f"dataset.path is not set: the checkpoint was trained on {name} and holds no path; add "
            "dataset.path=..., where that data set lies here"
        )
    return _bound("dataset", dataset, trust)()

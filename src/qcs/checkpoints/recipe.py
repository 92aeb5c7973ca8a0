"""The recipe in a checkpoint: plain data that names its network, its input and its data set.

A recipe may come from a file that anyone has written. Its names are looked up in a closed table,
its arguments are checked against the signature of the class or function that is named, and its
numbers have limits. It holds no path, so that a file's author cannot choose what is read or
written here. Code from outside of this package runs only where the user trusts it by its name.

Recipes of format 1 hold import paths in the place of names; `qcs.checkpoints.registry` lists all
that were ever written.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, isclass, signature
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qcs.checkpoints.plain_data import require_limits, require_plain, short_repr
from qcs.checkpoints.registry import NAMES, TABLE, Trust, maker
from qcs.config.errors import UserError
from qcs.config.version import __version__

if TYPE_CHECKING:
    from torch import nn

FORMAT = 2
COMPUTED = ("backbone", "num_classes")  # arguments of a network that follow from other parts
PATHS = ("path", "root")  # arguments of a data set that stay with the user
FILES = ("train", "val", "test")  # arguments of `lists`: names of files in the user's folder
TRAINING = ("weights", "grad_checkpointing")  # arguments of a backbone that only training needs
SELECTED = ("val", "test", "last")


# -- from a config ------------------------------------------------------------------------------


def describe(config: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the recipe of a training run, of its config and the model's class names.

    Raises:
        UserError: the checkpoint could not be loaded again: it names what is not of this package
            and not trusted, or a number is beyond a limit.
    """
    nodes = {"backbone": config["backbone"], "model": untrained(config["model"])}
    nodes |= {"dataset": config["dataset"], "transform": config["augment"]["eval"]}
    content: dict[str, Any] = {kind: _named(kind, node) for kind, node in nodes.items()}
    backbone = {k: v for k, v in content["backbone"].items() if k not in TRAINING}
    if "pretrained" in backbone:  # the checkpoint itself holds the weights
        backbone["pretrained"] = False
    content["backbone"] = backbone
    content["dataset"] = _without_paths(content["dataset"])
    content |= {"format": FORMAT, "qcs_version": __version__, "class_names": list(class_names)}
    return parse(content | {"select_on": config["select_on"]}, trust=config.get("trust"))


def require_trust(config: Mapping[str, Any]) -> None:
    """Refuse a run whose checkpoints could not be loaded again, before its data set is read.

    Raises:
        UserError: the backbone, the model, the data set or the transform of evaluation is not of
            this package, and `trust` does not name it.
    """
    nodes = {kind: config[kind] for kind in ("backbone", "model", "dataset")}
    for kind, node in (nodes | {"transform": config["augment"]["eval"]}).items():
        maker(kind, _named(kind, node)["name"], config.get("trust"))


def _named(kind: str, node: Any) -> dict[str, Any]:
    """Return a part of a config with a name in the place of its `_target_`."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{kind} is {short_repr(node)}, which names no _target_")
    if "name" in node:
        raise UserError(f"{kind}.name is no argument that a recipe can hold: give it another name")
    options = dict(node)
    target = options.pop("_target_")
    return {"name": NAMES.get(target, target), **options}


def untrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model without the file of its landmark network, which only training needs."""
    base = model.get("base")
    landmarks = base.get("landmarks") if isinstance(base, Mapping) else None
    if not isinstance(landmarks, Mapping):
        return dict(model)
    own = {k: v for k, v in landmarks.items() if k != "weights"}
    return {**model, "base": {**(base or {}), "landmarks": own}}


def _without_paths(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set without the paths of the machine on which the network was trained."""
    ours = dataset["name"] in TABLE["dataset"]
    names = FILES if ours else dataset.keys() - {"name"}
    files = {key for key in names if isinstance(dataset.get(key), str)}
    left_out = {key for key in files if not _inside(dataset[key])} | set(PATHS)
    kept = {key: value for key, value in dataset.items() if key not in left_out}
    if dataset["name"] == "synthetic" and dataset.get("path") is not None:
        kept["name"] = "synthetic_folder"  # which is not the set in the cache folder
    return kept


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
            raise UserError(f"its recipe is {short_repr(content)}, not a group of names and values")
        number = content.get("format", 1)
        if type(number) is not int or not 1 <= number <= FORMAT:
            raise UserError(
                f"its recipe has format {short_repr(number)}, and this version of qcs reads 1 to "
                f"{FORMAT}: install a newer one"
            )
        return _parse(content, trust)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error.__cause__


def _parse(content: dict[str, Any], trust: Trust) -> dict[str, Any]:
    names = _class_names(content.get("class_names"))
    select_on = content.get("select_on", "val")
    if select_on not in SELECTED:
        raise UserError(f"select_on={short_repr(select_on)} is none of {', '.join(SELECTED)}")
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
    texts = names if isinstance(names, (list, tuple)) else [None]
    if not all(isinstance(name, str) and name.strip() for name in texts):
        raise UserError(f"class_names={short_repr(names)} is not a list of names")
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"class_names={short_repr(names)} are not two or more different names")
    return list(names)


def _of_format_1(kind: str, node: Any, classes: int) -> dict[str, Any]:
    """A part of format 1 with a name for its import path, less its path."""
    node = _named(kind, node)
    if kind == "dataset":
        return _without_paths(node)
    if kind == "model" and (number := node.pop("num_classes", classes)) != classes:
        raise UserError(
            f"model.num_classes={short_repr(number)}, but there are {classes} class_names"
        )
    return node


def _part(kind: str, node: Any, trust: Trust, complete: bool) -> dict[str, Any]:
    """Check one part: its name, the names and types of its arguments, its numbers."""
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise UserError(f"{kind} is {short_repr(node)}, which has no name")
    make, options = maker(kind, node["name"], trust), {k: v for k, v in node.items() if k != "name"}
    ours = node["name"] in TABLE[kind]
    if kind == "dataset" and (paths := node.keys() - _without_paths(node).keys()):
        raise UserError(f"dataset.{sorted(paths)[0]} is a path, which no file may choose")
    parameters = signature(make).parameters
    takes = [n for n, p in parameters.items() if n not in COMPUTED and p.kind is not p.VAR_KEYWORD]
    closed = ours or not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if closed and (unknown := [key for key in options if key not in takes]):
        raise UserError(
            f"{kind}.{short_repr(unknown[0])} is not an option; {node['name']} takes "
            f"{', '.join(takes) or 'none'}"
        )
    if complete:
        own = [n for n in takes if parameters[n].kind is not Parameter.VAR_POSITIONAL]
        required = [n for n in own if parameters[n].default is Parameter.empty and n not in PATHS]
        if lacking := [n for n in required if n not in options]:
            raise UserError(f"{kind} lacks {lacking[0]}")
    if ours:  # the user's own checks its values itself
        require_limits(options, kind)
        _require_types(make, options, kind)
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
                f"{name} cannot be {short_repr(first['input'])}: {first['msg'].lower()}"
            ) from error


# -- from names to objects ----------------------------------------------------------------------


def _bound(kind: str, node: Mapping[str, Any], trust: Trust) -> Callable:
    options = {key: value for key, value in node.items() if key != "name"}
    return partial(maker(kind, node["name"], trust), **options)


def network(recipe: Mapping[str, Any], trust: Trust = None) -> "nn.Module":
    """Build the network of a recipe that was parsed, with random weights.

    Raises:
        UserError: its parts do not fit together.
    """
    backbone = _bound("backbone", recipe["backbone"], trust)()
    classes = len(recipe["class_names"])
    return _bound("model", recipe["model"], trust)(backbone=backbone, num_classes=classes)


def transform(recipe: Mapping[str, Any], trust: Trust = None) -> Callable:
    """Build what turns a PIL image into the network's input, an array where it is ours."""
    return _bound("transform", recipe["transform"], trust)()

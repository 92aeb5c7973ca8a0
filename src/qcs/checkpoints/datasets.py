"""The data set that a checkpoint is used on: its own one, or another that the user names."""

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import starmap
from typing import Any

from qcs.checkpoints.registry import PATH_OF, Trust, maker
from qcs.config.errors import UserError
from qcs.config.hints import command_line, dataset_options, option
from qcs.config.options import check, instantiate
from qcs.data import prepared
from qcs.data.manifest import Manifest
from qcs.data.sources import synthetic

MOST_DRAWN = 1 << 30  # pixels that are drawn because a file asks for them; minutes of work


def checkpoint_manifest(
    recipe: Mapping[str, Any],
    dataset: Mapping[str, Any] | None,
    store: str | None = "auto",
    trust: Trust = None,
) -> Manifest:
    """Read the images that a checkpoint is used on, all splits of them.

    Args:
        dataset: what the user configured: a whole data set, or no more than its path.

    Raises:
        UserError: the data set is not there, or cannot be read.
    """
    return read_manifest(dataset_config(recipe, dataset), [recipe["transform"]], store, trust)


def dataset_config(recipe: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the data set that is to be read.

    Args:
        given: what the user configured. Where that names no data set, its keys, such as the path,
            complete the data set of the recipe.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if {"_target_", "name"} & given.keys():
        return given
    return {**recipe["dataset"], **given}


def read_manifest(
    dataset: Mapping[str, Any],
    transforms: Sequence[Any],
    store: str | None = "auto",
    trust: Trust = None,
) -> Manifest:
    """Read a data set, with its prepared images where they are there and up to date.

    Args:
        dataset: of a config, or of `dataset_config`.
        transforms: configs with `resize` or `size`; prepared images of that size are looked for.
        store: the folder of prepared images: "auto" means the user's cache folder, None means that
            none are used.
        trust: import paths of the user's own code that may read a data set.

    Raises:
        UserError: the data set is not there, or cannot be read.
    """
    table = instantiate(dataset) if "_target_" in dataset else read_dataset(dataset, trust)
    sizes = {t.get("resize") or t.get("size") for t in transforms if isinstance(t, dict)}
    size = sizes.pop() if len(sizes) == 1 else None
    if store is None or size is None:
        return table
    name = str(dataset.get("name"))  # of a recipe, where a config has a target
    options = dataset_options({"_target_": PATH_OF.get(name, name), **dataset})
    options |= {"size": size} | ({} if store == "auto" else {"store": store})
    hint = command_line("qcs.prepare", options)
    found = prepared.find(table, size, prepared.base(store), hint)
    return table if found is None else table.with_store(found)


def read_dataset(dataset: Mapping[str, Any], trust: Trust = None) -> Manifest:
    """Read the data set of a recipe, to which the user has added the path.

    The drawn faces need no path: they are in the user's cache folder.

    Raises:
        UserError: the path is missing, the user has added what the data set does not take, a file
            asks for too many drawn faces, or the data set cannot be read.
    """
    name = dataset["name"]
    read = maker("dataset", name, trust)
    needs_path = name != "synthetic" and "path" in signature(read).parameters
    if needs_path and dataset.get("path") is None:
        raise UserError(
            f"dataset.path is not set: the checkpoint was trained on {name} and holds no path; add "
            "dataset.path=..., where that data set lies here"
        )
    options = {key: value for key, value in dataset.items() if key != "name"}
    check({"_target_": PATH_OF.get(name, name), **options}, "dataset")
    if name == "synthetic" and options.get("path") is None:
        _require_few(options)
    return read(**options)


def _require_few(options: Mapping[str, Any]) -> None:
    """Refuse a set of drawn faces that would take hours, unless it has been drawn already."""
    given = {key: value for key, value in options.items() if key != "path"}
    full = {k: p.default for k, p in signature(synthetic.read).parameters.items()} | given
    faces = len(synthetic.EXPRESSIONS) * (full["train"] + full["val"] + full["test"])
    side = max(full["size"], 64)  # smaller ones take no less time
    if faces * side**2 > MOST_DRAWN and not synthetic.cached(**given).exists():
        again = dataset_options({"_target_": PATH_OF["synthetic"], **given})
        raise UserError(
            f"the checkpoint was trained on {faces} drawn faces of {full['size']} pixels a side, "
            "which are not in the cache folder and take long to draw; to draw them, write "
            + " ".join(starmap(option, again.items()))
        )

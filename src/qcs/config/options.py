"""What a value in conf/ may be: a composed config is checked, then built.

Values are checked against the settings of their command and against the signature of what they
configure, before anything is built: an unknown key or a wrong value is named in one sentence.
"""

import functools
import logging
import os
from collections.abc import Iterable, Mapping
from inspect import Parameter, isclass, signature
from typing import Annotated, Any, Literal, get_type_hints

import hydra
from annotated_types import Interval
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from typing_extensions import TypedDict, is_typeddict

from qcs.config.bounds import MOST, Count, Dropout, Natural, Positive, Weight
from qcs.config.compose import flat
from qcs.config.errors import UserError
from qcs.config.validation import problem, unknown

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # our sentence says what it says
_HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")

# Bounds of numbers which the libraries that take them do not check, or only after hours.
BOUNDS: dict[str, Any] = {
    "optimizer.lr": Positive,
    "optimizer.weight_decay": Weight,
    "optimizer.momentum": Dropout,
    "scheduler.schedule.max_lr": Positive,
    "scheduler.schedule.pct_start": Dropout,
    "scheduler.schedule.gamma": Annotated[float, Interval(gt=0, le=1)],
    # -1 means until something else stops it.
    "trainer.max_epochs": Annotated[int, Interval(ge=-1, le=MOST)] | None,
    "trainer.max_steps": Annotated[int, Interval(ge=-1, le=MOST)],
    "trainer.check_val_every_n_epoch": Count | None,
    "trainer.devices": Annotated[int, Interval(ge=-1, le=4096)] | str | list[Natural],
    "trainer.num_nodes": Annotated[int, Interval(ge=1, le=4096)],
    "trainer.log_every_n_steps": Natural | None,
    # In bf16-true and 16-true the norms of the network cannot be computed.
    "trainer.precision": Literal[
        "32-true", "bf16-mixed", "16-mixed", "64-true", "32", "64", "16", "bf16", 16, 32, 64
    ]
    | None,
    "trainer.num_sanity_val_steps": Annotated[int, Interval(ge=-1, le=MOST)] | None,
    "callbacks.ema.decay": Dropout,
    "callbacks.early_stopping.patience": Natural,
    "callbacks.early_stopping.min_delta": float,
}


class BackboneOptions(TypedDict, total=False):
    """What every backbone takes beside its own arguments."""

    weights: str | None
    grad_checkpointing: bool


def check(node: Any, where: str, beside: Iterable[str] = ()) -> None:
    """Check a node of a config, and all nodes below, against the signatures of their targets.

    Args:
        where: the key of the node, with dots.
        beside: keys that stand beside the arguments of the target and are checked elsewhere.

    Raises:
        UserError: an unknown key, a wrong value, or a target that does not exist.
    """
    if not isinstance(node, dict):
        return
    if "_target_" not in node:
        for key, value in node.items():
            check(value, f"{where}.{key}" if where else key)
        return
    names, hints, takes_any = _signature(node["_target_"], where)
    for key, value in node.items():
        name = f"{where}.{key}" if where else key
        if key in _HYDRA_KEYS or key in beside:
            continue
        if isinstance(value, dict) and "_target_" in value:
            check(value, name)
        elif key not in names and not takes_any:
            raise UserError(unknown(name, [*names, *beside]))
        elif found := problem(value, BOUNDS.get(name, hints.get(key, Any)), name):
            raise UserError(found)


@functools.cache
def _signature(name: str, where: str) -> tuple[list[str], dict[str, Any], bool]:
    """The arguments of what a `_target_` names, their hints, and whether it takes any others."""
    try:
        target = hydra.utils.get_object(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}._target_={name} cannot be imported: {reason}") from error
    try:
        parameters = signature(target).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}._target_={name} takes no options: {error}") from error
    try:
        function = target.__init__ if isclass(target) else target
        hints = get_type_hints(function, include_extras=True)
    except NameError:  # a library's hint that only type checkers can import
        hints = {}
    names = [n for n, p in parameters.items() if p.kind is not Parameter.VAR_KEYWORD]
    return names, hints, len(names) < len(parameters)


def resolve(cfg: DictConfig, settings: type) -> dict[str, Any]:
    """Resolve a composed config into dicts, lists and scalars, and check it.

    Args:
        settings: the command's `TypedDict`. Those keys of a backbone that `BackboneOptions` lists
            stand beside the arguments of its target.

    Raises:
        UserError: as `check`; also the settings of the command, and an empty text, as of an unset
            variable of the shell.
    """
    config = _expand_home(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    if empty := [key for key, value in flat(config).items() if value == ""]:
        raise UserError(f"{empty[0]}= is empty: write a value, {empty[0]}=null or leave it out")
    hints = get_type_hints(settings, include_extras=True)
    for key, value in config.items():
        if key not in hints:
            raise UserError(unknown(key, hints))
        targeted = isinstance(value, dict) and "_target_" in value
        if targeted and hints[key] is BackboneOptions:
            ours = get_type_hints(hints[key])
            check(value, key, ours)
            value = {k: v for k, v in value.items() if k in ours}
        elif not (targeted and is_typeddict(hints[key])):  # which takes no `_target_`
            check(value, key)
        if found := problem(value, hints[key], key):
            raise UserError(found)
    required: frozenset[str] = settings.__required_keys__  # type: ignore[attr-defined]
    if missing := sorted(required - config.keys()):
        raise UserError(f"{missing[0]} was taken out of the configuration, which needs it")
    return config


def _expand_home(value: Any) -> Any:
    """Expand "~/" at the beginning of every text, since such a text is a path in any key.

    Raises:
        UserError: the home folder is not known.
    """
    if isinstance(value, dict):
        return {key: _expand_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    if not isinstance(value, str) or not (value == "~" or value.startswith("~/")):
        return value
    if (path := os.path.expanduser(value)).startswith("~"):
        raise UserError(f"{value}: the home folder is not known here: write the whole path")
    return path


def instantiate(node: Mapping[str, Any], **extra: Any) -> Any:
    """Build the object that a checked node describes.

    Args:
        node: has a `_target_` and its arguments.
        extra: further arguments, which may be any objects.

    Raises:
        UserError: a group that names no target, what a target of ours raises, an argument that is
            missing, and everything that a library's target refuses.
    """
    if not isinstance(node, Mapping) or not node.get("_target_"):
        raise UserError(f"a group without a _target_ cannot be built: {node}")
    node = dict(node)
    try:
        # Hydra would turn a dataclass among its own arguments into a config.
        target = hydra.utils.instantiate({**node, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError) or (_is_ours(node) and error.__cause__ is not None):
            raise cause from cause.__cause__
        raise _refused(node, cause) from error
    build = functools.partial(_build, target, node)
    functools.update_wrapper(build, target.func)
    build.__dict__["__signature__"] = signature(target)  # whoever calls it looks what it takes
    return build if node.get("_partial_") else build(**extra)


def _build(target: functools.partial, node: Mapping[str, Any], *args: Any, **options: Any) -> Any:
    """Call the target; an exception of a library's target is the user's mistake."""
    try:
        signature(target).bind(*args, **options)
    except TypeError as error:
        raise _refused(node, error) from error
    try:
        return target(*args, **options)
    except UserError:
        raise
    except Exception as error:
        if _is_ours(node):
            raise
        raise _refused(node, error) from error


def _is_ours(node: Mapping[str, Any]) -> bool:
    return str(node.get("_target_")).startswith("qcs.")


def _refused(node: Mapping[str, Any], error: BaseException) -> UserError:
    return UserError(f"{node.get('_target_')} cannot be built: {' '.join(str(error).split())}")

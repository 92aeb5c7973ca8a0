"""Where conf/ is, and what a value in it may be.

Values are checked against the signature of what they configure, before anything is built: an
unknown key or a wrong type names the key, what came and what is expected.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, isclass, signature
from pathlib import Path
from typing import (
    Any,
    Literal,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from qcs.config.errors import UserError
from qcs.inference.backends import Form
from qcs.models.cpu_kernels import SpeedOptions

_PACKAGE = Path(__file__).parents[1]
CONF = next(d for d in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if d.is_dir())


class SAMOptions(TypedDict, total=False):
    """Sharpness-aware minimisation; `rho` 0 is the plain optimiser."""

    rho: float
    every: int  # steps; those between are the plain optimiser's
    adaptive: bool
    update_bn_twice: bool  # BatchNorm's running statistics move in the second pass too
    sync_first: bool  # several processes perturb alike, by the gradient of all


class SchedulerOptions(TypedDict, total=False):
    """A schedule and how often it moves; "step" counts optimiser steps."""

    interval: Literal["step", "epoch"]
    schedule: dict | Callable | None


class BackboneOptions(TypedDict, total=False):
    """What every backbone takes beside its own arguments."""

    weights: str | None
    grad_checkpointing: bool


class Settings(TypedDict):
    """All keys of train.yaml and eval.yaml; groups are further checked by their own targets."""

    seed: int
    select_on: Literal["val", "test", "last"]
    test: bool
    optimized_metric: str | list | None
    trial: dict | None
    accumulate_grad_batches: int
    gradient_clip_norm: float | None
    sam: SAMOptions
    speed: SpeedOptions
    run_dir: str
    dataset: dict | None
    backbone: dict
    model: dict
    loss: dict
    augment: dict
    optimizer: dict
    scheduler: SchedulerOptions
    loader: dict
    trainer: dict
    callbacks: dict | None
    logger: dict | None
    ckpt: str | None
    split: Literal["train", "val", "test"]
    batch_size: int
    num_workers: int
    device: str | None
    store: str | None
    size: int
    on_error: Literal["fail", "skip"]
    sheet_faces: int
    input: str | list | int | None
    out: str | None
    detect: Literal["auto", "none"]
    crop: str | None
    threshold: float
    longest: int
    smallest: int
    every: int
    max_frames: int | None
    annotate: bool
    save_crops: bool
    include_transform: bool
    int8: bool
    calibration_images: int
    port: int
    figure: Literal["attention", "pairs", "embedding", "confusion", "curves"]
    compare: dict | list | None
    format: Literal["png", "pdf", "svg"]
    flip: bool
    form: Form
    restrict: bool
    resamples: int
    runs: str | list | None
    faces_per_class: int
    level: int | None
    max_faces: int


def problem(value: Any, hint: Any, where: str) -> str | None:
    """Return what is wrong with a plain value, in a sentence, or None.

    Args:
        value: of a resolved config: None, bool, int, float, str, list or dict.
        hint: a type hint; what it cannot be checked against passes.
        where: the key, for the sentence.
    """
    if hint is None or hint is type(None):
        return None if value is None else f"{where}={value!r} should be null"
    if is_typeddict(hint):
        return _mapping_problem(value, hint, where)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        problems = [problem(value, h, where) for h in args]
        if None in problems:
            return None
        named = [p for h, p in zip(args, problems, strict=True) if is_typeddict(h)]
        return named[0] if named and isinstance(value, dict) else _expected(value, hint, where)
    if origin is Literal:
        return None if value in args else f"{where}={value!r} should be one of {list(args)}"
    return None if _fits(value, origin or hint) else _expected(value, hint, where)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any or not isclass(kind):
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool, dict):
        return isinstance(value, kind)
    if issubclass(kind, (Sequence, tuple, list)):
        return isinstance(value, (list, tuple))
    if kind is Path:
        return isinstance(value, str)
    return isinstance(value, dict) or (isclass(kind) and isinstance(value, kind))


def _expected(value: Any, hint: Any, where: str) -> str:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    names = ["null" if p is type(None) else getattr(p, "__name__", str(p)) for p in parts]
    return f"{where}={value!r} is a {type(value).__name__}, expected {' or '.join(names)}"


def _mapping_problem(value: Any, hint: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where}={value!r} should be a group of {sorted(get_type_hints(hint))}"
    hints = get_type_hints(hint)
    for key, item in value.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            return f"{name} is not an option; {where or 'a run'} takes {', '.join(hints)}"
        if found := problem(item, hints[key], name):
            return found
    return None


def check(node: Any, where: str) -> None:
    """Check every node below that has a `_target_` against the target's signature.

    Raises:
        UserError: an unknown key or a wrong type, or a target that does not exist.
    """
    if not isinstance(node, dict):
        return
    if "_target_" not in node:
        for key, value in node.items():
            check(value, f"{where}.{key}" if where else key)
        return
    try:
        target = hydra.utils.get_object(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}._target_={node['_target_']} cannot be imported: {error}"
        ) from error
    parameters = signature(target).parameters
    try:
        hints = get_type_hints(target.__init__ if isclass(target) else target)
    except NameError:  # a library's hint that only type checkers can import
        hints = {}
    names = [n for n, p in parameters.items() if p.kind is not Parameter.VAR_KEYWORD]
    for key, value in node.items():
        name = f"{where}.{key}"
        if key in ("_target_", "_partial_", "_args_", "_recursive_", "_convert_"):
            continue
        if isinstance(value, dict) and "_target_" in value:
            check(value, name)
        elif key in names:
            if found := problem(value, hints.get(key, Any), name):
                raise UserError(found)
        elif len(names) == len(parameters):  # no **kwargs
            raise UserError(f"{name} is not an option; {where} takes {', '.join(names)}")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config into dicts, lists and scalars, and check it.

    Raises:
        UserError: as `check`; also the top-level settings.
    """
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if found := _mapping_problem(config, Settings, ""):
        raise UserError(found)
    backbone = config.get("backbone") or {}
    ours = {k: v for k, v in backbone.items() if k in BackboneOptions.__annotations__}
    if found := _mapping_problem(ours, BackboneOptions, "backbone"):
        raise UserError(found)
    check(config | {"backbone": {k: v for k, v in backbone.items() if k not in ours}}, "")
    return config


def instantiate(node: Mapping[str, Any], **extra: Any) -> Any:
    """Build what a checked node describes; `extra` are further arguments, objects among them.

    Raises:
        UserError: what the target itself raises, unwrapped from Hydra's.
    """
    try:
        if not extra:
            return hydra.utils.instantiate(dict(node), _convert_="all")
        # Hydra would turn a dataclass among its own arguments into a config.
        target = hydra.utils.instantiate({**node, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, OSError, ImportError)):
            raise error.__cause__ from None
        raise UserError(f"{node.get('_target_')} cannot be built: {error.__cause__}") from error
    return target(**extra)

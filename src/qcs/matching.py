"""The tensors of a backbone among the keys of a file, whoever wrote it.

Sources of the layouts: IR-50 of ArcFace as published for face recognition (`input_layer`,
`body1..4` or one flat `body`, `output_layer`), the authors' QCS and DCS checkpoints
(qcs.official), our own, and timm's state dicts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from qcs.official import translate

OURS = ("network.base.backbone.", "base.backbone.")  # in a run's checkpoint, in a network


class Match(NamedTuple):
    """The keys of a file beside those of a backbone."""

    fits: dict[str, str]  # the backbone's key -> the file's
    shapes: list[str]  # the same name in another shape, described
    missing: list[str]  # the backbone's keys that the file lacks
    inside: list[str]  # the file's keys of a part that the backbone has, without a partner
    extras: int  # the file's keys of other parts: heads, later stages


def match(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Find a backbone's tensors in a state dict of any of the layouts."""
    own = backbone.state_dict()
    slots = {_plain(key): key for key in own}
    names = backbone_names(tensors)
    pairs = {slots[_plain(name)]: key for key, name in names.items() if _plain(name) in slots}
    fits = {o: key for o, key in pairs.items() if own[o].shape == tensors[key].shape}
    shapes = [
        f"{o} {tuple(own[o].shape)} is {tuple(tensors[key].shape)} there"
        for o, key in pairs.items()
        if o not in fits
    ]
    counter = ".num_batches_tracked"  # older files have none, and nothing reads it
    missing = [o for o in own if o not in pairs and not o.endswith(counter)]
    inside = [k for k, n in names.items() if _plain(n) not in slots and _within(n, backbone)]
    return Match(fits, shapes, missing, inside, len(tensors) - len(pairs) - len(inside))


def backbone_names(keys: Iterable[str]) -> dict[str, str]:
    """Name a file's keys as a backbone does; those of other parts of a network are left out."""
    names = {key: key.removeprefix("module.") for key in keys}
    for prefix in OURS:
        if any(name.startswith(prefix) for name in names.values()):
            return {k: n.removeprefix(prefix) for k, n in names.items() if n.startswith(prefix)}
    if any(name.startswith("input_layer.") for name in names.values()):
        names = {key: f"ir_back.{name}" for key, name in _staged(names).items()}
    if not any(name.startswith("ir_back.") for name in names.values()):
        return names  # a backbone's own, timm's or ours
    ours = {k: _official(n) for k, n in names.items() if n.startswith("ir_back.")}
    return {k: n.removeprefix("base.backbone.") for k, n in ours.items() if n is not None}


def _official(name: str) -> str | None:
    try:
        return translate(name)
    except KeyError:
        return name


def _staged(names: Mapping[str, str]) -> dict[str, str]:
    """Rename a flat `body.7.` to `body3.0.`: a unit with a layer in its shortcut opens a stage."""
    opening = [re.match(r"body\.(\d+)\.shortcut_layer", name) for name in names.values()]
    starts = sorted({0, *(int(found[1]) for found in opening if found)})

    def rename(found: re.Match) -> str:
        unit = int(found[1])
        start = max(s for s in starts if s <= unit)
        return f"body{starts.index(start) + 1}.{unit - start}."

    return {key: re.sub(r"^body\.(\d+)\.", rename, name) for key, name in names.items()}


def _plain(key: str) -> str:
    """A key without what timm's feature extractors do to names (`stages_0.`, `model.`)."""
    return key.removeprefix("model.").replace(".", "_")


def _within(name: str, backbone: nn.Module) -> bool:
    """Whether a name lies in a part that the backbone has and that is not cut off."""
    module, depth = backbone, 0
    for part in name.split("."):
        child = dict(module.named_children()).get(part)
        if child is None:
            return depth > 0 and not isinstance(module, nn.Identity)
        module, depth = child, depth + 1
    return True

"""Find the tensors of a backbone in a file of weights, whatever names the file gives them.

Sources of the layouts: IR-50 of ArcFace as published for face recognition (`input_layer`,
`body1..4` or one flat `body`, `output_layer`), MobileFaceNet as published for faces (our names) and
as POSTER++'s landmark network (`conv2_dw`), the authors' QCS, DCS and POSTER++ checkpoints
(qcs.checkpoints.official_keys), our own, and timm's state dicts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from qcs.checkpoints.official_keys import translate

# The parts of a network that can be loaded from files -> the beginning of their keys.
PARTS = {"backbone": "base.backbone.", "landmark network": "base.landmarks.net."}


class Match(NamedTuple):
    """Which keys of a file belong to which keys of a backbone."""

    fits: dict[str, str]  # the backbone's key -> the file's
    shapes: list[str]  # the same name in another shape, described
    missing: list[str]  # the backbone's keys that the file lacks
    inside: list[str]  # the file's keys of a part that the backbone has, without a partner
    extras: int  # the file's keys of other parts: heads, later stages


def match(backbone: nn.Module, tensors: Mapping[str, Tensor], part: str = "backbone") -> Match:
    """Find a backbone's tensors in a state dict of any of the layouts.

    Args:
        backbone: the network to fill.
        tensors: of the file. Where it holds several networks, the one that fits is taken.
        part: of `PARTS`, what the backbone is; where two fit, that one is taken.
    """
    own = backbone.state_dict()
    slots = {_normalised(key): key for key in own}

    def paired(names: Mapping[str, str]) -> dict[str, str]:
        ours = {key: slots.get(_normalised(name)) for key, name in names.items()}
        return {own_key: key for key, own_key in ours.items() if own_key is not None}

    names = max(networks(tensors, part), key=lambda names: len(paired(names)))
    pairs = paired(names)
    fits = {o: key for o, key in pairs.items() if own[o].shape == tensors[key].shape}
    shapes = [
        f"{o} {tuple(own[o].shape)} is {tuple(tensors[key].shape)} there"
        for o, key in pairs.items()
        if o not in fits
    ]
    counter = ".num_batches_tracked"  # older files have none, and nothing reads it
    missing = [o for o in own if o not in pairs and not o.endswith(counter)]
    inside = [k for k, n in names.items() if _normalised(n) not in slots and _within(n, backbone)]
    return Match(fits, shapes, missing, inside, len(tensors) - len(pairs) - len(inside))


def networks(keys: Iterable[str], part: str = "backbone") -> list[dict[str, str]]:
    """Name a file's keys as a backbone does, for each network in it that could be one.

    Those of `part` come first; keys of other parts of a network are left out.
    """
    names = {key: key.removeprefix("module.") for key in keys}
    if any(name.startswith("input_layer.") for name in names.values()):
        names = {key: f"ir_back.{name}" for key, name in _staged(names).items()}
    elif any(name.startswith("conv2_dw.") for name in names.values()):
        names = {key: f"face_landback.{name}" for key, name in names.items()}
    if any(name.startswith(("ir_back.", "face_landback.")) for name in names.values()):
        names = {key: _official(name) for key, name in names.items()}
    names = {key: re.sub(r"^network\.(?=base\.)", "", name) for key, name in names.items()}
    prefixes = sorted(PARTS.values(), key=lambda prefix: prefix != PARTS[part])
    found = [
        {key: name.removeprefix(p) for key, name in names.items() if name.startswith(p)}
        for p in prefixes
    ]
    return [names for names in found if names] or [names]  # a backbone's own, timm's or ours


def _official(name: str) -> str:
    """Our name of an official key; a key that has none keeps its own name."""
    try:
        return translate(name)[0] or name
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


def _normalised(key: str) -> str:
    """Undo what timm's feature extractors do to names: `stages_0.` for `stages.0.`, `model.`."""
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

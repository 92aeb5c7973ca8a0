"""The authors' checkpoints: their keys as a table, and what a file of theirs holds.

Source: the state dicts of the eight published model files (QCS and DCS on RAF-DB, FERPlus,
AffectNet-7 and AffectNet-8). Older files name the embeddings of the three levels `embed_q`,
`embed_k`, `embed_v`, newer ones `embed_1`, `embed_2`, `embed_3`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

# Official key (a whole-key regular expression) -> ours, or None: dropped on purpose, because no
# input reaches it in the authors' code either.
OFFICIAL_KEYS: tuple[tuple[str, str | None], ...] = (
    (r"ir_back\.input_layer\.(.+)", r"base.backbone.stem.\1"),
    (r"ir_back\.body(\d)\.(\d+)\.res_layer\.(.+)", r"base.backbone.stage\1.\2.residual.\3"),
    (r"ir_back\.body(\d)\.(\d+)\.shortcut_layer\.(.+)", r"base.backbone.stage\1.\2.shortcut.\3"),
    (r"ir_back\.output_layer\..+", None),  # ArcFace's embedding; QCS uses the maps
    (r"conv1\.(.+)", r"base.pyramid.lateral.0.\1"),
    (r"conv2\.(.+)", r"base.pyramid.lateral.1.\1"),
    (r"conv3\.(.+)", r"base.pyramid.lateral.2.\1"),
    (r"embed_[q1]\.(\d)\.(.+)", r"base.pyramid.embed.0.\1.\2"),
    (r"embed_[k2]\.(\d)\.(.+)", r"base.pyramid.embed.1.\1.\2"),
    (r"embed_[v3]\.proj\.(.+)", r"base.pyramid.embed.2.0.\1"),
    (r"VIT_(base|cross)\.blocks\.\d+\.conv\..+", None),  # left over from earlier designs, as is
    (r"VIT_(base|cross)\.(patch_embed|eca_block|CON1|IRLinear[12])\..+", None),
    (r"VIT_(base|cross)\.(cls_token|pos_embed)", r"\1.encoder.\2"),
    (r"VIT_(base|cross)\.se_block\.linear1\.(.+)", r"\1.encoder.gate.0.\2"),
    (r"VIT_(base|cross)\.se_block\.linear2\.(.+)", r"\1.encoder.gate.2.\2"),
    (r"VIT_(base|cross)\.head\.linear\.(.+)", r"\1.encoder.head.\2"),
    (
        r"VIT_(base|cross)\.blocks\.(\d+)\.((?:norm1|norm2|attn|mlp)\..+)",
        r"\1.encoder.blocks.\2.\3",
    ),
    (r"VIT_(base|cross)\.norm\.(.+)", r"\1.encoder.norm.\2"),
    (r"cross_attention_1\.(.+)", r"cross.attention.0.\1"),
    (r"cross_attention_2\.(.+)", r"cross.attention.1.\1"),
    (r"cross_attention_3\.(.+)", r"cross.attention.2.\1"),
    (r"fusion\.classifier\..+", None),  # one 8-class DCS file registers it and never calls it
)


class Report(NamedTuple):
    """What became of every key."""

    mapped: dict[str, str]  # official key -> ours
    dropped: list[str]  # official keys that influence nothing


def translate(key: str) -> str | None:
    """Our name of an official key, None for what is dropped.

    Raises:
        KeyError: it is not in the table.
    """
    for pattern, ours in OFFICIAL_KEYS:
        if match := re.fullmatch(pattern, key):
            return None if ours is None else match.expand(ours)
    raise KeyError(key)


def from_official(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Translate the authors' state dict into that of `qcs.models.QCSNetwork`.

    Args:
        state_dict: official keys, with or without DataParallel's `module.` prefix. The tensors
            are passed on as they are.

    Returns:
        Our state dict (load it with `strict=True`) and what became of each key.

    Raises:
        ValueError: a key is neither in the table nor dropped on purpose, or two keys have the
            same target.
    """
    ours: dict[str, Tensor] = {}
    report = Report({}, [])
    unknown = []
    for key, tensor in state_dict.items():
        name = key.removeprefix("module.")
        try:
            target = translate(name)
        except KeyError:
            unknown.append(key)
            continue
        if target is None:
            report.dropped.append(key)
        elif target in ours:
            raise ValueError(f"official key {key!r} repeats {target!r}: are two models mixed?")
        else:
            ours[target] = tensor
            report.mapped[key] = target
    if unknown:
        raise ValueError(
            f"{len(unknown)} keys are not of an official QCS or DCS model, the first is "
            f"{unknown[0]!r}; add them to OFFICIAL_KEYS in qcs/official.py or check the file"
        )
    return ours, report

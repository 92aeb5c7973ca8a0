"""The keys in the authors' checkpoints, translated into ours by a table.

Source: the state dicts of the eight published model files (QCS and DCS on RAF-DB, FERPlus,
AffectNet-7 and AffectNet-8) and of POSTER++, from which they come. Older files name the embeddings
of the three levels `embed_q`, `embed_k`, `embed_v`, newer ones `embed_1`, `embed_2`, `embed_3`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from qcs.config.errors import UserError


def _landmark_network() -> list[tuple[str, str]]:
    """POSTER++'s names of `qcs.models.MobileFaceNet`: its blocks are numbered by stage there."""
    ours, theirs = "base.landmarks.net", r"face_landback\."
    blocks = ["conv_23", *(rf"conv_3\.model\.{i}" for i in range(4))]
    blocks += ["conv_34", *(rf"conv_4\.model\.{i}" for i in range(6))]
    blocks += ["conv_45", *(rf"conv_5\.model\.{i}" for i in range(2))]
    layers = [
        rf"{unit}\.{layer}" for unit in ("conv", "conv_dw") for layer in ("conv", "bn", "prelu")
    ]
    layers += [r"project\.conv", r"project\.bn"]
    rules = [
        (rf"{theirs}{block}\.{layer}\.(.+)", rf"{ours}.blocks.{b}.conv.{i}.\1")
        for b, block in enumerate(blocks)
        for i, layer in enumerate(layers)
    ]
    units = {"conv1": "conv1", "conv2_dw": "dw_conv1", "conv_6_sep": "conv2"}
    return rules + [(rf"{theirs}{unit}\.(.+)", rf"{ours}.{own}.\1") for unit, own in units.items()]


def _landmark_levels() -> list[tuple[str, str]]:
    """POSTER++'s names of `qcs.models.landmarks.LandmarkAttention` at each level."""
    parts = {
        r"window{}\.norm\.(.+)": r"norm1.\1",
        r"attn{}\.qkv\.(.+)": r"kv.\1",
        r"attn{}\.proj\.(.+)": r"proj.\1",
        r"attn{}\.relative_position_bias_table": "position",
        r"ffn{}\.(gamma[12])": r"\1",
        r"ffn{}\.norm\.(.+)": r"norm2.\1",
        r"ffn{}\.(mlp\..+)": r"\1",
    }
    rules = [
        (theirs.format(level), f"base.landmarks.attention.{level - 1}.{ours}")
        for level in (1, 2, 3)
        for theirs, ours in parts.items()
    ]
    return [*rules, (r"last_face_conv\.(.+)", r"base.landmarks.lateral.2.\1")]


NOT_REACHED = "no input reaches it in the authors' code"

# Official key (a whole-key regular expression) -> ours.
OFFICIAL_KEYS: tuple[tuple[str, str], ...] = (
    (r"ir_back\.input_layer\.(.+)", r"base.backbone.stem.\1"),
    (r"ir_back\.body(\d)\.(\d+)\.res_layer\.(.+)", r"base.backbone.stage\1.\2.residual.\3"),
    (r"ir_back\.body(\d)\.(\d+)\.shortcut_layer\.(.+)", r"base.backbone.stage\1.\2.shortcut.\3"),
    (r"conv1\.(.+)", r"base.pyramid.lateral.0.\1"),
    (r"conv2\.(.+)", r"base.pyramid.lateral.1.\1"),
    (r"conv3\.(.+)", r"base.pyramid.lateral.2.\1"),
    (r"embed_[q1]\.(\d)\.(.+)", r"base.pyramid.embed.0.\1.\2"),
    (r"embed_[k2]\.(\d)\.(.+)", r"base.pyramid.embed.1.\1.\2"),
    (r"embed_[v3]\.proj\.(.+)", r"base.pyramid.embed.2.0.\1"),
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
    *_landmark_network(),
    *_landmark_levels(),
)
# Official key -> why nothing of ours takes it.
DROPPED: tuple[tuple[str, str], ...] = (
    (r"ir_back\.output_layer\..+", NOT_REACHED),  # ArcFace's embedding; QCS uses the maps
    (r"VIT_(base|cross)\.blocks\.\d+\.conv\..+", NOT_REACHED),  # left over from earlier designs
    (r"VIT_(base|cross)\.(patch_embed|eca_block|CON1|IRLinear[12])\..+", NOT_REACHED),
    (r"fusion\.classifier\..+", NOT_REACHED),  # one 8-class DCS file registers it, no more
    (r"face_landback\.output_layer\..+", "the authors' code throws its result away"),  # landmarks
    (r"attn[123]\.relative_position_index", "a constant that follows from the map's size"),
)


class Report(NamedTuple):
    """What became of every key of a file."""

    mapped: dict[str, str]  # official key -> ours
    dropped: dict[str, str]  # official keys that influence nothing -> why


def translate(key: str) -> tuple[str | None, str]:
    """Our name of an official key, or None and why it is dropped.

    Raises:
        KeyError: it is in neither table.
    """
    key = re.sub(r"^VIT\.", "VIT_base.", key)  # POSTER++ has one encoder
    for pattern, ours in OFFICIAL_KEYS:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours), ""
    for pattern, why in DROPPED:
        if re.fullmatch(pattern, key):
            return None, why
    raise KeyError(key)


def from_official(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Translate the authors' state dict into that of `qcs.models.QCSNetwork`.

    Args:
        state_dict: official keys, with or without DataParallel's `module.` prefix. The tensors
            are passed on as they are.

    Returns:
        Our state dict (load it with `strict=True`) and what became of each key.

    Raises:
        UserError: a key is neither in the table nor dropped on purpose, or two keys have the
            same target.
    """
    ours: dict[str, Tensor] = {}
    report = Report({}, {})
    unknown = []
    for key, tensor in state_dict.items():
        name = key.removeprefix("module.")
        try:
            target, why = translate(name)
        except KeyError:
            unknown.append(key)
            continue
        if target is None:
            report.dropped[key] = why
        elif target in ours:
            raise UserError(f"official key {key!r} repeats {target!r}: are two models mixed?")
        else:
            ours[target] = tensor
            report.mapped[key] = target
    if unknown:
        raise UserError(
            f"{len(unknown)} keys are not of an official QCS, DCS or POSTER++ model, the first is "
            f"{unknown[0]!r}; add them to OFFICIAL_KEYS in "
            "qcs/checkpoints/official_keys.py or check the file"
        )
    return ours, report

"""The commands of qcs: what each is for, two examples, and the text of its --help.

It is imported by `qcs --help`, so it imports nothing that is slow.
"""

import shutil
import textwrap
from typing import NamedTuple

from qcs.config.keys import CONF, choices, groups, keys


class Command(NamedTuple):
    """What a command is for, in one line, and two examples."""

    purpose: str
    examples: tuple[str, str]


COMMANDS = {
    "predict": Command(
        "name the expressions in photos, videos and of a webcam",
        (
            "qcs predict photo.jpg",
            "qcs predict ckpt=model.ckpt input=clip.mp4 annotate=true out=faces.csv",
        ),
    ),
    "demo": Command(
        "show the same as a page in the browser of this machine",
        ("qcs demo port=8000", "qcs demo ckpt=model.onnx"),
    ),
    "zoo": Command(
        "list the trained networks that come with the package",
        ("qcs zoo", "qcs zoo ferplus-light"),
    ),
    "train": Command(
        "train a network, select its best epoch and test it once",
        (
            "qcs train dataset=image_folder dataset.path=photos model=base",
            "qcs train experiment=ferplus_light dataset.path=ferplus.zip",
        ),
    ),
    "eval": Command(
        "measure a checkpoint, or compare several on the same images",
        (
            "qcs eval ckpt=model.ckpt dataset=ferplus dataset.path=ferplus.zip",
            "qcs eval 'compare=[a.ckpt,b.ckpt]' dataset=ferplus dataset.path=ferplus.zip",
        ),
    ),
    "figures": Command(
        "draw attention, pairs, embedding, confusion and learning curves",
        (
            "qcs figures figure=confusion ckpt=model.ckpt dataset=ferplus dataset.path=ferplus.zip",
            "qcs figures figure=curves 'runs=runs/*/*'",
        ),
    ),
    "export": Command(
        "write a checkpoint as ONNX or as a torch.export program",
        (
            "qcs export ckpt=model.ckpt out=model.onnx",
            "qcs export ckpt=model.ckpt int8=true dataset=ferplus dataset.path=ferplus.zip",
        ),
    ),
    "check": Command(
        "look at a data set: counts, sizes, duplicates, unreadable files",
        (
            "qcs check dataset=ferplus dataset.path=ferplus.zip",
            "qcs check dataset=image_folder dataset.path=photos",
        ),
    ),
    "prepare": Command(
        "decode and resize the images of a data set once, for faster training",
        (
            "qcs prepare dataset=ferplus dataset.path=ferplus.zip",
            "qcs prepare dataset=image_folder dataset.path=photos augment=paper",
        ),
    ),
    "convert": Command(
        "make a checkpoint of a file of the authors",
        (
            "qcs convert official.pth model.ckpt",
            "qcs convert official.pth model.ckpt --dataset rafdb",
        ),
    ),
}


def explanation(name: str) -> str:
    """Return what a command is for, two examples, and a line on each of its keys and groups."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    command = COMMANDS[name]
    lines = [f"qcs {name}: {command.purpose}", "", *(f"  {e}" for e in command.examples)]
    lines += [
        "",
        "Keys with their defaults:",
        *_table([(k.setting, k.comment) for k in keys(text)]),
    ]
    if found := groups(text):
        rows = [
            (g.setting, "; ".join(filter(None, [g.comment, ", ".join(choices(g.name))])))
            for g in found
        ]
        lines += ["", "Groups with their choices; a group's keys are in its files:", *_table(rows)]
    return "\n".join(lines)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Two columns, the second wrapped to the width of the terminal."""
    width = min(max((len(left) for left, _ in rows), default=0), 30)
    room = max(shutil.get_terminal_size((100, 24)).columns - width - 4, 30)
    lines = []
    for left, right in rows:
        first, *more = textwrap.wrap(right, room) or [""]
        lines.append(f"  {left:{width}}  {first}".rstrip())
        lines += [" " * (width + 4) + line for line in more]
    return lines

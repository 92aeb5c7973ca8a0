"""The command `qcs`: `qcs predict ckpt=...` is `python -m qcs.predict ckpt=...`."""

import runpy
import sys
from typing import NamedTuple

import qcs_fer
from qcs.config.console import let_readers_go
from qcs.config.version import __version__


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

OWN_PARSER = ("convert", "zoo")  # they are not configured by Hydra and have a help of their own


def main() -> None:
    """Start the command that the command line names, list the commands, or explain one."""
    let_readers_go()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"qcs-fer {__version__}")
    elif name not in COMMANDS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        sys.exit(2)
    elif name not in OWN_PARSER and {"-h", "--help"} & set(rest):
        print(explanation(name))
    elif found := qcs_fer.beside_ours():
        print(f"error: {found}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [sys.argv[0], *rest]
        runpy.run_module(f"qcs.{name}", run_name="__main__", alter_sys=True)  # as `python -m`


def overview() -> str:
    """Return the list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: qcs COMMAND [group=choice] [key=value] ...",
            "",
            *lines,
            "",
            "`qcs COMMAND --help` explains its keys, `qcs --version` prints the version.",
        ]
    )


def unknown(name: str) -> str:
    """Return a sentence on a name that is no command, with the nearest that is one."""
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean `qcs {near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"{name!r} is not a command of qcs: {hint}"


def explanation(name: str) -> str:
    """Return what a command is for, two examples, and a line on each of its keys and groups."""
    from qcs.config.keys import CONF, choices, groups, keys

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
    import shutil
    import textwrap

    width = min(max((len(left) for left, _ in rows), default=0), 30)
    room = max(shutil.get_terminal_size((100, 24)).columns - width - 4, 30)
    lines = []
    for left, right in rows:
        first, *more = textwrap.wrap(right, room) or [""]
        lines.append(f"  {left:{width}}  {first}".rstrip())
        lines += [" " * (width + 4) + line for line in more]
    return lines


if __name__ == "__main__":
    main()

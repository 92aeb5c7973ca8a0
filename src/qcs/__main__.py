"""The command `qcs`: `qcs predict ckpt=...` is `python -m qcs.predict ckpt=...`."""

import runpy
import sys

import qcs_fer
from qcs.config.commands import COMMANDS, explanation
from qcs.config.console import let_readers_go
from qcs.config.version import __version__

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


if __name__ == "__main__":
    main()

"""Where the command `qcs` starts: outside of the package `qcs`, whose name another library shares.

The package index has a library for quantum computing that is named `qcs` and imported by that
name. In an environment with both, it stands in the place of ours, or their files are mixed.
"""

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

SUMMARY = "Quadruplet cross similarity for facial expression recognition"
ADVICE = "run `pip uninstall qcs`, then install this one again"


def in_our_place() -> str | None:
    """Return a sentence where `import qcs` finds another package than ours, else None."""
    spec = find_spec("qcs")
    where = spec.origin if spec else None
    if where and Path(where).resolve().parent == Path(__file__).resolve().with_name("qcs"):
        return None
    return f"`import qcs` finds another library, {where}: {ADVICE}"


def beside_ours() -> str | None:
    """Return a sentence where another distribution named `qcs` is installed too, else None.

    An installation of ours from before it was named qcs-fer is not another library.
    """
    # This import takes 30 ms, for which `qcs --help` need not wait.
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        found = metadata("qcs")
    except PackageNotFoundError:
        return None
    if found["Summary"] == SUMMARY:
        return None
    return (
        f"qcs {found['Version']} ({found['Summary']}) is another library, and its files lie among "
        f"those of this one: {ADVICE}"
    )


def main() -> None:
    """Do as `python -m qcs`, or say in one sentence that `qcs` is another library."""
    if found := in_our_place():
        print(f"error: {found}", file=sys.stderr)
        sys.exit(2)
    # Code of the user's own, such as mine.TinyBackbone, is found where the command is started. It
    # comes last, so that a file that lies there cannot take the place of a library.
    sys.path.append(os.getcwd())
    runpy.run_module("qcs", run_name="__main__", alter_sys=True)

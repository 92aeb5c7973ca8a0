"""Where conf/ is, and the keys of its files with the comments that explain them.

The files are read as text, because importing a YAML reader would slow `qcs --help` down.
"""

import re
from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).parents[1]
CONF = next(d for d in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if d.is_dir())

_KEY = re.compile(
    r"^(?P<indent> *)(?P<name>[\w.]+):(?: +(?P<value>[^#\s].*?))?(?: +# (?P<comment>.*))?$"
)
_GROUP = re.compile(r"^ +- (?P<name>[\w/]+): (?P<choice>.*?)(?: +# (?P<comment>.*))?$")
_HIDDEN = ("defaults", "hydra", "run_dir")  # how Hydra puts a run together; `run_dir` is its folder


class Key(NamedTuple):
    """One line of a file: a dotted name, the default as it is written, and what it means."""

    name: str
    value: str
    comment: str

    @property
    def setting(self) -> str:
        """As it is written on the command line; the name alone of a mapping."""
        return f"{self.name}={self.value}" if self.value else self.name


def keys(text: str) -> list[Key]:
    """Return the keys of a configuration file in their order, nested ones with a dotted name.

    A key's comment stands behind it, or on the lines above it. A mapping is listed where it has a
    comment; `_target_`, the defaults and Hydra's own settings are left out.
    """
    found: list[Key] = []
    path: list[str] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("# "):
            above.append(line.strip().removeprefix("# "))
            continue
        if match := _KEY.match(line):
            path = [*path[: len(match["indent"]) // 2], match["name"]]
            comment = match["comment"] or " ".join(above)
            value = match["value"] or ""
            listed = value or comment
            if listed and path[0] not in _HIDDEN and match["name"] != "_target_":
                found.append(Key(".".join(path), value, comment))
        above = []
    return found


def groups(text: str) -> list[Key]:
    """Return the groups in the defaults of a configuration file: name, choice and comment."""
    matches = (_GROUP.match(line) for line in text.splitlines())
    return [Key(m["name"], m["choice"], m["comment"] or "") for m in matches if m]


def choices(group: str) -> list[str]:
    """Return the names that `group=...` takes: the files of its folder in conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))

"""Command lines in messages, quoted so that they work when the user copies them into a shell.

This module imports nothing of ours but `keys`, so that every room may use it.
"""

import re
from collections.abc import Mapping
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from qcs.config.keys import CONF

_UNQUOTED = re.compile(r"[A-Za-z_/.][\w/.-]*", re.ASCII)  # needs no quotes for Hydra
_WORDS = {"null", "true", "false", "nan", "inf"}


def command_line(module: str, options: Mapping[str, Any]) -> str:
    """Return `python -m module key=value ...`, quoted for Hydra and for a POSIX shell."""
    return " ".join(["python", "-m", module, *(option(*pair) for pair in options.items())])


def option(key: str, value: Any) -> str:
    """Return one `key=value` of a command; the value is None, a scalar, or a list of such."""
    text = setting(key, value)
    if re.fullmatch(r"[\w/.,:=+@%-]+", text, re.ASCII):
        return text
    if not re.search(r'["$`\\!]', text):
        return f'"{text}"'
    return "'" + text.replace("'", "'\"'\"'") + "'"


def setting(key: str, value: Any) -> str:
    """Return one `key=value`, quoted for Hydra but not for a shell."""
    return f"{key}={_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    if _UNQUOTED.fullmatch(text) and text.lower() not in _WORDS:
        return text
    text = text.replace("${", r"\${")  # else an interpolation, also between quotes
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def dataset_options(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The options that choose a data set: `dataset` and what differs from its reader's defaults.

    A reader that no file of conf/dataset names is the user's own.
    """
    target = str(dataset.get("_target_"))
    files = sorted((CONF / "dataset").glob("*.yaml"))
    names = [f.stem for f in files if f"_target_: {target}\n" in f.read_text(encoding="utf-8")]
    if not names:
        given = {k: v for k, v in dataset.items() if k not in ("_target_", "name", "path")}
        options = {
            "dataset": "own",
            "dataset._target_": target,
            "dataset.path": dataset.get("path"),
        }
        return options | {f"+dataset.{key}": value for key, value in given.items()}
    parameters = signature(resolve_name(target)).parameters
    options = {"dataset": names[0]}
    for key, value in dataset.items():
        default = parameters[key].default if key in parameters else None
        if key in parameters and value != default and (value or default):
            options[f"dataset.{key}"] = value
    return options

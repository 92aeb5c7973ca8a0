"""Hydra's errors on a command line, each as one sentence that says what to write instead."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from hydra.utils import get_object
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from qcs.config.compose import as_dict, compose
from qcs.config.keys import CONF, choices, groups
from qcs.config.overrides import quoted, yaml_of
from qcs.config.validation import nearest


def explain(error: Exception, command: str, overrides: Sequence[str]) -> str | None:
    """Return the sentence for an error of Hydra or OmegaConf; None for any other error.

    `command` is the name of a file of conf/, and `overrides` are those of its command line.
    """
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set: write {error.full_key}=..."
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return _no_choice(group, choice, command, overrides, error.options)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'the configuration'}: {_first_line(error)}"
    text = str(error)
    if isinstance(error, ValueError) and text.startswith("Config group override must be"):
        return _of_group(command, overrides)
    if not isinstance(error, HydraException):
        return None
    if found := re.search(r"The value of '([^']+)'.* is (.*) and not (.*)\.", text):
        return f"~{found[1]}={found[3]} takes nothing out: its value is {found[2]}"
    if found := re.search(r"Could not (override|delete)[^']*'([^']+)'", text):
        inner = getattr(error.__cause__, "full_key", None) or ""
        if inner.startswith(f"{found[2]}."):  # of a group given as {...}
            return f"{inner} is not set in conf/: write +{inner}=... to add it"
        return _no_key(found[2], command, overrides, adds=found[1] == "override")
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{found[1]} is there already: write {found[1]}=... without the plus"
    if found := re.search(r"Ambiguous value for argument '([^=']+)=(.*)'", text):
        key, value = found[1], found[2]
        return (
            f"{key}={value} is several values: write {quoted(key, value)} for one text, "
            f"'{key}=[{value}]' for a list, or add -m to run once for each"
        )
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{_first_line(error)}: {_first_line(error.__cause__)}"
    return _first_line(error)


def _of_group(command: str, overrides: Sequence[str]) -> str | None:
    """The sentence on a choice that is no text, of which Hydra does not say whose it is."""
    for key, sign, value in (override.partition("=") for override in overrides):
        if sign and not key:
            return f"={value} has no key: options are written KEY=VALUE"
        if (CONF / key).is_dir() and re.fullmatch(r"null|true|false|[-+.\d]+", value, re.I):
            return _no_choice(key, value, command, overrides)
    return None


def _first_line(error: Exception) -> str:
    """The first line of a message with something in it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _no_choice(
    group: str,
    choice: str,
    command: str,
    overrides: Sequence[str],
    listed: Sequence[str] | None = None,
) -> str:
    """The sentence on a choice that its group does not have, or on a group of other commands."""
    own = ("hydra", *(found.name for found in groups(yaml_of(command))))
    if not f"{group}/".startswith(tuple(f"{name}/" for name in own)):
        return _no_key(group, command, overrides, adds=False)
    known = sorted(listed or choices(group))
    if meant := nearest(choice, known):
        return f"{group}={choice} is not a choice, did you mean {group}={meant}?"
    return f"{group}={choice} is not a choice; there are {', '.join(known) or 'none'}"


def _no_key(key: str, command: str, overrides: Sequence[str], adds: bool) -> str:
    """The sentence on a key that the config does not have; `adds` where a plus would add it."""
    key = key.split("@")[0]
    config = _composed(command, overrides)
    if adds and key in _arguments(config) and key.rpartition(".")[2] not in config:
        values = [o.partition("=")[2] for o in overrides if o.startswith(f"{key}=")]
        return (
            f"{key} is not set in conf/: write +{key}={values[-1] if values else '...'} to add it"
        )
    listed = {*_flat(config), *(group.name for group in groups(yaml_of(command)))}
    known = [k for k in listed if not k.endswith("_target_")]
    group = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == group]
    meant = _meant(key, known, siblings)
    names = [k.rpartition(".")[2] for k in siblings] or [k for k in known if "." not in k]
    hint = f", did you mean {meant}?" if meant else f"; there are {', '.join(sorted(names))}"
    plus = f"{'' if meant else '.'} What conf/ does not list is added with a plus: +{key}=..."
    return f"{key} is not an option of qcs.{command}{hint}{plus if adds and group else ''}"


def _meant(key: str, known: Sequence[str], siblings: Sequence[str]) -> str | None:
    """The known key that a mistyped one was meant to be.

    The keys of its own group come first, then the same last word in another group, then, where
    the group itself is unknown, any key that looks alike.
    """
    last = key.rpartition(".")[2]
    by_name = {k.rpartition(".")[2]: k for k in siblings}
    if near := nearest(last, by_name):
        return by_name[near]
    elsewhere = [k for k in known if k.rpartition(".")[2] == last]
    if near := nearest(key, elsewhere, 0.0):
        return near
    return None if siblings else nearest(key, known, 0.8)


def _composed(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of the choices among the overrides, or of none where they do not compose."""
    keys = [o.partition("=")[0].lstrip("+~") for o in overrides]
    chosen = [
        override
        for key, override in zip(keys, overrides, strict=True)
        if key == "hydra.searchpath" or (CONF / key).is_dir()
    ]
    for attempt in (chosen, []):
        try:
            return as_dict(compose(command, attempt))
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
    return {}


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Every key, with dots, and its value; groups among them."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found[f"{before}{key}"] = value
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
    return found


def _arguments(config: Mapping[str, Any]) -> set[str]:
    """The keys, with dots, of everything that the `_target_`s of a config take."""
    found: set[str] = set()
    for key, node in _flat(config).items():
        target = node.get("_target_", "???") if isinstance(node, dict) else "???"
        if target != "???":
            with suppress(Exception):  # code of the user's own, which cannot be imported
                found |= {f"{key}.{name}" for name in signature(get_object(target)).parameters}
    return found

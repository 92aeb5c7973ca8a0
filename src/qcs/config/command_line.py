"""Hydra's errors on a command line, each as one sentence that says what to write instead.

An override is a KEY=VALUE of the command line. A group is a folder of conf/, and its choices are
the files in it.
"""

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.utils import get_object
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from qcs.config.compose import as_dict, compose
from qcs.config.errors import UserError
from qcs.config.hints import override_text
from qcs.config.keys import CONF, choices, groups, keys
from qcs.config.validation import nearest

_HOME = re.compile(r"^([^=\s]+=[\"']?)~(?=/|[\"']?$)")

# A folder that is empty text would be the one where the command is started.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "run_dir", "store", "dataset.path")
PATHS = (*FOLDERS, "input", "out", "ckpt")
# Groups of which several choices go together; of any other, the keys of two would mix.
SEVERAL = ("callbacks", "logger", "experiment", "ablation", "hparams_search", "debug")


def expand_home(argument: str) -> str:
    """Expand the "~/" of KEY=~/path, as the shell does only where a word begins with it.

    Hydra would refuse it, or make a folder with the name "~" for hydra.run.dir.
    """
    found = _HOME.match(argument)
    home = os.path.expanduser("~")
    return argument if not found or home == "~" else found[1] + home + argument[found.end() :]


def quote_path(argument: str) -> str:
    """Quote the path of KEY=PATH where it exists and has signs that mean something to Hydra.

    The folders of the jobs of a multirun have such signs, as in `model=qcs,seed=0`. A name without
    a folder is a path for the keys that hold nothing else.
    """
    key, _, value = argument.partition("=")
    path = os.sep in value or key in PATHS
    odd = path and not re.fullmatch(r"[\w./-]+", value, re.ASCII)
    return f"{key}={override_text(value)}" if odd and os.path.exists(value) else argument


def with_key(arguments: Sequence[str], command: str, key: str) -> list[str]:
    """Give the words without a key theirs, as in `qcs predict photo.jpg`; several make a list.

    What exists on disk is such a word even if it looks like an override, as `in` or `a=b.jpg`. Any
    other word that is a key of the command is left as it is: its value was forgotten.

    Raises:
        UserError: the key stands beside the words, or there is an unknown flag.
    """
    known = {name for name, *_ in keys(_yaml(command))}
    words = [word for word in _beside_flags(arguments) if _is_path(word, known)]
    if not words:
        return list(arguments)
    if any(argument.startswith(f"{key}=") for argument in arguments):
        raise UserError(f"{words[0]} and {key}=... stand side by side: write all into {key}=[...]")
    others = [argument for argument in arguments if argument not in words]
    return [*others, f"{key}={override_text(words if len(words) > 1 else words[0])}"]


def _is_path(word: str, known: Collection[str]) -> bool:
    """Whether a word stands for a path and not for an override, see `with_key`."""
    first = re.split(r"[.@=]", word.lstrip("+~"))[0]
    if os.path.lexists(word) and (word == first or first not in {*known, "hydra"}):
        return True
    return word not in known and bool(re.fullmatch(r"(~(/|$)|[^~+=])[^=]*", word))


def _yaml(command: str) -> str:
    return (CONF / f"{command}.yaml").read_text(encoding="utf-8")


def _beside_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither flags nor their values."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags, options are written KEY=VALUE")

    flags = get_args_parser()
    flags.error = refuse  # type: ignore[method-assign]  # instead of printing all flags
    return list(flags.parse_intermixed_args(arguments).overrides)


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The overrides among the arguments of a command, before or after its flags; all can be parsed.

    Raises:
        UserError: there is an unknown flag, several choices of a group that takes one, or an
            override that Hydra cannot parse; the message says how to quote it.
    """
    overrides, parser = _beside_flags(arguments), OverridesParser.create()
    for override in overrides:
        key, sign, _ = override.partition("=")
        try:
            chosen = parser.parse_override(override).value()
        except HydraException as error:
            raise UserError(_how_to_write(override)) from error
        if key in FOLDERS and sign and not str(chosen).strip():  # an unset variable of the shell
            raise UserError(f"{key}= is empty: write {key}=FOLDER, or leave it out")
        one = (CONF / key).is_dir() and key not in SEVERAL
        if one and isinstance(chosen, list) and len(chosen) > 1:
            raise UserError(f"{override} has several choices, and {key} is one: {key}={chosen[0]}")
    return overrides


def own_folder(arguments: Sequence[str]) -> list[str]:
    """The flag --config-dir as the override that composes with the user's own folder."""
    folder = get_args_parser().parse_known_args(list(arguments))[0].config_dir
    if folder is None:
        return []
    return [f"hydra.searchpath={override_text([f'file://{os.path.abspath(folder)}'])}"]


def no_choice_as_list(override: str, command: str) -> str:
    """Write GROUP=null as Hydra takes it, GROUP=[], where null is the command's own choice."""
    key, sign, value = override.partition("=")
    chosen = {group.name: group.value for group in groups(_yaml(command))}
    if not sign or chosen.get(key) != "null":
        return override
    return f"{key}={re.sub(r'(?<![^,])null(?![^,])', '[]', value)}"


def _how_to_write(override: str) -> str:
    """The sentence on an override that cannot be parsed."""
    key, sign, value = override.partition("=")
    if not sign:
        return f"{override} has no value: options are written KEY=VALUE, as {override}=..."
    if not re.fullmatch(r"\+{0,2}~?[\w.@/:$-]+", key) or key.startswith("-"):
        return f"{override} is not KEY=VALUE: {key} cannot be a key"
    if value[:1] in ("[", "{"):
        example = shlex.quote(f'{key}=["a=b.jpg","c.jpg"]')
        return (
            f"{override} cannot be read: close every bracket, and quote each text that holds other "
            f"signs than letters, digits and ./-_, as in {example}"
        )
    return f"{override} holds signs that need quotes: write {_quoted(key, value)}"


def _quoted(key: str, value: str) -> str:
    text = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{text}"')


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
            f"{key}={value} is several values: write {_quoted(key, value)} for one text, "
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
    own = ("hydra", *(found.name for found in groups(_yaml(command))))
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
    listed = {*_flat(config), *(group.name for group in groups(_yaml(command)))}
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

"""The overrides of a command line, as the user wrote them and as Hydra takes them.

An override is a KEY=VALUE of the command line. A group is a folder of conf/, and its choices are
the files in it.
"""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from qcs.config.errors import UserError
from qcs.config.hints import override_text
from qcs.config.keys import CONF, groups, keys

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
    known = {name for name, *_ in keys(yaml_of(command))}
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


def yaml_of(command: str) -> str:
    """The text of a command's file in conf/."""
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
    chosen = {group.name: group.value for group in groups(yaml_of(command))}
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
    return f"{override} holds signs that need quotes: write {quoted(key, value)}"


def quoted(key: str, value: str) -> str:
    """KEY=VALUE with the quotes that Hydra and a shell need around any text."""
    text = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{text}"')

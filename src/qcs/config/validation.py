"""Checks of values against type hints, by pydantic; what is wrong becomes one sentence.

No value is converted: "3" is not a number, true is not an integer, and numbers are finite.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from typing_extensions import TypedDict, is_typeddict

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
_WORDS = {"a valid array": "a list", "a valid list": "a list", "an object": "a group of keys",
          "a valid dictionary": "a group of keys"}  # fmt: skip


def nearest(name: str, names: Iterable[str], likeness: float = 0.7) -> str | None:
    """Return the known name that a mistyped one was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(name, sorted(names), 1, likeness)), None)


def unknown(name: str, names: Iterable[str]) -> str:
    """Return the sentence on a key that is not among `names`, the keys of its group."""
    group, _, key = name.rpartition(".")
    names = list(names)
    if meant := nearest(key, names):
        return f"{name} is not an option, did you mean {group + '.' if group else ''}{meant}?"
    return f"{name} is not an option; {group or 'the command'} takes {', '.join(names)}"


def problem(value: Any, hint: Any, where: str) -> str | None:
    """Return a sentence on what is wrong with a plain value, or None.

    Args:
        value: of a resolved config: None, bool, int, float, str, list or dict.
        hint: a type hint, with bounds in `Annotated`. Every value passes a hint that pydantic does
            not support.
        where: the key, for the sentence.
    """
    try:
        _adapter(hint).validate_json(json.dumps({"value": value}))  # JSON has lists, no tuples
    except ValidationError as error:
        return _sentence(error, value, hint, where)
    except (PydanticUserError, PydanticUndefinedAnnotation, TypeError):
        return None  # pydantic does not support the hint
    return None


@cache
def _adapter(hint: Any) -> TypeAdapter:
    @with_config(_STRICT)
    class Holder(TypedDict):  # groups within take over its strictness
        value: hint

    return TypeAdapter(Holder)


def _sentence(error: ValidationError, value: Any, hint: Any, where: str) -> str:
    """The sentence on an error; of the branches of a union, the one that fits deepest was meant."""
    found = [(_path(e["loc"][1:], value), e) for e in error.errors(include_url=False)]
    depth = max(len(path) for path, _ in found)
    path = next(path for path, _ in found if len(path) == depth)
    errors = [e for other, e in found if other == path]
    name = where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    if errors[0]["type"] == "extra_forbidden":
        return unknown(name, _options(hint, path[:-1]))
    given = errors[0]["input"]
    expected = list(dict.fromkeys(_expected(e) for e in errors))
    quote = isinstance(given, (int, float)) and any(e["type"] == "string_type" for e in errors)
    hint = f"; a text that looks like a number is written '{name}=\"{given}\"'" if quote else ""
    return f"{name}={json.dumps(given, ensure_ascii=False)} should be {' or '.join(expected)}{hint}"


def _expected(error: Mapping[str, Any]) -> str:
    kind, text = error["type"], error["msg"]
    if kind in ("needs_python_object", "callable_type"):
        return "a group with a _target_"
    if kind == "too_short":
        return f"of length {error['ctx']['min_length']} or more"
    if kind == "too_long":
        return f"of length {error['ctx']['max_length']} or less"
    text = text.removeprefix("Input should be ")
    return _WORDS.get(text, text)


def _path(places: Sequence[str | int], value: Any) -> tuple[str | int, ...]:
    """The keys and positions that lead into a value; pydantic names union branches as well."""
    path = []
    for place in places:
        inside = isinstance(value, dict) and place in value
        inside = inside or (isinstance(value, list) and place in range(len(value)))
        if inside:
            path.append(place)
            value = value[place]
    return tuple(path)


def _options(hint: Any, path: Sequence[str | int]) -> list[str]:
    """The keys of the group that a path leads to, from a type hint with `TypedDict`s."""
    for part in (hint, *get_args(hint)):
        if is_typeddict(part):
            hints = get_type_hints(part, include_extras=True)
            return _options(hints[str(path[0])], path[1:]) if path else list(hints)
    return []

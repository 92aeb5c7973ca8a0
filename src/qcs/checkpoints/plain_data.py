"""Checks of plain data from a file that anyone may have written.

It holds no objects, is not nested without end, and its numbers are within limits.
"""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from qcs.config.errors import UserError

MAX_DEPTH = 8  # of groups inside groups
MAX_VALUES = 10_000  # in all groups together
MAX_CHARACTERS = 500  # of a text
MAX_ELEMENTS = 16  # of a list of numbers
# The lowest and the highest value of every argument of that name. The limits are far beyond any
# useful value; they keep a file from asking for more time or memory than there is.
LIMITS: dict[str, tuple[float, float]] = {
    "units": (1, 100),
    "channels": (1, 4096),
    "stem_stride": (1, 8),
    "out_indices": (-16, 15),
    "img_size": (1, 1024),
    "input_size": (1, 1024),
    "embed_dim": (1, 8192),
    "grid": (1, 64),
    "num_heads": (1, 256),
    "depth": (0, 64),
    "head_size": (1, 4096),
    "drop": (0, 1),
    "attention_drop": (0, 1),
    "drop_path": (0, 1),
    "drop_rate": (0, 1),
    "drop_path_rate": (0, 1),
    "size": (1, 2048),
    "resize": (1, 2048),
    "mean": (-1000, 1000),
    "std": (0, 1000),
    "seed": (0, 2**63 - 1),
    "train": (0, 20_000),
    "val": (0, 20_000),
    "test": (0, 20_000),
    "test_fraction": (0, 1),
    "label_base": (0, 1_000_000),
}


def short_repr(value: Any) -> str:
    """Return a short text of a value for a message, without control characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    short.maxlevel = 2
    return short.repr(value)


def require_plain(value: Any, where: str) -> None:
    """Refuse a value that holds more than numbers, texts, lists and groups of such values.

    A value that contains itself counts as nested too deeply.

    Raises:
        UserError: names what the value holds instead.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise UserError(f"{where} is nested or long beyond any use")
        if isinstance(item, dict):
            if not all(isinstance(key, str) and len(key) <= MAX_CHARACTERS for key in item):
                raise UserError(f"{where} has a key that is not a short text")
            waiting += [(v, depth + 1) for v in item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += [(v, depth + 1) for v in item]
        elif isinstance(item, str):
            if len(item) > MAX_CHARACTERS:
                raise UserError(f"{where} has a text of {len(item)} characters")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise UserError(f"{where} has a number that is not finite")
        elif isinstance(item, int):
            if abs(item) >= 2**63:
                raise UserError(f"{where} has a number of more than 64 bits")
        elif item is not None:
            raise UserError(f"{where} has a {type(item).__name__} where plain data is expected")


def require_limits(options: Mapping[str, Any], where: str) -> None:
    """Refuse numbers beyond `LIMITS` and lists of more than `MAX_ELEMENTS` numbers.

    Raises:
        UserError: names the key, the number and the limits.
    """
    for key, value in options.items():
        name = f"{where}.{key}"
        if isinstance(value, Mapping):
            require_limits(value, name)
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        numbers = [v for v in numbers if isinstance(v, (int, float))]
        if len(numbers) > MAX_ELEMENTS:
            raise UserError(f"{name} has {len(numbers)} numbers, more than {MAX_ELEMENTS}")
        low, high = LIMITS.get(key, (-math.inf, math.inf))
        for number in numbers:
            if not low <= number <= high:
                raise UserError(f"{name}={short_repr(value)} should be from {low:g} to {high:g}")

"""Plain data of a stranger's file: no objects, no endless nesting, numbers within limits."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from qcs.config.errors import UserError

DEEPEST = 8  # groups in groups
MOST = 10_000  # values in all
LONGEST = 500  # characters of a text
ELEMENTS = 16  # of a list of numbers
# From and to, of every argument of that name. They are far beyond what is of use, and keep a file
# from asking for more time or memory than there is.
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


def shown(value: Any) -> str:
    """A value as a sentence may show it: short, and without control characters."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    short.maxlevel = 2
    return short.repr(value)


def require_plain(value: Any, where: str) -> None:
    """Refuse what is not numbers, texts, lists and groups of them; a cycle is endless nesting.

    Raises:
        UserError: what is there instead.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            raise UserError(f"{where} is nested or long beyond any use")
        if isinstance(item, dict):
            if not all(isinstance(key, str) and len(key) <= LONGEST for key in item):
                raise UserError(f"{where} has a key that is not a short text")
            waiting += [(v, depth + 1) for v in item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += [(v, depth + 1) for v in item]
        elif isinstance(item, str):
            if len(item) > LONGEST:
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
    """Refuse numbers beyond `LIMITS` and lists of more than `ELEMENTS` numbers.

    Raises:
        UserError: names the key, the number and the limits.
    """
    for key, value in options.items():
        name = f"{where}.{key}"
        if isinstance(value, Mapping):
            require_limits(value, name)
            continue
        numbers = [v for v in value if isinstance(v, (int, float))] if isinstance(
            value, (list, tuple)) else [value]  # fmt: skip
        if len(numbers) > ELEMENTS:
            raise UserError(f"{name} has {len(numbers)} numbers, more than {ELEMENTS}")
        low, high = LIMITS.get(key, (-math.inf, math.inf))
        for number in numbers:
            if isinstance(number, (int, float)) and not low <= number <= high:
                raise UserError(f"{name}={shown(value)} should be from {low:g} to {high:g}")

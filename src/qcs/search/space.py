"""The space of a search: hydra.sweeper.space and the command line as distributions of Optuna.

The values of a choice are kept as texts of Hydra overrides (`null`, `5.0`, `'a=b'`, `[8,16]`), so
that values of every type reach the job unchanged.
"""

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from qcs.config.errors import UserError
from qcs.config.hints import override_text
from qcs.search.study import optuna

BaseDistribution = optuna.distributions.BaseDistribution
CategoricalDistribution = optuna.distributions.CategoricalDistribution
FloatDistribution = optuna.distributions.FloatDistribution
IntDistribution = optuna.distributions.IntDistribution

RANGE = {"low", "high", "log", "step"}


def distribution(key: str, node: Any) -> BaseDistribution:
    """Return the distribution of an option that {low, high, log, step} or {choices} describes.

    Raises:
        UserError: it is neither of the two, or its numbers are no range.
    """
    where = f"hydra.sweeper.space: {key} is {node}"
    keys = set(node) if isinstance(node, dict) else set()
    if keys != {"choices"} and not {"low", "high"} <= keys <= RANGE:
        raise UserError(f"{where}, expected {{low, high, log, step}} or {{choices: [...]}}")
    if "choices" in keys:
        if not isinstance(node["choices"], list) or not node["choices"]:
            raise UserError(f"{where}, expected a list of one choice or more")
        return CategoricalDistribution(list(dict.fromkeys(map(override_text, node["choices"]))))
    low, high, step, log = (node.get(k) for k in ("low", "high", "step", "log"))
    numbers = [n for n in (low, high, step) if n is not None]
    whole = all(isinstance(n, int) for n in numbers)
    if not all(_is_number(n) for n in (low, high, *numbers)):
        raise UserError(f"{where}, expected finite numbers for low, high and step")
    if not isinstance(log, (bool, type(None))):
        raise UserError(f"{where}, expected true or false for log")
    try:
        if whole:
            return IntDistribution(low, high, step=1 if step is None else step, log=bool(log))
        return FloatDistribution(float(low), float(high), step=step, log=bool(log))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where}, which is no range: {error}") from error


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _of_override(override: Override) -> BaseDistribution:
    """The distribution of a choice, an interval or a range on the command line."""
    sweep, key = override.value(), override.key_or_group
    if isinstance(sweep, IntervalSweep):
        return distribution(
            key, {"low": sweep.start, "high": sweep.end, "log": "log" in sweep.tags}
        )
    if isinstance(sweep, RangeSweep):  # its stop is not part of it
        values = sorted(sweep.range())
        if not values:
            raise UserError(f"{override.input_line} is a range without a value")
        node = {"low": values[0], "high": values[-1], "step": abs(sweep.step)}
        return distribution(key, node)
    values = list(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise UserError(f"{override.input_line} is a choice of nothing")
    return CategoricalDistribution(values)


def space(given: dict[str, Any], overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Return the distributions by key, of the configuration and of the command line.

    An override of the command line replaces the distribution of the configuration. A key that the
    command line sets to one value is not searched over.

    Raises:
        UserError: as for `distribution`, or nothing is left to search over.
    """
    overridden = {o.key_or_group for o in overrides}
    found = {key: distribution(key, node) for key, node in given.items()}
    found = {key: value for key, value in found.items() if key.lstrip("+") not in overridden}
    swept = [o for o in overrides if o.is_sweep_override()]
    found |= {o.get_key_element(): _of_override(o) for o in swept}
    if not found:
        raise UserError("a search needs something to search over: give hydra.sweeper.space a key")
    return found

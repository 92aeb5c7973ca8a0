"""Values against type hints: nothing is converted, and the sentence names the place."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Len
from torch import Tensor, nn
from typing_extensions import TypedDict

from qcs.config.validation import nearest, problem, unknown


class Inner(TypedDict, total=False):
    depth: Annotated[int, Ge(1)]
    mode: Literal["a", "b"]


class Outer(TypedDict, total=False):
    inner: Inner | None


@pytest.mark.parametrize(
    "value,hint",
    [
        (1, int),
        (1, float),
        ("a", str),
        (None, int | None),
        ([1], list[int]),
        ([1, 2], tuple[int, int]),
        ([0.5, 1], Sequence[float]),
        ("a", Path),
        ({}, dict | None),
        ({"inner": {"depth": 1}}, Outer),
        ({"inner": None}, Outer),
        (0.1, float | Tensor),
        ("anything", Any),
        ("anything", Callable[[int], "Nowhere"]),  # noqa: F821
    ],
)
def test_what_fits(value, hint):
    assert problem(value, hint, "key") is None


@pytest.mark.parametrize(
    "value,hint,sentence",
    [
        (True, int, "key=true should be a valid integer"),
        (1.0, int, "key=1.0 should be a valid integer"),
        ("1", int, 'key="1" should be a valid integer'),
        (float("nan"), float, "key=NaN should be a finite number"),
        (float("inf"), float | None, "key=Infinity should be a finite number"),
        ("x", list[int], 'key="x" should be a list'),
        ([1, [2]], list[int], "key[1]=[2] should be a valid integer"),
        ([1, "b"], tuple[float, float], 'key[1]="b" should be a valid number'),
        ([1], Annotated[list[int], Len(2, 2)], "key=[1] should be of length 2 or more"),
        (3, str | list, "key=3 should be a valid string or a list; a text that looks like a "
         "number is written 'key=\"3\"'"),
        ([3], str | list[str], "key[0]=3 should be a valid string"),
        ({"inner": {"depth": 0}}, Outer, "key.inner.depth=0 should be greater than or equal to 1"),
        ({"inner": {"dept": 1}}, Outer, "key.inner.dept is not an option, did you mean "
         "key.inner.depth?"),
        ({"inner": {"mode": "c"}}, Outer, "key.inner.mode=\"c\" should be 'a' or 'b'"),
        ("x", nn.Module, 'key="x" should be a group with a _target_'),
        (None, int, "key=null should be a valid integer"),
    ],
)  # fmt: skip
def test_what_does_not_fit(value, hint, sentence):
    assert (problem(value, hint, "key") or "").startswith(sentence)


def test_the_nearest_name():
    assert nearest("max_epoch", ["max_epochs", "min_epochs"]) == "max_epochs"
    assert nearest("nonsense", ["max_epochs"]) is None
    assert unknown("a.max_epoch", ["max_epochs"]).endswith("did you mean a.max_epochs?")
    assert unknown("x", ["a", "b"]) == "x is not an option; the command takes a, b"

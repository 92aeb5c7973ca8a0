"""Shares of the work: disjoint, complete, even."""

import pytest

from qcs.config.errors import UserError
from qcs.inference.shards import Shard, parse
from qcs.inference.sources import Source

KINDS = {"image": 37, "film": 8, "tar": 10}
FILES = [Source(f"{n}.{kind}", "", kind) for kind, number in KINDS.items() for n in range(number)]
VARIABLES = ["RANK", "WORLD_SIZE"] + [
    f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP")
]


@pytest.mark.parametrize("of", [1, 2, 7, 16, 99])
def test_shares_are_disjoint_complete_and_even(of):
    shares = [Shard(number, of).share(FILES[::-1]) for number in range(1, of + 1)]
    assert sorted(file for share in shares for file in share) == sorted(FILES)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for kind in KINDS:
        numbers = [sum(file.kind == kind for file in share) for share in shares]
        assert max(numbers) - min(numbers) <= 1


def test_large_photos_that_take_turns_with_small_ones_are_shared():
    names = [f"{n:04d}_{size}\udcff.jpg" for n in range(200) for size in ("large", "small")]
    shares = [Shard(n, 2).share([Source(x, "", "image") for x in names]) for n in (1, 2)]
    assert all(60 < sum("large" in file.file for file in share) < 140 for share in shares)


def test_a_shard_is_a_number_of_a_number():
    assert parse("3/16") == Shard(3, 16) and parse(None) is None
    assert parse("3/16").name == "03-of-16"
    for wrong in ("0/16", "17/16", "3", "3/0", "-1/2", "a/b", "3/16/2", ""):
        with pytest.raises(UserError, match="is not a shard: write shard=1/16"):
            parse(wrong)


@pytest.mark.parametrize(
    "variables,expected",
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, Shard(1, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Shard(4, 4)),
        ({"ID": "0", "COUNT": "16", "MIN": "0", "MAX": "15"}, Shard(1, 16)),
        ({"ID": "16", "COUNT": "16", "MIN": "1", "MAX": "16"}, Shard(16, 16)),
        ({"ID": "6", "COUNT": "4", "MIN": "0", "MAX": "6", "STEP": "2"}, Shard(4, 4)),
        ({"ID": "1", "COUNT": "2", "MIN": "0", "RANK": "1", "WORLD_SIZE": "4"}, Shard(6, 8)),
        ({"ID": "7", "COUNT": "2", "MIN": "3", "MAX": "7"}, "without holes"),
        ({"RANK": "0"}, "finds neither"),
        ({}, "finds neither"),
    ],
)
def test_auto_asks_torchrun_and_slurm(variables, expected, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        slurm = f"SLURM_ARRAY_TASK_{name}"
        monkeypatch.setenv(slurm if slurm in VARIABLES else name, value)
    if isinstance(expected, Shard):
        assert parse("auto") == expected
    else:
        with pytest.raises(UserError, match=expected):
            parse("auto")

"""How many worker processes there are."""

import os

import pytest

from qcs.config import threads
from qcs.config.errors import UserError
from qcs.inference.processors import workers_for

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need Linux or macOS")


def test_auto_is_a_worker_for_each_processor_unless_there_is_little_to_do(monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 4)
    numbers = [workers_for("auto", photos) for photos in (1, 31, 32, 48, 1000, float("inf"))]
    assert numbers == [0, 0, 2, 3, 4, 4]
    assert workers_for(7, 1) == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of torchrun
    assert [workers_for("auto", photos) for photos in (1000, float("inf"))] == [2, 2]
    monkeypatch.setattr(threads, "processors", lambda: 1)
    assert workers_for("auto", 1000) == 0
    with pytest.raises(UserError, match="workers=-1 is negative"):
        workers_for(-1, 1)

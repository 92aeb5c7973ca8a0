"""A network applied to a data set, with loader processes that fail."""

import multiprocessing.queues
import os

import pytest

from qcs.config.errors import UserError
from qcs.data import transforms, workers
from qcs.evaluation.apply import apply


@pytest.mark.skipif(not workers.LINUX, reason="processes are forked there")
def test_a_batch_that_cannot_be_sent_ends_the_wait_for_it(faces, monkeypatch):
    """As where /dev/shm is full: torch prints a traceback and waits for ever."""
    parent, pickler = os.getpid(), multiprocessing.queues._ForkingPickler
    dumps = pickler.dumps

    def full(batch: object) -> object:
        if os.getpid() != parent:
            raise RuntimeError("unable to allocate shared memory")
        return dumps(batch)

    monkeypatch.setattr(pickler, "dumps", full)
    data = faces.split("test")
    with pytest.raises(UserError, match="ended: most often memory.* fewer num_workers"):
        apply(lambda images: images.flatten(1), data, transforms.evaluation(16), num_workers=1)

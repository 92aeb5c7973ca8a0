"""Messages of libraries that are silenced, and those that are not."""

import logging
import warnings
from unittest import TestCase

from qcs.training import notices

RANK_ZERO = "lightning.pytorch.utilities.rank_zero"


def test_notices_are_left_out_and_warnings_are_not():
    notices.silence()
    notices.silence()
    log = logging.getLogger(RANK_ZERO)
    assert sum(isinstance(f, notices._WithoutNotices) for f in log.filters) == 1
    # Not caplog: whether Lightning hands on to it depends on the version of pytest.
    with TestCase().assertLogs(RANK_ZERO, "INFO") as seen:
        for text in (
            "💡 Tip: try installing [litlogger]",
            "TPU available: False, using: 0 TPU cores",
            "`Trainer.fit` stopped: `max_epochs=2` reached.",
        ):
            log.info(text)
        log.info("`Trainer.fit` stopped: No training batches.")
    assert [record.getMessage() for record in seen.records] == [
        "`Trainer.fit` stopped: No training batches."
    ]


def test_warnings_of_these_words_alone_are_left_out():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        notices.silence()
        warnings.warn("Total length of `CombinedLoader` across ranks is zero.", stacklevel=1)
        warnings.warn(
            "`isinstance(treespec, LeafSpec)` is deprecated, use", FutureWarning, stacklevel=1
        )
        warnings.warn("the gradient is not finite", stacklevel=1)
    assert [str(w.message) for w in seen] == ["the gradient is not finite"]

"""Notices of libraries that tell a user of this program nothing, and are not shown.

Each is named by its words, so that a warning of another kind, or a new one, is still seen.
"""

import logging
import re
import warnings

# What Lightning logs. How a run ends, and which file it loads, are in our own lines.
LOGGED = re.compile(
    r"💡 Tip"
    r"|(GPU|TPU|HPU|IPU) available: "
    r"|LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES"
    r"|Initializing distributed: "
    r"|-+\ndistributed_backend="
    r"|Running in `fast_dev_run` mode"
    r"|Loading `train_dataloader` to estimate number of stepping batches"
    r"|`Trainer\.fit` stopped: `max_(epochs|steps)=\d+` reached"
    r"|(Restoring states|Restored all states|Loaded model weights) from the checkpoint"
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)
# What libraries warn of.
WARNED = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # in Lightning's own code
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Total length of `\w+` across ranks is zero",  # select_on=last validates nothing
    r"The '\w+' does not have many workers",  # the user's choice
    r"Checkpoint directory .* exists and is not empty",  # a run that goes on
    r"Experiment logs directory .* exists and is not empty",  # our logger keeps what is there
    r".*your dataloader is not resumable",  # ours is
)


class _Told(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not LOGGED.match(record.getMessage())


def leave_out() -> None:
    """Leave these notices out from now on; a second call changes nothing."""
    for message in WARNED:
        warnings.filterwarnings("ignore", message)
    for logger in map(logging.getLogger, LOGGERS):
        if not any(isinstance(f, _Told) for f in logger.filters):
            logger.addFilter(_Told())

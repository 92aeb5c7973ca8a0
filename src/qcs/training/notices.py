"""Messages of libraries that are of no use to the user of this program, and how to silence them.

Each message is recognised by its words, so that any other message, also a new one, is still shown.
"""

import logging
import re
import warnings

# Messages in Lightning's log. Our own log says how a run ends and which file it loads.
LOGGED = re.compile(
    r"💡 Tip"
    r"|(GPU|TPU|HPU|IPU) available: "
    r"|LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES"
    r"|Initializing distributed: "
    r"|-+\ndistributed_backend="
    r"|Running in `fast_dev_run` mode"
    r"|Loading `train_dataloader` to estimate number of stepping batches"
    r"|`Trainer\.fit` stopped: `max_(epochs|steps)=\d+` reached"
    r"|Using (bfloat16|16bit) Automatic Mixed Precision"
    r"|`Trainer\((overfit_batches|limit_\w+_batches|val_check_interval)=.*was configured"
    r"|Found current_model_state in the checkpoint"
    r"|(Restoring states|Restored all states|Loaded model weights) from the checkpoint"
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)
# Warnings, each a regular expression for the beginning of the message.
WARNED = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # raised by Lightning's own code
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Total length of `\w+` across ranks is zero",  # there is no validation with select_on=last
    r"The '\w+' does not have many workers",  # the user has chosen their number
    r"Checkpoint directory .* exists and is not empty",  # the run is resumed
    r"Experiment logs directory .* exists and is not empty",  # our logger keeps its content
    r"`ModelCheckpoint\(monitor=.*could not find the monitored key",  # we say that nothing is best
    r"You requested to overfit but enabled val dataloader shuffling",  # it is not shuffled
    r".*your dataloader is not resumable",  # our loader is resumable
)


class _WithoutNotices(logging.Filter):
    """Lets every record pass that is not one of the messages above."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not LOGGED.match(record.getMessage())


def silence() -> None:
    """Stop showing the messages above; a second call changes nothing."""
    for message in WARNED:
        warnings.filterwarnings("ignore", message)
    for logger in map(logging.getLogger, LOGGERS):
        if not any(isinstance(f, _WithoutNotices) for f in logger.filters):
            logger.addFilter(_WithoutNotices())

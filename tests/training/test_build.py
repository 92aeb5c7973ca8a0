"""A run's parts, built from its config."""

from lightning.pytorch.callbacks import LearningRateMonitor
from test_options import config

from qcs.training import build


def test_a_run_without_loggers_has_no_learning_rate_monitor(tmp_path):
    for overrides, number in ((["logger.csv=null"], 0), ([], 1)):
        trainer = build.trainer(config(tmp_path, *overrides), tmp_path)
        monitors = [c for c in trainer.callbacks if isinstance(c, LearningRateMonitor)]
        assert len(monitors) == number

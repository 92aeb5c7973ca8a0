"""The jobs of a multirun that joblib runs side by side share the processor cores."""

import logging
import os
from contextlib import suppress
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from qcs.config import threads

log = logging.getLogger(__name__)


class ShareCores(Callback):
    """Tells joblib's processes how many threads compute in each, before joblib starts them.

    By itself joblib divides by `n_jobs`, which may be more than there are jobs. SLURM and Ray give
    each job cores of its own, and Hydra's own launcher runs one job after the other on all.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Set the environment that the processes inherit; a mistake is the sweeper's to tell."""
        if config.hydra.runtime.choices["hydra/launcher"] != "joblib":
            return
        with suppress(HydraException):
            jobs = _side_by_side(config)
            loader = OmegaConf.select(config, "loader", default=config)
            workers = int(OmegaConf.select(loader, "num_workers", default=0))
            shared = threads.of_jobs(jobs, workers)
            os.environ.update(shared)
            log.info(
                "%d jobs side by side: OMP_NUM_THREADS=%s in each, %d loader processes, %d cores",
                jobs, shared["OMP_NUM_THREADS"], workers, threads.cores(),
            )  # fmt: skip


def _side_by_side(config: DictConfig) -> int:
    """How many jobs run at a time: as many as joblib takes, or as there are."""
    sweeper, wanted = config.hydra.sweeper, config.hydra.launcher.n_jobs
    if wanted < 0:  # -1 is all processors
        wanted += 1 + (os.cpu_count() or 1)
    if "n_jobs" in sweeper:  # a search
        return min(wanted, sweeper.n_jobs)
    fixed = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*fixed, *config.hydra.overrides.task])
    return min(wanted, len(BasicSweeper.split_arguments(overrides, sweeper.max_batch_size)[0]))

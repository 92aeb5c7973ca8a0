"""Tells Hydra of `hydra/sweeper: qcs_optuna`; imported at every start, so it holds nothing heavy.

hydra-optuna-sweeper 1.3 pins Optuna below 3; `qcs.search.sweep` talks to today's.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class Options:
    """What conf/hparams_search/optuna.yaml explains."""

    _target_: str = "hydra_plugins.qcs_optuna.OptunaSweeper"
    space: dict[str, Any] = field(default_factory=dict)
    n_trials: int = 20
    n_jobs: int = 1
    storage: str = "runs/search.journal"
    study_name: str = "qcs"
    sampler: str = "tpe"
    pruner: str | None = "median"
    direction: Any = "maximize"
    seed: int = 0


ConfigStore.instance().store(group="hydra/sweeper", name="qcs_optuna", node=Options, provider="qcs")


class OptunaSweeper(Sweeper):
    """Asks Optuna for trials, launches them, tells it what came out."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search; the arguments are the command line's."""
        from qcs.search import sweep

        return sweep.run(self.launcher, self.loader, self.config, arguments, **self.options)

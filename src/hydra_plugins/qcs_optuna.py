"""Registers the sweeper `qcs_optuna` and a resolver with Hydra at every start.

Therefore it imports nothing heavy. hydra-optuna-sweeper 1.3 requires an Optuna older than 3;
`qcs.search.sweeper` works with today's.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class Options:
    """The options of the sweeper, which conf/hparams_search/optuna.yaml explains."""

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


def _job_folder(overrides: str, number: int) -> str:
    from qcs.search.job_folder import job_folder

    return job_folder(overrides, number)


OmegaConf.register_new_resolver("qcs.job_folder", _job_folder, replace=True)


class OptunaSweeper(Sweeper):
    """Searches with Optuna, see `qcs.search.sweeper`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher of the jobs."""
        self.config: DictConfig = config
        self.loader = hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search, with the overrides of the command line."""
        from qcs.search import sweeper

        return sweeper.run(self.launcher, self.loader, self.config, arguments, **self.options)

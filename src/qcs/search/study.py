"""Studies of Optuna in a file, and when a search continues an earlier one.

The name of a study ends with a digest of all settings that its trials share. A search with another
backbone, optimiser, data set or space therefore begins a study of its own.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from qcs.config.compose import as_dict, flat
from qcs.config.errors import UserError, missing_extra

try:
    import optuna
    from optuna.distributions import BaseDistribution, distribution_to_json
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
except ImportError as error:
    raise missing_extra("sweep", "a search needs") from error

log = logging.getLogger(__name__)
Direction = Literal["minimize", "maximize"]
optuna.logging.set_verbosity(optuna.logging.WARNING)  # its reports on trials repeat ours
# Settings that do not change the result of a trial: where it writes, what it displays, how many
# processes read the images.
IGNORED = (
    "run_dir", "trial", "logger", "test", "store", "loader.num_workers", "loader.timeout",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps",
    "callbacks.dashboard", "callbacks.epoch_log", "callbacks.learning_rate", "callbacks.last",
)  # fmt: skip
SEARCHED = "searched"  # in place of a value that differs between trials


def open_storage(path: str | Path) -> JournalStorage:
    """Open the file of studies, which several processes may do at a time.

    Raises:
        UserError: it cannot be read or written, or it is not a file of studies.
    """
    path = Path(os.path.expanduser(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except OSError as error:
        raise UserError(f"hydra.sweeper.storage={path} cannot be opened: {error}") from error
    except (ValueError, KeyError, TypeError) as error:  # of its reader
        raise UserError(
            f"hydra.sweeper.storage={path} is no file of studies, or a damaged one ({error}): name "
            "another"
        ) from error


def fixed_settings(
    loader: ConfigLoader,
    config: DictConfig,
    lines: list[str],
    space: dict[str, BaseDistribution],
    directions: list[Direction],
) -> dict[str, Any]:
    """Return the settings that all trials of a search share, by key, with the space and directions.

    `config` is that of the multirun, and `lines` are the overrides of every job.
    """
    job = loader.load_sweep_config(config, lines)
    with open_dict(job):
        job.hydra.runtime.output_dir = job.hydra.job.id = job.run_dir = "run"
        for key in (key.lstrip("+") for key in space):
            if OmegaConf.select(job, key) is not None and key not in job.hydra.runtime.choices:
                OmegaConf.update(job, key, SEARCHED)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job)  # interpolations of the config look values up in it
    try:
        content = as_dict(job)
        del content["hydra"]
        found = flat(as_dict(OmegaConf.create(content), resolve=list(content)))
    finally:
        HydraConfig.instance().cfg = before
    found = {
        key: value
        for key, value in found.items()
        if not any(f"{key}.".startswith(f"{group}.") for group in IGNORED)
    }
    path = found.get("dataset.path")
    if isinstance(path, str) and os.path.exists(os.path.expanduser(path)):
        found["dataset.path"] = os.path.realpath(os.path.expanduser(path))
    found |= {f"space.{key}": distribution_to_json(value) for key, value in space.items()}
    return found | {"directions": directions}


def study_name(name: str, settings: dict[str, Any]) -> str:
    """Return the name with a digest of the fixed settings."""
    content = json.dumps(settings, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def open_study(
    storage: JournalStorage, name: str, settings: dict[str, Any], directions: list[Direction]
) -> optuna.Study:
    """Continue the study of that name and settings, or create it; log which of the two."""
    full = study_name(name, settings)
    others = [s for s in optuna.get_all_study_summaries(storage) if s.study_name != full]
    study = optuna.create_study(
        storage=storage, study_name=full, directions=directions, load_if_exists=True
    )
    if done := len(study.get_trials(deepcopy=False)):
        log.info("going on with study %s of %d trials", full, done)
        return study
    study.set_user_attr("fixed", settings)
    alike = [s for s in others if s.study_name.startswith(f"{name}-") and "fixed" in s.user_attrs]
    if alike:
        other = alike[-1]
        before = other.user_attrs["fixed"]
        changed = [k for k in sorted({*before, *settings}) if before.get(k) != settings.get(k)]
        listed = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
        log.info("a new study, %s: %s differs in %s", full, other.study_name, listed)
    else:
        log.info("a new study, %s", full)
    return study

"""Studies in a file, and what makes two searches the same one.

A study is of everything that its trials have in common. Its name ends with a digest of that, so a
search whose backbone, optimiser, data or space is another begins a study of its own.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from qcs.config.errors import UserError, missing_extra

try:
    import optuna
    from optuna.distributions import BaseDistribution, distribution_to_json
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
except ImportError as error:
    raise missing_extra("sweep", "a search needs") from error

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it says of a trial, we do
# What does not change the value that a trial comes to: where it writes, what it shows, how many
# processes read the images.
INDIFFERENT = (
    "run_dir", "trial", "logger", "test", "store", "loader.num_workers", "loader.timeout",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps",
    "callbacks.dashboard", "callbacks.epoch_log", "callbacks.learning_rate", "callbacks.last",
)  # fmt: skip
SEARCHED = "searched"


def open_storage(path: str | Path) -> JournalStorage:
    """Open the file of studies; several processes may.

    Raises:
        UserError: it cannot be read or written, or holds something else.
    """
    path = Path(path).expanduser()
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


def fixed(
    loader: ConfigLoader,
    config: DictConfig,
    lines: list[str],
    space: dict[str, BaseDistribution],
    directions: list[str],
) -> dict[str, Any]:
    """What all trials of a search have in common, by key, and what they are searched over for.

    Args:
        loader: composes a job's config.
        config: the multirun's.
        lines: overrides of every job.
        space: what is searched over.
        directions: "maximize" or "minimize", by metric.
    """
    job = loader.load_sweep_config(config, lines)
    with open_dict(job):
        job.hydra.runtime.output_dir = job.hydra.job.id = job.run_dir = "run"
        for key in (key.lstrip("+") for key in space):
            if OmegaConf.select(job, key) is not None and key not in job.hydra.runtime.choices:
                OmegaConf.update(job, key, SEARCHED)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job)  # for what the config looks up in it
    try:
        content = OmegaConf.to_container(job)
        del content["hydra"]
        found = _flat(OmegaConf.to_container(OmegaConf.create(content), resolve=True))
    finally:
        HydraConfig.instance().cfg = before
    found = {
        key: value
        for key, value in found.items()
        if not any(f"{key}.".startswith(f"{group}.") for group in INDIFFERENT)
    }
    path = found.get("dataset.path")
    if isinstance(path, str) and os.path.exists(os.path.expanduser(path)):
        found["dataset.path"] = os.path.realpath(os.path.expanduser(path))
    found |= {f"space.{key}": distribution_to_json(value) for key, value in space.items()}
    return found | {"directions": directions}


def _flat(node: Any, where: str = "") -> dict[str, Any]:
    """The leaves by dotted key."""
    if not isinstance(node, dict) or not node:
        return {where: node}
    found = {}
    for key, value in node.items():
        found |= _flat(value, f"{where}.{key}" if where else str(key))
    return found


def study_name(name: str, fixed: dict[str, Any]) -> str:
    """The name with a digest of what is fixed."""
    content = json.dumps(fixed, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def open_study(
    storage: JournalStorage, name: str, fixed: dict[str, Any], directions: list[str]
) -> optuna.Study:
    """Go on with the study of what is fixed, or begin it, and say which."""
    full = study_name(name, fixed)
    others = [s for s in optuna.get_all_study_summaries(storage) if s.study_name != full]
    study = optuna.create_study(
        storage=storage, study_name=full, directions=directions, load_if_exists=True
    )
    if done := len(study.get_trials(deepcopy=False)):
        log.info("going on with study %s of %d trials", full, done)
        return study
    study.set_user_attr("fixed", fixed)
    alike = [s for s in others if s.study_name.startswith(f"{name}-") and "fixed" in s.user_attrs]
    if alike:
        other = alike[-1]
        before = other.user_attrs["fixed"]
        changed = [k for k in sorted({*before, *fixed}) if before.get(k) != fixed.get(k)]
        shown = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
        log.info("a new study, %s: %s differs in %s", full, other.study_name, shown)
    else:
        log.info("a new study, %s", full)
    return study

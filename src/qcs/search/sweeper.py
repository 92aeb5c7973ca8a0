"""A search over options with Optuna: `python -m qcs.train -m hparams_search=optuna`.

A study in a file suggests the values of trials, any launcher of Hydra runs them as jobs, and the
study is told their results. A job reports each validation to its trial, which may be pruned.
"""

import logging
import math
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from qcs import plots
from qcs.config.compose import as_dict
from qcs.config.errors import Failed, UserError
from qcs.config.hints import override_text
from qcs.search.space import space as search_space
from qcs.search.study import Direction, fixed_settings, open_storage, open_study, optuna

log = logging.getLogger(__name__)
TrialState = optuna.trial.TrialState
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
MAX_FAILURES = 4  # trials in a row after which the search gives up
REPEATED = "repeated"  # user attribute of a trial whose values were tried before


def _directions(options: dict[str, Any], metric: Any) -> list[Direction]:
    """Check the options of the sweeper, and return a direction for each metric."""
    for key in ("n_trials", "n_jobs"):
        if not isinstance(options[key], int) or options[key] < 1:
            raise UserError(f"hydra.sweeper.{key}={options[key]} should be 1 or more")
    direction = options["direction"]
    directions: list[Any] = [direction] if isinstance(direction, str) else list(direction or [])
    if not directions or set(directions) - {"maximize", "minimize"}:
        raise UserError(
            f"hydra.sweeper.direction={direction} should be maximize or minimize, or a list of them"
        )
    metrics = [metric] if isinstance(metric, str) else list(metric or [])
    if len(metrics) != len(directions):
        raise UserError(
            f"a search needs a direction for each metric: optimized_metric={metric} and "
            f"hydra.sweeper.direction={direction}"
        )
    if len(directions) > 1 and options["pruner"]:
        raise UserError("several metrics cannot be pruned by: write hydra.sweeper.pruner=null")
    return directions


SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
PRUNERS = {
    None: optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


def _study(
    options: dict[str, Any], settings: dict[str, Any], directions: list[Direction]
) -> optuna.Study:
    """Open the study of a search, with its sampler and its pruner."""
    known: dict[str, list] = {"sampler": list(SAMPLERS), "pruner": list(PRUNERS)}
    for key, names in known.items():
        if options[key] not in names:
            raise UserError(f"hydra.sweeper.{key}={options[key]} is not one of {names}")
    storage = open_storage(options["storage"])
    study = open_study(storage, options["study_name"], settings, directions)
    study.pruner = PRUNERS[options["pruner"]]()
    # A search that is continued must not draw its first values again.
    seed = options["seed"] + len(study.get_trials(deepcopy=False))
    study.sampler = SAMPLERS[options["sampler"]](seed=seed)
    return study


def _alive(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether the search of a running trial still runs; on other machines that is assumed."""
    host, _, process = trial.user_attrs.get("owner", ":0").rpartition(":")
    if host and host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except OSError:
        return False
    return int(process) not in (0, os.getpid())


def _requeue(study: optuna.Study) -> None:
    """Let the trials fail that a killed search left running, and try their values once more."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if not _alive(trial):
            _fail(study, trial, "it was left running", repeat=True)


def _fail(
    study: optuna.Study, trial: Any, reason: str, repeat: bool = False, counts: bool = True
) -> None:
    """Tell the study that a trial failed, and why.

    With `repeat`, its values are tried once more, as the failure may not be due to them. A
    repetition that does not count may be followed by another one.
    """
    study._storage.set_trial_user_attr(trial._trial_id, "error", reason)
    study.tell(trial.number, state=TrialState.FAIL)
    again = repeat and not (counts and trial.user_attrs.get(REPEATED))
    if again:
        study.enqueue_trial(trial.params, user_attrs={REPEATED: counts})
    log.warning(
        "trial %d failed: %s%s", trial.number, reason, "; its values are tried again" * again
    )


def run(
    launcher: Launcher,
    loader: ConfigLoader,
    config: DictConfig,
    arguments: Sequence[str],
    **options: Any,
) -> optuna.Study:
    """Run trials until the study has `n_trials` results, then draw its history and importances.

    `config` is that of the multirun; conf/hparams_search/optuna.yaml explains the options.

    Raises:
        UserError: the space or an option makes no sense, or too many trials in a row failed.
    """
    overrides = OverridesParser.create(loader).parse_overrides(list(arguments))
    lines = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    given = OmegaConf.create(options["space"])
    space = search_space(as_dict(given, resolve=[str(key) for key in given]), overrides)
    HydraConfig.instance().set_config(config)
    metric = loader.load_sweep_config(config, lines).get("optimized_metric")
    directions = _directions(options, metric)
    settings = fixed_settings(loader, config, lines, space, directions)
    study, folder = _study(options, settings, directions), Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    _requeue(study)
    name = metric if isinstance(metric, str) else metric[0]
    errors: list[str] = []  # of the last trials, all of which failed
    while (missing := options["n_trials"] - len(study.get_trials(deepcopy=False, states=DONE))) > 0:
        trials = [study.ask(space) for _ in range(min(options["n_jobs"], missing))]
        for error in _launch(launcher, study, trials, lines, options):
            errors = [*errors, error] if error else []
        if len(errors) >= MAX_FAILURES:
            _report(study, folder, name)
            raise UserError(f"{len(errors)} trials in a row failed; the last said: {errors[-1]}")
    _report(study, folder, name)
    return study


def _launch(
    launcher: Launcher,
    study: optuna.Study,
    trials: list[optuna.Trial],
    lines: list[str],
    options: dict[str, Any],
) -> list[str | None]:
    """Run trials side by side and tell the study; return the error of each, or None.

    All of them have failed where the launcher itself ends with an exception, for example because
    the system killed a process.
    """
    jobs = [lines + _overrides(study, trial, options) for trial in trials]
    try:
        results = launcher.launch(jobs, initial_job_idx=trials[0].number)
    except (KeyboardInterrupt, SystemExit):
        for trial in trials:
            _fail(study, trial, "the search was stopped", repeat=True, counts=False)
        log.warning("the search was stopped; the same command goes on with it")
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        for trial in trials:
            _fail(study, trial, reason, repeat=True)
        return [reason] * len(trials)
    return [_tell(study, *pair) for pair in zip(trials, results, strict=True)]


def _overrides(study: optuna.Study, trial: optuna.Trial, options: dict[str, Any]) -> list[str]:
    """The overrides of a job; the values of a choice are texts of overrides already."""
    trial.set_user_attr("owner", f"{socket.gethostname()}:{os.getpid()}")
    values = {k: v if isinstance(v, str) else override_text(v) for k, v in trial.params.items()}
    where = {"storage": options["storage"], "study": study.study_name, "id": trial._trial_id}
    return [f"{key}={value}" for key, value in values.items()] + [f"trial={override_text(where)}"]


def _tell(study: optuna.Study, trial: optuna.Trial, result: Any) -> str | None:
    """Tell the study the result of a job; return its error, if there is one."""
    try:
        value = result.return_value
    except Exception as error:  # what the job raised
        value = Failed(f"{type(error).__name__}: {error}")
    if isinstance(value, Failed):
        _fail(study, trial, value.sentence)
        return value.sentence
    frozen = study.get_trials(deepcopy=False)[trial.number]
    if "pruned" in frozen.user_attrs:
        study.tell(trial, state=TrialState.PRUNED)
        return None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        reason = f"optimized_metric came to {value}, which cannot be compared"
        _fail(study, trial, reason)
        return reason
    study.tell(trial, value)
    return None


def _report(study: optuna.Study, folder: Path, metric: str) -> None:
    """Draw history.png and importance.png, and log the best trial."""
    trials = study.get_trials(deepcopy=False, states=DONE)
    if not trials:
        return
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    several = len(study.directions) > 1
    for best in study.best_trials if several else complete and [study.best_trial]:
        log.info("best: trial %d, %s, %s", best.number, best.values, best.params)
    points = [(t.number, t.values[0] if t in complete else None) for t in trials]
    least = study.directions[0] == optuna.study.StudyDirection.MINIMIZE
    plots.search_history(points, folder / "history.png", study.study_name, least, metric)
    varied = {k for t in complete for k in t.params if len({u.params.get(k) for u in complete}) > 1}
    if len(complete) < 4 or not varied:
        log.info("importance.png needs four whole trials or more")
        return
    target = (lambda t: t.values[0]) if several else None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    plots.importance(found, folder / "importance.png", study.study_name)

"""A search over options with Optuna: `python -m qcs.train -m hparams_search=optuna`.

Trials are asked of a study in a file, run as Hydra jobs by any launcher, and told back. A job
reports each validation to its trial, which the study may prune.
"""

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from qcs import plots
from qcs.config.errors import Failed, UserError, missing_extra
from qcs.search.pruning import open_storage

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState
except ImportError as error:
    raise missing_extra("sweep", "a search needs") from error

log = logging.getLogger(__name__)
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
MAX_FAILURES = 4  # trials in a row, and the search gives up


def distribution(key: str, node: Any) -> BaseDistribution:
    """What {low, high, log, step} or {choices} means.

    Raises:
        UserError: neither of the two; names the key.
    """
    if not isinstance(node, dict) or ("choices" in node) == ("low" in node and "high" in node):
        raise UserError(
            f"hydra.sweeper.space: {key} is {node}, expected {{low, high, log, step}} or "
            "{choices: [...]}"
        )
    if "choices" in node:
        return CategoricalDistribution(node["choices"])
    low, high, step = node["low"], node["high"], node.get("step")
    options = {"log": bool(node.get("log", False))}
    if isinstance(low, int) and isinstance(high, int) and isinstance(step or 1, int):
        return IntDistribution(low, high, step=step or 1, **options)
    return FloatDistribution(float(low), float(high), step=step, **options)


def _from_override(override: Override) -> BaseDistribution:
    """What Hydra's choice, interval and range say on the command line."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        node = {"low": sweep.start, "high": sweep.end, "log": "log" in sweep.tags}
        return distribution(override.key_or_group, node)
    if isinstance(sweep, RangeSweep):
        node = {"low": sweep.start, "high": sweep.stop, "step": sweep.step}
        return distribution(override.key_or_group, node)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _study(options: dict[str, Any]) -> optuna.Study:
    directions = options["direction"]
    directions = [directions] if isinstance(directions, str) else list(directions)
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    pruners = {None: optuna.pruners.NopPruner, "median": optuna.pruners.MedianPruner,
               "hyperband": optuna.pruners.HyperbandPruner}  # fmt: skip
    for key, known in {"sampler": samplers, "pruner": pruners}.items():
        if options[key] not in known:
            raise UserError(f"hydra.sweeper.{key}={options[key]} is not one of {list(known)}")
    study = optuna.create_study(
        storage=open_storage(options["storage"]),
        study_name=options["study_name"],
        pruner=pruners[options["pruner"]](),
        directions=directions,
        load_if_exists=True,
    )
    # A search that goes on must not draw the first values again.
    seed = options["seed"] + len(study.get_trials(deepcopy=False))
    study.sampler = samplers[options["sampler"]](seed=seed)
    return study


def _alive(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a running trial's search still runs; of other machines it is assumed."""
    host, _, process = trial.user_attrs.get("owner", ":0").rpartition(":")
    if host and host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except OSError:
        return False
    return int(process) not in (0, os.getpid())


def _requeue(study: optuna.Study) -> None:
    """Fail the trials that a killed search left running, and try their values again."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if not _alive(trial):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
            log.warning("trial %d was left running: its values are tried again", trial.number)


def run(
    launcher: Launcher, config: DictConfig, arguments: Sequence[str], **options: Any
) -> optuna.Study:
    """Run trials until the study has `n_trials`; draw what it learned.

    Raises:
        UserError: a space or an option that makes no sense, or trials that fail in a row.
    """
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    fixed = [o for o in overrides if not o.is_sweep_override()]
    given = OmegaConf.to_container(OmegaConf.create(options["space"]), resolve=True)
    space = {k: distribution(k, v) for k, v in given.items()}
    space |= {o.get_key_element(): _from_override(o) for o in overrides if o.is_sweep_override()}
    space = {k: v for k, v in space.items() if k not in {o.get_key_element() for o in fixed}}
    several = not isinstance(options["direction"], str)
    if several and options["pruner"]:
        raise UserError("several metrics cannot be pruned by: write hydra.sweeper.pruner=null")
    HydraConfig.instance().set_config(config)
    study, folder = _study(options), Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    _requeue(study)
    errors: list[str] = []  # in a row
    while missing := options["n_trials"] - len(study.get_trials(deepcopy=False, states=DONE)):
        if missing < 0:
            break
        trials = [study.ask(space) for _ in range(min(options["n_jobs"], missing))]
        lines = [o.input_line for o in fixed]
        jobs = [lines + _overrides(trial, options) for trial in trials]
        results = launcher.launch(jobs, initial_job_idx=trials[0].number)
        for pair in zip(trials, results, strict=True):
            error = _tell(study, *pair)
            errors = [*errors, error] if error else []
        if len(errors) >= MAX_FAILURES:
            raise UserError(f"{len(errors)} trials in a row failed; the last said: {errors[-1]}")
    _report(study, folder, several)
    return study


def _overrides(trial: optuna.Trial, options: dict[str, Any]) -> list[str]:
    trial.set_user_attr("owner", f"{socket.gethostname()}:{os.getpid()}")
    where = f"storage:'{options['storage']}',study:'{options['study_name']}',id:{trial._trial_id}"
    return [f"{key}={value}" for key, value in trial.params.items()] + [f"trial={{{where}}}"]


def _tell(study: optuna.Study, trial: optuna.Trial, result: Any) -> str | None:
    """Tell the study what a job returned; return its error, if any.

    What is not a user's mistake is raised.
    """
    if isinstance(result.return_value, Failed):
        error = result.return_value.sentence
        trial.set_user_attr("error", error)
        study.tell(trial, state=TrialState.FAIL)
        log.warning("trial %d failed: %s", trial.number, error)
        return error
    frozen = study.get_trials(deepcopy=False)[trial.number]
    if "pruned" in frozen.user_attrs:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, result.return_value)
    return None


def _report(study: optuna.Study, folder: Path, several: bool) -> None:
    """Draw history.png and importance.png; say what won."""
    trials = study.get_trials(deepcopy=False, states=DONE)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    for best in study.best_trials if several else complete and [study.best_trial]:
        log.info("best: trial %d, %s, %s", best.number, best.values, best.params)
    points = [(t.number, t.values[0] if t in complete else None) for t in trials]
    least = study.directions[0] == optuna.study.StudyDirection.MINIMIZE
    plots.search_history(points, folder / "history.png", study.study_name, least)
    varied = {k for t in complete for k in t.params if len({u.params.get(k) for u in complete}) > 1}
    if len(complete) < 4 or not varied:
        log.info("importance.png needs four whole trials or more")
        return
    target = (lambda t: t.values[0]) if several else None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    plots.importance(found, folder / "importance.png", study.study_name)

"""Searches without trainings: a launcher that answers, Optuna's studies in a file."""

from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from optuna.trial import TrialState

from qcs.config.errors import Failed, UserError
from qcs.config.hints import override_text
from qcs.config.keys import CONF
from qcs.search import sweeper
from qcs.search.space import distribution, space


class Launcher:
    """Answers with what `answer` makes of a job's overrides; keeps them."""

    def __init__(self, answer) -> None:
        self.answer, self.jobs = answer, []

    def launch(self, jobs, initial_job_idx):
        self.jobs += jobs
        return [SimpleNamespace(return_value=self.answer(job)) for job in jobs]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Run a search in a folder of its own: the study, and the jobs' overrides."""
    monkeypatch.setattr(sweeper, "_report", lambda *_: None)  # pictures take their time

    def run(answer, *arguments: str, n_trials: int = 1, **changed):
        launcher = Launcher(answer)
        options = {"sampler": "random", "pruner": None, "direction": "maximize", "seed": 0}
        options |= {"space": {"optimizer.lr": {"low": 0.1, "high": 0.2}}, "n_jobs": 1}
        options |= {"n_trials": n_trials, "study_name": "mine"}
        options |= {"storage": str(tmp_path / "studies.journal")} | changed
        given = [*arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            config = hydra.compose_config("train", given, run_mode=RunMode.MULTIRUN)
            kept = HydraConfig.instance().cfg
            try:
                study = sweeper.run(launcher, hydra.config_loader, config, arguments, **options)
            finally:
                HydraConfig.instance().cfg = kept
        return study, launcher.jobs

    return run


def states(study) -> list[str]:
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize(
    "value",
    [None, True, 5, 5.0, 1e-05, "plain", "a=b", "a,b", "two words", "5.0", "null", "it's", "",
     "C:\\x", [8, 16], {"a": None}, "(x)", "ü{}", "~/faces"],
)  # fmt: skip
def test_a_value_reaches_the_job_as_what_it_is(value):
    override = OverridesParser.create().parse_override(f"key={override_text(value)}")
    assert not override.is_sweep_override() and override.value() == value
    assert type(override.value()) is type(value)


@pytest.mark.parametrize(
    "node,reason",
    [
        ({"low": 2, "high": 1}, "which is no range"),
        ({"low": 1, "high": 2, "step": 0}, "which is no range"),
        ({"low": 0.0, "high": 1.0, "log": True}, "which is no range"),
        ({"low": 0, "high": 1, "log": True}, "which is no range"),
        ({"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, "which is no range"),
        ({"low": float("nan"), "high": 1.0}, "expected finite numbers"),
        ({"low": "a", "high": 1.0}, "expected finite numbers"),
        ({"low": None, "high": 1.0}, "expected finite numbers"),
        ({"low": 1, "high": 2, "log": "yes"}, "expected true or false"),
        ({"low": 1, "high": 2, "lgo": True}, r"expected \{low, high, log, step\}"),
        ({"choices": []}, "one choice or more"),
        ({"choices": "ab"}, "expected a list"),
        (3, r"expected \{low, high, log, step\}"),
    ],
)
def test_a_space_that_makes_no_sense_is_one_sentence(node, reason):
    with pytest.raises(UserError, match=f"hydra.sweeper.space: key is .*{reason}"):
        distribution("key", node)


def test_the_command_line_says_what_is_searched():
    parsed = OverridesParser.create().parse_overrides(
        ["a=1", "b=1,2.5", "c=interval(1,4)", "d=range(1,6,2)", "~e", "+f=x,y"]
    )
    found = space({"a": {"low": 0, "high": 1}, "g": {"choices": [None]}}, parsed)
    assert set(found) == {"g", "b", "c", "d", "+f"}
    assert found["b"].choices == ("1", "2.5") and found["g"].choices == ("null",)
    assert (found["d"].low, found["d"].high, found["d"].step) == (1, 5, 2)
    with pytest.raises(UserError, match="something to search over"):
        space({}, parsed[:1])


def test_null_is_a_choice(search):
    given = {"gradient_clip_norm": {"choices": [None, 5.0]}}
    study, jobs = search(lambda job: 0.5, n_trials=6, space=given)
    assert {job[-2] for job in jobs} == {"gradient_clip_norm=null", "gradient_clip_norm=5.0"}
    assert states(study) == ["COMPLETE"] * 6


def test_a_search_goes_on_only_with_what_is_the_same(search, caplog):
    first, _ = search(lambda job: 0.5, "seed=1")
    for same in (
        ["seed=1", "logger=tensorboard", "loader.num_workers=7"],
        ["seed=1", "trainer.enable_progress_bar=false", "run_dir=elsewhere"],
    ):
        assert search(lambda job: 0.5, *same, n_trials=2)[0].study_name == first.study_name
    caplog.set_level("INFO")
    others = {
        tuple(change): search(lambda job: 0.5, "seed=1", *change)[0].study_name
        for change in (
            ["backbone=mobilefacenet"],
            ["optimizer=sgd"],
            ["trainer.max_epochs=3"],
            ["dataset.path=elsewhere"],
            ["model.base.drop=0.3"],
            ["optimizer.lr=0.1,0.2"],
            ["optimized_metric=val/f1"],
        )
    }
    others["seed"] = search(lambda job: 0.5)[0].study_name
    others["direction"] = search(lambda job: 0.5, "seed=1", direction="minimize")[0].study_name
    assert len({*others.values(), first.study_name}) == len(others) + 1
    assert "differs in backbone._target_" in caplog.text


def test_any_exception_is_a_failed_trial(search):
    def answer(job):
        answer.calls += 1
        if answer.calls == 1:
            return Failed("out of memory")
        return float("nan") if answer.calls == 2 else 0.5

    answer.calls = 0
    study, _ = search(answer, n_trials=2)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[0].user_attrs["error"] == "out of memory"
    assert "cannot be compared" in study.trials[1].user_attrs["error"]


def test_what_ends_the_launcher_is_repeated_once(search):
    def answer(job):
        answer.calls += 1
        if answer.calls < 3:
            raise RuntimeError("a worker was killed")
        return 0.5

    answer.calls = 0
    study, jobs = search(answer)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE"]
    assert jobs[0][:-1] == jobs[1][:-1] != jobs[2][:-1]


def test_a_search_that_only_fails_gives_up(search):
    with pytest.raises(UserError, match="4 trials in a row failed; the last said: no memory"):
        search(lambda job: Failed("no memory"), n_trials=9)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_search_tries_the_values_again(stop, search):
    def interrupted(job):
        raise stop

    for _ in range(2):
        with pytest.raises(stop):
            search(interrupted)
    study, jobs = search(lambda job: 0.5)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params == study.trials[2].params
    assert len(jobs) == 1


def test_a_killed_search_tries_the_same_values_once_more(search):
    space = {"optimizer.lr": optuna.distributions.FloatDistribution(0.1, 0.2)}
    study, _ = search(lambda job: 0.5)
    for _ in range(3):  # killed each time
        study.ask(space).set_user_attr("owner", f"{sweeper.socket.gethostname()}:999999999")
        study, _ = search(lambda job: 0.5, n_trials=len(study.trials) + 5)
    again = study.trials[2]
    assert study.trials[1].state == TrialState.FAIL
    assert again.params == study.trials[1].params and again.state == TrialState.COMPLETE
    repeated = [t for t in study.trials if sweeper.REPEATED in t.user_attrs]
    assert len(repeated) == 3 and all(t.state == TrialState.COMPLETE for t in repeated)


@pytest.mark.parametrize(
    "change,sentence",
    [
        ({"n_trials": 0}, "n_trials=0 should be 1 or more"),
        ({"n_jobs": 0}, "n_jobs=0 should be 1 or more"),
        ({"direction": "up"}, "direction=up should be maximize or minimize"),
        ({"direction": ["maximize", "minimize"]}, "a direction for each metric"),
        ({"sampler": "grid"}, "sampler=grid is not one of"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(change, sentence, search):
    with pytest.raises(UserError, match=sentence):
        search(lambda job: 0.5, **change)


def test_a_file_that_holds_no_studies_is_one_sentence(search, tmp_path):
    (tmp_path / "text").write_text("no studies\n" * 3)
    with pytest.raises(UserError, match="is no file of studies"):
        search(lambda job: 0.5, storage=str(tmp_path / "text"))
    with pytest.raises(UserError, match="cannot be opened"):
        search(lambda job: 0.5, storage=str(tmp_path / "text/below"))


def test_a_deleted_key_is_no_trouble(search):
    _, jobs = search(lambda job: 0.5, "~callbacks.dashboard")
    assert jobs[0][0] == "~callbacks.dashboard"


def test_the_space_of_the_configuration_is_plain(tmp_path):
    node = OmegaConf.load(Path(CONF) / "hparams_search/optuna.yaml").hydra.sweeper.space
    for key, value in OmegaConf.to_container(node).items():
        distribution(key, value)

"""What Hydra finds wrong with a command line is one sentence that says what to write."""

import pytest
from hydra import compose, initialize_config_dir

from qcs.config.hydra_errors import explain
from qcs.config.keys import CONF
from qcs.config.overrides import own_folder


@pytest.mark.parametrize(
    "command,override,sentence",
    [
        ("train", "model=null", "model=null is not a choice; there are "),
        ("train", "sam={rho:0.1,nope:3}", "sam.nope is not set in conf/: write +sam.nope=... to"),
        ("train", "=3", "=3 has no key: options are written KEY=VALUE"),
        ("train", "trainer.max_epoch=3", "trainer.max_epoch is not an option of qcs.train, did "
         "you mean trainer.max_epochs? What conf/ does not list is added with a plus: "
         "+trainer.max_epoch=..."),
        ("train", "backbone=own backbone.channels=[8]", "backbone.channels is not an option of"),
        ("train", "trainer.accumulate_grad_batches=2", "did you mean accumulate_grad_batches?"),
        ("train", "trainer.max_steps=5", "trainer.max_steps is not set in conf/: write "
         "+trainer.max_steps=5 to add it"),
        ("train", "lr=3", "did you mean optimizer.lr?"),
        ("train", "batch_size=3", "did you mean loader.batch_size?"),
        ("train", "datset=rafdb", "did you mean dataset?"),
        ("train", "callbacks.dashbord.seed=2", "did you mean callbacks.dashboard.seed?"),
        ("train", "trainer.xyz=2", "trainer.xyz is not an option of qcs.train; there are "
         "accelerator"),
        ("predict", "anotate=true", "anotate is not an option of qcs.predict, did you mean "
         "annotate?"),
        ("predict", "dataset=rafdb", "dataset is not an option of qcs.predict; there are annotate"),
        ("predict", "dataset=null", "dataset is not an option of qcs.predict; there are annotate"),
        ("check", "+model=qcss", "model is not an option of qcs.check; there are dataset"),
        ("train", "model/size=tiny", "model/size=tiny is not a choice; there are paper, small"),
        ("predict", "hydra/launcher=nope", "hydra/launcher=nope is not a choice; there are basic"),
        ("train", "model=qcss", "model=qcss is not a choice, did you mean model=qcs?"),
        ("train", "loss=foo", "loss=foo is not a choice; there are base_heavy"),
        ("train", "experiment=nope", "experiment=nope is not a choice; there are dcs_affectnet7"),
        ("train", "callbacks=[default,dashbord]", "callbacks=dashbord is not a choice, did you "
         "mean callbacks=dashboard?"),
        ("train", "~callbacks.x", "callbacks.x is not an option of qcs.train; there are best"),
        ("train", "~seed=5", "~seed=5 takes nothing out: its value is 0"),
        ("train", "+seed=3", "seed is there already: write seed=... without the plus"),
        ("train", "store=a,b", """write 'store="a,b"' for one text, 'store=[a,b]' for a list"""),
        ("train", "hydra.job.chdir=foo", "hydra.job.chdir=foo: Value 'foo' is not a valid bool"),
    ],
)  # fmt: skip
def test_what_hydra_cannot_compose_names_the_key_and_the_nearest(command, override, sentence):
    with pytest.raises(Exception) as error, initialize_config_dir(str(CONF), version_base="1.3"):
        compose(command, override.split(), return_hydra_config=True)
    text = explain(error.value, command, override.split())
    assert sentence in text and "\n" not in text


def test_a_key_of_the_users_own_folder_is_known(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/focal.yaml").write_text("_target_: mine.Focal\ngamma: 2.0\n")
    overrides = [*own_folder(["--config-dir", str(tmp_path)]), "loss=focal", "loss.gama=1"]
    with pytest.raises(Exception) as error, initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train", overrides)
    assert "did you mean loss.gamma?" in explain(error.value, "train", overrides)


def test_other_errors_are_not_hydras():
    assert explain(ValueError("too many values to unpack"), "train", []) is None

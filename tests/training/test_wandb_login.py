"""W&B needs a login, and a server that accepts it, before anything is trained or written."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import WandbLogger

from qcs.config.errors import UserError
from qcs.training import loggers, wandb_login


def test_wandb_asks_for_a_login_before_anything_is_trained(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    settings = SimpleNamespace(
        mode="online", api_key=None, identity_token_file=None, base_url="https://api.example.org"
    )
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": False}
    with pytest.raises(UserError, match=r"wandb login.*logger.wandb.offline=true"):
        wandb_login.require_login(node)
    wandb_login.require_login(node | {"offline": True})
    wandb_login.require_login({"_target_": "qcs.training.loggers.CSVLogger"})
    (tmp_path / ".netrc").write_text("machine api.example.org login user password " + "k" * 40)
    wandb_login.require_login(node)
    (tmp_path / ".netrc").unlink()
    settings.mode = "offline"
    wandb_login.require_login(node)


def test_what_wandb_refuses_is_one_sentence_before_anything_is_written(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise wandb.errors.CommError("user is not\nlogged in")

    monkeypatch.setattr(wandb, "init", refuse)
    wandb_login.start([loggers.CSVLogger(str(tmp_path))])
    with pytest.raises(UserError, match=r"begin there \(user is not logged in\); .*offline=true"):
        wandb_login.start([WandbLogger(save_dir=tmp_path)])

"""Whether Weights & Biases can be used, found out before anything is trained or written."""

import netrc
import os
import pkgutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, WandbLogger

from qcs.config.errors import UserError, missing_extra


def require_login(node: dict[str, Any]) -> None:
    """Check before training that a W&B logger can be built and can log in.

    Without a key, W&B itself would ask for one at a terminal, and fail elsewhere after the run has
    begun.

    Args:
        node: the config of a logger; one of another kind is accepted.

    Raises:
        UserError: W&B is not installed, or it is online and there is no key.
    """
    kind = pkgutil.resolve_name(node["_target_"])
    if not (isinstance(kind, type) and issubclass(kind, WandbLogger)):
        return
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # the folder ./wandb that an offline run made
        raise missing_extra("wandb", "logger=wandb needs")
    import wandb  # here, because it is slow to import and few runs need it

    settings = wandb.setup().settings
    if node.get("offline") or settings.mode in ("offline", "dryrun", "disabled"):
        return
    if settings.api_key or settings.identity_token_file or _in_netrc(settings.base_url):
        return
    raise UserError(
        "logger=wandb: no W&B login on this machine; run `wandb login`, or write "
        "logger.wandb.offline=true"
    )


def start(loggers: Iterable[Logger]) -> None:
    """Begin the run of W&B, before anything of the training is written.

    Raises:
        UserError: its server refuses the key, the project or the run, or cannot be reached.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            continue
        import wandb

        try:
            logger.experiment  # noqa: B018  # a property that connects
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"logger=wandb: no run can begin there ({reason}); check the "
                "network and the key (`wandb login --relogin`), or write logger.wandb.offline=true"
            ) from error


def _in_netrc(url: str) -> bool:
    """Return whether a netrc file, where `wandb login` stores keys, has one for a server."""
    names = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in names if name):
        try:
            if path.is_file() and netrc.netrc(path).authenticators(urlsplit(url).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False

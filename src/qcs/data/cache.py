"""The one folder in which the package keeps what it can make again: drawn and prepared images."""

import os
from pathlib import Path

from qcs.config.errors import UserError


def cache_folder() -> Path:
    """Return `qcs` in the user's cache folder; it may not exist yet.

    Raises:
        UserError: the system does not say where that is.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache:
        return Path(cache) / "qcs"
    try:
        return Path.home() / ".cache" / "qcs"
    except RuntimeError as error:
        raise UserError(
            "there is no folder for prepared and drawn images, as neither XDG_CACHE_HOME nor HOME "
            "is set; set XDG_CACHE_HOME=/a/folder, or give folders as store=... (null for none) "
            "and dataset.path=..."
        ) from error

"""A command: what its main does with the user's mistakes."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qcs.config.console import prepare_output
from qcs.config.errors import Failed
from qcs.config.escape import terminal


def one_sentence(main: Callable) -> Callable:
    """Turn a user's mistake into one sentence and exit status 2, or in a multirun `Failed`.

    QCS_TRACEBACK=1 shows where it came from instead.
    """

    @functools.wraps(main)
    def wrapper(cfg: DictConfig) -> Any:
        prepare_output()
        try:
            return main(cfg)
        except (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException) as error:
            if os.environ.get("QCS_TRACEBACK"):
                raise
            text = str(error).strip()
            if text.startswith("Caught "):  # a loader process sends its traceback along
                text = text.splitlines()[-1]
            print(f"error: {terminal(text)} (QCS_TRACEBACK=1 shows the traceback)", file=sys.stderr)
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                return Failed(text)  # the other jobs go on
            sys.exit(2)

    return wrapper

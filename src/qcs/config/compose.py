"""A command's config, composed in Python as its command line would compose it."""

from collections.abc import Sequence
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from qcs.config.keys import CONF


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the config of a command with some overrides, interpolations still unresolved.

    Args:
        command: the name of a file in conf/.
        overrides: as they would stand on the command line.

    Raises:
        hydra.errors.HydraException: the overrides do not fit the config.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command, list(overrides))


def as_dict(config: Any, resolve: Sequence[str] = ()) -> dict[str, Any]:
    """Return a config that is a group of keys as plain dicts, lists and scalars.

    Args:
        resolve: return these keys alone, with their interpolations resolved.
    """
    if resolve:
        config = OmegaConf.masked_copy(config, list(resolve))
    content = OmegaConf.to_container(config, resolve=bool(resolve))
    if not isinstance(content, dict):
        raise TypeError(f"expected a group of keys, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def flat(node: Any, where: str = "") -> dict[str, Any]:
    """Return the values of nested groups by their keys with dots; an empty group is a value."""
    if not isinstance(node, dict) or not node:
        return {where: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{where}.{key}" if where else str(key))
    return found

"""The closed table of names that a recipe may hold, of backbones, networks, transforms, data sets.

Code from outside of this package is imported only where the user trusts it by its name.
"""

import pkgutil
from collections.abc import Callable, Sequence

from qcs.checkpoints.plain_data import short_repr
from qcs.config.errors import UserError

Trust = str | Sequence[str] | None  # import paths of the user's own code that may be built


# The functions and classes that a recipe may name, for each of its parts. They are imported where
# they are asked for: an export is opened without PyTorch.
TABLE: dict[str, dict[str, str]] = {
    "backbone": {
        "ir": "qcs.models.IR",
        "mobilefacenet": "qcs.models.MobileFaceNet",
        "timm": "qcs.checkpoints.timm_backbone.timm_backbone",
    },
    "model": {"qcs": "qcs.models.QCSNetwork"},
    "transform": {"evaluation": "qcs.data.numpy_transforms.evaluation"},
    "dataset": {
        "affectnet": "qcs.data.sources.affectnet.read",
        "csv": "qcs.data.manifest.Manifest.from_csv",
        "fer2013": "qcs.data.sources.fer2013.read",
        "ferplus": "qcs.data.sources.ferplus.read",
        "image_folder": "qcs.data.sources.image_folder.read",
        "lists": "qcs.data.sources.lists.read",
        "rafdb": "qcs.data.sources.rafdb.read",
        "synthetic": "qcs.data.sources.synthetic.read",  # in the cache folder
        "synthetic_folder": "qcs.data.sources.synthetic.read",  # in a folder of the user's
    },
}
# Import paths, as they stand in configs and in checkpoints of format 1 -> names: those of the
# table, and those that configs have in the place of one of them, or had once.
NAMES = {"timm.create_model": "timm", "qcs.data.transforms.evaluation": "evaluation"}
NAMES |= {path: name for names in TABLE.values() for name, path in reversed(names.items())}
NAMES |= {"qcs.data.synthetic.read": "synthetic"}
PATH_OF = {name: path for path, name in reversed(NAMES.items())}  # names -> what conf/ has
PATH_OF["synthetic_folder"] = PATH_OF["synthetic"]


def maker(kind: str, name: str, trust: Trust = None) -> Callable:
    """Return the function or class that builds a part of a recipe.

    Args:
        kind: "backbone", "model", "dataset" or "transform".
        name: a key of `TABLE`, or the import path of the user's own class or function.
        trust: the import paths that may be used.

    Raises:
        UserError: the name is unknown, is not trusted, or cannot be imported.
    """
    if name in TABLE[kind]:
        return pkgutil.resolve_name(TABLE[kind][name])
    if "." not in name:
        raise UserError(
            f"{kind} {short_repr(name)} is not known; there are {', '.join(sorted(TABLE[kind]))}"
        )
    if name not in ([trust] if isinstance(trust, str) else trust or ()):
        raise UserError(
            f"{kind} {short_repr(name)} is not part of qcs and not trusted: if it is code of your "
            f"own, add trust=[{name}] to this command and to each one that loads the checkpoint "
            f"(in Python, trust=[{short_repr(name)}])"
        )
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"trust={short_repr(name)} cannot be imported: {error}; its module must be in the "
            "working directory, on PYTHONPATH or installed"
        ) from error
    if not callable(found):
        raise UserError(f"trust={short_repr(name)} is neither a class nor a function")
    return found

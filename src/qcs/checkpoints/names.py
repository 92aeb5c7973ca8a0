"""The closed table of names that a recipe may hold, of backbones, networks, transforms, data sets.

Code from outside of this package is imported only where the user trusts it by its name.
"""

import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

import timm
from torch import nn

from qcs.checkpoints.plain_data import short_repr
from qcs.config.errors import UserError
from qcs.data.manifest import Manifest
from qcs.data.sources import affectnet, fer2013, ferplus, image_folder, lists, rafdb, synthetic
from qcs.data.transforms import evaluation
from qcs.models import IR, MobileFaceNet, QCSNetwork

Trust = str | Sequence[str] | None  # import paths of the user's own code that may be built


def timm_backbone(
    model_name: str,
    out_indices: Sequence[int] | None = None,
    img_size: int | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    features_only: Literal[True] = True,
    pretrained: Literal[False] = False,
) -> nn.Module:
    """Build one of timm's models for its feature maps, untrained, so that nothing is downloaded.

    Raises:
        UserError: timm has no model of that name.
    """
    name = model_name.partition(".")[0]  # what follows names weights
    if not timm.is_model(name):
        raise UserError(
            f"backbone.model_name={short_repr(model_name)} is no model of timm; timm.list_models() "
            "names them"
        )
    options: dict[str, Any] = {"img_size": img_size, "output_stride": output_stride}
    options |= {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    options = {key: value for key, value in options.items() if value is not None}
    if out_indices is not None:
        options["out_indices"] = tuple(out_indices)
    return timm.create_model(name, pretrained=False, features_only=True, **options)


# The functions and classes that a recipe may name, for each of its parts.
TABLE: dict[str, dict[str, Callable]] = {
    "backbone": {"ir": IR, "mobilefacenet": MobileFaceNet, "timm": timm_backbone},
    "model": {"qcs": QCSNetwork},
    "transform": {"evaluation": evaluation},
    "dataset": {
        "affectnet": affectnet.read,
        "csv": Manifest.from_csv,
        "fer2013": fer2013.read,
        "ferplus": ferplus.read,
        "image_folder": image_folder.read,
        "lists": lists.read,
        "rafdb": rafdb.read,
        "synthetic": synthetic.read,  # in the cache folder
        "synthetic_folder": synthetic.read,  # in a folder of the user's
    },
}
# Import paths, as they stand in configs and in checkpoints of format 1 -> names.
NAMES = {
    "qcs.models.IR": "ir",
    "qcs.models.MobileFaceNet": "mobilefacenet",
    "timm.create_model": "timm",
    "qcs.models.QCSNetwork": "qcs",
    "qcs.data.transforms.evaluation": "evaluation",
    "qcs.data.sources.affectnet.read": "affectnet",
    "qcs.data.manifest.Manifest.from_csv": "csv",
    "qcs.data.sources.fer2013.read": "fer2013",
    "qcs.data.sources.ferplus.read": "ferplus",
    "qcs.data.sources.image_folder.read": "image_folder",
    "qcs.data.sources.lists.read": "lists",
    "qcs.data.sources.rafdb.read": "rafdb",
    "qcs.data.sources.synthetic.read": "synthetic",
    "qcs.data.synthetic.read": "synthetic",
}
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
        return TABLE[kind][name]
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

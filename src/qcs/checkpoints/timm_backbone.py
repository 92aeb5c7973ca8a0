"""The backbones of timm, as a recipe names them."""

from collections.abc import Sequence
from typing import Any, Literal

import timm
from torch import nn

from qcs.checkpoints.plain_data import short_repr
from qcs.config.errors import UserError


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

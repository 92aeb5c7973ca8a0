"""The base branch as a file that runs without this package: ONNX, or a `torch.export` program.

B batch, K classes, H and W pixels.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from qcs.checkpoints import checksum
from qcs.checkpoints.onnx import FEATURES, IMAGES, LOGITS, METADATA, onnxruntime
from qcs.config.errors import missing_extra
from qcs.data.numpy_transforms import IMAGENET_MEAN, IMAGENET_STD
from qcs.models import QCSNetwork

if TYPE_CHECKING:
    from onnx import ModelProto

EXTRA = ("export", "writing ONNX needs")
KEPT = ("format", "qcs_version", "class_names", "transform", "dataset", "select_on")


class Exported(nn.Module):
    """What a file holds: images to logits (B, K), with the cross module left out.

    Args:
        transform: `size`, and maybe `resize`, `mean` and `std` of `qcs.data.transforms.evaluation`.
        include_transform: take RGB images (B, 3, H, W) of any size, uint8, and resize, crop and
            normalise them; else take images (B, 3, size, size) that have been through it, float32.
        features: give the vectors before the classifier, (B, C), as a second output.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: QCSNetwork,
        transform: dict[str, Any],
        include_transform: bool,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.base, self.include_transform = network.base, include_transform
        self.features = features
        self.size = transform["size"]
        self.resize = transform.get("resize") or self.size
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(transform.get(name) or default).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify images: logits, or logits and features."""
        if self.include_transform:
            # As torchvision does for uint8: with antialiasing, rounded.
            sides = (self.resize, self.resize)
            x = F.interpolate(images.float(), size=sides, mode="bilinear", antialias=True)
            x = v2.functional.center_crop(x.round().clamp(0, 255), [self.size, self.size])
            images = (x / 255 - self.mean) / self.std
        logits, features, _ = self.base(images)
        return (logits, features) if self.features else logits

    def example(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random input: noise (B, 3, size, size), or pixels of another size than the model's."""
        if self.include_transform:
            shape = (batch, 3, self.resize + 13, 2 * self.resize - 7)
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn(batch, 3, self.size, self.size, generator=generator)

    def dynamic(self) -> dict[int, torch.export.Dim]:
        """The axes of the input that may have any length."""
        axes = {0: "batch", 2: "height", 3: "width"} if self.include_transform else {0: "batch"}
        return {axis: torch.export.Dim(name) for axis, name in axes.items()}


def metadata(model: Exported, parts: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of an exported file: texts, which are JSON where they hold a structure.

    The text under `METADATA` is what `qcs.load` needs: the recipe without the network.
    """
    expected = (
        "RGB, uint8, 0 to 255, any height and width"
        if model.include_transform
        else f"RGB / 255, both sides resized to {model.resize} with antialiasing, the centre "
        f"{model.size}x{model.size} cut out, (x - mean) / std, float32"
    )
    kept = {key: parts[key] for key in KEPT}
    kept["include_transform"] = model.include_transform
    return {
        METADATA: json.dumps(kept, allow_nan=False),
        "class_names": json.dumps(parts["class_names"]),
        "input": expected,
        "output": "logits in the order of class_names"
        + ", and features of the face, from which they are computed" * model.features,
        "mean": json.dumps([round(x, 6) for x in model.mean.flatten().tolist()]),
        "std": json.dumps([round(x, 6) for x in model.std.flatten().tolist()]),
    }


def to_onnx(model: Exported, path: Path, props: dict[str, str], half: bool = False) -> None:
    """Write ONNX with a batch of any size.

    Args:
        half: store the weights as float16, for half the size; the file computes in float32.

    Raises:
        UserError: onnx or onnxscript are not installed.
    """
    try:
        import onnx  # noqa: F401  as torch's exporter does
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra(*EXTRA) from error
    for name in ("onnxscript", "onnx_ir"):  # they log every step
        logging.getLogger(name).setLevel(logging.ERROR)
    program = torch.onnx.export(
        model,
        (model.example(2),),
        dynamo=True,
        dynamic_shapes=(model.dynamic(),),
        input_names=[IMAGES],
        output_names=[LOGITS, FEATURES] if model.features else [LOGITS],
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto  # made anew at each call
    for node in proto.graph.node:  # stack traces, with the paths of this machine
        del node.metadata_props[:]
    if half:
        _halve(proto)
    _save(proto, path, props)


def _halve(proto: "ModelProto") -> None:
    """Store weights of two or more axes as float16, each behind a cast to float32.

    onnxruntime casts them once, as it opens the file.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _save(proto: "ModelProto", path: Path, props: dict[str, str]) -> None:
    """Write a model with its metadata and a checksum over all of the file."""
    import onnx

    onnx.helper.set_model_props(proto, props | {checksum.KEY: checksum.EMPTY})
    path.write_bytes(checksum.sealed(proto.SerializeToString()))


def to_program(model: Exported, path: Path, props: dict[str, str]) -> None:
    """Write a `torch.export` program that takes a batch of any size, with `props` inside of it."""
    program = torch.export.export(model, (model.example(2),), dynamic_shapes=(model.dynamic(),))
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(props)})


def to_int8(source: Path, path: Path, batches: Iterable[np.ndarray]) -> None:
    """Quantise an ONNX file to int8, weights by channel and activations by tensor.

    Only convolutions and matrix products are quantised: with norms and GELU as well, the FERPlus
    network of the README loses 1.4 points of accuracy, without them 0.03.

    Args:
        batches: real input, for the ranges of the activations.
    """
    import onnx

    onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.remaining, None)
            return None if batch is None else {IMAGES: batch}

    folded = path.with_suffix(".folded.onnx")
    try:
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(path),
            Reader(),
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        )
        proto = onnx.load(path)
        _save(proto, path, {p.key: p.value for p in onnx.load(source).metadata_props})
    finally:
        folded.unlink(missing_ok=True)

"""The base branch as a file that runs without this package: ONNX, or a `torch.export` program.

B batch, K classes, H and W pixels.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from qcs.checkpoints import checksum, reading, recipe
from qcs.checkpoints.recipe import Trust
from qcs.config.errors import UserError, missing_extra
from qcs.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from qcs.models import QCSNetwork

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

EXTRA = ("export", "ONNX needs")
METADATA = "qcs"  # the key, of JSON
CHECKSUM = checksum.KEY
IMAGES, LOGITS = "images", "logits"
KEPT = ("format", "qcs_version", "class_names", "transform", "dataset", "select_on")


class Exported(nn.Module):
    """What a file holds: images to logits (B, K), with the cross module left out.

    Args:
        network: trained.
        transform: `size`, and maybe `resize`, `mean` and `std` of `qcs.data.transforms.evaluation`.
        include_transform: take RGB images (B, 3, H, W) of any size, uint8, and resize, crop and
            normalise them; else take images (B, 3, size, size) that have been through it, float32.
    """

    def __init__(
        self, network: QCSNetwork, transform: dict[str, Any], include_transform: bool
    ) -> None:
        super().__init__()
        self.base, self.include_transform = network.base, include_transform
        self.size = transform["size"]
        self.resize = transform.get("resize") or self.size
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(transform.get(name) or default).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        if self.include_transform:
            # As torchvision does for uint8: with antialiasing, rounded.
            sides = (self.resize, self.resize)
            x = F.interpolate(images.float(), size=sides, mode="bilinear", antialias=True)
            x = v2.functional.center_crop(x.round().clamp(0, 255), [self.size, self.size])
            images = (x / 255 - self.mean) / self.std
        return self.base(images)[0]

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
    """What a file says of itself: texts, JSON where they are more than one word.

    Under `METADATA` is what `load` needs: the recipe less the network.
    """
    wanted = (
        "RGB, uint8, 0 to 255, any height and width"
        if model.include_transform
        else f"RGB / 255, both sides resized to {model.resize} with antialiasing, the centre "
        f"{model.size}x{model.size} cut out, (x - mean) / std, float32"
    )
    kept = {key: parts[key] for key in KEPT}
    kept["include_transform"] = model.include_transform
    return {
        METADATA: json.dumps(kept),
        "class_names": json.dumps(parts["class_names"]),
        "input": wanted,
        "output": "logits in the order of class_names",
        "mean": json.dumps([round(x, 6) for x in model.mean.flatten().tolist()]),
        "std": json.dumps([round(x, 6) for x in model.std.flatten().tolist()]),
    }


def to_onnx(model: Exported, path: Path, about: dict[str, str]) -> None:
    """Write ONNX with a batch of any size.

    Raises:
        UserError: onnx or onnxscript are not installed.
    """
    try:
        import onnx  # noqa: F401  as torch's exporter does
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra(*EXTRA) from error
    for name in ("onnxscript", "onnx_ir"):  # they tell every step
        logging.getLogger(name).setLevel(logging.ERROR)
    program = torch.onnx.export(
        model,
        (model.example(2),),
        dynamo=True,
        dynamic_shapes=(model.dynamic(),),
        input_names=[IMAGES],
        output_names=[LOGITS],
        verbose=False,
    )
    _save(program.model_proto, path, about)


def _save(proto: "ModelProto", path: Path, about: dict[str, str]) -> None:
    """Write a model with its metadata and a checksum over all of the file."""
    import onnx

    onnx.helper.set_model_props(proto, about | {CHECKSUM: checksum.EMPTY})
    path.write_bytes(checksum.sealed(proto.SerializeToString()))


def to_program(model: Exported, path: Path, about: dict[str, str]) -> None:
    """Write a `torch.export` program with a batch of any size; metadata.json lies inside."""
    program = torch.export.export(model, (model.example(2),), dynamic_shapes=(model.dynamic(),))
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(about)})


def to_int8(source: Path, path: Path, batches: Iterable[np.ndarray]) -> None:
    """Quantise an ONNX file to int8, weights by channel and activations by tensor.

    Convolutions and matrix products alone: with norms and GELU as well the FERPlus network of the
    README loses 1.4 points of accuracy, without them 0.03.

    Args:
        source: the ONNX file.
        path: to write.
        batches: real input, for the ranges of the activations.
    """
    import onnx

    onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
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


def onnxruntime() -> ModuleType:
    """Import onnxruntime, in the one place that does, with its telemetry switched off.

    By default it looks for a server of Microsoft and keeps a number of this machine in the user's
    cache folder. On Linux the variable that `qcs` sets before the import rules that out, on Windows
    the call.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra(*EXTRA) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def open_session(model: bytes, threads: int | None = None) -> "InferenceSession":
    """Load a serialised ONNX model on the CPU.

    Args:
        model: its bytes.
        threads: of one operator; those of torch by default.

    Raises:
        UserError: onnxruntime is not installed.
        Exception: of onnxruntime, which have no common class: not a model that it can run.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors; it warns of what is of no concern here
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxNetwork(nn.Module):
    """An ONNX file in the place of a network: images in, logits (B, K) out."""

    def __init__(self, session: "InferenceSession") -> None:
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        """Classify images as the file takes them.

        Raises:
            UserError: a logit is not finite.
        """
        logits = self.session.run([LOGITS], {IMAGES: images.cpu().numpy()})[0]
        if not np.isfinite(logits).all():
            raise UserError("the exported network answers with numbers that are not finite")
        return torch.from_numpy(logits)


def open_onnx(
    path: Path, threads: int | None = None, trust: Trust = None
) -> tuple[OnnxNetwork, dict[str, Any]]:
    """Open an ONNX file of `to_onnx`: its network and its recipe, see `qcs.checkpoints.recipe`.

    Raises:
        UserError: onnxruntime is not installed; not such a file, or a damaged one.
    """
    model, about = _checked(path, trust)
    try:
        network = OnnxNetwork(open_session(model, threads)).eval()
        _try(network, about)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # onnxruntime's own have no common class
        why = reading.reason(error)
        raise UserError(f"{path} cannot be run as an export of qcs: {why}") from error
    return network, about


def _checked(path: Path, trust: Trust) -> tuple[bytes, dict[str, Any]]:
    """A file's bytes and its recipe, before onnxruntime sees it."""
    try:
        import onnx
    except ImportError as error:
        raise missing_extra(*EXTRA) from error
    if found := reading.foreign(path):
        raise UserError(f"{path} cannot be read as ONNX: {found}")
    try:
        model = path.read_bytes()
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's own, and of the disk
        raise UserError(f"{path} cannot be read as ONNX: {reading.reason(error)}") from error
    props = {p.key: p.value for p in proto.metadata_props}
    if METADATA not in props:
        raise UserError(f"{path} is not an export of `python -m qcs.export`")
    try:
        content = json.loads(props[METADATA])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its recipe is not JSON: {reading.reason(error)}") from error
    sealed = isinstance(content, dict) and content.get("format") is not None  # since format 2
    if (sealed or CHECKSUM in props) and not checksum.right(model):
        raise UserError(
            f"{path} was damaged or changed since its export: its checksum is wrong; export anew"
        )
    if not isinstance(content, dict) or "include_transform" not in content:
        raise UserError(f"{path}: its recipe is not of an export")
    nodes = [node for function in proto.functions for node in function.node]
    constants = [*_tensors(proto.graph), *_constants(nodes)]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in constants):
        raise UserError(f"{path} names other files for its weights, which are not read")
    parts = recipe.parse(content, str(path), trust)
    if "size" not in parts["transform"]:
        raise UserError(f"{path}: its recipe does not say the size of its images")
    return model, parts


def _try(network: OnnxNetwork, about: dict[str, Any]) -> None:
    """Run one black image: the file takes and gives what its recipe says."""
    side = about["transform"]["size"]
    kind = torch.uint8 if about["include_transform"] else torch.float32
    shape = tuple(network(torch.zeros(1, 3, side, side, dtype=kind)).shape)
    if shape != (1, len(about["class_names"])):
        raise UserError(f"its logits have shape {shape} for {len(about['class_names'])} classes")


def _tensors(graph: "GraphProto") -> "Iterator[TensorProto]":
    """All constants of a graph and of the graphs inside its operators."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _constants(graph.node)


def _constants(nodes: "Iterable[NodeProto]") -> "Iterator[TensorProto]":
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)

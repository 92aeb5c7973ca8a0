"""Exported ONNX files used as networks, and the only import of onnxruntime in this package.

B batch, K classes.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qcs.checkpoints import checksum, reading, recipe
from qcs.checkpoints.names import Trust
from qcs.config.errors import UserError, missing_extra

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession

EXTRA = ("export", "ONNX needs")
METADATA = "qcs"  # the key, of JSON
IMAGES, LOGITS = "images", "logits"


def onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry switched off.

    By default onnxruntime contacts a server of Microsoft and stores an identifier of this machine
    in the user's cache folder. On Linux an environment variable prevents that, which `import qcs`
    sets before this import; on Windows the call below does.

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
    options.log_severity_level = 3  # errors only; its warnings are about optimisations
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxNetwork(nn.Module):
    """An ONNX file that is called like a network: images in, logits (B, K) out."""

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
    model, parts = _checked(path, trust)
    try:
        network = OnnxNetwork(open_session(model, threads)).eval()
        _try(network, parts)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # onnxruntime's own have no common class
        why = reading.reason(error)
        raise UserError(f"{path} cannot be run as an export of qcs: {why}") from error
    return network, parts


def _checked(path: Path, trust: Trust) -> tuple[bytes, dict[str, Any]]:
    """Check a file before onnxruntime opens it, and return its bytes and its recipe."""
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
    if (sealed or checksum.KEY in props) and not checksum.right(model):
        raise UserError(
            f"{path} was damaged or changed since its export: its checksum is wrong; export anew"
        )
    if not isinstance(content, dict) or "include_transform" not in content:
        raise UserError(f"{path}: its recipe is not of an export")
    nodes = [node for function in proto.functions for node in function.node]
    if any(a.HasField("g") or a.graphs for n in (*proto.graph.node, *nodes) for a in n.attribute):
        raise UserError(f"{path} holds loops or branches, which no export of qcs has")
    constants = [*_constants(proto.graph), *_node_constants(nodes)]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in constants):
        raise UserError(f"{path} names other files for its weights, which are not read")
    parts = recipe.parse(content, str(path), trust)
    if "size" not in parts["transform"]:
        raise UserError(f"{path}: its recipe does not say the size of its images")
    return model, parts


def _try(network: OnnxNetwork, parts: dict[str, Any]) -> None:
    """Run one black image: the file takes and gives what its recipe says."""
    side = parts["transform"]["size"]
    kind = torch.uint8 if parts["include_transform"] else torch.float32
    shape = tuple(network(torch.zeros(1, 3, side, side, dtype=kind)).shape)
    if shape != (1, len(parts["class_names"])):
        raise UserError(f"its logits have shape {shape} for {len(parts['class_names'])} classes")


def _constants(graph: "GraphProto") -> "Iterator[TensorProto]":
    """All constants of a graph and of the graphs inside its operators."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_constants(graph.node)


def _node_constants(nodes: "Iterable[NodeProto]") -> "Iterator[TensorProto]":
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _constants(inner)

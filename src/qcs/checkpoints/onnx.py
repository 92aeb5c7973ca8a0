"""Exported ONNX files used as networks, and the only import of onnxruntime in this package.

PyTorch is not imported, so that a file is opened in a fraction of a second.

B batch, K classes, C features, H and W pixels.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL.Image import Image

from qcs.checkpoints import checksum, reading, recipe
from qcs.checkpoints.registry import Trust
from qcs.config.errors import UserError, missing_extra
from qcs.config.threads import threads
from qcs.data.numpy_transforms import resized

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession

EXTRA = ("faces", "an .onnx file needs")
METADATA = "qcs"  # the key, of JSON
IMAGES, LOGITS, FEATURES = "images", "logits", "features"


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


def open_session(model: bytes, number: int | None = None) -> "InferenceSession":
    """Load a serialised ONNX model on the CPU.

    Args:
        model: its bytes.
        number: of threads of one operator; None for `qcs.config.threads.threads`.

    Raises:
        UserError: onnxruntime is not installed.
        Exception: of onnxruntime, which have no common class: not a model that it can run.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = number or threads()
    # Threads that wait sleep; else those of the detector and of the network take each other's CPUs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only; its warnings are about optimisations
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Export(NamedTuple):
    """An exported file with everything that is needed to use it: a `Checkpoint` of arrays."""

    network: Callable[[np.ndarray], np.ndarray]  # images (B, 3, H, W) to logits (B, K)
    class_names: tuple[str, ...]
    transform: Callable[[Image], np.ndarray]  # an RGB image to (3, H, W)
    recipe: dict[str, Any]  # see `qcs.checkpoints.recipe.parse`
    # Images to logits and features (B, C); None where the file was exported without features.
    embed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None


def open_export(path: str | os.PathLike, number: int | None = None, trust: Trust = None) -> Export:
    """Open an .onnx file of `python -m qcs.export`, or one of `qcs zoo` by its name.

    Args:
        path: the file.
        number: of threads; see `threads` for the default.
        trust: as for `qcs.checkpoints.load.load_checkpoint`.

    Raises:
        UserError: onnxruntime is not installed; there is no such file, or it is damaged.
    """
    file = reading.network_file(path, f"no export at ckpt={path}")
    model, parts = _checked(file, trust)
    try:
        session = open_session(model, number)
        network, embed = partial(_logits, session), None
        if FEATURES in [output.name for output in session.get_outputs()]:
            embed = partial(_both, session)
        _try(network, embed, parts)
        if parts["include_transform"]:  # the file crops and normalises itself, and takes pixels
            transform: Callable = partial(resized, size=pixels_of(parts))
        else:
            transform = recipe.transform(parts, trust)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error.__cause__
    except Exception as error:  # onnxruntime's own have no common class
        why = reading.reason(error)
        raise UserError(f"{file} cannot be run as an export of qcs: {why}") from error
    return Export(network, tuple(parts["class_names"]), transform, parts, embed)


def pixels_of(parts: dict[str, Any]) -> int:
    """The side to which the images of a recipe are resized."""
    return int(parts["transform"].get("resize") or parts["transform"]["size"])


def _logits(session: "InferenceSession", images: np.ndarray) -> np.ndarray:
    return _run(session, [LOGITS], images)[0]


def _both(session: "InferenceSession", images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, features = _run(session, [LOGITS, FEATURES], images)
    return logits, features


def _run(session: "InferenceSession", names: list[str], images: np.ndarray) -> list[np.ndarray]:
    outputs: list[np.ndarray] = session.run(names, {IMAGES: images})
    if not all(np.isfinite(output).all() for output in outputs):
        raise UserError("the exported network answers with numbers that are not finite")
    return outputs


def _checked(path: Path, trust: Trust) -> tuple[bytes, dict[str, Any]]:
    """Check a file before onnxruntime opens it, and return what it runs and its recipe."""
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
    return _without_prelu(proto).SerializeToString(), parts


def _without_prelu(proto: "ModelProto") -> "ModelProto":
    """Write each PRelu(x) as p + slope * (x - p) with p = Relu(x), which has the same bits.

    onnxruntime takes PRelu number by number and these four in vectors, which takes a third off the
    time of `ferplus-light`. A number that is not finite stays so.
    """
    from onnx.helper import make_node

    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type == "PRelu":
            (x, slope), (y,) = node.input, node.output
            p, rest, scaled = (f"{y}_{part}" for part in ("positive", "rest", "scaled"))
            split = [make_node("Relu", [x], [p]), make_node("Sub", [x, p], [rest])]
            join = [make_node("Mul", [rest, slope], [scaled]), make_node("Add", [p, scaled], [y])]
            proto.graph.node.extend(split + join)
        else:
            proto.graph.node.append(node)
    return proto


def _try(network: Callable, embed: Callable | None, parts: dict[str, Any]) -> None:
    """Run one black image: the file takes and gives what its recipe says."""
    side = parts["transform"]["size"]
    kind = np.uint8 if parts["include_transform"] else np.float32
    image = np.zeros((1, 3, side, side), kind)
    shape = network(image).shape
    if shape != (1, len(parts["class_names"])):
        raise UserError(f"its logits have shape {shape} for {len(parts['class_names'])} classes")
    if embed and (shape := embed(image)[1].shape)[:-1] != (1,):
        raise UserError(f"its features have shape {shape} for one image, expected (1, C)")


def _constants(graph: "GraphProto") -> "Iterator[TensorProto]":
    """All constants of a graph and of the graphs inside its operators."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_constants(graph.node)


def _node_constants(nodes: "Iterable[NodeProto]") -> "Iterator[TensorProto]":
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _constants(inner)

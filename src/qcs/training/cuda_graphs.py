"""Work on tensors that is recorded once as a CUDA graph and then launched by a single call.

A small network keeps a GPU waiting: Python and torch need longer to launch its many short kernels
than the GPU needs to run them. A graph launches all of them at once. It repeats exactly what was
recorded, on the same memory, so nothing may change in between but the contents of the tensors.

Source: docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs (whole-network capture).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from qcs.config.errors import UserError

WARM_UPS = 3  # calls before the recording, in which libraries choose kernels and take memory


class CudaGraph:
    """A function of named tensors, launched as one CUDA graph.

    The graph is recorded from the first call, and anew where larger inputs come. Those of other
    shapes, as the last batch of an epoch may have, are computed by the function itself. The graph
    keeps the memory of a call for as long as it lives.

    Args:
        function: takes tensors by name, and returns tensors in any nesting of tuples, lists and
            dictionaries. It may not wait for the device, nor draw random numbers on the CPU.
        buffers: returns the tensors that a call changes, such as BatchNorm's running statistics.
            The calls before the recording leave them as they are.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], Any],
        buffers: Callable[[], Iterable[Tensor]] = list,
    ) -> None:
        self.function, self.buffers = function, buffers
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.outputs: Any = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Compute the function.

        The results lie in memory that the next call overwrites.

        Raises:
            UserError: the tensors are not on a CUDA device, or the function cannot be recorded.
        """
        if self.graph is None or _elements(inputs) > _elements(self.inputs):
            self._record(inputs)
        if _kinds(inputs) != _kinds(self.inputs):
            return self._uncached(dict(inputs))
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        assert self.graph is not None
        self.graph.replay()
        return self.outputs

    def __getstate__(self) -> dict[str, Any]:
        """A copy records a graph of its own."""
        return vars(self) | {"graph": None, "inputs": {}, "outputs": None}

    def forget(self) -> None:
        """Record anew at the next call, as something else than the inputs has changed."""
        self.graph, self.inputs, self.outputs = None, {}, None

    def _record(self, inputs: Mapping[str, Tensor]) -> None:
        devices = {value.device for value in inputs.values()}
        if {device.type for device in devices} != {"cuda"}:
            raise UserError("speed.cuda_graphs=true needs an NVIDIA GPU: leave it out")
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        buffers = list(self.buffers())
        before = [buffer.clone() for buffer in buffers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.random.fork_rng(devices), torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._uncached(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        graph = torch.cuda.CUDAGraph()
        try:
            # The thread that pins the next batches may go on to use CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outputs = self._uncached(self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                "speed.cuda_graphs=true: this step waits for the GPU or draws random numbers on "
                f"the CPU, so it cannot be recorded: leave it out ({error})"
            ) from error
        self.graph = graph

    def _uncached(self, inputs: dict[str, Tensor]) -> Any:
        """Call the function, in mixed precision without copies of weights that outlive the call."""
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            return self.function(inputs)


def _elements(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}


def require_options(rho: float, accumulate: int, grad_checkpointing: bool) -> None:
    """Check the options that a recorded graph could not follow.

    Raises:
        UserError: one of them is set.
    """
    unfit = {
        "sam.rho above 0": rho > 0,  # which puts other tensors in the place of the weights
        "accumulate_grad_batches above 1": accumulate > 1,  # a gradient is overwritten by the next
        "backbone.grad_checkpointing=true": grad_checkpointing,
    }
    for option, is_set in unfit.items():
        if is_set:
            raise UserError(f"speed.cuda_graphs=true cannot be used with {option}")


def require_trainer(trainer: Any) -> None:
    """Check that a graph can follow what a trainer does.

    Raises:
        UserError: it has no GPU or more than one, or an option that a graph cannot follow.
    """
    if trainer.strategy.root_device.type != "cuda":
        raise UserError("speed.cuda_graphs=true needs an NVIDIA GPU: leave it out")
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if trainer.world_size > 1 or scaler is not None or trainer._detect_anomaly:
        raise UserError(
            "speed.cuda_graphs=true is for one device, and neither for "
            "trainer.precision=16-mixed nor for trainer.detect_anomaly=true"
        )

"""Faster forms of the base branch for inference: compiled, in bf16, or in 8-bit integers.

Compiling takes 10 to 40 seconds, so they are worth it for many images.

B batch, K classes, H and W pixels.
"""

import copy
from collections.abc import Callable

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from qcs.config.errors import UserError, missing_extra
from qcs.inference.backends import Form, require_form
from qcs.models.base_branch import BaseBranch
from qcs.models.cpu_kernels import require_compiler, use_cpu_kernels
from qcs.models.network import QCSNetwork


def in_form(network: nn.Module, form: Form, batch_size: int) -> nn.Module:
    """Return a network in another form; "eager" means the network itself.

    Args:
        network: a `QCSNetwork` in eval mode, on the device on which it will run.
        batch_size: the number of images for which it is compiled; it takes any number.

    Raises:
        UserError: the network is an export, which cannot be compiled; a C++ compiler or torchao is
            missing; or int8 is asked for on a GPU.
    """
    require_form(form, not isinstance(network, QCSNetwork))
    if form == "eager" or not isinstance(network, QCSNetwork):
        return network
    device = next(network.parameters()).device.type
    if device == "cpu":
        require_compiler(f"form={form}")
    if form == "compiled_int8":
        if device != "cpu":
            raise UserError("form=compiled_int8 is for CPUs: write device=cpu, or compiled_bf16")
        _torchao()
    return Compiled(network.base, form, batch_size)


class Compiled(nn.Module):
    """A base branch that is compiled with the first images it gets, for batches of one size.

    Args:
        base: in eval mode.
        form: any but "eager".
        batch_size: smaller batches are filled up, larger ones are split.
    """

    def __init__(self, base: BaseBranch, form: Form, batch_size: int) -> None:
        super().__init__()
        self.base, self.form, self.batch_size = base, form, batch_size
        self.run: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W), of the same H and W each time: logits (B, K) float32."""
        found = []
        for part in images.split(self.batch_size):
            rows = torch.arange(self.batch_size, device=part.device) % len(part)
            batch = part if len(part) == self.batch_size else part[rows]
            found.append(self._run(batch)[: len(part)].float())
        return torch.cat(found)

    def _run(self, images: Tensor) -> Tensor:
        if self.run is None:
            self.run = self._compile(images)
        bf16 = self.form == "compiled_bf16"
        # With freezing, weights are constants: BatchNorm is folded into convolutions, and memory
        # layouts are chosen. Only the global setting at the time of the first call has an effect,
        # not the options of torch.compile.
        freezing = inductor.patch(freezing=True)
        with freezing, torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return self.run(images)

    def _compile(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        network: nn.Module = _Logits(copy.deepcopy(self.base))
        if self.form == "compiled_int8":
            network = quantised(network, images)
        else:
            use_cpu_kernels(network.to(memory_format=torch.channels_last))
        return torch.compile(network, dynamic=False)


class _Logits(nn.Module):
    def __init__(self, base: BaseBranch) -> None:
        super().__init__()
        self.base = base

    def forward(self, images: Tensor) -> Tensor:
        return self.base(images)[0]


def quantised(network: nn.Module, images: Tensor) -> nn.Module:
    """Quantise matrix products and convolutions to int8, with scales from images (B, 3, H, W).

    Source: torchao's PT2E quantisation for x86: static, with a scale for each channel of weights.
    """
    prepare, convert, quantizer = _torchao()
    graph = torch.export.export(network, (images,)).module()
    observed = prepare(graph, quantizer)
    observed(images)
    return convert(observed)


def _torchao() -> tuple[Callable, Callable, object]:
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as error:
        raise missing_extra("int8", "form=compiled_int8 needs") from error
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    return prepare_pt2e, convert_pt2e, quantizer

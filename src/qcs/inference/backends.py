"""Forms of the base branch for inference: compiled, in bf16, or in whole numbers of 8 bits.

A form pays where many images come: compiling takes 10 to 40 seconds.

B batch, K classes, H and W pixels.
"""

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from qcs.config.errors import UserError, missing_extra
from qcs.models.base_branch import BaseBranch
from qcs.models.cpu_kernels import require_compiler, use_cpu_kernels
from qcs.models.network import QCSNetwork

Form = Literal["eager", "compiled", "compiled_bf16", "compiled_int8"]


def in_form(network: nn.Module, form: Form, batch_size: int) -> nn.Module:
    """Give a network in eval mode a form; "eager" is the network itself.

    Args:
        network: a `QCSNetwork`, on the device it is to run on.
        form: what to make of it.
        batch_size: images (B) that it is compiled for; any number may come.

    Raises:
        UserError: an export, which has a form of its own; int8 on a GPU; no C++ compiler.
        UserError: int8 without torchao.
    """
    if form not in get_args(Form):
        raise UserError(f"form={form} is none of {', '.join(get_args(Form))}")
    if form == "eager":
        return network
    if not isinstance(network, QCSNetwork):
        raise UserError(f"form={form} compiles a .ckpt: of an exported .onnx write form=eager")
    device = next(network.parameters()).device.type
    if device == "cpu":
        require_compiler(f"form={form}")
    if form == "compiled_int8":
        if device != "cpu":
            raise UserError("form=compiled_int8 is for CPUs: write device=cpu, or compiled_bf16")
        _torchao()
    return Compiled(network.base, form, batch_size)


class Compiled(nn.Module):
    """A base branch, compiled at the first images, for batches of one size.

    Args:
        base: in eval mode.
        form: one that is not "eager".
        batch_size: a smaller batch is filled up, a larger one cut.
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
        # Weights are constants then: BatchNorm folds into convolutions, layouts are chosen. Dynamo
        # looks at the global setting, at the first call; torch.compile's options do not reach it.
        freezing = inductor.patch(freezing=True)
        with freezing, torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return self.run(images)

    def _compile(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        plain: nn.Module = _Logits(copy.deepcopy(self.base))
        if self.form == "compiled_int8":
            plain = quantised(plain, images)
        else:
            use_cpu_kernels(plain.to(memory_format=torch.channels_last))
        return torch.compile(plain, dynamic=False)


class _Logits(nn.Module):
    def __init__(self, base: BaseBranch) -> None:
        super().__init__()
        self.base = base

    def forward(self, images: Tensor) -> Tensor:
        return self.base(images)[0]


def quantised(network: nn.Module, images: Tensor) -> nn.Module:
    """Products and convolutions in int8, with scales from images (B, 3, H, W).

    Source: torchao's PT2E quantisation for x86, static, one scale a channel of the weights.
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

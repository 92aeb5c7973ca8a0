"""Ours against the formulation of the published code, side by side: time, rate, memory.

    python scripts/bench.py --batches 2 8 --out runs/bench        # CPU, or CUDA where there is one

The reference below is written from the paper's description: four forwards of the backbone one after
the other, four projections a level, a normalisation for each of eight maps, explicit softmax,
fp32. It runs on the same weights, and its loss and gradients are compared first. Then all take
turns, and medians are told, with their ratio to the reference and the share of the machine's own
rate, which is measured in the same run. SAM is the same step twice, and torch's optimiser.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_threads import busy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qcs.data.regrouping import in_batch_groups
from qcs.inference.backends import Form
from qcs.inference.compiled import in_form
from qcs.models import IR, QCSNetwork
from qcs.models.cpu_kernels import keep_freed_memory, speed_up, use_cpu_kernels
from qcs.models.cross_similarity import CrossSimilarityBlock
from qcs.training.losses import QCSLoss
from qcs.training.sam import perturbed

FAST = {"channels_last": True, "roles": "together", "cpu_kernels": True}
SHARED = "speed=fast, each image in two, bf16"  # other mathematics, and less work
CLASSES, SIZE, SEED = 7, 224, 0


# -- the formulation of the published code ---------------------------------------------------


def reference(network: QCSNetwork, images: Tensor) -> list[Tensor]:
    """Base and cross logits of the roles a, p, n, n2, images (B, 4, 3, H, W)."""
    assert network.cross is not None
    roles = range(4)
    base = [network.base(images[:, r]) for r in roles]
    tokens = [out[2].chunk(len(network.cross.attention), dim=1) for out in base]
    refined: list[list[Tensor]] = [[] for _ in roles]
    blocks: Any = network.cross.attention
    for level, block in enumerate(blocks):
        normed = [block.norm1(tokens[r][level]) for r in roles]
        queries, values = zip(*(block.proj(u).chunk(2, dim=-1) for u in normed), strict=True)
        with torch.autocast(images.device.type, enabled=False):
            maps = [_map(block, [q.float() for q in queries], r) for r in roles]
        for r in roles:
            y = normed[r] + maps[r].unsqueeze(-1) * values[r]
            h = block.norm2(y)
            refined[r].append(h + block.mlp(h))
    cross = [network.cross.encoder(base[r][2] + torch.cat(refined[r], dim=1))[0] for r in roles]
    return [out[0] for out in base] + cross


def _map(block: CrossSimilarityBlock, queries: list[Tensor], role: int) -> Tensor:
    """Attention (B, N) of one role: similarity to its partner, distance to the other class."""
    same = _pair(queries, role, role ^ 1)
    other = _pair(queries, role, role ^ 2)
    similarity = _spread(same.max() - same)
    distance = _spread(other - other.min())
    return torch.softmax(similarity + (1 + block.theta.tanh()) * distance, dim=-1)


def _pair(queries: list[Tensor], role: int, partner: int) -> Tensor:
    """Distances (B, N of the role, N of the partner)."""
    return torch.cdist(queries[role], queries[partner])


def _spread(matrix: Tensor) -> Tensor:
    return (matrix / matrix.norm(dim=1, keepdim=True)).sum(-1)


def reference_loss(network: QCSNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """The mean of eight cross-entropies."""
    logits = reference(network, images)
    total: Any = sum(F.cross_entropy(x, labels[:, i % 4]) for i, x in enumerate(logits))
    return total / len(logits)


def our_loss(network: QCSNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """The same through `QCSNetwork.compare`."""
    return QCSLoss()(network.compare(images), labels)["loss"]


def shared_loss(network: QCSNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """As many quadruplets of the first half of the images: `loader.groups_per_image=2`."""
    half = labels[: len(labels) // 2].cpu().numpy()
    places = in_batch_groups(half, np.arange(half.size).reshape(half.shape), 2)
    labels, groups = (torch.from_numpy(x).to(images.device) for x in (half.ravel()[places], places))
    return QCSLoss()(network.compare(images[: len(half)], groups), labels)["loss"]


# -- what is measured ------------------------------------------------------------------------


class Row:
    """One way to take a training step."""

    def __init__(
        self,
        name: str,
        network: QCSNetwork,
        loss: Callable[..., Tensor] = our_loss,
        bf16: bool = False,
        hold: bool = False,
    ) -> None:
        self.name, self.network, self.loss, self.bf16 = name, network.train(), loss, bf16
        self.hold = hold
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, fused=hold or None)

    def gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss, with the gradient left in the parameters."""
        self.optimizer.zero_grad()
        device = images.device.type
        with torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext():
            loss = self.loss(self.network, images, labels)
        loss.backward()
        return loss.detach()

    def step(self, images: Tensor, labels: Tensor, sam: bool) -> None:
        """A whole step of the optimiser."""
        self.gradient(images, labels)
        if sam:
            with perturbed(self.network.parameters(), 0.05):
                self.gradient(images, labels)
        self.optimizer.step()


def network(device: str, **options: Any) -> QCSNetwork:
    """The paper's network, with the same weights at each call."""
    torch.manual_seed(SEED)
    made = QCSNetwork(IR(), CLASSES, roles=4, cross={})
    return speed_up(made, **options).to(device)


def ways(compiled: bool) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Options of `speed_up` and of `Row`, by name; the reference first."""
    bf16, hold = {"bf16": True}, {"hold": True}
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "reference, fp32": ({}, {"loss": reference_loss}),
        "speed=default, fp32": ({}, {}),
        "speed=exact, fp32": (FAST, hold),
        "reference, bf16": ({}, {"loss": reference_loss} | bf16),
        "speed=fast, bf16": (FAST, bf16 | hold),
        SHARED: (FAST, bf16 | hold | {"loss": shared_loss}),
    }
    if compiled:
        found["speed=fast, compiled, bf16"] = (FAST | {"compiled": True}, bf16 | hold)
    return found


def rows(device: str, compiled: bool, only: str | None = None) -> list[Row]:
    """All ways, or one of them, by name."""
    return [
        Row(name, network(device, **speed), **options)
        for name, (speed, options) in ways(compiled).items()
        if only in (None, name)
    ]


def group(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images (B, 4, 3, 224, 224) and labels."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 4, 3, SIZE, SIZE, generator=generator)
    first = torch.arange(batch) % CLASSES
    labels = torch.stack([first, first, (first + 1) % CLASSES, (first + 1) % CLASSES], dim=1)
    return images.to(device), labels.to(device)


def seconds(run: Callable[[], Any], device: str, least: float = 0.0) -> float:
    """Of one call, over as many calls as take `least`."""
    if device == "cuda":
        torch.cuda.synchronize()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < least:
        run()
        calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    device: str,
    rounds: int,
    least: float = 0.0,
    hold: Collection[str] = (),
) -> dict[str, float]:
    """Median seconds of each, in turns; those in `hold` keep freed memory, after a warm call."""
    for run in runs.values():  # warm: kernels, caches, compilation
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if hold:
                keep_freed_memory(name in hold)
                run()
            times[name].append(seconds(run, device, least))
    return {name: statistics.median(values) for name, values in times.items()}


def machine(device: str) -> dict[str, float]:
    """The machine's own rates, GFLOP/s, by kind and precision, as this torch reaches them."""
    found = {}
    side, batch, channels, pixels = (8192, 96, 256, 14) if device == "cuda" else (2048, 8, 256, 14)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(side, side, device=device).to(dtype)
        product = seconds(partial(torch.matmul, a, a), device, 0.5)
        found[f"matrix product {name}"] = 2 * side**3 / product
        x = torch.randn(batch, channels, pixels, pixels, device=device).to(dtype)
        w = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
        x, w = (t.to(memory_format=torch.channels_last).requires_grad_() for t in (x, w))
        flops = 2 * batch * channels**2 * 9 * pixels**2
        with torch.no_grad():
            F.conv2d(x, w, padding=1)
            run = seconds(partial(F.conv2d, x, w, padding=1), device, 0.5)
        found[f"convolution {name}"] = flops / run
        g = torch.randn_like(x)

        def both(x: Tensor = x, w: Tensor = w, g: Tensor = g) -> None:
            x.grad = w.grad = None
            F.conv2d(x, w, padding=1).backward(g)

        both()
        found[f"convolution and its gradients {name}"] = 3 * flops / seconds(both, device, 0.5)
    return {name: value / 1e9 for name, value in found.items()}


def own_products(row: Row, images: Tensor, labels: Tensor, device: str) -> float:
    """GFLOP/s of the network's own convolutions and linear layers, each run by itself.

    Their gradients are included; it is what remains if all that is between them cost nothing.
    """
    seen: dict[tuple, list[Any]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kind = (str(module), inputs[0].shape, inputs[0].requires_grad)
        seen.setdefault(kind, [module, inputs[0].detach(), 0])[2] += 1

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in row.network.modules() if isinstance(m, kinds)]
    row.gradient(images, labels)
    for hook in hooks:
        hook.remove()
    total = work = 0.0
    for (_, _, wanted), (module, x, count) in seen.items():
        x = x.requires_grad_(wanted)

        def both(module: nn.Module = module, x: Tensor = x) -> None:
            x.grad = module.weight.grad = None
            with torch.autocast(device, torch.bfloat16, enabled=row.bf16):
                out = module(x)
            out.backward(out.detach())

        with FlopCounterMode(display=False) as counter:
            both()
        total += count * seconds(both, device, 0.2)
        work += count * counter.get_total_flops()
    return work / total / 1e9


def _gradients(network: nn.Module) -> list[Tensor]:
    gradients = (parameter.grad for parameter in network.parameters())
    return [gradient for gradient in gradients if gradient is not None]


def agreement(found: list[Row], images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Loss, and the largest relative difference of a gradient's tensor, against fp64.

    The last number is over all gradients together: a BatchNorm's gradients are sums that nearly
    cancel, and rounding shows most there.
    """
    exact = copy.deepcopy(found[0].network).double()
    reference_loss(exact, images.double(), labels).backward()
    wanted = _gradients(exact)
    total = torch.stack([g.norm() for g in wanted]).norm()
    result = {}
    for row in found:
        loss = row.gradient(images, labels).item()
        gaps = [x.double() - g for x, g in zip(_gradients(row.network), wanted, strict=True)]
        together = torch.stack([g.norm() for g in gaps]).norm() / total
        result[row.name] = {"loss": loss, "gradient": together.item()}
    return result


def beside(device: str, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of a training step alone and beside one busy process, in turns."""
    row, table = rows(device, False, "speed=exact, fp32")[0], []
    for batch in batches:
        run = partial(row.step, *group(batch, device), False)
        run()
        times: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(rounds):
            for number, found in times.items():
                with busy(number):
                    found.append(seconds(run, device, 1.0))
        alone, beside = map(statistics.median, times.values())
        told = {"quadruplets": batch, "way": row.name, "seconds alone": alone}
        table.append(told | {"beside one busy process": beside, "times": beside / alone})
    return table


def work(row: Row, images: Tensor, labels: Tensor) -> int:
    """FLOPs of a row's gradient."""
    with FlopCounterMode(display=False) as counter:
        row.gradient(images, labels)
    return counter.get_total_flops()


def training(
    device: str, batches: list[int], rounds: int, compiled: bool, rates: dict[str, float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Times of training steps, and how the ways agree."""
    table, found = [], rows(device, compiled)
    agreed = agreement([r for r in found if r.name != SHARED], *group(2, device))
    fast = {r.bf16: r for r in found if r.name in ("speed=exact, fp32", "speed=fast, bf16")}
    keep_freed_memory()
    own = {
        bf16: own_products(row, *group(batches[0], device), device) for bf16, row in fast.items()
    }
    for bf16, rate in own.items():
        rates[f"the network's own products {'bf16' if bf16 else 'fp32'}"] = rate
    for batch in batches:
        images, labels = group(batch, device)
        measured = [r for r in found if r.name != SHARED or batch > 2]  # of two images there is one
        flops = {r.name: work(r, images, labels) for r in measured if r.name == SHARED}
        flops = dict.fromkeys((r.name for r in found), work(found[0], images, labels)) | flops
        for sam in (False, True):
            runs = {r.name: partial(r.step, images, labels, sam) for r in measured}
            holding = [r.name for r in measured if r.hold]
            times = interleaved(runs, device, rounds, hold=holding)
            keep_freed_memory(False)
            print(f"{batch} quadruplets, SAM {sam}: {times}", file=sys.stderr)  # it takes long
            for name, value in times.items():
                done = flops[name] * (2 if sam else 1) / 1e9
                precision = "bf16" if "bf16" in name else "fp32"
                best = rates[f"convolution and its gradients {precision}"]
                own_rate = rates[f"the network's own products {precision}"]
                table.append(
                    {
                        "quadruplets": batch,
                        "SAM": sam,
                        "way": name,
                        "seconds": value,
                        "times": times["reference, fp32"] / value,
                        "GFLOP/s": done / value,
                        "of the best convolution's": done / value / best,
                        "of the own products'": done / value / own_rate,
                    }
                )
    return table, agreed


def inference(device: str, batches: list[int], rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """Times of the base branch."""
    plain = network(device).eval()
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    use_cpu_kernels(fast)

    def bf16(images: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return fast(images)

    forms: list[Form] = ["compiled", "compiled_bf16"]
    forms += ["compiled_int8"] * (device == "cpu")
    table = []
    with torch.no_grad():
        for batch in batches:
            images = group(batch, device)[0][:, 0].contiguous()
            ways: dict[str, Callable[[Tensor], Tensor]] = {
                "eager, fp32": plain,
                "channels last, fp32": fast,
                "channels last, bf16": bf16,
            }
            if compiled:
                ways |= {f"form={form}": in_form(plain, form, batch) for form in forms}
            expected = plain(images)
            runs = {name: partial(way, images) for name, way in ways.items()}
            times = interleaved(runs, device, rounds, least=0.3)
            for name, value in times.items():
                gap = ((ways[name](images) - expected).abs().max() / expected.std()).item()
                ratio = times["eager, fp32"] / value
                row = {"images": batch, "way": name, "ms": 1000 * value, "times": ratio}
                table.append(row | {"difference": gap})
    return table


def profile(device: str, batch: int, folder: Path) -> str:
    """Operations of a fast step with SAM by time, and on a GPU the share of it that kernels run."""
    (row,) = rows(device, False, "speed=fast, bf16")
    images, labels = group(batch, device)
    for _ in range(3):
        row.step(images, labels, True)
    seconds(partial(row.step, images, labels, True), device)
    with torch.profiler.profile() as found:
        took = seconds(partial(row.step, images, labels, True), device)
    events = found.key_averages()
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    busy = sum(getattr(event, key) for event in events) / 1e6 / took
    text = f"{took:.3f} s, {100 * busy:.0f} % of it in operations on {device}\n\n"
    text += events.table(sort_by=key, row_limit=25, max_name_column_width=60)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.txt").write_text(text)
    return text


def family(device: str, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """Size, work and time of the models that share the base branch, all in fp32 and eager.

    Two FLOPs are one multiplication with its addition: papers often count half, as MACs.
    """
    kinds: dict[str, dict[str, Any]] = {
        "base": {"roles": 1},
        "dcs": {"roles": 2, "cross": {}},
        "qcs": {"roles": 4, "cross": {}},
        "poster": {"roles": 1, "base": {"landmarks": {}}},
    }
    made = {name: QCSNetwork(IR(), CLASSES, **options) for name, options in kinds.items()}
    table = []
    with torch.no_grad():
        for batch in batches:
            images = group(batch, device)[0][:, 0].contiguous()
            runs = {name: partial(net.to(device).eval(), images) for name, net in made.items()}
            for name, value in interleaved(runs, device, rounds, least=0.3).items():
                whole, kept = (
                    sum(p.numel() for p in m.parameters()) / 1e6
                    for m in (made[name], made[name].base)
                )
                counter = FlopCounterMode(display=False)
                with counter, sdpa_kernel(SDPBackend.MATH):  # of plain products, which it counts
                    made[name](images[:1])
                row = {"model": name, "M parameters in training": whole, "of inference": kept}
                row |= {"GFLOP an image": counter.get_total_flops() / 1e9, "images": batch}
                table.append(row | {"ms": 1000 * value})
    return table


def memory(device: str, name: str, batch: int) -> float:
    """Peak MB of a process that takes two steps in one way; on a CPU with torch itself."""
    (row,) = rows(device, "compiled" in name, name)
    keep_freed_memory(row.hold)
    images, labels = group(batch, device)
    for _ in range(2):
        row.step(images, labels, False)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage's peak is the parent's, if larger
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def markdown(table: list[dict[str, Any]]) -> str:
    """A table of equal rows."""

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [list(table[0]), ["---"] * len(table[0]), *(map(text, row.values()) for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def peaks(device: str, names: list[str], batch: int) -> list[dict[str, Any]]:
    """Peak memory of each way, each in a process of its own."""
    table = []
    for name in names:
        command = [sys.executable, __file__, "--memory", name, "--batches", str(batch)]
        command += ["--threads", str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak = float(done.stdout.split()[-1])
        table.append({"way": name, "quadruplets": batch, "peak MB of a step": peak})
    return table


PARTS = ("training", "beside", "memory", "inference", "models", "profile")


def main() -> None:
    """Measure, print, write bench.json and bench.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8], help="quadruplets")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 64], help="of inference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--out", default="runs/bench")
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # the process that is measured
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads)
    if options.memory:
        print(memory(device, options.memory, options.batches[0]))
        return
    compiled, folder, rounds = not options.no_compile, Path(options.out), options.rounds
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    if "training" in options.parts:
        rates = machine(device)
        steps, agreed = training(device, options.batches, rounds, compiled, rates)
        tables["the machine's own rates, GFLOP/s"] = [rates]
        tables["agreement with fp64 (2 quadruplets)"] = [{"way": n} | v for n, v in agreed.items()]
        tables["training step"] = steps
    if "beside" in options.parts:
        tables["training step beside one busy process"] = beside(device, options.batches, rounds)
    if "memory" in options.parts:
        tables["peak memory"] = peaks(device, list(ways(compiled)), options.batches[0])
    if "inference" in options.parts:
        tables["inference, base branch"] = inference(device, options.images, rounds, compiled)
    if "models" in options.parts:
        tables["the models, inference"] = family(device, options.images, rounds)
    if "profile" in options.parts:
        print(profile(device, options.batches[0], folder))
    title = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads"
    about = {"device": title, "torch": torch.__version__, "command": sys.argv}
    (folder / "bench.json").write_text(json.dumps(about | tables, indent=1) + "\n")
    page = "\n".join(f"## {name}\n\n{markdown(table)}" for name, table in tables.items())
    (folder / "bench.md").write_text(f"# {title}, torch {torch.__version__}\n\n{page}")
    print(page)


if __name__ == "__main__":
    main()

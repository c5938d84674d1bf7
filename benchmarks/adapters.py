"""The cost of LoRA on a frozen decoder layer: the seven projections of Llama-2-7B, forward and backward, on one GPU.

    python -m benchmarks.adapters

Beside each other, in bfloat16, each from a captured CUDA graph so that no launch is measured: the frozen products alone (y,
dx); ours with one adapter and with 24 at once; peft's own modules with one. Queries, keys and values read one input, and so do
gate and up, as in the model: the gradients of an input are added up in all of them. Results are first held against the
reference in float32. In the details: milliseconds, each kernel alone, for all projections of an input, and what it costs a
product to start from an accumulator that lies in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import FROZEN, TRAINED, Figure, Part, Work, finish, limits_here, make_parser, parse, phase, until_cut_off
from pipelines.adapters.adapters import add_adapters
from pipelines.adapters.linears import (
    Operands,
    adapted_linears,
    adapted_linears_backward,
    reference_backward,
    reference_forward,
)
from pipelines.packing.dropout import token_keys
from pipelines.packing.segments import Segments

# Out, in.
PROJECTIONS = {
    **{name: (4_096, 4_096) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    "gate_proj": (11_008, 4_096),
    "up_proj": (11_008, 4_096),
    "down_proj": (4_096, 11_008),
}
# By the input that they read, in the same order.
SHARING = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ALPHA = 16


def main() -> None:
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_096, 8_192])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    arguments = parse(parser)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/adapters.py times kernels of an NVIDIA GPU, and there is none here")
    torch.manual_seed(0)
    times: dict[int, dict[str, list[float]]] = {}
    details: dict[str, Any] = {}
    with until_cut_off():
        measure(arguments, times, details)
    figures = []
    for num_tokens, by_name in times.items():
        rates = {name: [num_tokens / ms * 1e3 for ms in several] for name, several in by_name.items()}
        figures.append(Figure(f"a layer, {num_tokens} tokens", "tokens/s", rates, peer="peft", work=work_of(arguments.rank)))
    finish(parser, arguments, figures, limits=limits_here(), details=details)


def measure(arguments: argparse.Namespace, times: dict[int, dict[str, list[float]]], details: dict[str, Any]) -> None:
    """Put what is measured into `times`, milliseconds by tokens and variant, and into `details`, as it comes."""
    rank, dropout, repeats = arguments.rank, arguments.dropout, arguments.repeats
    phase("results against the reference in float32")
    details["relative_errors"] = {num: errors(num, rank, dropout) for num in arguments.adapters}
    worst = max(max(by_name.values()) for by_name in details["relative_errors"].values())
    if not worst < 0.01:
        sys.exit(f"the kernels differ from the reference by {worst:.2%}: {json.dumps(details['relative_errors'])}")
    for num_tokens in arguments.tokens:
        inputs, gradients = streams(num_tokens)
        of_layer = times[num_tokens] = {}
        phase(f"{num_tokens:,} tokens: frozen and peft")
        of_layer["frozen"] = milliseconds(step(Layer(), inputs, gradients), repeats)
        of_layer["peft"] = milliseconds(step(with_peft(Layer(), rank, dropout), inputs, gradients), repeats)
        for num in arguments.adapters:
            phase(f"{num_tokens:,} tokens: ours with {num} adapters")
            layer = Layer()
            adapters = add_adapters(layer, list(PROJECTIONS), rank=rank, alpha=ALPHA, dropout=dropout, seeds=list(range(num)))
            with adapters.over(segments(num_tokens, num)):
                of_layer[f"ours_{num}"] = milliseconds(step(layer, inputs, gradients), repeats)
        medians = {name: float(np.median(several)) for name, several in of_layer.items()}
        phase(f"{num_tokens:,} tokens: each kernel alone")
        details[f"tokens_{num_tokens}"] = {
            "ms": medians,
            # Of the least that LoRA must move, in the time that it adds.
            "added_tb_per_s": {
                name: least_bytes(num_tokens) / (ms - medians["frozen"]) / 1e9
                for name, ms in medians.items()
                if ms > medians["frozen"]
            },
            "kernels": {
                num: {
                    ", ".join(names): kernels(num_tokens, num, [PROJECTIONS[name] for name in names], arguments)
                    for names in SHARING
                }
                for num in arguments.adapters
            },
        }


def work_of(rank: int) -> Work:
    """The least work of a token through the layer, forward and backward."""
    frozen = FROZEN * sum(out * wide for out, wide in PROJECTIONS.values())
    adapters = TRAINED * rank * sum(out + wide for out, wide in PROJECTIONS.values())
    return Work((Part("projections", frozen + adapters),), "frozen projections and LoRA, which `frozen` is without")


class Layer(torch.nn.Module):
    """The projections, on one input for each of `SHARING`."""

    def __init__(self) -> None:
        super().__init__()
        for name, (out, wide) in PROJECTIONS.items():
            linear = torch.nn.Linear(wide, out, bias=False, device="cuda", dtype=torch.bfloat16)
            linear.weight.requires_grad = False
            self.add_module(name, linear)

    def forward(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [getattr(self, name)(x) for names, x in zip(SHARING, inputs, strict=True) for name in names]


def with_peft(layer: Layer, rank: int, dropout: float) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=list(PROJECTIONS))
    # In its own type, as a finetuning in bfloat16 has it: float32 adapters would halve the speed.
    adapted = get_peft_model(layer, config, autocast_adapter_dtype=False)
    return adapted.to(torch.bfloat16)


def streams(num_tokens: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs and each projection's output's gradient."""

    def draw(channels: int) -> torch.Tensor:
        return torch.randn(num_tokens, channels, device="cuda", dtype=torch.bfloat16)

    return (
        [draw(PROJECTIONS[names[0]][1]).requires_grad_() for names in SHARING],
        [draw(out) for out, _ in PROJECTIONS.values()],
    )


def segments(num_tokens: int, num_adapters: int) -> Segments:
    """`num_adapters` segments of uneven lengths with a little filling after them."""
    shares = np.random.default_rng(0).uniform(0.5, 1.5, num_adapters)
    ends = (np.cumsum(shares) / shares.sum() * 0.99 * num_tokens).astype(int)
    return Segments.from_arrays([0, *ends], token_keys(0, 0, 0, np.arange(num_tokens)), "cuda")


def step(layer: torch.nn.Module, inputs: list[torch.Tensor], gradients: list[torch.Tensor]) -> Callable[[], Any]:
    wanted = [*inputs, *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(layer(inputs), wanted, gradients)


def milliseconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Time of each replay of the captured graph of one `work`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for _ in range(3):
        graph.replay()
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) for first, second in itertools.pairwise(events)]


def least_bytes(num_tokens: int) -> int:
    """Bytes that LoRA alone must move: x twice, dy twice, its share of y and of dx written and read back once."""
    read = sum(PROJECTIONS[names[0]][1] for names in SHARING)
    return 2 * num_tokens * (4 * read + 4 * sum(out for out, _ in PROJECTIONS.values()))


def operands(num_tokens: int, num_adapters: int, projections: list[tuple[int, int]], rank: int) -> tuple[Any, ...]:
    """Arguments of `adapted_linears` up to the dropout rate, of projections (out, in) of one input."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    of_adapters = segments(num_tokens, num_adapters)
    wide = projections[0][1]
    salts = [torch.tensor([12_345 + place], dtype=torch.int32, device="cuda") for place in range(len(projections))]
    weights = [draw(out, wide) / wide**0.5 for out, _ in projections]
    a = [draw(num_adapters, rank, wide) / wide**0.5 for _ in projections]
    b = [draw(num_adapters, out, rank) / rank**0.5 for out, _ in projections]
    return draw(num_tokens, wide), weights, a, b, salts, *of_adapters.tensors()


def errors(num_adapters: int, rank: int, dropout: float) -> dict[str, float]:
    """Norm of the difference to the reference in float32, relative to the reference's, of everything computed."""
    # The longest sums there are, and outputs that differ in width.
    shapes = [(4_096, 11_008), (1_024, 11_008), (1_024, 11_008)]
    arguments: Any = (*operands(4_096, num_adapters, shapes, rank), dropout, 0.25, None, None)
    x, *unpacked = floats(arguments)
    rest = Operands(*unpacked)
    outputs, z = adapted_linears(*arguments)
    exact_outputs, exact_z = reference_forward(x, rest)
    grads = [torch.randn_like(y) for y in outputs]
    *gradients, _ = adapted_linears_backward(grads, arguments[0], z, True, *arguments[1:])
    ours = (outputs, z, *gradients)
    theirs = (exact_outputs, exact_z, *reference_backward(floats(grads), x, exact_z, rest, True))
    names = ("y", "z", "grad_x", "grad_a", "grad_b")

    def worst(mine: Any, other: Any) -> float:
        if isinstance(mine, list):
            return max(map(worst, mine, other))
        return float((mine - other).norm() / other.norm())

    return {name: worst(mine, other) for name, mine, other in zip(names, ours, theirs, strict=True)}


def floats(value: Any) -> Any:
    """`value` with its tensors of floating-point numbers in float32."""
    if isinstance(value, list | tuple):
        return [floats(item) for item in value]
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def kernels(
    num_tokens: int, num_adapters: int, projections: list[tuple[int, int]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Microseconds and, of the kernels, TB/s of their big operand, of projections (out, in) of one input, read once."""
    from pipelines.adapters.kernels import expand, gradients, shrink

    rank, dropout = arguments.rank, arguments.dropout
    x, weights, a, b, salts, *tensors = operands(num_tokens, num_adapters, projections, rank)
    num, over = len(projections), Segments(*tensors)
    grads = [torch.randn(num_tokens, out, device="cuda").bfloat16() for out, _ in projections]
    z = torch.randn(num, num_tokens, rank, device="cuda").bfloat16()
    outputs, by_rank = [torch.empty_like(grad) for grad in grads], [matrix.transpose(1, 2) for matrix in b]
    of_x, of_grads = x.nbytes, sum(grad.nbytes for grad in grads)
    dropping: dict[str, Any] = {"dropout": dropout, "scale": 1.0}
    keeping: dict[str, Any] = {"dropout": 0.0, "scale": 1.0}
    works: dict[str, tuple[Callable[[], Any], int | None]] = {
        "shrink_x": (lambda: shrink([x] * num, a, over, salts, **dropping), of_x),
        "shrink_grads": (lambda: shrink(grads, by_rank, over, salts, **keeping), of_grads),
        "expand_y": (lambda: expand(z, by_rank, over, salts, **keeping), of_grads),
        "expand_grad_x": (lambda: expand(z, a, over, salts, summed=True, **dropping), of_x),
        "gradients_a": (lambda: gradients(z, [x] * num, over, salts, **dropping), of_x),
        "gradients_b": (lambda: gradients(z, grads, over, salts, transposed=True, **keeping), of_grads),
        "products": (lambda: [torch.mm(x, w.t(), out=y) for w, y in zip(weights, outputs, strict=True)], None),
        # A factor below 1 keeps the sum finite over the repeats.
        "products_accumulating": (
            lambda: [y.addmm_(x, w.t(), beta=0.5) for w, y in zip(weights, outputs, strict=True)],
            None,
        ),
    }
    times = {}
    for name, (work, num_bytes) in works.items():
        us = float(np.median(milliseconds(work, arguments.repeats))) * 1e3
        times[name] = {"us": us, **({"tb_per_s": num_bytes / us / 1e6} if num_bytes is not None else {})}
    return times


if __name__ == "__main__":
    main()

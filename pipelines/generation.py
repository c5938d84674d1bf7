"""The synthetic pool: vLLM engines in a Ray Data actor pool write examples until enough of them parse.

    generate(GenerationConfig(num_per_label=20_000), generator="…/generator", output="…/pool",
             resources=Resources(num_workers=4, gpus_per_worker=1))

One row of the Ray dataset is one shard (`shards.py`), one actor one engine. Several shards are in an actor at
a time and share its engine, which therefore never runs empty between shards. Workers write shards straight to
`output`; only counts travel through Ray. Which shards are needed is decided from the shards committed so far,
so nothing is lost or done twice when a worker, a node or the driver dies. The choice of this pool over
`ray.data.llm` is explained in `benchmarks/generation.py`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.decode_attention import CHOICES, attention_options
from pipelines.engine import Engine
from pipelines.errors import UserError
from pipelines.examples import LABELS, Label
from pipelines.identity import added, identity, runtime
from pipelines.prompts import EN_DASH, END_MARKERS, UNAMBIGUOUS_STARTS, Parsed, generator_prompt, parse_generated
from pipelines.resources import Report, Resources, no_report
from pipelines.shards import (
    REJECTS,
    SHARDS,
    Commit,
    Decision,
    Shard,
    ShardFolder,
    decide,
    is_hopeless,
    kept_shards,
    per_label,
    plan_shards,
)
from pipelines.storage import fetch, is_local, join, local_path

if TYPE_CHECKING:
    import numpy as np

MODEL = "model"
YIELD_FILE = "yield.json"

# A shard waits for those before it only while they make progress; after this it is generated in any case.
PATIENCE_S = 60.0

POOL_SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("premise", pa.string()), ("hypothesis", pa.string()),
     ("shard", pa.int32()), ("seed", pa.int64()), ("generator", pa.string())]
)  # fmt: skip
REJECTS_SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("shard", pa.int32()), ("seed", pa.int64()),
     ("generator", pa.string()), ("reason", pa.string()), ("text", pa.string())]
)  # fmt: skip


@dataclass(frozen=True)
class GenerationConfig:
    """What is sampled from the generator. The defaults are ancestral sampling, as in the paper's scripts.

    `num_per_label`: parsed examples wanted of each label, one number or one a label in the order entailment,
    neutral, contradiction. The pool holds whole shards, so at least this many; or, with `exact`, this many and
    the last shard's surplus is kept beside it. `shard_size` (prompts a shard) is identity because seeds and the
    pool's end depend on it. `top_k=-1` and `top_p=1.0` keep the whole
    distribution. A text ends at the end marker, at the tokenizer's end-of-sequence token, after
    `max_new_tokens`, or at the end of the model's context. With `stop_early` it ends where the marker begins, and the rest of
    the marker is taken for granted: 8 tokens of 58 are saved, and a text that has an en dash of its own ends there.
    `stand_ins` makes it a rehearsal: the pool holds, for each text, what `stand_in` cuts from it, so that weights which write
    nothing that parses fill a pool, too.

    Runtime: `max_num_seqs` sequences in an engine's batch (0: 1 024 on a GPU, 256 on a CPU);
    `shards_in_flight` shards that an engine works on at a time (0: enough to keep its batch full);
    `enforce_eager` (None: on the CPU only); `engine_process` puts the engine's core into a process of its
    own; `attention_backend` on a GPU: `auto`, `vllm` or `triton` (see `attention_options`);
    `gpu_memory_utilization` of the worker's share of a GPU; `cpu_kv_cache_gib` of an engine on the CPU;
    `min_yield`, the parsed fraction below which generation gives up; `generator_id`, kept with each example.
    """

    num_per_label: int | tuple[int, int, int] = 20_000
    exact: bool = False
    shard_size: int = 1_024
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 512
    end_marker: str = EN_DASH
    dtype: str = "bfloat16"
    stand_ins: bool = False
    stop_early: bool = added(False)
    min_yield: float = runtime(0.2)
    max_num_seqs: int = runtime(0)
    shards_in_flight: int = runtime(0)
    enforce_eager: bool | None = runtime(None)
    engine_process: bool = runtime(False)
    attention_backend: str = runtime("auto")
    gpu_memory_utilization: float = runtime(0.9)
    cpu_kv_cache_gib: int = runtime(1)
    progress_bars: bool = runtime(False)
    generator_id: str = runtime("")

    def __post_init__(self) -> None:
        numbers = (self.num_per_label,) if isinstance(self.num_per_label, int) else self.num_per_label
        if len(numbers) not in (1, len(LABELS)) or min(numbers) < 1:
            raise UserError(
                f"num_per_label={self.num_per_label!r}: give one number above 0, or {len(LABELS)} of them "
                f"for {', '.join(LABELS)}"
            )
        for name in ("shard_size", "max_new_tokens", "cpu_kv_cache_gib"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("max_num_seqs", "shards_in_flight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: give a number above 0, or 0 to have it chosen")
        for name in ("top_p", "min_yield", "gpu_memory_utilization"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: must be above 0 and at most 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature={self.temperature}: must be above 0; at 0 a label's examples would be the same")
        if self.top_k < 1 and self.top_k != -1:
            raise UserError(f"top_k={self.top_k}: give the number of tokens to choose from, or -1 for all")
        if self.end_marker not in END_MARKERS:
            raise UserError(f"end_marker={self.end_marker!r}: use one of {', '.join(map(repr, END_MARKERS))}")
        if self.stop_early and self.end_marker not in UNAMBIGUOUS_STARTS:
            raise UserError(
                f"stop_early=True with end_marker={self.end_marker!r}, which begins as texts of the data go on; leave it "
                f"out, or use {', '.join(map(repr, UNAMBIGUOUS_STARTS))}"
            )
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise UserError(f"dtype={self.dtype!r}: use one of bfloat16, float16, float32")
        if self.attention_backend not in CHOICES:
            raise UserError(f"attention_backend={self.attention_backend!r}: use one of {', '.join(CHOICES)}")

    @property
    def stop(self) -> str:
        """The text at which a generated one ends."""
        return UNAMBIGUOUS_STARTS[self.end_marker] if self.stop_early else self.end_marker

    def completed(self, text: str) -> str:
        """A generated text as it would be if it had been written to the end of the marker."""
        return text.removesuffix(self.stop) + self.end_marker if text.endswith(self.stop) else text


def generate(
    config: GenerationConfig,
    generator: str,
    output: str,
    *,
    resources: Resources | None = None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Sample examples from `generator` (an artifact folder with `model/`, or a model's own folder) until each label has enough.

    Writes below `output` (a folder that all workers share, or a URI): `pool/*.parquet` (id, label, premise,
    hypothesis, shard, seed, generator), `rejects/*.parquet` (id, label, shard, seed, generator, reason,
    text), `shards/*.json` (a shard's commit) and, last, `yield.json`. The pool is, of each label, the shards
    0..k with k the first at which `num_per_label` is reached. With `exact` it ends at that number, and the rest
    of shard k is in `surplus/*.parquet`, with the pool's columns. A call on an output of an interrupted one
    generates only what is missing or damaged.

    Runs on the Ray cluster that `ray.init` connected to. `report` gets counts and throughput as shards are
    committed; its step is the number of committed shards. Returns counts (`parsed`, of which `surplus` are not
    in the pool, `rejected/<reason>`, `yield`, …) and, if this call generated anything, its times (`engine_start_s`,
    `generate_s`) and rates (`examples_per_s`, `generated_tokens_per_s`, over what it generated, engine start not counted).

    Raises `UserError` for a missing generator, an output of another request, an engine over more than one
    GPU, a missing vLLM, and for a yield under `min_yield`; what was generated stays and is used by the next
    call.
    """
    started = time.perf_counter()
    resources = resources or Resources()
    _check_request(generator, resources)
    output = str(local_path(output).resolve()) if is_local(output) else output
    num_per_label = per_label(config.num_per_label)
    folder = ShardFolder(output)
    request = _request_hash(config)
    _check_output(folder, request)
    folder.drop_damaged()

    planned = plan_shards(num_per_label, shard_size=config.shard_size, min_yield=config.min_yield, seed=config.seed)
    progress = _Progress(report, num_committed=len(folder.commits()))
    missing = _missing(planned, folder, num_per_label, config.min_yield)
    while missing:
        num_before = len(folder.commits())
        for row in run_engines(config, generator, output, missing, resources, request):
            progress.add(row)
        # A second pass only if a worker skipped a shard on the strength of a commit that is gone since.
        missing = _missing(planned, folder, num_per_label, config.min_yield)
        if missing and len(folder.commits()) == num_before:
            raise RuntimeError(f"{output}: engines ended without committing any of {len(missing)} missing shards")

    if damaged := folder.drop_damaged():
        raise RuntimeError(f"{output}: {', '.join(damaged)} changed after being committed; run again to repair")
    return _finish(config, folder, progress, started)


def _check_request(generator: str, resources: Resources) -> None:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed; install blindsweep's extra `cpu` or `cuda`, whichever fits this machine")
    if resources.gpus_per_worker > 1:
        raise UserError(
            f"gpus_per_worker={resources.gpus_per_worker}: an engine runs on one GPU or a part of one; "
            "raise num_workers instead"
        )
    if is_local(generator) and not (local_path(_model_address(generator)) / "config.json").exists():
        raise UserError(f"{generator}: has neither {MODEL}/config.json nor config.json; give a generator's folder")


def _model_address(generator: str) -> str:
    if is_local(generator) and (local_path(generator) / "config.json").exists():
        return str(local_path(generator).resolve())
    model = join(generator, MODEL)
    return str(local_path(model).resolve()) if is_local(model) else model


def _request_hash(config: GenerationConfig) -> str:
    """What a shard's content follows from. `num_per_label` is left out: a larger pool begins with the same shards, unless
    the last one is cut.
    """
    content = {**identity(config), "generator": config.generator_id}
    if not config.exact:
        content["num_per_label"] = None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_output(folder: ShardFolder, request: str) -> None:
    for commit in folder.commits().values():
        if commit.request != request:
            raise UserError(
                f"{folder.output} holds shards of another generator or with other sampling settings "
                f"({SHARDS}/{commit.shard.name}.json); choose another output or remove it"
            )


def _missing(planned: list[Shard], folder: ShardFolder, num_per_label: Mapping[Label, int], min_yield: float) -> list[Shard]:
    """Planned shards that are not committed, of the labels that still lack examples and may yet get them."""
    commits = folder.commits()
    lacking = set()
    for label, kept in kept_shards(commits, num_per_label).items():
        of_label = [commit for commit in commits.values() if commit.label == label]
        if sum(commit.num_parsed for commit in kept) < num_per_label[label] and not is_hopeless(of_label, min_yield):
            lacking.add(label)
    return [shard for shard in planned if shard.label in lacking and (shard.label, shard.index) not in commits]


# --- the driver's side of the actor pool ---


def run_engines(
    config: GenerationConfig,
    generator: str,
    output: str,
    shards: list[Shard],
    resources: Resources,
    request: str,
) -> Iterator[dict[str, Any]]:
    """Offer `shards` to a pool of engines, in order; yield one row of counts for each that was generated."""
    import ray.data

    num_workers = min(resources.num_workers, len(shards))
    in_flight = shards_in_flight(config, on_gpu=resources.gpus_per_worker > 0)
    rows = [{"label": str(s.label), "index": s.index, "seed": s.seed, "count": s.count} for s in shards]
    # One block a shard: a block is what Ray Data hands to an actor, and retries.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardWriter,
        batch_size=1,
        fn_constructor_kwargs={
            "config": config,
            "model": _model_address(generator),
            "output": output,
            "request": request,
            "resources": resources,
        },
        compute=ray.data.ActorPoolStrategy(
            size=num_workers,
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=in_flight,
            # Calls meet in the engine's queue, so that the engine's batch holds rows of several shards.
            enable_true_multi_threading=True,
        ),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        # OpenMP and vLLM read theirs when they are loaded, so the process must start with them.
        runtime_env={"env_vars": engine_environment(config, resources)},
    )
    dataset.context.enable_progress_bars = config.progress_bars
    # What a worker raised, not a wrapper that forgets it on its way here.
    dataset.context.raise_original_map_exception = True
    # A failed shard must end the run: Ray Data can be told to drop blocks that fail.
    dataset.context.max_errored_blocks = 0
    with _quiet(unless=config.progress_bars):
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                yield from batch.to_pylist()
        except Exception as error:
            if (explained := _explained(error, output)) is None:
                raise
            raise explained from error


@contextlib.contextmanager
def _quiet(unless: bool) -> Iterator[None]:
    """Without Ray Data's notes on each execution: the stage reports its own progress."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    if not unless:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _explained(error: Exception, output: str) -> UserError | None:
    """The user's mistake that a worker ran into, found among the causes that Ray wraps, if it is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return UserError(str(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"{output}: the disk is full; free some space and run again: committed shards are kept")
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def max_num_seqs(config: GenerationConfig, *, on_gpu: bool) -> int:
    return config.max_num_seqs or (1_024 if on_gpu else 256)


def shards_in_flight(config: GenerationConfig, *, on_gpu: bool) -> int:
    """Two engine batches' worth of rows, so that the next shard's rows wait when one shard's last rows run out."""
    wanted = math.ceil(2 * max_num_seqs(config, on_gpu=on_gpu) / config.shard_size)
    return config.shards_in_flight or max(2, wanted)


class _Progress:
    """Counts of what this call generates, reported as each shard is committed."""

    def __init__(self, report: Report, num_committed: int) -> None:
        self._report = report
        self._num_committed = num_committed
        self.parsed: Counter[str] = Counter()
        self.num_rejected = 0
        self.num_tokens = 0
        self.engine_start_s = 0.0
        self.generate_s = 0.0
        self.peak_gpu_memory_gib = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        self._num_committed += 1
        self.parsed[row["label"]] += row["num_parsed"]
        self.num_rejected += row["num_rejected"]
        self.num_tokens += row["num_tokens"]
        self.engine_start_s = max(self.engine_start_s, row["engine_start_s"])
        self.generate_s = max(self.generate_s, row["since_ready_s"])
        self.peak_gpu_memory_gib = max(self.peak_gpu_memory_gib, row["peak_gpu_memory_gib"])
        counts = {f"parsed/{label}": float(num) for label, num in self.parsed.items()}
        self._report(
            {"parsed": self.num_parsed, "rejected": self.num_rejected, **counts, **self.rates()},
            self._num_committed,
        )

    @property
    def num_parsed(self) -> int:
        return sum(self.parsed.values())

    def rates(self) -> dict[str, float]:
        return {
            "examples_per_s": self.num_parsed / self.generate_s,
            "generated_tokens_per_s": self.num_tokens / self.generate_s,
        }

    def times(self) -> dict[str, float | None]:
        """Nothing if nothing was generated: a rate over no time is no number."""
        if not self.generate_s:
            return {}
        return {
            **self.rates(),
            "engine_start_s": self.engine_start_s,
            "generate_s": self.generate_s,
            "peak_gpu_memory_gib": self.peak_gpu_memory_gib or None,
        }


def _finish(config: GenerationConfig, folder: ShardFolder, progress: _Progress, started: float) -> dict[str, Any]:
    """Cut the committed shards to the pool, write `yield.json` and return the metrics; raise if a label lacks examples."""
    num_per_label = per_label(config.num_per_label)
    commits = folder.commits()
    kept = kept_shards(commits, num_per_label)
    parsed = {label: sum(commit.num_parsed for commit in kept[label]) for label in num_per_label}
    if any(parsed[label] < num_per_label[label] for label in num_per_label):
        raise UserError(_low_yield_message(folder, num_per_label, config.min_yield))
    pool = [commit for label in num_per_label for commit in kept[label]]
    # More engines than the last shards needed: what lies beyond the pool's end would make it depend on who
    # was fast.
    surplus = [commit for commit in commits.values() if commit not in pool]
    for commit in surplus:
        folder.withdraw(commit.shard)
    surplus_rows = {label: parsed[label] - num if config.exact else 0 for label, num in num_per_label.items()}
    for label, num in surplus_rows.items():
        folder.set_aside(kept[label][-1], num)
    folder.remove_uncommitted()

    rejected: Counter[str] = sum((Counter(commit.rejected) for commit in pool), Counter())
    generated = {label: sum(commit.count for commit in kept[label]) for label in num_per_label}
    # Not from the examples: stand-ins are none of them parsed.
    yields = {
        label: 1 - sum(sum(commit.rejected.values()) for commit in kept[label]) / generated[label] for label in num_per_label
    }
    summary = {
        "parsed": {str(label): parsed[label] for label in num_per_label},
        "surplus": {str(label): num for label, num in surplus_rows.items()},
        "generated": {str(label): generated[label] for label in num_per_label},
        "rejected": dict(rejected.most_common()),
        "num_shards": {str(label): len(kept[label]) for label in num_per_label},
        "num_surplus_shards": len(surplus),
    }
    folder.write(YIELD_FILE, json.dumps(summary, indent=1).encode())
    return {
        "parsed": sum(parsed.values()),
        **{f"parsed/{label}": parsed[label] for label in num_per_label},
        "surplus": sum(surplus_rows.values()),
        "rejected": rejected.total(),
        **{f"rejected/{reason}": num for reason, num in rejected.most_common()},
        "yield": 1 - rejected.total() / sum(generated.values()),
        **{f"yield/{label}": one for label, one in yields.items()},
        **({"stand_ins": sum(parsed.values())} if config.stand_ins else {}),
        "num_shards": len(pool),
        "num_surplus_shards": len(surplus),
        "generated_tokens": sum(commit.num_tokens for commit in pool),
        **progress.times(),
        "total_s": time.perf_counter() - started,
    }


def _low_yield_message(folder: ShardFolder, num_per_label: Mapping[Label, int], min_yield: float) -> str:
    commits = list(folder.commits().values())
    lines = []
    for label, target in num_per_label.items():
        of_label = [commit for commit in commits if commit.label == label]
        num_parsed = sum(commit.num_parsed for commit in of_label)
        num_generated = sum(commit.count for commit in of_label)
        share = f" ({num_parsed / num_generated:.1%})" if num_generated else ""
        lines.append(f"  {label}: {num_parsed:,} of {num_generated:,} texts parsed{share}, {target:,} wanted")
    rejected: Counter[str] = sum((Counter(commit.rejected) for commit in commits), Counter())
    for reason, num in rejected.most_common(3):
        example = next(
            text
            for commit in commits
            if reason in commit.rejected
            for text, why in zip(*folder.read_table(commit.shard.files[1]).select(["text", "reason"]), strict=True)
            if why.as_py() == reason
        )
        lines.append(f"  rejected as {reason}: {num:,}, such as {example.as_py()[:160]!r}")
    return (
        f"too few generated texts parse (the least is min_yield={min_yield}):\n" + "\n".join(lines) + "\n"
        "Train the generator longer or on more examples, check that its end marker is the one configured "
        f"here, or lower min_yield. What was generated stays in {folder.output}; all rejected texts are in "
        f"its {REJECTS} folder."
    )


# --- the worker's side ---


class ShardWriter:
    """A Ray Data actor: one vLLM engine that writes the shards it is offered, several at a time."""

    def __init__(self, config: GenerationConfig, model: str, output: str, request: str, resources: Resources) -> None:
        started = time.perf_counter()
        self._config = config
        self._request = request
        self._targets = per_label(config.num_per_label)
        self._folder = ShardFolder(output)
        self._lock = threading.Lock()
        on_gpu = resources.gpus_per_worker > 0
        warnings.filterwarnings("ignore", category=FutureWarning)
        path = fetch(model)
        self._prompts = encode_prompts(path)
        prompt_lengths = [len(prompt) for prompt in self._prompts.values()]
        gpu_bytes = 0
        if on_gpu and resources.gpus_per_worker < 1:
            import torch

            gpu_bytes = torch.cuda.get_device_properties(0).total_memory
        self._engine = Engine(
            engine_options(config, path, resources, prompt_lengths, gpu_bytes),
            # The parser must see the marker: a text that ends in any other way may be cut off.
            stop=config.stop,
            prompts=list(self._prompts.values()),
            max_queued=2 * max_num_seqs(config, on_gpu=on_gpu),
        )
        self._ready = time.perf_counter()
        self._engine_start_s = self._ready - started

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        shards = [
            Shard(Label(label), index.item(), seed.item(), count.item())
            for label, index, seed, count in zip(*(batch[n] for n in ("label", "index", "seed", "count")), strict=True)
        ]
        done = [(shard, commit) for shard in shards if (commit := self._write(shard)) is not None]
        return {
            "label": [str(shard.label) for shard, _ in done],
            "num_parsed": [commit.num_parsed for _, commit in done],
            "num_rejected": [sum(commit.rejected.values()) for _, commit in done],
            "num_tokens": [commit.num_tokens for _, commit in done],
            "engine_start_s": [self._engine_start_s] * len(done),
            "since_ready_s": [time.perf_counter() - self._ready] * len(done),
            "peak_gpu_memory_gib": [_peak_gpu_memory_gib()] * len(done),
        }

    def _write(self, shard: Shard) -> Commit | None:
        if not self._is_needed(shard):
            return None
        seeds = [shard.row_seed(row) for row in range(shard.count)]
        texts, num_tokens = self._engine.complete(self._prompts[shard.label], self._sampling(), seeds)
        parsed, rejects = tables(shard, [self._config.completed(text) for text in texts], self._config)
        with self._lock:
            return self._folder.commit(shard, self._request, parsed, rejects, num_tokens)

    def _is_needed(self, shard: Shard) -> bool:
        waited_since = time.perf_counter()
        num_committed = -1
        while True:
            with self._lock:
                commits = self._folder.commits()
            if len(commits) > num_committed:
                num_committed, waited_since = len(commits), time.perf_counter()
            target = self._targets[shard.label]
            match decide(shard, commits, target=target, min_yield=self._config.min_yield):
                case Decision.SKIP:
                    return False
                case Decision.GENERATE:
                    return True
            # Whoever had the shards before this one may be gone.
            if time.perf_counter() - waited_since > PATIENCE_S:
                return True
            time.sleep(0.2 if is_local(self._folder.output) else 2)

    def _sampling(self) -> Any:
        from vllm import SamplingParams

        config = self._config
        return SamplingParams(
            temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, max_tokens=config.max_new_tokens
        )


def _peak_gpu_memory_gib() -> float:
    """Of this process; 0 without a GPU, or while the engine has a process of its own."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def tables(shard: Shard, texts: list[str], config: GenerationConfig) -> tuple[pa.Table, pa.Table]:
    """The shard's texts, in order, as its pool table and its rejects table. Every text is in exactly one of them, but for
    stand-ins, which the pool has of all.
    """
    parsed, rejects = [], []
    for row, text in enumerate(texts):
        common = {"id": shard.row_id(row), "label": str(shard.label), "shard": shard.index,
                  "seed": shard.row_seed(row), "generator": config.generator_id}  # fmt: skip
        result = parse_generated(text, marker=config.end_marker)
        if config.stand_ins:
            premise, hypothesis = stand_in(shard.label, text)
            parsed.append({**common, "id": f"stand-in-{common['id']}", "premise": premise, "hypothesis": hypothesis})
        elif isinstance(result, Parsed):
            parsed.append({**common, "premise": result.premise, "hypothesis": result.hypothesis})
        if not isinstance(result, Parsed):
            rejects.append({**common, "reason": str(result.reason), "text": result.text})
    return pa.Table.from_pylist(parsed, POOL_SCHEMA), pa.Table.from_pylist(rejects, REJECTS_SCHEMA)


def stand_in(label: Label, text: str) -> tuple[str, str]:
    """Premise and hypothesis, of up to a dozen words, for a rehearsal: lexical overlap if and only if it is an entailment,
    so that every kind of training set can be drawn.
    """
    words = re.findall("[A-Za-z]+", text)[:12] or ["nothing", "readable", "was", "written"]
    hypothesis = words[:6] if label == Label.ENTAILMENT else ["this", "is", "a", "stand-in"]
    return " ".join(words), " ".join(hypothesis)


def encode_prompts(model: str) -> dict[Label, list[int]]:
    """Token ids of each label's prompt, encoded as the generator's training texts are; no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = {}
    for label in LABELS:
        ids = tokenizer(generator_prompt(label))["input_ids"]
        # In training the end-of-sequence token that some tokenizers add follows the end marker, not the
        # label.
        prompts[label] = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    return prompts


def engine_environment(config: GenerationConfig, resources: Resources) -> dict[str, str]:
    """Environment variables that an engine's process must start with."""
    values = {
        # In the actor's own process the engine starts in a third of the time on two cores and cannot outlive
        # the actor.
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(config.engine_process)),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if not resources.gpus_per_worker:
        values |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
            # By default each engine pins its threads to the first cores, where they meet the next engine's.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, int(resources.cpus_per_worker))),
            # Threads that spin while they wait for one that lost its core make generation ten times slower on
            # a busy machine: 50 examples/s against 510 on two cores. On an idle one they gain nothing.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return values


def kv_cache_bytes(model: str, *, num_seqs: int, context: int, number_bytes: int, gpu_bytes: float) -> int:
    """What the cache of `num_seqs` sequences of `context` tokens takes, or what `gpu_bytes` leave for it beside the weights.

    Raises UserError if that is less than a sixteenth of what is needed.
    """
    settings = json.loads((Path(model) / "config.json").read_text())
    num_heads = settings["num_attention_heads"]
    head_dim = settings.get("head_dim") or settings["hidden_size"] // num_heads
    num_kv_heads = settings.get("num_key_value_heads") or num_heads
    keys_and_values = 2
    token_bytes = settings["num_hidden_layers"] * num_kv_heads * head_dim * keys_and_values * number_bytes
    needed = num_seqs * context * token_bytes
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    # The engine's own workspace: logits, activations, CUDA's context and graphs.
    left = int(gpu_bytes - weights - 2 * 2**30)
    if left < needed / 16:
        raise UserError(
            f"an engine's share of the GPU is {gpu_bytes / 2**30:.1f} GiB and its weights take {weights / 2**30:.1f}, which "
            "leaves too little to work with; give the synthetic pool fewer workers with a larger gpus_per_worker"
        )
    return min(needed, left)


def engine_options(
    config: GenerationConfig, model: str, resources: Resources, prompt_lengths: Collection[int], gpu_bytes: int = 0
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`, to be used on the machine where this is called. Valid for vLLM 0.26 to 0.32.
    `prompt_lengths`: in tokens, of each prompt; `gpu_bytes`: the memory of the whole GPU, if shared.
    """
    longest_prompt = max(prompt_lengths)
    on_gpu = resources.gpus_per_worker > 0
    num_seqs = max_num_seqs(config, on_gpu=on_gpu)
    eager = config.enforce_eager if config.enforce_eager is not None else not on_gpu
    options: dict[str, Any] = {
        "model": model,
        "dtype": config.dtype,
        "seed": 0,
        "max_num_seqs": num_seqs,
        "enforce_eager": eager,
        "use_tqdm_on_load": False,
    }
    # An engine refuses to start if one sequence of the model's whole context does not fit its cache; ours are
    # short.
    context = json.loads((Path(model) / "config.json").read_text()).get("max_position_embeddings")
    if context is not None:
        options["max_model_len"] = min(context, longest_prompt + config.max_new_tokens)
    if on_gpu:
        options |= attention_options(model, config.dtype, config.attention_backend, prompt_lengths)
        share = config.gpu_memory_utilization * resources.gpus_per_worker
        options["gpu_memory_utilization"] = share
        if gpu_bytes and resources.gpus_per_worker < 1:
            # vLLM would size its cache by watching the GPU's free memory, which others are taking and giving back.
            longest = options.get("max_model_len", longest_prompt + config.max_new_tokens)
            options["kv_cache_memory_bytes"] = kv_cache_bytes(
                model,
                num_seqs=num_seqs,
                context=longest,
                number_bytes=4 if config.dtype == "float32" else 2,
                gpu_bytes=share * gpu_bytes,
            )
        if not eager:
            # vLLM captures graphs of up to 512 sequences only, and launches kernel by kernel above that. Its own list would
            # have eighty sizes up to 1 024; filling a batch up to the next 64 costs less than capturing them.
            sizes = [size for size in (1, 2, 4, 8, 16, 32) if size < num_seqs]
            options["compilation_config"] = {"cudagraph_capture_sizes": [*sizes, *range(64, num_seqs, 64), num_seqs]}
    else:
        # A seeded request whose prompt is split over two steps makes the CPU engine fail: "CPU Generator does
        # not use offset" (vLLM 0.26 to 0.32).
        options["enable_chunked_prefill"] = False
    return options

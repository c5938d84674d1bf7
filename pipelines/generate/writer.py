"""vLLM engines in a Ray Data actor pool. An actor writes the shards that it is offered.

One row of the Ray dataset is one shard, one actor one engine. Several shards are in an actor at a time and
share its engine, which therefore never runs empty between shards. Workers write shards straight to the
output; only counts travel through Ray. The choice of this pool over `ray.data.llm` is explained in
`benchmarks/generation.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.errors import RETRIES, UserError
from pipelines.generate.config import STAND_IN, GenerationConfig
from pipelines.generate.engine import Engine, import_vllm
from pipelines.generate.options import engine_environment, engine_options, max_num_seqs, reads_in_place, shards_in_flight
from pipelines.generate.prompting import Shots, encode_prompted
from pipelines.generate.shards import Commit, Decision, Shard, ShardFolder, decide, plan_shards
from pipelines.imports import lasting_imports, without_modules
from pipelines.resources import Resources
from pipelines.storage import fetch, is_disk_full, is_local
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import Parsed, generator_prompt, parse_generated
from pipelines.tasks.task import Task
from pipelines.workers.lane import shared_job
from pipelines.workers.notice import run_notice_given
from pipelines.workers.printed import note_worker

if TYPE_CHECKING:
    import numpy as np

# A shard waits for those before it only while they make progress; after this it is generated in any case.
MAX_RESTARTS = 2
"""How often an engine whose process died is started again in one call. Ray Data does it for ever, at a GPU's price."""

PATIENCE_S = 60.0

PROMPTS = "prompts"
"""Folder of the prompts of a model that is not finetuned: the first of each label."""
LEAST_ROOM = 16
"""Tokens that a prompt has to leave for a text."""

REJECTS_SCHEMA = pa.schema(
    [("id", pa.string()), ("label", pa.string()), ("shard", pa.int32()), ("seed", pa.int64()),
     ("generator", pa.string()), ("reason", pa.string()), ("text", pa.string())]
)  # fmt: skip


def run_engines(
    config: GenerationConfig,
    model: str,
    output: str,
    shards: list[Shard],
    resources: Resources,
    request: str,
    desk: Any = None,
) -> Iterator[dict[str, Any]]:
    """Offer `shards` to a pool of engines of `model`, in order; yield one row of counts for each that was generated.

    With the `desk` of a lane, engines start with the shape of `model` alone, and with the weights of the model that the lane's
    job is the address of, once that is there.
    """
    import ray.data

    num_workers = min(resources.num_workers, len(shards))
    in_flight = shards_in_flight(config, on_gpu=resources.gpus_per_worker > 0)
    rows = [{"label": s.label, "index": s.index, "seed": s.seed, "count": s.count} for s in shards]
    # One block a shard: a block is what Ray Data hands to an actor, and retries.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardWriter,
        batch_size=1,
        fn_constructor_kwargs={
            "config": config,
            "model": model,
            "output": output,
            "request": request,
            "resources": resources,
            "desk": desk,
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
        # Lost machines count, too, if they go without notice; the next call then goes on with what was committed.
        max_restarts=MAX_RESTARTS,
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
    explained: UserError | None = None
    cause: BaseException | None = error
    # The innermost: what wraps it may pass for an error of its type, with a traceback for its text.
    while cause is not None:
        if isinstance(cause, UserError):
            explained = UserError(str(cause).partition(RETRIES)[0])
        elif explained is None and isinstance(cause, OSError) and is_disk_full(cause):
            # Where Ray Data has put something else in the place of the file's name, what is written to most.
            explained = _full_disk(cause.filename if str(cause.filename).startswith("/") else output)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return explained


def _full_disk(where: str) -> UserError:
    return UserError(f"{where}: the disk is full; free some space and run again: committed shards are kept")


class ShardWriter:
    """A Ray Data actor: one vLLM engine that writes the shards it is offered, several at a time."""

    def __init__(
        self, config: GenerationConfig, model: str, output: str, request: str, resources: Resources, desk: Any = None
    ) -> None:
        self._started = time.perf_counter()
        self._waited_s = 0.0
        note_worker("a vLLM engine", [output])
        self._config = config
        self._request = request
        self._folder = ShardFolder(output)
        self._lock = threading.Lock()
        on_gpu = resources.gpus_per_worker > 0
        warnings.filterwarnings("ignore", category=FutureWarning)
        if desk is not None and (job := shared_job(desk, wait=False)) is not None:
            # Nothing to wait for: the weights are there.
            model, desk = job.model, None
        path = fetch(model)
        # Transformers' assisted decoding would import it, a tenth of a start, for nobody.
        with lasting_imports(), without_modules("sklearn"):
            from transformers import AutoTokenizer  # noqa: F401

        # Of a finetuned model by label, of a prompted one by shard.
        self._prompts = prompts_of_shards(path, config) if config.prompting else encode_prompts(path, config.task)
        prompt_lengths = [len(prompt) for prompt in self._prompts.values()]
        gpu_bytes = 0
        if on_gpu and resources.gpus_per_worker < 1:
            import torch

            gpu_bytes = torch.cuda.get_device_properties(0).total_memory
        options = engine_options(config, path, resources, prompt_lengths, gpu_bytes)
        if desk is not None and not reads_in_place(options, on_gpu=on_gpu):
            import_vllm()
            options["model"], desk = self._weights(desk), None
        self._engine = Engine(
            options,
            # The parser must see the marker: a text that ends in any other way may be cut off.
            stop=config.stop,
            prompts=list(self._prompts.values())[: len(config.task.labels)],
            # A finetuned model has learnt to write the marker; whatever else it ends with may be cut off.
            at_end=config.end_marker if config.prompting else "",
            max_queued=2 * max_num_seqs(config, on_gpu=on_gpu),
            weights=None if desk is None else lambda: self._weights(desk),
        )
        self._ready = time.perf_counter()
        self._engine_start_s = self._ready - self._started - self._waited_s
        print(f"an engine is up after {self._engine_start_s:.1f} s and {self._waited_s:.1f} s of waiting", flush=True)

    def _weights(self, desk: Any) -> str:
        """The folder of the generator's weights, once it is trained."""
        began = time.perf_counter()
        print(f"an engine waits for its generator after {began - self._started:.1f} s", flush=True)
        model = fetch(shared_job(desk).model)
        self._waited_s = time.perf_counter() - began
        if not self._config.prompting and encode_prompts(model, self._config.task) != self._prompts:
            raise RuntimeError(f"{model} reads prompts otherwise than the base model that it was finetuned from")
        return str(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        shards = [
            Shard(label, index.item(), seed.item(), count.item())
            for label, index, seed, count in zip(*(batch[n] for n in ("label", "index", "seed", "count")), strict=True)
        ]
        try:
            done = [(shard, commit) for shard in shards if (commit := self._write(shard)) is not None]
        except OSError as error:
            if is_disk_full(error) and error.filename:
                raise _full_disk(error.filename) from error
            raise
        return {
            "label": [shard.label for shard, _ in done],
            "num_parsed": [commit.num_parsed for _, commit in done],
            "num_rejected": [sum(commit.rejected.values()) for _, commit in done],
            "num_tokens": [commit.num_tokens for _, commit in done],
            "engine_start_s": [self._engine_start_s] * len(done),
            "since_ready_s": [time.perf_counter() - self._ready] * len(done),
            "peak_gpu_memory_gib": [_peak_gpu_memory_gib()] * len(done),
        }

    def _write(self, shard: Shard) -> Commit | None:
        if not is_needed(shard, self._config, self._folder, self._lock):
            return None
        seeds = [shard.row_seed(row) for row in range(shard.count)]
        prompt = self._prompts[shard.name if self._config.prompting else shard.label]
        texts, num_tokens = self._engine.complete(prompt, self._sampling(), seeds)
        if self._config.prompting and shard.index == 0:
            self._folder.write(f"{PROMPTS}/{shard.label}.txt", self._engine.text(prompt).encode())
        parsed, rejects = tables(shard, [self._config.completed(text) for text in texts], self._config)
        with self._lock:
            return self._folder.commit(shard, self._request, parsed, rejects, num_tokens)

    def _sampling(self) -> Any:
        from vllm import SamplingParams

        config = self._config
        return SamplingParams(
            temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, max_tokens=config.max_new_tokens
        )


def is_needed(shard: Shard, config: GenerationConfig, folder: ShardFolder, lock: threading.Lock) -> bool:
    """Whether a shard has to be written, once that is known: others may be under way. False at a notice."""
    waited_since = time.perf_counter()
    num_committed = -1
    while True:
        # Of a machine that is to go alone, every shard counts that is finished before.
        if run_notice_given():
            return False
        with lock:
            commits = folder.commits()
        if len(commits) > num_committed:
            num_committed, waited_since = len(commits), time.perf_counter()
        target = config.num_by_label[shard.label]
        match decide(shard, commits, target=target, min_yield=config.min_yield):
            case Decision.SKIP:
                return False
            case Decision.GENERATE:
                return True
        # Whoever had the shards before this one may be gone.
        if time.perf_counter() - waited_since > PATIENCE_S:
            return True
        time.sleep(0.2 if is_local(folder.output) else 2)


def _peak_gpu_memory_gib() -> float:
    """The most that this process has held of its GPU; 0 without one, or while the engine has a process of its own."""
    import torch

    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0


def tables(shard: Shard, texts: list[str], config: GenerationConfig) -> tuple[pa.Table, pa.Table]:
    """The shard's texts, in order, as its pool table and its rejects table. Every text is in exactly one of them, but for
    stand-ins, which the pool has of all.
    """
    parsed, rejects = [], []
    for row, text in enumerate(texts):
        common = {"id": shard.row_id(row), "label": shard.label, "shard": shard.index,
                  "seed": shard.row_seed(row), "generator": config.generator_id}  # fmt: skip
        result = parse_generated(text, marker=config.end_marker, task=config.task)
        if config.stand_ins:
            texts_of = stand_in(shard.label, text, config.task)
            parsed.append({**common, "id": f"stand-in-{common['id']}", **texts_of})
        elif isinstance(result, Parsed):
            parsed.append({**common, **result.fields})
        if not isinstance(result, Parsed):
            rejects.append({**common, "reason": result.reason, "text": result.text})
    return pa.Table.from_pylist(parsed, pool_schema(config.task)), pa.Table.from_pylist(rejects, REJECTS_SCHEMA)


def pool_schema(task: Task) -> pa.Schema:
    """The columns of a pool: those of the task's examples, and where each comes from."""
    texts = [(name, pa.string()) for name in ("id", "label", *task.field_names)]
    return pa.schema([*texts, ("shard", pa.int32()), ("seed", pa.int64()), ("generator", pa.string())])


def stand_in(label: str, text: str, task: Task = NLI) -> dict[str, str]:
    """The texts of a rehearsal's example by field, of up to a dozen words: the last one repeats words of the others if and only
    if the label is the task's first, so that every kind of training set can be drawn.
    """
    words = re.findall("[A-Za-z]+", text)[:12] or ["nothing", "readable", "was", "written"]
    *others, last = task.field_names
    return dict.fromkeys(others, " ".join(words)) | {last: " ".join(words[:6]) if label == task.labels[0] else STAND_IN}


def encode_prompts(model: str, task: Task = NLI) -> dict[str, list[int]]:
    """Token ids of each label's prompt, encoded as the generator's training texts are; no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    prompts = {}
    for label in task.labels:
        ids = tokenizer(generator_prompt(label, task))["input_ids"]
        # In training the end-of-sequence token that some tokenizers add follows the end marker, not the
        # label.
        prompts[label] = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    return prompts


def prompts_of_shards(model: str, config: GenerationConfig) -> dict[str, list[int]]:
    """Token ids of the prompt of each shard that may be needed, by the shard's name, for a model that is not finetuned.

    Raises UserError for a prompt that leaves no room for a text, and as `encode_prompted` does.
    """
    from transformers import AutoTokenizer

    task, prompting = config.task, config.prompting
    assert prompting is not None
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    shots = Shots(prompting, task, read_examples(config.examples, task) if prompting.shots else None)
    shards = plan_shards(config.num_by_label, shard_size=config.shard_size, min_yield=config.min_yield, seed=config.seed)
    prompts = {
        shard.name: encode_prompted(tokenizer, shard.label, shots.of(shard), prompting, task, config.end_marker)
        for shard in shards
    }
    context = json.loads((Path(model) / "config.json").read_text()).get("max_position_embeddings")
    longest = max(map(len, prompts.values()))
    if context is not None and longest + LEAST_ROOM > context:
        raise UserError(
            f"shots={prompting.shots} make a prompt of {longest:,} tokens, and the model's context of {context:,} has to hold "
            "what it writes, too; give fewer shots, or a model of a longer context"
        )
    return prompts

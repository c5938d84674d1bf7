"""A chain of real stages that take a second each, in one process and without Ray: what the tests here break on purpose.

Sources, a base model of no pretraining, a pool, two training sets, a starting point, a finetuning with checkpoints, its
evaluation. The pool is written by a stand-in for the engines; its shards, their commits and the pool's end are real.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.data.template_corpus import TemplateCorpusConfig
from pipelines.data.training_set import TrainingSetConfig
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig
from pipelines.generate import pool
from pipelines.generate.config import GenerationConfig
from pipelines.generate.shards import Decision, Shard, ShardFolder, decide
from pipelines.generate.writer import tables
from pipelines.resources import Resources
from sweep.graph.records import NOT_CONTENT, RECORD_FILE, Store
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.run.trial import Order, Outcome, carry_out

HERE = Resources(in_process=True)
RECIPE = FinetuneConfig(
    method="full", learning_rate=1e-3, batch_size=16, epochs=1, dtype="float32", zero_stage=0, checkpoint_every=1
)


def make_steps() -> list[Step]:
    """The chain, in an order in which it can be built."""
    sources = Step("sources", "data", TemplateCorpusConfig(num_train=120, num_dev=12, num_test=12, num_probe_per_group=2))
    model = ScratchModelConfig(
        hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=32, vocabulary_size=600
    )
    base = Step("base_model", "base", model, {"sources": sources})
    generation = GenerationConfig(num_per_label=12, shard_size=8, exact=True, min_yield=0.3)
    # The base model stands for a finetuned generator.
    synthetic = Step("synthetic_pool", "pool", generation, {"generator": base})
    original = Step("training_set", "original", TrainingSetConfig("original", size=45, seed=0), {"source": sources})
    drawn = Step("training_set", "synthetic", TrainingSetConfig("synthetic", size=30, seed=0), {"source": synthetic})
    start = Step("starting_point", "start", UntrainedConfig(seed=0), {"base_model": base})
    inputs = {"training_set": original, "base_model": base, "starting_point": start}
    finetuned = Step("task_model", "model", TaskModelConfig(RECIPE, seed=0), inputs, resources=HERE)
    evaluation = EvaluationConfig(sets=("template_test",), dtype="float32")
    inputs = {"sources": sources, "base_model": base, "task_model": finetuned}
    evaluated = Step("evaluation", "model", evaluation, inputs, resources=HERE)
    return [sources, base, synthetic, original, drawn, start, finetuned, evaluated]


def write_shards(
    config: GenerationConfig, model: str, output: str, shards: Sequence[Shard], resources: Resources, request: str
) -> Iterator[dict[str, Any]]:
    """Stands for `run_engines`: texts that follow from a row's seed, three of four of which parse."""
    folder = ShardFolder(output)
    target = config.num_by_label
    for shard in shards:
        if decide(shard, folder.commits(), target=target[shard.label], min_yield=config.min_yield) is Decision.SKIP:
            continue
        texts = []
        for row in range(shard.count):
            draw = random.Random(shard.row_seed(row))
            premise, hypothesis = (f"The {draw.randrange(1000)} dogs ran ." for _ in range(2))
            ending = f" Hypothesis: {hypothesis} {config.end_marker} This is the end of the example."
            texts.append(f". Premise: {premise}" + (ending if draw.random() < 0.75 else ""))
        parsed, rejects = tables(shard, texts, config)
        commit = folder.commit(shard, request, parsed, rejects, 10 * shard.count)
        yield {
            "label": str(shard.label), "num_parsed": commit.num_parsed, "num_rejected": rejects.num_rows,
            "num_tokens": commit.num_tokens, "engine_start_s": 0.0, "since_ready_s": 1.0, "peak_gpu_memory_gib": 0.0,
        }  # fmt: skip


def warm_up() -> None:
    """Import what the stages import, so that children that are forked need not."""
    import deepspeed  # noqa: F401
    import ray.train.torch  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModel, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import pipelines.evaluate.evaluation
    import pipelines.finetune.alone
    import pipelines.finetune.driver
    import pipelines.finetune.together  # noqa: F401

    # Threads do not survive a fork.
    torch.set_num_threads(1)
    pool.run_engines = write_shards


def build(step: Step, store: Store) -> Outcome:
    """As a trial does."""
    outcome = carry_out(Order(step, REGISTRY[step.stage], store.uri))
    return outcome


def build_all(steps: Sequence[Step], store: Store, rounds: int = 4) -> list[str]:
    """Build until everything is there, as runs do: inputs that are gone are built again. The failures' lines, in order."""
    errors: list[str] = []
    for _ in range(rounds):
        outcomes = []
        for step in steps:
            outcomes.append(build(step, store))
            if outcomes[-1].record is None:
                errors.append(f"{step.name}: {outcomes[-1].error}")
                break
        if len(outcomes) == len(steps) and all(outcome.record for outcome in outcomes):
            return errors
    return [*errors, "given up"]


def contents(root: Path) -> dict[str, str]:
    """What a store holds: path and hash of each file, and what a record says apart from times, machine and versions.

    Hidden files and logs are left out, and what was set aside.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if not path.is_file() or any(part.startswith(".") for part in parts) or parts[0] in ("logs", "set-aside"):
            continue
        if path.name in NOT_CONTENT:
            continue
        data = path.read_bytes()
        if path.name == RECORD_FILE:
            data = json.dumps(_facts(json.loads(data)), sort_keys=True).encode()
        found[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
    return found


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    named = ("fingerprint", "payload", "inputs", "coordinates", "num_rows", "marks", "input_contents")
    facts = {name: record[name] for name in named}
    return {**facts, "files": {path: file for path, file in record["files"].items() if path not in NOT_CONTENT}}


def left_over(root: Path) -> list[str]:
    """Hidden files that nobody needs once all is built."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name not in (".lock", ".lease")]
    return [str(path.relative_to(root)) for path in paths if any(part.startswith(".") for part in path.relative_to(root).parts)]

"""The stages: their versions, and how each calls its function in `pipelines`.

A version is part of every fingerprint of its stage. Raise it when a change of code changes what the stage
writes for the same config and inputs.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.data.protocol import Sources
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import absolute, join
from pipelines.workers.lane import Lane, Times
from sweep.graph.identity import SHORT


@dataclass(frozen=True)
class Job:
    """One stage call: config, the folder or URI of each input, and the one to write.

    The stage may keep resumable state in `output`, in names that begin with a dot; those are no part of the
    artifact.
    """

    config: Any
    inputs: Mapping[str, str]
    output: str
    resources: Resources = field(default_factory=Resources)
    report: Report = no_report
    options: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of the inputs
    expected: int = 1
    """About how many jobs its workers take on in all."""
    starts_with: Mapping[str, str] = field(default_factory=dict)
    """The folders of `Stage.starts_with`: what is there of a job for which workers are started ahead."""


@dataclass(frozen=True)
class Workers:
    """Workers of a stage that take on jobs until they are closed. `of` makes the lane's own job of one."""

    lane: Lane
    of: Callable[[Job], Any]

    def run(self, job: Job) -> tuple[Mapping[str, Any], Times]:
        """The metrics of a job, and when its workers did it; from any thread. Raises what it failed with (`Lane.result`)."""
        metrics, times = self.lane.run(self.of(job))
        return metrics, times

    def close(self) -> None:
        """Wait for all jobs, and end the workers."""
        self.lane.close()


@dataclass(frozen=True)
class Stage:
    """`run` writes the artifact and returns its metrics, JSON values.

    `open` starts workers that do jobs like the given one, one after another, or at once where `is_together` says so of a
    config. `in_common` says, of a config and its inputs' fingerprints, what jobs agree in that the same workers can do; None: a
    step stays alone. `starts_with` says, of a step, which others have to be built before workers can be started ahead of it,
    and None if they cannot be. `last_commit` is another value, of an unfinished output, whenever a later call would go on from
    a later place. `prepare` imports what the process that calls `run` needs, where that takes long.
    """

    version: int
    run: Callable[[Job], Mapping[str, Any]]
    open: Callable[[Job], Workers] | None = None
    in_common: Callable[[Any, Mapping[str, str]], Any] = lambda config, inputs: None
    is_together: Callable[[Any], bool] = lambda config: False
    starts_with: Callable[[Any], Mapping[str, Any] | None] | None = None
    last_commit: Callable[[str], Any] = lambda output: None
    prepare: Callable[[], None] | None = None


def _sources(job: Job) -> Mapping[str, Any]:
    sources: Sources = job.config
    return sources.prepare(job.output, folder=job.options.get("folder", ""))


def _base_model(job: Job) -> Mapping[str, Any]:
    from pipelines.finetune.base_model import prepare_base_model

    return prepare_base_model(
        job.config,
        job.output,
        sources=job.inputs.get("sources"),
        resources=job.resources,
        report=job.report,
    )


def _import_for_models() -> None:
    from pipelines.finetune.base_model import import_libraries

    import_libraries()


def _generator(job: Job) -> Mapping[str, Any]:
    from pipelines.finetune.generator import finetune_generator

    return finetune_generator(
        job.config,
        _generator_texts(job),
        job.inputs["base_model"],
        job.output,
        resources=job.resources,
        report=job.report,
    )


def _generator_texts(job: Job) -> list[str]:
    # A later generation has earlier ones' pools, with the original data or without it.
    own = [join(job.inputs["sources"], "train.parquet")] if "sources" in job.inputs else []
    pools = sorted((name for name in job.inputs if re.fullmatch(r"pool\d+", name)), key=lambda name: int(name[4:]))
    return [*own, *(join(job.inputs[name], "pool") for name in pools)]


def _generator_worker(first: Job) -> Workers:
    from pipelines.finetune.driver import finetuning_lane
    from pipelines.finetune.generator import generator_job
    from pipelines.finetune.job import Member

    def member(job: Job) -> Member:
        finetuning = generator_job(job.config, _generator_texts(job), job.inputs["base_model"])
        return Member(finetuning, absolute(job.output), job.report)

    return Workers(finetuning_lane(first.output, first.resources, expected=1), member)


def _synthetic_pool(job: Job) -> Mapping[str, Any]:
    from pipelines.data.own_pool import OwnPoolConfig, prepare_own_pool
    from pipelines.generate.pool import generate

    if isinstance(job.config, OwnPoolConfig):
        return prepare_own_pool(job.config, job.output)
    return generate(_generation(job), job.inputs.get("generator", ""), job.output, resources=job.resources, report=job.report)


def _generation(job: Job) -> Any:
    endpoint = job.config.endpoint
    generator_id = job.fingerprints["generator"][:SHORT] if endpoint is None else endpoint.model
    config = replace(job.config, generator_id=generator_id)
    return replace(config, examples=join(job.inputs["sources"], "train.parquet")) if "sources" in job.inputs else config


def _engines(first: Job) -> Workers:
    from pipelines.generate.pool import PoolJob, pool_lane

    base_model = first.starts_with["base_model"]
    lane = pool_lane(_generation(first), base_model, first.output, first.resources)
    return Workers(lane, lambda job: PoolJob.of(_generation(job), job.inputs["generator"], job.output, job.report))


def _base_of_generator(step: Any) -> Mapping[str, Any] | None:
    """The model that a pool's generator is finetuned from, whose shape it has; None if the pool has none of its own."""
    generator = step.inputs.get("generator")
    base_model = generator and generator.inputs.get("base_model")
    return {"base_model": base_model} if base_model else None


def _num_shards(output: str) -> int | None:
    from pipelines.generate.shards import ShardFolder

    return len(ShardFolder(output).commits()) or None


def _training_set(job: Job) -> Mapping[str, Any]:
    from pipelines.data.training_set import JOINT, draw_training_set, join_sets

    if job.config.kind == JOINT:
        starting_set, own_set = (join(job.inputs[name], "examples.parquet") for name in ("starting_set", "own_set"))
        return join_sets(job.config, starting_set, own_set, job.output)
    is_mix = job.config.mix is not None
    synthetic = not is_mix and job.config.kind not in ("starting", "original")
    source, pool = job.inputs.get("source"), job.inputs["pool"] if is_mix else None
    exclude, judgement, reference = (job.inputs.get(name) for name in ("starting_set", "judgement", "reference"))
    return draw_training_set(
        job.config,
        join(source, "pool" if synthetic else "train.parquet") if source else "",
        job.output,
        pool=join(pool, "pool") if pool else None,
        exclude=join(exclude, "examples.parquet") if exclude else None,
        judgements=join(judgement, "judgements.parquet") if judgement else None,
        reference=join(reference, "train.parquet") if reference else None,
    )


def _task_model(job: Job) -> Mapping[str, Any]:
    from pipelines.finetune.task_model import UntrainedConfig, finetune_task_model, initial_task_model

    if isinstance(job.config, UntrainedConfig):
        return initial_task_model(job.config, job.inputs["base_model"], job.output)
    return finetune_task_model(
        job.config,
        join(job.inputs["training_set"], "examples.parquet"),
        job.inputs["base_model"],
        job.inputs["starting_point"],
        job.output,
        trunk=job.inputs.get("trunk"),
        resources=job.resources,
        report=job.report,
    )


def _finetuning_workers(first: Job) -> Workers:
    from pipelines.finetune.driver import check_member, finetuning_lane
    from pipelines.finetune.job import Member
    from pipelines.finetune.task_model import finetuning_job

    def member(job: Job) -> Member:
        finetuning = finetuning_job(
            job.config,
            join(job.inputs["training_set"], "examples.parquet"),
            job.inputs["base_model"],
            job.inputs["starting_point"],
            job.inputs.get("trunk"),
        )
        made = Member(finetuning, absolute(job.output), job.report)
        check_member(made, job.resources)
        return made

    return Workers(finetuning_lane(first.output, first.resources, expected=first.expected), member)


def _is_together(config: Any) -> bool:
    return bool(config.finetune.method == "lora")


def _checkpoint(output: str) -> int | None:
    from pipelines.finetune.checkpoints import last_commit

    return last_commit(output)


def _same_base(config: Any, inputs: Mapping[str, str]) -> Any:
    from pipelines.finetune.task_model import UntrainedConfig

    return None if isinstance(config, UntrainedConfig) else inputs["base_model"]


def _nothing_if_trained(step: Any) -> Mapping[str, Any] | None:
    from pipelines.finetune.task_model import UntrainedConfig

    return None if isinstance(step.config, UntrainedConfig) else {}


def _evaluation(job: Job) -> Mapping[str, Any]:
    from pipelines.evaluate.evaluation import evaluate

    return evaluate(
        job.config,
        job.inputs["sources"],
        job.inputs["base_model"],
        job.inputs["task_model"],
        job.output,
        resources=job.resources,
        report=job.report,
    )


def _evaluating_workers(first: Job) -> Workers:
    from pipelines.evaluate.evaluation import Evaluee, evaluation_lane

    lane = evaluation_lane(
        first.config, first.inputs["sources"], first.inputs["base_model"], first.resources, expected=first.expected
    )
    return Workers(lane, lambda job: Evaluee(job.inputs["task_model"], job.output, job.report))


def _same_sets_and_base(config: Any, inputs: Mapping[str, str]) -> Any:
    return config, inputs["sources"], inputs["base_model"]


def _judgement(job: Job) -> Mapping[str, Any]:
    """`judge{n}` is a task model, `judge{n}_set{m}` what it was trained on; without one, the base model judges."""
    from pipelines.evaluate.judge import Judge, judge

    names = sorted(name for name in job.inputs if re.fullmatch(r"judge\d+", name))
    sets = {name: sorted(other for other in job.inputs if other.startswith(f"{name}_set")) for name in names}
    judges = [
        Judge(job.inputs[name], tuple(join(job.inputs[other], "examples.parquet") for other in sets[name])) for name in names
    ]
    return judge(
        job.config,
        join(job.inputs["pool"], "pool"),
        job.inputs["sources"],
        job.inputs["base_model"],
        judges or [Judge(None)],
        job.output,
        resources=job.resources,
        report=job.report,
    )


REGISTRY: dict[str, Stage] = {
    "sources": Stage(1, _sources),
    "base_model": Stage(1, _base_model, prepare=_import_for_models),
    "starting_set": Stage(1, _training_set),
    "starting_point": Stage(2, _task_model, _finetuning_workers, _same_base, _is_together, _nothing_if_trained, _checkpoint),
    "generator": Stage(3, _generator, _generator_worker, starts_with=lambda step: {}, last_commit=_checkpoint),
    "synthetic_pool": Stage(1, _synthetic_pool, _engines, starts_with=_base_of_generator, last_commit=_num_shards),
    "judgement": Stage(1, _judgement),
    "training_set": Stage(1, _training_set),
    "task_model": Stage(2, _task_model, _finetuning_workers, _same_base, _is_together, _nothing_if_trained, _checkpoint),
    "evaluation": Stage(2, _evaluation, _evaluating_workers, _same_sets_and_base),
}
"""In the order of the pipeline, which pages follow."""

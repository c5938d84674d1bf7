"""The synthetic pool: engines write examples until enough of them parse, and the shards are cut to what was asked for.

    generate(GenerationConfig(num_per_label=20_000), generator="…/generator", output="…/pool",
             resources=Resources(num_workers=4, gpus_per_worker=1))
    lane = pool_lane(config, base_model="…/base", output="…/pool", resources=…)    # while the generator is being trained
    lane.run(PoolJob.of(config, "…/generator", "…/pool", no_report))

Which shards are needed is decided from the shards committed so far (`shards.py`), so nothing is lost or done
twice when a worker, a node or the driver dies. `writer.py` has the workers.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from pipelines.errors import NoticeError, UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.endpoint import dollars_of, run_endpoint, spent_on
from pipelines.generate.shards import REJECTS, SHARDS, Commits, Shard, ShardFolder, is_hopeless, kept_shards, plan_shards
from pipelines.generate.writer import run_engines
from pipelines.identity import identity
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import absolute, is_local, join, local_path
from pipelines.workers.lane import Intake, Lane
from pipelines.workers.notice import run_notice_given

MODEL = "model"
YIELD_FILE = "yield.json"


def generate(
    config: GenerationConfig, generator: str, output: str, *, resources: Resources | None = None, report: Report = no_report
) -> dict[str, Any]:
    """Sample examples from `generator` (an artifact folder with `model/`, or a model's own folder) until each label has enough.

    Writes below `output` (a folder that all workers share, or a URI): `pool/*.parquet` (id, label, the
    task's fields, shard, seed, generator), `rejects/*.parquet` (id, label, shard, seed, generator, reason,
    text), `shards/*.json` (a shard's commit) and, last, `yield.json`. The pool is, of each label, the shards
    0..k with k the first at which `num_per_label` is reached. With `exact` it ends at that number, and the rest
    of shard k is in `surplus/*.parquet`, with the pool's columns. A call on an output of an interrupted one
    generates only what is missing or damaged. With `config.prompting` the generator is not finetuned, and
    `prompts/*.txt` are the first prompts of each label; with `config.endpoint` there is no generator (""), and `spent/*.json`
    and the metrics have the tokens that were paid for, and `dollars`.

    Runs on the Ray cluster that `ray.init` connected to. `report` gets counts and throughput as shards are
    committed; its step is the number of committed shards. Returns counts (`parsed`, of which `surplus` are not
    in the pool, `rejected/<reason>`, `yield`, …) and, if this call generated anything, its times (`engine_start_s`,
    `generate_s`) and rates (`examples_per_s`, `generated_tokens_per_s`, over what it generated, engine start not counted).

    Raises `UserError` for a missing generator, an output of another request, an engine over more than one
    GPU, a missing vLLM, and for a yield under `min_yield`; what was generated stays and is used by the next
    call. Raises `NoticeError` when its run is to end: shards under way are finished, and no other is begun.
    """
    resources = resources or Resources()
    model = ""
    if config.endpoint is None:
        _check_request(resources)
        model = _model_of(generator)
    return _generate(config, model, absolute(output), resources, report)


@dataclass(frozen=True)
class PoolJob:
    """What a lane of engines has to be told before they can write: the address of their model's weights."""

    model: str
    output: str
    report: Report = no_report

    @classmethod
    def of(cls, config: GenerationConfig, generator: str, output: str, report: Report) -> "PoolJob":
        """Raises UserError as `generate` does."""
        folder = ShardFolder(absolute(output))
        _check_output(folder, _request_hash(config))
        folder.drop_damaged()
        return cls(_model_of(generator), folder.output, report)


def pool_lane(config: GenerationConfig, base_model: str, output: str, resources: Resources) -> Lane:
    """A lane for one pool, whose engines start before their generator is there; `generate` otherwise.

    Its job is a `PoolJob` of the same output. Until it comes, engines have random weights of the shape of `base_model`, which
    the generator is finetuned from, and write nothing.
    """
    _check_request(resources)
    serve = partial(_serve, config, _model_of(base_model), absolute(output), resources)
    return Lane(serve, lambda job: str(job.output), in_process=False)


def _serve(config: GenerationConfig, shape: str, output: str, resources: Resources, desk: Any) -> None:
    folder = ShardFolder(output)
    missing = _planned_and_missing(config, folder)
    # All may be there of a pool whose end was broken off.
    rows = run_engines(config, shape, output, missing, resources, _request_hash(config), desk) if missing else iter(())
    # Engines wait for the job, which has begun when the first shard is there, or nothing is to be written.
    first = list(itertools.islice(rows, 1))
    intake = Intake(desk)
    if intake.wait():
        number, job = intake.begin()
        intake.end(number, _generate(config, job.model, output, resources, job.report, itertools.chain(first, rows)))


def _planned_and_missing(config: GenerationConfig, folder: ShardFolder) -> list[Shard]:
    planned = plan_shards(config.num_by_label, shard_size=config.shard_size, min_yield=config.min_yield, seed=config.seed)
    return _missing(planned, folder, config.num_by_label, config.min_yield)


def _generate(
    config: GenerationConfig,
    model: str,
    output: str,
    resources: Resources,
    report: Report,
    under_way: Iterator[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """`generate`, of which engines may be `under_way` that give the rows of all shards that are missing."""
    started = time.perf_counter()
    folder = ShardFolder(output)
    request = _request_hash(config)
    if under_way is None:
        _check_output(folder, request)
        folder.drop_damaged()
    paid = dollars_of(config, spent_on(folder)) if config.endpoint is not None else None
    progress = _Progress(report, config.num_by_label, folder.commits(), paid)
    missing = _planned_and_missing(config, folder)
    while missing or under_way is not None:
        num_before = len(folder.commits())
        if under_way is not None:
            # Their first shard may be there.
            num_before, rows, under_way = -1, under_way, None
        elif config.endpoint is not None:
            rows = run_endpoint(config, folder.output, missing, request)
        else:
            rows = run_engines(config, model, folder.output, missing, resources, request)
        for row in rows:
            progress.add(row)
        # A second pass only if a worker skipped a shard on the strength of a commit that is gone since.
        missing = _planned_and_missing(config, folder)
        if missing and run_notice_given():
            raise NoticeError(f"a notice stopped it with {len(folder.commits())} shards committed")
        if missing and len(folder.commits()) == num_before:
            raise RuntimeError(f"{folder.output}: engines ended without committing any of {len(missing)} missing shards")

    if damaged := folder.drop_damaged():
        raise RuntimeError(f"{folder.output}: {', '.join(damaged)} changed after being committed; run again to repair")
    return _finish(config, folder, progress, started)


def _check_request(resources: Resources) -> None:
    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed; install blindsweep's extra `cpu` or `cuda`, whichever fits this machine")
    if resources.gpus_per_worker > 1:
        raise UserError(
            f"gpus_per_worker={resources.gpus_per_worker}: an engine runs on one GPU or a part of one; "
            "raise num_workers instead"
        )


def _model_of(generator: str) -> str:
    """The address of a generator's model, absolute where it is local."""
    model = join(generator, MODEL)
    if not is_local(generator):
        return model
    for place in (generator, model):
        if (local_path(place) / "config.json").exists():
            return absolute(place)
    raise UserError(f"{generator}: has neither {MODEL}/config.json nor config.json; give a generator's folder")


def _request_hash(config: GenerationConfig) -> str:
    """The hash of all that a shard's content follows from.

    `num_per_label` is left out: a larger pool begins with the same shards, unless the last one is cut.
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


def _missing(planned: list[Shard], folder: ShardFolder, num_per_label: Mapping[str, int], min_yield: float) -> list[Shard]:
    """Planned shards that are not committed, of the labels that still lack examples and may yet get them."""
    commits = folder.commits()
    lacking = set()
    for label, kept in kept_shards(commits, num_per_label).items():
        of_label = [commit for commit in commits.values() if commit.label == label]
        if sum(commit.num_parsed for commit in kept) < num_per_label[label] and not is_hopeless(of_label, min_yield):
            lacking.add(label)
    return [shard for shard in planned if shard.label in lacking and (shard.label, shard.index) not in commits]


class _Progress:
    """Counts of what this call generates, reported as each shard is committed; with an endpoint also the dollars for the
    whole pool, of which `paid` were for what earlier calls committed.
    """

    def __init__(self, report: Report, wanted: Mapping[str, int], commits: Commits, paid: float | None) -> None:
        self._report = report
        self._wanted = wanted
        self._num_committed = len(commits)
        self._paid = paid
        self._before = Counter[str]()
        for commit in commits.values():
            self._before[commit.label] += commit.num_parsed
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
        there = sum(min(self._before[label] + self.parsed[label], num) for label, num in self._wanted.items())
        counts["fraction_done"] = there / sum(self._wanted.values())
        if self._paid is not None:
            self._paid += row["dollars"]
            counts["dollars"] = self._paid
        self._report({"parsed": self.num_parsed, "rejected": self.num_rejected, **counts, **self.rates()}, self._num_committed)

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
    num_per_label = config.num_by_label
    commits = folder.commits()
    kept = kept_shards(commits, num_per_label)
    parsed = {label: sum(commit.num_parsed for commit in kept[label]) for label in num_per_label}
    if any(parsed[label] < num for label, num in num_per_label.items()):
        raise UserError(_low_yield_message(folder, num_per_label, config.min_yield))
    pool = [commit for of_label in kept.values() for commit in of_label]
    # More engines than the last shards needed: what lies beyond the pool's end would make it depend on who
    # was fast.
    surplus_shards = [commit.shard for commit in commits.values() if commit not in pool]
    for shard in surplus_shards:
        folder.withdraw(shard)
    surplus = {label: parsed[label] - num if config.exact else 0 for label, num in num_per_label.items()}
    for label, num in surplus.items():
        folder.set_aside(kept[label][-1], num)
    folder.remove_uncommitted()

    spent: dict[str, float] = {}
    if config.endpoint is not None:
        used = spent_on(folder)
        spent = {**asdict(used), "dollars": dollars_of(config, used)}
    rejected: Counter[str] = sum((Counter(commit.rejected) for commit in pool), Counter())
    generated = {label: sum(commit.count for commit in of_label) for label, of_label in kept.items()}
    summary = {
        "parsed": parsed,
        "surplus": surplus,
        "generated": generated,
        "rejected": dict(rejected.most_common()),
        **({"prompting": identity(config.prompting)} if config.prompting else {}),
        "num_shards": {label: len(of_label) for label, of_label in kept.items()},
        "num_surplus_shards": len(surplus_shards),
    }
    folder.write(YIELD_FILE, json.dumps(summary, indent=1).encode())
    return {
        "parsed": sum(parsed.values()),
        **{f"parsed/{label}": num for label, num in parsed.items()},
        "surplus": sum(surplus.values()),
        "rejected": rejected.total(),
        **{f"rejected/{reason}": num for reason, num in rejected.most_common()},
        "yield": 1 - rejected.total() / sum(generated.values()),
        # Not from the examples: stand-ins are none of them parsed.
        **{
            f"yield/{label}": 1 - sum(sum(commit.rejected.values()) for commit in of_label) / generated[label]
            for label, of_label in kept.items()
        },
        **({"stand_ins": sum(parsed.values())} if config.stand_ins else {}),
        "num_shards": len(pool),
        "num_surplus_shards": len(surplus_shards),
        "generated_tokens": sum(commit.num_tokens for commit in pool),
        **spent,
        **progress.times(),
        "total_s": time.perf_counter() - started,
    }


def _low_yield_message(folder: ShardFolder, num_per_label: Mapping[str, int], min_yield: float) -> str:
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

"""The plans of two studies of small models, beside what their runs took: on one H200 of 16 CPU cores, with NVIDIA's MPS.

A run's GPU-hours are its artifacts' time, by their records, times the part of the GPU that they held: what the report says.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.data.challenge_sets import unknown_challenge_files
from pipelines.data.sources import FILES, NLISourcesConfig
from pipelines.finetune.base_model import PretrainedModelConfig
from pipelines.identity import UNKNOWN, FileHash
from sweep.plan.costs import estimate_costs, total
from sweep.plan.plan import PlanCosts, schedule_costs
from sweep.plan.throughputs import read_table
from sweep.study import experiments
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.real_study import study_qwen, study_smollm

RECORDS = Path(__file__).parents[3] / "docs/studies/data/study_qwen/records.parquet"
SMOLLM = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1_536,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}
QWEN = {
    "hidden_size": 1_536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8_960,
    "vocab_size": 151_936,
    "model_type": "qwen2",
}
"""With an output matrix of its own, as its GGUF file has."""
COUNTS = {
    "train": 79_429,
    "dev": 750,
    "mnli_matched": 9_815,
    "mnli_mismatched": 9_832,
    "hans": 30_000,
    "mnli_hard": 19_647,
    "med": 5_382,
    "scone": 7_212,
    "neg_nli": 1_500,
}
"""Of the two data sets' files as the runs had them: MultiNLI's training rows are a part of it."""
SECONDS = 0.15
GPU_HOURS, GPU_HOURS_OF_ANOTHER_RUN = 1.3, 1.6
"""A plan is to be as near to a run: in all, as a part of the run's time, and for each stage, as a factor; the last where the
rates are from another run."""


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def sources(data: str, challenges: tuple[str, ...] = ()) -> NLISourcesConfig:
        unknown = tuple(FileHash(name, UNKNOWN) for name in FILES)
        return NLISourcesConfig(unknown, challenges=tuple(map(unknown_challenge_files, challenges)))

    weights = (FileHash("model.safetensors", UNKNOWN),)
    monkeypatch.setattr(experiments, "nli_sources_config", sources)
    monkeypatch.setattr(
        experiments,
        "pretrained_model_config",
        lambda model, **_: PretrainedModelConfig(weights, path=model, model_type="llama"),
    )


@dataclass(frozen=True)
class Run:
    """What a run took: seconds until its last artifact was there, and the seconds of the artifacts of each stage."""

    seconds: float
    of_stages: Mapping[str, float]


SMOLLM_RUN = Run(
    595.2,
    {"generator": 805.7, "synthetic_pool": 1_135.2, "starting_point": 437.6, "task_model": 383.4, "evaluation": 732.3},
)
"""Ten seeds at once, 303 artifacts, 1 December 2026."""


def qwen_runs() -> list[Run]:
    """Six seeds, five at once, and six more with a judge, three at once, 1 December 2026: what is kept of their records."""
    records = [json.loads(text) for text in pq.read_table(RECORDS, columns=["record"])["record"].to_pylist()]
    by_run: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_run.setdefault(record["timeline"]["lane"].rpartition("-")[0], []).append(record)
    # What the second built of the first's sources, model and untrained start is the first's.
    assert [len(by_run[began]) for began in sorted(by_run)] == [183, 189]
    return [_run(by_run[began]) for began in sorted(by_run)]


def _run(records: Sequence[Mapping[str, Any]]) -> Run:
    of_stages: dict[str, float] = {}
    for record in records:
        of_stages[record["stage"]] = of_stages.get(record["stage"], 0.0) + record["durations"]["total_s"]
    times = [record["timeline"] for record in records]
    began = min(min(one["ready"], one["opened"]) for one in times)
    return Run(max(one["ended"] for one in times) - began, of_stages)


def planned(study: Experiment, settings: Mapping[str, Any], seeds_at_once: int) -> PlanCosts:
    table = read_table()
    estimate = estimate_costs(build_grid(study), table, table.gpu("h200"), settings=settings, num_examples=COUNTS)
    missing = frozenset(cost.step.fingerprint for cost in estimate.steps)
    return schedule_costs(estimate, missing, 1, seeds_at_once=seeds_at_once)


@pytest.mark.parametrize("name", ["study_smollm", "study_qwen", "study_qwen with a judge"])
def test_the_plan_of_a_study_is_near_to_what_its_run_took(name: str) -> None:
    if name == "study_smollm":
        study, run = study_smollm(), SMOLLM_RUN
        costs = planned(study, SMOLLM, 10)
    elif name == "study_qwen":
        study, run = study_qwen(seeds=(0, 1, 2, 3, 4, 5)), qwen_runs()[0]
        # A pool had four engines then.
        engines = replace(study.resources["synthetic_pool"], num_workers=4)
        study = replace(study, resources={**study.resources, "synthetic_pool": engines})
        costs = planned(study, QWEN, 5)
    else:
        study, run = study_qwen(seeds=(6, 7, 8, 9, 10, 11), judge=20_000), qwen_runs()[1]
        costs = planned(study, QWEN, 3)
    near = GPU_HOURS_OF_ANOTHER_RUN if study.judge else GPU_HOURS
    assert costs.schedule.seconds == pytest.approx(run.seconds, rel=SECONDS)
    for stage, resources in study.resources.items():
        hours = total(cost for cost in costs.missing_steps if cost.step.stage == stage).gpu_hours
        spent = run.of_stages[stage] * resources.total_gpus / 3600
        assert 1 / near < hours / spent < near, f"{stage}: {hours:.3f} GPU-hours planned, {spent:.3f} spent"


def test_nothing_of_these_sizes_is_reckoned_from_another() -> None:
    for costs in (planned(study_smollm(), SMOLLM, 10), planned(study_qwen(), QWEN, 5)):
        rates = [cost.rate for cost in costs.missing_steps if cost.rate]
        assert {row.parameters for rate in rates for row in rate.rows} == {rates[0].rows[0].parameters}
        assert not costs.unmeasured

"""A study with mixes, joint training, a head of the language model and two generations, for real, to its verdicts."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipelines.data.kinds import Mix
from sweep.graph.records import Store, Study, StudyStep

HALF = Mix(original=0.5, synthetic=0.5).name
STUDY = """\
from dataclasses import replace

from sweep import Added, Experiment
from tests.sweep.run.tiny_study import writing


def tiny(seeds: tuple[int, ...] = (0, 1)) -> Experiment:
    kinds = ("original", "mixed_50", Added(synthetic=0.5), "synthetic")
    study = writing(kinds=kinds, seeds=seeds, starting_sizes=(120,))
    return replace(
        study,
        task_model=replace(study.task_model, head_frozen_share=1.0),
        training="joint",
        head="lm",
        generations=2,
        accumulate=True,
    )
"""


def table(store: Store, step: StudyStep, path: str = "examples.parquet") -> list[dict[str, str]]:
    return list(pq.read_table(Path(store.folder(step.id)) / path).to_pylist())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mixes_joint_training_and_generations_are_run_to_their_verdicts(blindsweep: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(STUDY)
    told = blindsweep("run", "study.py", "--max-cpus", "2")
    # Sources, base, two generators and pools; of each seed two starting points and a set, five kinds with a set, a joint one, a
    # model and its evaluation, and the starting point's.
    assert "tiny: 54 artifacts, 0 were there, 54 built" in told

    store = Store("store")
    steps = {f"{step.stage}/{step.slug}": step for step in Study.load(store, "tiny").steps}
    metrics = {name: step.record.metrics for name, step in steps.items() if step.record}
    assert metrics.keys() == steps.keys()
    pool = {row["id"] for row in table(store, steps["synthetic_pool/pool"], "pool")}
    # The second generator has read the original data and the first pool.
    assert metrics["generator/generator"]["num_examples"] == 960
    assert metrics["generator/generator-generation2"]["num_examples"] == 960 + len(pool) >= 960 + 60
    mixed = table(store, steps[f"training_set/{HALF}-60-seed1"])
    pure = {row["id"] for row in table(store, steps["training_set/original-60-seed1"])}
    of_part = {part: {row["id"] for row in mixed if row["part"] == part} for part in ("original", "synthetic")}
    assert of_part["original"] < pure and of_part["synthetic"] < pool and {len(ids) for ids in of_part.values()} == {30}
    joint = table(store, steps[f"training_set/start120-joint-{HALF}-60-seed1"])
    own = {row["id"].removeprefix("own/") for row in joint if row["part"] == "own"}
    assert len(joint) == 180 and own == {row["id"] for row in mixed}
    assert metrics[f"task_model/start120-joint-{HALF}-60-seed1"]["num_examples"] == 180
    assert metrics["task_model/start120-joint-added_synthetic0.5-60-seed1"]["num_examples"] == 120 + 90
    heads = [
        load_file(Path(store.folder(step.id)) / "head.safetensors")["weight"]
        for name, step in steps.items()
        if name.startswith(("starting_point/", "task_model/"))
    ]
    # Never trained, and no seed's: what the language model's rows of the labels are.
    assert heads[0].abs().max() > 0 and all(torch.equal(head, heads[0]) for head in heads[1:])

    claims = {claim["name"]: claim for claim in json.loads(blindsweep("verdicts", "tiny", "--json"))["claims"]}
    for name in (
        "mix_original0_5_synthetic0_5_is_between", "added_synthetic0_5_reinforces", "blindspot_grows_over_generations",
        "general_falls_over_generations",
    ):  # fmt: skip
        assert claims[name]["settings"] and not claims[name]["primary"], claims[name]
    assert "report.html" in blindsweep("report", "tiny")
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "50% original, 50% synthetic" in page and "Synthetic, generation 2" in page
    cell = "start120-joint-synthetic_generation2-60-seed0"
    origin = json.loads(blindsweep("explain", "tiny", "template_test/accuracy", "--cell", cell, "--json"))[0]
    assert origin["coordinates"]["generation"] == 2
    assert {"pool", "pool-generation2"} <= {source["slug"] for source in origin["lineage"]}
    assert "everything is built" in blindsweep("plan", "study.py")

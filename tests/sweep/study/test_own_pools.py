"""Pools of one's own in a study: the grid, the plan, what is refused before anything is built."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.data.kinds import Added
from pipelines.data.table_sources import Table
from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.graph.records import Store
from sweep.plan.plan import plan_study
from sweep.plan.rehearsal import rehearsal
from sweep.plan.throughputs import read_table
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.inputs import missing_inputs, with_inputs


def write_pool(path: Path, num_per_label: int, name: str = "", overlap: bool = True) -> str:
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        f"{name}premise {i},{'premise' if overlap and label == labels[0] else 'hypothesis'} {i},{label}\n"
        for i in range(num_per_label)
        for label in labels
    ]
    path.write_text("premise,hypothesis,label\n" + "".join(rows))
    return str(path)


@pytest.fixture
def with_pool(experiment: Experiment, tmp_path: Path) -> Callable[..., Experiment]:
    def make(*pools: str | Table, **changes: object) -> Experiment:
        return replace(experiment, generator=None, generation=None, synthetic=pools, generators=len(pools), **changes)

    return make


def plan_of(experiment: Experiment, tmp_path: Path) -> None:
    table = read_table()
    plan_study(experiment, Store(tmp_path / "store"), table, lambda _: table.gpu("h100"), None)


def test_neither_generator_nor_generation_is_a_step(with_pool: Callable[..., Experiment], tmp_path: Path) -> None:
    study = with_pool(
        write_pool(tmp_path / "mine.csv", 20), resources={"synthetic_pool": Resources(num_workers=2, gpus_per_worker=1)}
    )
    steps = build_grid(study)
    stages = Counter(step.stage for step in steps)
    assert stages["generator"] == 0 and stages["synthetic_pool"] == 1
    (pool,) = [step for step in steps if step.stage == "synthetic_pool"]
    assert not pool.resources.total_gpus, "a file is read"
    assert not pool.inputs and pool.payload["config"]["type"] == "OwnPoolConfig"
    drawn = [step for step in steps if step.stage == "training_set" and step.coordinates["kind"] != "original"]
    assert drawn and all(step.inputs["source"] is pool for step in drawn)
    assert missing_inputs(study) == ()
    plan_of(study, tmp_path)


def test_one_file_may_be_given_without_a_tuple_and_each_generator_has_its_own(
    with_pool: Callable[..., Experiment], tmp_path: Path
) -> None:
    one, two = write_pool(tmp_path / "one.csv", 20, "a "), write_pool(tmp_path / "two.csv", 20, "b ")
    alone = replace(with_pool(one), synthetic=one)
    assert build_grid(alone)[2].fingerprint == build_grid(with_pool(one))[2].fingerprint
    study = with_pool(one, Table(two), seeds=(0, 1))
    of_seeds = {
        step.coordinates["seed"]: step.inputs["source"].config.name
        for step in build_grid(study)
        if step.stage == "training_set" and step.coordinates["kind"] == "synthetic"
    }
    assert of_seeds == {0: "one.csv", 1: "two.csv"}
    with pytest.raises(UserError, match="synthetic names 2 pools and generators=1; give one file for each generator"):
        replace(study, generators=1)
    with pytest.raises(UserError, match="has the same content twice"):
        with_pool(one, one, seeds=(0, 1))


def test_a_generator_beside_a_pool_and_neither_are_refused(
    experiment: Experiment, with_pool: Callable[..., Experiment], tmp_path: Path
) -> None:
    path = write_pool(tmp_path / "mine.csv", 20)
    with pytest.raises(UserError, match="takes the place of generator and generation; leave these out, or synthetic"):
        replace(experiment, synthetic=path)
    with pytest.raises(UserError, match=r"generator=None, and kinds=.* need a pool"):
        replace(experiment, generator=None)
    assert not replace(experiment, generator=None, generation=None, kinds=("original",)).has_pool
    with pytest.raises(UserError, match=r"is a pool, and kinds=\('original',\) take nothing from one"):
        replace(with_pool(path), kinds=("original",))
    with pytest.raises(UserError, match="test_set='mine' on a pool, which tests nothing"):
        with_pool(Table(path, test_set="mine"))


def test_a_set_that_is_larger_than_its_pool_is_refused_by_the_plan(
    experiment: Experiment, with_pool: Callable[..., Experiment], tmp_path: Path
) -> None:
    study = with_pool(write_pool(tmp_path / "mine.csv", 19))
    with pytest.raises(UserError, match=r"training_set/.* takes 20 entailment examples from the pool, and .*mine\.csv has 19"):
        plan_of(study, tmp_path)
    plan_of(replace(study, training_sizes=(30, 57)), tmp_path)
    generated = replace(experiment, generation=replace(experiment.generation, num_per_label=(100, 19, 100)))
    with pytest.raises(
        UserError, match=r"20 neutral examples from the pool, and generation\.num_per_label=.* num_per_label=20 or more"
    ):
        plan_of(generated, tmp_path)
    with pytest.raises(UserError, match=r"^num_per_label=\(1, 2\): give one number, or 3 of them for entailment"):
        plan_of(replace(experiment, generation=replace(experiment.generation, num_per_label=(1, 2))), tmp_path)


def test_a_pool_without_the_examples_that_a_biased_set_takes_is_refused_by_the_plan(
    with_pool: Callable[..., Experiment], tmp_path: Path
) -> None:
    study = with_pool(write_pool(tmp_path / "mine.csv", 100, overlap=False), kinds=("original", "biased_synthetic"))
    with pytest.raises(
        UserError, match=r"asked for 20 entailment examples with lexical overlap \(in a set of 60\), .*mine\.csv has 0"
    ):
        plan_of(study, tmp_path)


def test_what_the_parts_of_a_mix_take_is_added_up(experiment: Experiment, tmp_path: Path) -> None:
    study = replace(experiment, kinds=(Added(synthetic=5.0),), training_sizes=(60,))
    plan_of(study, tmp_path)
    with pytest.raises(UserError, match=r"takes 120 entailment examples"):
        plan_of(replace(study, kinds=(Added(synthetic=6.0),)), tmp_path)


def test_a_pool_that_is_not_there_can_be_planned_and_not_run(with_pool: Callable[..., Experiment], tmp_path: Path) -> None:
    study = with_pool(str(tmp_path / "none.csv"))
    plan_of(study, tmp_path)
    assert missing_inputs(study) == (f"pool: not found at {tmp_path / 'none.csv'}",)
    with pytest.raises(UserError, match=r"no pool at .*none\.csv; restore the file"):
        with_inputs(study)


def test_a_pool_that_is_not_there_has_no_costs(llama: Experiment, tmp_path: Path) -> None:
    base_model = replace(llama.base_model, path="Llama-2-7b-hf")  # type: ignore[type-var]
    study = replace(llama, generator=None, generation=None, base_model=base_model, synthetic=str(tmp_path / "none.csv"))
    table = read_table()
    plan = plan_study(study, Store(tmp_path / "store"), table, lambda _: table.gpu("h100"), None)
    assert plan.costs is None and "none.csv has is unknown before it is there" in plan.why_no_costs


def test_a_rehearsal_draws_from_the_same_pool(with_pool: Callable[..., Experiment], tmp_path: Path) -> None:
    study = with_pool(write_pool(tmp_path / "mine.csv", 200))
    short = rehearsal(study)
    assert short.own_pools == study.own_pools
    plan_of(short, tmp_path)

"""Artifacts whose records are there and whose files are not: what a plan says of them, on a disk and in a bucket."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pipelines.errors import DamagedError, UserError
from pipelines.storage import filesystem, join
from sweep.graph import integrity
from sweep.graph.pieces import parse_only
from sweep.graph.records import Store
from sweep.graph.step import Step
from sweep.plan.damaged import check_damage, damaged_words
from sweep.plan.page import plan_json, print_plan
from sweep.plan.plan import Plan, Planned, make_plan, plan_piece
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from tests.sweep.conftest import record_of

WITH_WEIGHTS = ("base_model", "generator", "starting_point", "task_model")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def build() -> Callable[[Iterable[Step], Store], None]:
    """Each step has two files, and weights where it is a model."""

    def written(steps: Iterable[Step], store: Store) -> None:
        for step in steps:
            for name in ("value", "more/value", *(["model.safetensors"] if step.stage in WITH_WEIGHTS else [])):
                store.write_bytes(join(store.folder(step.id), name), b"abc")
            store.write_record(record_of(step, files=store.files(store.folder(step.id))))

    return written


def remove(store: Store, step: Step, name: str) -> None:
    file_system, path = filesystem(join(store.folder(step.id), name))
    file_system.rm_file(path)


def missing(planned: Iterable[Planned]) -> dict[str, str]:
    return {member.step.stage: member.reason for member in planned if not member.is_cached}


def test_what_lacks_files_or_has_others_is_to_be_built(
    experiment: Experiment, store: Store, build: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = build_grid(dataclasses.replace(experiment, starting_sizes=(0,), training_sizes=(30,)))
    build(steps, store)
    assert missing(make_plan(steps, store)) == {}
    evaluation, other = [step for step in steps if step.stage == "evaluation"][:2]
    for step in (evaluation, other):
        remove(store, step, "more/value")
    remove(store, evaluation, "value")
    pool = next(step for step in steps if step.stage == "synthetic_pool")
    store.write_bytes(join(store.folder(pool.id), "value"), b"abcd")
    plan = Plan(experiment, make_plan(steps, store), None)
    assert [member.step for member in plan.missing] == [step for step in steps if step in (pool, evaluation, other)]
    assert {member.reason for member in plan.missing} == {
        "damaged: value has 4 bytes, 3 in its record",
        "damaged: more/value is missing, and 1 more of its files are damaged",
        "damaged: more/value is missing",
    }
    assert (plan_json(plan)["damaged"], plan.num_damaged) == (3, 3)
    assert {"stage": "evaluation", "reason": "damaged: more/value is missing", "steps": 1} in plan_json(plan)["reasons"]
    print_plan(plan)
    shown = capsys.readouterr().out
    first = f"{pool.name}-{pool.fingerprint[:12]}/value has 4 bytes, 3 in its record"
    assert (
        f"3 of the {len(steps)} artifacts that are there are damaged (1 synthetic_pool, 2 evaluation; {first}, for one); "
        "`run` sets them aside" in shown
    )
    assert f"3 of {len(steps)} to build" in shown and "  1 evaluation: damaged: more/value is missing\n" in shown


def test_lost_weights_are_built_again_only_for_what_is(experiment: Experiment, store: Store, build: Callable) -> None:
    steps = build_grid(dataclasses.replace(experiment, starting_sizes=(0,), training_sizes=(30,), kinds=("original",)))
    build(steps, store)
    models = [step for step in steps if step.stage in WITH_WEIGHTS]
    for step in models:
        remove(store, step, "model.safetensors")
    assert missing(make_plan(steps, store)) == {}
    evaluation = [step for step in steps if step.stage == "evaluation"][-1]
    remove(store, evaluation, "value")
    planned = make_plan(steps, store)
    assert missing(planned)["evaluation"] == "damaged: value is missing"
    lost = {member.step.name for member in planned if member.lost_weights}
    assert evaluation.inputs["task_model"].name in lost and not any("pool" in name for name in lost)
    assert set(missing(planned)) >= {"task_model", "evaluation"} and not any(
        member.damage for member in planned if member.step.stage in WITH_WEIGHTS
    )


def test_a_bucket_is_asked_for_a_listing_a_stage(
    experiment: Experiment, bucket: str, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has 1,000 files at most, and an artifact's own would be a request each."""
    store, steps = Store(bucket), build_grid(experiment)
    build(steps, store)
    listed: list[str] = []
    files_below = integrity.files_below

    def counted(file_system: object, folder: str) -> dict[str, dict[str, object]]:
        listed.append(folder.rpartition("/")[2])
        return files_below(file_system, folder)

    monkeypatch.setattr(integrity, "files_below", counted)
    assert missing(make_plan(steps, store)) == {}
    assert sorted(listed) == sorted({step.stage for step in steps})


def test_content_of_the_same_size_is_compared_where_nothing_is_built_from_it_and_only_if_asked(
    experiment: Experiment, tmp_path: Path, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, steps = Store(tmp_path / "store"), build_grid(experiment)
    build(steps, store)
    for stage in ("evaluation", "training_set"):
        step = next(step for step in steps if step.stage == stage)
        store.write_bytes(join(store.folder(step.id), "value"), b"abd")
    assert missing(make_plan(steps, store)) == {}
    (reason,) = missing(make_plan(steps, store, last="remembered")).items()
    assert reason[0] == "evaluation" and reason[1].startswith("damaged: value has other content (sha256 ")


def test_many_reasons_are_folded(
    experiment: Experiment, tmp_path: Path, build: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    store, steps = Store(tmp_path), build_grid(experiment)
    build(steps, store)
    cut = [step for step in steps if step.stage in ("training_set", "evaluation")]
    for number, step in enumerate(cut):
        store.write_bytes(join(store.folder(step.id), "value"), b"x" * (4 + number))
    plan = Plan(experiment, make_plan(steps, store), None)
    print_plan(plan)
    shown = capsys.readouterr().out
    assert shown.count(": damaged: value has ") == 8
    assert f"  and {len(cut) - 8} more for {len(cut) - 8} other reasons: --all lists them" in shown
    assert "`run` refuses to build so many again unless they are set aside before" in shown


def test_up_to_ten_a_run_builds_again_by_itself(experiment: Experiment, store: Store, build: Callable) -> None:
    steps = build_grid(experiment)
    build(steps, store)
    evaluations = [step for step in steps if step.stage == "evaluation"]
    sets = [step for step in steps if step.stage == "training_set"]
    for step in [*evaluations, *sets][:10]:
        remove(store, step, "value")
    planned = make_plan(steps, store)
    assert damaged_words(planned).startswith(f"10 of the {len(steps)} artifacts that are there are damaged (")
    check_damage(planned, store)
    remove(store, [*evaluations, *sets][10], "value")
    planned = make_plan(steps, store)
    with pytest.raises(DamagedError) as raised:
        check_damage(planned, store)
    said = str(raised.value)
    assert said.startswith(f"11 of the {len(steps)} artifacts that are there are damaged (")
    assert "Nothing was moved or begun." in said and f"11 of {len(steps)} are to be built in all" in said
    assert f"`blindsweep verify --store {store.uri}{'' if store.is_local else ' --sizes'} --set-aside`" in said


def test_what_other_pieces_are_built_from_is_not_built_again_in_a_piece(
    experiment: Experiment, tmp_path: Path, build: Callable
) -> None:
    store, grid = Store(tmp_path), build_grid(dataclasses.replace(experiment, seeds=(0, 1)))
    build(grid, store)
    pool = next(step for step in grid if step.stage == "synthetic_pool")
    remove(store, pool, "value")
    with pytest.raises(UserError, match=r"synthetic_pool/pool is damaged \(synthetic_pool/pool-\w+/value is missing\), and"):
        plan_piece(grid, store, parse_only("seed=0"))
    assert any(not member.is_cached for member in plan_piece(grid, store, parse_only("shared,seed=0")))

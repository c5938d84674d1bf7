"""From a number to its rows, its configuration and its lineage."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweep.graph.explain import as_json, as_text, explain
from sweep.graph.records import Record, Store, Study, StudyStep


def record(stage: str, slug: str, digit: str, inputs: tuple[Record, ...] = (), **values: object) -> Record:
    sources = {source.stage: source.id for source in inputs}
    payload = {"config": {"type": "Config", "seed": 7, "name": None}}
    return Record(stage, slug, digit * 64, payload, sources, durations={"total_s": 3.0}, created="then", **values)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    data = record("sources", "data", "a")
    model = record("task_model", "cell", "b", (data,))
    other = record("evaluation", "other", "c", (data,), metrics={"hans/accuracy": 0.25})
    cell = record(
        "evaluation", "cell", "d", (model, data), metrics={"hans/accuracy": 0.5}, num_rows={"logits.parquet": 30_000},
        coordinates={"starting_size": 0, "kind": "original"}, marks=("rehearsal",),
    )  # fmt: skip
    for one in (data, model, other, cell):
        store.write_record(one)
    steps = [StudyStep(one.stage, one.slug, one.fingerprint, {}, {}) for one in (data, model, other, cell)]
    Study("mine", "A title", {}, tuple(steps)).save(store)
    return store


def test_a_number_leads_to_its_rows_its_run_and_all_that_it_was_built_from(store: Store) -> None:
    (origin,) = explain(store, Study.load(store, "mine"), "hans/accuracy", "cell")
    assert origin.value == 0.5
    # The data is an input of both the model and the evaluation, and is told once.
    assert [(depth, one.slug) for depth, one in origin.lineage] == [(0, "cell"), (1, "data"), (1, "cell")]
    lines = list(as_text(origin))
    assert lines[0] == "hans/accuracy = 0.5"
    assert "  cell     starting_size 0, kind original" in lines
    assert "  marked   rehearsal" in lines
    assert f"  rows     {store.uri}/evaluation/cell-dddddddddddd/logits.parquet: 30,000" in lines
    assert f"  run      in MLflow: tags.fingerprint = '{'d' * 64}'" in lines
    assert "    task_model/cell-bbbbbbbbbbbb: seed=7" in lines
    assert as_json(origin)["lineage"][1]["config"] == {"type": "Config", "seed": 7, "name": None}


def test_an_artifact_is_placed_by_the_study_that_is_asked(store: Store) -> None:
    mine = Study.load(store, "mine")
    steps = tuple(replace(step, coordinates={"generator": 0}) for step in mine.steps)
    (origin,) = explain(store, replace(mine, steps=steps), "hans/accuracy", "cell")
    assert "  cell     starting_size 0, kind original, generator 0" in list(as_text(origin))


def test_without_a_cell_each_artifact_that_has_the_metric_is_told(store: Store) -> None:
    origins = explain(store, Study.load(store, "mine"), "hans/accuracy")
    assert [(one.record.slug, one.value) for one in origins] == [("other", 0.25), ("cell", 0.5)]


@pytest.mark.parametrize(
    ("metric", "cell", "message"),
    [
        (
            "hans/acuracy",
            "",
            "no built artifact of mine has a metric 'hans/acuracy'; the nearest that there are: hans/accuracy",
        ),
        ("hans/accuracy", "cel", "no built artifact 'cel' of mine has hans/accuracy; the nearest that there are: cell"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(store: Store, metric: str, cell: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain(store, Study.load(store, "mine"), metric, cell)


def test_a_lineage_with_a_gap_is_an_error(store: Store) -> None:
    (Path(store.uri) / "sources" / "data-aaaaaaaaaaaa" / "record.json").unlink()
    with pytest.raises(UserError, match="evaluation/cell was built from sources/data, whose record is gone"):
        explain(store, Study.load(store, "mine"), "hans/accuracy", "cell")

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.study.artifacts import label_yield_frame, stage_frame, training_set_frame, yield_frame
from analysis.study.frame import DTYPES, KEY, DuplicateRowsError, IncompleteSweepError, by_arm, describe_missing, seed_means
from pipelines.errors import UserError
from sweep.graph.records import Store, Study
from tests.analysis.fake_store import SETS, FakeStudy, fingerprint, label_metrics


def test_an_evaluation_that_arms_share_has_rows_in_each(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    arms = ("two_steps", "joint")
    study.add_evaluation(0, "none", 0, 0, arms=arms)
    study.add_evaluation(200, "synthetic", 60, 0, arms=arms[:1])
    study.add_evaluation(200, "synthetic", 60, 0, arms=arms[1:], slug="start200-joint-synthetic-60-seed0")
    frame = study.frame()
    assert list(frame["arm"].cat.categories) == ["two_steps", "joint"]
    found = [(arm, rows[["starting_size", "kind"]].drop_duplicates().to_numpy().tolist()) for arm, rows in by_arm(frame)]
    assert found == [("two_steps", [[0, "none"], [200, "synthetic"]]), ("joint", [[0, "none"], [200, "synthetic"]])]
    fingerprints = frame.groupby(["arm", "kind"], observed=True)["fingerprint"].unique().map(list).to_dict()
    assert fingerprints["two_steps", "none"] == fingerprints["joint", "none"]
    assert fingerprints["two_steps", "synthetic"] != fingerprints["joint", "synthetic"]
    assert seed_means(frame)["n"].eq(1).all()
    # One arm's own: a study of one is the arm "".
    alone = FakeStudy(tmp_path / "alone")
    alone.add_grid()
    assert [arm for arm, _ in by_arm(alone.frame())] == [""]


def test_what_is_missing_or_twice_is_named_by_its_arm(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "none", 0, 0, arms=("two_steps", "joint"), built=False)
    study.add_evaluation(200, "synthetic", 60, 0, arms=("two_steps",))
    with pytest.raises(IncompleteSweepError) as caught:
        study.frame()
    assert [describe_missing(result) for result in caught.value.missing] == [
        "arm=two_steps and joint, starting_size=0, kind=none, size=0, seed=0: evaluation (not built)"
    ]
    study.add_evaluation(200, "synthetic", 60, 0, arms=("two_steps", "joint"), slug="another")
    with pytest.raises(DuplicateRowsError, match="both of arm=two_steps, starting_size=200, kind=synthetic"):
        study.frame()


def test_a_complete_study_has_one_typed_row_per_cell_set_and_slice(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid()
    frame = study.frame()
    # 2 starting points × 2 seeds × (1 + 3 kinds × 2 sizes) evaluations × 3 slices.
    assert len(frame) == 2 * 2 * 7 * 3
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {name: str(kind) for name, kind in DTYPES.items()}
    assert not frame.duplicated(list(KEY)).any()
    assert frame.attrs["missing"] == []


def test_golden_accuracies(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "none", 0, 1, lambda *_: 50)
    study.add_evaluation(0, "original", 60, 1, lambda *_: 150)
    study.add_evaluation(0, "original", 60, 2, lambda *_: 170)
    frame = study.frame()
    row = frame[(frame["kind"] == "original") & (frame["seed"] == 2)].iloc[0]
    assert (row["accuracy"], row["num_correct"], row["num_examples"]) == (0.85, 170, 200)
    assert row["fingerprint"] == fingerprint("evaluation", "start0-original-60-seed2")
    means = seed_means(frame)
    cell = means[(means["kind"] == "original") & (means["set"] == "template_test")].iloc[0]
    assert (cell["accuracy"], cell["low"], cell["high"], cell["n"]) == (0.8, 0.75, 0.85, 2)


def test_the_two_foldings_of_a_cell_stay_apart(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "original", 60, 0, lambda *_: 100, more_right_when_summed=20)
    study.add_evaluation(0, "original", 60, 1, lambda *_: 120, more_right_when_summed=20)
    means = seed_means(study.frame())
    found = means[(means["set"] == "template_probe") & (means["slice"] == "all")]
    assert found["folding"].tolist() == ["argmax", "summed"]
    assert found["accuracy"].tolist() == pytest.approx([0.55, 0.65])
    # Nothing is folded where three labels are scored.
    assert means.loc[means["num_labels"] == 3, "folding"].tolist() == ["argmax"]


def test_every_missing_cell_is_named(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid(skip=((200, "synthetic", 120, 1), (0, "none", 0, 0)))
    with pytest.raises(IncompleteSweepError) as caught:
        study.frame()
    assert "starting_size=200, kind=synthetic, size=120, seed=1" in str(caught.value)
    assert "starting_size=0, kind=none, size=0, seed=0" in str(caught.value)
    assert len(caught.value.missing) == 2
    frame = study.frame(partial=True)
    assert [one["starting_size"] for one in frame.attrs["missing"]] == [0, 200]
    # Tables take hundreds of parts of a frame.
    assert frame[frame["kind"] == "original"].attrs["missing"] is frame.attrs["missing"]
    assert len(frame) == (28 - 2) * 3


def test_what_several_seeds_lack_is_one_line(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), (0, 1, 2), skip=[(0, kind, 60, seed) for kind in ("original", "synthetic") for seed in (0, 2)])
    study.add_evaluation(0, "original", 120, 1, built=False)
    with pytest.raises(IncompleteSweepError) as caught:
        study.frame()
    assert str(caught.value).splitlines()[:-1] == [
        f"study '{study.name}' lacks 5 result(s):",
        "  starting_size=0, kind=original, size=60, seed=0, 2: evaluation (not built)",
        "  starting_size=0, kind=original, size=120, seed=1: evaluation (not built)",
        "  starting_size=0, kind=synthetic, size=60, seed=0, 2: evaluation (not built)",
    ]
    assert len(caught.value.missing) == 5


def test_what_is_missing_because_something_before_it_failed_says_so(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "none", 0, 0)
    study.add_evaluation(0, "synthetic", 60, 0, built=False)
    slug = "start0-synthetic-60-seed0"
    study.failures = [
        {
            "stage": "evaluation",
            "slug": slug,
            "fingerprint": fingerprint("evaluation", slug),
            "error": "blocked by x",
        },
        {
            "stage": "task_model",
            "slug": slug,
            "fingerprint": fingerprint("task_model", slug),
            "error": "out of memory\ntrace",
        },
    ]
    frame = study.frame(partial=True)
    words = describe_missing(frame.attrs["missing"][0])
    assert words.endswith("evaluation (start0-synthetic-60-seed0 failed: out of memory)")


def test_a_slice_that_one_evaluation_lacks_is_missing(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "none", 0, 0)
    study.add_evaluation(0, "original", 60, 0, sets=SETS[:2])
    with pytest.raises(IncompleteSweepError, match=r"kind=original.*lexical_overlap/non-entailment"):
        study.frame()


def test_two_evaluations_of_one_cell_are_an_error(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "original", 60, 0)
    study.add_evaluation(0, "original", 60, 0, slug="another-name")
    with pytest.raises(DuplicateRowsError, match="another-name"):
        study.frame(partial=True)


def test_two_rows_of_one_slice_are_an_error(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "original", 60, 0, sets=[*SETS, SETS[0]])
    with pytest.raises(DuplicateRowsError, match="template_test"):
        study.frame()


def test_metrics_that_were_changed_after_the_record_are_refused(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "original", 60, 0)
    path = study.folder("evaluation", "start0-original-60-seed0") / "metrics.json"
    path.write_text(path.read_text().replace('"num_correct": ', '"num_correct":  '))
    with pytest.raises(UserError, match="vouches"):
        study.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 0.9}, "is not 50/200"),
        ({"num_examples": 0, "num_correct": 0}, "empty slice"),
        ({"num_examples": 100, "accuracy": 0.5}, "different test items"),
        ({"num_correct": None}, "num_correct"),
        ({"folding": None}, "no folding; delete the artifact and run again"),
    ],
)
def test_numbers_that_do_not_hold_together_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    study = FakeStudy(tmp_path)
    study.add_evaluation(0, "none", 0, 0, lambda *_: 50)
    row = {
        "set": "template_test", "slice": "all", "num_labels": 3, "folding": "argmax", "accuracy": 0.25,
        "num_correct": 50, "num_examples": 200,
    } | change  # fmt: skip
    row = {name: value for name, value in row.items() if value is not None}
    study.add(
        "evaluation",
        "odd",
        coordinates={"starting_size": 0, "kind": "original", "size": 60, "seed": 0},
        files={"metrics.json": json.dumps({"rows": [row]}).encode()},
    )
    with pytest.raises(UserError, match=message):
        study.frame(partial=True)


def test_training_sets_yield_and_stages(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add(
        "training_set",
        "biased_synthetic-6-seed0",
        coordinates={"starting_size": None, "kind": "biased_synthetic", "size": 6, "seed": 0},
        metrics=label_metrics(2, {"entailment": 2, "neutral": 0, "contradiction": 0}),
    )
    counts = {
        "parsed": {"entailment": 3, "neutral": 4},
        "generated": {"entailment": 5, "neutral": 5},
        "rejected": {"no_end_marker": 2, "empty_field": 1},
    }
    study.add(
        "synthetic_pool",
        "pool",
        files={"yield.json": json.dumps(counts).encode()},
        metrics={"examples_per_s": 44.0, "yield": 0.7},
    )
    study.add("task_model", "cell", metrics={"examples_per_s": 11.0, "mean_trained_together": 8.0})
    store = Store(study.write())
    loaded = Study.load(store, "tiny")
    sets = training_set_frame(loaded)
    assert sets["num_rows"].tolist() == [2, 2, 2]
    assert sets["num_held"].tolist() == [2, 0, 0]
    assert sets["starting_size"].isna().all()
    outcomes = yield_frame(store, loaded)
    assert outcomes["outcome"].tolist() == ["parsed", "no_end_marker", "empty_field"]
    assert outcomes["share"].tolist() == [0.7, 0.2, 0.1]
    assert label_yield_frame(store, loaded)["parsed"].tolist() == [3, 4]
    stages = stage_frame(loaded)
    assert stages["total_s"].tolist() == [12.5, 12.5, 12.5]
    assert stages["examples_per_s"].dropna().tolist() == [44.0, 88.0]
    assert "yield" not in stages.columns


def test_a_yield_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    counts = {"parsed": {"neutral": 4}, "generated": {"neutral": 9}, "rejected": {"no_end_marker": 2}}
    study.add("synthetic_pool", "pool", files={"yield.json": json.dumps(counts).encode()})
    store = Store(study.write())
    with pytest.raises(UserError, match="6 of 9"):
        yield_frame(store, Study.load(store, "tiny"))


def test_each_row_has_the_generator_of_its_seed_where_there_are_several(tmp_path: Path) -> None:
    one, several = FakeStudy(tmp_path / "one"), FakeStudy(tmp_path / "several")
    several.generators = 2
    for study in (one, several):
        study.add_grid(starting_sizes=(0,), sizes=(60,), seeds=(0, 1, 2))
    assert one.frame()["generator"].isna().all()
    frame = several.frame()
    assert (frame["generator"] == frame["seed"] % 2).all() and set(frame["kind"]) >= {"none", "original", "synthetic"}

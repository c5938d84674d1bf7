from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import norm

from analysis.study.frame import IncompleteSweepError
from analysis.study.items import Responses, load_arms
from analysis.study.signal_detection import signal_detection, signal_table
from pipelines.errors import UserError
from pipelines.evaluate.scoring import is_right
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import NLI, Label
from sweep.graph.records import Store, Study
from tests.analysis.item_study import ItemStudy, clear

SETS = ("template_test", "template_probe")


def load(study: ItemStudy, *, partial: bool = False) -> Responses:
    frame = study.frame(partial=partial)
    store = Store(str(study.root))
    return load_arms(store, Study.load(store, "tiny"), SETS, frame, partial=partial)[""]


def test_what_is_right_and_how_items_hang_together(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear, noise=0.0)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    responses = load(study)
    items = responses.items["template_probe"]
    right = is_right(responses.predicted["template_probe"][0, "biased_synthetic", 60, 0], items.labels, NLI, Label.ENTAILMENT)
    # 5% of the 60 non-entailed items, 80% of the 60 entailed ones; a predicted contradiction counts as non-entailment.
    assert right[items.labels == "non-entailment"].sum() == 3
    assert right[items.labels == "entailment"].sum() == 48
    general = responses.accuracy("template_test", "all", [(0, "none", 0)])
    assert general.values.tolist() == [36 / 90]
    # 2 heuristics × 2 labels are strata. Each has 3 of the templates in each of 2 subcases: 6 clusters.
    assert len(set(items.strata)) == 4
    assert len(set(items.clusters)) == 24
    assert responses.items["template_test"].clustered_by == "premise"
    assert len(set(responses.items["template_test"].clusters)) == 30


def test_changes_are_paired_by_seed_and_averaged_over_cells(tmp_path: Path) -> None:
    study = ItemStudy(
        tmp_path, lambda start, kind, size, part: {"none": 0.2, "synthetic": 0.3 + size / 600}.get(kind, 0.0), noise=0
    )
    study.grid(starting_sizes=(0, 5), num_seeds=2)
    responses = load(study)
    # Sizes 60 and 120: 0.4 and 0.5, less 0.2.
    change = responses.change("template_test", "all", "synthetic", "none", (0, 5), (60, 120))
    assert change.values.tolist() == pytest.approx([0.25, 0.25])
    assert (change.seeds, change.num_items) == ((0, 1), 90)
    part = responses.change("template_probe", "lexical_overlap/non-entailment", "synthetic", "none", (0, 5), (60, 120))
    assert part.num_items == 30
    with pytest.raises(UserError, match="slice"):
        responses.change("template_probe", "nowhere", "synthetic", "none", (0,), (60,))
    with pytest.raises(UserError, match="no seed has both synthetic and none"):
        responses.change("template_test", "all", "synthetic", "none", (0, 7), (60,))


def test_missing_results_and_sources_are_errors_unless_partial(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path / "whole", clear)
    study.grid(starting_sizes=(0,), num_seeds=1)
    study.logits_path(0, "none", 0, 0).unlink()
    with pytest.raises(UserError, match=r"logits\.parquet is missing"):
        load(study)
    study = ItemStudy(tmp_path / "part", clear, sources=False)
    study.grid(starting_sizes=(0,), num_seeds=2)
    with pytest.raises(UserError, match="sources"):
        load(study)
    study.logits_path(0, "original", 60, 1).unlink()
    responses = load(study, partial=True)
    (missing,) = responses.missing
    assert missing.startswith("starting_size=0, kind=original, size=60, seed=1: logits.parquet (")
    assert "logits.parquet is missing" in missing
    assert (0, "original", 60, 1) not in responses.predicted["template_test"]
    assert "clustered by subcase" in " ".join(responses.notes)
    assert responses.change("template_test", "all", "original", "none", (0,), (60,)).seeds == (0,)
    study.add("evaluation", "late", coordinates={"starting_size": 0, "kind": "none", "size": 0, "seed": 7}, built=False)
    with pytest.raises(IncompleteSweepError):
        load(study)


def changed(table: pa.Table, column: str) -> pa.Table:
    """The same with one value of the last row replaced."""
    values = table[column].to_pylist()
    values[-1] = {"id": "another", "logit_entailment": 9.0 - values[-1] * 20 if column.startswith("logit") else None}[column]
    return table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))


def test_logits_that_do_not_hold_together_are_refused(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path / "ids", clear)
    study.add_cell(0, "none", 0, 0)
    study.add_cell(0, "original", 60, 0, edit=lambda table: changed(table, "id"))
    with pytest.raises(UserError, match="other items"):
        load(study)
    study = ItemStudy(tmp_path / "metrics", clear)
    study.add_cell(0, "none", 0, 0, edit=lambda table: changed(table, "logit_entailment"))
    with pytest.raises(UserError, match="its metrics say"):
        load(study)
    study = ItemStudy(tmp_path / "nan", clear)
    nan = pa.array(np.full(210, np.nan, dtype=np.float32))
    study.add_cell(0, "none", 0, 0, edit=lambda table: table.set_column(3, "logit_entailment", nan))
    with pytest.raises(UserError, match="finite"):
        load(study)
    study = ItemStudy(tmp_path / "set", clear)
    study.add_cell(0, "none", 0, 0, edit=lambda table: table.filter(pc.equal(table["set"], "template_test")))
    with pytest.raises(UserError, match="no logits of template_probe"):
        load(study)
    study = ItemStudy(tmp_path / "hash", clear)
    study.add_cell(0, "none", 0, 0)
    study.logits_path(0, "none", 0, 0).write_bytes(b"something else")
    with pytest.raises(UserError, match="vouches"):
        load(study)


def test_signal_detection_by_hand(tmp_path: Path) -> None:
    # 48 hits of 60: H = 48.5 / 61 = 0.79508, z = 0.82420. 57 false alarms of 60: F = 57.5 / 61 = 0.94262, z = 1.57717.
    study = ItemStudy(tmp_path, clear, noise=0.0)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=2)
    found = signal_detection(load(study), "template_probe", 0, "biased_synthetic", 60)
    assert found["sensitivity"].values == pytest.approx([0.82420 - 1.57717] * 2, abs=1e-4)
    assert found["criterion"].values == pytest.approx([-(0.82420 + 1.57717) / 2] * 2, abs=1e-4)


def test_signal_table_has_an_interval_where_seeds_differ(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear, noise=0.1)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=3)
    table = signal_table(load(study), "template_probe")
    assert len(table) == 4 * 3
    assert set(table["slice"]) == {"all", "lexical_overlap", "subsequence"}
    assert (table["sensitivity_low"] < table["sensitivity"]).all()
    assert set(table["num_seeds"]) == {3}
    with pytest.raises(UserError, match="label"):
        signal_detection(load(study), "template_test", 0, "none", 0)


def test_a_set_of_three_labels_has_signal_detection_where_a_heuristic_holds(tmp_path: Path) -> None:
    first = Heuristic("first", lambda p, h: np.array([int(text.split()[1]) < 12 for text in h]), Label.NEUTRAL)
    study = ItemStudy(tmp_path, clear, heuristics=[first])
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=2)
    responses = load(study)
    # Of 12 items, 4 have its label. Two labels do not tell neutral, so that it is not asked in the probe.
    everywhere = responses.accuracy("template_test", "holds/first", [(0, "original", 60)])
    assert everywhere.num_items == 12
    sides = [
        responses.accuracy("template_test", f"holds/first/{side}", [(0, "original", 60)]) for side in ("neutral", "non-neutral")
    ]
    assert [side.num_items for side in sides] == [4, 8]
    assert everywhere.values == pytest.approx(sides[0].values / 3 + sides[1].values * 2 / 3)
    table = signal_table(responses, "template_test")
    assert set(table["slice"]) == {"holds/first"}
    found = table[table["kind"] == "original"].iloc[0]
    z = [norm.ppf((side.values * side.num_items + 0.5) / (side.num_items + 1)) for side in sides]
    assert found["sensitivity"] == pytest.approx((z[0] + z[1]).mean())
    assert set(signal_table(responses, "template_probe")["slice"]) == {"all", "lexical_overlap", "subsequence"}

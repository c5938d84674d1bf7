"""Two studies side by side: what is paired with what, what is not comparable, and a table of 80 columns."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from analysis.comparison.studies import Comparison, compare_studies
from analysis.comparison.terminal import as_json, lines
from analysis.study.frame import evaluation_frame
from analysis.study.items import load_arms
from pipelines.errors import UserError
from sweep import cli
from sweep.graph.records import Store, Study
from sweep.study.claims import Measure
from tests.analysis.item_study import ItemStudy, clear

Make = Callable[..., ItemStudy]


def better(start: int, kind: str, size: int, part: str) -> float:
    """As `clear`, with ten points more on general items of synthetic data."""
    return clear(start, kind, size, part) + (0.1 if (kind, part) == ("synthetic", "general") else 0)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A study in a store of its own."""

    def make(name: str, rate: Any = clear, *, num_seeds: int = 3, starts: tuple[int, ...] = (0,), **options: Any) -> ItemStudy:
        study = options.pop("study", ItemStudy)(tmp_path / name, rate, **{"noise": 0.0, **options})
        study.name = name
        study.grid(starts, (60,), num_seeds)
        study.write()
        return study

    return make


def compared(first: ItemStudy, second: ItemStudy) -> Comparison:
    return compare_studies((Store(first.root), first.name), (Store(second.root), second.name))


def test_b_minus_a_where_both_have_the_cell_by_the_seeds_that_both_have(make: Make) -> None:
    first, second = make("first", num_seeds=3, starts=(0, 50_000)), make("second", better, num_seeds=5)
    comparison = compared(first, second)
    assert comparison.not_comparable == () and comparison.only == (4, 0)
    # Three places, the last by four measures, and four cells of one starting point: the starting point itself, too.
    assert len(comparison.rows) == (3 + 3) * 4
    assert {row.num_pairs for row in comparison.rows} == {3}
    (row,) = [row for row in comparison.rows if (row.set, row.kind) == ("template_test", "synthetic")]
    assert (row.starting_size, row.size, row.num_items) == (0, 60, 90)
    assert (row.a, row.b, row.difference) == pytest.approx((0.8, 0.9, 0.1))
    (same,) = [row for row in comparison.rows if (row.set, row.kind) == ("template_test", "original")]
    assert same.difference == 0 and np.isnan(same.low)


def test_the_interval_is_that_of_a_study_s_own_differences(make: Make) -> None:
    studies = make("first", noise=0.05), make("second", better, noise=0.08)
    rows = compared(*studies).rows
    (row,) = [row for row in rows if (row.set, row.slice, row.kind) == ("template_test", "all", "synthetic")]
    responses = []
    for study in studies:
        store = Store(study.root)
        loaded = Study.load(store, study.name)
        frame = evaluation_frame(store, loaded)
        responses.append(load_arms(store, loaded, ["template_test"], frame)[""])
    cell = [(0, "synthetic", 60)]
    levels = [one.accuracy("template_test", "all", cell) for one in responses]
    interval = levels[1].minus(levels[0]).effect().interval()
    assert interval is not None and (row.low, row.high) == (interval.low, interval.high)
    assert row.low < row.difference < row.high


@pytest.mark.parametrize("measure", [Measure.MARGIN, Measure.AUC, Measure.PULL])
def test_what_accuracy_does_not_show_is_compared_as_a_study_measures_it(make: Make, measure: Measure) -> None:
    def biased(start: int, kind: str, size: int, part: str) -> float:
        return clear(start, kind, size, part) - (0.3 if (kind, part) == ("synthetic", "adversarial") else 0)

    studies = make("first", noise=0.05), make("second", biased, noise=0.08)
    found = [row for row in compared(*studies).rows if (row.measure, row.kind) == (measure, "synthetic")]
    (row,) = found
    assert (row.set, row.slice, row.num_pairs) == ("template_probe", "lexical_overlap/non-entailment", 3)
    levels = []
    for study in studies:
        store = Store(study.root)
        loaded = Study.load(store, study.name)
        responses = load_arms(store, loaded, ["template_test", row.set], evaluation_frame(store, loaded))[""]
        levels.append(responses.measured(measure, row.set, row.slice, [(0, "synthetic", 60)], "template_test"))
    difference = levels[1].minus(levels[0])
    interval = difference.effect().interval()
    assert interval is not None and (row.difference, row.low, row.high) == (
        difference.effect().mean,
        interval.low,
        interval.high,
    )
    assert (row.a, row.b) == pytest.approx([float(one.values.mean()) for one in levels])
    # It goes more by the heuristic: its label is likelier where that is wrong.
    assert row.difference < 0 if measure == Measure.AUC else row.difference > 0


def test_a_measure_that_cannot_be_had_is_named_once_and_accuracy_stands(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: object, *_: object) -> str:
        raise UserError("no label is always predicted")

    monkeypatch.setattr("analysis.study.items.Responses._scored_label", refused)
    comparison = compared(make("first"), make("second"))
    assert comparison.not_comparable == ("margin, AUC and pull: no label is always predicted",)
    assert {row.measure for row in comparison.rows} == {Measure.ACCURACY}


def test_the_same_study_differs_from_itself_in_nothing(make: Make) -> None:
    study = make("first")
    comparison = compared(study, study)
    assert {row.difference for row in comparison.rows} == {0.0} and all(np.isnan(row.low) for row in comparison.rows)
    assert comparison.differs == () and comparison.names == ("first (A)", "first (B)")


class Other(ItemStudy):
    """Another general set under the same name: `change` says how."""

    change = staticmethod(lambda table: table)

    def items(self) -> dict[str, pa.Table]:
        sets = super().items()
        return {**sets, "template_test": self.change(sets["template_test"])}


def texts(table: pa.Table) -> pa.Table:
    premises = [f"another {text}" for text in table["premise"].to_pylist()]
    return table.set_column(1, "premise", pa.array(premises))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.slice(0, 60), "other test sets, of 90 and 60 items"),
        (lambda table: table.set_column(0, "id", pa.array([f"x{i}" for i in range(90)])), "their items or labels differ"),
        (texts, "their texts differ, under the same names of items"),
    ],
)
def test_another_test_set_is_not_compared_and_the_rest_is(make: Make, change: Any, said: str) -> None:
    other = type("Changed", (Other,), {"change": staticmethod(change)})
    comparison = compared(make("first"), make("second", study=other))
    why, of_pull = comparison.not_comparable
    assert of_pull == "pull: it is against the items of a general set, and the two have none in common"
    assert why.startswith("Template test set: they are ") and said in why
    assert {row.set for row in comparison.rows} == {"template_probe"}


def test_a_set_that_one_alone_is_read_on_is_named(make: Make) -> None:
    first, second = make("first"), make("second")
    second.parameters["blindspot_set"] = "template_probe"
    first.parameters["blindspot_slice"] = second.parameters["blindspot_slice"] = "lexical_overlap/non-entailment"
    second.parameters["blindspot_slice"] = "subsequence/non-entailment"
    for study in (first, second):
        study.write()
    comparison = compared(first, second)
    assert comparison.not_comparable == (
        "Template probe, lexical overlap, non-entailment: only first is read on it",
        "Template probe, subsequence, non-entailment: only second is read on it",
    )
    assert "their parameters blindspot_slice" in comparison.differs


def test_other_base_models_are_said_beside_the_numbers(make: Make) -> None:
    first, second = make("first"), make("second")
    for step in second.steps:
        if step["stage"] == "evaluation":
            step["inputs"] = {**step["inputs"], "base_model": "b" * 64}
    second.write()
    comparison = compared(first, second)
    assert comparison.rows and comparison.differs == ("their base models: every difference is of these, too",)
    assert "They differ in their base models" in "\n".join(lines(comparison))


def test_marks_are_compared_as_verdicts_shows_them_and_not_by_their_counts(make: Make) -> None:
    copies = "4 of 90 texts of template_test are in the pool, too"
    first, second = make("first"), make("second", num_seeds=5)
    for study, number in ((first, 1), (second, 2)):
        for place in range(number):
            study.add("starting_set", f"marked{place}", coordinates={}, marks=("rehearsal",))
        study.write()
    assert Study.load(Store(first.root), "first").marks != Study.load(Store(second.root), "second").marks
    assert compared(first, second).differs == ()
    second.parameters["pool_copies"] = [copies]
    second.write()
    assert compared(first, second).differs == (f"a mark that second alone has: {copies}",)


def test_another_pool_or_recipe_is_named_by_the_settings_of_the_steps_that_both_have(make: Make) -> None:
    first, second = make("first"), make("second", num_seeds=5)
    for study, sha256, rate in ((first, "a" * 64, 1e-4), (second, "b" * 64, 3e-4)):
        study.add("synthetic_pool", "pool", coordinates={}, config={"table": {"sha256": sha256}})
        for seed in range(3 if study is first else 5):
            config = {"finetune": {"learning_rate": rate}, "seed": seed}
            study.add("task_model", f"model{seed}", coordinates={"seed": seed}, config=config)
        study.parameters["command"] = {"target": f"{study.name}.py"}
        study.write()
    assert compared(first, second).differs == (
        "their settings synthetic_pool.table.sha256 and task_model.finetune.learning_rate",
    )


def test_one_cell_is_one_and_a_store_is_called_by_its_option(make: Make) -> None:
    first, second = make("first"), make("second")
    second.add_cell(0, "synthetic", 120, 0)
    second.write()
    assert "Only in second: 1 cell." in list(lines(compared(first, second)))
    arguments = ["compare", "first", "second", "--store", str(first.root)]
    missing = CliRunner().invoke(cli.app, arguments)
    assert missing.exit_code == 1 and "no study 'second' in" in missing.stderr and "give --other-store" in missing.stderr
    (first.root / "file").touch()
    wrong = CliRunner().invoke(cli.app, [*arguments, "--other-store", str(first.root / "file")])
    assert wrong.exit_code == 1 and "is a file; give --other-store a folder" in wrong.stderr
    of_a = CliRunner().invoke(cli.app, ["compare", "third", "second", "--store", str(first.root)])
    assert of_a.exit_code == 1 and "no study 'third' in" in of_a.stderr and of_a.stderr.rstrip().endswith("or give --store")


def test_of_another_task_nothing_is_compared(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.comparison import studies
    from pipelines.tasks.nli import NLI

    first, second = make("first"), make("second")
    tasks = iter((NLI, type("Task", (), {"name": "sentiment"})()))
    monkeypatch.setattr(studies, "task_of", lambda study: next(tasks))
    comparison = compared(first, second)
    assert comparison.rows == () and "first is on nli, second on sentiment" in comparison.not_comparable[0]


def test_without_a_seed_in_common_nothing_is_paired(make: Make) -> None:
    first, second = make("first", num_seeds=1), make("second", num_seeds=0)
    for kind, size in (("none", 0), ("synthetic", 60)):
        second.add_cell(0, kind, size, 7)
    second.write()
    comparison = compared(first, second)
    assert comparison.rows == () and comparison.only == (2, 0)
    assert "synthetic, start 0, size 60: the two have no seed in common" in comparison.not_comparable


def test_with_several_generators_they_are_the_unit_of_what_is_made_from_pools(make: Make) -> None:
    studies = [make("first", num_seeds=0), make("second", better, num_seeds=0)]
    for study in studies:
        for seed in range(4):
            for kind, size in (("none", 0), ("original", 60), ("synthetic", 60)):
                study.add_cell(0, kind, size, seed, generator=seed % 2)
        study.write()
    found = {(row.set, row.slice, row.kind): (row.units, row.num_pairs) for row in compared(*studies).rows}
    assert found["template_test", "all", "synthetic"] == ("generators", 2)
    assert found["template_test", "all", "original"] == ("seeds", 4)


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def test_the_command_prints_80_columns_or_json(make: Make) -> None:
    first, second = make("a-study-with-a-rather-long-name"), make("second", better)
    second.parameters |= {f"a_parameter_number_{i}": i for i in range(12)}
    second.write()
    arguments = ["compare", first.name, "second", "--store", str(first.root), "--other-store", str(second.root)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    shown = done.stdout.splitlines()
    assert max(map(width, shown)) <= 80
    assert shown[0] == "A is a-study-with-a-rather-long-name, B is second."
    assert any(line.split()[:6] == ["0", "60", "3", "80.0", "90.0", "+10.0"] for line in shown)
    values = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert values["b"] == "second" and len(values["rows"]) == 24 and "NaN" not in json.dumps(values)
    assert values == json.loads(json.dumps(as_json(compared(first, second))))


def test_without_a_cell_in_common_it_is_one_clear_error(make: Make) -> None:
    first, second = make("first", num_seeds=0), make("second", num_seeds=0)
    first.add_cell(0, "synthetic", 60, 0)
    second.add_cell(0, "synthetic", 120, 0)
    for study in (first, second):
        study.write()
    arguments = ["compare", "first", "second", "--store", str(first.root), "--other-store", str(second.root)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 1 and "first and second have no cell in common" in done.stderr

"""A repaired set: what is left of it, what it cost, and that an audit of it says so."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from analysis.audit.audit import Audit, AuditSettings, audit
from analysis.audit.repairing import cost_lines, repair_of, write_repaired
from analysis.corpus.columns import ColumnNames
from pipelines.repair.rows import Repair, Repaired
from sweep import cli
from tests.analysis.audit.planted import planted

OVERLAP = "lexical_overlap_by_words"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("repair")
    made, original = planted("english", 1_500), planted("english", 1_500, seed=2, is_clean=True)
    numbered = made.table.append_column("source_id", pa.array(range(made.table.num_rows), pa.int32()))
    for name, table in (("pool", numbered), ("test", made.test), ("original", original.table)):
        pq.write_table(table, where / f"{name}.parquet")
    return where


def of(folder: Path, name: str = "pool") -> Audit:
    return audit(
        folder / f"{name}.parquet",
        AuditSettings(reference=folder / "original.parquet", tests={"held_out": folder / "test.parquet"}, processes=1),
    )


@pytest.fixture(scope="module")
def found(folder: Path) -> Audit:
    return of(folder)


@pytest.fixture(scope="module")
def repaired(found: Audit) -> Repaired:
    return repair_of(found, Repair())


def ratio(of: Audit) -> tuple[float, float]:
    finding = {one.name: one for one in of.heuristics}[OVERLAP]
    assert finding.odds_ratio is not None and finding.reference is not None
    return finding.odds_ratio.value, finding.reference.value


def test_an_audit_of_the_repaired_set_finds_nothing_left(folder: Path, found: Audit, repaired: Repaired) -> None:
    write_repaired(found.evidence, repaired, folder / "repaired.parquet")
    again = of(folder, "repaired")
    assert {kind: share.count for kind, share in again.duplicates.kinds.items()} == dict.fromkeys(again.duplicates.kinds, 0)
    assert again.leaks["held_out"].kinds["any"].count == 0
    before, (after, wanted) = ratio(found), ratio(again)
    assert before[0] > 5 and after == pytest.approx(wanted, rel=0.05)
    assert {one.verdict for one in again.heuristics if one.name == OVERLAP} == {"as the reference"} or abs(
        np.log(after / wanted)
    ) < 0.05
    lost = sum(cost.num_rows for cost in repaired.costs)
    assert lost + repaired.num_kept == found.file.num_rows
    assert again.file.num_rows == repaired.num_kept


def test_copies_of_originals_go_and_what_is_not_planted_stays(folder: Path) -> None:
    original = pq.read_table(folder / "original.parquet")
    rows = pa.concat_tables([original.slice(1_000), original.slice(0, 40)]).to_pylist()
    rows = [{**row, "premise": f"new {number}: {row['premise']}"} for number, row in enumerate(rows[:-40])] + rows[-40:]
    found = audit(pa.Table.from_pylist(rows), AuditSettings(reference=original, generator_training=original, processes=1))
    assert {finding.level for finding in found.findings if finding.kind == "copies"} == {"act"}
    assert not any(finding.verdict.startswith("plants") for finding in found.findings)
    kept, all_kept = (repair_of(found, Repair(originals=choice, near_copies="keep")) for choice in ("drop", "keep"))
    assert not kept.keep[-40:].any() and all_kept.keep[-40:].all()
    assert all_kept.keep.all() and kept.reweighted is None
    assert sum(cost.num_rows for cost in kept.costs) == (~kept.keep).sum()


def test_all_columns_stay_and_rows_can_be_traced(folder: Path, found: Audit, repaired: Repaired) -> None:
    write_repaired(found.evidence, repaired, folder / "traced.parquet")
    pool, written = (pq.read_table(folder / f"{name}.parquet") for name in ("pool", "traced"))
    assert written.column_names == [*pool.column_names, "original_row"]
    assert written["source_id"].type == pa.int32()
    traced = pool.take(pc.subtract(written["original_row"], 1))
    assert traced.equals(written.select(pool.column_names))


def test_the_same_seed_keeps_the_same_rows(found: Audit, repaired: Repaired) -> None:
    one, same, other = (repaired.keep, *(repair_of(found, Repair(seed=seed)).keep for seed in (0, 1)))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert one.sum() == other.sum()


def test_weights_are_written_in_place_of_resampling(folder: Path, found: Audit) -> None:
    repaired = repair_of(found, Repair(heuristics="weight"))
    write_repaired(found.evidence, repaired, folder / "weighted.parquet")
    weights = pq.read_table(folder / "weighted.parquet")["weight"].to_numpy()
    assert weights.mean() == pytest.approx(1) and len(set(weights.round(6))) > 2
    assert "weighted rows say as much as" in "\n".join(cost_lines(found, repaired))


def test_contrast_pairs_stay_and_disputed_labels_go(tmp_path: Path) -> None:
    long = "the committee met on a cold monday morning to discuss the new budget for roads and schools"
    rows = [
        {"premise": long, "hypothesis": "they met on a monday in winter to speak of money for the town", "label": "entailment"},
        {
            "premise": long,
            "hypothesis": "they never met on a monday in winter to speak of money for the town",
            "label": "contradiction",
        },
        {"premise": "a dog", "hypothesis": "an animal", "label": "entailment"},
        {"premise": "A dog.", "hypothesis": "An animal!", "label": "neutral"},
        {"premise": "a cat", "hypothesis": "an animal", "label": "entailment"},
        {"premise": "a cat", "hypothesis": "an animal", "label": "entailment"},
    ]
    found = audit(pa.Table.from_pylist(rows))
    assert found.duplicates.near_other_label is not None and found.duplicates.near_other_label.count == 1
    repaired = repair_of(found, Repair())
    assert repaired.keep.tolist() == [True, True, False, False, True, False]
    assert [(cost.reason, cost.num_rows) for cost in repaired.costs] == [
        ("the same words with different labels", 2),
        ("copies of other rows", 1),
        ("near copies of other rows", 0),
    ]


def test_near_copies_are_a_choice_of_their_own() -> None:
    long = "the committee met on a cold monday morning to discuss the new budget for roads and schools"
    texts = [f"{long} in the town", f"{long} in the city", "a short one", "A short one!"]
    rows = [*({"text": text, "label": "news"} for text in texts), {"text": "no", "label": "other"}]
    found = audit(pa.Table.from_pylist(rows))
    assert found.duplicates.kinds["near"].count == 1
    kept = {
        (copies, near): repair_of(found, Repair(copies=copies, near_copies=near)).keep.tolist()
        for copies in ("drop", "keep")
        for near in ("drop", "keep")
    }
    assert kept["drop", "drop"] == [True, False, True, False, True]
    assert kept["drop", "keep"] == [True, True, True, False, True]
    assert kept["keep", "drop"] == [True, False, True, True, True]
    assert all(kept["keep", "keep"])
    test = pa.Table.from_pylist([{"text": f"{long} in the shire", "label": "news"}, {"text": "a short one", "label": "news"}])
    leaky = audit(pa.Table.from_pylist(rows), AuditSettings(tests={"held_out": test}))
    (leak,) = [finding for finding in leaky.findings if finding.kind == "leaks"]
    assert leak.action.startswith("Drop the 4 rows that repeat held_out, 2 of them nearly: ")
    for near, left in (("drop", [False, False, False, False, True]), ("keep", [True, True, False, False, True])):
        assert repair_of(leaky, Repair(near_leaks=near, copies="keep", near_copies="keep")).keep.tolist() == left


def test_columns_stay_in_their_order_and_rows_have_the_files_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ticket,label,message\n1,x,one\n1a,x,one,ragged\n2,y,two\n3,x,one\n")
    found = audit(tmp_path / "a.csv", AuditSettings(columns=ColumnNames({"text": "message"})))
    write_repaired(found.evidence, repair_of(found, Repair()), tmp_path / "b.parquet")
    table = pq.read_table(tmp_path / "b.parquet")
    assert table.column_names == ["ticket", "label", "message", "original_row"]
    assert table.to_pylist()[1] == {"ticket": "2", "label": "y", "message": "two", "original_row": 3}
    assert found.file.left_out == {"another number of cells": 1}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["audit", *map(str, arguments)])


def test_the_command_writes_the_set_and_says_what_it_cost(folder: Path, tmp_path: Path) -> None:
    done = run(
        *(folder / "pool.parquet", "--reference", folder / "original.parquet", "--test", folder / "test.parquet"),
        *("--repair", tmp_path / "new" / "out.parquet", "--repair-as", "heuristics=keep", "--output", tmp_path / "page"),
    )
    assert done.exit_code == 0, done.output
    assert "leaks into the test set test: 45 dropped" in done.stdout and "of 1,725 rows are left" in done.stdout
    assert pq.read_table(tmp_path / "new" / "out.parquet").num_rows < 1_725 - 45
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["out.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repair", "out.csv"), "give a name that ends in .parquet"),
        (("--repair-as", "noisy=drop"), "without --repair OUT.parquet"),
        (
            ("--repair", "o.parquet", "--repair-as", "noise=drop"),
            "it is none of leaks, near_leaks, originals, noisy, copies, near_copies, heuristics",
        ),
        (("--repair", "o.parquet", "--repair-as", "noisy=forget"), "'forget' is none of drop, relabel, keep"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_file_is_read(arguments: tuple[str, ...], message: str) -> None:
    done = run("missing.parquet", *arguments)
    assert done.exit_code == 1 and message in done.stderr


def test_a_file_of_json_lines_is_repaired_with_its_other_columns(tmp_path: Path) -> None:
    line = '{{"text": "the {word} film", "label": "{label}", "meta": {{"n": {n}}}}}'
    lines = [
        line.format(word=word, label=label, n=n) for n, (word, label) in enumerate((("good", "1"), ("bad", "0"), ("good", "1")))
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    found = audit(tmp_path / "a.jsonl")
    write_repaired(found.evidence, repair_of(found, Repair()), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        {"text": "the good film", "label": "1", "meta": '{"n": 0}', "original_row": 1},
        {"text": "the bad film", "label": "0", "meta": '{"n": 1}', "original_row": 3},
    ]

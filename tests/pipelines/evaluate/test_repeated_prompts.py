"""A prompt that stands in several rows, of one set or several, is computed once, and every row gets its logits."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluate import evaluation
from pipelines.evaluate.evaluation import DistinctPrompts, EvaluationConfig, evaluate
from pipelines.evaluate.judge import Judge, JudgementConfig, judge
from pipelines.resources import Resources
from pipelines.tasks.examples import write_examples
from tests.pipelines.conftest import labelled_pairs

HERE = Resources(in_process=True)
LOGITS = ["logit_entailment", "logit_neutral", "logit_contradiction"]
SETS = ("first", "again", "chosen")
NUM_ROWS, NUM_DISTINCT = 30 + 24 + 9, 30 + 10


def rows_of(table, places, prefix):
    chosen = table.take(pa.array(places))
    return chosen.set_column(0, "id", pa.array([f"{prefix}-{place}" for place in range(len(places))]))


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    """30 pairs; then 10 of them, 10 others, and 4 of those others a second time; then 9 of the first, out of order."""
    folder = tmp_path_factory.mktemp("repeating")
    pairs = labelled_pairs(40, seed=11)
    assert len(set(zip(pairs["premise"].to_pylist(), pairs["hypothesis"].to_pylist(), strict=True))) == 40
    write_examples(rows_of(pairs, list(range(30)), "first"), folder / "first.parquet")
    write_examples(rows_of(pairs, [*range(33, 37), *range(20, 40)], "again"), folder / "again.parquet")
    write_examples(rows_of(pairs, list(range(27, 0, -3)), "chosen"), folder / "chosen.parquet")
    return str(folder)


@pytest.fixture
def num_classified(monkeypatch):
    """How many sequences were computed, a call of `classify` after the other."""
    counts = []
    classify = evaluation.classify

    def counted(classifier, batches, device):
        logits = classify(classifier, batches, device)
        counts.append(len(logits))
        return logits

    monkeypatch.setattr(evaluation, "classify", counted)
    return counts


def test_sets_together_have_the_logits_of_each_alone(repeating, base_model, untrained, tmp_path, num_classified):
    reports = []
    config = EvaluationConfig(SETS, dtype="float32", tokens_per_batch=200)
    metrics = evaluate(
        config, repeating, base_model, untrained, str(tmp_path / "together"), resources=HERE,
        report=lambda values, step: reports.append((step, values["fraction_done"])),
    )  # fmt: skip
    assert num_classified == [30, 10], "new prompts of a set only, and none of the last"
    assert (metrics["num_examples"], metrics["num_computed"]) == (NUM_ROWS, NUM_DISTINCT)
    assert metrics["examples_per_s"] == pytest.approx(NUM_DISTINCT / metrics["evaluate_s"])
    assert reports == [(1, 0.75), (2, 1.0), (3, 1.0)]

    together = pq.read_table(tmp_path / "together" / "logits.parquet")
    assert together["set"].to_pylist() == ["first"] * 30 + ["again"] * 24 + ["chosen"] * 9
    start = 0
    for name in SETS:
        alone_config = dataclasses.replace(config, sets=(name,))
        found = evaluate(alone_config, repeating, base_model, untrained, str(tmp_path / name), resources=HERE)
        alone = pq.read_table(tmp_path / name / "logits.parquet")
        part = together.slice(start, alone.num_rows)
        start += alone.num_rows
        assert part.drop_columns(LOGITS).equals(alone.drop_columns(LOGITS))
        assert part["id"].to_pylist() == pq.read_table(f"{repeating}/{name}.parquet")["id"].to_pylist()
        for column in LOGITS:
            np.testing.assert_allclose(part[column].to_numpy(), alone[column].to_numpy(), rtol=1e-5, atol=1e-6)
            assert np.ptp(part[column].to_numpy()) > 1e-3, "rows that could be told apart"
        assert metrics[f"{name}/accuracy"] == found[f"{name}/accuracy"]
        assert found["num_computed"] == {"first": 30, "again": 20, "chosen": 9}[name]


def test_a_judge_computes_a_prompt_once_for_the_pool_and_the_gold_sets(
    repeating, base_model, untrained, tmp_path, num_classified
):
    config = JudgementConfig(("first", "chosen"), dtype="float32")
    metrics = judge(
        config, f"{repeating}/again.parquet", repeating, base_model, [Judge(untrained)], str(tmp_path), resources=HERE
    )
    assert num_classified == [20, 20], "the pool's 20, and of the gold sets what it has not"
    assert (metrics["num_examples"], metrics["num_computed"], metrics["num_not_judged"]) == (NUM_ROWS, NUM_DISTINCT, 0)
    evaluate(EvaluationConfig(SETS, dtype="float32"), repeating, base_model, untrained, str(tmp_path / "out"), resources=HERE)
    evaluated = pq.read_table(tmp_path / "out" / "logits.parquet")
    exponentials = np.exp(np.stack([evaluated[column] for column in LOGITS], axis=1))
    shares = dict(zip(evaluated["id"].to_pylist(), exponentials / exponentials.sum(axis=1, keepdims=True), strict=True))
    for name in ("judgements.parquet", "gold.parquet"):
        table = pq.read_table(tmp_path / name)
        judged = np.stack([table[column.replace("logit", "p")] for column in LOGITS], axis=1)
        np.testing.assert_allclose(judged, [shares[identifier] for identifier in table["id"].to_pylist()], rtol=1e-5)


def test_two_judges_compute_a_prompt_that_both_have_to_judge_once_each(
    repeating, base_model, untrained, tmp_path, num_classified
):
    """Copies of a row go to one judge or the other by their ids."""
    config = JudgementConfig(("first",), dtype="float32")
    judges = [Judge(untrained), Judge(untrained)]
    metrics = judge(config, f"{repeating}/again.parquet", repeating, base_model, judges, str(tmp_path), resources=HERE)
    tables = [pq.read_table(tmp_path / name) for name in ("judgements.parquet", "gold.parquet")]
    pairs = {}
    for table, name in zip(tables, ("again", "first"), strict=True):
        texts = pq.read_table(Path(repeating) / f"{name}.parquet", columns=["premise", "hypothesis"]).to_pylist()
        for text, row in zip(texts, table.to_pylist(), strict=True):
            pairs.setdefault((row["judge"], *text.values()), []).append(row["p_neutral"])
    assert {number for number, *_ in pairs} == {0, 1}
    assert sum(num_classified) == metrics["num_computed"] == len(pairs) < metrics["num_examples"] == 54
    assert all(len(set(shares)) == 1 for shares in pairs.values())


def test_prompts_are_told_apart_by_their_token_ids_over_all_that_are_given():
    distinct = DistinctPrompts()
    numbers, new = distinct.add([[1, 2], [1], [1, 2], [2, 1]])
    assert numbers.tolist() == [0, 1, 0, 2] and new == [[1, 2], [1], [2, 1]]
    numbers, new = distinct.add([[2, 1], [151_665], [1]])
    assert numbers.tolist() == [2, 3, 1] and new == [[151_665]] and len(distinct) == 4
    numbers, new = distinct.add([])
    assert numbers.tolist() == new == []

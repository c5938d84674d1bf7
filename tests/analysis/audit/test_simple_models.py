"""Models of words judge rows whose texts they have not seen; of real rows with planted flips no number is wrong."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis.audit.noise import CANNOT_TELL, MANY, JudgedLabels, label_noise
from analysis.audit.simple_models import NUM_FOLDS, SimpleJudgement, cross_validated, features_of, judged_by_trusted
from analysis.corpus.words import word_hashes

SHARED = (Path(__file__).parents[3] / ".." / "shared" / "data").resolve()
PAIR, TEXT = ("premise", "hypothesis"), ("text",)
NUM_ROWS = 5_000


def sst2(num: int = NUM_ROWS, start: int = 0, name: str = "train") -> pa.Table:
    if not (path := SHARED / "sst2" / f"{name}.tsv").exists():
        pytest.skip(f"{path} is not there")
    rows = [line.split("\t") for line in path.read_text().splitlines()[1 + start : 1 + start + num]]
    return pa.table({"label": [row[1] for row in rows], "text": [row[0] for row in rows]})


def multinli(num: int = NUM_ROWS, start: int = 0) -> pa.Table:
    if not (path := SHARED / "multinli" / "multinli_1.0_train.jsonl").exists():
        pytest.skip(f"{path} is not there")
    with path.open() as file:
        rows = [json.loads(line) for _, line in zip(range(start + num), file, strict=False)][start:]
    names = {"label": "gold_label", "premise": "sentence1", "hypothesis": "sentence2"}
    return pa.table({name: [row[column] for row in rows] for name, column in names.items()})


def flipped(table: pa.Table, share: float, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """The table with a share of its labels turned to another one, and where: bool [n]."""
    random, labels = np.random.default_rng(seed), np.array(table["label"].to_pylist(), object)
    names = sorted(set(labels))
    rows = random.permutation(len(labels))[: round(share * len(labels))]
    wrong = np.zeros(len(labels), bool)
    wrong[rows] = True
    for row in rows:
        labels[row] = random.choice([name for name in names if name != labels[row]])
    return table.set_column(table.column_names.index("label"), "label", pa.array(labels.tolist())), wrong


def joined(table: pa.Table, said: SimpleJudgement) -> JudgedLabels:
    labels = [said.labels.index(label) for label in table["label"].take(pa.array(said.rows)).to_pylist()]
    return JudgedLabels(np.array(labels), said.probabilities, said.clusters, np.zeros((len(labels), 0), bool))


def accuracy(table: pa.Table, said: SimpleJudgement) -> float:
    rows = joined(table, said)
    return float(np.mean(rows.judged == rows.labels))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("read", "fields"), [(sst2, TEXT), (multinli, PAIR)])
def test_flips_of_real_rows_are_within_every_interval_and_no_model_of_the_same_rows_has_a_verdict(read, fields, share) -> None:
    table, wrong = flipped(read(), share)
    said = cross_validated(table, fields, seed=0)
    rows, wrong = joined(table, said), wrong[said.rows]
    noise = label_noise(rows, said.labels, knows_labels=True)
    for rate in (noise.in_all, *noise.rates):
        of_label = np.ones(len(wrong), bool) if rate.label is None else rows.labels == said.labels.index(rate.label)
        assert rate.interval.low <= wrong[of_label].mean() <= rate.interval.high, rate
        assert rate.verdict == CANNOT_TELL and rate.rate is None
    # What to read first is far more often wrong than a row at random.
    first = noise.suspects.rows[:100]
    assert share == 0 or wrong[first].mean() > 2 * share


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_with_trusted_rows_flips_are_measured_and_a_weak_model_says_that_it_cannot_tell(share: float) -> None:
    for read, fields, is_weak in ((sst2, TEXT, False), (multinli, PAIR, True)):
        (table, wrong), trusted = flipped(read(3_000), share), read(24_000 if read is sst2 else 4_000, 3_000)
        labels = sorted(set(trusted["label"].to_pylist()))
        said, of_trusted = judged_by_trusted(table, trusted, fields, labels, seed=0)
        noise = label_noise(joined(table, said), labels, (), joined(trusted, of_trusted))
        in_all = noise.in_all
        assert in_all.interval.low <= wrong[said.rows].mean() <= in_all.interval.high
        assert in_all.verdict == (MANY if share == 0.2 and not is_weak else CANNOT_TELL), in_all


def test_wrong_labels_of_doubtful_rows_alone_are_not_said_to_be_few() -> None:
    # The judge is at chance of these rows and disagrees with no more of them, so that the rate is not right.
    table, trusted = sst2(3_000), sst2(24_000, 3_000)
    said, of_trusted = judged_by_trusted(table, trusted, TEXT, ("0", "1"), seed=0)
    doubtful = np.argsort(np.abs(said.probabilities[:, 0] - 0.5))[:300]
    rows = joined(table, said)
    rows.labels[doubtful] = 1 - rows.labels[doubtful]
    noise = label_noise(rows, ("0", "1"), (), joined(trusted, of_trusted))
    assert noise.in_all.interval.high < 0.08 and noise.in_all.verdict == CANNOT_TELL


def test_whole_sentences_are_not_said_to_be_wrong_by_models_of_phrases() -> None:
    # The models err more of SST-2's sentences than of its phrases, so that the rate is not right: no verdict stands on it.
    table, trusted = sst2(name="test"), sst2(24_000)
    said, of_trusted = judged_by_trusted(table, trusted, TEXT, ("0", "1"), seed=0)
    noise = label_noise(joined(table, said), ("0", "1"), (), joined(trusted, of_trusted))
    assert noise.in_all.rate > 0.03 and {rate.verdict for rate in (noise.in_all, *noise.rates)} == {CANNOT_TELL}


def random_pairs(num: int, num_premises: int, seed: int = 0) -> pa.Table:
    """Pairs whose label is whether the hypothesis has a word of the premise: neither text alone tells it."""
    random = np.random.default_rng(seed)
    words = np.array([f"w{number}" for number in range(60)])
    premises = [random.choice(words, 8, replace=False) for _ in range(num_premises)]
    rows = []
    for number in range(num):
        premise = premises[number % num_premises]
        is_within = random.random() < 0.5
        hypothesis = random.choice(premise if is_within else np.setdiff1d(words, premise), 3, replace=False)
        rows.append({"label": "yes" if is_within else "no", "premise": " ".join(premise), "hypothesis": " ".join(hypothesis)})
    return pa.Table.from_pylist(rows)


def test_a_pair_is_judged_with_both_sides() -> None:
    table = random_pairs(2_000, 1_000)
    assert accuracy(table, cross_validated(table, PAIR, seed=0)) > 0.95
    assert accuracy(table, cross_validated(table, ("hypothesis",), seed=0)) < 0.6


def test_the_same_seed_gives_the_same_numbers_and_rows_are_drawn_by_it() -> None:
    table = random_pairs(1_500, 700)
    first, again, other = (cross_validated(table, PAIR, seed=seed, most_rows=1_000) for seed in (0, 0, 1))
    assert (first.rows == again.rows).all() and (first.probabilities == again.probabilities).all()
    assert len(first.rows) == len(other.rows) == 1_000 and (first.rows != other.rows).any()
    assert (np.diff(first.rows) > 0).all() and first.probabilities.dtype == np.float32
    assert (first.clusters[:, None] == first.clusters).sum() > 1_000  # rows with one premise are one cluster


def test_no_row_is_judged_by_a_model_that_has_seen_one_of_its_texts() -> None:
    # Labels are drawn by premise, without rule: a model that has seen a premise knows its label, and one that has not guesses.
    random = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(3_000)])
    premises = [" ".join(random.choice(words, 8)) for _ in range(400)]
    labels = random.integers(0, 2, 400)
    chosen = np.arange(2_000) % 400
    texts = {
        "premise": [premises[row] for row in chosen],
        "hypothesis": [" ".join(random.choice(words, 5)) for _ in range(2_000)],
    }
    table = pa.table({"label": [str(labels[row]) for row in chosen], **texts})
    assert accuracy(table, cross_validated(table, PAIR, seed=0)) < 0.6
    # The same, the other way round, and where the shared text is now in one field, now in the other.
    swapped = table.rename_columns(["label", "hypothesis", "premise"])
    assert accuracy(swapped, cross_validated(swapped, PAIR, seed=0)) < 0.6
    both = pa.concat_tables([table.slice(0, 1_000), swapped.select(table.column_names).slice(1_000)])
    assert accuracy(both, cross_validated(both, PAIR, seed=0)) < 0.6


def test_rows_that_hang_together_or_are_too_few_are_not_judged_and_it_says_why() -> None:
    table = random_pairs(1_000, 500)
    one_premise = table.set_column(1, "premise", pa.repeat("the same", 1_000))
    # The hypotheses still differ, but every row shares the premise with all others.
    said = cross_validated(one_premise, PAIR, seed=0)
    assert len(said.rows) == 0 and "share their texts with each other" in said.reason
    assert "300 rows are too few" in cross_validated(table.slice(0, 300), PAIR, seed=0).reason
    assert "one label" in cross_validated(table.set_column(0, "label", pa.repeat("yes", 1_000)), PAIR, seed=0).reason


def test_texts_without_a_word_are_themselves_only() -> None:
    table = random_pairs(1_000, 1_000)
    marks = [f"{'?' * (number % 40)}{'!' * (number // 40 + 1)}" for number in range(1_000)]
    # If they were all alike, no row would be left to train on.
    assert len(cross_validated(table.append_column("mark", pa.array(marks)), ("premise", "mark"), seed=0).rows) == 1_000


def test_trusted_rows_alone_are_learnt_from() -> None:
    table, trusted = random_pairs(2_000, 2_000, seed=1), random_pairs(900, 900, seed=2)
    upside_down = table.set_column(
        0, "label", pa.array([{"yes": "no", "no": "yes"}[one] for one in table["label"].to_pylist()])
    )
    said, of_trusted = judged_by_trusted(upside_down, trusted, PAIR, ("no", "yes"), seed=0)
    assert accuracy(trusted, of_trusted) > 0.8 and accuracy(upside_down, said) < 0.2
    assert len(said.rows) == 2_000 and len(of_trusted.rows) == 900


def test_features_are_scaled_rows_and_rare_ones_are_left_out() -> None:
    words = [word_hashes(pa.array(["a b b", "a c", "a", "a d", "a"]))]
    matrix = features_of(words)
    # 'a' and 'a at the start' are in at least three rows; with the intercept that makes three features of every row.
    assert matrix.shape == (5, 3) and matrix.nnz == 15
    np.testing.assert_allclose(np.asarray(matrix.power(2).sum(axis=1)).ravel(), 25)
    assert NUM_FOLDS == 5

"""The audit's numbers: by hand where they can be, else against what was put into the data."""

import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.corpus.input import open_texts
from analysis.corpus.measures import (
    AS_REFERENCE,
    CANNOT_TELL,
    GOES_WITH,
    PLANTS,
    WEAKER,
    Ratio,
    difference,
    diversity,
    heuristic_findings,
    judge,
    lengths,
    odds_ratio,
    one_field,
    ratio_of_odds_ratios,
)
from analysis.corpus.scan import Scan, scan_texts
from analysis.stats.statistics import Interval, mean_estimate


def rows_of(counts: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a 2 x 2 table: holds and entailment, holds and not, neither way the same; each with its own premise."""
    holds = np.repeat([True, True, False, False], counts)
    entailment = np.repeat([True, False, True, False], counts)
    return holds, entailment, np.arange(sum(counts), dtype=np.uint64)


def test_an_odds_ratio_by_hand() -> None:
    # With a half added: 20.5 * 60.5 / (5.5 * 30.5) = 7.3935; its logarithm's variance is
    # 1/20.5 + 1/5.5 + 1/30.5 + 1/60.5 = 0.27991, so 2.0006 -+ 1.96 * 0.52907.
    found = odds_ratio(*rows_of((20, 5, 30, 60)))
    assert found.value == pytest.approx(7.3935, abs=1e-4)
    assert found.log_error == pytest.approx(0.52907, abs=1e-5)
    assert (found.interval.low, found.interval.high) == pytest.approx((2.6213, 20.854), rel=1e-3)
    assert found.n == 115 and found.design_effect == 1


def test_rows_that_share_a_premise_count_as_one_draw() -> None:
    holds, entailment, premise = rows_of((20, 5, 30, 60))
    once = odds_ratio(holds, entailment, premise)
    fourfold = odds_ratio(*(np.repeat(column, 4) for column in (holds, entailment, premise)))
    assert fourfold.design_effect == pytest.approx(4)
    # Not quite the same: the half that is added weighs less among four times the rows.
    assert fourfold.log_error == pytest.approx(once.log_error, rel=0.05)
    naive = odds_ratio(np.repeat(holds, 4), np.repeat(entailment, 4), np.arange(4 * len(holds), dtype=np.uint64))
    assert fourfold.log_error == pytest.approx(2 * naive.log_error, rel=1e-9)


def test_premises_with_one_hypothesis_of_each_label_do_not_narrow_the_interval() -> None:
    holds, entailment, premise = rows_of((20, 20, 30, 30))
    assert odds_ratio(holds, entailment, premise % np.uint64(50)).design_effect == 1


@pytest.mark.parametrize("counts", [(0, 0, 5, 5), (5, 5, 0, 0), (5, 0, 5, 0), (0, 5, 0, 5)])
def test_an_odds_ratio_of_nothing_raises(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="nothing to compare with"):
        odds_ratio(*rows_of(counts))


def test_odds_ratios_cover_what_they_estimate() -> None:
    """95% intervals of 4,000 draws with a true odds ratio of 6; 3 standard deviations of the share are 1 point."""
    random_numbers = np.random.default_rng(0)
    p, q = 0.6, 0.2  # entailment where it holds and where not: odds 1.5 and 0.25
    inside = 0
    for holding, others in zip(random_numbers.binomial(40, p, 4_000), random_numbers.binomial(400, q, 4_000), strict=True):
        around = odds_ratio(*rows_of((holding, 40 - holding, others, 400 - others))).interval
        inside += around.low <= 6 <= around.high
    assert 0.94 < inside / 4_000 < 0.965


def ratio(low: float, high: float) -> Ratio:
    return Ratio(math.sqrt(low * high), 0.1, 10, Interval(low, high), "")


@pytest.mark.parametrize(
    ("low", "high", "verdict", "why"),
    [
        (1.3, 2.0, PLANTS, "over 1.25 times"),
        (0.5, 0.79, WEAKER, "under 1/1.25"),
        (0.81, 1.24, AS_REFERENCE, "within a factor of 1.25"),
        (1.1, 1.2, AS_REFERENCE, "within a factor of 1.25"),
        (1.1, 2.0, CANNOT_TELL, "stronger than the reference, but"),
        (0.5, 0.9, CANNOT_TELL, "weaker than the reference, but"),
        (0.5, 2.0, CANNOT_TELL, "too wide"),
    ],
)
def test_the_verdict_is_read_from_interval_and_margin(low: float, high: float, verdict: str, why: str) -> None:
    found, reason = judge(ratio(low, high), 1.25, "the reference")
    assert found == verdict and why in reason


def test_a_ratio_of_odds_ratios_by_hand() -> None:
    one, other = odds_ratio(*rows_of((20, 5, 30, 60))), odds_ratio(*rows_of((50, 50, 50, 50)))
    found = ratio_of_odds_ratios(one, other)
    # The second is 1, and its logarithm's variance 4/50.5 = 0.079208: sqrt(0.27991 + 0.079208) = 0.59927.
    assert found.value == pytest.approx(7.3935, abs=1e-4)
    assert found.log_error == pytest.approx(0.59927, abs=1e-5)
    assert found.n == 315


PREMISE, OTHER = "the tall artist saw the small lawyer near town", "a quick fox jumps"
OVERLAP = "the artist saw the town"


def scan_of(folder: Path, counts: tuple[int, int, int, int], name: str = "pairs") -> Scan:
    """A file whose lexical overlap and entailment are a 2 x 2 table; each pair has a premise of its own."""
    holds, entailment, _ = rows_of(counts)
    rows = [
        {"premise": f"{PREMISE} {i}", "hypothesis": OVERLAP if o else OTHER, "label": "entailment" if e else "neutral"}
        for i, (o, e) in enumerate(zip(holds, entailment, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return scan_texts(open_texts(folder / f"{name}.parquet"))


def test_findings_compare_with_the_reference(tmp_path: Path) -> None:
    weak = scan_of(tmp_path, (100, 100, 400, 400), "weak")
    strong = scan_of(tmp_path, (190, 10, 300, 500), "strong")
    overlap, subsequence, *_, parsed = heuristic_findings(strong, weak)
    assert (overlap.verdict, overlap.name) == (PLANTS, "lexical_overlap")
    assert overlap.relative is not None and overlap.odds_ratio is not None and overlap.reference is not None
    assert overlap.odds_ratio.value == pytest.approx(190.5 * 500.5 / (10.5 * 300.5))
    assert overlap.reference.value == pytest.approx(1.0)
    assert overlap.by_label is not None and overlap.predicted is not None
    assert (overlap.by_label["neutral"].count, overlap.by_label["neutral"].n) == (10, 510)
    assert (overlap.predicted.count, overlap.predicted.n) == (190, 200)
    assert (subsequence.verdict, subsequence.reason) == (CANNOT_TELL, "it holds of no row")
    assert subsequence.predicted is None and subsequence.all_rows is not None and subsequence.all_rows.interval.high < 0.01
    assert parsed.verdict == CANNOT_TELL and "needs a parse" in parsed.reason and parsed.all_rows is None

    assert heuristic_findings(weak, strong)[0].verdict == WEAKER
    large = scan_of(tmp_path, (4_000, 1_000, 6_000, 9_000), "large")
    assert heuristic_findings(large, large)[0].verdict == AS_REFERENCE
    few = scan_of(tmp_path, (3, 2, 10, 10), "few")
    assert heuristic_findings(few, weak)[0].verdict == CANNOT_TELL


def test_without_a_reference_it_is_compared_with_no_association(tmp_path: Path) -> None:
    finding = heuristic_findings(scan_of(tmp_path, (190, 10, 300, 500)))[0]
    assert finding.verdict == GOES_WITH and "over 1.25 times as high where it holds" in finding.reason
    assert finding.reference is None and finding.relative == finding.odds_ratio


def test_one_label_only_cannot_be_told(tmp_path: Path) -> None:
    finding = heuristic_findings(scan_of(tmp_path, (20, 0, 30, 0)))[0]
    assert (finding.verdict, finding.reason) == (CANNOT_TELL, "every row is entailment")


def sample_of(count: int, share: float, seed: int = 0) -> pa.Table:
    """Hypotheses of random words; a contradiction has 'never' in it with a probability of `share`."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        label = source.choice(["contradiction", "entailment"])
        words = source.choices([f"w{i}" for i in range(300)], k=8)
        if label == "contradiction" and source.random() < share:
            words.insert(4, "Never,")
        rows.append({"label": label, "premise": " ".join(source.choices("abcdef", k=9)), "hypothesis": " ".join(words)})
    return pa.Table.from_pylist(rows)


def test_a_hypothesis_that_gives_the_label_away_is_noticed() -> None:
    found = one_field(sample_of(5_000, share=0.8), "hypothesis")
    assert found.accuracy is not None and found.majority is not None and found.lift is not None
    # The best one can do is 1/2 + 0.8/2 = 0.9.
    assert 0.87 < found.accuracy.share < 0.93 and 0.45 < found.majority.share < 0.55
    assert found.lift.interval is not None and found.lift.interval.low > 0.3
    assert found.lift.mean == pytest.approx(found.accuracy.share - found.majority.share)
    assert found.accuracy.n + found.num_training == 5_000


def test_a_hypothesis_that_says_nothing_is_not_above_the_majority() -> None:
    found = one_field(sample_of(5_000, share=0.0), "hypothesis")
    assert found.lift is not None and found.lift.interval is not None
    assert found.lift.interval.low < 0.02 and abs(found.lift.mean) < 0.05


def test_rows_that_share_the_other_text_are_held_out_together() -> None:
    """Sets of minimal pairs with one label each: their hypotheses are near copies, which would tell each other's labels."""
    source = random.Random(2)
    rows = []
    for index in range(400):
        words, label = source.choices([f"w{i}" for i in range(2_000)], k=8), source.choice(["a", "b"])
        rows += [{"label": label, "premise": f"p{index}", "hypothesis": " ".join([*words, end])} for end in ("x", "y", "z")]
    found = one_field(pa.Table.from_pylist(rows), "hypothesis")
    assert found.lift is not None and found.lift.interval is not None and found.lift.interval.low < 0 < found.lift.interval.high
    alone = one_field(pa.Table.from_pylist(rows).drop_columns("premise"), "hypothesis")
    assert alone.lift is not None and alone.lift.mean > 0.2


def test_texts_without_a_common_word_show_nothing() -> None:
    """200 names, each with one label: a model of the others' words says the most frequent label, which clears nothing."""
    rows = [{"name": f"name{i}", "text": f"t{i}x{copy}", "label": "ab"[i % 2]} for i in range(200) for copy in range(20)]
    found = one_field(pa.Table.from_pylist(rows), "name")
    assert found.lift is None and found.reason.startswith("most held-out texts have no word of the others")


def test_a_hypothesis_seen_in_training_is_never_held_out() -> None:
    """Labels that are noise, but the same for each of 60 hypotheses: remembering them would be 100% accurate."""
    source = random.Random(1)
    kinds = [(f"only{i} text", source.choice(["a", "b"])) for i in range(60)]
    table = pa.Table.from_pylist([{"hypothesis": text, "label": label} for text, label in kinds * 50])
    found = one_field(table, "hypothesis")
    assert found.accuracy is not None and found.accuracy.share < 0.9


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (sample_of(100, 0.5), "100 rows are too few"),
        (pa.table({"label": ["a"] * 600, "hypothesis": ["h"] * 600}), "all rows have the label 'a'"),
        (pa.table({"label": ["a", "b"] * 300, "hypothesis": ["h"] * 600}), "too much alike"),
    ],
)
def test_there_is_a_reason_for_no_baseline(table: pa.Table, reason: str) -> None:
    found = one_field(table, "hypothesis")
    assert reason in found.reason and found.accuracy is None


def test_lengths_by_hand(tmp_path: Path) -> None:
    found = {(one.label, one.field): one for one in lengths(scan_of(tmp_path, (2, 0, 1, 1)))}
    entailed = found["entailment", "hypothesis"]  # 5, 5 and 4 words
    assert entailed.mean.n == 3 and entailed.mean.mean == pytest.approx(14 / 3) and entailed.median == 5
    assert found["neutral", "premise"].mean.mean == 10 and found["neutral", "premise"].mean.interval is None


def test_distinct_n_by_hand() -> None:
    # 10 words over and over, ten to a text: of 5,000 words 10 differ, of 4,500 pairs 9, of 4,000 triples 8.
    table = pa.table({"premise": ["a b c d e f g h i j"] * 1_000, "hypothesis": ["short"] * 1_000})
    premise, hypothesis = diversity(table, table.column_names)
    assert {n: (one.mean, one.n) for n, one in premise.distinct.items()} == {
        1: (pytest.approx(10 / 5_000), 2),
        2: (pytest.approx(9 / 4_500), 2),
        3: (pytest.approx(8 / 4_000), 2),
    }
    assert hypothesis.distinct == {} and "1,000 words are too few" in hypothesis.reason


def test_repetition_lowers_distinct_n_whatever_the_size() -> None:
    source, words = random.Random(0), [f"w{i}" for i in range(2_000)]
    texts = {count: [" ".join(source.choices(words, k=10)) for _ in range(count)] for count in (2_000, 20_000)}
    small, large = (diversity(pa.table({"premise": one}), ["premise"])[0].distinct[1].mean for one in texts.values())
    assert small == pytest.approx(large, rel=0.02)
    repeated = texts[2_000][:50] * 40
    assert diversity(pa.table({"premise": repeated}), ["premise"])[0].distinct[1].mean < small / 2


def test_a_difference_of_means_is_welchs() -> None:
    from scipy import stats

    one, other = [0.1, 0.2, 0.4, 0.3], [0.5, 0.55, 0.45]
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    found = difference(mean_estimate(one), mean_estimate(other))
    assert found is not None and (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert difference(mean_estimate([0.1]), mean_estimate(other)) is None

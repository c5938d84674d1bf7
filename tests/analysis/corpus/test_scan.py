"""The streaming core: what is measured of a row, and which rows repeat others."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.corpus import scan
from analysis.corpus.audited import parsed_constituent
from analysis.corpus.copies import NO_ROW, copies_of, duplicates
from analysis.corpus.input import TextFile, clean_batch, open_texts
from analysis.corpus.scan import Scan, apply_heuristics, scan_texts
from analysis.corpus.words import word_hashes
from pipelines.errors import UserError
from pipelines.tables import readers
from pipelines.tasks.heuristics import has_lexical_overlap, is_likely_constituent, is_subsequence
from pipelines.tasks.words import words_of

ROOT = Path(__file__).parents[3]
MULTINLI = (ROOT / ".." / "shared" / "data" / "multinli" / "multinli_1.0_train.jsonl").resolve()
WORDS = [f"{first}{middle}{last}" for first in "bdgklmnprst" for middle in "aeiou" for last in "nrstl"]


def scan_of(folder: Path, rows: list[tuple[str, str, str]], name: str = "pairs", **options: object) -> Scan:
    table = pa.table([list(column) for column in zip(*rows, strict=True)], ["premise", "hypothesis", "label"])
    pq.write_table(table, folder / f"{name}.parquet")
    return scan_texts(open_texts(folder / f"{name}.parquet"), **options)  # type: ignore[arg-type]


def random_rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Sentences of few words, some with odd characters and spacing, of which some overlap."""
    source = random.Random(seed)
    odd = ["The", "the", ".", "?", "runs.", "İstanbul", "ΣΑΣ", "a\u00a0b", "x\x1cy", "don't", "東京", "ß", "…"]
    rows = []
    for _ in range(count):
        premise = source.choices([*odd, *WORDS[:10]], k=source.randint(1, 9))
        inside = source.random() < 0.5
        start = source.randrange(len(premise))
        hypothesis = premise[start : start + 3] if inside else source.choices([*odd, *WORDS[:10]], k=source.randint(1, 4))
        if source.random() < 0.3:
            source.shuffle(hypothesis)
        rows.append((source.choice([" ", "  "]).join(premise), " ".join(hypothesis), source.choice(["e", "n"])))
    return rows


def by_words(premise: str, hypothesis: str) -> tuple[bool, bool]:
    """Whether the hypothesis' words are among the premise's, and stand there one after another: by lists and slices."""
    outer, inner = words_of(premise), words_of(hypothesis)
    starts = range(len(outer) - len(inner) + 1)
    return set(inner) <= set(outer), any(outer[start : start + len(inner)] == inner for start in starts)


def expected_heuristics(rows: list[tuple[str, str, str]]) -> list[list[bool]]:
    return [
        [has_lexical_overlap(p, h), is_subsequence(p, h), is_likely_constituent(p, h), *by_words(p, h), False]
        for p, h, _ in rows
    ]


def applied(premises: list[str], hypotheses: list[str], parses: list[str | None] | None = None) -> np.ndarray:
    texts = {name: pa.array(column, pa.string()) for name, column in (("premise", premises), ("hypothesis", hypotheses))}
    words = [word_hashes(column) for column in texts.values()]
    return apply_heuristics(texts, words, None if parses is None else pa.array(parses, pa.string()))


def test_heuristics_are_the_predicates_on_random_rows(tmp_path: Path) -> None:
    rows = random_rows(2_000, seed=1)
    scan = scan_of(tmp_path, rows)
    assert scan.holds.tolist() == expected_heuristics(rows)
    assert 100 < scan.holds[:, 1].sum() < scan.holds[:, 0].sum() < 1_900


def test_heuristics_are_the_predicates_on_real_rows() -> None:
    if not MULTINLI.is_file():
        pytest.skip(f"no MultiNLI at {MULTINLI}")
    raw = next(open_texts(MULTINLI).raw_batches())
    batch = clean_batch(raw, open_texts(MULTINLI))
    premises, hypotheses = (column.to_pylist() for column in batch.texts.values())
    rows = list(zip(premises, hypotheses, hypotheses, strict=True))
    holds = applied(premises, hypotheses)
    assert holds.tolist() == expected_heuristics(rows)
    assert holds[:, 0].sum() > 100


@pytest.mark.parametrize(
    ("hypothesis", "holds"),
    [
        ("The artist slept", True),
        ("the artist slept .", True),
        ("The artist", True),
        ("artist slept", False),
        ("slept , the actor ran", False),
        ("If the artist slept , the actor ran .", True),
    ],
)
def test_a_constituent_is_one_of_the_parse(hypothesis: str, holds: bool) -> None:
    parse = (
        "(ROOT (S (SBAR (IN If) (S (NP (DT the) (NN artist)) (VP (VBD slept)))) (, ,) "
        "(NP (DT the) (NN actor)) (VP (VBD ran)) (. .)))"
    )
    premise = "If the artist slept , the actor ran ."
    assert parsed_constituent([premise], [hypothesis], [parse]).tolist() == [holds]
    assert applied([premise], [hypothesis], [parse])[0, [0, 1, 5]].tolist() == [True, True, holds]


@pytest.mark.parametrize("parse", [None, "", "(S (NP (NN He))", "S)", "(S a) (S b))", "word"])
def test_a_parse_that_is_none_is_refused(parse: str | None) -> None:
    with pytest.raises(UserError, match="its brackets do not match"):
        parsed_constituent(["He"], ["He"], [parse])


def test_words_are_lower_case_without_punctuation() -> None:
    assert words_of(" He said: 'Don't'  -- ok!\n") == ["he", "said", "don't", "ok"]
    words, offsets = word_hashes(pa.array(["A b.", "", "?", "b a a"]))
    assert offsets.tolist() == [0, 2, 2, 2, 5]
    assert words[0] == words[3] == words[4] and words[1] == words[2] and words[0] != words[1]
    # A slice of a larger array has offsets of its own.
    again, _ = word_hashes(pa.array(["other words", "A b.", "", "?", "b a a"]).slice(1))
    assert again.tolist() == words.tolist()


def test_two_processes_and_small_batches_measure_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(3_000, seed=2)
    one = scan_of(tmp_path, rows, sample_rows=100)
    monkeypatch.setattr(scan, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(readers, "MAX_BATCH_ROWS", 70)
    two = scan_of(tmp_path, rows, sample_rows=100, processes=2)
    for name in ("row", "label", "exact", "words", "parts", "signature", "holds", "has_parse", "lengths"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert one.labels == two.labels and one.sample.equals(two.sample) and one.sample.num_rows == 100


def test_the_sample_is_of_all_rows_and_of_the_seed(tmp_path: Path) -> None:
    rows = [(f"p {i}", "h", "l") for i in range(2_000)]
    first, second = (scan_of(tmp_path, rows, seed=seed, sample_rows=200).sample["row"].to_numpy() for seed in (0, 1))
    assert len(set(first)) == len(set(second)) == 200 and set(first) != set(second)
    # Of 200 of 2,000 rows about half lie in each half: binomial, 5 standard deviations.
    assert abs((first <= 1_000).sum() - 100) < 36
    assert (np.diff(first) < 0).any()  # in random order


def test_the_wrong_label_column_is_noticed(tmp_path: Path) -> None:
    for num_rows, num_labels, said in ((50, 50, "50"), (50, 26, "26"), (201, 201, "over 200")):
        with pytest.raises(UserError, match=f"has {said} different labels .* name the column of the labels with --label"):
            scan_of(tmp_path, [("p", "h", f"text {i % num_labels}") for i in range(num_rows)])


@pytest.mark.parametrize(("num_rows", "num_labels"), [(20, 20), (300, 150)])
def test_many_labels_are_read(tmp_path: Path, num_rows: int, num_labels: int) -> None:
    labels = [f"intent {i % num_labels}" for i in range(num_rows)]
    assert len(scan_of(tmp_path, [("p", "h", label) for label in labels]).labels) == num_labels


def test_a_file_without_a_complete_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete row \\(no hypothesis: 2\\)"):
        scan_of(tmp_path, [("p", " ", "l"), ("p", "", "l")])


def kinds(scan: Scan, source: Scan | None = None) -> list[tuple[str, int] | None]:
    copies = copies_of(scan, source, None) if source else duplicates(scan)
    found: list[tuple[str, int] | None] = [None] * scan.num_rows
    for kind in ("exact", "same_words", "near"):
        for row, original in enumerate(getattr(copies, kind)):
            if original != NO_ROW:
                assert found[row] is None, "a row is a copy of one kind only"
                found[row] = (kind, int(original))
    return found


LONG = "the committee met on a cold monday morning to discuss the new budget for roads and schools"
SHORT = "they talked about money for roads and about the schools of the town last week"


def test_a_file_is_closed_when_its_scan_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    read = TextFile.raw_batches

    def watched(source: TextFile, malformed: list[readers.MalformedRow] | None = None) -> Iterator[readers.RawBatch]:
        try:
            yield from read(source, malformed)
        finally:
            closed.append(source.path)

    def fail(*_: object) -> None:
        raise RuntimeError("nobody listens")

    monkeypatch.setattr(TextFile, "raw_batches", watched)
    with pytest.raises(RuntimeError, match="nobody listens") as raised:
        scan_of(tmp_path, [("a", "b", "e")], report=fail)
    # Whoever still has the error has its frames, and what is in them.
    assert raised.tb is not None and closed == [str(tmp_path / "pairs.parquet")]


def test_duplicates_by_hand(tmp_path: Path) -> None:
    rows = [
        (LONG, SHORT, "e"),
        ("A dog runs.", "It moves.", "e"),
        (LONG, SHORT, "n"),  # exact, of row 0, with another label
        ("a DOG  runs", "it moves!", "e"),  # the same words as row 1
        (LONG.replace("monday", "tuesday"), SHORT, "e"),  # near row 0
        (LONG, "nobody met at all and the budget was never a subject of any talk", "n"),  # the premise alone
        ("dog A runs.", "It moves.", "e"),  # the same words in another order
        ("?", "!", "e"),
        ("!", "?", "e"),  # nothing but punctuation is not the same words
        (" ".join([LONG, SHORT, *reversed(LONG.split())]), SHORT, "e"),  # alike to a third
    ]
    expected = [None, None, ("exact", 0), ("same_words", 1), ("near", 0), None, None, None, None, None]
    assert kinds(scan_of(tmp_path, rows)) == expected


def test_copies_from_another_file_by_hand(tmp_path: Path) -> None:
    source = scan_of(tmp_path, [("x y z", "u v w", "e"), (LONG, SHORT, "n")], "source")
    rows = [(LONG, SHORT, "e"), (LONG + "!", SHORT, "e"), (LONG, SHORT.replace("week", "year"), "e"), ("x y z", "other", "e")]
    assert kinds(scan_of(tmp_path, rows), source) == [("exact", 1), ("same_words", 1), ("near", 1), None]


def altered(sentence: list[str], num_words: int, source: random.Random) -> list[str]:
    changed = list(sentence)
    for at in source.sample(range(len(sentence)), num_words):
        changed[at] = source.choice(WORDS)
    return changed


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = (set(zip(["", *words[:-1]], words, strict=True)) for words in (one, other))
    return len(first & second) / len(first | second)


def test_recall_and_precision_of_near_copies(tmp_path: Path) -> None:
    """Measured, as the docstring says: of altered sentences alike to 0.8 or more nearly all are found, of 0.3 or less none."""
    source = random.Random(3)
    originals, copies, likeness = [], [], []
    for _ in range(4_000):
        premise, hypothesis = (source.choices(WORDS, k=source.randint(8, 30)) for _ in range(2))
        other = altered(premise, source.randint(0, 3), source), altered(hypothesis, source.randint(0, 3), source)
        originals.append((" ".join(premise), " ".join(hypothesis), "e"))
        copies.append((" ".join(other[0]), " ".join(other[1]), "e"))
        likeness.append(jaccard(premise, other[0]) * jaccard(hypothesis, other[1]))
    likeness_of = np.array(likeness)
    found = copies_of(scan_of(tmp_path, copies), scan_of(tmp_path, originals, "source"), None).any
    rows = np.arange(len(copies))
    assert set(found[found != NO_ROW] - rows[found != NO_ROW]) == {0}, "a copy is found as one of its own original"
    recall = {low: (found[(likeness_of >= low) & (likeness_of < low + 0.1)] != NO_ROW).mean() for low in (0.9, 0.8, 0.7, 0.6)}
    assert recall[0.9] == 1 and recall[0.8] > 0.99 and recall[0.7] > 0.93 and recall[0.6] > 0.65
    unlike = likeness_of < 0.3
    assert unlike.sum() > 300 and (found[unlike] != NO_ROW).mean() < 0.01
    # Within one file, too.
    within = duplicates(scan_of(tmp_path, originals + copies, "both")).any[len(originals) :]
    assert (within[likeness_of >= 0.8] != NO_ROW).mean() > 0.99


def test_a_thousand_rows_that_are_all_alike_are_all_but_one_near(tmp_path: Path) -> None:
    rows = [(f"{LONG} number{i}", SHORT, "e") for i in range(1_000)]
    assert (duplicates(scan_of(tmp_path, rows)).near != NO_ROW).sum() >= 990

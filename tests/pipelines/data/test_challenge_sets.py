"""Challenge sets from made-up files in the published formats, and the published ones where they are at hand."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.data.challenge_sets import CHALLENGE_SETS, challenge_sets, is_published, missing_challenge_files
from pipelines.data.sources import FILES, MATCHED_FILE, NLISourcesConfig, nli_sources_config, prepare_nli_sources
from pipelines.errors import UserError
from pipelines.identity import MARKS, FileHash, identity
from pipelines.tasks.examples import read_examples
from tests.pipelines.challenge_files import MED, NEG_NLI, SCONE, SMALL, flags, write_all, write_med, write_neg_nli

SHARED = (Path(__file__).parents[3] / ".." / "shared" / "data").resolve()
ALL = ("mnli_hard", "med", "scone", "neg_nli")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(tmp_path / "data")
    return tmp_path / "data"


def prepared(folder: Path, *names: str, **overrides: object) -> tuple[dict[str, list[dict[str, str]]], dict[str, object]]:
    config = nli_sources_config(str(folder), names, **SMALL, **overrides)
    metrics = prepare_nli_sources(config, str(folder / "out"), folder=str(folder))
    return {name: read_examples(folder / f"out/{name}.parquet").to_pylist() for name in names}, metrics


def dropped(folder: Path) -> list[tuple[str, int, str, str]]:
    rows = pq.read_table(folder / "out/dropped.parquet").to_pylist()
    return [(row["set"], row["line"], row["pair_id"], row["reason"]) for row in rows if row["set"] in ALL]


def test_mnli_hard_joins_its_flags_to_the_labelled_rows(folder: Path) -> None:
    sets, metrics = prepared(folder, "mnli_hard")
    assert [(row["id"], row["hypothesis"], row["label"], row["hardness"], row["part"]) for row in sets["mnli_hard"]] == [
        ("mnli_hard-matched-000000", "It pours.", "neutral", "hard", "matched"),
        ("mnli_hard-matched-000001", "It rains.", "entailment", "easy", "matched"),
        ("mnli_hard-mismatched-000000", "It is dry.", "contradiction", "easy", "mismatched"),
    ]
    assert metrics["mnli_hard/num_examples"] == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, "12n", 1)], "has flags for 1 rows and MultiNLI's matched development file has 2 labelled rows"),
        ([(0, "12n", 1), (2, "14e", 0)], r"csv:3: idx=2 is no row of .*matched development file, which has 2"),
        ([(0, "12n", 1), (-1, "14e", 0)], "idx=-1 is no row"),
        ([(0, "12n", 1), (0, "14e", 0)], "idx=0 is flagged twice"),
        ([(0, "12n", 1), (1, "15e", 0)], "idx=1 is pair 15e here and 14e in the"),
        ([(0, "12n", 1), (1, "14e", 2)], "hardness='2' is neither 0 nor 1"),
    ],
)
def test_flags_that_do_not_match_are_refused_before_anything_is_built(
    folder: Path, rows: list[tuple[object, str, object]], message: str
) -> None:
    flags(folder, "matched", rows)
    with pytest.raises(UserError, match=message):
        nli_sources_config(str(folder), ["mnli_hard"], **SMALL)


def test_a_row_that_multinli_leaves_out_is_left_out_of_mnli_hard_and_moves_no_other(folder: Path) -> None:
    (folder / MATCHED_FILE).write_text((folder / MATCHED_FILE).read_text().replace("It pours.", " ", 1))
    sets, _ = prepared(folder, "mnli_hard", drop_blank_rows=True)
    assert [(row["id"], row["hardness"]) for row in sets["mnli_hard"]] == [
        ("mnli_hard-matched-000001", "easy"),
        ("mnli_hard-mismatched-000000", "easy"),
    ]
    assert dropped(folder) == [("mnli_hard", 1, "mnli_hard-matched-000000", "blank_text")]


def test_med_has_two_labels_and_its_monotonicity(folder: Path) -> None:
    sets, _ = prepared(folder, "med")
    assert [(row["id"], row["label"], row["monotonicity"], row["collected"]) for row in sets["med"]] == [
        ("med-000001", "entailment", "upward", "crowd"),
        ("med-000002", "non-entailment", "upward", "crowd"),
        ("med-000003", "entailment", "downward", "paper"),
        ("med-000004", "non-entailment", "downward", "paper"),
        ("med-000005", "non-entailment", "non_monotone", "paper"),
    ]
    # The pair that is turned around, and the chain of three sentences.
    assert [row["cluster"] for row in sets["med"]] == [
        "A black cat sat.",
        "A black cat sat.",
        "No cat sat.",
        "No cat sat.",
        "Only one cat sat.",
    ]
    assert sets["med"][0]["hypothesis"] == 'A "cat" sat.'


def test_rows_that_do_not_fit_are_kept_with_their_reason(folder: Path) -> None:
    path = folder / "challenge/med/MED.tsv"
    bad = [
        ("crowd", "A.", "B.", "neutral"),
        ("crowd:upward_monotone", "A.", "B.", "maybe"),
        ("x:non_monotone", " ", "B.", "neutral"),
    ]
    write_med(path, [*MED, *bad])
    with path.open("a") as file:
        file.write("cut\toff\n" + path.read_text().splitlines()[1] + "\n")
    sets, metrics = prepared(folder, "med")
    assert len(sets["med"]) == 5
    assert sorted(dropped(folder)) == [
        ("med", 7, "med-000006", "unknown_monotonicity"),
        ("med", 8, "med-000007", "unknown_label"),
        ("med", 9, "med-000008", "blank_text"),
        ("med", 10, "MED.tsv", "wrong_number_of_columns"),
        ("med", 11, "MED.tsv", "repeated_number"),
    ]
    assert metrics["dropped/med/unknown_label"] == 1


def test_scone_is_six_files_of_minimal_sets(folder: Path) -> None:
    sets, metrics = prepared(folder, "scone")
    rows = sets["scone"]
    assert metrics["scone/num_examples"] == 24 and {row["cluster"] for row in rows} == {"train-7", "test-7"}
    of_first = {row["negation"]: row for row in rows if row["id"] == f"scone-train-{row['negation']}-000000"}
    assert {name: (row["premise"], row["hypothesis"]) for name, row in of_first.items()} == SCONE
    # Where leaving the negation out is right, the label is that of the pair without one.
    assert {name: (row["label"], row["half"]) for name, row in of_first.items()} == {
        "no_negation": ("entailment", "aligned"),
        "one_not_scoped": ("entailment", "aligned"),
        "one_scoped": ("non-entailment", "adversarial"),
        "one_scoped_one_not_scoped": ("non-entailment", "adversarial"),
        "two_not_scoped": ("entailment", "aligned"),
        "two_scoped": ("entailment", "aligned"),
    }


def test_scones_rows_of_one_number_are_of_one_sentence(folder: Path) -> None:
    path = folder / "challenge/scone/test/one_scoped.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    sets, metrics = prepared(folder, "scone")
    assert metrics["scone/num_examples"] == 24 - 6 and metrics["dropped/scone/no_minimal_set"] == 5
    assert not any(row["id"].startswith("scone-test") and row["id"].endswith("1") for row in sets["scone"])


def test_neg_nli_has_three_labels_and_halves_where_the_hypothesis_is_negated(folder: Path) -> None:
    sets, _ = prepared(folder, "neg_nli")
    assert [(row["id"], row["label"], row["negated"], row["half"], row["cluster"]) for row in sets["neg_nli"]] == [
        ("neg_nli-000000", "neutral", "premise", None, "000000"),
        ("neg_nli-000001", "contradiction", "hypothesis", "aligned", "000000"),
        ("neg_nli-000002", "neutral", "both", "adversarial", "000000"),
    ]
    assert sets["neg_nli"][0]["hypothesis"] == "It’s wet."


def test_neg_nlis_pairs_that_are_not_of_one_are_left_out(folder: Path) -> None:
    other = [("It snows.", "It is cold.", "entailment"), ("It snows.", "It is not cold.", "contradiction")]
    write_neg_nli(folder / "challenge/neg_nli/MNLI.txt", [*NEG_NLI, *other])
    prepared(folder, "neg_nli")
    assert dropped(folder) == [("neg_nli", line, f"neg_nli-00000{line - 2}", "not_in_a_triple") for line in (5, 6)]


def test_a_record_has_licence_and_source_and_says_what_is_not_as_published(folder: Path) -> None:
    _, metrics = prepared(folder, "med", "neg_nli")
    assert metrics["med/licence"] == "CC BY-SA 4.0" and "Hossain" in str(metrics["neg_nli/source"])
    assert metrics[MARKS][1:] == ["MED of other files than the published ones", "NegNLI of other files than the published ones"]


def test_challenge_sets_are_identity_by_their_files_and_no_part_of_what_is_trained_on(folder: Path) -> None:
    without, with_med = (nli_sources_config(str(folder), names, **SMALL) for names in ((), ("hans", "med")))
    assert "challenges" not in identity(without)
    assert [(one["name"], one["files"][0]["name"]) for one in identity(with_med)["challenges"]] == [("med", "MED.tsv")]
    assert with_med.for_training == without
    assert [test_set.name for test_set in with_med.test_sets] == ["med"] and without.test_sets == ()
    write_med(folder / "challenge/med/MED.tsv", MED[:4])
    assert nli_sources_config(str(folder), ("med",), **SMALL) != with_med
    with pytest.raises(UserError, match=r"files of the challenge set med in .* are others than when the experiment was made"):
        prepare_nli_sources(with_med, str(folder / "out"), folder=str(folder))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("med", "snli"), "challenges=snli: there is no such challenge set; valid: hans, mnli_hard, med, scone, neg_nli"),
        (("med", "med"), "names med twice"),
    ],
)
def test_names_are_known_and_given_once(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        challenge_sets(names)


def test_a_missing_set_is_named_with_the_way_to_get_it(folder: Path) -> None:
    (folder / "challenge/scone/test/two_scoped.csv").unlink()
    assert missing_challenge_files(folder, ["hans", "med", "scone"]) == ("challenge/scone/test/two_scoped.csv",)
    with pytest.raises(
        UserError, match=r"has no challenge/scone/test/two_scoped.csv; .*data fetch --challenges scone --to .*--from"
    ):
        nli_sources_config(str(folder), ["scone"], **SMALL)


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (
            "med/MED.tsv",
            b"index\tgenre\n1\tx\n",
            "MED.tsv:1: no column sentence1, sentence2, gold_label; the header is index, genre",
        ),
        ("med/MED.tsv", b"", "the header is empty"),
        ("neg_nli/MNLI.txt", b"index\tText\tHypothesis\tgold_label\n0\t\x81\tA.\tneutral\n", "cannot be read as cp1252"),
        ("neg_nli/MNLI.txt", b"index\tText\tHypothesis\tgold_label\n", "none of the 0 rows"),
    ],
)
def test_a_file_that_is_another_is_refused(folder: Path, place: str, content: bytes, message: str) -> None:
    (folder / "challenge" / place).write_bytes(content)
    with pytest.raises(UserError, match=message):
        nli_sources_config(str(folder), ["med", "neg_nli"], **SMALL)


def test_the_config_is_one_of_the_four_files_still() -> None:
    assert NLISourcesConfig(tuple(FileHash(name, "0") for name in FILES)).challenges == ()


@pytest.mark.skipif(not (SHARED / "challenge").exists(), reason=f"no challenge sets in {SHARED}")
def test_the_published_files_read_whole(tmp_path: Path) -> None:
    config = nli_sources_config(str(SHARED), ALL)
    assert all(is_published(challenge) for challenge in config.challenges)
    metrics = prepare_nli_sources(config, str(tmp_path), folder=str(SHARED))
    assert not any(name.startswith(f"dropped/{one}") for name in metrics for one in ALL)
    tables = {name: read_examples(tmp_path / f"{name}.parquet").to_pylist() for name in ALL}
    assert {name: len(rows) for name, rows in tables.items()} == {name: one.num_rows for name, one in CHALLENGE_SETS.items()}

    hard = Counter((row["part"], row["hardness"]) for row in tables["mnli_hard"])
    assert hard == {
        ("matched", "hard"): 4_573,
        ("matched", "easy"): 9_815 - 4_573,
        ("mismatched", "hard"): 4_530,
        ("mismatched", "easy"): 9_832 - 4_530,
    }
    assert Counter(row["monotonicity"] for row in tables["med"]) == {"upward": 1_818, "downward": 3_272, "non_monotone": 292}
    assert len({row["cluster"] for row in tables["med"]}) == 1_587
    assert Counter(row["negation"] for row in tables["scone"]) == dict.fromkeys(SCONE, 1_202)
    assert Counter(row["label"] for row in tables["neg_nli"]) == {"neutral": 589, "contradiction": 539, "entailment": 372}
    assert Counter(row["half"] for row in tables["neg_nli"]) == {None: 500, "aligned": 310, "adversarial": 690}

    # In ScoNe, leaving the negation out gives the label of the file without one: what the halves rest on.
    label = {row["id"]: row["label"] for row in tables["scone"]}
    assert len({row["cluster"] for row in tables["scone"]}) == 44
    for row in tables["scone"]:
        without = label[row["id"].replace(f"-{row['negation']}-", "-no_negation-")]
        assert (row["label"] == without) == (row["half"] == "aligned"), row["id"]

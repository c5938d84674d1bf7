"""`blindsweep audit` from a file to its page, its numbers and its summary, on good files and on hostile ones."""

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from analysis.audit import Audit, AuditSettings, audit_json
from analysis.audit import audit as audit_texts
from analysis.audit.page import summary_lines, write_page
from analysis.corpus.columns import ColumnNames
from analysis.wording import shown
from pipelines.errors import UserError
from sweep import cli

LABELS = ("entailment", "neutral", "contradiction")


def rows(count: int, overlap: float, seed: int) -> list[dict[str, str]]:
    """Pairs of random words; the hypothesis of an entailment is part of its premise with a probability of `overlap`."""
    source = random.Random(seed)
    words = [f"{first}{second}" for first in ("ka", "lo", "mi", "nu", "re") for second in ("ban", "dor", "fel", "gim", "sut")]
    found = []
    for index in range(count):
        label = LABELS[index % 3]
        premise = source.choices(words, k=12)
        planted = source.random() < (overlap if label == "entailment" else 0.05)
        hypothesis = premise[3:8] if planted else source.choices([*words, "not", "ever", "never"], k=6)
        found.append({"premise": " ".join(premise) + ".", "hypothesis": " ".join(hypothesis), "label": label})
    return found


def save(path: Path, pairs: list[dict[str, str]]) -> Path:
    pq.write_table(pa.Table.from_pylist(pairs), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    original = rows(3_000, 0.1, seed=0)
    save(folder / "original.parquet", original)
    copied = [dict(one, label="neutral") for one in original[:30]]
    synthetic = rows(2_970, 0.6, seed=1)
    save(folder / "synthetic.parquet", [*synthetic, *copied])
    return folder


@pytest.fixture(scope="module")
def audit(files: Path) -> Audit:
    settings = AuditSettings(reference=str(files / "original.parquet"), generator_training=str(files / "original.parquet"))
    return audit_texts(files / "synthetic.parquet", settings)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["audit", *map(str, arguments)])


class Tags(HTMLParser):
    """The page's tags, and its text without what is in the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "action")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_was_planted_is_found(audit: Audit) -> None:
    overlap = audit.heuristics[0]
    assert overlap.verdict == "plants the heuristic"
    assert overlap.by_label is not None and 0.55 < overlap.by_label["entailment"].share < 0.65
    assert audit.file.num_rows == 3_000 and audit.file.meanings["neutral"] == "neutral"


def test_copies_of_the_training_data_are_counted_once_with_their_labels(audit: Audit) -> None:
    (copies,) = audit.copies  # one file, in two roles
    assert (copies.kinds["exact"].count, copies.kinds["exact"].n) == (30, 3_000)
    assert copies.other_label is not None and copies.other_label.count >= 20 and copies.parts["premise"].count == 30
    assert audit.duplicates.kinds["any"].count == 0


def test_the_json_has_every_number_with_n_and_interval(audit: Audit) -> None:
    found = json.loads(audit_json(audit), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["format_version"] == 2
    overlap = found["heuristics"][0]
    assert set(overlap["odds_ratio"]) == {"value", "log_error", "n", "interval", "method", "design_effect"}
    assert overlap["relative"]["interval"]["confidence"] == 0.95
    assert overlap["predicted"]["share"] == pytest.approx(overlap["predicted"]["count"] / overlap["predicted"]["n"])

    def check(value: object) -> None:
        if isinstance(value, dict):
            if "share" in value or ("mean" in value and "low" in value):
                assert value["n"] > 0 and "interval" in value
            for one in value.values():
                check(one)
        elif isinstance(value, list):
            for one in value:
                check(one)

    check(found)


def test_the_page_is_one_file_that_loads_nothing(audit: Audit, tmp_path: Path) -> None:
    page = write_page(audit, tmp_path)
    assert page == tmp_path / "audit.html" and [one.name for one in tmp_path.iterdir()] == ["audit.html"]
    tags = Tags(page.read_text())
    assert not {"script", "link", "img", "iframe", "form"} & set(tags.names) and tags.links == []
    for part in ("plants the heuristic", "needs a parse", "Rows (n)", "Lexical overlap but not entailment", "type-token"):
        assert part in tags.text


def test_the_summary_names_files_columns_and_verdicts(audit: Audit) -> None:
    text = "\n".join(summary_lines(audit))
    assert "premise=premise, hypothesis=hypothesis, label=label" in text
    assert text.startswith("Not fit as it is: the data plants lexical overlap, subsequence and 2 more.\nDo first: Resample or")
    assert "act          Plants lexical overlap (odds ratio " in text
    assert "not asked    Parsed constituent: needs a parse, and no row has one." in text
    copies = "look         Copies 1.0% of its rows from the generator's training data ([0.7, 1.4])"
    assert copies in text


def test_the_command_writes_to_the_usual_place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(files / "synthetic.parquet", "--reference", files / "original.parquet", "--json", "numbers/a.json")
    assert done.exit_code == 0, done.output
    assert "Plants lexical overlap" in done.stdout and "page: audit-synthetic/audit.html" in done.stdout
    assert json.loads((tmp_path / "numbers" / "a.json").read_text())["file"]["num_rows"] == 3_000
    assert (tmp_path / "audit-synthetic" / "audit.html").is_file()
    printed = run(files / "synthetic.parquet", "--json", "-")
    assert json.loads(printed.stdout)["reference"] is None


def test_columns_and_labels_are_mapped_and_the_reference_has_its_own(tmp_path: Path, files: Path) -> None:
    numbers = {"entailment": 1, "neutral": 0, "contradiction": 0}
    lines = [
        json.dumps({"a": one["premise"], "b": one["hypothesis"], "gold": numbers[one["label"]]})
        for one in rows(900, 0.6, seed=2)
    ]
    path = tmp_path / "mapped.jsonl"
    path.write_text("\n".join(lines))
    found = audit_texts(
        path,
        AuditSettings(
            columns=ColumnNames({"premise": "a", "hypothesis": "b", "label": "gold"}),
            entailment=("1", "entailment"),
            reference=str(files / "original.parquet"),
        ),
    )
    assert (
        found.file.meanings == {"1": "entailment", "0": "non-entailment"}
        and found.heuristics[0].verdict == "plants the heuristic"
    )
    assert found.reference is not None and found.reference.columns["premise"] == "premise"


def test_constituents_are_asked_where_there_are_parses(tmp_path: Path) -> None:
    parse = "(S (SBAR (IN If) (S (NN rain) (VBZ falls))) (NN grass) (VBZ grows))"
    pairs = [
        {"premise": "If rain falls grass grows", "hypothesis": hypothesis, "label": label, "tree": parse}
        for hypothesis, label in (("rain falls", "entailment"), ("falls grass", "neutral"), ("snow", "neutral"))
        for _ in range(40)
    ]
    found = audit_texts(save(tmp_path / "a.parquet", pairs), AuditSettings(columns=ColumnNames({"parse": "tree"})))
    assert [one.all_rows.count if one.all_rows else None for one in found.heuristics] == [80, 80, 0, 80, 80, 40]
    # All rows share one premise: nothing is certain.
    assert found.heuristics[5].verdict == "cannot tell"


NEGATION = """
import numpy as np
from pipelines.tasks.heuristics import Heuristic

def no_negation(premises, hypotheses):
    return np.array(["not" not in text.split() for text in hypotheses], dtype=bool)

affirmed = Heuristic("affirmed", no_negation, description="The hypothesis has no 'not'.")
denied = Heuristic("denied", no_negation, predicts="contradiction")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_heuristic_of_ones_own_is_audited_beside_the_others(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.corpus.scan.SMALL_FILE_BYTES", 0)
    (tmp_path / "mine.py").write_text(NEGATION)
    pairs = [
        {"premise": f"It rains on day {n}", "hypothesis": text, "label": label}
        for n in range(300)
        for text, label in (("It is wet", "entailment"), ("It is not wet", "contradiction"))
    ]
    settings = AuditSettings(heuristics=(f"{tmp_path}/mine.py:affirmed",), processes=processes)
    found = audit_texts(save(tmp_path / "a.parquet", pairs), settings).heuristics[-1]
    assert (found.name, found.description, found.verdict) == (
        "affirmed",
        "The hypothesis has no 'not'.",
        "goes with the label",
    )
    assert found.all_rows is not None and (found.all_rows.count, found.all_rows.n) == (300, 600)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:missing", "missing"),
        ("lexical_overlap", "lexical_overlap is audited already"),
    ],
)
def test_a_heuristic_that_cannot_be_audited_is_refused(
    tmp_path: Path, files: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(NEGATION)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        audit_texts(next(files.glob("*.parquet")), AuditSettings(heuristics=(name,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (AuditSettings(margin=0.5), "margin=0.5"),
        (AuditSettings(margin=float("nan")), "margin=nan"),
        (AuditSettings(entailment=("yes",)), "no file has the label 'yes'; they have "),
        (AuditSettings(columns=ColumnNames({"parse": "tree"})), "--parse tree: no file has that column"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: AuditSettings, message: str, files: Path) -> None:
    with pytest.raises(UserError) as error:
        audit_texts(files / "synthetic.parquet", settings)
    assert message in str(error.value)


def test_labels_without_an_entailment_ask_for_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [{"premise": "p", "hypothesis": "h", "label": label} for label in ("0", "1")])
    done = run(path)
    assert done.exit_code == 1 and done.stderr.count("Error: ") == 1
    assert "they are '0', '1': say which mean entailment with --entailment NAME" in done.stderr


def test_the_file_is_not_its_own_reference(files: Path) -> None:
    done = run(files / "synthetic.parquet", "--reference", files / "synthetic.parquet")
    assert done.exit_code == 1 and "is the file to audit itself" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"premise,hypothesis,label\na,b\n", "none of its 1 rows has as many cells as the header, 3: row 1 has 2"),
        ("a.jsonl", b'{"premise": "p", "hypothesis": "h", "label": "l"}\nno\n', "line 2 is no JSON"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"premise,hypothesis,label\n", "has no complete row (it has no rows)"),
        ("a.csv", b"premise,hypothesis\na,b\n", "no label column"),
        ("a.csv", b"premise,hypothesis,label\n\xff,b,c\n", "line 2 is not UTF-8"),
        (
            "a.csv",
            b"premise,hypothesis,label\n,b,c\na,,c\na,b,\n",
            "no complete row (no premise: 1, no hypothesis: 1, no label: 1)",
        ),
    ],
)
def test_a_bad_file_ends_in_one_clear_error(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = run(tmp_path / name, "--output", tmp_path / "out")
    assert done.exit_code == 1 and done.stderr.count("Error: ") == 1 and "Traceback" not in done.output
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_label_only_is_audited(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [{"premise": "a b", "hypothesis": "b", "label": "entailment"}] * 3)
    done = run(path, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "Lexical overlap: it holds of every row, so that there is nothing to compare with." in done.stdout
    assert "All rows have the label 'entailment'." in done.stdout


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    '=HYPERLINK("http://example.org","x")',
    "\x1b[2J\x1b]0;title\x07red",
    "\u202egnp.exe",
    "[bold]rich[/bold]",
    "\x00nul",
    "x" * 10_000_000,
)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    pairs = [
        {"premise": f"{text} {other}", "hypothesis": text, "label": label}
        for text in HOSTILE
        for other, label in (("a", "entailment"), ("b", HOSTILE[0]), ("b", HOSTILE[4]))
    ]
    name = "<b>name.parquet"
    done = run(save(tmp_path / name, pairs), "--output", tmp_path / "out", "--json", tmp_path / "out" / "a.json")
    assert done.exit_code == 0, done.output
    assert not set(done.stdout) & {"\x1b", "\x00", "\u202e", "\x07"}
    page = (tmp_path / "out" / "audit.html").read_text()
    tags = Tags(page)
    assert not {"script", "img", "b"} & set(tags.names) and tags.links == []
    assert "<script>alert(1)</script>" in tags.text and "{{ 7 * 7 }}" in tags.text and "[bold]rich[/bold]" in tags.text
    assert not set(page) & {"\x1b", "\x00", "\u202e", "\x07"}
    # Three premises and three hypotheses of ten megabytes, and a page of a few hundred kilobytes.
    assert len(page) < 1_000_000
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    assert set(found["file"]["labels"]) == {"entailment", HOSTILE[0], HOSTILE[4]}


def test_text_is_shown_in_one_line_cut_and_harmless() -> None:
    assert shown(" a\n\tb\x1b[0m ") == "a b\N{REPLACEMENT CHARACTER}[0m"
    assert shown("x" * 400) == "x" * 299 + "…"
    assert shown("naïve – 東京 😀 <b>") == "naïve – 東京 😀 <b>"
    assert shown("a\u202eb\ud800") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(("num_blank", "is_said"), [(5, False), (6, True)])
def test_the_answer_says_that_it_is_not_of_all_rows(tmp_path: Path, num_blank: int, is_said: bool) -> None:
    pairs = rows(100, 0.1, seed=3)
    blank = [pair | {"label": ""} for pair in pairs[:num_blank]]
    found = audit_texts(save(tmp_path / "pool.parquet", [*blank, *pairs[num_blank:]]))
    said = " That is of 94 of its 100 rows: the others are left out (6 with no label)."
    assert found.answer.endswith(said) == is_said
    assert ("left out" in found.answer) == is_said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"entailment": "entailment"}, r"entailment='entailment'\): give a tuple, of which each is a text, such as \('entail"),
        ({"tests": ["test.csv"]}, r"tests=\['test\.csv'\]\): give a dict"),
        ({"reference": 5}, r"reference=5\): give a text, "),
        ({"seed": -1}, r"seed=-1, processes=\d+\): a seed is 0 to 4,294,967,295"),
        ({"processes": 0}, "there is 1 process at least"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"AuditSettings\(.*{said}"):
        AuditSettings(**settings)


@pytest.mark.parametrize("source", [None, 5, [{"premise": "a", "hypothesis": "b", "label": "neutral"}]])
def test_what_is_no_source_is_refused_by_its_type(source: Any) -> None:
    with pytest.raises(UserError, match=rf"a {type(source).__name__} cannot be audited: give a path .* pd\.DataFrame\(rows\)"):
        audit_texts(source, AuditSettings(reference=pa.table({"premise": ["a"], "hypothesis": ["b"], "label": ["neutral"]})))


def test_space_around_a_label_is_no_spelling_of_its_own(tmp_path: Path) -> None:
    labels = ["entailment", " entailment ", "ENTAILMENT", "neutral ", "neutral"]
    lines = [f"premise {number},hypothesis {number},{label}" for number, label in enumerate(labels * 20)]
    (tmp_path / "pool.csv").write_text("\n".join(["premise,hypothesis,label", *lines]))
    found = audit_texts(tmp_path / "pool.csv")
    assert found.file.spellings == {"entailment": {"entailment": 40, "ENTAILMENT": 20}}
    assert "; 'ENTAILMENT' (20) taken for 'entailment'" in "\n".join(summary_lines(found))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--test", "original.parquet", "--test", "other/original.parquet"],
            "--test: original is given twice, as original.parquet and as other/original.parquet; give each a name of its own",
        ),
        (["--test", "a=original.parquet", "--test", "a=other.parquet"], "--test: a is given twice"),
        (["--premise", "premise", "--field", "premise=hypothesis"], "--field: premise is given twice, as premise and as"),
        (["--label-name", "neutral=entailment", "--label-name", "neutral=neutral"], "--label-name: neutral is given twice"),
        (["--repair", "out.parquet", "--repair-as", "leaks=drop,leaks=keep"], "--repair-as: leaks is given twice, as drop"),
    ],
)
def test_a_name_that_is_given_two_values_is_refused(
    options: list[str], said: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    done = run("synthetic.parquet", *options)
    assert done.exit_code == 1 and f"Error: {said}" in done.stderr


def test_files_may_call_one_field_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, column in (("pool", "review"), ("train", "Text der Bewertung"), ("test", "comment")):
        lines = [f"{name} {number} is quiet,{'good' if number % 2 else 'bad'}" for number in range(40)]
        Path(f"{name}.csv").write_text("\n".join([f"{column},label", *lines, "it is loud,bad", ""]))
    Path("task.py").write_text(
        "from sweep import Field, Task\n"
        "REVIEWS = Task('reviews', ('bad', 'good'), (Field('review', 'Review:'),), 'Is {review} good?', 'It is {label}')\n"
    )
    files = ("pool.csv", "--reference", "train.csv", "--test", "test.csv", "--task", "task.py:REVIEWS")
    done = run(*files, "--field", "review=Text der Bewertung", "--field", "review=comment")
    assert done.exit_code == 0, done.output
    assert "columns review=review" in done.stdout and "columns review=Text der Bewertung" in done.stdout
    assert "Gives away 2.4% of the test set test" in done.stdout  # one of 41 rows
    wrong = run(*files, "--field", "review=Text der Bewertung", "--field", "review=coment")
    assert wrong.exit_code == 1
    assert "test.csv: no review column ('Text der Bewertung', 'coment'); it has 'comment', 'label'" in wrong.stderr
    unused = run(*files, "--field", "review=Text der Bewertung", "--field", "review=comment", "--field", "review=text")
    assert unused.exit_code == 1 and "--field review text: no file has that column" in unused.stderr


def test_a_test_set_may_have_any_files_name(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "split=test"
    folder.mkdir()
    save(folder / "part.parquet", rows(300, 0.1, seed=2))
    done = run(files / "synthetic.parquet", "--test", folder / "part.parquet", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "test set part" in done.stdout


def test_the_command_has_help() -> None:
    assert "FILE" in run("--help").stdout

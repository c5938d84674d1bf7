"""Made-up files of the challenge sets in their published formats, and of the MultiNLI and HANS that they lie beside."""

import json
from pathlib import Path

from pipelines.data.sources import HANS_COLUMNS, HANS_FILE, MATCHED_FILE, MISMATCHED_FILE, TRAIN_FILE

SMALL = {"dev_rows_per_label": 1, "hans_rows": 1}

TRAIN = [
    (label, f"{label} {number}.", "So.", "") for number in range(2) for label in ("entailment", "neutral", "contradiction")
]
# (label, premise, hypothesis, pairID); the second has no label, so that it has no flag either.
MATCHED = [
    ("neutral", "It rains.", "It pours.", "12n"),
    ("-", "No agreement.", "On this.", "13n"),
    ("entailment", "It pours.", "It rains.", "14e"),
]
MISMATCHED = [("contradiction", "It rains.", "It is dry.", "m0")]

MED_HEADER = [
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"),
    *("sentence2_parse", "sentence1", "sentence2", "label1", "label2", "label3", "label4", "label5", "gold_label"),
]
# (genre, premise, hypothesis, label)
MED = [
    ("crowd:upward_monotone", "A black cat sat.", 'A "cat" sat.', "entailment"),
    ("crowd:upward_monotone:lexical_knowledge", 'A "cat" sat.', "A black cat sat.", "neutral"),
    ("paper:downward_monotone:npi", "No cat sat.", "No black cat sat.", "entailment"),
    ("paper:downward_monotone", "No black cat sat.", "No cat ever sat.", "neutral"),
    ("paper:non_monotone", "Only one cat sat.", "Only one black cat sat.", "neutral"),
]

SCONE = {
    "no_negation": ("He owns a cat.", "He owns a pet."),
    "one_not_scoped": ("He, not tall, owns a cat.", "He, not tall, owns a pet."),
    "one_scoped": ("He owns no cat.", "He owns no pet."),
    "one_scoped_one_not_scoped": ("He, not tall, owns no cat.", "He, not tall, owns no pet."),
    "two_not_scoped": ("He, not tall, not old, owns a cat.", "He, not tall, not old, owns a pet."),
    "two_scoped": ("It is false that he owns no cat.", "It is false that he owns no pet."),
}
TURNED = ("one_scoped", "one_scoped_one_not_scoped")

# Three pairs of one: premise negated, hypothesis negated, both.
NEG_NLI = [
    ("It does not rain.", "It’s wet.", "neutral"),
    ("It rains.", "It’s not wet.", "contradiction"),
    ("It does not rain.", "It’s not wet.", "neutral"),
]


def write_scone(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for name, (specific, general) in SCONE.items():
            labels = ("neutral", "entailment") if name in TURNED else ("entailment", "neutral")
            lines = []
            for number, (one, other, label) in enumerate([(specific, general, labels[0]), (general, specific, labels[1])]):
                originals = list(SCONE["one_scoped"])[:: 1 if number == 0 else -1]
                if name == "one_scoped":
                    lines.append([str(number), one, other, label])
                else:
                    lines.append([str(number), *originals, label, "7", one, other, label])
            header = ["", "sentence1", "sentence2", "gold_label"]
            if name != "one_scoped":
                header += ["group_index", "sentence1_edited", "sentence2_edited", "gold_label_edited"]
            rows = [",".join(f'"{cell}"' for cell in cells) for cells in (header, *lines)]
            (folder / split / f"{name}.csv").write_text("\n".join(rows) + "\n")


def write_med(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    lines = ["\t".join(MED_HEADER)]
    for number, (genre, premise, hypothesis, label) in enumerate(rows, start=1):
        lines.append("\t".join([*[str(number)] * 3, genre, *[""] * 4, premise, hypothesis, *[""] * 5, label]))
    path.write_text("\n".join(lines) + "\n")


def write_neg_nli(path: Path, rows: list[tuple[str, str, str]]) -> None:
    lines = ["index\tText\tHypothesis\tgold_label", *("\t".join([str(i), *row]) for i, row in enumerate(rows))]
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("cp1252"))


def flags(folder: Path, part: str, rows: list[tuple[object, str, object]]) -> Path:
    path = folder / f"challenge/mnli_hard/mnli_validation_{part}_hardness.csv"
    path.write_text("\n".join(["idx,pairID,hardness", *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def write_all(folder: Path) -> None:
    """A data folder with every set."""
    folder.mkdir()
    for name, rows in ((TRAIN_FILE, TRAIN), (MATCHED_FILE, MATCHED), (MISMATCHED_FILE, MISMATCHED)):
        lines = [json.dumps({"gold_label": a, "sentence1": b, "sentence2": c, "pairID": d}) for a, b, c, d in rows]
        (folder / name).write_text("\n".join(lines) + "\n")
    hans = ["entailment", *[""] * 4, "The a slept .", "The a slept .", "ex0", "subsequence", "ln_some", "temp1"]
    (folder / HANS_FILE).write_text("\t".join(HANS_COLUMNS) + "\n" + "\t".join(hans) + "\n")
    for name in ("mnli_hard", "med", "neg_nli"):
        (folder / "challenge" / name).mkdir(parents=True)
    flags(folder, "matched", [(0, "12n", 1), (1, "14e", 0)])
    flags(folder, "mismatched", [(0, "99c", 0)])
    write_med(folder / "challenge/med/MED.tsv", MED)
    write_scone(folder / "challenge/scone")
    write_neg_nli(folder / "challenge/neg_nli/MNLI.txt", NEG_NLI)

"""The files that docs/examples/ are run on, from the template corpus: pairs under other names, and somebody else's pool.

python -m tests.example_data FOLDER
"""

import csv
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.tasks.nli import LABELS

DIGITS = {label.value: str(number) for number, label in enumerate(LABELS)}
POOL = TemplateCorpusConfig(seed=1, num_train=3_600, overlap_entailment_rate=0.75)
"""Pairs by another hand: of those with lexical overlap, more are entailments than in the corpus."""


def own_pairs(folder: Path, corpus: TemplateCorpusConfig | None = None) -> None:
    """Write train.csv, test.csv and challenge.csv, as docs/examples/own_nli.py names their columns and labels."""
    with tempfile.TemporaryDirectory() as prepared:
        prepare_template_corpus(corpus or TemplateCorpusConfig(), prepared)
        for name, corpus_name in (("train", "train"), ("test", "template_test")):
            rows = pq.read_table(Path(prepared, f"{corpus_name}.parquet")).to_pylist()
            pairs = [(row["premise"], row["hypothesis"], DIGITS[row["label"]]) for row in rows]
            _write(folder / f"{name}.csv", ("sentence1", "sentence2", "gold"), pairs)
        rows = pq.read_table(Path(prepared, "template_probe.parquet")).to_pylist()
    answers = {"entailment": "yes", "non-entailment": "no"}
    challenge = [
        (row["premise"], row["hypothesis"], answers[row["label"]], row["heuristic"].removeprefix("lexical_"), row["template"])
        for row in rows
    ]
    _write(folder / "challenge.csv", ("text", "statement", "answer", "trick", "pattern"), challenge)


def own_pool(folder: Path, corpus: TemplateCorpusConfig = POOL) -> None:
    """Write pool.parquet: premise, hypothesis and label of pairs in which overlap mostly means entailment.

    None is in a test set of the corpus that the example is tested on.
    """
    with tempfile.TemporaryDirectory() as tested, tempfile.TemporaryDirectory() as prepared:
        prepare_template_corpus(TemplateCorpusConfig(num_train=3), tested)
        prepare_template_corpus(corpus, prepared)
        known = {
            (row["premise"], row["hypothesis"])
            for name in ("template_test", "template_probe")
            for row in pq.read_table(Path(tested, f"{name}.parquet")).to_pylist()
        }
        pairs = pq.read_table(Path(prepared, "train.parquet")).select(["premise", "hypothesis", "label"]).to_pylist()
    new = [row for row in pairs if (row["premise"], row["hypothesis"]) not in known]
    pq.write_table(pa.Table.from_pylist(new), folder / "pool.parquet")


def _write(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    own_pairs(Path(sys.argv[1]))
    own_pool(Path(sys.argv[1]))

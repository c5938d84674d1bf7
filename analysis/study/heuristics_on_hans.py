"""Counts of each heuristic's yeses on HANS's own items, and how well constituents are told without a parse.

    python -m analysis.study.heuristics_on_hans FOLDER [OUTPUT]

FOLDER holds HANS's heuristics_evaluation_set.txt, directly or in hans/; OUTPUT is docs/heuristics.md unless given.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data.sources import HANS_COLUMNS, HANS_FILE, find_file
from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples
from pipelines.tasks.heuristics import HEURISTICS, is_parsed_constituent

OUTPUT = "docs/heuristics.md"
PARSED = "constituent, parsed"


def hans_frame(folder: str) -> pd.DataFrame:
    """HANS's rows with its own columns, all text, and a boolean column for each predicate: `HEURISTICS` and `PARSED`.

    Raises UserError for a folder without HANS, another header, or a parse whose brackets do not match.
    """
    path = find_file(Path(folder), HANS_FILE)
    if path is None:
        raise UserError(f"{folder!r} has no {HANS_FILE}; `blindsweep data fetch` gets it")
    # A quotation mark in a sentence is one of its characters.
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    if tuple(frame.columns) != HANS_COLUMNS:
        raise UserError(f"{path}: the header is not HANS's ({', '.join(HANS_COLUMNS)}); download the file again")
    for name, heuristic in HEURISTICS.items():
        frame[name] = heuristic(frame["sentence1"], frame["sentence2"])
    frame[PARSED] = list(map(is_parsed_constituent, frame["sentence1_parse"], frame["sentence2"]))
    return frame


def probe_frame() -> pd.DataFrame:
    """The template probe's rows (heuristic, label, subcase) with a boolean column `constituent`."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_template_corpus(TemplateCorpusConfig(), folder)
        frame = read_examples(f"{folder}/template_probe.parquet").to_pandas()
    return frame.assign(constituent=HEURISTICS["constituent"](frame["premise"], frame["hypothesis"]))


def yes_counts(frame: pd.DataFrame, by: Sequence[str], predicates: Sequence[str]) -> pd.DataFrame:
    """Rows and yeses of each predicate per group, in the order of the rows; columns `by`, num_rows, and the predicates."""
    grouped = frame.groupby(list(by), sort=False)
    return pd.concat([grouped.size().rename("num_rows"), grouped[list(predicates)].sum()], axis=1).reset_index()


def agreement(said: np.ndarray, so: np.ndarray) -> dict[str, float]:
    """Agreement of two arrays of booleans [n]: n, both, only_said, only_so, neither, and Cohen's kappa.

    Kappa is NaN where chance alone would agree.
    """
    if len(said) == 0:
        raise ValueError("no rows, so there is no agreement; give at least one")
    n = len(said)
    counts = {
        "both": int((said & so).sum()),
        "only_said": int((said & ~so).sum()),
        "only_so": int((~said & so).sum()),
        "neither": int((~said & ~so).sum()),
    }
    observed = (counts["both"] + counts["neither"]) / n
    chance = said.mean() * so.mean() + (1 - said.mean()) * (1 - so.mean())
    return {"n": n, **counts, "kappa": float((observed - chance) / (1 - chance)) if chance < 1 else float("nan")}


def page(hans: pd.DataFrame, probe: pd.DataFrame) -> str:
    """The Markdown page of both."""
    predicates = [*HEURISTICS, PARSED]
    names = {"gold_label": "label"}
    by_label = yes_counts(hans, ("heuristic", "gold_label"), predicates).rename(columns=names)
    by_subcase = yes_counts(hans, ("heuristic", "gold_label", "subcase"), predicates).rename(columns=names)
    of_probe = yes_counts(probe[probe["heuristic"] == "constituent"], ("label", "subcase"), ["constituent"])
    built = (hans["heuristic"] == "constituent").to_numpy()
    likely, parsed = hans["constituent"].to_numpy(), hans[PARSED].to_numpy()
    of_them = agreement(probe["constituent"].to_numpy(), (probe["heuristic"] == "constituent").to_numpy())
    pairs = {
        "likely, against HANS's parses": agreement(likely, parsed),
        "likely, against HANS's own label": agreement(likely, built),
        "parsed, against HANS's own label": agreement(parsed, built),
        "likely, against the template probe's own label": of_them,
    }
    columns = ("both say yes", "only the first", "only the second", "neither")
    rows = [
        (name, *(f"{counts[key]:,}" for key in ("n", "both", "only_said", "only_so", "neither")), f"{counts['kappa']:.3f}")
        for name, counts in pairs.items()
    ]
    disagree = by_subcase.assign(**{"rows that differ": _per_subcase(hans, likely != parsed)})
    disagree = disagree[disagree["rows that differ"] > 0][["heuristic", "label", "subcase", "rows that differ"]]
    return f"""# Heuristics on HANS

Made by `python -m analysis.study.heuristics_on_hans`; the numbers are of HANS's evaluation set, {len(hans):,} rows. They
are counts of all its rows and not estimates from a sample, so they have no intervals.

## How often each predicate says yes

By the heuristic that an item was built for. Each heuristic is a special case of the one before, so an item built for
a later one satisfies the earlier ones, too.

{_table(by_label)}

*constituent* is told from the words alone ("likely"), *{PARSED}* from HANS's own parse of the premise: the
hypothesis' words are those of one complete subtree, of any category.

## Without a parse

A user's pairs have no parse. There a constituent is a contiguous part of the premise that begins and ends where a
clause is likely to: it begins at the premise's start, after punctuation, after a word that opens a clause (*that*,
*if*, *because* …), after a conjunction that has punctuation or nothing before it, or after an adverb that opens the
premise; it ends at the premise's end or at punctuation.

{_table(pd.DataFrame(rows, columns=["", "rows", *columns, "Cohen's kappa"]))}

Likely and parsed differ on these items only:

{_table(disagree)}

HANS builds its sn_past_participle items for the subsequence heuristic; a parser takes *The actor studied in the
office* in *The student supported the actor studied in the office* for a noun phrase, which is a complete subtree.

The word list was written with HANS at hand, so that its agreement there says what the rule can express and not how it
does elsewhere. The template probe, whose templates are not HANS's, is harder: the rule finds {of_them["both"]} of the
{of_them["both"] + of_them["only_so"]} items built for the constituent heuristic, and {of_them["only_said"]} of the
{of_them["only_said"] + of_them["neither"]} others. What it misses are clauses joined
by *and* or *or* without a comma, which the words do not tell from joined nouns, and adverbials at a clause's end that
the hypothesis leaves out. Items of a subcase stand or fall together, so that an interval over items would say too
much.

{_table(of_probe)}

## By subcase of HANS

{_table(by_subcase)}
"""


def _per_subcase(hans: pd.DataFrame, differs: np.ndarray) -> list[int]:
    return hans.assign(differs=differs).groupby(["heuristic", "gold_label", "subcase"], sort=False)["differs"].sum().tolist()


def _table(frame: pd.DataFrame) -> str:
    def row(cells: Iterable[object]) -> str:
        return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int | np.integer) else str(cell) for cell in cells) + " |"

    names = ["rows" if name == "num_rows" else str(name) for name in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]
    rule = "|" + "|".join("---:" if is_number else "---" for is_number in numeric) + "|"
    return "\n".join([row(names), rule, *(row(values) for values in frame.itertuples(index=False))])


def main(arguments: Sequence[str]) -> None:
    """Write the page. Raises UserError for anything but one or two arguments."""
    if len(arguments) not in (1, 2):
        raise UserError("usage: python -m analysis.study.heuristics_on_hans FOLDER [OUTPUT]")
    output = Path(arguments[1] if len(arguments) == 2 else OUTPUT)
    output.write_text(page(hans_frame(arguments[0]), probe_frame()))
    print(f"wrote {output}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")

"""A published study's page: what people wrote, with tables, figures and sentences between its marks that are made from files.

A mark is a comment, `<!-- study_qwen: claims -->`, and what is made stands between it and `<!-- end -->`. So every number of a
page is made again by one command, and the words around it are its author's.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.page import Block, Column, Table, number_columns, write_file
from analysis.publication.kept import MEASURES, is_kept, load
from analysis.publication.pilot import sentence
from analysis.publication.published import Published
from analysis.report.claims_section import claims_block, measures_block
from analysis.report.figures import figure1, to_png
from analysis.report.generality import generality_block
from analysis.report.lexical_overlap import markdown
from analysis.report.results import figure_caption, numbers
from analysis.report.sections import (
    composition_block,
    marks_of,
    paper_block,
    provenance_block,
    spent_block,
    stages_block,
    table1_block,
)
from analysis.study import paper
from analysis.study.series import study_series
from analysis.study.tables import accuracy_table
from analysis.verdicts.answer import Answer, answer, control_sentences
from analysis.verdicts.evidence import MARGINS
from analysis.verdicts.judgement import Verdicts
from analysis.verdicts.verdicts import judge_evidence
from analysis.wording import (
    NOTHING,
    estimate_words,
    in_words,
    kind_name,
    measure_word,
    p_words,
    percent,
    percent_range,
    range_words,
    starting_point_name,
)
from pipelines.errors import UserError
from pipelines.identity import sha256_of
from sweep.study.claims import Measure

OPENED = re.compile(r"<!-- (?P<study>[\w-]+): (?P<part>\w+) -->\n")
MARK = re.compile(rf"({OPENED.pattern})(?P<made>.*?)(<!-- end -->)", re.DOTALL)
NOT_BUILT = "*Not built yet.*\n"
COLUMNS = 132
NO_DEPARTURE = ("data", "model", "device", "seeds", "generators", "plan", "judge")
"""Parameters that say where things are, or that the plan itself speaks of."""


@dataclass
class Made:
    """What a page is made of: a study, its verdicts, and the figures that were drawn, by their file's name."""

    published: Published
    folder: Path
    verdicts: Verdicts = field(init=False)
    figures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.verdicts = judge_evidence(self.published.evidence)

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """`accuracy_table`, which a figure and tables are of."""
        return accuracy_table(self.published.frame, self.published.evidence.responses)

    @cached_property
    def claims(self) -> tuple[Block, Any]:
        """`claims_block`, of which parts of the page show parts."""
        return claims_block(self.verdicts, self.published.evidence, "")

    def figure(self, name: str, figure: Any, label: str) -> list[str]:
        """The line of a figure (matplotlib's, or None) in the page."""
        if figure is None:
            return []
        file = f"{self.published.study.experiment.replace('_', '-')}-{name}.png"
        self.figures[file] = to_png(figure, dpi=120)
        return [f"![{label}]({file})"]


def fill(page: Path, data: Path) -> list[Path]:
    """Make what is between the marks of `page` anew from the studies below `data`, with figures beside it; the files written.

    A study that is not there yet is said not to be built. Raises UserError for a part that there is not, and for a mark without
    its end, behind which the author's words would go.
    """
    made: dict[str, Made | None] = {}

    def part(found: re.Match[str]) -> str:
        name = found["study"]
        if name not in made:
            made[name] = Made(load(data / name), page.parent) if is_kept(data / name) else None
        if found["part"] not in PARTS:
            raise UserError(f"{page} asks for {found['part']!r} of {name}; parts are {', '.join(PARTS)}")
        of_study = made[name]
        text = NOT_BUILT if of_study is None else "\n\n".join(PARTS[found["part"]](of_study)).rstrip() + "\n"
        return f"{found[1]}{_wrapped(text)}{found[5]}"

    text = page.read_text(encoding="utf-8")
    for opened in OPENED.finditer(text):
        end, another = text.find("<!-- end -->", opened.end()), OPENED.search(text, opened.end())
        if end < 0 or (another and another.start() < end):
            raise UserError(
                f"{page}: {opened[0].strip()} has no <!-- end --> before the next mark; write it behind what is made"
            )
    written = MARK.sub(part, text)
    figures = {file: content for of_study in made.values() if of_study for file, content in of_study.figures.items()}
    for file, content in figures.items():
        write_file(page.with_name(file), content)
    write_file(page, written.encode())
    return [page, *(page.with_name(file) for file in figures)]


def _wrapped(text: str) -> str:
    """`text` with paragraphs of lines that are no longer than a page's; tables and pictures stay."""
    wrapper = textwrap.TextWrapper(COLUMNS, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{line if line.startswith(('|', '!')) else wrapper.fill(line)}\n" for line in text.splitlines())


def of_block(block: Block, *, folds: bool = True) -> list[str]:
    """A section of the report as Markdown, without its title and figure."""
    text = [*block.text]
    if block.cards:
        columns = [Column("Verdict"), Column("Claim"), *number_columns("Estimate", "95% interval"), Column("From")]
        rows = [
            [card.level + (f" ({card.kind})" if card.kind else ""), card.statement, card.figure, card.interval, card.facts]
            for card in block.cards
        ]
        text.append(_table(Table(columns, rows)))
    text += [_table(table) for table in block.tables]
    for fold in block.folds if folds else ():
        text += [f"**{fold.title}**", *(_table(table) for table in fold.tables)]
    return text


def _table(table: Table) -> str:
    """A table as Markdown, under its caption."""
    plain = Table(table.columns, [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.rows])
    return f"{table.caption}\n\n{markdown(plain)}" if table.caption else markdown(plain)


def _answer(made: Made) -> list[str]:
    said = answer(made.verdicts, num_missing=len(made.published.evidence.responses.missing))
    return [
        f"**{Answer(said.said)}**",
        " ".join(control_sentences(made.verdicts.controls)),
        *_fewer(made.published),
        *_marked(made),
    ]


def _marked(made: Made) -> list[str]:
    """What marks that the numbers were not made with all that they might have been."""
    marks = "; ".join(marks_of(made.published.study))
    return [f"What these numbers were made with, or what that was made with, is marked: {marks}."] if marks else []


def _fewer(published: Published) -> list[str]:
    """That there are fewer seeds than the study was to have, and what is missing of which; nothing of a study that is whole."""
    missing = published.missing_of_seed
    whole = [seed for seed, results in missing.items() if not results]
    if len(whole) == len(missing):
        return []
    absent = [seed for seed in missing if seed not in published.seeds_there]
    are = "is" if len(whole) == 1 else "are"
    said = [
        f"**Of {len(missing):,} seeds that were planned {len(whole):,} {are} whole**{f': {_listed(whole)}' if whole else ''}."
    ]
    said += [f"Not built: {_listed(absent)}."] if absent else []
    for seed, results in missing.items():
        if results and seed not in absent:
            said.append(f"Seed {seed} lacks {in_words([_missing_words(result) for result in results])}.")
    return [" ".join(said)]


def _listed(seeds: Sequence[int]) -> str:
    return in_words([str(seed) for seed in seeds])


def _missing_words(result: Mapping[str, Any]) -> str:
    cell = starting_point_name(int(result["starting_size"])) if result["kind"] == "none" else kind_name(str(result["kind"]))
    size = f" {result['size']:,}" if result["size"] else ""
    return f"{cell}{size} ({result['why']})"


def _departed(made: Made) -> list[str]:
    """What the files show of departures from the plan."""
    published = made.published
    given = published.study.parameters.get("command", {}).get("parameters", ())
    others = [text for text in given if text.partition("=")[0].strip() not in NO_DEPARTURE]
    lines = _fewer(published)
    planned, pilot = len(published.missing_of_seed), published.pilot
    if pilot and pilot["chosen"] != planned:
        lines.append(f"The pilot asked for {pilot['chosen']:,} seeds, and {planned:,} were planned.")
    lines += [f"Built with {in_words([f'`-p {text}`' for text in others])}."] if others else []
    # A plan knows of two cases: the control is seen, or the study could not have seen anything.
    if outdone := [measure_word(control.measure) for control in made.verdicts.controls if control.is_outdone]:
        lines.append(
            f"By {in_words(outdone)} the positive control is not seen, and a claim about the blindspot is supported all the "
            "same: synthetic data may lie as low as data that was biased on purpose, or lower. So, against the plan, the page "
            "does not say that the study could not have seen a blindspot grow."
        )
    lines += [
        f"Results of {'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)} were published before all others were built: "
        "with such a look between, a verdict is wrong more often than its interval and p-value say."
        for seeds in published.earlier
        if set(seeds) < set(published.seeds_there)
    ]
    return lines or ["The files show nothing that departs from it."]


def _pilot(made: Made) -> list[str]:
    """What the pilot said of the number of seeds."""
    pilot = made.published.pilot
    return [sentence(dict(pilot))] if pilot else ["No pilot is kept."]


def _plan(made: Made) -> list[str]:
    """The pre-registration by its hash, and the primary claims that the study was built with."""
    plan = made.published.plan
    if not plan:
        return ["No plan was declared before this study's seeds were built, so nothing in it is confirmatory."]
    path = made.folder / plan["path"]
    is_same = path.is_file() and sha256_of(path) == plan["sha256"]
    state = "the file is as it was then" if is_same else "**the file has been changed since**"
    declared = [claim for claim in made.published.evidence.claims if claim.primary]
    rows = []
    for claim in declared:
        measure = claim.comparisons[0].measure
        margin = claim.margin if claim.margin is not None else MARGINS[measure]
        shown = f"{100 * margin:g} points" if measure == Measure.ACCURACY else f"{margin:g}"
        rows.append([claim.name, claim.statement, str(measure), shown, "yes" if claim.control else ""])
    columns = [Column("Claim"), Column("Statement"), Column("Measure"), Column("Margin", "number"), Column("Control")]
    return [
        f"Declared before the seeds were built: [{path.name}]({path.name}), sha256 `{plan['sha256']}`; {state}. The manifest "
        "of every piece carries this hash.",
        _table(Table(columns, rows)),
    ]


def _claims(made: Made) -> list[str]:
    block, figure = made.claims
    drawn = made.figure("differences", figure, "Each primary claim's difference in each setting")
    how = (
        "Intervals are of one claim alone, and a verdict goes by p, adjusted for all primary claims (Holm): an interval can be "
        "clear of 0 where nothing is decided."
    )
    return [*drawn, *of_block(block, folds=False), how]


def _paper(made: Made) -> list[str]:
    """What the paper found, claim by claim, and what is found here."""
    rows = [
        [
            judgement.statement,
            judgement.paper,
            str(judgement.verdict),
            estimate_words(judgement.estimate, judgement.unit),
            range_words(judgement.low, judgement.high, judgement.unit),
            p_words(judgement.p_adjusted),
        ]
        for judgement in made.verdicts.judgements
        if judgement.paper
    ]
    if not rows:
        return ["None of the paper's statements is asked here."]
    columns = [
        Column("Statement"),
        Column("The paper"),
        Column("Here"),
        *number_columns("Estimate", "95% interval", "Adjusted p"),
    ]
    return [_table(Table(columns, rows))]


def _settings(made: Made) -> list[str]:
    block, _ = made.claims
    return of_block(replace(block, text=(), cards=()))


def _measures(made: Made) -> list[str]:
    blocks, figure = measures_block(made.verdicts, made.published.evidence)
    text = [line for block in blocks for line in of_block(block)]
    return [*text, *made.figure("measures", figure, "Differences of margin, AUC and pull in each setting")]


def _figure1(made: Made) -> list[str]:
    published = made.published
    series = study_series(published.study, published.frame)
    drawn = made.figure("figure1", figure1(published.frame, series, made.accuracies), "Accuracy by training size")
    return [*drawn, figure_caption(published.frame, series)]


def _accuracies(made: Made) -> list[str]:
    published = made.published
    series = study_series(published.study, published.frame)
    tables = [table for fold in numbers(series, made.accuracies) for table in fold.tables]
    return [_table(table) for table in tables]


def _generality(made: Made) -> list[str]:
    blocks, figure, _ = generality_block(made.published.study, made.published.frame, made.published.evidence)
    if not blocks:
        return ["Fewer than two test sets test a heuristic here."]
    drawn = made.figure("generality", figure, "Differences on each test set where its heuristic is right and where it is wrong")
    return [*drawn, blocks[0].figure_caption, *of_block(blocks[0])]


def _cells(made: Made) -> list[str]:
    """Margin, AUC and pull by cell: means over seeds and their range."""
    measures = made.published.measures
    rows = []
    kinds = made.published.frame["kind"].cat.categories
    measures = measures.assign(kind=pd.Categorical(measures["kind"], kinds, ordered=True))
    for (start, kind, size), of_cell in measures.groupby(["starting_size", "kind", "size"], observed=True):
        values = [(of_cell[str(measure)], measure) for measure in MEASURES]
        place = [starting_point_name(int(start)), kind_name(kind), f"{size:,}", f"{len(of_cell):,}"]
        rows.append([*place, *(_with_range(*value) for value in values)])
    columns = [Column("Starting point"), Column("Training set"), *number_columns("Size", "Seeds", "Margin", "AUC", "Pull")]
    how = "Means over seeds, with the smallest and the largest in brackets, where going by the heuristic is wrong."
    return [how, _table(Table(columns, rows))]


def _with_range(values: pd.Series, measure: Measure) -> str:
    if values.isna().all():
        return NOTHING
    three = values.mean(), values.min(), values.max()
    # A chance has no sign.
    mean, low, high = (estimate_words(one, "number") if measure == Measure.MARGIN else f"{one:.2f}" for one in three)
    return f"{mean} ({low} to {high})"


def _pools(made: Made) -> list[str]:
    """The audit of each generator's pool, and lexical overlap beside Table 1."""
    published = made.published
    pools = published.pools
    if pools.empty:
        return ["No pool was written."]
    rows = []
    for generator, of_pool in pools.groupby("generator", sort=True):
        labels, whole = of_pool[of_pool["label"] != "all"], of_pool[of_pool["label"] == "all"].iloc[0]
        overlaps = " / ".join(_share(row["num_lexical_overlap"], row["num_rows"], 2) for _, row in labels.iterrows())
        wrong = percent(whole["wrong"])
        if not math.isnan(whole["wrong"]):
            wrong += f" [{percent_range(whole['wrong_low'], whole['wrong_high'])}]"
        if labels["wrong"].notna().all():
            wrong += f"; {' / '.join(map(percent, labels['wrong']))}"
        rows.append(
            [
                str(generator),
                f"{int(whole['generated']):,}",
                _share(whole["parsed"], whole["generated"], 1),
                overlaps,
                *(_share(whole[name], whole["num_rows"], 2) for name in ("copies", "near_copies", "training_copies")),
                wrong,
            ]
        )
    labels = " / ".join(published.evidence.task.labels)
    columns = [
        Column("Generator"),
        *number_columns(
            *("Texts", "Yield", f"Lexical overlap ({labels})", "Copies in the pool", "Near copies", "Copies of training rows"),
            f"Wrong labels, by the judge, in all and of each ({labels})",
        ),
    ]
    counts = published.evidence.counts
    beside = paper.table1_beside(counts) if len(counts) > 1 and paper.is_on_multinli(published.study) else None
    num_pools = int(pools["generator"].nunique())
    table1 = [line for block in table1_block(counts, beside, num_pools) for line in of_block(block)]
    return [_table(Table(columns, rows)), *table1]


def _share(num: float, of: float, digits: int) -> str:
    return NOTHING if pd.isna(num) or not of or pd.isna(of) else percent(num / of, digits)


def _time(made: Made) -> list[str]:
    published = made.published
    blocks = [*spent_block(published.study, published.estimate), *stages_block(published.study)]
    return [line for block in blocks for line in of_block(block)]


def _made_of(made: Made) -> list[str]:
    published = made.published
    kept = (
        f"Scores are kept as multiples of 1/{published.steps:g}, which changes no verdict here, and no estimate or interval by "
        f"more than {published.largest_change:.2g}."
    )
    built = replace(published.study, steps=tuple(step for step in published.study.steps if step.record is not None))
    blocks = [*paper_block(built), *composition_block(built), provenance_block(built)]
    return [kept, *(line for block in blocks for line in of_block(block))]


PARTS: Mapping[str, Callable[[Made], Sequence[str]]] = {
    "answer": _answer,
    "plan": _plan,
    "pilot": _pilot,
    "departed": _departed,
    "figure1": _figure1,
    "claims": _claims,
    "paper": _paper,
    "settings": _settings,
    "measures": _measures,
    "cells": _cells,
    "accuracies": _accuracies,
    "generality": _generality,
    "pools": _pools,
    "time": _time,
    "made_of": _made_of,
}
"""What a mark may ask for."""

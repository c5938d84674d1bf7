"""The report of a study: one self-contained HTML file, with its figures and tables beside it.

build_report("blindsweep-store", "demo", "report")
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.page import Block, csv_bytes, template, write_file
from analysis.report.claims_section import claims_block, measures_block
from analysis.report.comparison import figure1_block
from analysis.report.dose_response import DIALS, dose_block, dose_figure
from analysis.report.figures import figure1, inline_svg, panel_boxes, timeline_figure, to_pdf, to_png, to_svg
from analysis.report.generality import generality_block, sets_needed
from analysis.report.label_noise import label_noise_blocks
from analysis.report.results import figure_caption, numbers
from analysis.report.sections import (
    composition_block,
    curves_block,
    marks_of,
    origins_block,
    paper_block,
    provenance_block,
    spent_block,
    stages_block,
    table1_block,
    timeline_block,
    yield_block,
)
from analysis.report.slices import sets_block, slices_blocks
from analysis.study import paper
from analysis.study.artifacts import LabelCount, lexical_overlap_counts, own_pools
from analysis.study.described import described_sets, task_of
from analysis.study.frame import by_arm, describe_missing, evaluation_frame, why_unread
from analysis.study.series import Series, paper_series, select, study_series
from analysis.study.tables import accuracy_table
from analysis.verdicts.answer import Answer, answer
from analysis.verdicts.command import command_of
from analysis.verdicts.evidence import Evidence, load_evidence
from analysis.verdicts.judgement import judgement_table
from analysis.verdicts.verdicts import judge_evidence
from analysis.wording import in_arm, in_words, slice_name
from pipelines.errors import UserError
from pipelines.tasks.heuristics import HEURISTICS, LEXICAL_OVERLAP
from pipelines.tasks.nli import NLI
from sweep.graph.records import Store, Study, read_plan
from sweep.graph.spending import spent_in_words


@dataclass(frozen=True)
class Report:
    """Where a report is, and the study's answer, which it begins with."""

    path: Path
    answer: Answer


def build_report(store: str | Store, study_name: str, output: str | os.PathLike[str], *, partial: bool = False) -> Path:
    """Write the report of a study as `write_report` does, and return its path."""
    return write_report(store, study_name, output, partial=partial).path


def write_report(store: str | Store, study_name: str, output: str | os.PathLike[str], *, partial: bool = False) -> Report:
    """Write the report of a study.

    `output` is a folder (the report is `report.html` in it) or the path of an .html file; `figure1.*` (PNG, SVG and PDF),
    `frame.csv` and `frame.parquet` are written beside it; `differences.*` and `measures.*` where claims can be drawn;
    `generality.*` where several test sets test a heuristic; `doses.*`, `mixtures.*` and `generations.*` where there are such
    kinds; `training_curves.*` where steps were logged; `timeline.*` where
    records say when they were built; `verdicts.csv` and `verdicts.parquet` where the claims can be judged;
    and `figure1_vs_paper.csv` and `table1_vs_paper.csv` (`analysis.study.paper`) for a study with cells of the paper's and one
    on MultiNLI. Of several arms, a file that is about one says which: `doses-joint.png`. The HTML loads nothing: styles,
    figures and the frame are inside.

    Raises IncompleteSweepError naming what is missing, unless `partial`: then the report names it.
    """
    store = store if isinstance(store, Store) else Store(store)
    study = Study.load(store, study_name)
    frame = evaluation_frame(store, study, partial=partial)
    target = Path(output) if str(output).endswith(".html") else Path(output) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    csv = csv_bytes(frame)
    values: dict[str, Any] = {
        "title": study.title or study.experiment,
        "name": study.experiment,
        "summary": _summary(study, frame),
        "marks": marks_of(study),
        "marks_title": "Not the full study" if "rehearsal" in study.marks else "Read with care",
        "missing": [describe_missing(result) for result in frame.attrs["missing"]],
        "question": _question(study),
        "verdict": None,
        "figure": None,
        "num_rows": f"{len(frame):,}",
        "csv": "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv).decode(),
    }
    beside_figure: list[Block] = []
    slices: list[Block] = []
    doses: list[Block] = []
    generality: list[Block] = []
    counts = lexical_overlap_counts(store, study)
    evidence, why_not = _evidence(store, study, frame, counts, partial=partial)
    arms = evidence.by_arm if evidence else {}
    if not frame.empty:
        series = study_series(study, frame)
        shown = [
            accuracy_table(pd.concat([select(rows, test) for test in series]), arms[arm].responses if arm in arms else None)
            for arm, rows in by_arm(frame)
        ]
        accuracies = pd.concat(shown, ignore_index=True)
        drawn = _write_figure(target, "figure1", figure1(frame, series, accuracies), "Figure 1: accuracy by training size")
        values |= {
            "figure": Markup(drawn),
            "figure_caption": figure_caption(frame, series),
            "numbers": numbers(series, accuracies),
        }
        for arm, rows in by_arm(frame):
            of_arm = arms.get(arm)
            beside_figure += _of_arm(_paper_figure1_blocks(study, rows, target, arm), arm)
            responses = of_arm.responses if of_arm else None
            slices += _of_arm(sets_block(study, rows, series, responses), arm)
            slices += _of_arm(slices_blocks(study, rows, series[-1].set, series[-1].slice, responses), arm)
            doses += _of_arm(_dose_blocks(rows, series, target, arm), arm)
            generality += _of_arm(_generality_blocks(study, rows, of_arm, target, arm), arm)
    beside = paper.table1_beside(counts) if counts and paper.is_on_multinli(study) else None
    if beside is not None:
        write_file(target.with_name("table1_vs_paper.csv"), csv_bytes(beside))
    curves = _drawn(target, "training_curves", *curves_block(store, study), "Training curves: loss by share of the steps")
    when, run = timeline_block(study)
    when = _drawn(target, "timeline", when, timeline_figure(run) if run else None, "Lanes by time, coloured by stage")
    verdicts = judge_evidence(evidence) if evidence else None
    said = Answer(why_not.removesuffix("."))
    if verdicts is not None and evidence is not None:
        said = answer(verdicts, command_of(store, study), num_missing=len(evidence.responses.missing))
    section, forest = claims_block(verdicts, evidence, why_not)
    claims = _drawn(target, "differences", [section], forest, "Each claim's difference in each setting, with intervals")
    label = "Differences of margin, AUC and pull in each setting, with intervals"
    measures = _drawn(target, "measures", *measures_block(verdicts, evidence), label)
    if verdicts is not None:
        judged = judgement_table(verdicts.judgements)
        write_file(target.with_name("verdicts.csv"), csv_bytes(judged))
        write_file(target.with_name("verdicts.parquet"), judged.to_parquet(index=False))
    values |= {"said": said.said, "command": said.command, "claims": claims}
    values["blocks"] = [
        *beside_figure,
        *generality,
        *measures,
        *doses,
        *table1_block(counts, beside, num_pools=_num_pools(study)),
        *slices,
        *yield_block(store, study),
        *label_noise_blocks(store, study),
        *curves,
        *composition_block(study),
        *paper_block(study),
        *stages_block(study),
        *when,
        *spent_block(study, read_plan(store, study.experiment), spent_in_words(store, study.experiment)),
        *origins_block(store, study),
        provenance_block(study),
    ]
    values["anchors"] = _contents(values)
    write_file(target.with_name("frame.csv"), csv)
    write_file(target.with_name("frame.parquet"), frame.to_parquet(index=False))
    # Last: who sees the report finds the files beside it.
    write_file(target, template("report.html.j2").render(values).encode())
    return Report(target, said)


def _evidence(
    store: Store, study: Study, frame: pd.DataFrame, counts: Mapping[str, Mapping[str, LabelCount]], *, partial: bool
) -> tuple[Evidence | None, str]:
    """What the claims are judged by, or why there is nothing to judge by."""
    if frame.empty:
        if why := why_unread(frame):
            return None, f"No evaluation can be read, so there is nothing to say: {why}."
        return None, "No task model is evaluated yet, so there is nothing to say."
    try:
        also = sets_needed(study, frame)
        return load_evidence(store, study, partial=partial, frame=frame, counts=counts, also=also), ""
    except UserError as error:
        return None, f"The claims are not judged: {error}."


def _contents(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each section's anchor and heading, in the page's order."""
    first = [("marks", values["marks_title"])] if values["marks"] else []
    first += [("missing", "What is missing")] if values["missing"] else []
    first += [("question", "What the study asks")] if values["question"] else []
    first += [(block.anchor, block.title) for block in values["claims"]]
    first += [("figure1", "Figure 1: accuracy by training size")] if values["figure"] else []
    return [*first, *((block.anchor, block.title) for block in values["blocks"])]


def _of_arm(blocks: Sequence[Block], arm: str) -> list[Block]:
    """Sections that say which arm they are about, in a study with several."""
    return [replace(block, anchor=_file_name(block.anchor, arm), title=in_arm(block.title, arm)) for block in blocks]


def _file_name(name: str, arm: str) -> str:
    """The name of a file, or of a section, that is about an arm: `doses-joint`; `doses` in a study of one."""
    return f"{name}-{arm.replace('+', '-')}" if arm else name


def _dose_blocks(frame: pd.DataFrame, series: Sequence[Series], target: Path, arm: str) -> list[Block]:
    """The sections on what is turned up, each with its figure."""
    blocks = []
    for dial in DIALS:
        for block in dose_block(frame, series, dial):
            figure, label = dose_figure(frame, series, dial), f"Accuracy by the {dial.what}"
            blocks.append(replace(block, figure=_write_figure(target, _file_name(dial.name, arm), figure, label)))
    return blocks


def _generality_blocks(study: Study, frame: pd.DataFrame, evidence: Evidence | None, target: Path, arm: str) -> list[Block]:
    """The section on all sets that test a heuristic, with its figure; its numbers are written beside it."""
    blocks, forest, numbers_of_sets = generality_block(study, frame, evidence)
    label = "Differences of accuracy on each test set, where its heuristic is right and where it is wrong, with intervals"
    name = _file_name("generality", arm)
    if blocks:
        write_file(target.with_name(f"{name}.csv"), csv_bytes(numbers_of_sets))
    return _drawn(target, name, blocks, forest, label)


def _drawn(target: Path, name: str, blocks: list[Block], figure: Figure | None, label: str) -> list[Block]:
    """The blocks, of which the first has the figure where there is one."""
    if figure is None:
        return blocks
    return [replace(blocks[0], figure=_write_figure(target, name, figure, label)), *blocks[1:]]


def _write_figure(target: Path, name: str, figure: Figure, label: str) -> str:
    """Write a figure beside `target` as SVG, PNG and PDF; returns the SVG as part of a page."""
    svg = to_svg(figure)
    write_file(target.with_name(f"{name}.svg"), svg.encode())
    write_file(target.with_name(f"{name}.png"), to_png(figure))
    write_file(target.with_name(f"{name}.pdf"), to_pdf(figure))
    return inline_svg(svg, label, panel_boxes(figure))


def _paper_figure1_blocks(study: Study, frame: pd.DataFrame, target: Path, arm: str) -> list[Block]:
    """The study beside the paper's figure, or why it is not; nothing for a study of another task."""
    if task_of(study) != NLI:
        return []
    if not paper.has_paper_cells(study, frame):
        return [figure1_block(None)]
    beside = paper.figure1_beside(frame)
    write_file(target.with_name(f"{_file_name('figure1_vs_paper', arm)}.csv"), csv_bytes(beside))
    series = paper_series(paper.GENERAL_SET, paper.BLINDSPOT_SET, paper.BLINDSPOT_SLICE)
    drawn = to_svg(figure1(paper.figure1(), series))
    return [figure1_block(beside, inline_svg(drawn, "The paper's Figure 1: accuracy by training size"))]


def _num_pools(study: Study) -> int:
    return sum(step.stage == "synthetic_pool" and step.record is not None for step in study.steps)


def _summary(study: Study, frame: pd.DataFrame) -> str:
    num_evaluations = frame["fingerprint"].nunique()
    seeds = frame["seed"].nunique()
    newest = max((step.record.created for step in study.steps if step.record), default="")
    parts = [f"{num_evaluations:,} evaluated task models", f"{seeds} seed{'s' if seeds != 1 else ''}"]
    parts += [f"arms {in_words(study.arms)}"] if study.arms else []
    return " · ".join([*parts, f"newest artifact {newest[:16].replace('T', ' ')} UTC"] if newest else parts)


def _pool_words(study: Study) -> str:
    """Who wrote the synthetic data."""
    if files := own_pools(study):
        return f"The synthetic pool was written before: {in_words(files)}."
    stages = {step.stage for step in study.steps}
    if "synthetic_pool" in stages and "generator" not in stages:
        return "A generator that is prompted, not finetuned, writes a synthetic pool."
    return "A generator, finetuned on the original training data, writes a synthetic pool."


def _question(study: Study) -> list[str]:
    described = described_sets(study).get(str(study.parameters.get("blindspot_set")))
    tests = f" {described.tests}" if described and described.tests else ""
    heuristic = str(study.parameters.get("heuristic", LEXICAL_OVERLAP.name))
    known = HEURISTICS.get(heuristic)
    # Manifests from before descriptions were in them have none.
    description = str(study.parameters.get("heuristic_description") or (known.description if known else ""))
    what = f" ({description[0].lower()}{description[1:].rstrip('.')})" if description else ""
    return [
        f"Does finetuning on data that a model wrote give a model blindspots? {_pool_words(study)} Task models from several "
        "starting points are finetuned on training sets of equal size and equal numbers per label that are original, "
        "synthetic, or synthetic with a bias put in on purpose: the heuristic "
        f"'{heuristic.replace('_', ' ')}'{what} holds of every example of the label that it predicts and of no other.",
        "The quantity of interest is accuracy with synthetic minus accuracy with original training data, "
        "from the same starting point, at the same size and with the same seed: on a general test set, on "
        "a blindspot test set, and on the blindspot's adversarial slice, where going by the heuristic is wrong "
        f"({slice_name(study.blindspot_slice)}).{tests}",
    ]

"""The report of a study: one self-contained HTML file, with figure1.png, figure1.svg and frame.csv beside it.

From Python: `build_report("blindsweep-store", "demo", "report")`.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.figures import (
    GRID,
    INK,
    KIND_STYLES,
    MUTED,
    PAPER,
    Series,
    figure1,
    paper_series,
    to_png,
    to_svg,
)
from analysis.frame import BLINDSPOT_SLICE, describe_missing, evaluation_frame
from analysis.page import Verdict, template, write_file
from analysis.results import figure_caption, numbers, verdict
from analysis.sections import composition_block, paper_block, provenance_block, stages_block, table1_block, yield_block
from analysis.wording import thousands
from pipelines.errors import UserError
from sweep.records import Store, Study

# Matched is what the paper reports; mismatched is evaluated beside it.
GENERAL_SETS = ("mnli_matched", "template_test")


def build_report(store: str | Store, study_name: str, output: str | os.PathLike[str], *, partial: bool = False) -> Path:
    """Write the report of a study and return its path.

    `output` is a folder (the report is `report.html` in it) or the path of an .html file; `figure1.png`,
    `figure1.svg` and `frame.csv` are written beside it. The HTML loads nothing: styles, figure and data are
    inside.

    Raises IncompleteSweepError naming what is missing, unless `partial`: then the report names it.
    """
    store = store if isinstance(store, Store) else Store(store)
    study = Study.load(store, study_name)
    frame = evaluation_frame(store, study, partial=partial)
    target = Path(output) if str(output).endswith(".html") else Path(output) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    csv = frame.to_csv(index=False)
    values: dict[str, Any] = {
        "title": study.title or study.experiment,
        "name": study.experiment,
        "summary": _summary(study, frame),
        "marks": [f"{mark}: {count} of {study.num_built} artifacts" for mark, count in study.marks.items()],
        "missing": [describe_missing(one) for one in frame.attrs["missing"]],
        "question": _question(study),
        "figure": None,
        "num_rows": thousands(len(frame)),
        "csv": "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv.encode()).decode(),
    }
    if frame.empty:
        values["verdict"] = Verdict(["No task model is evaluated yet, so there is nothing to say."])
    else:
        series = study_series(study, frame)
        figure = figure1(frame, series)
        svg = to_svg(figure)
        write_file(target.with_name("figure1.svg"), svg.encode())
        write_file(target.with_name("figure1.png"), to_png(figure))
        values |= {
            "verdict": verdict(frame, series),
            "figure": Markup(inline_svg(svg)),
            "figure_caption": figure_caption(frame),
            "numbers": numbers(frame, series),
        }
    values["blocks"] = [
        *table1_block(store, study),
        *yield_block(store, study),
        *composition_block(study),
        *paper_block(study),
        *stages_block(study),
        provenance_block(study),
    ]
    write_file(target.with_name("frame.csv"), csv.encode())
    # Last: who sees the report finds the files beside it.
    write_file(target, template("report.html.j2").render(values).encode())
    return target


def study_series(study: Study, frame: pd.DataFrame) -> tuple[Series, ...]:
    """The figure's test sets: the study's general set, its blindspot set, and the latter's blindspot slice.

    The manifest's parameters `general_set` and `blindspot_set` say which; where it has none, it is the
    evaluated set that fits, in the order of GENERAL_SETS where several do. Raises UserError when that is not
    clear.
    """
    fits = {
        "general_set": frame.loc[(frame["num_labels"] == 3) & (frame["slice"] == "all"), "set"],
        "blindspot_set": frame.loc[frame["slice"] == BLINDSPOT_SLICE, "set"],
    }
    chosen: dict[str, str] = {}
    for name, sets in fits.items():
        found = sorted(sets.unique())
        usual = [one for one in GENERAL_SETS if one in found] if len(found) > 1 else found
        value = study.parameters.get(name, usual[0] if usual else None)
        if value not in found:
            raise UserError(
                f"study {study.experiment!r} has {name}={value!r}, and the evaluated sets that it can be are "
                f"{', '.join(found) or 'none'}; set {name} in the experiment to one of them, or evaluate it"
            )
        chosen[name] = str(value)
    return paper_series(chosen["general_set"], chosen["blindspot_set"])


def inline_svg(svg: str) -> str:
    """An SVG of `analysis.figures` as part of a page, in the page's own colours (light or dark)."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    variables = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--card"}
    variables |= {colour: f"--{kind.split('_')[0]}" for kind, (colour, _) in KIND_STYLES.items()}
    for colour, variable in variables.items():
        body = body.replace(colour, f"var({variable})")
    return body.replace("<svg ", '<svg role="img" aria-label="Figure 1: accuracy by training size" ', 1)


def _summary(study: Study, frame: pd.DataFrame) -> str:
    num_evaluations = frame["fingerprint"].nunique()
    seeds = frame["seed"].nunique()
    newest = max((step.record.created for step in study.steps if step.record), default="")
    parts = [f"{num_evaluations} evaluated task models", f"{seeds} seed{'s' if seeds != 1 else ''}"]
    return " · ".join([*parts, f"newest artifact {newest[:16].replace('T', ' ')} UTC"] if newest else parts)


def _question(study: Study) -> list[str]:
    return [
        "Does finetuning on data that a model wrote give a model blindspots? A generator, finetuned on the "
        "original training data, writes a synthetic pool. Task models from several starting points are "
        "finetuned on training sets of equal size and equal numbers per label that are original, "
        "synthetic, or synthetic with a bias put in on purpose: every entailment example has lexical "
        "overlap (all words of the hypothesis occur in the premise) and no other example has.",
        "The quantity of interest is accuracy with synthetic minus accuracy with original training data, "
        "from the same starting point, at the same size and with the same seed: on a general test set, on "
        "a blindspot test set, and on the blindspot's adversarial slice (lexical overlap, but not "
        "entailment).",
    ]

"""The report's first section: the study's claims, judged, with what the verdicts rest on behind a click."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.page import Block, Card, Column, Fold, Table, grouped, number_columns, text_columns
from analysis.report.figures import forest_figure
from analysis.study.signal_detection import signal_table
from analysis.verdicts.answer import (
    ONE_SEED,
    agreement_words,
    claims_of_answer,
    control_sentences,
    one_generator,
    one_seed,
    settling_words,
    units_words,
)
from analysis.verdicts.evidence import Evidence
from analysis.verdicts.judgement import ONE_GENERATOR, Judgement, Outcome, Verdicts
from analysis.verdicts.subcases import subcase_table
from analysis.wording import (
    HOLDS,
    NOTHING,
    estimate_words,
    in_arm,
    kind_name,
    p_words,
    percent,
    points,
    range_words,
    slice_name,
    starting_point_name,
)
from pipelines.errors import UserError
from sweep.graph.records import KINDS
from sweep.study.claims import Measure

TITLE = "Verdicts"
CARD_COLOURS = {Outcome.SUPPORTED: "fine", Outcome.REFUTED: "act", Outcome.EQUIVALENT: "same", Outcome.CANNOT_TELL: "open"}
HOW_TO_READ = (
    "A claim is judged in each of its settings, a starting point and a training size{}, and never by a mean over them: it, or "
    "its opposite, is to show in every setting, or in more than half of them, as the claim has it. Estimates are means, in "
    "points of accuracy; 'Settings' says how many have the estimate's sign, and how many an interval on that side. p is "
    "adjusted for all primary claims (Holm), and intervals are not. 'Settled by' is for a true difference as large as the "
    "claim's margin."
)
MEASURES = (
    "Accuracy shows nothing beyond 0 and 100%. Margin is the mean log-odds of the heuristic's label where going by it is "
    "wrong; AUC the chance that an item where it is right scores above one where it is wrong; pull the chance that an "
    "adversarial item scores above a general item of its label. A threshold that moves moves the margin as far, and AUC and "
    "pull not at all. p is Benjamini and Hochberg's, over all exploratory claims."
)
CAPTION = (
    "The headline difference of each claim in each of its settings, paired by seed; lines are 95% intervals over seeds and "
    "test items. Fewer than three seeds, or generators, are drawn as dots, one each."
)


def claims_block(verdicts: Verdicts | None, evidence: Evidence | None, why_not: str) -> tuple[Block, Figure | None]:
    """The section without its figure, and the figure. Without verdicts it is a section that says why there are none."""
    if verdicts is None or evidence is None:
        return Block("claims", TITLE, [why_not]), None
    judgements = verdicts.judgements
    drawn = claims_of_answer(judgements)
    others = [judgement for judgement in judgements if judgement not in drawn and not is_of_measure(judgement)]
    figure = _drawn(drawn)
    text = _text(verdicts)
    how = HOW_TO_READ.format(", in one of its arms" if evidence.arms else "")
    folds = [Fold("These claims in numbers", [_claims(drawn, how)])]
    if others:
        folds.append(Fold(f"{len(others)} exploratory claims, p by Benjamini and Hochberg", [_claims(others)]))
    folds += [_settings(judgements), _notes(judgements)]
    for title, table in (("No differences by subcase", _subcases), ("No signal detection", _signal)):
        for arm, of_arm in evidence.by_arm.items():
            try:
                folds += [replace(fold, title=in_arm(fold.title, arm)) for fold in table(of_arm)]
            except UserError as error:
                text.append(f"{in_arm(title, arm)}: {error}.")
    cards = [_card(judgement) for judgement in drawn]
    return Block("claims", TITLE, text, (), folds, "", CAPTION if figure else "", cards), figure


def measures_block(verdicts: Verdicts | None, evidence: Evidence | None) -> tuple[list[Block], Figure | None]:
    """The claims by measures that do not saturate, without their figure, and the figure; nothing where there are none."""
    chosen = [judgement for judgement in verdicts.judgements if is_of_measure(judgement)] if verdicts else []
    if not any(judgement.num_units for judgement in chosen):
        return [], None
    figure = _drawn(chosen)
    of_arms = evidence.by_arm.items() if evidence else ()
    leans = [replace(lean, title=in_arm(lean.title, arm)) for arm, one in of_arms for lean in _leans(one)]
    return [Block("measures", "Measures that do not saturate", [MEASURES], [_claims(chosen)], leans, "", CAPTION)], figure


def _leans(evidence: Evidence) -> list[Fold]:
    """How often models give the heuristic's label, by test set; nothing where it does not always predict the same."""
    responses = evidence.responses
    if responses.label is None:
        return []
    sets = [name for name, of_cells in responses.predicted.items() if of_cells]
    shares: dict[tuple[int, str, int], dict[str, list[float]]] = {}
    for name in sets:
        given = responses.items[name].task.index(responses.label)
        for (start, kind, size, _), classes in responses.predicted[name].items():
            shares.setdefault((start, kind, size), {}).setdefault(name, []).append(float(np.mean(classes == given)))
    kinds = list(dict.fromkeys([*KINDS, *sorted({kind for _, kind, _ in shares})]))
    rows = []
    for start, kind, size in sorted(shares, key=lambda cell: (cell[0], kinds.index(cell[1]), cell[2])):
        means = [float(np.mean(shares[start, kind, size].get(name, math.nan))) for name in sets]
        rows.append([starting_point_name(start), kind_name(kind), f"{size:,}", *map(percent, means)])
    columns = [Column("Starting point"), Column("Training set"), *number_columns("Size", *map(evidence.title, sets))]
    how = (
        f"Share of each test set's items that models call {responses.label}, means over seeds. Where it moves on every set, it "
        "is a lean to that label, which alone moves accuracy where going by the heuristic is wrong."
    )
    return [Fold(f"How often models say {responses.label}", [Table(columns, rows, how)])]


def is_of_measure(judgement: Judgement) -> bool:
    """Whether a claim is read by margin, AUC or pull."""
    return judgement.measure in set(Measure) - {Measure.ACCURACY}


def _drawn(judgements: Sequence[Judgement]) -> Figure | None:
    try:
        return forest_figure(judgements)
    except ValueError:
        return None


def _text(verdicts: Verdicts) -> list[str]:
    judgements = verdicts.judgements
    text = control_sentences(verdicts.controls)
    text += [ONE_SEED] if one_seed(judgements) else []
    return [*text, *([ONE_GENERATOR] if one_generator(judgements) else [])]


def _card(judgement: Judgement) -> Card:
    """A claim with its verdict, in a word and a colour, and the numbers that it goes by."""
    estimate, interval = estimate_words(judgement.estimate, judgement.unit), ""
    if not math.isnan(judgement.low):
        interval = range_words(judgement.low, judgement.high, judgement.unit)
    facts = [fact for fact in (units_words(judgement),) if fact != NOTHING]
    if (agreement := agreement_words(judgement)) != NOTHING:
        facts.append(f"settings: {agreement}")
    if (settled := settling_words(judgement)) != NOTHING:
        facts.append(f"settled by {settled}")
    unit = {"share": " points", "ratio": ""}.get(judgement.unit, f" ({judgement.measure})")
    return Card(
        CARD_COLOURS[judgement.verdict],
        str(judgement.verdict),
        "positive control" if judgement.is_control else "",
        judgement.statement,
        "" if estimate == NOTHING else f"{estimate}{unit}",
        interval,
        " · ".join(facts),
    )


def _claims(judgements: Sequence[Judgement], caption: str = "") -> Table:
    numbers = number_columns("Estimate", "95% interval", "Settings", "From", "Adjusted p", "Settled by")
    columns = [Column("Statement", "wrap"), Column("Verdict"), *numbers]
    rows = [
        [
            judgement.statement,
            str(judgement.verdict),
            estimate_words(judgement.estimate, judgement.unit),
            range_words(judgement.low, judgement.high, judgement.unit),
            agreement_words(judgement),
            units_words(judgement),
            p_words(judgement.p_adjusted),
            settling_words(judgement),
        ]
        for judgement in judgements
    ]
    return Table(columns, rows, caption)


def _settings(judgements: Sequence[Judgement]) -> Fold:
    """What each claim rests on: every part in every setting."""
    groups = []
    for judgement in judgements:
        rows = []
        for row in judgement.settings:
            if "part" not in row:
                rows.append([judgement.name, row["setting"], row["why_not"], NOTHING, NOTHING, NOTHING])
                continue
            estimate, interval = estimate_words(row["estimate"], row["unit"]), range_words(row["low"], row["high"], row["unit"])
            num = str(len(row["values"]) or NOTHING)
            rows.append([judgement.name, row["setting"] or NOTHING, row["part"], estimate, interval, num])
        groups.append(rows)
    columns = [
        *text_columns("Claim", "Setting"),
        Column("Difference", "wrap"),
        *number_columns("Estimate", "95% interval", "n"),
    ]
    return Fold("Every difference, setting by setting", [grouped(columns, [group for group in groups if group])])


def _notes(judgements: Sequence[Judgement]) -> Fold:
    has_paper = any(judgement.paper for judgement in judgements)
    whose = ("The paper",) if has_paper else ()
    columns = text_columns("Claim", *whose, "Test", "Equivalent from", "Notes", css="note")
    rows = [
        [
            judgement.name,
            *([judgement.paper or NOTHING] if has_paper else []),
            judgement.test,
            _smallest_margin(judgement),
            "; ".join(judgement.notes) or NOTHING,
        ]
        for judgement in judgements
    ]
    return Fold("What each verdict rests on", [Table(columns, rows)])


def _smallest_margin(judgement: Judgement) -> str:
    """The smallest margin at which the headline would be equivalent in all settings."""
    margin = judgement.smallest_margin
    if math.isnan(margin):
        return NOTHING
    if judgement.unit == "share":
        return f"±{100 * margin:.1f} points"
    return f"a factor of {margin:.2f}" if judgement.unit == "ratio" else f"±{margin:.2f}"


def _subcases(evidence: Evidence) -> list[Fold]:
    """Nothing where the blindspot set has no subcases."""
    subcases = subcase_table(evidence)
    if subcases.empty:
        return []
    items = evidence.responses.items[evidence.blindspot_set]
    what = {"template": "template", "subcase": "subcase"}.get(items.clustered_by, "cluster of items")
    counted = f"{what.split()[0].capitalize()}s"
    subcase = "slice" if items.described else "subcase"
    numbers = number_columns("Synthetic minus original, points", "95% interval", "n (seeds)", counted, "Items", "p", "q")
    rows = [
        [
            slice_name(row["subcase"]),
            points(row["mean"]),
            range_words(row["low"], row["high"], "share"),
            str(row["num_seeds"]),
            f"{int(row['num_clusters']):,}",
            f"{int(row['num_items']):,}",
            p_words(row["p"]),
            p_words(row["q"]),
        ]
        for _, row in subcases.iterrows()
    ]
    caption = (
        f"Averaged over all starting points and sizes. Of one {what}, an interval speaks of further items of it; of several, "
        f"of further {counted.lower()}. q is Benjamini and Hochberg's, over the {subcase}s of each kind apart."
    )
    title = f"{len(rows)} {subcase}{'' if len(rows) == 1 else 's'} of the blindspot set"
    return [Fold(title, [Table([Column(subcase.capitalize()), *numbers], rows, caption)])]


def _signal(evidence: Evidence) -> list[Fold]:
    table = signal_table(evidence.responses, evidence.blindspot_set)
    columns = [
        *text_columns("Starting point", "Training set"),
        Column("Size", "number"),
        Column("Items", "wrap"),
        *number_columns("n (seeds)", "Sensitivity d′ [95%]", "Criterion c [95%]"),
    ]
    rows = [
        [
            starting_point_name(int(row["starting_size"])),
            "Starting point" if row["kind"] == "none" else kind_name(row["kind"]),
            f"{int(row['size']):,}",
            _slice_words(row["slice"]),
            str(row["num_seeds"]),
            *(_with_interval(row, measure) for measure in ("sensitivity", "criterion")),
        ]
        for _, row in table.iterrows()
    ]
    caption = (
        "Accuracies on items of the heuristic's label and on others move in opposite directions when a model gives that label "
        "more often. d′ is how well it tells them apart, c how much it leans: below 0 towards it. Log-linear correction."
    )
    return [Fold("The blindspot set as signal detection: sensitivity and bias", [Table(columns, rows, caption)])]


def _slice_words(name: str) -> str:
    return f"{slice_name(name)} (where it holds)" if name.startswith(HOLDS) else slice_name(name)


def _with_interval(row: pd.Series, measure: str) -> str:
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    # Without the sign of what is rounded to nothing.
    return f"{row[measure]:z.2f}" if math.isnan(low) else f"{row[measure]:z.2f} [{low:z.2f}, {high:z.2f}]"

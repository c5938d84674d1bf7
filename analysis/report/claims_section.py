"""The report's first section: the paper's claims, judged, with what the verdicts rest on behind a click."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.page import Block, Column, Fold, Table, number_columns, text_columns
from analysis.report.terminal import ONE_SEED, one_seed
from analysis.study.artifacts import LabelCount
from analysis.study.claims import load_evidence
from analysis.study.signal_detection import signal_table
from analysis.study.verdicts import Judgement, judge_evidence, judgement_table, subcase_table
from analysis.wording import NOTHING, estimate_words, kind_name, p_words, points, range_words, starting_point_name, thousands
from pipelines.errors import UserError
from sweep.graph.records import Store, Study


def claims_block(
    store: Store, study: Study, frame: pd.DataFrame, counts: Mapping[str, Mapping[str, LabelCount]], *, partial: bool
) -> tuple[list[Block], pd.DataFrame | None]:
    """The section, and its claims as a table (`judgement_table`); if the claims cannot be judged, a section that says why.

    `frame` and `counts` are the study's, of `evaluation_frame` and `lexical_overlap_counts`.
    """
    title = "Verdicts on the paper's claims"
    try:
        evidence = load_evidence(store, study, partial=partial, frame=frame, counts=counts)
        judgements = judge_evidence(evidence)
    except UserError as error:
        return [Block("claims", title, [f"The claims are not judged: {error}."])], None
    text = [ONE_SEED] if one_seed(judgements) else []
    text.append(
        "Each statement of the paper, tested on this study's items, paired by seed. Differences are of accuracies in points, "
        "ratios have a ×; an interval is for its claim alone, p is adjusted for all of them (Holm). Supported: every part of "
        "the statement has its sign. Refuted: one part has the other. 'Cannot tell' is neither; the last column says how many "
        "seeds would settle it, were the estimate the truth."
    )
    folds = [_notes(judgements)]
    try:
        folds.append(_subcases(subcase_table(evidence)))
    except UserError as error:
        text.append(f"No differences by subcase: {error}.")
    try:
        folds.append(_signal(signal_table(evidence.responses, evidence.blindspot_set)))
    except UserError as error:
        text.append(f"No signal detection: {error}.")
    return [Block("claims", title, text, [_claims(judgements)], folds)], judgement_table(judgements)


def _claims(judgements: Sequence[Judgement]) -> Table:
    numbers = number_columns("Estimate", "95 % interval", "n (seeds)", "n (items)", "Adjusted p", "Settled by")
    columns = [Column("Statement", "wrap"), Column("Verdict"), *numbers]
    rows = [
        [
            judgement.statement,
            str(judgement.verdict),
            estimate_words(judgement.estimate, judgement.unit),
            range_words(judgement.low, judgement.high, judgement.unit),
            str(judgement.num_seeds or NOTHING),
            thousands(judgement.num_items) if judgement.num_items else NOTHING,
            p_words(judgement.p_adjusted),
            NOTHING if judgement.settling_seeds is None else f"{judgement.settling_seeds} seeds",
        ]
        for judgement in judgements
    ]
    return Table(columns, rows)


def _notes(judgements: Sequence[Judgement]) -> Fold:
    columns = text_columns("Claim", "The paper", "Test", "Notes", css="wrap")
    rows = [
        [judgement.name, judgement.paper, judgement.test, "; ".join(judgement.notes) or NOTHING] for judgement in judgements
    ]
    return Fold("What each verdict rests on", [Table(columns, rows)])


def _subcases(subcases: pd.DataFrame) -> Fold:
    numbers = number_columns("Synthetic minus original, points", "95 % interval", "n (seeds)", "n (items)", "p", "q")
    rows = [
        [
            row["subcase"].replace("_", " "),
            points(row["mean"]),
            range_words(row["low"], row["high"], "share"),
            str(row["num_seeds"]),
            thousands(int(row["num_items"])),
            p_words(row["p"]),
            p_words(row["q"]),
        ]
        for _, row in subcases.iterrows()
    ]
    caption = "Over all starting points and sizes. q is Benjamini and Hochberg's over the subcases."
    return Fold(f"{len(rows)} subcases of the blindspot set", [Table([Column("Subcase"), *numbers], rows, caption)])


def _signal(table: pd.DataFrame) -> Fold:
    columns = [
        *text_columns("Starting point", "Training set"),
        Column("Size", "number"),
        Column("Items", "wrap"),
        *number_columns("n (seeds)", "Sensitivity d′ [95 %]", "Criterion c [95 %]"),
    ]
    rows = [
        [
            starting_point_name(int(row["starting_size"])),
            "Starting point" if row["kind"] == "none" else kind_name(row["kind"]),
            thousands(int(row["size"])),
            row["slice"].replace("_", " "),
            str(row["num_seeds"]),
            *(_with_interval(row, measure) for measure in ("sensitivity", "criterion")),
        ]
        for _, row in table.iterrows()
    ]
    caption = (
        "Accuracies on entailed and on other items move in opposite directions when a model says 'entailment' more often. "
        "d′ is how well it tells them apart, c how much it leans: below 0 towards entailment. Log-linear correction."
    )
    return Fold("The blindspot set as signal detection: sensitivity and bias", [Table(columns, rows, caption)])


def _with_interval(row: pd.Series, measure: str) -> str:
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    # Without the sign of what is rounded to nothing.
    return f"{row[measure]:z.2f}" if math.isnan(low) else f"{row[measure]:z.2f} [{low:z.2f}, {high:z.2f}]"

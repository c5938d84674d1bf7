"""The report's sections on artifacts: Table 1, yield, training sets, durations, provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from shlex import quote
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.page import Block, Column, Fold, Table, grouped, number_columns, text_columns
from analysis.report.comparison import ODDS_NOTE, TABLE1_NOTE, odds_table, overlap_cells, table1_beside_table
from analysis.report.figures import training_curves
from analysis.report.label_noise import disputed_labels
from analysis.stats.statistics import wilson_interval
from analysis.study.artifacts import (
    LabelCount,
    counted_heuristic,
    curve_frame,
    label_yield_frame,
    own_pools,
    reject_samples,
    spent_frame,
    stage_frame,
    training_set_frame,
    yield_frame,
)
from analysis.study.described import task_of
from analysis.study.paper import table1
from analysis.study.tables import lexical_overlap_table
from analysis.wording import NOTHING, duration, in_words, kind_name, percent, percent_range
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from sweep.graph.records import STAGES, Store, Study
from sweep.graph.timeline import Timeline, timelines

# The manifest's lists of a replication's notes, and what the report calls them.
NOTES = {"departures": "Departures from the paper", "unsettled": "Unsettled in the paper, chosen here"}


def table1_block(
    counts: Mapping[str, Mapping[str, LabelCount]], beside: pd.DataFrame | None, num_pools: int = 1
) -> list[Block]:
    """Table 1, when both "original" and "synthetic" data are built; beside the paper's, if given; and the odds ratios.

    Of several pools the synthetic counts are the sums.
    """
    if len(counts) < 2 and beside is None:
        return []
    tables, text = [], ["LO: every word of the hypothesis occurs in the premise."]
    if num_pools > 1:
        text[0] += (
            f" Synthetic data is the pools of {num_pools} generators together; by how much generators differ is in no interval."
        )
    if len(counts) == 2:
        tables.append(_table1(counts))
        text[0] += (
            " S:O: the synthetic share over the original share of the same label. Intervals are Wilson's for shares and "
            f"Katz's for ratios, as if examples were independent draws; {NOTHING} where a count is 0."
        )
    if beside is not None:
        tables.append(table1_beside_table(beside))
        text.append(TABLE1_NOTE)
    tables.append(odds_table([("Ours", counts)] if beside is None else [("Ours", counts), ("Paper's", table1())]))
    text.append(ODDS_NOTE)
    return [Block("table1", "Table 1: lexical overlap in original and synthetic data", text, tables)]


def _table1(counts: Mapping[str, Mapping[str, LabelCount]]) -> Table:
    table = lexical_overlap_table(counts["original"], counts["synthetic"])
    rows = [
        [
            *overlap_cells(row),
            percent_range(row["share_low"], row["share_high"], 3),
            NOTHING if pd.isna(row["ratio"]) else f"{row['ratio']:.3f}",
            NOTHING if pd.isna(row["ratio_low"]) else f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        ]
        for _, row in table.iterrows()
    ]
    numbers = number_columns("Count (n)", "# LO", "% LO", "95% interval", "S:O", "95% interval")
    columns = [*text_columns("Data", "Label"), *numbers]
    return Table(columns, rows, group_starts=frozenset({len(counts["synthetic"])}))


def yield_block(store: Store, study: Study) -> list[Block]:
    """Outcomes of the generator's texts, or of an own pool's rows, per reason, and the yield of each label."""
    outcomes = yield_frame(store, study).groupby("outcome", sort=False)["count"].sum()
    if outcomes.empty:
        return []
    total = int(outcomes.sum())
    # Parsed first, then what was rejected most.
    rejected = outcomes.drop("parsed").sort_values(ascending=False, kind="stable")
    rows = [["parsed", f"{int(outcomes['parsed']):,}", percent(outcomes["parsed"] / total, 2)]]
    rows += [
        [f"rejected: {str(reason).replace('_', ' ')}", f"{int(count):,}", percent(count / total, 2)]
        for reason, count in rejected.items()
    ]
    rows.append(["all", f"{total:,}", percent(1.0, 2)])
    by_outcome = Table([Column("Outcome"), *number_columns("Texts", "Share")], rows, group_starts=frozenset({1, len(rows) - 1}))
    of_labels = label_yield_frame(store, study)
    tables = [by_outcome, _yield_table(of_labels, "label", "Label")]
    if of_labels["generator"].nunique() > 1:
        tables.append(_yield_table(of_labels, "generator", "Generator"))
    files = own_pools(study)
    what = in_words([_with_article(name) for name in task_of(study).field_names])
    kept = (
        f"The pool is {in_words(files)}; a row is kept when it has {what} and a label of the task"
        if files
        else f"A text is kept when {what} can be read out of it"
    )
    text = f"{kept}; nothing else is filtered. What is rejected is kept beside the pool with its reason."
    samples = reject_samples(store, study)
    folds = []
    if not samples.empty:
        shown = [
            [reason.replace("_", " "), label, _shortened(text)]
            for reason, label, text in samples.itertuples(index=False, name=None)
        ]
        whose = "Label" if files else "Label asked for"
        table = Table([Column("Reason"), Column(whose), Column("Text, as it was written", "wrap")], shown)
        folds.append(Fold("Rejected texts, the first of each reason", [table]))
    title = "What the pool's rows became" if files else "What the generator's texts became"
    return [Block("yield", title, [text], tables, folds)]


def _with_article(field: str) -> str:
    words = field.replace("_", " ")
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _yield_table(yields: pd.DataFrame, by: str, name: str) -> Table:
    """The share of texts that parsed, by a column of `label_yield_frame`."""
    rows = []
    for key, chosen in yields.groupby(by, sort=False):
        generated, parsed = int(chosen["generated"].sum()), int(chosen["parsed"].sum())
        if not generated:
            rows.append([str(key), "0", "0", NOTHING, NOTHING])
            continue
        interval = wilson_interval(parsed, generated)
        share, around = percent(parsed / generated, 2), percent_range(interval.low, interval.high, 2)
        rows.append([str(key), f"{generated:,}", f"{parsed:,}", share, around])
    return Table([Column(name), *number_columns("Texts (n)", "Parsed", "Yield", "95% interval (Wilson)")], rows)


def curves_block(store: Store, study: Study) -> tuple[list[Block], Figure | None]:
    """The section without its figure, and the figure; nothing where no finetuning has logged a step."""
    curves = curve_frame(store, study)
    if curves.empty:
        return [], None
    caption = (
        "Mean loss of the examples since the last logged step, for each finetuning (their number in brackets), against the "
        "share of its steps. The generator's is per token, the others' per example."
    )
    return [Block("curves", "Training curves", figure_caption=caption)], training_curves(curves)


def spent_block(study: Study, plan: Mapping[str, Any] | None, held: str = "") -> list[Block]:
    """The plan against what was spent, by stage; without a plan's estimate, what was spent. `held`: what all runs cost."""
    stages = (plan or {}).get("stages", {})
    costs = (plan or {}).get("costs")
    gpus = {stage: planned.get("gpus_per_step", 0) for stage, planned in stages.items()}
    spent = spent_frame(study, gpus)
    if not spent["num_built"].any():
        return []
    rows = []
    has_price = costs is not None and costs["price"] is not None
    for spending in spent.itertuples(index=False):
        row = [
            spending.stage.replace("_", " "),
            f"{spending.num_built:,} of {spending.num_steps:,}",
            duration(spending.hours * 3600),
        ]
        if costs:
            # A piece of the study may have no step of a stage.
            planned = stages[spending.stage]["in_all"]["gpu_hours"] if spending.stage in stages else 0.0
            row += [f"{planned:,.2f}", f"{spending.gpu_hours:,.2f}"]
            if has_price:
                row += [_dollars(planned, costs), _dollars(spending.gpu_hours, costs)]
        rows.append(row)
    columns = [Column("Stage"), Column("Built"), Column("Time of its artifacts", "number")]
    if costs:
        columns += number_columns("GPU-hours, planned", "spent", *(("Dollars, planned", "spent") if has_price else ()))
        price = f"at ${costs['price']:g} an hour" if has_price else "(no price was known)"
        basis = f" The estimate was {costs['unmeasured']}." if costs.get("unmeasured") else ""
        num_steps = len(study.steps)
        num_planned = costs.get("in_all", {}).get("steps", num_steps)
        planned_for = "all" if num_planned >= num_steps else f"{num_planned:,} of {num_steps:,}"
        text = [
            f"Planned: the estimate for {costs['gpu']} {price}, made when the study was last run, for "
            f"{planned_for} of its artifacts. Spent: what the built ones took, times the share of GPUs that they held.{basis}"
        ]
    else:
        why = f": {plan['why_no_costs']}" if plan and plan.get("why_no_costs") else ""
        text = [f"No estimate was made of what this study costs{why}."]
    if held:
        text.append(f"The study's runs have held GPUs, idle or not, for {held}.")
    return [Block("spent", "The plan against what was spent", text, [Table(columns, rows)])]


def _dollars(gpu_hours: float, costs: Mapping[str, Any]) -> str:
    return f"${gpu_hours * costs['price']:,.2f}"


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text):,} characters)"


def origins_block(store: Store, study: Study) -> list[Block]:
    """The run, the rows and the configuration of each evaluated cell."""
    rows = [
        [
            step.slug,
            f"tags.fingerprint = '{step.fingerprint}'",
            store.folder(step.id),
            f"blindsweep explain {quote(study.experiment)} METRIC --cell {quote(step.slug)}",
        ]
        for step in study.steps
        if step.stage == "evaluation" and step.record
    ]
    if not rows:
        return []
    columns = [Column("Cell"), *text_columns("Its run, by MLflow's filter", "Its rows", "All of it", css="wrap")]
    text = [
        "Each accuracy is of one evaluation or a mean over seeds of several. Logits of every item and the counts of every "
        "slice lie in the evaluation's folder; the command tells the configuration of all that a number was made from."
    ]
    fold = Fold(f"{len(rows)} evaluations", [Table(columns, rows)])
    return [Block("origins", "Where each number comes from", text, folds=[fold])]


def marks_of(study: Study) -> list[str]:
    """What marks the study's artifacts, and by how many; what its own pool has of the sets it is judged by; disputed labels."""
    marks = [f"{mark}: {count:,} of {study.num_built:,} artifacts" for mark, count in study.marks.items()]
    return [*marks, *study.pool_copies, *disputed_labels(study)]


def paper_block(study: Study) -> list[Block]:
    """A replication's departures from the paper, and its choices where the paper is silent; from the manifest."""
    if "departures" not in study.parameters:
        return []
    columns = text_columns("Point", "Paper", "Here", "Why", css="wrap")
    tables = [
        Table(
            columns,
            [[note[name] for name in ("topic", "paper", "ours", "why")] for note in study.parameters[key]],
            caption=caption if study.parameters[key] else f"{caption}: none",
        )
        for key, caption in NOTES.items()
    ]
    text = ["The paper is Zhang and Pavlick's, with the recipe of their released scripts where it is silent."]
    return [Block("paper", "Departures from the paper", text, tables)]


def composition_block(study: Study) -> list[Block]:
    """Rows of the training sets, and of how many of them a heuristic holds (`counted_heuristic`), by label."""
    sets = training_set_frame(study)
    if sets.empty:
        return []
    heuristic = counted_heuristic(study)
    is_overlap = heuristic == LEXICAL_OVERLAP.name
    short = "LO" if is_overlap else heuristic.replace("_", " ")
    sets["set"] = [
        f"Starting set, {int(start):,}" if stage == "starting_set" else f"{kind_name(kind)}, {int(size):,}"
        for stage, start, kind, size in zip(
            sets["stage"], sets["starting_size"].fillna(0), sets["kind"], sets["size"].fillna(0), strict=True
        )
    ]
    groups = []
    for name, of_set in sets.groupby("set", sort=False):
        rows = []
        num_sets = of_set["fingerprint"].nunique()
        for label, of_label in of_set.groupby("label", sort=False):
            # A set that was not counted is in neither number.
            counted = of_label.dropna(subset="num_held")
            held, number = counted["num_held"].sum(), counted["num_rows"].sum()
            low, high = int(of_label["num_rows"].min()), int(of_label["num_rows"].max())
            rows.append(
                [
                    str(name),
                    f"{num_sets:,}",
                    str(label),
                    f"{low:,}" if low == high else f"{low:,} to {high:,}",
                    f"{round(held / len(counted)):,}" if len(counted) else NOTHING,
                    percent(held / number, 2) if number else NOTHING,
                ]
            )
        groups.append(rows)
    numbers = number_columns("Rows per set", f"# {short}, mean", f"% {short}")
    columns = [Column("Training set"), Column("Sets", "number"), Column("Label"), *numbers]
    text = ["Sets of the same kind and size differ by seed (and by starting point, where they must not share examples)."]
    if not is_overlap:
        text[0] += f" # and %: examples of which the heuristic '{short}' holds, where the sets were counted by it."
    fold = Fold(f"{sets['fingerprint'].nunique()} sets by label", [grouped(columns, groups)])
    return [Block("composition", "What the training sets hold", text, folds=[fold])]


def stages_block(study: Study) -> list[Block]:
    """Durations and throughput by stage."""
    stages = stage_frame(study)
    if stages.empty:
        return []
    speeds = [name for name in stages.columns if name.endswith("_per_s")]
    rows = []
    for stage in sorted(stages["stage"].unique(), key=_stage_order):
        chosen = stages[stages["stage"] == stage]
        seconds = chosen["total_s"].astype(float)
        speed = [
            f"{round(pd.to_numeric(chosen[name]).median()):,} {name.rsplit('_per_', 1)[0].replace('_', ' ')}/s"
            for name in speeds
            if chosen[name].notna().any()
        ]
        rows.append(
            [
                stage.replace("_", " "),
                str(len(chosen)),
                duration(seconds.sum(min_count=1)),
                duration(seconds.median()),
                duration(seconds.max()),
                ", ".join(speed) or NOTHING,
            ]
        )
    columns = [Column("Stage"), *number_columns("Artifacts", "Total", "Median", "Longest"), Column("Median throughput")]
    text = [
        "Time each artifact took when it was built, whenever that was; of those that were under way at once in a lane, each "
        "one's share, and throughput of all of them. Artifacts are built side by side, so the totals can be more than the "
        "time the study took."
    ]
    return [Block("stages", "Durations and throughput", text, [Table(columns, rows)])]


def timeline_block(study: Study) -> tuple[list[Block], Timeline | None]:
    """The run that built most of the study, and what is drawn of it; nothing of artifacts that do not say when."""
    runs = timelines(study)
    if not runs:
        return [], None
    run = max(runs, key=lambda run: len(run.spans))
    rows = []
    for stage in sorted({span.stage for span in run.spans}, key=_stage_order):
        spans = [span for span in run.spans if span.stage == stage]
        num_lanes = sum(stage in lane.stages for lane in run.lanes)
        work, room, turn = (
            pd.Series(values).median()
            for values in (
                [span.ended - span.began for span in spans],
                [span.room_s for span in spans],
                [span.turn_s for span in spans],
            )
        )
        rows.append([stage.replace("_", " "), str(len(spans)), str(num_lanes), duration(work), duration(room), duration(turn)])
    columns = [
        Column("Stage"),
        *number_columns("Artifacts", "Lanes", "Under way, median", "Waited for room, median", "Waited in the lane, median"),
    ]
    lanes_s = sum(lane.ended - lane.opened for lane in run.lanes)
    shares = [sum(getattr(lane, name) for lane in run.lanes) / (lanes_s or 1) for name in ("work_s", "start_s", "idle_s")]
    others = "" if len(runs) == 1 else f" {len(runs) - 1} other runs have built the rest."
    text = [
        f"A lane is workers that start once and take on the steps of one kind. This run built {len(run.spans):,} artifacts in "
        f"{len(run.lanes)} lanes and {duration(run.seconds)}; of the lanes' time {shares[0]:.0%} was work, {shares[1]:.0%} "
        f"starts and {shares[2]:.0%} waits for a step.{others} Colours are stages, and pale is a start. A thin line is the "
        "time from when a step's inputs were there until it began."
    ]
    return [Block("timeline", "When it was built", text, [Table(columns, rows)])], run


def provenance_block(study: Study) -> Block:
    """The origin of the results: code, hardware, parameters, versions, fingerprints."""
    built = [step for step in study.steps if step.record]
    records = [step.record for step in built if step.record]
    facts = [
        ["Code", _distinct(records, lambda record: _commit(record.git))],
        ["Hardware", _distinct(records, lambda record: _machine(record.hardware))],
        ["Artifacts", f"{len(built)} of {len(study.steps)} built"],
    ]
    versions: dict[str, list[str]] = {}
    for record in records:
        for package, version in record.versions.items():
            versions.setdefault(package, [])
            if version not in versions[package]:
                versions[package].append(version)
    two = [Column("Name"), Column("Value", "wrap")]
    fingerprints = [
        [
            step.stage.replace("_", " "),
            step.slug,
            step.record.created[:19].replace("T", " ") if step.record else "not built",
            step.fingerprint,
        ]
        for step in study.steps
    ]
    columns = [*text_columns("Stage", "Artifact", "Created (UTC)"), Column("Fingerprint", "wrap")]
    plain = {name: value for name, value in study.parameters.items() if name not in NOTES}
    parameters = [[name, value] for name, value in _flatten(plain)]
    return Block(
        "provenance",
        "Provenance",
        tables=[Table(two, facts)],
        folds=[
            Fold("Experiment parameters", [Table(two, parameters)]),
            Fold("Package versions", [Table(two, [[name, ", ".join(values)] for name, values in sorted(versions.items())])]),
            Fold(f"Fingerprints of {len(fingerprints):,} artifacts", [Table(columns, fingerprints)]),
        ],
    )


def _stage_order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _distinct(records: Iterable[Any], read: Callable[[Any], str]) -> str:
    return "; ".join(dict.fromkeys(read(record) for record in records)) or NOTHING


def _commit(git: Mapping[str, Any]) -> str:
    if not git.get("commit"):
        return "commit unknown"
    return f"commit {git['commit']}" + (" with uncommitted changes" if git.get("dirty") else "")


def _machine(hardware: Mapping[str, Any]) -> str:
    """One machine in words: '4 × NVIDIA H100, 81559 MiB' for its GPUs, and facts that are not known here under their names."""
    facts = dict(hardware)
    gpus = list(facts.pop("gpus", []))
    words = [" ".join(str(facts.pop(name)) for name in ("system", "machine") if name in facts)]
    for name, unit in (("num_cpus", "CPUs"), ("memory_gib", "GiB memory")):
        if name in facts:
            words.append(f"{facts.pop(name)} {unit}")
    words += [f"{name}: {value}" for name, value in _flatten(facts)]
    words += [f"{gpus.count(gpu)} × {gpu}" for gpu in dict.fromkeys(gpus)]
    if "gpus" in hardware and not gpus:
        words.append("no GPU")
    return ", ".join(filter(None, words)) or "unknown"


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as dotted names; lists stay whole."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

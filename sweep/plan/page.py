"""A plan as text for a terminal, and as JSON for programs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.terminal import console as new_console
from sweep.graph.identity import SHORT
from sweep.graph.records import STAGES, counts_in_words
from sweep.plan.costs import EndpointCost, Total, rates, total, unmeasured
from sweep.plan.damaged import damaged_words, is_refused
from sweep.plan.plan import Plan, PlanCosts, Planned
from sweep.plan.throughputs import BFLOAT16, CostTable, Gpu
from sweep.study.experiment import Experiment
from sweep.study.inputs import left_out, missing_inputs, pool_copies
from sweep.study.paper import Note, departures, unsettled

COST_COLUMNS = ("examples", "tokens", "GPU-hours", "on demand", "spot", "disk")
MOST_CHANGES = 8
"""Changes, and other reasons, that a plan lists in a line each; a study that changed altogether has dozens."""
MOST_FIELDS = 3
"""Fields that such a line names."""
MIN_WIDTH = 116
"""Columns of text that the table with costs needs; a narrower terminal breaks its lines."""


def print_plan(plan: Plan, *, all_steps: bool = False) -> None:
    """Print what is missing, counts by stage, costs if there are any (else why not), and why something would be built."""
    from rich.table import Table

    experiment, costs = plan.experiment, plan.costs
    console = new_console(soft_wrap=True, highlight=False, markup=False)
    if costs:
        console.width = max(console.width, MIN_WIDTH)
    about_inputs = (*missing_inputs(experiment), *left_out(experiment), *pool_copies(experiment))
    for line in (f"{experiment.name}: {experiment.title}", *about_inputs):
        console.print(line)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "steps", "cached", "to build", *(COST_COLUMNS if costs else ())):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for stage, steps in _by_stage(plan).items():
        cached = sum(planned.is_cached for planned in steps)
        cells = _cost_cells(_missing_total(costs, stage), costs) if costs else []
        table.add_row(stage, str(len(steps)), str(cached), str(len(steps) - cached), *cells)
    missing = plan.missing
    if costs:
        for label, sum_ in (("to build", costs.to_build), ("in all", costs.in_all)):
            table.add_row(label, "", "", str(sum_.num_steps), *_cost_cells(sum_, costs), style="bold" if missing else "")
    console.print(table)
    for heading, notes in _notes(experiment).items():
        console.print(f"{heading}:" if notes else f"{heading}: none")
        for note in notes:
            console.print(f"  {note.topic}: {note.ours}  (paper: {note.paper}) — {note.why}")
    console.print(f"{len(missing)} of {len(plan.steps)} to build" if missing else "everything is built")
    for line in _content_lines(plan):
        console.print(line)
    for line in _arm_lines(plan):
        console.print(line)
    for line in _cost_lines(costs) if costs and missing else [f"no costs: {plan.why_no_costs}"] if plan.why_no_costs else []:
        console.print(line)
    if plan.endpoint:
        console.print(_endpoint_line(plan.endpoint))
    if all_steps:
        for planned in plan.steps:
            state = "cached" if planned.is_cached else f"build: {planned.reason}"
            console.print(f"  {planned.step.name}-{planned.step.fingerprint[:SHORT]}  {state}")
        return
    for line in _reason_lines(plan):
        console.print(line)


def print_sources(table: CostTable, costs: PlanCosts | None) -> None:
    """Print the rates that the estimate uses, and every row of the table with its source."""
    if costs:
        print(f"rates of one {costs.estimate.gpu.name} for {costs.estimate.num_parameters:,} parameters:")
        for setting, rate in rates(costs.estimate.steps).items():
            print(f"  {setting}: {rate.tokens_per_s:,.0f} tokens/s" + (f" ({rate.scaled})" if rate.scaled else ""))
        if note := unmeasured(costs.estimate.steps, costs.estimate.gpu):
            print(f"  {note}")
    measured = {row.gpu for row in table.throughputs}
    for gpu in table.gpus.values():
        basis = "" if gpu.name in measured else "; nothing was measured on it"
        memory = f", {gpu.memory_gb:g} GB" if gpu.memory_gb else ""
        rates_of = f"{gpu.bf16_tflops:g} TFLOP/s, {gpu.memory_tb_per_s:g} TB/s"
        print(f"{gpu.name}: {_price(gpu)}, {rates_of}{memory}{basis}  {gpu.source}")
    for row in table.throughputs:
        batch = f", batch {row.batch_size}" if row.batch_size else ""
        batch += f", {row.together} at once" if row.together > 1 else ""
        batch += f", {row.processes} processes" if row.processes > 1 else ""
        batch += f", of {row.head}" if row.head else ""
        batch += f", {'shared' if row.share_prefix else 'no shared'} prefix" if row.batch_size else ""
        batch += f", base in {row.base_precision}" if row.base_precision != BFLOAT16 else ""
        print(f"{row.gpu}, {row.work}{batch}, {row.model}: {row.examples_per_s:g} examples/s  {row.source}")
    for constant in table.constants.values():
        size = f" of {constant.parameters / 1e6:,.0f} M parameters" if constant.parameters else ""
        print(f"{constant.name}{size}: {constant.value:g} {constant.unit}  {constant.source}")


def _content_lines(plan: Plan) -> Iterator[str]:
    if words := damaged_words(plan.steps):
        does = (
            "refuses to build so many again unless they are set aside before" if is_refused(plan.steps) else "sets them aside"
        )
        yield f"{words}; `run` {does}"
    if plan.num_stale:
        yield (
            f"{plan.num_stale} of them are there, from inputs that were built again since and have other content; the old ones "
            "are set aside, or kept and marked by `run --keep-dependents`"
        )
    if plan.num_uncertain:
        yield f"{plan.num_uncertain} more were built from what is to be built again: they are kept if it comes out as it was"


def _arm_lines(plan: Plan) -> Iterator[str]:
    """What each arm adds to the study."""
    for arm, steps in plan.of_arms.items():
        num_missing = sum(not planned.is_cached for planned in steps)
        line = f"arm {arm}: {len(steps):,} artifacts of its own, {num_missing:,} to build"
        if plan.costs and num_missing:
            hours, price = _of_arm(plan.costs, steps, missing=True).gpu_hours, plan.costs.estimate.gpu.price
            line += f", {hours:,.1f} GPU-hours" + ("" if price is None else f" ({_dollars(hours, price)} on demand)")
        yield line


def _of_arm(costs: PlanCosts, steps: Sequence[Planned], *, missing: bool) -> Total:
    chosen = {planned.step.fingerprint for planned in steps}
    return total(cost for cost in (costs.missing_steps if missing else costs.estimate.steps) if cost.step.fingerprint in chosen)


def _notes(experiment: Experiment) -> dict[str, Sequence[Note]]:
    if not experiment.replicates_paper:
        return {}
    return {
        "departures from the paper": departures(experiment),
        "unsettled in the paper, chosen here": unsettled(experiment),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """All the numbers of a plan as JSON values; seconds, bytes, US dollars."""
    experiment, costs = plan.experiment, plan.costs
    stages: dict[str, dict[str, Any]] = {}
    for stage, steps in _by_stage(plan).items():
        stages[stage] = {
            "steps": len(steps),
            "cached": sum(planned.is_cached for planned in steps),
            "gpus_per_step": max(planned.step.resources.total_gpus for planned in steps),
        }
        if costs:
            whole = total(cost for cost in costs.estimate.steps if cost.step.stage == stage)
            missing = _missing_total(costs, stage)
            stages[stage] |= {"to_build": _total_json(missing, costs), "in_all": _total_json(whole, costs)}
    without_costs = {
        "experiment": experiment.name,
        "title": experiment.title,
        "missing_inputs": list(missing_inputs(experiment)),
        "notes": {heading: [asdict(note) for note in notes] for heading, notes in _notes(experiment).items()},
        "stages": stages,
        "arms": {arm: _arm_json(plan, steps) for arm, steps in plan.of_arms.items()},
        "damaged": plan.num_damaged,
        "stale": plan.num_stale,
        "uncertain": plan.num_uncertain,
        "endpoint": asdict(plan.endpoint) if plan.endpoint else None,
        "reasons": [{"stage": stage, "reason": reason, "steps": count} for (stage, reason), count in _reasons(plan).items()],
    }
    if not costs:
        return {**without_costs, "costs": None, "why_no_costs": plan.why_no_costs}
    estimate, gpu = costs.estimate, costs.estimate.gpu
    return {
        **without_costs,
        "costs": {
            "are_estimates": True,
            "gpu": gpu.name,
            "price": gpu.price,
            "spot_price": gpu.spot_price,
            "price_source": None if gpu.price is None else gpu.source,
            "gpu_source": gpu.source,
            "unmeasured": unmeasured(estimate.steps, gpu),
            "num_parameters": estimate.num_parameters,
            "to_build": _total_json(costs.to_build, costs),
            "in_all": _total_json(costs.in_all, costs),
            "one_more": {name: _paid_json(hours, costs) for name, hours in asdict(costs.replication).items()},
            "schedules": [
                {
                    "num_gpus": schedule.num_gpus,
                    "seconds": schedule.seconds,
                    "idle_share": schedule.idle_share,
                    "critical_s": schedule.critical_s,
                    "critical_path": [step.name for step in schedule.critical_path],
                    "peak_checkpoint_bytes": schedule.peak_bytes,
                    "held_gpu_hours": schedule.seconds / 3600 * schedule.num_gpus,
                    "seed_ends": {str(seed): ended for seed, ended in schedule.seed_ends.items()},
                }
                for schedule in costs.schedules
            ],
            "rates": [
                {
                    **asdict(setting),
                    "tokens_per_s": rate.tokens_per_s,
                    "scaled": rate.scaled,
                    "measured_on": rate.measured_on or gpu.name,
                    "shared": rate.shared,
                    "load": rate.load,
                    "sources": [row.source for row in rate.rows],
                }
                for setting, rate in rates(estimate.steps).items()
            ],
            "assumptions": list(estimate.assumptions),
            "gpu_memory_gb": gpu.memory_gb or None,
            "least_memory_bytes": {cost.step.name: cost.memory_bytes for cost in estimate.steps if cost.memory_bytes},
            "does_not_fit": costs.too_large,
        },
    }


def _arm_json(plan: Plan, steps: Sequence[Planned]) -> dict[str, Any]:
    counts = {"steps": len(steps), "cached": sum(planned.is_cached for planned in steps)}
    if plan.costs is None:
        return counts
    names = {"to_build": True, "in_all": False}
    return counts | {
        name: _total_json(_of_arm(plan.costs, steps, missing=missing), plan.costs) for name, missing in names.items()
    }


def _by_stage(plan: Plan) -> dict[str, list[Planned]]:
    """The steps of each stage that has any, in the order of the pipeline."""
    of_stage = {stage: [planned for planned in plan.steps if planned.step.stage == stage] for stage in STAGES}
    return {stage: steps for stage, steps in of_stage.items() if steps}


def _reasons(plan: Plan) -> Mapping[tuple[str, str], int]:
    return Counter((planned.step.stage, planned.reason) for planned in plan.missing)


def _reason_lines(plan: Plan) -> Iterator[str]:
    """Why what is missing has to be built, each change once: with it, how much is built again for it."""
    new = Counter(planned.step.stage for planned in plan.missing if planned.reason == "new")
    if new:
        yield f"  {new.total():,} new: {counts_in_words(new)}"
    others = Counter(
        (planned.step.stage, planned.reason) for planned in plan.missing if not planned.causes and planned.reason != "new"
    )
    for (stage, reason), count in others.most_common(MOST_CHANGES):
        yield f"  {count:,} {stage}: {reason}"
    if num_more := max(0, len(others) - MOST_CHANGES):
        num_steps = sum(count for _, count in others.most_common()[MOST_CHANGES:])
        yield f"  and {num_steps:,} more for {num_more:,} other reasons: --all lists them"
    by_causes: dict[tuple[str, ...], Counter[str]] = {}
    for planned in plan.missing:
        if planned.causes:
            by_causes.setdefault(tuple(sorted(planned.causes)), Counter())[planned.step.stage] += 1
    if not by_causes:
        return
    yield "what changed since this study's last build:"
    said: set[str] = set()
    lines: list[tuple[str, int]] = []
    several = Counter[str]()
    for causes, stages in by_causes.items():
        if unsaid := [cause for cause in causes if cause not in said]:
            said.update(unsaid)
            lines.append((f"  {_folded(unsaid)}: {_with_more(stages)}", stages.total()))
        else:
            several += stages
    for line, _ in lines[:MOST_CHANGES]:
        yield line
    if rest := lines[MOST_CHANGES:]:
        yield f"  and {len(rest):,} more changes, with {sum(num for _, num in rest):,} steps: --all lists them"
    if several:
        yield f"  and {several.total():,} more for several of these reasons: {counts_in_words(several)}"


def _folded(causes: Sequence[str]) -> str:
    more = len(causes) - MOST_FIELDS
    return "; ".join(causes[:MOST_FIELDS]) + (f"; and {more:,} more fields (--all lists them)" if more > 0 else "")


def _with_more(stages: Counter[str]) -> str:
    """What a change rebuilds, by its first stage: what comes after does not need to be listed."""
    (first, num), *_ = stages.items()
    more = stages.total() - num
    return f"{num:,} {first}" + (f", and {more:,} more for the same reason" if more else "")


def _missing_total(costs: PlanCosts, stage: str) -> Total:
    return total(cost for cost in costs.missing_steps if cost.step.stage == stage)


def _cost_cells(sum_: Total, costs: PlanCosts) -> list[str]:
    if not sum_.num_steps:
        return [""] * len(COST_COLUMNS)
    gpu = costs.estimate.gpu
    examples, tokens = (_count(sum_.num_examples), _count(sum_.num_tokens)) if sum_.num_examples else ("", "")
    hours = sum_.gpu_hours
    paid = [f"{hours:,.1f}", _dollars(hours, gpu.price), _dollars(hours, gpu.spot_price)] if hours else ["", "", ""]
    return [examples, tokens, *paid, _size(sum_.num_bytes)]


def _total_json(sum_: Total, costs: PlanCosts) -> dict[str, float | None]:
    return {
        "steps": sum_.num_steps,
        "examples": sum_.num_examples,
        "tokens": sum_.num_tokens,
        **_paid_json(sum_.gpu_hours, costs),
        "bytes": sum_.num_bytes,
    }


def _paid_json(hours: float, costs: PlanCosts) -> dict[str, float | None]:
    gpu = costs.estimate.gpu
    return {
        "gpu_hours": hours,
        "on_demand": None if gpu.price is None else hours * gpu.price,
        "spot": None if gpu.spot_price is None else hours * gpu.spot_price,
    }


def _cost_lines(costs: PlanCosts) -> Iterator[str]:
    gpu, schedule, hours = costs.estimate.gpu, costs.schedule, costs.held_gpu_hours
    times = ", ".join(f"{_duration(other.seconds)} on {_gpus(other.num_gpus)}" for other in costs.schedules)
    yield f"wall time: {times}"
    if len(ends := sorted(schedule.seed_ends.values())) > 1:
        half = ends[(len(ends) - 1) // 2]
        yield (
            f"of {len(ends)} seeds the first is whole after {_duration(ends[0])} on {_gpus(schedule.num_gpus)}, half of them "
            f"after {_duration(half)}, the last after {_duration(ends[-1])}"
        )
    paid = [
        f"{_dollars(hours, price)} {market}"
        for price, market in ((gpu.price, "on demand"), (gpu.spot_price, "spot"))
        if price is not None
    ]
    yield (
        f"{_gpus(schedule.num_gpus)}, held to the end, would be idle {schedule.idle_share:.0%} of the time"
        + (f" and cost {', '.join(paid)}" if paid else f": {hours:,.1f} GPU-hours, without a price no cost")
    )
    chain = " → ".join(step.name for step in schedule.critical_path)
    yield f"no number of GPUs takes less than {_duration(schedule.critical_s)}: {chain}"
    yield _replication_line(costs)
    largest = max(costs.missing_steps, key=lambda cost: cost.num_bytes)
    yield (
        f"disk: {_size(costs.to_build.num_bytes)} more, the largest artifact {largest.step.name} with "
        f"{_size(largest.num_bytes)}; while it runs, up to {_size(schedule.peak_bytes)} of checkpoints beside them"
    )
    if costs.too_large:
        yield f"does not fit: {costs.too_large}; `run` refuses it"
    elif most := costs.needs_most_memory:
        has = f" of {gpu.memory_gb:g} GB" if gpu.memory_gb else ""
        yield (
            f"memory: at least {most.memory_bytes / 2**30:,.1f} GiB{has} on a GPU for {most.step.name}, without activations "
            "and caches, for which there is no figure: `run --rehearse` measures"
        )
    yield (
        f"All these are estimates. {gpu.name} at {_price(gpu)}: set what you pay "
        "with --price and --spot-price. --sources lists the figures behind them."
    )
    if costs.unmeasured:
        yield f"  {costs.unmeasured}"
    for setting, rate in rates(costs.missing_steps).items():
        basis = rate.scaled or rate.rows[0].source.partition(":")[0]
        at_once = f"; of models finetuned at once, each adds {1 - rate.shared:.0%} of its time alone" if rate.shared else ""
        yield f"  {setting}: {rate.tokens_per_s:,.0f} tokens/s ({basis}){at_once}"
    for assumption in costs.estimate.assumptions:
        yield f"  assumed: {assumption}"


def _endpoint_line(cost: EndpointCost) -> str:
    paid = f"${cost.dollars:,.2f}" if cost.dollars else "at no price, as none is given"
    read, written = _count(cost.prompt_tokens), _count(cost.completion_tokens)
    return (
        f"endpoint: {_count(cost.num_texts)} texts, {read} tokens read and {written} written, {paid}; an estimate, which no "
        "time is reckoned for"
    )


def _replication_line(costs: PlanCosts) -> str:
    """The prices of further replicates, so that they can be weighed against each other."""
    gpu, more = costs.estimate.gpu, costs.replication
    seed, generator = (
        f"{hours:,.1f} GPU-hours" + ("" if gpu.price is None else f" ({_dollars(hours, gpu.price)} on demand)")
        for hours in (more.seed, more.generator)
    )
    of_generator = f"one more generator with its pool costs {generator}, and " if more.generator else ""
    return f"{of_generator}one more seed, with its starting points and cells, {'' if more.generator else 'costs '}{seed}"


def _gpus(number: float) -> str:
    return f"{number:g} GPU" + ("" if number == 1 else "s")


def _count(number: float) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M")):
        if number >= limit:
            return f"{number / limit:.2f}{unit}"
    return f"{number:,.0f}"


def _price(gpu: Gpu) -> str:
    """The prices of one hour, in words."""
    on_demand = "no price an hour on demand" if gpu.price is None else f"${gpu.price:g} an hour on demand"
    return f"{on_demand}, {'no price' if gpu.spot_price is None else f'${gpu.spot_price:g}'} spot"


def _dollars(hours: float, price: float | None) -> str:
    """What `hours` cost, "no price" if that is unknown."""
    if price is None:
        return "no price"
    amount = hours * price
    return f"${amount:,.0f}" if amount >= 100 else f"${amount:.2f}"


def _size(num_bytes: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"

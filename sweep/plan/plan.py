"""The plan of a run: what is cached, what would be built, which changed field is the reason, and what it would cost."""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedError, UserError
from pipelines.finetune.base_model import LLAMA_2_7B, PretrainedModelConfig, RandomModelConfig
from pipelines.models.gguf_files import read_gguf
from pipelines.models.quantization import LEAST_FOR_FP8
from sweep.graph.identity import SHORT, flatten
from sweep.graph.integrity import Damage, How, besides_weights, changed_inputs, check_all, why_stale
from sweep.graph.pieces import Only, check_apart, piece_of
from sweep.graph.records import ArtifactId, Record, Store, Study
from sweep.graph.spending import NOTHING, Spending, describe, dollars
from sweep.graph.step import Step
from sweep.plan.costs import (
    EndpointCost,
    Estimate,
    Replication,
    StepCost,
    Total,
    endpoint_costs,
    estimate_costs,
    option_of_fp8,
    replication,
    total,
    unmeasured,
)
from sweep.plan.model_shape import settings_of_gguf
from sweep.plan.schedule import Schedule, StepTime, simulate
from sweep.plan.throughputs import CostTable, Gpu, NoEstimate
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.inputs import check_blindspot, check_pools, check_prompts, check_sizes
from sweep.study.paper import MODEL


@dataclass(frozen=True)
class Planned:
    """A step and the record of its artifact; without a record, `reason` says why it has to be built.

    `is_stale`: there is an artifact, and it was built from inputs that have other content by now. `is_uncertain`: it was built,
    directly or not, from what is to be built again, and is kept if that comes out as before. `damage` says in what its artifact
    is damaged, and `damages` are its files that are not what its record says; none where the record itself is damaged.
    `causes` are the changes behind the reason, each as `stage.field old → new`, the same words for all that one change touches.
    `lost_weights`: there is an artifact, whose weights are not here.
    """

    step: Step
    record: Record | None
    reason: str = ""
    is_stale: bool = False
    is_uncertain: bool = False
    damage: str = ""
    damages: tuple[Damage, ...] = ()
    causes: tuple[str, ...] = ()
    lost_weights: bool = False

    @property
    def is_cached(self) -> bool:
        return self.record is not None

    @property
    def is_there(self) -> bool:
        """Whether there is an artifact, be it of no use."""
        return self.is_cached or bool(self.damage) or self.is_stale or self.lost_weights


def make_plan(
    steps: Sequence[Step],
    store: Store,
    *,
    earlier: Study | None = None,
    reasons: bool = True,
    keep_dependents: bool = False,
    last: How = "sizes",
) -> list[Planned]:
    """Look each step up in the store; `steps` come after their inputs. Without `reasons`, older artifacts are not read.

    What is missing is compared with the artifact in its place in the `earlier` build of the same study (its manifest), and with
    no other study's in the store; without one, all that is missing is new.
    A damaged artifact counts as none, be it its record or a file that is missing or has another size. No file is read, unless
    `last` says that those be compared in full which nothing is built from: nobody looks at them later. What was built from
    other content than its inputs have now is to be built again, unless `keep_dependents`. An artifact whose weights are not
    here is to be built again where something that is to be built needs it, and stays as it is where nothing does.
    """
    planned: dict[str, Planned] = {}
    built: dict[str, Record] = {}
    folders = {stage: store.folders(stage) for stage in {step.stage for step in steps}}
    of_earlier = {(step.stage, step.slug): step.id for step in earlier.steps} if earlier else {}
    read = cache(partial(_record_if_whole, store=store))
    begun = {step.fingerprint for step in steps if step.fingerprint[:SHORT] in folders[step.stage].get(step.slug, ())}
    records: dict[str, Record] = {}
    unreadable: dict[str, str] = {}
    for step in steps:
        try:
            if step.fingerprint in begun and (found := store.read_record(step.id)) is not None:
                records[step.fingerprint] = found
        except DamagedError as error:
            unreadable[step.fingerprint] = str(error)
    inputs = {source.fingerprint for step in steps for source in step.inputs.values()}
    damages = check_all(store, records.values(), lambda record: "sizes" if record.fingerprint in inputs else last)
    for step in steps:
        record = records.get(step.fingerprint)
        if damage := unreadable.get(step.fingerprint):
            planned[step.fingerprint] = Planned(step, None, f"damaged: {damage}", damage=damage)
        elif lost := tuple(besides_weights(damages.get(step.fingerprint, ()))):
            more = f", and {len(lost) - 1:,} more of its files are damaged" if len(lost) > 1 else ""
            reason = f"damaged: {lost[0].file} {lost[0].found}{more}"
            planned[step.fingerprint] = Planned(step, None, reason, damage=str(lost[0]), damages=lost)
        elif record is None:
            is_begun = step.fingerprint in begun
            planned[step.fingerprint] = _missing(step, is_begun, of_earlier, read) if reasons else Planned(step, None)
        elif (changed := changed_inputs(record, built)) and not keep_dependents:
            planned[step.fingerprint] = Planned(step, None, why_stale(record, changed), is_stale=True)
        else:
            built[step.fingerprint] = record
            planned[step.fingerprint] = Planned(step, record)
    # Each after what is built from it.
    for step in reversed(steps):
        if planned[step.fingerprint].is_cached:
            continue
        for source in step.inputs.values():
            # What is damaged in another way is to be built in any case.
            if planned[source.fingerprint].is_cached and source.fingerprint in damages:
                reason = f"its weights are not here, and {step.name} needs them"
                planned[source.fingerprint] = Planned(source, None, reason, lost_weights=True)
    for step in [] if keep_dependents else steps:
        member = planned[step.fingerprint]
        # An older record does not say what it was built from.
        if member.record is not None and member.record.input_contents:
            sources = [planned[source.fingerprint] for source in step.inputs.values()]
            if any(source.is_uncertain or not source.is_cached for source in sources):
                planned[step.fingerprint] = replace(member, is_uncertain=True)
    return list(planned.values())


def plan_piece(
    grid: Sequence[Step],
    store: Store,
    only: Only | None,
    *,
    earlier: Study | None = None,
    reasons: bool = True,
    keep_dependents: bool = False,
    last: How = "sizes",
) -> list[Planned]:
    """`make_plan` of the whole `grid`, or `only` of a piece of it. Raises UserError for one that cannot be built apart."""
    piece = grid if only is None else piece_of(grid, only)
    planned = make_plan(piece, store, earlier=earlier, reasons=reasons, keep_dependents=keep_dependents, last=last)
    if only is not None:
        built = {member.step.fingerprint for member in planned if member.is_cached}
        lost = {member.step.fingerprint for member in planned if member.lost_weights}
        check_apart(grid, piece, built, only, lost, {member.step.fingerprint: member.damage for member in planned})
    return planned


@dataclass(frozen=True)
class PlanCosts:
    """The estimate for a study, and the wall time of what is missing of it on several numbers of GPUs.

    `missing` are the fingerprints of what is not built; `schedules` has one for `num_gpus`, and is in the
    order of their numbers of GPUs.
    """

    estimate: Estimate
    missing: frozenset[str]
    schedules: tuple[Schedule, ...]
    num_gpus: float

    @property
    def missing_steps(self) -> tuple[StepCost, ...]:
        return tuple(cost for cost in self.estimate.steps if cost.step.fingerprint in self.missing)

    @property
    def to_build(self) -> Total:
        return total(self.missing_steps)

    @property
    def in_all(self) -> Total:
        return total(self.estimate.steps)

    @property
    def replication(self) -> Replication:
        return replication(self.estimate.steps)

    @property
    def schedule(self) -> Schedule:
        return next(schedule for schedule in self.schedules if schedule.num_gpus == self.num_gpus)

    @property
    def held_gpu_hours(self) -> float:
        """The hours that are paid for if all GPUs are held until the last step ends, idle or not."""
        return self.schedule.seconds / 3600 * self.num_gpus

    @property
    def needs_most_memory(self) -> StepCost | None:
        """Of the missing steps that use a GPU, the one whose workers need most of it; None if there is none."""
        return max((cost for cost in self.missing_steps if cost.memory_bytes), key=lambda cost: cost.memory_bytes, default=None)

    @property
    def too_large(self) -> str:
        """The missing step that cannot fit on the GPU, as a sentence; "" if all may, or the GPU's memory is unknown."""
        gpu, cost = self.estimate.gpu, self.needs_most_memory
        if cost is None or not 0 < gpu.memory_bytes < cost.memory_bytes:
            return ""
        return (
            f"{cost.step.name} needs at least {cost.memory_bytes / 2**30:,.1f} GiB on a worker's GPU (weights, and what a "
            f"finetuning keeps of each trained parameter; activations and caches come on top), and the {gpu.name} has "
            f"{gpu.memory_gb:g} GB"
        )

    @property
    def unmeasured(self) -> str:
        """What of the missing is reckoned from data sheets, as a sentence; "" if nothing is."""
        return unmeasured(self.missing_steps, self.estimate.gpu)


def cost_plan(
    planned: Sequence[Planned],
    store: Store,
    table: CostTable,
    gpu: Gpu,
    num_gpus: float | None = None,
    *,
    others: Iterable[float] = (),
    seeds_at_once: int | None = None,
) -> PlanCosts:
    """Estimate what is planned on `num_gpus` (None: as many as its largest step asks for, at least 1) and, for comparison,
    on each number of `others` that no step exceeds.

    Counts and the model's shape are taken from what is built, else from the configs. Raises NoEstimate, with the
    reason, where nothing can be said; UserError for a number of GPUs that is not above 0 or too small for a step.
    """
    by_stage = {member.step.stage: member for member in reversed(planned)}
    # The last: it has the test sets that only evaluations read.
    sources, base_model = [member for member in planned if member.step.stage == "sources"][-1], by_stage["base_model"]
    counts = None
    if sources.record:
        counts = {
            name.removesuffix("/num_examples"): count
            for name, count in sources.record.metrics.items()
            if name.endswith("/num_examples")
        }
    steps = [member.step for member in planned]
    settings, assumed = _model_settings(base_model, store)
    # What seeds share has no task model.
    starts = by_stage.get("starting_point")
    task_base = next((m for m in planned if starts is not None and m.step is starts.step.inputs["base_model"]), base_model)
    task_settings, _ = _model_settings(task_base, store)
    estimate = estimate_costs(steps, table, gpu, settings=settings, task_settings=task_settings, num_examples=counts)
    if assumed:
        estimate = replace(estimate, assumptions=(*estimate.assumptions, assumed))
    missing = frozenset(member.step.fingerprint for member in planned if not member.is_cached)
    return schedule_costs(estimate, missing, num_gpus, others=others, seeds_at_once=seeds_at_once)


def schedule_costs(
    estimate: Estimate,
    missing: frozenset[str],
    num_gpus: float | None = None,
    *,
    others: Iterable[float] = (),
    seeds_at_once: int | None = None,
) -> PlanCosts:
    """Play the `missing` steps of an estimate through, as `cost_plan` says. On parts of GPUs a step takes as long as those that
    are beside it then let it: its GPU-seconds are those of the schedule for `num_gpus`.
    """
    steps = [cost.step for cost in estimate.steps]
    done = [step.fingerprint for step in steps if step.fingerprint not in missing]
    largest = max((step.resources.total_gpus for step in steps if step.fingerprint in missing), default=0)
    num_gpus = max(1, math.ceil(largest)) if num_gpus is None else num_gpus
    if not (math.isfinite(num_gpus) and num_gpus > 0):
        raise UserError(f"num_gpus={num_gpus:g}: the wall time is that on some GPUs; give 1 or more")
    numbers = sorted({num_gpus, *(other for other in others if other >= largest)})
    by_step = {cost.step.fingerprint: cost for cost in estimate.steps}
    times = {
        fingerprint: StepTime(cost.setup_s, cost.once_s, cost.own_s, cost.begin_s, cost.load)
        for fingerprint, cost in by_step.items()
    }
    checkpoints = {fingerprint: cost.checkpoint_bytes for fingerprint, cost in by_step.items()}
    schedules = tuple(
        simulate(steps, times, done, number, checkpoint_bytes=checkpoints, seeds_at_once=seeds_at_once) for number in numbers
    )
    paid = next(schedule for schedule in schedules if schedule.num_gpus == num_gpus).gpu_seconds
    costs = tuple(
        cost if cost.load is None else replace(cost, gpu_seconds=paid.get(cost.step.fingerprint, cost.gpu_seconds))
        for cost in estimate.steps
    )
    return PlanCosts(replace(estimate, steps=costs), missing, schedules, num_gpus)


@dataclass(frozen=True)
class Plan:
    """The plan of a run of `experiment`; without `costs`, `why_no_costs` is the reason that nothing can be said of them."""

    experiment: Experiment
    steps: Sequence[Planned]
    costs: PlanCosts | None
    why_no_costs: str = ""
    endpoint: EndpointCost | None = None
    """What an endpoint would be paid for missing pools."""
    earlier: Study | None = None
    """The manifest of the study's last run, if it was looked at and is there."""

    @property
    def missing(self) -> list[Planned]:
        return [planned for planned in self.steps if not planned.is_cached]

    @property
    def num_damaged(self) -> int:
        return sum(bool(planned.damage) for planned in self.steps)

    @property
    def of_arms(self) -> Mapping[str, Sequence[Planned]]:
        """Arm → what is built for it alone, of a study with several; the rest is what it would be without that arm."""
        needed: dict[str, set[str]] = {}
        for planned in reversed(self.steps):
            arms = needed.setdefault(planned.step.fingerprint, set())
            arms.update(planned.step.coordinates.get("arms", ()) if planned.step.stage == "evaluation" else ())
            for source in planned.step.inputs.values():
                needed.setdefault(source.fingerprint, set()).update(arms)
        return {
            arm: [planned for planned in self.steps if needed[planned.step.fingerprint] == {arm}]
            for arm in self.experiment.arm_names
        }

    @property
    def num_stale(self) -> int:
        return sum(planned.is_stale for planned in self.steps)

    @property
    def num_uncertain(self) -> int:
        return sum(planned.is_uncertain for planned in self.steps)


def plan_study(
    experiment: Experiment,
    store: Store,
    table: CostTable,
    find_gpu: Callable[[Sequence[Planned]], Gpu],
    num_gpus: float | None,
    *,
    others: Iterable[float] = (),
    reasons: bool = True,
    keep_dependents: bool = False,
    only: Only | None = None,
    seeds_at_once: int | None = None,
    last: How = "sizes",
) -> Plan:
    """Plan every step and, where there are figures for it, estimate its costs (`make_plan`, `cost_plan`).

    `find_gpu` says which GPU they are for, or raises NoEstimate. Raises UserError for data that is too small (`check_sizes`) or
    in which no blindspot can be seen (`check_blindspot`), for a pool that is too small (`check_pools`), for a GPU that does not
    compute as the base model asks (`check_quantization`) and, of a piece, `only` some of the steps, for what cannot be built
    apart (`check_apart`).
    """
    check_sizes(experiment)
    check_prompts(experiment)
    check_blindspot(experiment)
    grid = build_grid(experiment)
    check_pools(grid)
    earlier = None
    if reasons:
        # One that cannot be read is written anew by the run.
        with contextlib.suppress(UserError):
            earlier = Study.manifest(store, experiment.name)
    steps = plan_piece(grid, store, only, earlier=earlier, reasons=reasons, keep_dependents=keep_dependents, last=last)
    endpoint = endpoint_costs([planned.step for planned in steps if not planned.is_cached], table)
    try:
        gpu = find_gpu(steps)
        check_quantization(steps, gpu)
        costs = cost_plan(steps, store, table, gpu, num_gpus, others=others, seeds_at_once=seeds_at_once)
        return Plan(experiment, steps, costs, endpoint=endpoint, earlier=earlier)
    except NoEstimate as error:
        return Plan(experiment, steps, None, str(error), endpoint, earlier)


def _model_settings(base_model: Planned, store: Store) -> tuple[Mapping[str, Any] | None, str]:
    """The `config.json` of a pretrained base model, and what has to be assumed for it.

    From the store or else from its checkpoint; Llama-2-7B, whose weights are gated, is known by its name. Else None.
    """
    step = base_model.step
    if not isinstance(step.config, PretrainedModelConfig | RandomModelConfig):
        return None, ""
    if base_model.record:
        # What cannot be read is named and set aside by the run.
        with contextlib.suppress(DamagedError):
            return dict(json.loads(store.read_bytes(base_model.record, "model/config.json"))), ""
    file = Path(step.config.path) / "config.json"
    if file.is_file():
        return dict(json.loads(file.read_text())), ""
    if step.config.path.endswith(".gguf") and Path(step.config.path).is_file():
        return settings_of_gguf(read_gguf(Path(step.config.path))), ""
    if isinstance(step.config, RandomModelConfig):
        return LLAMA_2_7B, ""
    if Path(step.config.path.partition("@")[0]).name.lower() == MODEL.lower():
        return LLAMA_2_7B, f"the shape of Llama-2-7B, by the name {step.config.path}: its config.json is not at hand"
    return None, ""


def check_quantization(steps: Sequence[Planned], gpu: Gpu) -> None:
    """Raise UserError if `gpu` is known to have no matrix units for FP8, and a step that is not built computes in it."""
    capability = gpu.compute_capability
    if not 0 < capability < LEAST_FOR_FP8:
        return
    for planned in steps:
        uses_gpu = planned.step.resources.total_gpus and not planned.is_cached
        if uses_gpu and (option := option_of_fp8(planned.step)):
            raise UserError(
                f"{option}='fp8' and the {gpu.name} has compute capability {capability}, without matrix units for it, "
                f"which {planned.step.name} needs: take a GPU of {LEAST_FOR_FP8} or above (--gpu, if this is not what there "
                f"is), or -p {option}=bfloat16"
            )


def check_memory(plan: Plan) -> None:
    """Raise UserError for a missing step that cannot fit on the GPU, before any is taken."""
    if plan.costs and plan.costs.too_large:
        raise UserError(
            f"{plan.costs.too_large}: choose a GPU with more memory (--gpu, if this is not what there is), adapters "
            "(method='lora'), a smaller model, or several workers with zero_stage=3"
        )


OVER_BUDGET = 75
"""The exit code of a run that a budget keeps from being complete; sysexits.h calls it a temporary failure."""


class OverBudgetError(UserError):
    """The study would cost, or has cost, more than its budget."""

    exit_code = OVER_BUDGET


def check_budget(plan: Plan, budget: float, spent: Spending = NOTHING) -> str:
    """A sentence that says what the missing steps would cost, if that and what is `spent` are within `budget` US dollars.

    The budget is of the whole study in its store. Raises OverBudgetError if it is too small, UserError if that is unknown.
    """
    if not (math.isfinite(budget) and budget >= 0):
        raise UserError(f"budget={budget}: it is the dollars that the study may cost in all, in its store; give 0 or more")
    costs = plan.costs
    if costs is None:
        if plan.endpoint is None or any(one.step.resources.total_gpus for one in plan.missing):
            raise UserError(f"--budget cannot be checked: {plan.why_no_costs}; leave it out to run all the same")
        # On CPUs an endpoint is all that has a price.
        already = f"{describe(spent)} spent on it already and " if spent.asked else ""
        cost = f"{already}an endpoint's tokens for {plan.experiment.name} would cost about {dollars(plan.endpoint.dollars)}"
        if spent.dollars + plan.endpoint.dollars > budget:
            raise OverBudgetError(f"{cost}, over the budget of {dollars(budget)}: raise --budget, or ask for fewer texts")
        return f"{cost}, within the budget of {dollars(budget)}"
    gpu, hours = costs.estimate.gpu, costs.held_gpu_hours
    if gpu.price is None:
        raise UserError(
            f"--budget cannot be checked: no price of {gpu.name} is in the table ({hours:,.1f} GPU-hours of it are missing); "
            "say with --price what you pay for one hour of one, or leave --budget out to run all the same"
        )
    spent = spent.priced(gpu.price)
    asked = plan.endpoint.dollars if plan.endpoint else 0.0
    basis = f"; {costs.unmeasured}" if costs.unmeasured else ""
    already = f"{describe(spent)} spent on it already and " if spent.gpu_hours or spent.asked else ""
    cost = (
        f"{already}what is missing of {plan.experiment.name} would cost about {dollars(hours * gpu.price)} ({hours:,.1f} "
        f"GPU-hours of {gpu.name} at ${gpu.price:g}, with num_gpus={costs.num_gpus:g} held to the end{basis})"
        + (f" and {dollars(asked)} of an endpoint's tokens" if asked else "")
    )
    if spent.dollars + hours * gpu.price + asked > budget:
        spot = f" (at spot's ${gpu.spot_price:g} it is {dollars(hours * gpu.spot_price)})" if gpu.spot_price is not None else ""
        raise OverBudgetError(
            f"{cost}, over the budget of {dollars(budget)}: raise --budget, say with --price what you pay{spot}, "
            "choose another --gpu, or make the study smaller; `blindsweep plan` shows the estimate by stage"
        )
    return f"{cost}, within the budget of {dollars(budget)}"


Read = Callable[[ArtifactId], Record | None]


def _missing(step: Step, is_begun: bool, of_earlier: Mapping[tuple[str, str], ArtifactId], read: Read) -> Planned:
    """A step that has no artifact, with the reason: what differs from the one in its place in the study's earlier build."""
    if is_begun:
        return Planned(step, None, "begun and not finished")
    reference = of_earlier.get((step.stage, step.slug))
    old = read(reference) if reference else None
    if reference is None or old is None:
        return Planned(step, None, "new")
    return Planned(step, None, "; ".join(changes(step, old, read)), causes=tuple(_root_changes(step, reference, read)))


def _record_if_whole(artifact: ArtifactId, store: Store) -> Record | None:
    """A record to compare with; a damaged one of another artifact is no reason to stop."""
    try:
        return store.read_record(artifact)
    except DamagedError:
        return None


def changes(step: Step, old: Record, read: Read) -> list[str]:
    """The differences between `step` and an existing artifact: its own fields, then its inputs', each with its root field."""
    differences = _own_changes(step, old)
    for name, source in sorted(step.inputs.items()):
        reference = old.inputs.get(name)
        if reference is None:
            differences.append(f"input {name} is new")
        elif reference.fingerprint != source.fingerprint:
            roots = _root_changes(source, reference, read)
            differences.append(f"input {name} changed because {', '.join(roots)}")
    differences.extend(f"input {name} is gone" for name in sorted(set(old.inputs) - set(step.inputs)))
    return differences


def _own_changes(step: Step, old: Record) -> list[str]:
    differences = []
    if old.payload["version"] != step.payload["version"]:
        differences.append(f"stage version {old.payload['version']} → {step.payload['version']}")
    before, after = dict(flatten(old.payload["config"])), dict(flatten(step.payload["config"]))
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            differences.append(f"{name} is new: {_short(after[name])}")
        elif name not in after:
            differences.append(f"{name} is gone")
        elif before[name] != after[name]:
            differences.append(f"{name} {_short(before[name])} → {_short(after[name])}")
    return differences


def _root_changes(step: Step, reference: ArtifactId, read: Read) -> list[str]:
    """The changed fields, as stage.field, that made it another artifact than `reference`."""
    old = read(reference)
    if old is None:
        return [f"{step.stage} is another artifact than {reference.slug}, which is gone"]
    roots = [f"{step.stage}.{change}" for change in _own_changes(step, old)]
    for name, source in sorted(step.inputs.items()):
        before = old.inputs.get(name)
        if before is None:
            roots.append(f"{step.stage} has a new input {name}")
        elif before.fingerprint != source.fingerprint:
            roots.extend(change for change in _root_changes(source, before, read) if change not in roots)
    roots.extend(f"{step.stage} has lost its input {name}" for name in sorted(set(old.inputs) - set(step.inputs)))
    return roots


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

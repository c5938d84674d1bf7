"""A whole run: plan, build what is missing, keep MLflow and the study's manifest in step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pipelines.errors import UserError
from sweep.graph.records import Record, Store, Study, StudyStep, write_plan
from sweep.graph.step import Step
from sweep.plan.page import plan_json
from sweep.plan.plan import Plan, make_plan
from sweep.run.ends import Stop
from sweep.run.failures import one_line
from sweep.run.progress import Display, Progress, mean_durations
from sweep.run.session import RayOptions, cluster_capacity, ray_session
from sweep.run.tracking import Tracker, end_runs
from sweep.run.tune import Run, run_steps
from sweep.study.grid import build_grid
from sweep.study.inputs import with_inputs
from sweep.study.loading import Loaded
from sweep.study.paper import departures, unsettled


@dataclass(frozen=True)
class Result:
    """How a run ended. `failures` as in the study's manifest; `tracking_errors` are MLflow's; `num_losses` is how often a step
    lost its machine or a process and went on.
    """

    num_steps: int
    num_cached: int
    num_built: int
    failures: tuple[Mapping[str, str], ...]
    tracking_errors: tuple[str, ...]
    num_losses: int = 0


def manifest(loaded: Loaded, steps: Iterable[Step]) -> Study:
    """The study as it is written beside its artifacts."""
    experiment = loaded.experiment
    study_steps = tuple(
        StudyStep(
            step.stage,
            step.slug,
            step.fingerprint,
            step.coordinates,
            {name: source.fingerprint for name, source in step.inputs.items()},
        )
        for step in steps
    )
    parameters = {
        **loaded.parameters,
        "general_set": experiment.general_set,
        "blindspot_set": experiment.blindspot_set,
        "heuristic": experiment.heuristic.name,
        "blindspot_slice": experiment.heuristic.blindspot_slice,
    }
    if experiment.replicates_paper:
        parameters |= {
            "departures": [asdict(note) for note in departures(experiment)],
            "unsettled": [asdict(note) for note in unsettled(experiment)],
        }
    return Study(experiment.name, experiment.title, parameters, study_steps)


def run_study(
    loaded: Loaded, store: Store, tracking_uri: str, options: RayOptions, plan: Plan | None = None, stop: Stop | None = None
) -> Result:
    """Build every artifact of the study that the store does not have. Failed steps are in the result.

    A `plan` that was just made of the study is kept for the report if anything is to be built. Weights on the hub are
    fetched first. A KeyboardInterrupt ends Ray and MLflow's runs; `stop` is told how much is built. Raises UserError if
    nothing can be started: missing data or weights, too few resources, a store or tracking store that cannot be written,
    a damaged record.
    """
    loaded = replace(loaded, experiment=with_inputs(loaded.experiment))
    # What was planned without its inputs has other steps.
    if plan is not None and plan.experiment is loaded.experiment:
        planned = plan.steps
    else:
        planned = make_plan(build_grid(loaded.experiment), store, reasons=False)
    cached = [member.record for member in planned if member.record is not None]
    steps = [member.step for member in planned]
    study = manifest(loaded, steps)
    study.save(store)
    if len(cached) == len(steps):
        errors = track_records(study, loaded.parameters, cached, store, tracking_uri)
        return Result(len(steps), len(cached), 0, (), tuple(errors))
    if plan is not None:
        write_plan(store, loaded.experiment.name, plan_json(plan))
    missing = [member.step for member in planned if not member.is_cached]
    run = None
    stop = stop or Stop()
    stop.state = lambda: f"{run.progress.num_done if run else len(cached)} of {len(steps)} artifacts are built"
    try:
        with ray_session(options, missing) as capacity:
            run = Run(steps, {record.fingerprint for record in cached}, store, capacity, max_failures=options.max_failures)
            if options.address is not None:
                run.look = partial(cluster_capacity, options)
            errors = _run_on_ray(run, study, loaded.parameters, cached, tracking_uri)
    except KeyboardInterrupt:
        if run is not None:
            end_runs(tracking_uri, study.experiment, {*run.progress.running, *run.progress.built})
        raise
    progress = run.progress
    failures = _failures(progress)
    replace(study, failures=tuple(failures)).save(store)
    num_losses = progress.losses.total()
    return Result(len(steps), len(cached), len(progress.built), tuple(failures), tuple(errors), num_losses)


def _run_on_ray(
    run: Run, study: Study, parameters: Mapping[str, Any], cached: Sequence[Record], tracking_uri: str
) -> list[str]:
    """Build the steps of `run` with a display and a tracker; returns the tracker's errors."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver, where a SQLite file is.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tracker = (
        ray.remote(Tracker)
        .options(num_cpus=0, scheduling_strategy=here)
        .remote(tracking_uri, run.store.uri, study.experiment, study.title, parameters, study.blindspot)
    )
    try:
        ray.get(tracker.declare.remote([step.fingerprint for step in run.steps]))
    except ray.exceptions.RayError as error:
        raise _unusable(tracking_uri, error) from error
    for record in cached:
        tracker.finish.remote(record, is_new=False)
    try:
        with Display(mean_durations(cached)) as display:
            run.tracker, run.listener, run.tick = tracker, display.on_event, display.on_tick
            progress = run_steps(run)
    except KeyboardInterrupt:
        # It may be far behind, or gone already: `end_runs` does what is left.
        ray.kill(tracker)
        raise
    except BaseException:
        _close(tracker, "FAILED", len(run.steps))
        raise
    return _close(tracker, "FAILED" if progress.failed else "FINISHED", len(run.steps))


def _close(tracker: Any, status: str, num_steps: int) -> list[str]:
    """Wait for what is still to be written: with short steps MLflow falls behind, by less than a second for each."""
    import ray

    try:
        return list(ray.get(tracker.close.remote(status), timeout=120 + num_steps))
    except ray.exceptions.RayError as error:
        return [f"the tracking process ended early ({type(error).__name__})"]


def _unusable(tracking_uri: str, error: BaseException) -> UserError:
    return UserError(
        f"cannot open the MLflow tracking store {tracking_uri}: {one_line(error)}; check "
        "--tracking-uri and whether the server runs"
    )


def track_records(
    study: Study,
    parameters: Mapping[str, Any],
    records: Sequence[Record],
    store: Store,
    tracking_uri: str,
    *,
    again: bool = False,
) -> list[str]:
    """Bring MLflow up to date with complete artifacts, in this process; returns what went wrong.

    Artifacts that MLflow has in full are skipped, unless `again`.
    """
    try:
        tracker = Tracker(tracking_uri, store.uri, study.experiment, study.title, parameters, study.blindspot)
    except Exception as error:
        raise _unusable(tracking_uri, error) from error
    tracker.declare(record.fingerprint for record in records)
    for record in records:
        tracker.finish(record, is_new=again)
    return tracker.close("FINISHED")


def reindex(store: Store, names: Sequence[str], tracking_uri: str) -> dict[str, int]:
    """Rebuild MLflow's runs of studies from their records; returns the number of artifacts by study."""
    counts = {}
    for name in names:
        study = Study.load(store, name)
        records = [step.record for step in study.steps if step.record is not None]
        errors = track_records(study, study.parameters, records, store, tracking_uri, again=True)
        if errors:
            raise UserError(f"MLflow at {tracking_uri} did not take everything: {errors[0]}")
        counts[name] = len(records)
    return counts


def _failures(progress: Progress) -> list[dict[str, str]]:
    failures = []
    for step in progress.steps:
        if outcome := progress.failed.get(step.fingerprint):
            error, log = outcome.error, outcome.log
        elif step.fingerprint in progress.blocked:
            error, log = f"blocked by {progress.blocked[step.fingerprint]}", ""
        else:
            continue
        failures.append({**asdict(step.id), "error": error, "log": log})
    return failures

"""A whole run: plan, build what is missing, keep MLflow and the study's manifest in step."""

import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipelines.errors import UserError
from pipelines.storage import check_store, is_local, local_path
from sweep.graph.integrity import How, with_stale_marks
from sweep.graph.pieces import Only
from sweep.graph.records import Record, Store, Study, StudyStep, write_plan
from sweep.graph.reports import stored_report
from sweep.graph.spending import BudgetReached
from sweep.graph.step import Step
from sweep.index.address import absolute_uri, mask, sqlite_path, sqlite_uri
from sweep.index.client import Client
from sweep.index.database import (
    Damaged,
    Moved,
    NewerSchema,
    OlderSchema,
    Unusable,
    artifact_locations,
    exclusive,
    is_sqlite,
    look,
    upgraded_copy,
)
from sweep.index.database import replace as replace_database
from sweep.index.study_page import SHOWN, describe_study
from sweep.live.heartbeat import Heartbeat, Pulse
from sweep.plan.costs import StepCost
from sweep.plan.damaged import check_damage, damaged_words, rebuilt_words
from sweep.plan.page import plan_json
from sweep.plan.plan import Plan, Planned, plan_piece
from sweep.plan.replaced import replaced_line
from sweep.run.budget import Meter, is_asked, look_at
from sweep.run.ends import Stop, tell_all_nodes
from sweep.run.failures import is_read_only, one_line
from sweep.run.progress import Display, Progress, mean_durations, pulse_of, seconds
from sweep.run.session import RayOptions, cluster_capacity, ray_session
from sweep.run.tracking import Tracker, artifact_location, default_tracking_uri, end_runs
from sweep.run.trial import set_damaged_aside
from sweep.run.tune import Run, run_steps
from sweep.run.watchdog import Silences
from sweep.study.claims import as_json
from sweep.study.grid import build_grid
from sweep.study.inputs import pool_copies, with_inputs
from sweep.study.loading import Loaded
from sweep.study.paper import departures, unsettled

CLOSE_S = 30
"""Seconds that the end of a run waits for MLflow, besides one for each step."""

FOR_REPORT: How = "remembered"
"""How a run compares, before it starts, what nothing is built from: in full. In a remote store the report compares what it
reads."""

MEND_S = 60.0
"""Seconds to wait for another process that makes or mends a database."""


@dataclass(frozen=True)
class Result:
    """How a run ended. `failures` as in the study's manifest; `tracking_errors` are MLflow's; `num_losses` is how often a step
    lost its machine or a process and went on; `hold` is the reason for which it ended before everything was built, "" if none
    but failures.
    """

    num_steps: int
    num_cached: int
    num_built: int
    failures: tuple[Mapping[str, str], ...]
    tracking_errors: tuple[str, ...]
    num_losses: int = 0
    notes: tuple[str, ...] = ()
    """What was set aside, and what could not be written, in a line each."""
    hold: str = ""
    index: str | None = None
    """MLflow's URI, None where it cannot be used."""
    num_taken: int = 0
    """How many of those that were built another run has built meanwhile."""


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
        "heuristic_description": experiment.heuristic.description,
        "blindspot_slice": experiment.blindspot_slice,
        "claims": as_json(experiment.declared_claims),
    }
    if loaded.command:
        parameters["command"] = dict(loaded.command)
    if experiment.test_sets:
        # Their words for people are in no record: no fingerprint has them.
        parameters["test_sets"] = [asdict(test_set) for test_set in experiment.test_sets]
    if copies := list(pool_copies(experiment)):
        parameters["pool_copies"] = copies
    if experiment.replicates_paper:
        parameters |= {
            "departures": [asdict(note) for note in departures(experiment)],
            "unsettled": [asdict(note) for note in unsettled(experiment)],
        }
    return Study(experiment.name, experiment.title, parameters, study_steps)


def run_study(
    loaded: Loaded,
    store: Store,
    tracking_uri: str,
    options: RayOptions,
    plan: Plan | None = None,
    stop: Stop | None = None,
    meter: Meter | None = None,
    *,
    keep_dependents: bool = False,
    only: Only | None = None,
) -> Result:
    """Build every artifact of the study, or `only` of a piece of it, that the store does not have. Failed steps are in the
    result.

    A `plan` that was just made of the study is kept for the report if anything is to be built. Weights on the hub are
    fetched first. Damaged artifacts are set aside and built again, of which a line says how much it is, and so is what was
    built from other content than its inputs have now, unless `keep_dependents`, which marks it. A KeyboardInterrupt ends Ray
    and MLflow's runs; `stop` is told how much is built, and what was set aside. A `meter` counts what the run spends, and holds
    it at the study's budget. Where MLflow cannot be used, stderr says so and the study is built without it. Raises UserError
    if nothing can be started: missing data or weights, too few resources, a store that cannot be written, more damage than a
    run mends by itself (`check_damage`).
    """
    loaded = replace(loaded, experiment=with_inputs(loaded.experiment))
    # What was planned without its inputs has other steps.
    if plan is not None and plan.experiment is loaded.experiment:
        planned = plan.steps
    else:
        grid = build_grid(loaded.experiment)
        planned = plan_piece(grid, store, only, reasons=False, keep_dependents=keep_dependents, last=FOR_REPORT)
    stop = stop or Stop()
    check_damage(planned, store)
    if words := damaged_words(planned):
        _say(f"{words}: set aside and built again; {rebuilt_words(planned)}")
    # However the run ends, it says them.
    notes = stop.notes
    notes += _set_damaged_aside(planned, store)
    cached = [member.record for member in planned if member.record is not None]
    marked = with_stale_marks(cached)
    cached = [marked.get(record.fingerprint, record) for record in cached]
    steps = [member.step for member in planned]
    # The study is whole, also where a piece of it is built.
    whole = steps if only is None else build_grid(loaded.experiment)
    study = manifest(loaded, whole)
    for copies in study.pool_copies:
        print(f"Warning: {copies}", file=sys.stderr, flush=True)
    try:
        line = replaced_line(loaded, whole, Study.manifest(store, study.experiment))
    except UserError as error:
        line = f"{one_line(error)}: this run does"
    if line:
        print(line, flush=True)
    if len(cached) < len(steps):
        check_store(store.uri)
    try:
        study.save(store)
        for record in marked.values():
            store.write_record(record)
    except OSError as error:
        if not is_read_only(error) or len(cached) < len(steps):
            raise
        notes.append(f"cannot write to {store.uri} ({one_line(error)}): what is built is read, and nothing is noted there")
    run = None
    stop.state = lambda: f"{run.progress.num_done if run else len(cached):,} of {len(steps):,} artifacts are built"
    index = usable_index(store, tracking_uri)
    if len(cached) == len(steps):
        errors = track_records(study, cached, store, index, again=bool(marked)) if index else []
        return Result(len(steps), len(cached), 0, (), tuple(errors), notes=tuple(notes), index=index)
    if plan is not None:
        write_plan(store, loaded.experiment.name, plan_json(plan))
    missing = [member.step for member in planned if not member.is_cached]
    heartbeat = Heartbeat(store, study.experiment, Pulse(Counter(record.stage for record in cached)))
    try:
        with heartbeat, ray_session(options, missing) as capacity:
            records = {record.fingerprint: record for record in cached}
            run = Run(
                steps,
                set(records),
                store,
                capacity,
                max_failures=options.max_failures,
                records=records,
                keep_dependents=keep_dependents,
                seeds_at_once=options.seeds_at_once,
            )
            if options.address is not None:
                run.look = partial(cluster_capacity, options)
            # A study on CPUs that asks no endpoint costs nothing that there is a price for.
            if meter is not None and any(step.resources.total_gpus or is_asked(step) for step in missing):
                meter.begin(look_at(options, capacity, meter.prices), keeps_all=options.address is None)
            errors = _run_on_ray(run, study, cached, index, stop, heartbeat, meter, again=marked.keys())
    except KeyboardInterrupt:
        if run is not None and index is not None:
            progress = run.progress
            end_runs(index, study.experiment, {*progress.running, *progress.built, *progress.retried})
        raise
    finally:
        if meter is not None:
            meter.end()
    progress = run.progress
    if run.hold and index is not None:
        end_runs(index, study.experiment, {*progress.running, *progress.retried})
    failures = _failures(progress)
    try:
        replace(study, failures=tuple(failures)).save(store)
    except OSError as error:
        # What is built is built, and what failed is still to be said.
        notes.append(f"{store.uri} has no note of this run's end: {one_line(error)}")
    num_losses = progress.losses.total()
    return Result(
        len(steps),
        len(progress.cached),
        len(progress.built),
        tuple(failures),
        tuple(errors),
        num_losses,
        tuple(notes),
        run.hold,
        index,
        len(progress.taken),
    )


def _set_damaged_aside(planned: Sequence[Planned], store: Store) -> Iterator[str]:
    """Set aside what is damaged; a line each of these. Where the record itself is damaged, who builds it does it."""
    inputs = {source.fingerprint for member in planned for source in member.step.inputs.values()}
    for member in planned:
        if member.damages:
            how: How = "sizes" if member.step.fingerprint in inputs else FOR_REPORT
            yield set_damaged_aside(member.step, store, member.damages, how)
        elif member.damage:
            yield member.damage


def _run_on_ray(
    run: Run,
    study: Study,
    cached: Sequence[Record],
    tracking_uri: str | None,
    stop: Stop,
    heartbeat: Heartbeat,
    meter: Meter | None = None,
    *,
    again: Container[str],
) -> list[str]:
    """Build the steps of `run` with a display and, unless `tracking_uri` is None, a tracker; returns the tracker's errors.

    MLflow is told of what is cached where it lacks it, and of the fingerprints `again` in any case. A notice ends it as any
    signal does.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tracker = None
    if tracking_uri is not None:
        # Beside the driver, where a SQLite file is.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        tracker = (
            ray.remote(Tracker)
            .options(num_cpus=0, scheduling_strategy=here)
            .remote(tracking_uri, run.store.uri, replace(study, steps=()))
        )
        # Nobody waits for it: MLflow takes seconds to make a database.
        tracker.declare.remote([step.fingerprint for step in study.steps])
        for record in cached:
            tracker.finish.remote(record, is_new=record.fingerprint in again)
    try:
        with Display(mean_durations(cached)) as display:
            silences = Silences()

            def tick(progress: Progress) -> None:
                display.on_tick(progress)
                if heartbeat.is_due:
                    heartbeat.show(pulse_of(progress, display.seconds_left(progress), run.hold), progress.throughput)
                for step, silent_s in silences.look(progress):
                    display.say(f"silent  {step.name}: nothing heard for {seconds(silent_s)}; its worker waits, or hangs")
                stop.hold(run)

            run.tracker, run.listener, run.tick = tracker, display.on_event, tick
            if meter is not None:
                _watch(run, meter, stop.notice_s)
            if stop.has_limit:
                _keep_to_limit(run, stop, meter.costs if meter is not None else ())
            progress = run_steps(run)
            if meter is not None:
                meter.see(progress)
                meter.write()
        stop.check(run)
        built = [run.records[step.fingerprint] for step in run.steps if step.fingerprint in run.records]
        for record in with_stale_marks(built).values():
            run.store.write_record(record)
            if tracker is not None:
                tracker.finish.remote(record)
    except KeyboardInterrupt:
        # It may be far behind, or gone already: `end_runs` does what is left.
        if tracker is not None:
            ray.kill(tracker)
        raise
    except BaseException:
        _close(tracker, "FAILED", len(run.steps))
        raise
    return _close(tracker, "FAILED" if progress.failed else "KILLED" if run.hold else "FINISHED", len(run.steps))


def _watch(run: Run, meter: Meter, notice_s: float) -> None:
    """Have `meter` count while `run` goes on, hold it at the budget, and show what is spent.

    Once the budget is spent, running steps have `notice_s` seconds to commit, as at a notice.
    """
    show = run.tick
    reached_at: float | None = None
    told: list[Any] = []

    def tick(progress: Progress) -> None:
        nonlocal reached_at
        try:
            progress.spent = meter.watch(run.groups, progress, is_waiting=not run.queue.is_exhausted)
        except BudgetReached as reached:
            now = time.monotonic()
            if reached_at is None:
                reached_at, run.hold = now, str(reached)
                told.extend(tell_all_nodes())
            if now - reached_at > notice_s:
                raise
            progress.spent = meter.line()
        show(progress)

    run.tick = tick
    run.why_not = lambda steps, beside: meter.why_not(steps, beside, run.progress)
    if run.tracker is not None:
        meter.tell = lambda metrics: run.tracker.annotate.remote(dict(metrics))


def _keep_to_limit(run: Run, stop: Stop, costs: Iterable[StepCost]) -> None:
    """Have `run` begin nothing of which the time limit would leave nothing."""
    estimates = {cost.step.name: (cost.setup_s, cost.seconds - cost.setup_s) for cost in costs}
    otherwise = run.why_not
    run.why_not = lambda steps, beside: stop.why_not(*run.seconds_until_kept(steps, estimates)) or otherwise(steps, beside)


def _close(tracker: Any, status: str, num_steps: int) -> list[str]:
    """Wait for what is still to be written: with short steps MLflow falls behind, by less than a second for each."""
    import ray

    if tracker is None:
        return []
    limit = CLOSE_S + num_steps
    try:
        return list(ray.get(tracker.close.remote(status), timeout=limit))
    except ray.exceptions.GetTimeoutError:
        return [f"it was still behind after {limit} s"]
    except ray.exceptions.RayError as error:
        return [f"the tracking process ended early ({type(error).__name__})"]


def usable_index(store: Store, tracking_uri: str) -> str | None:
    """The tracking URI for all processes if a study can be tracked there, mended if need be; else None, said on stderr."""
    try:
        return mended_index(store, tracking_uri)
    except Exception as error:  # an index that is down must not stop the study
        _say(
            mask(f"Warning: going on without MLflow at {tracking_uri}: {error}; ", tracking_uri)
            + "`blindsweep reindex` fills it in later"
        )
        return None


def mended_index(store: Store, tracking_uri: str, *, to_write: bool = True) -> str:
    """The tracking URI for all processes, after a look at it of some seconds.

    A SQLite database that is damaged is moved aside and rebuilt from all records in the store; so is the store's own if the
    store was somewhere else when it was written. Of an older MLflow, the store's own is upgraded. stderr says so. Raises
    `sweep.index.database.Unusable` where MLflow cannot be used.
    """
    uri = absolute_uri(tracking_uri)
    try:
        look(uri, to_write=to_write)
        _look_where_it_was(store, uri)
    except (Damaged, OlderSchema) as problem:
        _mend(store, uri, problem)
    except Moved as problem:
        try:
            _mend(store, uri, problem)
        except OSError as error:
            # As of a copy that may only be read.
            _say(f"{sqlite_path(uri)}: {problem}; it cannot be rebuilt ({one_line(error)}), and shows what it was")
    return uri


def _look_where_it_was(store: Store, uri: str) -> None:
    """Raise Moved for a store's own database whose studies have their artifacts elsewhere than the store's would be."""
    path = sqlite_path(uri)
    if path is None or path != sqlite_path(default_tracking_uri(store)) or not path.exists():
        return
    here = artifact_location(store, uri)
    names = set(store.studies())
    for name, place in artifact_locations(path).items():
        if name in names and not _is_same_place(place, str(here)):
            raise Moved(f"it is of a store at {place.rpartition('/')[0]}")


def _is_same_place(one: str, other: str) -> bool:
    if one == other or not (is_local(one) and is_local(other)):
        return one == other
    # A link to a store is no other store.
    return Path(unquote(str(local_path(one)))).resolve() == Path(unquote(str(local_path(other)))).resolve()


def _mend(store: Store, uri: str, problem: Unusable) -> None:
    """Put a sound database in the place of one that `look` refused. Raises Unusable for one that is better left alone."""
    path = sqlite_path(uri)
    assert path is not None, "only files are known to be damaged"
    is_own = path == sqlite_path(default_tracking_uri(store))
    if not is_own and (isinstance(problem, NewerSchema) or not is_sqlite(path)):
        # It may be somebody else's.
        raise Unusable(f"{problem}; name another file, or move it away")
    if not is_own and isinstance(problem, OlderSchema):
        raise Unusable(f"{problem}; `mlflow db upgrade` makes it usable")
    with exclusive(path, MEND_S):
        try:
            # Another driver may have mended it just now.
            look(uri)
            _look_where_it_was(store, uri)
            return
        except (Damaged, OlderSchema, Moved) as still:
            problem = still
        if isinstance(problem, OlderSchema):
            try:
                aside = replace_database(path, "older", partial(upgraded_copy, path))
                _say(f"{path}: {problem}; it is upgraded, and {aside.name} is as it was")
                return
            except Exception:
                problem = Damaged("it could not be upgraded to this MLflow's schema")
        why = "moved" if isinstance(problem, Moved) else "damaged"
        aside = replace_database(path, why, partial(rebuild, store))
        number = len(store.studies())
        studies = "1 study" if number == 1 else f"{number} studies"
        _say(f"{path}: {problem}; it is moved aside to {aside.name} and rebuilt from the records of {studies}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rebuild(store: Store, path: Path) -> None:
    """Write a new MLflow database with all studies of a store. What cannot be read is left out, and stderr says so."""
    for name in store.studies():
        try:
            reindex(store, [name], sqlite_uri(path))
        except UserError as error:
            _say(f"Warning: MLflow's database lacks {name}: {error}")
    # Of a store without studies.
    Client(sqlite_uri(path))


def track_records(
    study: Study,
    records: Sequence[Record],
    store: Store,
    tracking_uri: str,
    *,
    again: bool = False,
) -> list[str]:
    """Bring MLflow up to date with complete artifacts, in this process; returns what went wrong.

    Artifacts that MLflow has in full are skipped, unless `again`.
    """
    tracker = Tracker(tracking_uri, store.uri, study)
    tracker.declare(step.fingerprint for step in study.steps)
    for record in records:
        tracker.finish(record, is_new=again)
    return tracker.close("FINISHED")


def reindex(store: Store, names: Sequence[str], tracking_uri: str) -> dict[str, int]:
    """Rebuild MLflow's runs of studies from their records and reports; returns the number of artifacts by study."""
    counts = {}
    for name in names:
        study = Study.load(store, name)
        records = [step.record for step in study.steps if step.record is not None]
        errors = track_records(study, records, store, tracking_uri, again=True)
        if errors:
            raise UserError(f"MLflow at {mask(tracking_uri, tracking_uri)} did not take everything: {errors[0]}")
        try:
            describe(store, name, tracking_uri)
        except Exception as error:
            where = mask(tracking_uri, tracking_uri)
            raise UserError(
                f"MLflow at {where} did not take the report of {name}: {mask(one_line(error), tracking_uri)}"
            ) from error
        counts[name] = len(records)
    return counts


def describe(store: Store, name: str, tracking_uri: str) -> bool:
    """Show the report and the answer of a study in MLflow; False if its place in the store has none of the study as it is.

    Raises what MLflow raises.
    """
    if (report := stored_report(store, Study.listed(store, name))) is None:
        return False
    with report.files(store, SHOWN) as folder:
        describe_study(tracking_uri, name, report.said, report.command, folder)
    return True


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

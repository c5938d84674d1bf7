"""The work inside one Tune trial: one step of the graph, or a group of them, from looking at the store to the record."""

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import NeighbourFailedError, UserError
from pipelines.identity import MARKS
from pipelines.resources import no_report
from pipelines.storage import (
    can_compare,
    filesystem,
    join,
    make_folder,
    read_with_version,
    replace_if_unchanged,
    write_if_absent,
)
from sweep.graph.identity import SHORT
from sweep.graph.records import RECORD_FILE, Record, Store
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.run.failures import MACHINE_LOST, Kind, is_disk_full, kind, one_line, root_cause
from sweep.run.lease import LEASE_FILE, LOCK_FILE, Held, LeaseLostError, lease
from sweep.run.machine import hardware, versions


@dataclass(frozen=True)
class Order:
    """All that a trial needs to build one artifact; picklable. `runner` is the stage, by value or by reference."""

    step: Step
    runner: Stage
    store_uri: str
    tracker: Any = None
    git: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: its record, or one line of what went wrong and where the whole traceback is.

    `is_final` failures are the user's to put right: trying again cannot help. One that `was_neighbour` fell with its group, and
    may do well alone. `kind` says who is at fault.
    """

    record: Record | None
    error: str = ""
    log: str = ""
    is_final: bool = False
    was_neighbour: bool = False
    kind: Kind = Kind.FAILURE


def carry_out(orders: Sequence[Order], when_lost: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Build the missing artifacts of `orders`, one or a group of one stage. Never raises for a failure of the stage.

    One driver at a time builds an artifact; the next one finds the record. `when_lost` is called from another thread if
    another driver takes over, since this process was stopped for long or cut off from the store: it had better write no more.
    """
    store = Store(orders[0].store_uri)
    outcomes: dict[str, Outcome] = {}
    try:
        with contextlib.ExitStack() as leases:
            held = {}
            # In one order everywhere, so that two groups that share members cannot wait for each other.
            for step in sorted((order.step for order in orders), key=lambda step: step.fingerprint):
                held[step.fingerprint] = leases.enter_context(lease(store.folder(step.id), when_lost=when_lost))
            missing = []
            for order in orders:
                if record := store.read_record(order.step.id):
                    outcomes[order.step.fingerprint] = Outcome(record)
                else:
                    missing.append(order)
            outcomes |= _build(missing, store, held)
    except Exception as error:
        unfinished = [order.step for order in orders if order.step.fingerprint not in outcomes]
        for step in unfinished:
            outcome = _failure(error, step, store)
            if len(unfinished) > 1 and outcome.kind is Kind.DEATH:
                outcome = replace(outcome, was_neighbour=True)
            outcomes[step.fingerprint] = outcome
    if taken_over := [order for order in orders if order.step.fingerprint not in outcomes]:
        # Waits for the other driver, and finds its record.
        again = carry_out(taken_over, when_lost)
        outcomes |= {order.step.fingerprint: outcome for order, outcome in zip(taken_over, again, strict=True)}
    return [outcomes[order.step.fingerprint] for order in orders]


def _failure(error: Exception, step: Step, store: Store) -> Outcome:
    cause = root_cause(error)
    log = _keep_traceback(error, step, store)
    was_neighbour = isinstance(error, NeighbourFailedError)
    is_final = not was_neighbour and (isinstance(cause, UserError) or is_disk_full(cause))
    of = kind(error)
    return Outcome(None, MACHINE_LOST if of is Kind.LOSS else one_line(cause), log, is_final, was_neighbour, of)


def _build(orders: Sequence[Order], store: Store, held: Mapping[str, Held]) -> dict[str, Outcome]:
    """Outcomes by fingerprint; none of a member that another driver has taken over.

    A member's failure is its own; what goes wrong for all of them is raised.
    """
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    ready: list[tuple[Order, set[str], Job]] = []
    for order in orders:
        try:
            ready.append((order, _marks_of_inputs(order.step, store), _job(order, store)))
        except Exception as error:
            outcomes[order.step.fingerprint] = _failure(error, order.step, store)
    if not ready:
        return outcomes
    results = _results(orders[0].runner, [job for _, _, job in ready])
    stage_s = time.monotonic() - started
    for (order, inherited, _), result in zip(ready, results, strict=True):
        try:
            if isinstance(result, Exception):
                raise result
            own = held[order.step.fingerprint]
            outcome = Outcome(_record(order, store, own, dict(result), inherited, started, stage_s, len(ready)))
        except LeaseLostError:
            continue
        except Exception as error:
            outcome = _failure(error, order.step, store)
        outcomes[order.step.fingerprint] = outcome
    return outcomes


def _results(stage: Stage, jobs: Sequence[Job]) -> Sequence[Mapping[str, Any] | Exception]:
    if len(jobs) == 1:
        return [stage.run(jobs[0])]
    assert stage.run_group is not None
    return stage.run_group(jobs)


def _job(order: Order, store: Store) -> Job:
    from sweep.run.tracking import StepReport

    step = order.step
    folder = store.folder(step.id)
    if store.is_local:
        make_folder(Path(folder))
    return Job(
        step.config,
        {name: store.folder(source.id) for name, source in step.inputs.items()},
        folder,
        step.resources,
        StepReport(order.tracker, step.fingerprint) if order.tracker else no_report,
        step.options,
        {name: source.fingerprint for name, source in step.inputs.items()},
    )


def _record(
    order: Order,
    store: Store,
    held: Held,
    metrics: dict[str, Any],
    inherited: set[str],
    started: float,
    stage_s: float,
    group_size: int,
) -> Record:
    """Describe the artifact that a stage has written, and thereby complete it."""
    step = order.step
    folder = store.folder(step.id)
    own = metrics.pop(MARKS, ())
    assert not isinstance(own, str), f"{step.stage} returned {MARKS}={own!r}, not a list of texts"
    if step.is_rehearsal:
        own = [*own, "rehearsal"]
    held.check()
    _remove_working_state(folder)
    files = store.files(folder)
    if not files:
        raise RuntimeError(f"stage {step.stage} wrote no file into {folder}")
    durations = {
        # In a group, each one's share: what they took in all is their sum.
        "total_s": round((time.monotonic() - started) / group_size, 3),
        "stage_s": round(stage_s / group_size, 3),
    }
    record = Record(
        stage=step.stage,
        slug=step.slug,
        fingerprint=step.fingerprint,
        payload=step.payload,
        inputs={name: source.id for name, source in step.inputs.items()},
        coordinates=step.coordinates,
        metrics=metrics,
        num_rows=_count_rows(folder, files),
        files=files,
        versions=versions(),
        git=order.git,
        durations=durations | ({"group_s": round(stage_s, 3)} if group_size > 1 else {}),
        hardware=hardware(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        marks=tuple(sorted({*inherited, *own})),
    )
    # The last look: what has been hashed is ours.
    held.check()
    _write_record(record, store)
    return record


def _write_record(record: Record, store: Store) -> None:
    """Complete an artifact whose lease is held: make its record, or replace the one that is there."""
    path, content = join(store.folder(record.id), RECORD_FILE), record.to_json().encode()
    if not can_compare(path):
        store.write_record(record)
    elif write_if_absent(path, content) is None:
        # Of a driver that was stopped between its last look and its record; the files are those of the lease's holder.
        there = read_with_version(path)
        if there is None or replace_if_unchanged(path, content, there[1]) is None:
            raise LeaseLostError(f"{path} is being written by another driver")


def _marks_of_inputs(step: Step, store: Store) -> set[str]:
    marks: set[str] = set()
    for source in step.inputs.values():
        record = store.read_record(source.id)
        if record is None:
            where = store.folder(source.id)
            raise UserError(f"{step.name} is built from {where}, which has no record (removed since?); run again to build it")
        marks.update(record.marks)
    return marks


def _remove_working_state(folder: str) -> None:
    file_system, root = filesystem(folder)
    for path in file_system.ls(root, detail=False):
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name.startswith(".") and name not in (LOCK_FILE, LEASE_FILE):
            file_system.rm(path, recursive=True)


def _count_rows(folder: str, files: Mapping[str, Any]) -> dict[str, int]:
    import pyarrow.parquet as pq

    file_system, _ = filesystem(folder)
    counts: dict[str, int] = {}
    for relative in files:
        if relative.endswith(".parquet"):
            name = relative.rsplit("/", 1)[0] if "/" in relative else relative
            with file_system.open(filesystem(join(folder, relative))[1], "rb") as file:
                counts[name] = counts.get(name, 0) + pq.read_metadata(file).num_rows
    return counts


def _keep_traceback(error: Exception, step: Step, store: Store) -> str:
    """Write the error's traceback into the store's logs; empty if even that cannot be written."""
    path = join(store.uri, "logs", f"{step.stage}-{step.slug}-{step.fingerprint[:SHORT]}.txt")
    try:
        store.write_bytes(path, "".join(traceback.format_exception(error)).encode())
    except Exception:
        return ""
    return path

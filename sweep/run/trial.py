"""The work on one step of the graph in its lane: from looking at the store to the record."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedError, NeighbourFailedError, NotBegunError, NoticeError, UserError
from pipelines.identity import MARKS, RESULT_FILE
from pipelines.resources import no_report
from pipelines.storage import (
    can_compare,
    filesystem,
    join,
    make_folder,
    read_text,
    read_with_version,
    replace_if_unchanged,
    write_if_absent,
    write_text,
)
from pipelines.workers.lane import Times
from pipelines.workers.printed import last_lines, note_worker
from sweep.graph.identity import SHORT
from sweep.graph.integrity import Damage, How, changed_inputs, finish_setting_aside, inspect, set_aside, why_stale
from sweep.graph.queue import starts_with
from sweep.graph.records import RECORD_FILE, Record, Store
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.live.lease import LEASE_FILE, LOCK_FILE, Held, LeaseLostError, lease, lease_if_free
from sweep.run.failures import (
    MACHINE_LOST,
    Kind,
    is_disk_full,
    is_read_only,
    is_store_away,
    kind,
    one_line,
    root_cause,
    whole_traceback,
    without_secrets,
)
from sweep.run.machine import hardware, versions

AWAY_S, AWAY_POLL_S = 300.0, 5.0
"""How long a step that failed of its store waits for it before it is tried again, and how often it looks."""
INPUTS_FILE = ".inputs.json"
"""Working state: the content that each input had when an attempt began, by its name."""


@dataclass(frozen=True)
class Order:
    """All that a lane needs to build one artifact; picklable. `runner` is the stage, by value or by reference.

    One of `kind` None is built by itself; others of the same kind share workers, which take on about `expected` in all.
    `timeline` is what the record says of when it came to be built (`Record.timeline`), as far as that is known.
    """

    step: Step
    runner: Stage
    store_uri: str
    tracker: Any = None
    git: Mapping[str, Any] = field(default_factory=dict)
    kind: Any = None
    expected: int = 1
    timeline: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: its record, or one line of what went wrong and where the whole traceback is.

    `is_final` failures are the user's to put right: trying again cannot help. One that `was_neighbour` fell with others of its
    lane, and may do well alone; one that `was_stopped`, at a notice or before it had begun, has committed what it had done, and
    goes on elsewhere or later; one that had not begun (`had_begun`) has lost its workers before. What `was_there` another run
    has built meanwhile, or an earlier attempt. `kind` says who is at fault. `unusable` are the fingerprints of inputs that are
    gone or damaged: built again, the step may do well.
    """

    record: Record | None
    error: str = ""
    log: str = ""
    _: KW_ONLY
    is_final: bool = False
    was_neighbour: bool = False
    was_stopped: bool = False
    was_there: bool = False
    had_begun: bool = True
    kind: Kind = Kind.FAILURE
    unusable: tuple[str, ...] = ()


class UnusableInputsError(Exception):
    """Inputs of a step are gone, or were damaged and are set aside; `fingerprints` are theirs."""

    def __init__(self, message: str, fingerprints: tuple[str, ...]) -> None:
        super().__init__(message)
        self.fingerprints = fingerprints


Run = Callable[[Job], tuple[Mapping[str, Any], Times]]
"""Does a job: its metrics, and when its workers did it."""


def carry_out(order: Order, run: Run | None = None, when_lost: Callable[[], None] = lambda: None) -> Outcome:
    """Build the artifact of `order` if it is missing: with `run`, or by itself. Never raises for a failure of the stage.

    One driver at a time builds an artifact; the next one finds the record. `when_lost` is called from another thread if
    another driver takes over, since this process was stopped for long or cut off from the store: it had better write no more.
    """
    step, store = order.step, Store(order.store_uri)
    try:
        while True:
            # One that was taken over is waited for: there is a record then.
            with contextlib.suppress(LeaseLostError), lease(store.folder(step.id), when_lost=when_lost) as held:
                if record := _usable_record(step, store):
                    return Outcome(record, was_there=True)
                return Outcome(_build(order, store, held, run or partial(_by_itself, order.runner)))
    except Exception as error:
        if kind(error) is Kind.AWAY:
            # Else all attempts would be over before it is back.
            _wait_for(store)
        return _failure(error, step, store)


def _wait_for(store: Store) -> None:
    """Return when the store answers, whatever that is, or has not for AWAY_S."""
    began = time.monotonic()
    while time.monotonic() - began < AWAY_S:
        try:
            store.names(store.uri)
            return
        except Exception as error:
            if not is_store_away(error):
                return
            time.sleep(AWAY_POLL_S)


def _by_itself(stage: Stage, job: Job) -> tuple[Mapping[str, Any], Times]:
    started, began = time.monotonic(), time.time()
    metrics = stage.run(job)
    return metrics, Times(began, began, time.time(), time.monotonic() - started)


def is_taken_over(store: Store, step: Step) -> bool:
    """Whether another driver holds the artifact of `step`, or has built it, of which this one's process has just ended.

    A local store's lock nobody takes over, and a large process may go on holding its own while it ends.
    """
    if store.is_local:
        return False
    with lease_if_free(store.folder(step.id)) as held:
        return held is None or store.read_record(step.id) is not None


def _usable_record(step: Step, store: Store) -> Record | None:
    """The record of a step that need not be built; one that is damaged, or was built from other content, is set aside.

    Only to be called by the step's sole builder.
    """
    finish_setting_aside(store, step.id)
    record, damages = inspect(store, step.id, "sizes")
    if damages:
        set_aside(store, step.id, _lines(damages))
        return None
    if record is None:
        return None
    there: dict[str, Record] = {}
    for source in step.inputs.values():
        # A damaged one is met when something is built from it.
        with contextlib.suppress(DamagedError):
            if (found := store.read_record(source.id)) is not None:
                there[source.fingerprint] = found
    if changed := changed_inputs(record, there):
        set_aside(store, step.id, why_stale(record, changed))
        return None
    return record


def _lines(damages: Sequence[Damage]) -> str:
    return "\n".join(map(str, damages))


def _failure(error: Exception, step: Step, store: Store) -> Outcome:
    if isinstance(noticed := root_cause(error), NoticeError):
        return Outcome(None, one_line(noticed), was_stopped=True)
    if isinstance(error, NotBegunError):
        text = f"its workers were lost before it had begun: {one_line(root_cause(error))}"
        return Outcome(None, text, keep_log(error, step, store), was_stopped=True, had_begun=False, kind=kind(error))
    if not isinstance(error, UnusableInputsError):
        # A stage that reads a damaged input fails in its own words.
        try:
            how: How = "anew" if not store.is_local and "DamagedError" in repr(root_cause(error)) else "remembered"
            _inputs(step, store, how)
        except UnusableInputsError as unusable:
            error = unusable
        except Exception as unreadable:
            error.add_note(f"its inputs could not be looked at: {unreadable!r}")
    if isinstance(error, UnusableInputsError):
        return Outcome(None, without_secrets(str(error)), unusable=error.fingerprints)
    cause = root_cause(error)
    log = keep_log(error, step, store)
    was_neighbour = isinstance(error, NeighbourFailedError)
    is_users = isinstance(cause, UserError) and not isinstance(cause, DamagedError)
    is_final = not was_neighbour and (is_users or is_disk_full(cause))
    of = kind(error)
    text = MACHINE_LOST if of is Kind.LOSS else one_line(cause)
    return Outcome(None, text, log, is_final=is_final, was_neighbour=was_neighbour, kind=of)


def _build(order: Order, store: Store, held: Held, run: Run) -> Record:
    started = time.monotonic()
    inputs = _inputs(order.step, store, "remembered")
    job = job_ahead(order)
    if store.is_local:
        make_folder(Path(job.output))
    _begin(job, {name: record.content for name, record in inputs.items()})
    note_worker("the process that drove it", [job.output])
    at_lane = time.monotonic()
    metrics, times = run(job)
    # With others in the lane, its own share of their time; what is done here goes on beside them.
    not_own_s = time.monotonic() - at_lane - times.share_s
    return _record(order, store, held, dict(metrics), inputs, started + not_own_s, times)


def job_ahead(order: Order) -> Job:
    """What there is of the job of a step whose inputs are not all built; nothing is written for it yet."""
    store = Store(order.store_uri)
    there = {name: store.folder(source.id) for name, source in (starts_with(order.step) or {}).items()}
    return replace(_job(order, store), starts_with=there)


def _job(order: Order, store: Store) -> Job:
    from sweep.run.tracking import StepReport

    step = order.step
    folder = store.folder(step.id)
    return Job(
        step.config,
        {name: store.folder(source.id) for name, source in step.inputs.items()},
        folder,
        step.resources,
        StepReport(order.tracker, step.fingerprint) if order.tracker else no_report,
        step.options,
        {name: source.fingerprint for name, source in step.inputs.items()},
        order.expected,
    )


def _record(
    order: Order,
    store: Store,
    held: Held,
    metrics: dict[str, Any],
    inputs: Mapping[str, Record],
    started: float,
    times: Times,
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
    # In a lane, each one's share: what they took in all is their sum.
    durations = {"total_s": round(time.monotonic() - started, 3), "stage_s": round(times.share_s, 3)}
    when = {"up": times.up, "began": times.began, "ended": times.ended}
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
        durations=durations,
        hardware=hardware(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        marks=tuple(sorted({*own, *(mark for source in inputs.values() for mark in source.marks)})),
        input_contents={name: source.content for name, source in inputs.items()},
        timeline={**order.timeline, **{name: round(value, 3) for name, value in when.items()}},
    )
    # The last look: what has been hashed is ours.
    held.check()
    _write_record(record, store)
    # It is complete, whatever becomes of the notes.
    for note in (RESULT_FILE, INPUTS_FILE):
        with contextlib.suppress(OSError):
            filesystem(folder)[0].rm_file(filesystem(join(folder, note))[1])
    return record


def _write_record(record: Record, store: Store) -> None:
    """Complete an artifact whose lease is held: make its record, or replace the one that is there."""
    path, content = join(store.folder(record.id), RECORD_FILE), record.to_json().encode()
    if store.is_local or not can_compare(path):
        # A lock cannot be lost.
        store.write_record(record)
    elif write_if_absent(path, content) is None:
        # Of a driver that was stopped between its last look and its record; the files are those of the lease's holder.
        there = read_with_version(path)
        if there is None or replace_if_unchanged(path, content, there[1]) is None:
            raise LeaseLostError(f"{path} is being written by another driver")


def _inputs(step: Step, store: Store, how: How) -> dict[str, Record]:
    """The records of a step's inputs, by their names in the stage, whose files are what they say.

    Damaged inputs are set aside. Raises UnusableInputsError for these, and for inputs that have no record.
    """
    records: dict[str, Record] = {}
    wrong: dict[str, str] = {}
    for name, source in step.inputs.items():
        record, damages = inspect(store, source.id, how)
        if damages:
            wrong[source.fingerprint] = set_damaged_aside(source, store, damages, how)
        elif record is None:
            wrong[source.fingerprint] = f"{store.folder(source.id)} has no record (removed since?)"
        else:
            records[name] = record
    if wrong:
        raise UnusableInputsError(f"{step.name} is built from what is not whole: {'; '.join(wrong.values())}", tuple(wrong))
    return records


def set_damaged_aside(step: Step, store: Store, damages: Sequence[Damage], how: How) -> str:
    """Set a damaged artifact aside, unless another process has done so or builds it again by now; says what was done."""
    more = f" and {len(damages) - 1} more of its files are damaged" if len(damages) > 1 else ""
    with lease_if_free(store.folder(step.id)) as held:
        if held is None:
            return f"{damages[0]}{more}; another process is building it again"
        _, damages_now = inspect(store, step.id, how)
        if not damages_now:
            return f"{damages[0]}{more}; it is set aside or built again by now"
        try:
            return f"{damages[0]}{more}; set aside as {set_aside(store, step.id, _lines(damages_now))}"
        except OSError as error:
            if not is_read_only(error):
                raise
            return f"{damages[0]}{more}; it cannot be set aside ({one_line(error)})"


def _begin(job: Job, contents: Mapping[str, str]) -> None:
    """Note what a step is built from. What an earlier attempt left is removed first, if its inputs had other content or its
    note cannot be read.
    """
    note = join(job.output, INPUTS_FILE)
    wanted = json.dumps(contents, sort_keys=True)
    try:
        text = read_text(note)
    except (UnicodeDecodeError, IsADirectoryError):
        text = ""
    if text is not None and text != wanted:
        file_system, root = filesystem(job.output)
        for path in file_system.ls(root, detail=False):
            if path.rstrip("/").rsplit("/", 1)[-1] not in (LOCK_FILE, LEASE_FILE):
                file_system.rm(path, recursive=True)
    if text != wanted:
        write_text(note, wanted)


def _remove_working_state(folder: str) -> None:
    """Remove what is hidden, also what killed processes left in subfolders. Two notes stay until there is a record.

    Without that of the inputs, what is there would be taken for what these inputs gave, whatever they are by then. Without the
    result, all the work would be done again: to describe what was written takes minutes where it is large and far away.
    """
    file_system, root = filesystem(folder)
    prefix = root.rstrip("/") + "/"
    hidden = set()
    # Folders too: one may be empty.
    for path in file_system.find(root, withdirs=True):
        # The folder itself is listed, too, and may lie in a hidden one.
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth, part in enumerate(parts):
            if part.startswith("."):
                hidden.add("/".join(parts[: depth + 1]))
                break
    for path in sorted(hidden - {LOCK_FILE, LEASE_FILE, INPUTS_FILE, RESULT_FILE}):
        file_system.rm(prefix + path, recursive=True)


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


def keep_log(error: Exception, step: Step, store: Store) -> str:
    """Write the error's traceback and what the step's workers printed last, without secrets, into the store's logs.

    Returns the file's address; empty if not even that can be written.
    """
    path = join(store.uri, "logs", f"{step.stage}-{step.slug}-{step.fingerprint[:SHORT]}.txt")
    text = whole_traceback(error)
    if not isinstance(root_cause(error), UserError):
        try:
            text += "\n" + without_secrets(last_lines(store.folder(step.id), without_secrets))
        except Exception as unreadable:
            text += f"\nwhat its workers printed could not be looked at: {one_line(unreadable)}\n"
    try:
        store.write_bytes(path, text.encode())
    except Exception:
        return ""
    return path

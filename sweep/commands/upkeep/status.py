"""`blindsweep status`: how far studies are, once or as they go."""

import json as js
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, TextIO

import typer

from pipelines.errors import StoreUnreachableError, UserError
from pipelines.terminal import console
from sweep.commands.options import DEFAULT_STORE, Json, OneOrAllStudies, StoreUri, positive, study_name
from sweep.graph.integrity import Damage, besides_weights, check_all
from sweep.graph.pieces import seeds_lacking
from sweep.graph.records import Store, counts_in_words
from sweep.graph.spending import as_json as as_json_spending
from sweep.graph.spending import read_spending, spent_in_words
from sweep.live.heartbeat import Beat, Working
from sweep.live.state import StudyState, Watch, as_json, blocked_lines, look

STILL_S = 600.0
"""For how long nothing may be new of a run before it is said: engines start, weights load."""
AGAIN_S = 30.0
"""How often a look that goes on reads what a study has spent: a file a run."""


def status(
    study: OneOrAllStudies = None,
    store: StoreUri = DEFAULT_STORE,
    watch: Annotated[
        bool, typer.Option(help="Look again and again, until a run that was seen is over or everything is built.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, callback=positive, help="Seconds between two looks.")] = 5.0,
    json: Json = False,
) -> None:
    """Say how far a study is, what runs, what it has cost, and what failed and why.

    It reads the store and nothing else: from any terminal or machine that can read the store, while a run goes on or after it.
    A run that has not been heard of for a minute counts as interrupted. With --watch, a table on a terminal, else a line a look
    (with --json a JSON object); it ends with 0 if everything is built, else with 1.

        blindsweep status demo
        blindsweep status demo --watch
        blindsweep status paper --store s3://bucket/studies --watch --every 60 >> paper.log
    """
    where = Store(store)
    if watch:
        names = [study_name(study)] if study else where.studies()
        if not names:
            raise UserError(f"no study in {where.uri} yet; begin with: blindsweep run demo")
        _watch(where, names, every, as_objects=json)
        return
    names = [study_name(study)] if study else where.studies()
    if json:
        states = {name: look(where, name) for name in names}
        objects = {name: {**_object(state, where), "damaged": len(_damaged(state, where))} for name, state in states.items()}
        print(js.dumps(objects, indent=1, ensure_ascii=False))
        return
    if not names:
        print(f"no study in {where.uri} yet; begin with: blindsweep run demo")
    for name in names:
        try:
            state = look(where, name)
        except UserError as error:
            if study:
                raise
            print(f"{name}: {error}")
            continue
        print("\n".join(page(state, spent_in_words(where, name), with_stages=study is not None)))
        if damaged := _damaged(state, where):
            stages = Counter(damage.artifact.stage for damage in damaged)
            of_records = f"have not the files of their records ({damaged[0]}, for one); `plan` says what a run does"
            print(f"  damaged: {counts_in_words(stages)} {of_records}")


def _damaged(state: StudyState, store: Store) -> list[Damage]:
    """One file of each built artifact whose files are missing or have other sizes."""
    records = [step.record for step in state.study.steps if step.record is not None]
    found = check_all(store, records, lambda _: "sizes").values()
    return [lost[0] for damages in found if (lost := besides_weights(damages))]


def page(state: StudyState, spent: str, *, with_stages: bool) -> list[str]:
    """The lines of one look at a study; `spent` as `spent_in_words`."""
    built = state.count("done")
    lines = [f"{state.study.experiment}: {built:,} of {state.count('total'):,} artifacts built{_beside(state)}"]
    lines += [f"  {line}" for line in _runs(state)]
    if spent:
        lines.append(f"  spent: {spent}")
    for mark, count in state.study.marks.items():
        lines.append(f"  marked: {mark} (on {count:,} of {built:,} artifacts)")
    lines += [f"  marked: {copies}" for copies in state.study.pool_copies]
    lines += [f"  damaged: {step.damage}" for step in state.study.steps if step.damage]
    if with_stages:
        for stage in state.stages:
            beside = _counts(partial(getattr, stage))
            lines.append(f"  {stage.stage:<15} {stage.done}/{stage.total}" + (f"  {beside}" if beside else ""))
            lines += [f"    {line}" for line in _working(state, stage.stage)]
        if len(lacking := seeds_lacking(state.study.steps)) > 1 and not state.is_built:
            whole = [str(seed) for seed, num_lacking in lacking.items() if not num_lacking]
            lines.append(f"  whole seeds     {len(whole)}/{len(lacking)}" + (f": {', '.join(whole)}" if whole else ""))
    lines += _failed(state)
    return lines


def _failed(state: StudyState) -> list[str]:
    lines = []
    for failure in state.failures:
        lines.append(f"  not built: {failure['stage']}/{failure['slug']}: {failure['error']}")
        if failure.get("log"):
            lines.append(f"    full traceback: {failure['log']}")
    for beat in state.live:
        lines += [f"  tried again: {name}: {error}" for name, error in beat.pulse.again.items()]
    return lines + blocked_lines(state.blocked or {})


def _counts(count: Callable[[str], int]) -> str:
    """`2 running, 1 failed`, by what `count` says of each."""
    shown = (("running", "running"), ("interrupted", "interrupted"), ("failed", "failed"), ("to_build", "to build"))
    return ", ".join(f"{number} {words}" for name, words in shown if (number := count(name)))


def _beside(state: StudyState) -> str:
    counts = _counts(state.count)
    return f", {counts}" if counts else ""


def _left(value: float | None) -> str:
    from sweep.run.progress import seconds

    if value is None:
        return ""
    return f"about {seconds(value)} left" if value >= 1 else "about to end"


def _runs(state: StudyState) -> list[str]:
    from sweep.run.progress import seconds

    lines = []
    for beat in state.live:
        parts = [f"a run goes on: on {beat.host} since {beat.started}", _left(beat.pulse.seconds_left), beat.pulse.spent]
        if workers := sum(step.num_workers for step in beat.pulse.working):
            parts.insert(1, f"{workers} worker{'s' if workers > 1 else ''} at work")
        parts.append(_still(beat))
        if beat.pulse.hold:
            parts.append(f"nothing new starts: {beat.pulse.hold}")
        if beat.quiet_s > 60:
            parts.append(f"it has not looked at its steps for {seconds(beat.quiet_s)}")
        lines.append(", ".join(filter(None, parts)))
    for beat in state.dead:
        lines.append(
            f"a run was interrupted: on {beat.host} since {beat.started}, last heard of {seconds(beat.age_s)} ago; "
            "the same command goes on"
        )
    return lines


def _still(beat: Beat) -> str:
    """That a run which goes on has long had nothing to say; "" if it has."""
    from sweep.run.progress import seconds

    return f"nothing new for {seconds(beat.nothing_new_s)}" if beat.nothing_new_s > STILL_S else ""


def _working(state: StudyState, stage: str) -> list[str]:
    from sweep.run.progress import seconds

    steps: dict[str, Working] = {}
    for step in state.working:
        # Of two runs that have the same step, one waits for the other's artifact and has no more to say of it.
        if step.stage == stage and (step.slug not in steps or step.fraction_done is not None):
            steps[step.slug] = step
    lines = []
    for step in steps.values():
        done = "" if step.fraction_done is None else f"{100 * min(max(step.fraction_done, 0), 1):.0f}% done"
        lines.append(f"{step.slug}: {', '.join(filter(None, (f'for {seconds(step.seconds)}', done, step.rate)))}")
    return lines


def line(state: StudyState, spent: str) -> str:
    """One look at a study in one line."""
    doing = ", ".join(f"{stage.stage} {stage.running}" for stage in state.stages if stage.running)
    workers = f"{state.num_workers} worker{'s' if state.num_workers > 1 else ''} at work ({doing})" if state.num_workers else ""
    if state.live:
        whose = "" if state.num_workers else "a run is starting or ending"
    else:
        whose = "the run was interrupted" if state.dead else "no run goes on"
    money = ", ".join(filter(None, (beat.pulse.spent for beat in state.live))) or (f"spent {spent}" if spent else "")
    failed = [f"{failure['stage']}/{failure['slug']}: {failure['error']}" for failure in state.failures]
    built = f"{state.study.experiment}: {state.count('done')} of {state.count('total')} built{_beside(state)}"
    still = [_still(beat) for beat in state.live]
    text = "; ".join(filter(None, (built, workers, whose, *still, _left(state.seconds_left), money, *failed)))
    return " ".join(text.split())


def _object(state: StudyState, store: Store) -> dict[str, Any]:
    return {
        **as_json(state),
        "marks": state.study.marks,
        **({"pool_copies": copies} if (copies := state.study.pool_copies) else {}),
        "spent": as_json_spending(read_spending(store, state.study.experiment)),
    }


def _watch(store: Store, names: Sequence[str], every: float, *, as_objects: bool, stream: TextIO | None = None) -> None:
    """Show looks at the studies until all of them are built or every run that was seen is over; ends by typer.Exit."""
    stream = stream or sys.stdout
    watches = {name: Watch(store, name) for name in names}
    states: dict[str, StudyState] = {}
    seen_live: set[str] = set()
    spent: dict[str, str] = {}
    spent_at = -AGAIN_S
    screen = None if as_objects or not stream.isatty() else _Screen(stream)
    try:
        while True:
            try:
                states = {name: watch.look() for name, watch in watches.items()}
                if time.monotonic() - spent_at >= AGAIN_S:
                    spent, spent_at = {name: spent_in_words(store, name) for name in names}, time.monotonic()
            except StoreUnreachableError as error:
                if not states:
                    raise
                # It may be back at the next look.
                print(f"cannot look: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
                time.sleep(every)
                continue
            now = datetime.now().astimezone()
            if screen:
                screen.show([row for name, state in states.items() for row in (*_table(state, spent[name], now), "")])
            else:
                for name, state in states.items():
                    if as_objects:
                        values = {"at": now.isoformat(timespec="seconds"), "study": name, **_object(state, store)}
                        print(js.dumps(values, ensure_ascii=False), file=stream, flush=True)
                    else:
                        print(f"{now:%H:%M:%S}  {line(state, spent[name])}", file=stream, flush=True)
            seen_live |= {name for name, state in states.items() if state.live}
            if all(state.is_built and not state.live for state in states.values()):
                raise typer.Exit(0)
            if seen_live and not any(state.live for state in states.values()):
                raise typer.Exit(1)
            time.sleep(every)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        if screen:
            screen.close()


def _table(state: StudyState, spent: str, now: datetime) -> list[str]:
    """The rows that a terminal shows of one look."""
    first, *rest = page(state, spent, with_stages=True)
    return [f"{now:%H:%M:%S}  {first}", *rest]


class _Screen:
    """Lines that stand in one place of a terminal, each look over the last one. No styles where NO_COLOR is set."""

    def __init__(self, stream: TextIO) -> None:
        from rich.live import Live

        self._live = Live(console=console(file=stream), auto_refresh=False)
        self._live.start()

    def show(self, lines: Sequence[str]) -> None:
        from rich.text import Text

        text = Text()
        for line in lines:
            bold = line[:1].isdigit()
            colour = "red" if line.startswith("  not built") else "green" if "a run goes on" in line else ""
            colour = "yellow" if colour == "green" and "nothing new for" in line else colour
            text.append(line + "\n", style="bold" if bold else colour)
        self._live.update(text, refresh=True)

    def close(self) -> None:
        self._live.stop()

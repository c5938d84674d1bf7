"""`blindsweep status`: once, watched from another process, of a store that is none."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
from typer.testing import CliRunner

from pipelines.errors import StoreUnreachableError
from sweep import cli
from sweep.commands.upkeep import status
from sweep.graph.pieces import parse_only, piece_of
from sweep.graph.records import Store, Study
from sweep.graph.step import Step
from sweep.live.heartbeat import Heartbeat, Pulse, Working, read_beats
from sweep.live.state import StudyState, look
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded
from tests.sweep.live.beating import other_run

ROOT = Path(__file__).parents[4]
FAKE = ROOT / "tests" / "sweep" / "run" / "fake_command.py"
Write = Callable[[Iterable[Step], Store], None]


@pytest.fixture(params=["local", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "s" if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def steps(store: Store, experiment: Experiment, record_all: Write) -> list[Step]:
    """A study of which the sources are built."""
    steps = build_grid(experiment)
    manifest(Loaded(experiment, {}), steps).save(store)
    record_all(steps[:1], store)
    return steps


@pytest.fixture
def run(store: Store, steps: list[Step]) -> "Iterator[subprocess.Popen[str]]":
    """A run in another process, which trains a task model."""
    model = next(step for step in steps if step.stage == "task_model")
    with other_run(store, "small", model.fingerprint) as process:
        yield process


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["status", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_once_it_says_what_runs_what_is_left_and_what_is_spent(store: Store, run: Any) -> None:
    text = shown("small", "--store", store.uri)
    num_artifacts = len(Study.listed(store, "small").steps)
    assert text.startswith(f"small: 1 of {num_artifacts} artifacts built, 1 running, {num_artifacts - 2} to build\n")
    assert re.search(r"  a run goes on: on .*, 2 workers at work, about (3m|2m)\d\ds left, spent \$1\.20 of \$5\.00\n", text)
    assert "  task_model      0/12  1 running, 11 to build\n    cell: for 1m" in text
    assert ", 25% done, 120 examples/s\n" in text
    run.kill()
    run.wait()
    text = shown("small", "--store", store.uri)
    assert "running" not in text and "  task_model      0/12  1 interrupted, 11 to build\n" in text
    assert re.search(r"  a run was interrupted: on .*, last heard of \d+s ago; the same command goes on\n", text)


def test_for_programs_the_same(store: Store, run: Any) -> None:
    values = json.loads(shown("--store", store.uri, "--json"))["small"]
    assert values["stages"]["task_model"] == {
        "built": 0, "running": 1, "interrupted": 0, "failed": 0, "to_build": 11, "artifacts": 12,
    }  # fmt: skip
    assert (values["workers"], values["runs"][0]["state"], values["spent"]["dollars"]) == (2, "running", 0)


def test_which_seeds_are_whole_is_said_until_all_are(tmp_path: Path, experiment: Experiment, record_all: Write) -> None:
    store, steps = Store(tmp_path), build_grid(replace(experiment, seeds=(5, 0, 1), generators=3))
    manifest(Loaded(experiment, {}), steps).save(store)

    def said() -> tuple[list[str], list[int]]:
        (values,) = json.loads(shown("--store", store.uri, "--json")).values()
        lines = shown("small", "--store", store.uri).splitlines()
        return [line.split(maxsplit=2)[2] for line in lines if line.startswith("  whole seeds")], values["whole_seeds"]

    assert said() == (["0/3"], [])
    record_all(piece_of(steps, parse_only("seed=0,5")), store)
    assert said() == (["2/3: 5, 0"], [5, 0])
    record_all(steps, store)
    assert said() == ([], [5, 0, 1])


def test_a_run_of_which_nothing_is_new_for_long_says_so(tmp_path: Path, experiment: Experiment) -> None:
    store, steps, now = Store(tmp_path), build_grid(experiment), [0.0]
    manifest(Loaded(experiment, {}), steps).save(store)
    for seconds, said in ((500.0, ""), (2820.0, "nothing new for 47m")):
        now[0] = 0.0
        with Heartbeat(store, "small", Pulse(), clock=lambda: now[0]) as own:
            now[0] = seconds
            own._write()
            text, state = shown("small", "--store", store.uri), look(store, "small")
        assert "a run goes on" in text and "a run is starting" in status.line(state, "")
        for words in (text, status.line(state, "")):
            assert (said in words) if said else ("nothing new" not in words)


def watching(store: Store, stream: Any, *, as_objects: bool = False) -> int:
    with pytest.raises(typer.Exit) as ended:
        status._watch(store, ["small"], 0.1, as_objects=as_objects, stream=stream)
    return ended.value.exit_code


class Lines(io.StringIO):
    """Kills the run once a look has been shown."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def flush(self) -> None:
        self.run.kill()
        self.run.wait()


@pytest.mark.parametrize("as_objects", [False, True])
def test_without_a_terminal_a_watch_is_a_line_a_look_and_ends_with_the_run(store: Store, run: Any, as_objects: bool) -> None:
    stream = Lines(run)
    assert watching(store, stream, as_objects=as_objects) == 1
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    if as_objects:
        assert [json.loads(line)["runs"][0]["state"] for line in lines] == ["running", "interrupted"]
        return
    begin, end = r"\d\d:\d\d:\d\d  small: 1 of \d+ built, 1 ", r", \d+ to build; "
    assert re.fullmatch(rf"{begin}running{end}2 workers at work \(task_model 1\); about .* left; spent .*", lines[0])
    assert re.fullmatch(rf"{begin}interrupted{end}the run was interrupted", lines[1])


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal_it_is_one_table_without_styles_if_that_is_asked(
    no_colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("TERM", "xterm-256color")
    try:
        screen, terminal = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal to be had here: {error}")
    shown = b""

    def read() -> None:
        nonlocal shown
        # A terminal that is closed is an input/output error to who reads it.
        try:
            while part := os.read(screen, 4096):
                shown += part
        except OSError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(terminal, "w") as stream:
        table = status._Screen(stream)
        table.show(["12:00:00  small: 1 of 2 artifacts built", "  a run goes on: on host", "  not built: a/b: no room"])
        table.close()
    reader.join(timeout=30)
    os.close(screen)
    assert b"1 of 2 artifacts built" in shown and b"no room" in shown
    # Colours and weights end in `m`; moving about does not.
    assert bool(re.search(rb"\x1b\[[0-9;]*m", shown)) == (not no_colour)


def test_a_watch_of_what_is_built_ends_at_once_and_well(store: Store, steps: list[Step], record_all: Write) -> None:
    record_all(steps, store)
    stream = io.StringIO()
    assert watching(store, stream) == 0
    shown = stream.getvalue()
    assert shown.count("\n") == 1 and f"small: {len(steps)} of {len(steps)} built; no run goes on" in shown


def test_a_store_that_does_not_answer_for_a_while_is_asked_again(
    tmp_path: Path,
    experiment: Experiment,
    record_all: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, steps = Store(tmp_path), build_grid(experiment)
    manifest(Loaded(experiment, {}), steps).save(store)
    look, num_looks = status.Watch.look, 0

    def failing(self: Any) -> Any:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 2:
            raise StoreUnreachableError("the store is away")
        if num_looks == 3:
            record_all(steps, store)
        return look(self)

    monkeypatch.setattr(status.Watch, "look", failing)
    assert watching(store, io.StringIO()) == 0 and num_looks == 3
    assert capsys.readouterr().err == "cannot look: the store is away\n"


def test_what_failed_stands_with_its_reason_and_what_fell_with_it(tmp_path: Path, experiment: Experiment) -> None:
    store, steps = Store(tmp_path), build_grid(experiment)
    manifest(Loaded(experiment, {}), steps).save(store)
    model = next(step for step in steps if step.stage == "task_model")
    failure = {"stage": model.stage, "slug": model.slug, "fingerprint": model.fingerprint, "error": "no room", "log": "a.txt"}
    pulse = Pulse({}, (), (failure,), {model.name: {"evaluation": 1}}, {"evaluation/x": "a machine went away"})
    with Heartbeat(store, "small", pulse):
        text = shown("small", "--store", store.uri)
    assert f"  not built: {model.name}: no room\n    full traceback: a.txt\n" in text
    assert f"  blocked by {model.name}: 1 evaluation\n" in text
    assert "  tried again: evaluation/x: a machine went away\n" in text


@pytest.mark.parametrize("below", ["", "/deeper/still"])
@pytest.mark.parametrize("command", [["status"], ["status", "small"], ["status", "--watch"], ["verify"], ["plan", "demo"]])
def test_a_file_in_place_of_a_store_is_one_clear_error(command: list[str], below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a,b")
    done = CliRunner().invoke(cli.app, [*command, "--store", f"{tmp_path}/file{below}"])
    assert done.exit_code == 1
    assert done.stderr == (
        f"Error: store {tmp_path}/file{below}: {tmp_path}/file is a file; give --store a folder, or a URI such as "
        "s3://BUCKET/FOLDER\n"
    )


def test_a_store_on_a_disk_that_is_not_mounted_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "studies")
    for command in (["status"], ["run", "demo"]):
        done = CliRunner().invoke(cli.app, [*command, "--store", f"{tmp_path}/link"])
        assert done.exit_code == 1
        assert f"{tmp_path}/link is a link to {tmp_path}/disk/studies, which is not there; give --store a folder" in done.stderr


def test_what_a_pool_has_of_the_test_sets_is_said_as_a_mark(store: Store, experiment: Experiment) -> None:
    study = manifest(Loaded(experiment, {}), build_grid(experiment))
    copies = "pool: mine.csv: 1 of 9 texts of test are in the pool, too"
    replace(study, parameters={**study.parameters, "pool_copies": [copies]}).save(store)
    assert f"  marked: {copies}\n" in shown("small", "--store", store.uri)
    assert json.loads(shown("small", "--store", store.uri, "--json"))["small"]["pool_copies"] == [copies]


def test_a_watch_of_an_empty_store_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["status", "--watch", "--store", str(tmp_path)])
    assert done.exit_code == 1 and "begin with: blindsweep run demo" in done.stderr


def test_a_pulse_is_made_of_what_a_run_knows_and_written_whole(tmp_path: Path) -> None:
    from sweep.run.progress import Progress, pulse_of
    from sweep.run.trial import Outcome
    from tests.sweep.run.test_progress import STEPS

    generator, first, second, third, _ = STEPS
    progress = Progress(
        STEPS,
        {generator.fingerprint},
        running={first.fingerprint: time.monotonic() - 30},
        failed={second.fingerprint: Outcome(None, "no room", "a.txt")},
        retried={second.fingerprint: Outcome(None, "once"), first.fingerprint: Outcome(None, "a machine went away")},
        blocked={third.fingerprint: second.name},
        throughput={first.fingerprint: {"examples_per_s": 120.0, "fraction_done": 0.5}},
        spent="spent $1.00",
    )
    pulse = pulse_of(progress, 9.0, "a notice came")
    (working,) = pulse.working
    assert isinstance(working, Working) and working.seconds == pytest.approx(30, abs=5)
    assert (working.slug, working.rate, working.fraction_done) == (first.slug, "120 examples/s", 0.5)
    assert pulse.done == {"generator": 1} and pulse.blocked == {second.name: {"task_model": 1}}
    assert [failure["error"] for failure in pulse.failures] == ["no room"]
    assert pulse.again == {first.name: "a machine went away"}
    assert (pulse.seconds_left, pulse.spent, pulse.hold) == (9.0, "spent $1.00", "a notice came")
    with Heartbeat(Store(tmp_path), "small", pulse):
        (beat,) = read_beats(Store(tmp_path), "small")
    assert beat.pulse.later(0) == replace(pulse, working=beat.pulse.working, seconds_left=beat.pulse.seconds_left)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_run_is_seen_while_it_goes_on_and_after_it_was_killed(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    driver = subprocess.Popen(
        [sys.executable, str(FAKE), "run", "demo", "--no-report", "--store", store.uri, "--max-cpus", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SECONDS": "3"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    def seen(condition: Callable[[StudyState], bool]) -> StudyState:
        deadline = time.monotonic() + 200
        while True:
            assert driver.poll() is None and time.monotonic() < deadline
            if store.studies() and condition(state := look(store, "demo")):
                return state
            time.sleep(0.5)

    try:
        seen(lambda state: bool(state.live) and state.count("running") > 0)
        # The heartbeat goes on with the run: what it says it has built grows.
        seen(lambda state: bool(state.live) and sum(state.live[0].pulse.done.values()) >= 2)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    dead = look(store, "demo")
    assert dead.live == () and len(dead.dead) == 1 and dead.count("running") == 0
    assert dead.count("done") >= 2


def test_a_step_that_two_runs_have_is_shown_once_by_the_one_that_builds_it() -> None:
    waits = Working("task_model", "cell", "ab", 9.0)
    builds = replace(waits, seconds=8.0, rate="90 examples/s", fraction_done=0.5)
    for working in ((waits, builds), (builds, waits)):
        assert status._working(Mock(working=working), "task_model") == ["cell: for 8s, 50% done, 90 examples/s"]
    assert status._working(Mock(working=(waits, waits)), "task_model") == ["cell: for 9s"]

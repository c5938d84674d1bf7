"""Heartbeats in a folder and in a bucket: of a run that goes on, has ended, was killed, or is on another machine."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.storage import join, read_text, write_text
from sweep.graph.records import Store
from sweep.graph.sealed import seal
from sweep.live import heartbeat as beats
from sweep.live.heartbeat import Heartbeat, Pulse, Working, read_beats
from tests.sweep.live.beating import other_run

ROOT = Path(__file__).parents[3]
WORKING = Working("task_model", "cell", "a" * 64, 5.0)


@pytest.fixture(params=["local", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "s" if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def other(store: Store) -> "Iterator[subprocess.Popen[str]]":
    """Another process whose heart beats."""
    with other_run(store, "study", "b" * 64) as process:
        yield process


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_run_shows_is_read_by_others_and_gone_when_it_ends(store: Store, other: "subprocess.Popen[str]") -> None:
    (beat,) = read_beats(store, "study")
    assert beat.is_live and beat.study == "study"
    (working,) = beat.pulse.working
    assert (working.slug, working.num_workers, working.rate, working.fraction_done) == ("cell", 2, "120 examples/s", 0.25)
    # Times go on while nothing new is heard.
    assert working.seconds >= 60 and beat.pulse.seconds_left is not None and beat.pulse.seconds_left <= 187
    assert read_beats(store, "other") == ()
    other.communicate("end\n", timeout=60)
    assert read_beats(store, "study") == ()


def test_a_run_that_was_killed_is_known_at_once_and_the_next_one_takes_its_place(
    store: Store, other: "subprocess.Popen[str]"
) -> None:
    other.kill()
    other.wait()
    (beat,) = read_beats(store, "study")
    assert not beat.is_live and beat.age_s < beats.LENGTH_S
    with Heartbeat(store, "study", Pulse()) as own:
        assert [beat.is_live for beat in read_beats(store, "study")] == [True]
        # Two at a time leave each other alone.
        with Heartbeat(store, "study", Pulse()):
            assert [beat.is_live for beat in read_beats(store, "study")] == [True, True]
        assert read_text(own.uri) is not None
    assert read_beats(store, "study") == ()


def test_what_a_run_leaves_that_is_killed_beside_another_goes_with_that_one(
    store: Store, other: "subprocess.Popen[str]"
) -> None:
    with Heartbeat(store, "study", Pulse()):
        other.kill()
        other.wait()
        assert sorted(beat.is_live for beat in read_beats(store, "study")) == [False, True]
    assert read_beats(store, "study") == ()


def test_of_another_machine_s_run_only_its_silence_is_known(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with Heartbeat(store, "study", Pulse(working=(WORKING,))) as own:
        values = json.loads(read_text(own.uri) or "")
        path = Path(own.uri)
    values.pop("checksum")
    write_text(path, seal(values | {"process": "elsewhere pid:[1] 1 1"}))
    assert read_beats(store, "study")[0].is_live
    for silent_s, is_live in ((50, True), (70, False)):
        os.utime(path, (time.time() - silent_s,) * 2)
        (beat,) = read_beats(store, "study")
        assert beat.is_live == is_live
        assert beat.pulse.working[0].seconds == pytest.approx(silent_s + 5, abs=20)


def test_news_is_written_soon_and_the_time_alone_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "SOON_S", 0.01)
    monkeypatch.setattr(beats, "EVERY_S", 600.0)
    store = Store(tmp_path)
    with Heartbeat(store, "study", Pulse(working=(WORKING,))) as own:
        first = read_text(own.uri)
        own.show(Pulse(working=(replace(WORKING, seconds=9.0, rate="3 examples/s"),)))
        time.sleep(0.2)
        assert read_text(own.uri) == first
        own.show(Pulse({"task_model": 1}))
        until(lambda: read_beats(store, "study")[0].pulse.done == {"task_model": 1})


def test_a_run_that_has_not_looked_at_its_steps_says_for_how_long(tmp_path: Path) -> None:
    now = 0.0
    with Heartbeat(Store(tmp_path), "study", Pulse(working=(WORKING,)), clock=lambda: now) as own:
        assert not own.is_due
        now = 300.0
        assert own.is_due
        own._write()
        (beat,) = read_beats(Store(tmp_path), "study")
        assert beat.quiet_s == 300 and beat.pulse.working[0].seconds == pytest.approx(305, abs=20)


def test_a_run_says_for_how_long_no_step_has_begun_ended_or_reported(tmp_path: Path) -> None:
    now = 0.0

    def nothing_new_s() -> float:
        own._write()
        (beat,) = read_beats(Store(tmp_path), "study")
        return beat.nothing_new_s

    with Heartbeat(Store(tmp_path), "study", Pulse(), clock=lambda: now) as own:
        own.show(Pulse(working=(WORKING,)), {"a": {"loss": 1.0}})
        now = 900.0
        # It looks, and sees what it has seen.
        own.show(Pulse(working=(replace(WORKING, seconds=905.0),), seconds_left=1.0), {"a": {"loss": 1.0}})
        assert nothing_new_s() == pytest.approx(900, abs=20)
        own.show(Pulse(working=(WORKING,)), {"a": {"loss": 0.9}})
        assert nothing_new_s() < 20
        now = 1800.0
        own.show(Pulse({"task_model": 1}), {"a": {"loss": 0.9}})
        assert nothing_new_s() < 20


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "pulse": {"working": 3}}', '{"format": 2}'])
def test_what_is_no_heartbeat_is_left_out(tmp_path: Path, text: str) -> None:
    write_text(join(str(tmp_path), "live", "study", "a.json"), text)
    write_text(join(str(tmp_path), "live", "study", ".b.json.partial"), text)
    assert read_beats(Store(tmp_path), "study") == ()


def test_a_store_that_cannot_be_written_disturbs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "live").write_text("a file is in the way")
    with Heartbeat(Store(tmp_path), "study", Pulse()) as own:
        own._write()
    assert len([entry for entry in caplog.records if entry.levelname == "WARNING"]) == 1

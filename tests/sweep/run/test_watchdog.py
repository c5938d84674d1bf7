"""Steps from which nothing is heard any more are named, once; a tracker or a machine that slept is no reason."""

import pytest

from pipelines.workers.watchdog import STALL_AFTER
from sweep.run.progress import Progress
from sweep.run.watchdog import Silences
from tests.sweep.run.fake_study import make_steps


@pytest.fixture
def silences(monkeypatch: pytest.MonkeyPatch) -> tuple[Silences, list[float]]:
    monkeypatch.setenv(STALL_AFTER, "10")  # a step may be silent for thirty seconds
    now = [0.0]
    return Silences(lambda: now[0]), now


def test_a_silent_step_is_named_once_until_it_is_heard_again(silences: tuple[Silences, list[float]]) -> None:
    watch, now = silences
    steps = make_steps()
    progress = Progress(steps, set())
    silent, working, unheard = (step.fingerprint for step in steps[:3])
    progress.running = dict.fromkeys((silent, working, unheard), 0.0)
    said = []
    for second in range(120):
        now[0] += 1
        loss = 1.0 if second < 60 else 2.0  # heard again, and silent again
        progress.throughput = {silent: {"loss": loss}, working: {"loss": float(second)}}
        said += [(second, step.name, seconds) for step, seconds in watch.look(progress)]
    assert said == [(31, steps[0].name, 31), (91, steps[0].name, 31)]


def test_neither_a_tracker_without_answer_nor_a_machine_that_slept_is_a_silence(silences: tuple[Silences, list[float]]) -> None:
    watch, now = silences
    (step, *_) = steps = make_steps()
    progress = Progress(steps, set(), running={step.fingerprint: 0.0}, throughput={step.fingerprint: {"loss": 1.0}})
    assert list(watch.look(progress)) == []
    for _ in range(100):
        now[0] += 1
        assert list(watch.look(progress)) == [], "the same snapshot as before"
    for _ in range(3):
        now[0] += 3600
        progress.throughput = dict(progress.throughput)
        assert list(watch.look(progress)) == []

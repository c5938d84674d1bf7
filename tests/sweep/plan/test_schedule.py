"""The wall time of a step graph on so many GPUs."""

import dataclasses
import itertools
import random
from typing import Literal

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig
from pipelines.resources import Resources
from sweep.graph.step import Step
from sweep.plan.schedule import LINGER_S, NEAR_S, OVERDUE_S, Schedule, StepTime, last_chain, simulate
from sweep.run import tune
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid

GPU = Resources(gpus_per_worker=1)
BASE = Step("base_model", "base", ScratchModelConfig())


def step(slug: str, *inputs: Step, resources: Resources = GPU) -> Step:
    config = TrainingSetConfig("starting", size=ord(slug), seed=0)
    return Step("starting_set", slug, config, {one.slug: one for one in inputs}, resources=resources)


def by_step(values: dict[Step, float]) -> dict[str, float]:
    return {one.fingerprint: value for one, value in values.items()}


def times(seconds: dict[Step, float]) -> dict[str, StepTime]:
    return {one.fingerprint: StepTime(own_s=value) for one, value in seconds.items()}


def model(slug: str, *inputs: Step, method: Literal["full", "lora"] = "full", max_group: int = 2) -> Step:
    """A task model that has a lane with others of its kind."""
    config = TaskModelConfig(FinetuneConfig(method=method), seed=ord(slug))
    named = {"base_model": BASE, **{one.slug: one for one in inputs}}
    return Step("task_model", slug, config, named, resources=Resources(gpus_per_worker=1, max_group=max_group))


def with_base(steps: list[Step], times: dict[Step, StepTime]) -> Schedule:
    """Played through on one GPU, where the base model is there."""
    given = {BASE.fingerprint: StepTime()} | {one.fingerprint: time for one, time in times.items()}
    return simulate([BASE, *steps], given, [BASE.fingerprint], 1)


def test_three_steps_on_two_gpus() -> None:
    a, b = step("a"), step("b")
    c = step("c", a)
    # 0 to 10: a, and beside it b until 4; 10 to 15: c. 19 of 30 GPU-seconds are used.
    found = simulate([a, b, c], times({a: 10, b: 4, c: 5}), [], 2, checkpoint_bytes=by_step({a: 7, b: 2, c: 8}))
    assert found.seconds == 15
    assert found.idle_share == pytest.approx(11 / 30)
    assert found.critical_path == (a, c) and found.critical_s == 15
    assert found.peak_bytes == 9


def test_on_one_gpu_steps_follow_each_other() -> None:
    a, b = step("a"), step("b")
    c = step("c", a)
    found = simulate([a, b, c], times({a: 10, b: 4, c: 5}), [], 1, checkpoint_bytes=by_step({a: 7, b: 2, c: 8}))
    assert (found.seconds, found.idle_share, found.critical_s, found.peak_bytes) == (19, 0, 15, 8)


def test_steps_without_a_gpu_keep_none_from_the_others() -> None:
    a, b = step("a", resources=Resources()), step("b")
    c = step("c", a)
    # b runs beside a; c waits for a.
    found = simulate([a, b, c], times({a: 3, b: 4, c: 5}), [], 1)
    assert found.seconds == 9 and found.idle_share == 0
    assert simulate([a, c], times({a: 3, c: 5}), [], 1).idle_share == pytest.approx(3 / 8)


def test_shares_of_a_gpu_run_together() -> None:
    third = Resources(gpus_per_worker=0.3333)
    steps = [step(slug, resources=third) for slug in "abcd"]
    assert simulate(steps, times(dict.fromkeys(steps, 6.0)), [], 1).seconds == 12


def test_a_lane_starts_once_and_its_steps_take_as_long_as_they_are_said_to(llama: Experiment) -> None:
    resources = {**llama.resources, "evaluation": Resources(gpus_per_worker=1, max_group=24)}
    steps = build_grid(dataclasses.replace(llama, resources=resources))
    evaluations = {one.fingerprint for one in steps if one.stage == "evaluation"}
    done = [one.fingerprint for one in steps if one.fingerprint not in evaluations]
    of_each = dict.fromkeys((one.fingerprint for one in steps), StepTime(setup_s=10, own_s=1))
    # 60 on two GPUs: a start on each, and 30 steps one after another, of which the next one is always there.
    found = simulate(steps, of_each, done, 2, checkpoint_bytes=dict.fromkeys(of_each, 5.0))
    assert (found.seconds, found.idle_share, found.start_share) == (10 + 30, 0, 1 / 4)
    assert found.peak_bytes == 2 * 2 * 5
    assert found.timeline is not None and [len(lane.spans) for lane in found.timeline.lanes] == [30, 30]


def test_what_is_done_takes_no_time() -> None:
    a = step("a")
    b = step("b", a)
    seconds = times({a: 10, b: 4})
    assert simulate([a, b], seconds, [a.fingerprint], 1).seconds == 4
    nothing = simulate([a, b], seconds, [a.fingerprint, b.fingerprint], 1)
    assert (nothing.seconds, nothing.idle_share, nothing.critical_path, nothing.critical_s) == (0, 0, (), 0)


def test_more_gpus_are_never_slower_here_and_never_beat_the_longest_chain(llama: Experiment) -> None:
    steps = build_grid(llama)
    # Longer for larger sets, as if an example took a second.
    sizes = ("size", "starting_size")
    seconds = times({one: 10.0 + sum(one.coordinates.get(size) or 0 for size in sizes) for one in steps})
    schedules = [simulate(steps, seconds, [], number) for number in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)]
    for fewer, more in itertools.pairwise(schedules):
        assert more.seconds <= fewer.seconds
    assert schedules[-1].seconds == schedules[-1].critical_s < schedules[0].seconds / 4


def test_seeds_are_whole_earlier_one_after_another_and_a_gpu_is_idle_no_longer(llama: Experiment) -> None:
    steps = build_grid(dataclasses.replace(llama, seeds=(0, 1, 2, 3), generators=2))
    seconds = times(dict.fromkeys(steps, 10.0))
    at_once, in_turn = simulate(steps, seconds, [], 1), simulate(steps, seconds, [], 1, seeds_at_once=1)
    ends, ends_at_once = list(in_turn.seed_ends.values()), sorted(at_once.seed_ends.values())
    assert ends == sorted(ends) and ends[:3] < ends_at_once[:3]
    assert all(mine <= theirs for mine, theirs in zip(ends, ends_at_once, strict=True))
    assert max(ends) == in_turn.seconds == at_once.seconds and in_turn.idle_share == at_once.idle_share
    built = [one.fingerprint for one in steps if one.coordinates.get("seed") != 3]
    assert simulate(steps, seconds, built, 1).seed_ends.keys() == {3}, "the others were whole before"


def test_a_step_that_is_too_large_is_named() -> None:
    large = step("l", resources=Resources(num_workers=4, gpus_per_worker=1))
    with pytest.raises(UserError, match=r"starting_set/l asks for 4 GPUs and num_gpus=2"):
        simulate([large], times({large: 1}), [], 2)


def test_those_trained_at_once_slow_each_other_and_one_that_ends_lets_the_others_on() -> None:
    a, b = (model(slug, method="lora") for slug in "ab")
    # Alone, b's 10 s are 6 of its own and 4 that a pass takes whoever is in it; a is half as long.
    found = with_base([a, b], {a: StepTime(7, 2, 3), b: StepTime(7, 4, 6)})
    # Up after 7; for a's 5 s both go at 0.4 + 0.6 + 0.6 = 1.6 times the time, 8 s; then b alone for the other half, 5 s.
    assert found.timeline is not None
    (lane,) = found.timeline.lanes
    assert [(span.slug, span.began, round(span.ended, 6)) for span in lane.spans] == [("a", 7, 15), ("b", 7, 20)]
    # As `lane_seconds` has it: the start, once the longest of what is taken once, and each one's own.
    assert found.seconds == pytest.approx(7 + 4 + 3 + 6)
    assert found.start_share == pytest.approx(7 / 20)


def test_a_step_joins_a_lane_while_others_are_under_way() -> None:
    early = step("e", resources=Resources())
    a, b = (model(slug, method="lora", max_group=3) for slug in "ab")
    c = model("c", early, method="lora", max_group=3)
    found = with_base([early, a, b, c], {early: StepTime(0, 0, 4), **dict.fromkeys((a, b, c), StepTime(0, 0, 10))})
    assert found.timeline is not None
    ends = {span.slug: (span.began, span.ended) for span in found.timeline.spans}
    # a and b have done 2 s each when c comes at 4; then each second takes three, until both end at 4 + 8 x 3; c has 2 s left.
    assert ends == {"e": (0, 4), "a": (0, 28), "b": (0, 28), "c": (4, 30)}


def test_room_is_taken_when_it_is_there_whatever_else_was_expected_then() -> None:
    early = step("e", resources=Resources())
    x, y, other, late = model("x", method="lora"), model("y", early, method="lora"), step("a"), step("c")
    seconds = {BASE: 0.0, early: 4.0, other: 10.0, x: 10.0, y: 10.0, late: 5.0}
    found = simulate([BASE, other, early, x, y, late], times(seconds), [BASE.fingerprint], 2)
    assert found.timeline is not None
    # x would have ended with a, at 10, if y had not joined it at 4.
    spans = {span.slug: (span.began, span.ended) for span in found.timeline.spans}
    assert (spans["a"], spans["c"], spans["x"]) == ((0, 10), (10, 15), (0, 16))


def test_lanes_on_parts_of_a_gpu_are_slowed_by_what_they_ask_for_beyond_it() -> None:
    half, quarter = Resources(gpus_per_worker=0.5), Resources(gpus_per_worker=0.25)
    a, b, c = step("a", resources=half), step("b", resources=quarter), step("c", resources=quarter)
    loads = {a: StepTime(own_s=10, load=0.8), b: StepTime(own_s=4, load=0.4), c: StepTime(setup_s=9, own_s=2, load=0.3)}
    found = simulate([a, b, c], {one.fingerprint: time for one, time in loads.items()}, [], 1)
    assert found.timeline is not None
    ends = {span.slug: round(span.ended, 6) for span in found.timeline.spans}
    # 1.2 GPUs of work for b's 4 s, which take 4.8; a goes on alone until c is up at 9, with 10 - 4 - 4.2 = 1.8 s left, which
    # then take 1.1 times as long, and c's other 0.2 s as long as alone.
    assert ends == {"b": 4.8, "a": 10.98, "c": 11.18}
    # What is held while it works or starts.
    assert found.gpu_seconds == pytest.approx(by_step({a: 5.49, b: 1.2, c: 2.795}))
    # What others hold whole is not theirs, nor slowed by them.
    whole = step("w")
    times = {one.fingerprint: time for one, time in (loads | {whole: StepTime(own_s=100)}).items()}
    beside = simulate([whole, a, b, c], times, [], 2)
    assert beside.timeline is not None
    assert ends | {"w": 100} == {span.slug: round(span.ended, 6) for span in beside.timeline.spans}
    # On two GPUs there is room for all.
    assert simulate([a, b, c], times, [], 2).seconds == 11


def test_those_in_a_lane_wait_for_what_begins_and_there_are_as_many_as_it_was_opened_for() -> None:
    cells = [model(slug, method="lora", max_group=9) for slug in "abcd"]
    half = [dataclasses.replace(one, resources=Resources(gpus_per_worker=0.5, max_group=9)) for one in cells]
    short, long = StepTime(own_s=1, begin_s=7, load=0.5), StepTime(own_s=3, begin_s=7, load=0.5)
    given = dict(zip(half, (short, long, short, long), strict=True))
    found = with_base(half, given)
    assert found.timeline is not None
    # Two lanes fit on the GPU: each was opened for two of the four. All begin for 7 s, then two go at half of their pace.
    assert [[(span.slug, round(span.ended, 6)) for span in lane.spans] for lane in found.timeline.lanes] == [
        [("a", 9), ("b", 11)],
        [("c", 9), ("d", 11)],
    ]
    # Where another step has the other half, the one lane has two at once all the same: c begins as a ends, d as c does.
    other = step("w", resources=Resources(gpus_per_worker=0.5))
    crowded = with_base([other, *half], {other: StepTime(own_s=100, load=0), **given})
    assert crowded.timeline is not None
    ends = {span.slug: round(span.ended, 6) for span in crowded.timeline.spans}
    assert ends == {"a": 9, "c": 9 + 7 + 2, "b": 18 + 7 + 2, "d": 27 + 2, "w": 100}


def test_a_lane_waits_for_what_is_near_and_else_ends_and_another_is_opened_ahead() -> None:
    assert (LINGER_S, NEAR_S, OVERDUE_S) == (tune.LINGER_S, tune.NEAR_S, tune.OVERDUE_S)
    for wait_s, opened in ((NEAR_S - 1, [0]), (NEAR_S + LINGER_S + 1, [0, 15 + LINGER_S + 1])):
        early, a = step("e", resources=Resources()), model("a")
        b = model("b", early)
        # a is built after 15 s, and wait_s later what b lacks.
        found = with_base([early, a, b], {early: StepTime(0, 0, 15 + wait_s), **dict.fromkeys((a, b), StepTime(5, 0, 10))})
        assert found.timeline is not None
        assert [lane.opened for lane in found.timeline.lanes if "task_model" in lane.stages] == opened
        # In either case workers are up when b is ready.
        assert found.seconds == 15 + wait_s + 10
    # What waits ahead of time holds its GPU, and does nothing once it is up: of 176 s 20 are work, and 10 starts.
    assert found.idle_share == pytest.approx(1 - 30 / 176) and found.start_share == pytest.approx(10 / 176)


def test_the_last_chain_adds_up_to_the_wall_time() -> None:
    a, b = step("a"), step("b")
    c, d = step("c", a), step("d", a)
    found = simulate([a, b, c, d], times({a: 10, b: 4, c: 5, d: 6}), [], 1)
    assert found.timeline is not None
    chain = last_chain(found.timeline)
    assert chain[-1].ended == found.seconds == 25
    waited_s = sum(span.room_s + span.turn_s for span in chain)
    assert waited_s + sum(span.ended - span.began for span in chain) == found.seconds
    # On three GPUs nothing waits: the chain is the critical path.
    found = simulate([a, b, c, d], times({a: 10, b: 4, c: 5, d: 6}), [], 3)
    assert found.timeline is not None
    assert [span.slug for span in last_chain(found.timeline)] == [one.slug for one in found.critical_path] == ["a", "d"]


def on(num_gpus: float, seconds: dict[Step, StepTime], seeds_at_once: int | None = None) -> Schedule:
    """Played through with the base model there."""
    given = {BASE.fingerprint: StepTime()} | by_kind(seconds)
    return simulate([BASE, *seconds], given, [BASE.fingerprint], num_gpus, seeds_at_once=seeds_at_once)


def by_kind(seconds: dict[Step, StepTime]) -> dict[str, StepTime]:
    return {one.fingerprint: time for one, time in seconds.items()}


def test_a_step_does_not_wait_for_a_lane_that_is_at_a_long_one() -> None:
    long, short = model("a"), model("b")
    # The short one is got to in no time, if the first took as long as it: after two starts it has a lane of its own.
    found = on(2, {long: StepTime(10, 0, 1_000), short: StepTime(10, 0, 1)})
    assert found.timeline is not None and len(found.timeline.lanes) == 2
    assert max(span.ended for span in found.timeline.spans if span.name == short.name) <= 31


def test_lanes_that_start_side_by_side_are_not_waited_for() -> None:
    found = on(4, {model(slug): StepTime(40, 0, 5) for slug in "abcd"})
    assert found.seconds == 45


def test_whatever_steps_take_each_is_begun_soon_where_there_is_room() -> None:
    for seed in range(60):
        draw = random.Random(seed)
        setup_s, num_gpus = draw.choice([5, 20, 40]), draw.choice([2, 3, 8])
        seconds: dict[Step, StepTime] = {}
        for place in range(draw.randint(2, 20)):
            inputs = draw.sample(list(seconds), min(len(seconds), draw.choice([0, 0, 1, 2])))
            one = dataclasses.replace(model(chr(97 + place), *inputs), coordinates={"seed": place // 4})
            seconds[one] = StepTime(setup_s, 0, draw.lognormvariate(2, 2.5))
        # Also where later seeds have only the room that earlier ones leave.
        found = on(num_gpus, seconds, seed % 4 or None)
        assert found.timeline is not None and {span.name for span in found.timeline.spans} == {one.name for one in seconds}
        for span in found.timeline.spans:
            # From when there was room: a lane fewer than GPUs, all the time until it was given to one.
            num_lanes = [
                sum(lane.opened <= at < max(one.ended for one in lane.spans) for lane in found.timeline.lanes)
                for at in (span.ready + 1e-3, (span.ready + span.given) / 2, span.given - 1e-3)
            ]
            assert span.given - span.ready <= 4 * setup_s or max(num_lanes) == num_gpus, (seed, span)

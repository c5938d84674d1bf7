"""The wall time of a step graph on so many GPUs."""

import dataclasses
import itertools

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.graph.step import Step
from sweep.plan.schedule import simulate
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid

GPU = Resources(gpus_per_worker=1)


def step(slug: str, *inputs: Step, resources: Resources = GPU) -> Step:
    config = TrainingSetConfig("starting", size=ord(slug), seed=0)
    return Step("starting_set", slug, config, {one.slug: one for one in inputs}, resources=resources)


def by_step(values: dict[Step, float]) -> dict[str, float]:
    return {one.fingerprint: value for one, value in values.items()}


def test_three_steps_on_two_gpus() -> None:
    a, b = step("a"), step("b")
    c = step("c", a)
    # 0 to 10: a, and beside it b until 4; 10 to 15: c. 19 of 30 GPU-seconds are used.
    found = simulate([a, b, c], by_step({a: 10, b: 4, c: 5}), [], 2, checkpoint_bytes=by_step({a: 7, b: 2, c: 8}))
    assert found.seconds == 15
    assert found.idle_share == pytest.approx(11 / 30)
    assert found.critical_path == (a, c) and found.critical_s == 15
    assert found.peak_bytes == 9


def test_on_one_gpu_steps_follow_each_other() -> None:
    a, b = step("a"), step("b")
    c = step("c", a)
    found = simulate([a, b, c], by_step({a: 10, b: 4, c: 5}), [], 1, checkpoint_bytes=by_step({a: 7, b: 2, c: 8}))
    assert (found.seconds, found.idle_share, found.critical_s, found.peak_bytes) == (19, 0, 15, 8)


def test_steps_without_a_gpu_keep_none_from_the_others() -> None:
    a, b = step("a", resources=Resources()), step("b")
    c = step("c", a)
    # b runs beside a; c waits for a.
    found = simulate([a, b, c], by_step({a: 3, b: 4, c: 5}), [], 1)
    assert found.seconds == 9 and found.idle_share == 0
    assert simulate([a, c], by_step({a: 3, c: 5}), [], 1).idle_share == pytest.approx(3 / 8)


def test_shares_of_a_gpu_run_together() -> None:
    third = Resources(gpus_per_worker=0.3333)
    steps = [step(slug, resources=third) for slug in "abcd"]
    assert simulate(steps, dict.fromkeys((one.fingerprint for one in steps), 6.0), [], 1).seconds == 12


def test_a_lane_starts_once_and_its_steps_take_as_long_as_they_are_said_to(llama: Experiment) -> None:
    resources = {**llama.resources, "evaluation": Resources(gpus_per_worker=1, max_group=24)}
    steps = build_grid(dataclasses.replace(llama, resources=resources))
    evaluations = {one.fingerprint for one in steps if one.stage == "evaluation"}
    done = [one.fingerprint for one in steps if one.fingerprint not in evaluations]
    seconds = dict.fromkeys((one.fingerprint for one in steps), 5.0)
    # 60 on two GPUs: a start on each, and 30 steps one after another, of which the next one is always there.
    found = simulate(steps, seconds, done, 2, group_s=lambda members: (10 if members else 0) + len(members))
    assert (found.seconds, found.idle_share) == (10 + 30, 0)
    found = simulate(steps, seconds, done, 2, checkpoint_bytes=seconds)
    assert (found.seconds, found.peak_bytes) == (30 * 5, 2 * 2 * 5)


def test_what_is_done_takes_no_time() -> None:
    a = step("a")
    b = step("b", a)
    seconds = by_step({a: 10, b: 4})
    assert simulate([a, b], seconds, [a.fingerprint], 1).seconds == 4
    nothing = simulate([a, b], seconds, [a.fingerprint, b.fingerprint], 1)
    assert (nothing.seconds, nothing.idle_share, nothing.critical_path, nothing.critical_s) == (0, 0, (), 0)


def test_more_gpus_are_never_slower_here_and_never_beat_the_longest_chain(llama: Experiment) -> None:
    steps = build_grid(llama)
    # Longer for larger sets, as if an example took a second.
    sizes = ("size", "starting_size")
    seconds = {one.fingerprint: 10.0 + sum(one.coordinates.get(size) or 0 for size in sizes) for one in steps}
    schedules = [simulate(steps, seconds, [], number) for number in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)]
    for fewer, more in itertools.pairwise(schedules):
        assert more.seconds <= fewer.seconds
    assert schedules[-1].seconds == schedules[-1].critical_s < schedules[0].seconds / 4


def test_a_step_that_is_too_large_is_named() -> None:
    large = step("l", resources=Resources(num_workers=4, gpus_per_worker=1))
    with pytest.raises(UserError, match=r"starting_set/l asks for 4 GPUs and num_gpus=2"):
        simulate([large], by_step({large: 1}), [], 2)

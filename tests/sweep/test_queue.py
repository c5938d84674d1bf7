"""What runs next: pure bookkeeping, no Ray."""

from itertools import pairwise

import pytest

from pipelines.compute import Resources
from pipelines.errors import UserError
from pipelines.training_set import TrainingSetConfig
from sweep.experiment import Experiment
from sweep.grid import Step, build_grid
from sweep.scheduler import MAX_OVERTAKES, Capacity, StepQueue, check_resources


def step(slug: str, *inputs: Step, cpus: float = 1, gpus: float = 0) -> Step:
    resources = Resources(cpus_per_worker=cpus, gpus_per_worker=gpus)
    config = TrainingSetConfig("starting", size=len(slug), seed=sum(map(ord, slug)))
    return Step("starting_set", slug, config, {one.slug: one for one in inputs}, resources=resources)


def names(queue: StepQueue) -> list[str]:
    found = []
    while one := queue.next():
        found.append(one.slug)
    return found


def test_a_step_waits_for_all_its_inputs() -> None:
    a, b = step("a"), step("b")
    c = step("c", a, b)
    queue = StepQueue([a, b, c], [], Capacity(9, 0))
    assert names(queue) == ["a", "b"]
    queue.succeeded(a.fingerprint)
    assert names(queue) == []
    queue.succeeded(b.fingerprint)
    assert names(queue) == ["c"]
    assert queue.is_exhausted


def test_the_longest_path_goes_first() -> None:
    lone, long1 = step("lone"), step("long1")
    long2 = step("long2", long1)
    steps = [lone, long1, long2, step("long3", long2)]
    assert names(StepQueue(steps, [], Capacity(9, 0))) == ["long1", "lone"]


def test_a_model_is_evaluated_before_the_next_is_trained(experiment: Experiment) -> None:
    steps = build_grid(experiment)
    done = [one.fingerprint for one in steps if one.stage not in ("task_model", "evaluation")]
    queue = StepQueue(steps, done, Capacity(1, 0))
    order = []
    while one := queue.next():
        order.append(one)
        queue.succeeded(one.fingerprint)
    for model, evaluation in pairwise(order):
        if model.stage == "task_model":
            assert model in evaluation.inputs.values()


def test_the_generator_goes_before_starting_points(experiment: Experiment) -> None:
    steps = build_grid(experiment)
    done = [one.fingerprint for one in steps if one.stage in ("sources", "base_model")]
    assert StepQueue(steps, done, Capacity(1, 0)).next().stage == "generator"  # type: ignore[union-attr]


def test_running_steps_never_need_more_than_there_is() -> None:
    steps = [step(f"s{i}", cpus=cpus) for i, cpus in enumerate((2, 1, 1, 2, 1))]
    queue = StepQueue(steps, [], Capacity(2, 0))
    order = []
    while not (queue.is_exhausted and not queue.running):
        names(queue)
        running = list(queue.running.values())
        assert 0 < sum(one.resources.total_cpus for one in running) <= 2
        order.append({one.slug for one in running})
        queue.succeeded(running[0].fingerprint)
    assert {name for names_ in order for name in names_} == {f"s{i}" for i in range(5)}


def test_small_steps_use_what_a_large_one_must_wait_for_but_not_for_ever() -> None:
    root = step("root")
    large = step("large", root, cpus=2)
    small = [step(f"small{i}") for i in range(20)]
    queue = StepQueue([root, large, *small, step("last", large)], [], Capacity(2, 0))
    assert names(queue) == ["root", "small0"]
    queue.succeeded(root.fingerprint)
    started = len(names(queue))
    while "large" not in (running := {one.slug: one for one in queue.running.values()}):
        queue.succeeded(next(iter(running.values())).fingerprint)
        started += len([name for name in names(queue) if name != "large"])
    assert started == MAX_OVERTAKES


def test_a_failure_blocks_what_depends_on_it_and_nothing_else() -> None:
    a, b = step("a"), step("b")
    c = step("c", a)
    d = step("d", c, b)
    queue = StepQueue([a, b, c, d], [], Capacity(9, 0))
    names(queue)
    assert {one.slug for one in queue.failed(a.fingerprint)} == {"c", "d"}
    queue.succeeded(b.fingerprint)
    assert queue.is_exhausted


def test_a_step_that_is_put_back_keeps_its_place() -> None:
    a, b, c = step("a"), step("b"), step("c")
    queue = StepQueue([a, b, c], [], Capacity(1, 0))
    assert names(queue) == ["a"]
    queue.again(a.fingerprint)
    assert names(queue) == ["a"]
    queue.succeeded(a.fingerprint)
    assert names(queue) == ["b"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(gpus_per_worker=1), "needs 1 GPU; this machine has none.*device=cpu.*--address"),
        (Resources(num_workers=5), "needs 5 CPU; this run may use 4"),
        (Resources(cpus_per_worker=3), "no machine"),
        (Resources(num_workers=2, cpus_per_worker=2), ""),
    ],
)
def test_what_can_never_run_is_refused_before_anything_starts(resources: Resources, message: str) -> None:
    one = Step("generator", "generator", TrainingSetConfig("starting", 1, 0), resources=resources)
    capacity = Capacity(4, 0, ({"CPU": 2}, {"CPU": 2}))
    if message:
        with pytest.raises(UserError, match=message):
            check_resources([one], capacity)
    else:
        check_resources([one], capacity)

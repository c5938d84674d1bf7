"""The queue says which step runs next: pure bookkeeping, no Ray."""

from itertools import pairwise

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig
from pipelines.resources import Resources
from sweep.graph.queue import MAX_OVERTAKES, Capacity, StepQueue, check_resources
from sweep.graph.step import Step
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid


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


def test_a_step_without_room_is_found_among_those_that_run_and_else_among_the_ready() -> None:
    large, gpu = step("large", cpus=2), step("gpu", gpus=1)
    queue = StepQueue([large, gpu], [], Capacity(4, 1))
    assert queue.without_room(2, 1) is None
    assert queue.without_room(2, 0) is gpu
    assert names(queue) == ["large", "gpu"]
    assert queue.without_room(3, 1) is None
    assert queue.without_room(2, 1) is gpu and queue.without_room(1, 1) is large


def grouped(num: int, capacity: Capacity, *, most: int, sizes: tuple[int, ...] = (100,)) -> list[list[int]]:
    """Sizes of the cells in each group that is given out, one after another, of `num` cells over one base model."""
    base = step("base")
    resources = Resources(gpus_per_worker=1, max_group=most)
    recipe = FinetuneConfig()
    cells = [
        Step(
            "task_model",
            f"cell{i}",
            TaskModelConfig(recipe, seed=i),
            {"base_model": base},
            {"size": sizes[i % len(sizes)]},
            resources,
        )
        for i in range(num)
    ]
    queue = StepQueue([base, *cells], [base.fingerprint], capacity)
    given = []
    while not (queue.is_exhausted and not queue.running):
        while group := queue.next_group():
            given.append(group)
        for one in list(queue.running.values()):
            queue.succeeded(one.fingerprint)
    assert sorted(one.slug for group in given for one in group) == sorted(one.slug for one in cells)
    return [[one.coordinates["size"] for one in group] for group in given]


def test_groups_are_full_and_of_one_size_where_one_gpu_does_all() -> None:
    assert grouped(12, Capacity(99, 1), most=4, sizes=(30, 20, 10)) == [[30] * 4, [20] * 4, [10] * 4]
    assert [len(group) for group in grouped(7, Capacity(99, 1), most=3)] == [3, 3, 1]


def test_groups_leave_work_for_every_gpu() -> None:
    assert [len(group) for group in grouped(12, Capacity(99, 8), most=24)] == [2, 2, 2, 2, 1, 1, 1, 1]


def test_without_leave_there_are_no_groups() -> None:
    assert [len(group) for group in grouped(3, Capacity(99, 1), most=1)] == [1, 1, 1]


def test_other_base_models_and_untrained_ones_stay_apart() -> None:
    first, second = step("first"), step("second")
    resources = Resources(gpus_per_worker=1, max_group=9)

    def cell(seed: int, base: Step, config: type = TaskModelConfig) -> Step:
        made = UntrainedConfig(seed) if config is UntrainedConfig else TaskModelConfig(FinetuneConfig(), seed)
        return Step("starting_point", f"cell{seed}{base.slug}", made, {"base_model": base}, {}, resources)

    cells = [cell(0, first), cell(1, second), cell(2, first), cell(3, first, UntrainedConfig), cell(4, second)]
    queue = StepQueue([first, second, *cells], [first.fingerprint, second.fingerprint], Capacity(9, 1))
    found = []
    while group := queue.next_group():
        found.append([one.slug for one in group])
        for one in group:
            queue.succeeded(one.fingerprint)
    assert found == [["cell0first", "cell2first"], ["cell1second", "cell4second"], ["cell3first"]]


def test_a_member_that_is_put_back_alone_comes_alone() -> None:
    base = step("base")
    resources = Resources(gpus_per_worker=1, max_group=9)
    cells = [Step("task_model", f"c{i}", TaskModelConfig(FinetuneConfig(), i), {"b": base, "base_model": base}, {}, resources)
             for i in range(3)]  # fmt: skip
    queue = StepQueue([base, *cells], [base.fingerprint], Capacity(9, 1))
    assert len(queue.next_group()) == 3
    assert queue.next_group() == []
    for one in cells:
        queue.again(one.fingerprint, alone=True)
    assert [one.slug for one in queue.next_group()] == ["c0"]
    assert queue.next_group() == []
    assert len(queue.failed(cells[0].fingerprint)) == 0
    assert [one.slug for one in queue.next_group()] == ["c1"]


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


def test_what_is_taken_back_is_built_before_what_waits_for_it() -> None:
    a, b = step("a"), step("b")
    c, d = step("c", a, b), step("d", a)
    e = step("e", c)
    queue = StepQueue([a, b, c, d, e], [a.fingerprint, b.fingerprint], Capacity(9, 0))
    assert queue.next() is c
    # c fails on its input while d is ready and e waits.
    queue.rebuild([a.fingerprint])
    queue.again(c.fingerprint)
    assert names(queue) == ["a"]
    queue.succeeded(a.fingerprint)
    assert sorted(names(queue)) == ["c", "d"]
    # Both on a path, whichever is named first.
    for one in (c, d):
        queue.succeeded(one.fingerprint)
    queue.rebuild([c.fingerprint, a.fingerprint])
    assert names(queue) == ["a"]
    queue.rebuild([a.fingerprint])  # on its way by now
    queue.succeeded(a.fingerprint)
    assert names(queue) == ["c"]
    queue.succeeded(c.fingerprint)
    assert names(queue) == ["e"] and queue.is_exhausted


def test_a_step_is_possible_while_none_of_its_inputs_is_given_up() -> None:
    a = step("a")
    b, c = step("b", a), step("c", a)
    queue = StepQueue([a, b, c], [a.fingerprint], Capacity(1, 0))
    assert queue.next() is b and queue.is_possible(b)
    queue.rebuild([a.fingerprint])
    assert queue.is_possible(b) and queue.next() is None
    queue.succeeded(b.fingerprint)
    assert queue.next() is a and queue.is_possible(b)
    assert queue.failed(a.fingerprint) == [c]
    assert not queue.is_possible(b)

"""The queue says which step runs next: pure bookkeeping, no Ray."""

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig
from pipelines.generate.config import GenerationConfig
from pipelines.resources import Resources
from sweep.graph.queue import MAX_OVERTAKES, Capacity, Lane, StepQueue, check_resources, starts_with
from sweep.graph.stages import REGISTRY
from sweep.graph.step import Step
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid


def step(slug: str, *inputs: Step, cpus: float = 1, gpus: float = 0) -> Step:
    resources = Resources(cpus_per_worker=cpus, gpus_per_worker=gpus)
    config = TrainingSetConfig("starting", size=len(slug), seed=sum(map(ord, slug)))
    return Step("starting_set", slug, config, {one.slug: one for one in inputs}, resources=resources)


def names(queue: StepQueue) -> list[str]:
    """The steps of all the lanes that can be opened when those that have none have ended."""
    found = []
    for lane in [lane for lane in queue.lanes if not lane.steps]:
        queue.close(lane)
    while lane := queue.open():
        found += [one.slug for one in lane.steps.values()]
    return found


def opened(queue: StepQueue) -> Lane:
    lane = queue.open()
    assert lane is not None
    return lane


def first(queue: StepQueue) -> Step:
    """The step of the next lane, when those that have none have ended."""
    for lane in [lane for lane in queue.lanes if not lane.steps]:
        queue.close(lane)
    (one,) = opened(queue).steps.values()
    return one


def slugs(steps: Iterable[Step]) -> list[str]:
    return [one.slug for one in steps]


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
    while not queue.is_exhausted:
        order.append(first(queue))
        queue.succeeded(order[-1].fingerprint)
    for model, evaluation in pairwise(order):
        if model.stage == "task_model":
            assert model in evaluation.inputs.values()


def test_the_generator_goes_before_starting_points(experiment: Experiment) -> None:
    steps = build_grid(experiment)
    done = [one.fingerprint for one in steps if one.stage in ("sources", "base_model")]
    assert first(StepQueue(steps, done, Capacity(1, 0))).stage == "generator"


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


def test_a_step_that_is_put_back_with_all_waits_until_nothing_runs_and_nothing_starts_beside_it() -> None:
    a, b, c = step("a"), step("b"), step("c")
    queue = StepQueue([a, b, c], [], Capacity(2, 1))
    assert names(queue) == ["a", "b"]
    queue.again(a.fingerprint, with_all=True)
    assert queue.has_all(a) and not queue.has_all(b)
    # One that is smaller goes before it, as ever a few times.
    assert names(queue) == ["c"]
    queue.succeeded(b.fingerprint)
    assert names(queue) == []
    queue.succeeded(c.fingerprint)
    assert names(queue) == ["a"]
    queue.again(a.fingerprint)
    assert names(queue) == ["a"] and queue.has_all(a), "from now on"


def test_a_step_that_is_put_back_with_whole_gpus_waits_for_one_and_leaves_others_the_rest() -> None:
    a, b, c = (step(name, gpus=0.3) for name in "abc")
    queue = StepQueue([a, b, c], [], Capacity(3, 1))
    assert names(queue) == ["a", "b", "c"]
    queue.again(a.fingerprint, whole_gpus=True)
    assert names(queue) == []
    queue.succeeded(b.fingerprint)
    assert names(queue) == []
    queue.succeeded(c.fingerprint)
    assert names(queue) == ["a"]
    assert not queue.has_all(a), "CPUs are left to others"
    queue.again(a.fingerprint)
    (again,) = queue.waiting.values()
    assert again.resources.gpus_per_worker == 1, "from now on"


@pytest.mark.parametrize("given", [{"with_all": True}, {"whole_gpus": True}], ids=str)
def test_a_step_with_more_than_its_own_joins_no_lane_of_its_kind(given: dict[str, bool]) -> None:
    base, start, (cell, *more) = start_and_cells(3)
    queue = StepQueue([base, start, cell, *more], [base.fingerprint, start.fingerprint], Capacity(9, 1))
    lane = opened(queue)
    assert slugs(lane.steps.values()) == ["cell0", "cell1"]
    queue.again(cell.fingerprint, **given)
    assert slugs(queue.join(lane)) == ["cell2"]
    queue.succeeded(more[0].fingerprint)
    queue.succeeded(more[1].fingerprint)
    assert queue.join(lane) == [] and not queue.may_wait(lane)
    assert names(queue) == ["cell0"]


def test_a_step_without_room_is_found_among_those_that_run_and_else_among_the_ready() -> None:
    large, gpu = step("large", cpus=2), step("gpu", gpus=1)
    queue = StepQueue([large, gpu], [], Capacity(4, 1))
    assert queue.without_room(2, 1) is None
    assert queue.without_room(2, 0) is gpu
    assert names(queue) == ["large", "gpu"]
    assert queue.without_room(3, 1) is None
    assert queue.without_room(2, 1) is gpu and queue.without_room(1, 1) is large


def cells(num: int, *, most: int = 9, sizes: tuple[int, ...] = (100,), method: str = "lora", gpus: float = 1) -> list[Step]:
    """A base model, and `num` cells over it."""
    base = step("base")
    resources = Resources(gpus_per_worker=gpus, max_group=most)
    recipe = FinetuneConfig(method=method)
    made = [
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
    return [base, *made]


def sizes_given(num: int, capacity: Capacity, *, most: int, sizes: tuple[int, ...] = (100,)) -> list[list[list[int]]]:
    """Sizes of the cells that each lane has at once, from its start to its end."""
    steps = cells(num, most=most, sizes=sizes)
    queue = StepQueue(steps, [steps[0].fingerprint], capacity)
    given: dict[Lane, list[list[int]]] = {}
    while not queue.is_exhausted or queue.running:
        while lane := queue.open():
            given[lane] = [[one.coordinates["size"] for one in lane.steps.values()]]
        for lane in list(queue.lanes):
            for one in list(lane.steps.values()):
                queue.succeeded(one.fingerprint)
            if joined := queue.join(lane):
                given[lane].append([one.coordinates["size"] for one in joined])
            else:
                queue.close(lane)
    assert sum(map(len, itertools.chain(*given.values()))) == num
    return list(given.values())


def test_a_lane_is_full_of_one_size_and_takes_on_all_where_one_gpu_does_all() -> None:
    assert sizes_given(12, Capacity(99, 1), most=4, sizes=(30, 20, 10)) == [[[30] * 4, [20, 10, 20, 10], [20, 10, 20, 10]]]
    assert [[len(had) for had in lane] for lane in sizes_given(7, Capacity(99, 1), most=3)] == [[3, 3, 1]]


def test_lanes_leave_work_for_every_gpu() -> None:
    assert [[len(had) for had in lane] for lane in sizes_given(12, Capacity(99, 8), most=24)] == [[2]] * 4 + [[1]] * 4


def test_lanes_that_have_only_their_part_have_all_sizes() -> None:
    assert sizes_given(12, Capacity(99, 4), most=24, sizes=(30, 20, 10)) == [[[30, 20, 10]]] * 4


def test_what_joins_a_full_lane_is_asked_at_the_same_cost_however_many_are_ready() -> None:
    def num_calls(num_cells: int) -> int:
        base, *made = cells(num_cells, most=9)
        queue = StepQueue([base, *made], [base.fingerprint], Capacity(99, 1))
        lane, calls = opened(queue), Counter[str]()
        assert len(lane.steps) == 9 and len(queue.ready) == num_cells - 9
        sys.setprofile(lambda frame, event, argument: calls.update([event]))
        queue.join(lane)
        sys.setprofile(None)
        return calls["call"] + calls["c_call"]

    assert num_calls(300) == num_calls(30)


def test_without_leave_each_step_has_a_lane_of_its_own() -> None:
    assert sizes_given(3, Capacity(99, 1), most=1) == [[[100]]] * 3


def test_what_is_trained_one_after_another_waits_in_no_lane_but_for_the_next_one() -> None:
    steps = cells(5, method="full")
    queue = StepQueue(steps, [steps[0].fingerprint], Capacity(99, 2))
    left, right = opened(queue), opened(queue)
    assert (slugs(left.steps.values()), slugs(right.steps.values())) == (["cell0", "cell1"], ["cell2", "cell3"])
    assert queue.open() is None and queue.join(left) == []
    queue.succeeded(steps[3].fingerprint)
    # Whichever is asked, the one that has fewer goes first.
    assert queue.join(left) == [] and slugs(queue.join(right)) == ["cell4"]
    assert [lane.expected for lane in (left, right)] == [3, 3]


def test_a_cell_that_becomes_ready_joins_a_lane_of_its_kind_unless_it_has_room_of_its_own() -> None:
    base, one, two = cells(2)
    late = replace(two, inputs={**two.inputs, "training_set": (drawn := step("drawn"))})
    queue = StepQueue([base, drawn, one, late], [base.fingerprint], Capacity(99, 2))
    assert names(queue) == ["drawn", "cell0"]
    lane = queue.lanes[1]
    assert lane.expected == 1, "one on each GPU"
    queue.succeeded(drawn.fingerprint)
    assert queue.join(lane) == [] and names(queue) == ["cell1"]
    queue = StepQueue([base, drawn, one, late], [base.fingerprint], Capacity(99, 1))
    assert names(queue) == ["drawn", "cell0"]
    (_, lane) = queue.lanes
    assert queue.join(lane) == []
    queue.succeeded(drawn.fingerprint)
    assert slugs(queue.join(lane)) == ["cell1"] and queue.is_exhausted


def test_a_lane_takes_on_no_more_while_a_step_that_more_depends_on_waits_for_room() -> None:
    base, *some = cells(4, most=2)
    root = step("root")
    urgent = step("urgent", root, gpus=1)
    steps = [base, root, *some, urgent, step("then", urgent), step("last", step("then", urgent))]
    queue = StepQueue(steps, [base.fingerprint, root.fingerprint], Capacity(99, 1))
    assert names(queue) == ["urgent"], "the longest path first"
    queue = StepQueue(steps, [base.fingerprint], Capacity(99, 1))
    assert names(queue) == ["root", "cell0", "cell1"]
    lane = queue.lanes[1]
    queue.succeeded(some[0].fingerprint)
    assert slugs(queue.join(lane)) == ["cell2"]
    queue.succeeded(root.fingerprint)
    for one in (some[1], some[2]):
        queue.succeeded(one.fingerprint)
    assert queue.join(lane) == [] and not queue.may_wait(lane) and queue.open() is None
    queue.close(lane)
    assert names(queue) == ["urgent"]


def test_a_lane_that_is_up_goes_on_before_what_is_as_urgent_until_that_is_overdue() -> None:
    base, *some = cells(4, most=2)
    other = step("other", gpus=1)
    queue = StepQueue([base, *some[:1], other, *some[1:]], [base.fingerprint], Capacity(99, 1))
    lane = opened(queue)
    queue.succeeded(some[0].fingerprint)
    assert queue.join(lane, lambda step: step is other) == []
    assert slugs(queue.join(lane, lambda step: step is some[3])) == ["cell2"], "its own kind does not wait for it"


def test_an_idle_lane_waits_only_for_what_is_about_to_be_ready_and_in_nobody_s_way() -> None:
    base, one, two = cells(2)
    root, other = step("root"), step("other", gpus=1)
    drawn, drawn_later = step("drawn"), step("drawn_later", root)
    late, later = (replace(two, inputs={**two.inputs, "training_set": source}) for source in (drawn, drawn_later))

    def lane_after_its_step(*steps: Step) -> tuple[StepQueue, Lane]:
        queue = StepQueue([base, *steps], [base.fingerprint], Capacity(9, 1))
        lane = next(lane for lane in iter(queue.open, None) if one.fingerprint in lane.steps)
        queue.succeeded(one.fingerprint)
        assert queue.join(lane) == []
        return queue, lane

    queue, lane = lane_after_its_step(drawn, one, late)
    assert queue.may_wait(lane)
    queue.failed(drawn.fingerprint)
    assert not queue.may_wait(lane), "nothing of its kind is left"
    queue, lane = lane_after_its_step(root, drawn_later, one, later)
    assert not queue.may_wait(lane), "what it would wait for waits itself"
    queue, lane = lane_after_its_step(drawn, one, late, other)
    assert not queue.may_wait(lane), "another one waits for its GPU"


def chain(*, gpus: float = 1.0, generator_gpus: float = 1.0) -> tuple[Step, Step, Step, list[Step]]:
    """A base model, a generator and its pool; and two cells over the base that need neither, and two steps behind the pool."""
    base, *some = cells(2, gpus=0.5)
    trained = GeneratorConfig(FinetuneConfig())
    generator = Step("generator", "g", trained, {"base_model": base}, {}, Resources(gpus_per_worker=generator_gpus))
    pool = Step("synthetic_pool", "p", GenerationConfig(), {"generator": generator}, {}, Resources(gpus_per_worker=gpus))
    return base, generator, pool, [*some, set_ := step("set", pool), step("last", set_)]


def near(*steps: Step) -> Callable[[Step], bool]:
    return lambda step: step in steps


def test_a_pool_s_lane_is_opened_ahead_while_its_generator_is_trained_and_before_what_is_less_urgent() -> None:
    base, generator, pool, some = chain(gpus=0.5, generator_gpus=0.5)
    queue = StepQueue([base, generator, pool, *some], [base.fingerprint], Capacity(9, 1))
    assert queue.open_ahead(near(generator, base)) is None, "what is ready and as urgent comes first"
    lane = opened(queue)
    assert slugs(lane.steps.values()) == ["g"] and queue.open_ahead(near()) is None, "it takes long yet"
    ahead = queue.open_ahead(near(generator))
    assert ahead is not None and ahead.awaited is pool and not ahead.steps
    assert queue.open() is None and queue.open_ahead(near(generator)) is None
    # Cells wait for the room, and are less urgent; a generator that is not near any more, or given up, is waited for no longer.
    assert queue.may_wait(ahead, near(generator)) and not queue.may_wait(ahead, near())
    queue.succeeded(generator.fingerprint)
    assert slugs(queue.join(ahead)) == ["p"] and ahead.awaited is None
    queue.close(lane)
    assert slugs(opened(queue).steps.values())[0] == "cell0"


def test_one_gpu_is_the_generator_s_alone_and_whoever_is_as_urgent_gets_the_room_of_a_lane_ahead() -> None:
    base, generator, pool, some = chain()
    queue = StepQueue([base, generator, pool, *some], [base.fingerprint], Capacity(9, 1))
    assert slugs(opened(queue).steps.values()) == ["g"]
    assert queue.open_ahead(near(generator)) is None, "there is no room"
    queue = StepQueue([base, generator, pool, *some], [base.fingerprint], Capacity(9, 2))
    lane = opened(queue)
    ahead = queue.open_ahead(near(generator))
    assert ahead is not None and ahead.awaited is pool
    # A generator that is put back has the room that the pool would hold.
    queue.again(generator.fingerprint)
    queue.close(lane)
    assert slugs(opened(queue).steps.values()) == ["g"] and queue.may_wait(ahead, near(generator))
    queue.failed(generator.fingerprint)
    assert not queue.may_wait(ahead, near(generator)), "nothing is left to wait for"


def test_a_ready_step_that_waits_for_its_room_ends_a_lane_ahead_where_it_is_as_urgent() -> None:
    base, generator, pool, _ = chain(generator_gpus=0.5)
    root = step("root")
    urgent = step("urgent", root, gpus=1)
    rest = [step("then", urgent), step("last", step("then", urgent))]
    queue = StepQueue([base, root, generator, pool, urgent, *rest], [base.fingerprint], Capacity(9, 1.5))
    while queue.open():
        pass
    assert sorted(one.slug for one in queue.running.values()) == ["g", "root"]
    ahead = queue.open_ahead(near(generator))
    assert ahead is not None and ahead.awaited is pool and queue.may_wait(ahead, near(generator))
    queue.succeeded(root.fingerprint)
    assert queue.open() is None and not queue.may_wait(ahead, near(generator))
    queue.close(ahead)
    assert slugs(opened(queue).steps.values()) == ["urgent"]


def test_on_cpus_alone_a_lane_is_opened_ahead_only_where_nobody_has_a_use_for_them() -> None:
    base, generator, pool, _ = chain(gpus=0, generator_gpus=0)
    other, behind = step("other"), step("set", pool)
    queue = StepQueue([base, generator, pool, other, behind, step("last", behind)], [base.fingerprint], Capacity(2, 0))
    assert slugs(opened(queue).steps.values()) == ["g"]
    assert queue.open_ahead(near(generator)) is None
    assert slugs(opened(queue).steps.values()) == ["other"]
    queue.succeeded(other.fingerprint)
    for lane in [lane for lane in queue.lanes if not lane.steps]:
        queue.close(lane)
    ahead = queue.open_ahead(near(generator))
    assert ahead is not None and ahead.awaited is pool


def test_lanes_of_cells_are_opened_ahead_behind_a_pool_one_for_each_and_not_beside_those_that_are_there() -> None:
    base, one, two = cells(2, method="full")
    pool, drawn = step("pool"), step("drawn", step("pool"))
    drawn = step("drawn", pool)
    late = [replace(cell, inputs={**cell.inputs, "training_set": drawn}) for cell in (one, two)]
    queue = StepQueue([base, pool, drawn, *late], [base.fingerprint], Capacity(9, 4))
    assert names(queue) == ["pool"]
    lanes = [queue.open_ahead(near(pool, drawn)) for _ in range(3)]
    assert [lane and lane.awaited and lane.awaited.slug for lane in lanes] == ["cell0", "cell1", None]
    queue.succeeded(pool.fingerprint)
    assert queue.open_ahead(near(drawn)) is None and slugs(opened(queue).steps.values()) == ["drawn"]
    queue.succeeded(drawn.fingerprint)
    assert queue.open() is None, "what waits for them has lanes"
    assert [slugs(queue.join(lane)) for lane in lanes if lane] == [["cell0"], ["cell1"]]


def test_room_is_not_held_for_long_while_ready_steps_of_other_lanes_have_a_use_for_it() -> None:
    base, *some = cells(4, most=2, method="full")
    drawn = step("drawn")
    late = Step("task_model", "late", TaskModelConfig(FinetuneConfig(method="full"), 9), {"base_model": drawn, "set": base})
    late = replace(late, resources=some[0].resources)
    queue = StepQueue([base, drawn, *some, late], [base.fingerprint], Capacity(9, 2))
    assert names(queue) == ["drawn", "cell0", "cell1", "cell2", "cell3"]
    _, busy, idle = queue.lanes
    for one in list(idle.steps.values()):
        queue.succeeded(one.fingerprint)
    # As if it had been one of the other base's.
    idle.kind = queue._kind(late)
    assert queue.may_wait(idle) and queue.may_wait(idle, near(drawn)), "nothing is ready"
    put_back = next(iter(busy.steps.values()))
    queue.again(put_back.fingerprint)
    assert queue.may_wait(idle, near(drawn)), "its lane has a place for it"
    busy.steps[put_back.fingerprint] = put_back
    assert not queue.may_wait(idle, near(drawn)), "its lane is full, and this one would be idle for long"
    assert queue.may_wait(idle), "but not for longer than a start takes"


def test_what_has_no_generator_of_its_own_or_no_worker_cannot_be_started_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    base, generator, pool, _ = chain()
    assert starts_with(pool) == {"base_model": base} and starts_with(generator) == {}
    prompted = replace(pool, inputs={"generator": base})
    here = replace(generator, resources=Resources(in_process=True))
    untrained = Step("starting_point", "start", UntrainedConfig(0), {"base_model": base})
    assert [starts_with(one) for one in (prompted, here, untrained, step("set"))] == [None] * 4
    monkeypatch.setitem(REGISTRY, "generator", replace(REGISTRY["generator"], open=None))
    assert starts_with(generator) is None, "nothing opens its workers"


def start_and_cells(num: int, *, method: str = "full") -> tuple[Step, Step, list[Step]]:
    """A base model, a starting point over it, and cells that wait for neither but their own sets."""
    base, *some = cells(num, method=method)
    start = replace(some[0], stage="starting_point", slug="start", config=TaskModelConfig(FinetuneConfig(method=method), 99))
    return base, start, some


def test_a_starting_point_s_workers_go_on_with_task_models_where_they_do_one_after_another() -> None:
    base, start, some = start_and_cells(2)
    late = [replace(cell, inputs={**cell.inputs, "starting_point": start}) for cell in some]
    queue = StepQueue([base, start, *late], [base.fingerprint], Capacity(9, 1))
    lane = opened(queue)
    assert slugs(lane.steps.values()) == ["start"] and lane.expected == 3
    queue.succeeded(start.fingerprint)
    assert slugs(queue.join(lane)) == ["cell0", "cell1"], "two, so that the next one is ready when one ends"
    base, start, some = start_and_cells(2, method="lora")
    late = [replace(cell, inputs={**cell.inputs, "starting_point": start}) for cell in some]
    queue = StepQueue([base, start, *late], [base.fingerprint], Capacity(9, 1))
    lane = opened(queue)
    queue.succeeded(start.fingerprint)
    assert queue.join(lane) == [], "those that are trained at once have lanes of their own"


def test_a_task_model_does_not_wait_behind_a_starting_point_where_another_lane_may_take_it() -> None:
    base, start, (cell, *more) = start_and_cells(3)
    behind = replace(more[0], slug="behind", inputs={**cell.inputs, "starting_point": start})
    queue = StepQueue([base, start, cell, more[1], behind], [base.fingerprint], Capacity(9, 2))
    of_start, of_cells = opened(queue), opened(queue)
    assert [slugs(lane.steps.values()) for lane in (of_start, of_cells)] == [["start"], ["cell0", "cell2"]]
    queue.succeeded(cell.fingerprint)
    queue.succeeded(more[1].fingerprint)
    queue.again(next(iter(of_start.steps)))
    assert slugs(queue.join(of_cells)) == ["start"]
    assert queue.join(of_start) == [], "it waits for the starting point"


def test_a_step_that_lanes_get_to_sooner_than_another_would_start_has_no_lane_of_its_own() -> None:
    base, *some = cells(3, method="full")
    queue = StepQueue([base, *some], [base.fingerprint], Capacity(9, 3))
    assert queue.wait_s(some[0], 2, lambda lane: 0) == math.inf, "there is no lane yet"
    lane = opened(queue)
    assert slugs(lane.steps.values()) == ["cell0"] and queue.wait_s(some[1], 2, lambda lane: 5) == 3 * 2 + 5
    assert queue.wait_s(some[1], 2, lambda lane: math.inf) == math.inf, "it is not counted on"
    assert queue.open(lambda step: True) is None and queue.join(lane) == [], "for one of them there is room of its own"
    assert slugs(queue.join(lane, is_served=lambda step: True)) == ["cell1"]
    assert slugs(opened(queue).steps.values()) == ["cell2"]
    together = cells(2)
    queue = StepQueue(together, [together[0].fingerprint], Capacity(9, 1))
    assert opened(queue) and queue.wait_s(together[2], 2, lambda lane: 0) == math.inf, "at once, it would slow the others"


def test_other_base_models_and_untrained_ones_stay_apart() -> None:
    first, second = step("first"), step("second")
    resources = Resources(gpus_per_worker=1, max_group=9)

    def cell(seed: int, base: Step, config: type = TaskModelConfig) -> Step:
        made = UntrainedConfig(seed) if config is UntrainedConfig else TaskModelConfig(FinetuneConfig(), seed)
        return Step("starting_point", f"cell{seed}{base.slug}", made, {"base_model": base}, {}, resources)

    given = [cell(0, first), cell(1, second), cell(2, first), cell(3, first, UntrainedConfig), cell(4, second)]
    queue = StepQueue([first, second, *given], [first.fingerprint, second.fingerprint], Capacity(9, 1))
    found = []
    while lane := queue.open():
        found.append(slugs(lane.steps.values()))
        for one in list(lane.steps.values()):
            queue.succeeded(one.fingerprint)
        assert queue.join(lane) == []
        queue.close(lane)
    assert found == [["cell0first", "cell2first"], ["cell1second", "cell4second"], ["cell3first"]]


def test_a_step_that_is_put_back_alone_comes_alone() -> None:
    base, *three = cells(3)
    queue = StepQueue([base, *three], [base.fingerprint], Capacity(9, 1))
    lane = opened(queue)
    assert len(lane.steps) == 3
    for one in three:
        queue.again(one.fingerprint, alone=True)
    assert queue.join(lane) == [] and queue.open() is None
    queue.close(lane)
    assert names(queue) == ["cell0"]
    assert len(queue.failed(three[0].fingerprint)) == 0
    assert names(queue) == ["cell1"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(gpus_per_worker=1), "needs 1 GPU; this machine has none.*device=cpu.*--address"),
        (Resources(num_workers=5), "needs 5 CPU; this machine has 4: lower"),
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
    assert first(queue) is c
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
    assert first(queue) is b and queue.is_possible(b)
    queue.rebuild([a.fingerprint])
    assert queue.is_possible(b) and queue.open() is None
    queue.succeeded(b.fingerprint)
    assert first(queue) is a and queue.is_possible(b)
    assert queue.failed(a.fingerprint) == [c]
    assert not queue.is_possible(b)

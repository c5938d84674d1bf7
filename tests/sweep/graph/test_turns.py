"""Seeds that are whole one after another: whose turn a step is, and what comes before what."""

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.training_set import TrainingSetConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig
from pipelines.generate.config import GenerationConfig
from pipelines.resources import Resources
from sweep.graph.queue import MAX_OVERTAKES, Capacity, Lane, StepQueue, turns
from sweep.graph.step import Step
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid


def step(slug: str, *inputs: Step, seed: int | None = None, gpus: float = 1) -> Step:
    config = TrainingSetConfig("starting", size=1, seed=int.from_bytes(slug.encode()))
    coordinates = {} if seed is None else {"seed": seed}
    resources = Resources(gpus_per_worker=gpus)
    return Step("starting_set", slug, config, {one.slug: one for one in inputs}, coordinates, resources)


def model(slug: str, *inputs: Step, seed: int, method: str = "lora") -> Step:
    """A task model, in lanes with those of the same `method`."""
    config = TaskModelConfig(FinetuneConfig(method=method), seed=int.from_bytes(slug.encode()))
    named = {"base_model": BASE, **{one.slug: one for one in inputs}}
    return Step("task_model", slug, config, named, {"seed": seed, "size": 0}, Resources(gpus_per_worker=1, max_group=2))


BASE = step("base")


def opened(queue: StepQueue) -> Lane:
    lane = queue.open()
    assert lane is not None
    return lane


def test_a_step_has_the_turn_of_the_earliest_seed_that_needs_it(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(7, 2, 5, 4), generators=2, judge=30))
    turn = turns(grid, 2)
    found: dict[str, set[int]] = {}
    for one in grid:
        key = f"seed {one.coordinates['seed']}" if "seed" in one.coordinates else one.name
        found.setdefault(key, set()).add(turn[one.fingerprint])
    judged = {key: value for key, value in found.items() if key.startswith("judgement/")}
    assert judged == {"judgement/judge-pool": {0}, "judgement/judge-pool1": {0}}, "a pool's judgement is its seeds'"
    assert {key: value for key, value in found.items() if key.startswith("seed ")} == {
        # In the order in which the study names them.
        "seed 7": {0},
        "seed 2": {0},
        "seed 5": {1},
        "seed 4": {1},
    }
    # Of 7 and 5, and of 2 and 4.
    shared = {key: value for key, value in found.items() if not key.startswith("seed ")}
    assert set(map(min, shared.values())) == {0} and {"generator/generator", "synthetic_pool/pool1"} <= shared.keys()
    assert set(turns(grid, 1).values()) == {0, 1, 2, 3} and set(turns(grid, 9).values()) == {0}
    apart = build_grid(dataclasses.replace(experiment, seeds=(7, 2, 5, 4), generators=4, judge=30))
    turn = turns(apart, 1)
    own = [(turn[one.fingerprint], turn[one.inputs["pool"].fingerprint]) for one in apart if one.stage == "judgement"]
    assert sorted(own) == [(place, place) for place in range(4)], "no seed waits for another one's judgement"


def chains(num_seeds: int) -> list[Step]:
    """For each seed a generator, its pool, a cell and its evaluation; the longest path begins at the generator."""
    steps: list[Step] = []
    for seed in range(num_seeds):
        steps.append(step(f"g{seed}"))
        steps.append(step(f"p{seed}", steps[-1]))
        steps.append(step(f"c{seed}", steps[-1], seed=seed))
        steps.append(step(f"e{seed}", steps[-1], seed=seed))
    return steps


def order_of(steps: Sequence[Step], capacity: Capacity, seeds_at_once: int | None) -> str:
    queue, order = StepQueue(steps, [], capacity, seeds_at_once=seeds_at_once), list[str]()
    while not queue.is_exhausted or queue.running:
        order += [one.slug for lane in iter(queue.open, None) for one in lane.steps.values()]
        lane = queue.lanes[0]
        queue.succeeded(next(iter(lane.steps)))
        queue.close(lane)
    return " ".join(order)


def test_earlier_seeds_are_whole_before_later_ones_begin_where_there_is_room_for_one_step() -> None:
    steps, one_gpu = chains(3), Capacity(9, 1)
    assert order_of(steps, one_gpu, None) == "g0 g1 g2 p0 p1 p2 c0 e0 c1 e1 c2 e2"
    assert order_of(steps, one_gpu, 1) == "g0 p0 c0 e0 g1 p1 c1 e1 g2 p2 c2 e2"
    assert order_of(steps, one_gpu, 2) == "g0 g1 p0 p1 c0 e0 c1 e1 g2 p2 c2 e2"
    assert order_of(steps, one_gpu, 3) == order_of(steps, one_gpu, None)


def test_later_seeds_have_the_room_that_earlier_ones_leave() -> None:
    assert order_of(chains(3), Capacity(9, 2), 1) == "g0 g1 p0 p1 c0 c1 e0 e1 g2 p2 c2 e2"


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_nothing_waits_for_another_turn_and_no_room_is_left_while_a_step_fits(data: st.DataObject) -> None:
    num_seeds, gpus = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    steps: list[Step] = []
    for place in range(data.draw(st.integers(1, 24))):
        inputs = data.draw(st.lists(st.sampled_from(steps), max_size=3, unique_by=id)) if steps else []
        seed = data.draw(st.one_of(st.none(), st.integers(0, num_seeds - 1)))
        steps.append(step(f"s{place}", *inputs, seed=seed, gpus=data.draw(st.sampled_from([0.25, 0.5, 1]))))
    at_once = data.draw(st.integers(1, num_seeds))
    turn, queue = turns(steps, at_once), StepQueue(steps, [], Capacity(99, gpus), seeds_at_once=at_once)
    overtaken: dict[str, int] = {}
    num_built = 0
    while not queue.is_exhausted or queue.running:
        while lane := queue.open():
            (started,) = lane.steps.values()
            free = gpus - sum(other.need[1] for other in queue.lanes if other is not lane)
            earlier = [one for one in queue.ready if turn[one.fingerprint] < turn[started.fingerprint]]
            assert all(one.resources.total_gpus > free for one in earlier), "an earlier turn's step had room"
            for one in earlier:
                overtaken[one.fingerprint] = overtaken.get(one.fingerprint, 0) + 1
        free = gpus - sum(lane.need[1] for lane in queue.lanes)
        waiting = list(queue.ready)
        # Room is left only to the most urgent one, which smaller ones have gone before often enough.
        assert not waiting or waiting[0].resources.total_gpus > free
        fitting = [one for one in waiting if one.resources.total_gpus <= free]
        assert not fitting or any(queue._overtaken.get(one.fingerprint, 0) >= MAX_OVERTAKES for one in waiting)
        lane = data.draw(st.sampled_from(queue.lanes))
        for one in list(lane.steps.values()):
            queue.succeeded(one.fingerprint)
            num_built += 1
        queue.close(lane)
    assert num_built == len(steps) and all(times <= MAX_OVERTAKES for times in overtaken.values())


def lane_of(queue: StepQueue, slug: str) -> Lane:
    """Of all the lanes that can be opened now, the one that has the step."""
    return next(lane for lane in list(iter(queue.open, None)) if slug in [one.slug for one in lane.steps.values()])


@pytest.mark.parametrize(("seed", "yields"), [(0, True), (2, False)])
def test_a_lane_yields_to_as_long_a_path_of_an_earlier_turn_and_to_none_of_a_later_one(seed: int, yields: bool) -> None:
    cells = [model(f"cell{place}", seed=1) for place in range(4)]
    source = step("source", gpus=0)
    other = model("other", source, seed=seed, method="full")
    # An earlier and a later seed in any case.
    ends = [step(f"end{one}", seed=one, gpus=0) for one in (0, 1, 2)]
    queue = StepQueue([BASE, *ends, source, *cells, other], [BASE.fingerprint], Capacity(9, 1), seeds_at_once=1)
    lane = lane_of(queue, "cell0")
    queue.succeeded(source.fingerprint)
    queue.succeeded(cells[0].fingerprint)
    # The later one waits for as long as it takes.
    assert [one.slug for one in queue.join(lane, lambda step: step is other)] == ([] if yields else ["cell2"])
    queue.succeeded(cells[1].fingerprint)
    assert [one.slug for one in queue.join(lane)] == ([] if yields else ["cell3"])
    assert not yields or not queue.may_wait(lane)


def test_a_lane_with_longer_paths_goes_on_before_an_earlier_turn_s_step_until_that_is_overdue() -> None:
    cells = [model(f"cell{place}", seed=1) for place in range(3)]
    behind = [step(f"b{place}", one, seed=1) for place, one in enumerate(cells)]
    last = [step(f"last{place}", one, seed=1) for place, one in enumerate(behind)]
    source = step("source", gpus=0)
    early = model("early", source, seed=0, method="full")
    queue = StepQueue([BASE, source, early, *cells, *behind, *last], [BASE.fingerprint], Capacity(9, 1), seeds_at_once=1)
    lane = lane_of(queue, "cell0")
    queue.succeeded(source.fingerprint)
    queue.succeeded(cells[0].fingerprint)
    assert queue.ready[0] is early
    assert queue.join(lane, lambda step: step is early) == []
    assert queue.join(lane) == [cells[2]]


def test_a_full_lane_has_an_earlier_turn_s_steps_of_other_sizes_before_a_later_one_s_of_its_own() -> None:
    cells = [
        dataclasses.replace(model(f"{size}-{seed}", step(f"set{size}"), seed=seed), coordinates={"seed": seed, "size": size})
        for seed in range(3)
        for size in (60, 30)
    ]
    cells = [dataclasses.replace(cell, resources=Resources(gpus_per_worker=1, max_group=4)) for cell in cells]
    sets = list({source.fingerprint: source for cell in cells for source in cell.inputs.values()}.values())
    done = [one.fingerprint for one in sets]

    def first_lane(seeds_at_once: int | None) -> list[str]:
        queue = StepQueue([*sets, *cells], done, Capacity(9, 1), seeds_at_once=seeds_at_once)
        return [one.slug for one in opened(queue).steps.values()]

    assert first_lane(None) == ["60-0", "60-1", "60-2", "30-0"]
    assert first_lane(1) == ["60-0", "30-0", "60-1", "30-1"]


@pytest.mark.parametrize(
    ("seed", "length", "is_held"), [(0, 1, False), (1, 1, True), (1, 2, False), (2, 1, True), (2, 2, False)]
)
def test_room_for_a_pool_of_the_second_turn_is_held_only_from_shorter_paths_and_from_none_of_the_first(
    seed: int, length: int, is_held: bool
) -> None:
    gpu = Resources(gpus_per_worker=1)
    generator = Step("generator", "generator", GeneratorConfig(FinetuneConfig()), {"base_model": BASE}, {}, gpu)
    pool = Step("synthetic_pool", "pool", GenerationConfig(), {"generator": generator}, {}, gpu)
    drawn = step("drawn", pool, seed=1, gpus=0)
    behind = step("behind", drawn, seed=1, gpus=0)
    source = step("source", gpus=0)
    other = step("other", source, seed=seed)
    after = [other]
    while len(after) <= length:
        after.append(step(f"after{len(after)}", after[-1], seed=seed, gpus=0))
    # Before the other one where that is of the third turn, and never a reason.
    short = step("short", source, seed=1)
    ends = [step(f"end{one}", seed=one, gpus=0) for one in (0, 1, 2)]
    steps = [BASE, *ends, source, generator, pool, drawn, behind, short, *after]
    queue = StepQueue(steps, [BASE.fingerprint], Capacity(9, 2), seeds_at_once=1)
    lane_of(queue, "generator")
    ahead = queue.open_ahead(lambda step: step is generator)
    assert ahead is not None and ahead.awaited is pool, "nothing is ready"
    queue.succeeded(source.fingerprint)
    assert queue.may_wait(ahead, lambda step: step is generator) is is_held
    queue.close(ahead)
    assert (queue.open_ahead(lambda step: step is generator) is not None) is is_held

"""What each stage takes alone, of a timeline and of samples of the GPU."""

from benchmarks.stages import by_last_name, figures_of, on_a_whole_gpu
from pipelines.resources import Resources
from sweep.graph.timeline import LaneTime, Span, Timeline


def span(stage: str, began: float, ended: float) -> Span:
    return Span(stage, stage, began, began, began, ended, "")


def test_a_stage_has_its_lanes_work_and_the_part_of_it_in_which_the_gpu_was_busy() -> None:
    lanes = (
        LaneTime("1", 0, 4, (span("generator", 4, 10),)),
        LaneTime("2", 10, 11, (span("evaluation", 11, 15), span("evaluation", 15, 19))),
        LaneTime("3", 19, 20, (span("evaluation", 20, 22),)),
    )
    samples = [(1_000.0 + at, share) for at, share in ((1, 1), (5, 0.5), (9, 1), (12, 0.25), (18, 0.75), (21, 1))]
    figures = {figure.name: figure.values["alone"][0] for figure in figures_of(Timeline(1_000.0, lanes), samples)}
    assert figures == {
        "generator": 6,
        "evaluation": 10,
        "start": 6,
        "in all": 22,
        # The sample of a start is none of a stage's work.
        "generator, busy": 6 * 0.75,
        "evaluation, busy": 8 * 0.5 + 2 * 1,
        "in all, busy": 10.5,
    }
    assert [figure.name for figure in figures_of(Timeline(1_000.0, lanes), [])] == [
        "generator",
        "evaluation",
        "start",
        "in all",
    ]


def test_parts_of_a_gpu_become_a_whole_one_and_what_shares_it_stays_so() -> None:
    resources = {"task_model": Resources(gpus_per_worker=0.2, max_group=36), "sources": Resources()}
    assert on_a_whole_gpu(resources | {"synthetic_pool": Resources(num_workers=4, gpus_per_worker=0.1)}) == {
        "task_model": Resources(gpus_per_worker=1.0, max_group=36),
        "sources": Resources(),
        "synthetic_pool": Resources(num_workers=4, gpus_per_worker=0.25),
    }
    assert on_a_whole_gpu({"synthetic_pool": Resources(num_workers=4, gpus_per_worker=2)}) == {
        "synthetic_pool": Resources(gpus_per_worker=1.0),
    }


def test_paths_are_told_by_their_last_names() -> None:
    assert [by_last_name(one) for one in ("data=/a/b", "seeds=0,1")] == ["data=b", "seeds=0,1"]

"""Task models trained at once end where each ends alone."""

import dataclasses
import errno
import functools
import math
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipelines.adapters import adamw
from pipelines.adapters.adamw_settings import FACTOR
from pipelines.errors import UserError
from pipelines.finetune import bank, driver, together
from pipelines.finetune.bank import Bank
from pipelines.finetune.checkpoints import TOGETHER, Checkpoints, checkpointing_engine, read_metrics
from pipelines.finetune.course import Course
from pipelines.finetune.driver import finetune, finetune_group
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetuning_job
from pipelines.finetune.together import is_trained_together, shape_together, train_together
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples, write_examples

RECIPE = FinetuneConfig(
    learning_rate=3e-3, batch_size=2, dtype="float32", lora_rank=4, lora_dropout=0.2, log_every=5, share_prefix=False,
    group_by_length=True, zero_stage=0, tokens_per_microbatch=250,
)  # fmt: skip
HERE = Resources(in_process=True)


@pytest.fixture(scope="module")
def training_sets(sources, tmp_path_factory):
    """Three sets of different sizes, the examples of one not those of another."""
    folder = tmp_path_factory.mktemp("sets")
    table = read_examples(f"{sources}/train.parquet")
    for name, start, size in (("a", 0, 40), ("b", 20, 25), ("c", 50, 13)):
        write_examples(table.slice(start, size), folder / f"{name}.parquet")
    return {name: str(folder / f"{name}.parquet") for name in "abc"}


@pytest.fixture(scope="module")
def begun(ray_two_cpus, training_sets, base_model, untrained, tmp_path_factory):
    """A starting point with an adapter of its own."""
    folder = str(tmp_path_factory.mktemp("begun"))
    job = finetuning_job(TaskModelConfig(dataclasses.replace(RECIPE, epochs=2), 9), training_sets["a"], base_model, untrained)
    finetune(job, folder, resources=HERE, report=no_report)
    return folder


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "head.safetensors")


def jobs(training_sets, base_model, untrained, begun):
    """By name: sets, seeds, starting points, batch sizes, rates and schedules of their own; three share their prefix."""
    recipes = {
        "a": (RECIPE, "a", 1, untrained),
        "b": (dataclasses.replace(RECIPE, batch_size=3, schedule="linear", weight_decay=0.1, share_prefix=True), "b", 2, begun),
        "diverging": (dataclasses.replace(RECIPE, learning_rate=math.inf), "a", 3, untrained),
        # Larger than a pass: in several of them.
        "c": (dataclasses.replace(RECIPE, batch_size=13, epochs=3, max_grad_norm=0.3, share_prefix=True), "c", 2, begun),
        "again": (dataclasses.replace(RECIPE, learning_rate=1e-3, share_prefix=True), "a", 1, untrained),
    }
    return {
        name: finetuning_job(TaskModelConfig(recipe, seed), training_sets[set_], base_model, start)
        for name, (recipe, set_, seed, start) in recipes.items()
    }


def fail_at_10(metrics, step):
    if step == 10:
        raise ConnectionError("the tracking server is gone")


def test_members_take_as_many_passes_as_their_steps_or_their_tokens_ask_for(
    training_sets, base_model, untrained, begun, tmp_path
):
    course = Course(Member(jobs(training_sets, base_model, untrained, begun)["a"], str(tmp_path), no_report))
    # 40 examples in batches of 2, of which three or four fit into a pass.
    assert [course.num_passes(number) for number in (1, 2)] == [20, 20]
    assert course.num_passes(100) == pytest.approx(100 * sum(course.examples.lengths) / 250)


def test_a_pass_is_filled_and_none_falls_behind():
    def courses(*pairs):
        return {slot: SimpleNamespace(fraction=fraction, num_tokens=tokens) for slot, (fraction, tokens) in enumerate(pairs)}

    def chosen(budget, *pairs):
        return Bank._chosen(SimpleNamespace(token_budget=budget), courses(*pairs))

    # Slots 1 and 3 are furthest behind; 40 tokens are left beside the one of filling.
    assert chosen(141, (0.5, 45), (0.1, 50), (0.5, 20), (0.1, 50), (0.5, 20), (0.5, 30)) == [1, 2, 3, 4]
    # One that is behind has no room: others do not wait for it.
    assert chosen(101, (0.1, 60), (0.2, 70), (0.3, 40), (0.4, 30)) == [0, 2]
    # One that does not even fit alone has a pass to itself when it is furthest behind.
    assert chosen(51, (0.1, 60), (0.2, 10)) == [0]
    assert chosen(51, (0.9, 60), (0.2, 10)) == [1]


@pytest.fixture(scope="module")
def alone(training_sets, base_model, untrained, begun, tmp_path_factory):
    """A folder with what each of `jobs` learns by itself, and their metrics."""
    folder, metrics = tmp_path_factory.mktemp("alone"), {}
    for name, job in jobs(training_sets, base_model, untrained, begun).items():
        if name != "diverging":
            metrics[name] = finetune(job, str(folder / name), resources=HERE, report=no_report)
    return folder, metrics


def watch_clipping(monkeypatch):
    """Of each update: whether it was given sums of squares, the factors it goes by, and those by reading all gradients."""
    clip, update, seen = adamw.clip, Bank._update, []

    def watched_update(self, gradients, *arguments):
        def watched_clip(settings, to_read, max_norm, *, squares=()):
            clipped = clip(settings, to_read, max_norm, squares=squares)
            by_reading = clip(settings, gradients, max_norm)
            seen.append((len(squares) > 0, clipped[:, FACTOR], by_reading[:, FACTOR]))
            return clipped

        monkeypatch.setattr(adamw, "clip", watched_clip)
        update(self, gradients, *arguments)

    monkeypatch.setattr(Bank, "_update", watched_update)
    return seen


@pytest.mark.parametrize("num_slots", [2, 32])
def test_members_end_where_they_end_alone(training_sets, base_model, untrained, begun, alone, tmp_path, monkeypatch, num_slots):
    monkeypatch.setattr(together, "MAX_SLOTS", num_slots)
    clipping = watch_clipping(monkeypatch)
    named = jobs(training_sets, base_model, untrained, begun)
    members = [Member(job, str(tmp_path / name), no_report) for name, job in named.items()]
    results = dict(train_together(members, gpu_share=0))
    ended = {name: results[place] for place, name in enumerate(named)}
    assert {by_squares for by_squares, _, _ in clipping} == {True, False}, "a step of several passes has no sums"
    assert any((factors < 1).any() and (factors < 0).any() for _, factors, _ in clipping)
    for _, factors, by_reading in clipping:
        # The same for those without a step in a pass, whose sums are zero.
        torch.testing.assert_close(factors, by_reading, equal_nan=True)
    assert isinstance(ended.pop("diverging"), UserError)
    for name, metrics in ended.items():
        of_alone = alone[1][name]
        assert metrics["num_steps"] == of_alone["num_steps"] and metrics["num_tokens"] == of_alone["num_tokens"]
        assert metrics["num_trained_parameters"] == of_alone["num_trained_parameters"]
        assert metrics["shared_prefix_tokens"] == of_alone["shared_prefix_tokens"]
        assert (metrics["shared_prefix_tokens"] > 10) == (name != "a")
        expected, found = learnt(alone[0] / name), learnt(tmp_path / name)
        start = learnt(Path(begun)) if name in "bc" else None
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=2e-6)
            assert start is None or not torch.allclose(start[key], tensor, atol=1e-4), "training moved nothing"
        logs = [list(read_metrics(folder / "metrics.jsonl")) for folder in (alone[0] / name, tmp_path / name)]
        for theirs, ours in zip(*logs, strict=True):
            assert (theirs["step"], theirs["learning_rate"]) == (ours["step"], ours["learning_rate"])
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert not torch.equal(learnt(tmp_path / "a")["weight"], learnt(tmp_path / "again")["weight"])


def test_members_that_join_end_where_they_end_alone(training_sets, base_model, untrained, begun, alone, tmp_path):
    """One while another is in the midst of its steps, one that is refused, and one when nothing is left to do."""
    named = jobs(training_sets, base_model, untrained, begun)
    refused = dataclasses.replace(named["a"], config=dataclasses.replace(named["a"].config, max_length=9))
    members = {name: Member(job, str(tmp_path / name), no_report) for name, job in (named | {"refused": refused}).items()}
    asked = []

    def joining(most, *, is_idle=False):
        asked.append(is_idle)
        assert most == 2 if is_idle else most == 1
        if len(asked) == 5:
            yield members["b"]
        elif is_idle and asked.count(True) < 3:
            yield members[("refused", "again")[asked.count(True) - 1]]

    results = [result for _, result in train_together([members["a"]], gpu_share=0, joining=joining, expected=2)]
    ended = ["b", "a", "refused", "again"]
    assert [isinstance(result, UserError) for result in results] == [name == "refused" for name in ended]
    for name in ("a", "b", "again"):
        for key, tensor in learnt(alone[0] / name).items():
            torch.testing.assert_close(learnt(tmp_path / name)[key], tensor, rtol=1e-3, atol=2e-6)
    assert results[0]["mean_trained_together"] == 2 and results[-1]["mean_trained_together"] == 1


def test_an_interrupted_member_goes_on_by_itself(ray_two_cpus, training_sets, base_model, untrained, begun, tmp_path):
    """In other company, and in the end alone: it ends where it would have without interruption."""
    named = {
        name: dataclasses.replace(job, config=dataclasses.replace(job.config, checkpoint_every=4))
        for name, job in jobs(training_sets, base_model, untrained, begun).items()
        if name in ("a", "b", "again")
    }

    whole = [Member(job, str(tmp_path / "whole" / name), no_report) for name, job in named.items()]
    assert not any(isinstance(result, Exception) for _, result in train_together(whole, gpu_share=0))
    broken = [Member(job, str(tmp_path / "broken" / name), fail_at_10) for name, job in named.items()]
    results = dict(train_together(broken[:2], gpu_share=0))
    assert isinstance(results[0], ConnectionError), "the neighbour is not touched by it"
    assert results[1]["num_steps"] == 9
    assert checkpointing_engine(broken[0].output) == TOGETHER
    (result,) = finetune_group([named["a"]], [broken[0].output], resources=HERE, reports=[no_report])
    assert result["resumed_at_step"] == 8
    for name in ("a", "b"):
        expected = learnt(tmp_path / "whole" / name)
        for key, tensor in learnt(tmp_path / "broken" / name).items():
            # To rounding: products over more rows are summed in another order.
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=2e-6)


def test_a_checkpoint_in_half_precision_is_the_whole_state(training_sets, base_model, untrained, begun, tmp_path):
    job = jobs(training_sets, base_model, untrained, begun)["a"]
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, dtype="bfloat16", checkpoint_every=4))

    for name, reports in (("whole", [no_report]), ("broken", [fail_at_10, no_report])):
        for report in reports:
            ((_, result),) = train_together([Member(job, str(tmp_path / name), report)], gpu_share=0)
    assert result["resumed_at_step"] == 8
    expected = learnt(tmp_path / "whole")
    for key, tensor in learnt(tmp_path / "broken").items():
        assert torch.equal(tensor, expected[key]), key


def test_others_train_while_a_member_is_read_and_written(training_sets, base_model, untrained, begun, tmp_path, monkeypatch):
    """And each is whole on the disk when it is said to have ended."""
    named = jobs(training_sets, base_model, untrained, begun)
    is_trained = threading.Event()
    members = {
        "a": Member(named["a"], str(tmp_path / "a"), lambda _, step: is_trained.set() if step == 20 else None),
        "b": Member(named["b"], str(tmp_path / "b"), no_report),
        "again": Member(named["again"], str(tmp_path / "again"), no_report),
    }
    save, read, waited = together.save_result, together._read, {}

    def after_it(work, name, *arguments):
        if arguments[0] is members[name]:
            waited[name] = is_trained.wait(timeout=30)
        return work(*arguments)

    monkeypatch.setattr(together, "save_result", functools.partial(after_it, save, "b"))
    monkeypatch.setattr(together, "_read", functools.partial(after_it, read, "again"))
    asked, ended = [], []

    def joining(most, *, is_idle=False):
        # When two of four are in the midst of their steps.
        asked.append(most)
        return [members["again"]] if len(asked) == 3 else []

    for place, result in train_together([members["a"], members["b"]], gpu_share=0, joining=joining, expected=4):
        ended.append(place)
        assert not isinstance(result, Exception)
        assert learnt(tmp_path / list(members)[place])
    assert sorted(ended) == [0, 1, 2]
    assert waited == {"b": True, "again": True}


@pytest.mark.parametrize("what", ["output", "checkpoint"])
def test_a_write_that_fails_is_its_members_failure(training_sets, base_model, untrained, begun, tmp_path, monkeypatch, what):
    named = {
        name: dataclasses.replace(job, config=dataclasses.replace(job.config, checkpoint_every=4))
        for name, job in jobs(training_sets, base_model, untrained, begun).items()
        if name in ("a", "b")
    }
    owner, name = {"output": (together, "save_result"), "checkpoint": (Checkpoints, "save")}[what]
    write = getattr(owner, name)

    def failing(whose, *arguments):
        if getattr(whose, "output", "").endswith("b"):
            raise OSError(errno.ENOSPC, "no space left on the device")
        write(whose, *arguments)

    monkeypatch.setattr(owner, name, failing)
    members = [Member(job, str(tmp_path / name), no_report) for name, job in named.items()]
    results = list(train_together(members, gpu_share=0))
    assert sorted(place for place, _ in results) == [0, 1], "each ends once"
    results = dict(results)
    assert isinstance(results[1], OSError) and results[1].errno == errno.ENOSPC
    assert results[0]["num_steps"] == 20 and learnt(tmp_path / "a")
    assert not (tmp_path / "b" / "adapter").exists()


def test_one_whose_checkpoint_failed_while_memory_ran_out_ends_once(
    training_sets, base_model, untrained, begun, tmp_path, monkeypatch
):
    job = jobs(training_sets, base_model, untrained, begun)["a"]
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, checkpoint_every=1))
    computed, step = threading.Event(), Bank.step

    def failing(*arguments):
        assert computed.wait(10)
        raise OSError(errno.ENOSPC, "no space left on the device")

    def limited(slots, courses):
        if next(iter(courses.values())).next_step:
            computed.set()
            raise torch.OutOfMemoryError("as a GPU says it")
        step(slots, courses)

    monkeypatch.setattr(Checkpoints, "save", failing)
    monkeypatch.setattr(Bank, "step", limited)
    monkeypatch.setattr(together, "MAX_SLOTS", 1)
    ((place, result),) = train_together([Member(job, str(tmp_path), no_report)], gpu_share=0)
    assert place == 0 and isinstance(result, OSError)


def test_a_job_that_cannot_be_looked_at_or_noted_as_ended_fails_by_itself(
    training_sets, base_model, untrained, begun, tmp_path, monkeypatch
):
    def look(member):
        if member.output.endswith("unread"):
            raise ConnectionError("the store does not answer")
        return shape_together(member)

    def keep(output, metrics):
        if output.endswith("full"):
            raise OSError(errno.ENOSPC, "no space left on the device")

    monkeypatch.setattr(together, "shape_together", look)
    monkeypatch.setattr(driver, "keep_result", keep)
    job = jobs(training_sets, base_model, untrained, begun)["a"]
    outputs = [str(tmp_path / name) for name in ("unread", "well", "unread", "full", "also")]
    results = finetune_group([job] * 5, outputs, resources=HERE, reports=[no_report] * 5)
    assert [type(result) for result in results] == [ConnectionError, dict, ConnectionError, OSError, dict]


def test_where_memory_runs_out_fewer_are_trained_at_a_time(training_sets, base_model, untrained, begun, tmp_path, monkeypatch):
    named = {name: job for name, job in jobs(training_sets, base_model, untrained, begun).items() if name in ("a", "b", "c")}
    seen, step = [], Bank.step

    def limited(slots, courses):
        seen.append(slots.num_slots)
        if slots.num_slots > 2 and len(seen) > 3:
            raise torch.OutOfMemoryError("as a GPU says it")
        return step(slots, courses)

    monkeypatch.setattr(Bank, "step", limited)
    members = [Member(job, str(tmp_path / name), no_report) for name, job in named.items()]
    results = dict(train_together(members, gpu_share=0))
    assert [results[place]["num_steps"] for place in range(3)] == [20, 9, 3]
    assert set(seen) == {3, 2}


def test_one_that_memory_is_too_small_for_fails_by_itself(training_sets, base_model, untrained, tmp_path, monkeypatch):
    seen, step = [], Bank.step

    def limited(slots, courses):
        seen.append(next(iter(courses.values())).member.output)
        if seen[-1].endswith("0"):
            raise torch.OutOfMemoryError("as a GPU says it")
        return step(slots, courses)

    monkeypatch.setattr(Bank, "step", limited)
    monkeypatch.setattr(together, "MAX_SLOTS", 1)
    config = dataclasses.replace(RECIPE, rehearse_steps=2)
    members = [
        Member(
            finetuning_job(TaskModelConfig(config, seed), training_sets["c"], base_model, untrained),
            str(tmp_path / str(seed)),
            no_report,
        )
        for seed in range(2)
    ]
    results = dict(train_together(members, gpu_share=0))
    assert isinstance(results[0], torch.OutOfMemoryError) and results[1]["num_steps"] == 2
    assert len(seen) == 3


def test_only_adapters_of_one_shape_over_one_base_are_put_together(training_sets, base_model, untrained, tmp_path):
    changes = [
        {},
        {"lora_rank": 8},
        {"share_prefix": True},
        {"method": "full"},
        {"learning_rate": 1.0, "epochs": 3.0, "batch_size": 7},
        {"lora_rank": 8, "warmup_ratio": 0.0},
    ]
    members = [
        Member(
            finetuning_job(
                TaskModelConfig(dataclasses.replace(RECIPE, **change), place), training_sets["a"], base_model, untrained
            ),
            str(tmp_path / str(place)),
            no_report,
        )
        for place, change in enumerate(changes)
    ]
    shapes = [shape_together(member) for member in members]
    assert [[shapes.index(shape) for shape in shapes], shapes[3]] == [[0, 1, 0, 3, 0, 1], None]
    assert [is_trained_together(member, 2) for member in members] == [True, True, True, False, True, True]
    assert not any(is_trained_together(member, 1) for member in members)
    # Alone on a GPU, what the recipe has in bfloat16 and not partitioned.
    assert not any(is_trained_together(member, 1, on_gpu=True) for member in members)
    for stage, expected in ((1, True), (3, False)):
        config = dataclasses.replace(RECIPE, dtype="bfloat16", zero_stage=stage)
        job = finetuning_job(TaskModelConfig(config, 0), training_sets["a"], base_model, untrained)
        assert is_trained_together(Member(job, str(tmp_path / "alone"), no_report), 1, on_gpu=True) == expected


@pytest.mark.gpu
def test_captured_passes_learn_what_eager_ones_do(training_sets, base_model, untrained, tmp_path, monkeypatch):
    """In bfloat16, kernels and all; one diverges, and the room of one that ends is taken by the next."""
    from pipelines.adapters import kernels

    monkeypatch.setattr(together, "MAX_SLOTS", 2)
    # No sum over tokens is cut, as with many adapters, so that kernels sum squares.
    monkeypatch.setitem(kernels.GRADIENT, False, {**kernels.GRADIENT[False], "PROGRAMS": 1})
    recipe = dataclasses.replace(RECIPE, dtype="bfloat16", tokens_per_microbatch=2_000)
    recipes = {
        "a": dataclasses.replace(recipe, epochs=3),
        "diverging": dataclasses.replace(recipe, learning_rate=math.inf),
        "b": dataclasses.replace(recipe, batch_size=3, share_prefix=True),
        "c": dataclasses.replace(recipe, batch_size=13, share_prefix=True),
    }

    def train(folder):
        members = [
            Member(
                finetuning_job(TaskModelConfig(one, seed), training_sets["c" if name == "c" else "a"], base_model, untrained),
                str(folder / name),
                no_report,
            )
            for seed, (name, one) in enumerate(recipes.items())
        ]
        results = dict(train_together(members, gpu_share=1))
        assert [isinstance(results[place], Exception) for place in range(4)] == [False, True, False, False]
        return {name: learnt(folder / name) for name in ("a", "b", "c")}

    captured = train(tmp_path / "captured")
    monkeypatch.setattr(bank, "CapturedStep", lambda compute: compute)
    clipping = watch_clipping(monkeypatch)
    eager = train(tmp_path / "eager")
    assert any(by_squares for by_squares, _, _ in clipping)
    for _, factors, by_reading in clipping:
        # Squares are of sums that are not rounded yet. Of those that stay reading counts nothing.
        takes_part = factors >= 0
        torch.testing.assert_close(factors[takes_part], by_reading[takes_part], rtol=1e-2, atol=0)
        assert torch.equal(factors[factors < 0], by_reading[factors < 0])
    for name, tensors in eager.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(captured[name][key], tensor, rtol=2e-2, atol=2e-3)

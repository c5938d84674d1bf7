"""Models of nested training sets from one trajectory: a branch is what a run of its own length would have been."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.adapters.files import adapter_tensors
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.errors import UserError
from pipelines.finetune.checkpoints import read_metrics
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.job import Member, planned_batches
from pipelines.finetune.recipe import FinetuneConfig, adapters_of, cooldown_start, learning_rate_at, nested_ends
from pipelines.finetune.task_model import TaskModelConfig, finetune_task_model, finetuning_job
from pipelines.finetune.together import is_trained_together, shape_together
from pipelines.models.tokenizer import load_tokenizer
from pipelines.packing.dealing import training_order
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import classifier_prompts

RECIPE = FinetuneConfig(
    learning_rate=3e-3, batch_size=4, dtype="float32", lora_rank=4, lora_dropout=0.2, log_every=1, share_prefix=False,
    group_by_length=True, zero_stage=0, warmup_ratio=0.3, schedule="warmup_stable_decay", cooldown_ratio=0.4,
    max_grad_norm=1.0, weight_decay=0.01,
)  # fmt: skip
HERE = Resources(in_process=True)
SIZES = (22, 45, 81)
# Batches of 4: 6; 6 and 6 more; 9 more. Each cool-down is 0.4 of them, rounded up: 3 of 6, 5 of 12, 9 of 21.
ENDS, BRANCHES = [6, 12, 21], [3, 7, 12]


def test_the_schedule_by_hand():
    config = FinetuneConfig(learning_rate=1.0, warmup_ratio=0.25, schedule="warmup_stable_decay", cooldown_ratio=0.5)
    falling = [1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]
    assert [learning_rate_at(step, 8, config) for step in range(8)] == pytest.approx([0.0, 0.5, 1.0, 1.0, *falling])
    # On a trajectory whose shortest run has 4 steps.
    rates = [learning_rate_at(step, 8, config, shortest=4) for step in range(8)]
    assert rates == pytest.approx([0.0, 1.0, 1.0, 1.0, *falling])


def test_steps_by_hand():
    assert nested_ends(SIZES, 4) == ENDS
    assert [cooldown_start(end, RECIPE) for end in ENDS] == BRANCHES
    # The paper's, in paper_fast's batches.
    assert nested_ends((5_000, 10_000, 20_000, 100_000, 391_722), 32) == [157, 314, 627, 3_127, 12_244]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosine"}, r"cooldown_ratio=0\.4 with schedule='cosine'"),
        ({"cooldown_ratio": 0.0}, r"cooldown_ratio=0\.0 with schedule='warmup_stable_decay'"),
        ({"cooldown_ratio": 0.8}, r"cooldown_ratio=0\.8 with warmup_ratio=0\.3"),
        ({"cooldown_ratio": -0.1}, r"cooldown_ratio=-0\.1"),
    ],
)
def test_a_cooldown_and_its_schedule_go_together(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **change)


@pytest.fixture(scope="module")
def sets(sources, tmp_path_factory):
    """Starting sets of the sizes, each with the smaller ones first."""
    folder = tmp_path_factory.mktemp("sets")
    for number, size in enumerate(SIZES):
        config = TrainingSetConfig("starting", size, seed=2, nested_sizes=SIZES[:number])
        draw_training_set(config, f"{sources}/train.parquet", str(folder / str(size)))
    return {size: str(folder / str(size) / "examples.parquet") for size in SIZES}


def config_of(size, recipe=RECIPE, seed=2):
    return TaskModelConfig(recipe, seed, nested_sizes=SIZES[: SIZES.index(size)])


def learnt(folder):
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors") | load_file(Path(folder) / "head.safetensors")


def train(size, folder, sets, base_model, untrained, *, recipe=RECIPE, trunk=None, report=no_report, **fields):
    config = dataclasses.replace(config_of(size, recipe), **fields)
    return finetune_task_model(
        config, sets[size], base_model, untrained, str(folder), trunk=trunk and str(trunk), resources=HERE, report=report
    )


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["", "prefix"])
def trunk(request, ray_two_cpus, sets, base_model, untrained, tmp_path_factory):
    """A trunk, and its recipe."""
    recipe = dataclasses.replace(RECIPE, share_prefix=request.param)
    folder = tmp_path_factory.mktemp("trunk")
    metrics = train(81, folder, sets, base_model, untrained, recipe=recipe)
    assert metrics["num_steps"] == 21 and metrics["branched_at_step"] is None
    assert (metrics["shared_prefix_tokens"] > 0) == request.param
    assert sorted(path.name for path in (folder / "states").iterdir()) == ["step3", "step7"]
    return folder, recipe


def test_the_smaller_sets_batches_are_the_first_ones(sets, base_model, untrained):
    """So a branch has seen its own set, each example once, when it ends."""
    lengths = {size: list(range(size, 0, -1)) for size in SIZES}
    tables = {size: read_examples(sets[size])["id"].to_pylist() for size in SIZES}
    of_trunk = planned_batches(finetuning_job(config_of(81), sets[81], base_model, untrained), lengths[81])
    for size, end in zip(SIZES, ENDS, strict=True):
        seen = [tables[81][i] for batch in of_trunk[:end] for i in batch]
        assert len(seen) == size and set(seen) == set(tables[size])
        assert tables[81][:size] == tables[size]
    lengths_22 = lengths[81][:22]
    alone = planned_batches(finetuning_job(config_of(22), sets[22], base_model, untrained), lengths_22)
    assert of_trunk[:6] == alone


@pytest.mark.parametrize("size", [22, 45])
def test_a_branch_is_what_a_run_of_its_own_length_is(trunk, sets, base_model, untrained, tmp_path, size):
    folder, recipe = trunk
    place = SIZES.index(size)
    branch = train(size, tmp_path / "branch", sets, base_model, untrained, recipe=recipe, trunk=folder)
    whole = train(size, tmp_path / "whole", sets, base_model, untrained, recipe=recipe)
    assert branch["branched_at_step"] == BRANCHES[place] and branch["num_steps"] == whole["num_steps"] == ENDS[place]
    assert branch["resumed_at_step"] is None
    logs = [list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("branch", "whole")]
    assert [entry["step"] for entry in logs[0]] == list(range(BRANCHES[place] + 1, ENDS[place] + 1))
    for ours, theirs in zip(logs[0], logs[1][BRANCHES[place] :], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    found, expected = learnt(tmp_path / "branch"), learnt(tmp_path / "whole")
    of_trunk = learnt(folder)
    for name, tensor in expected.items():
        # The smallest set's whole run has nothing nested and is DeepSpeed's, which rounds otherwise.
        torch.testing.assert_close(
            found[name], tensor, **({"rtol": 1e-3, "atol": 2e-6} if size == 22 else {"rtol": 0, "atol": 0})
        )
        assert not torch.allclose(of_trunk[name], tensor, atol=1e-4)


def test_a_branch_is_a_plain_loop_of_trunk_and_cooldown(ray_two_cpus, sets, base_model, untrained, tmp_path):
    """Padded batches, transformers' attention, peft's adapters, torch's AdamW; order and learning rates by hand."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    recipe = dataclasses.replace(RECIPE, lora_dropout=0.0, group_by_length=False)
    train(81, tmp_path / "trunk", sets, base_model, untrained, recipe=recipe)
    train(45, tmp_path / "branch", sets, base_model, untrained, recipe=recipe, trunk=tmp_path / "trunk")
    peak = recipe.learning_rate
    # The shortest run's 6 steps warm up in 2; 12 steps, the last 5 of them falling.
    rates = [0.0, peak / 2, *[peak] * 5, *(peak * (1 - (k / 5) ** 0.5) for k in range(5))]
    order = [*training_order(22, 1, seed=2), *(training_order(23, 1, seed=2) + 22)]
    batches = [order[start : min(start + 4, end)] for first, end in ((0, 22), (22, 45)) for start in range(first, end, 4)]
    table = read_examples(sets[81])
    texts = classifier_prompts(table)
    labels = [LABELS.index(label) for label in table["label"].to_pylist()]
    tokenizer = load_tokenizer(base_model)
    body = AutoModel.from_pretrained(Path(base_model) / "model", dtype=torch.float32)
    fresh = adapter_tensors(adapters_of(AutoModel.from_pretrained(Path(base_model) / "model"), recipe, seeds=[2]), 0)
    body = get_peft_model(
        body, LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules=list(recipe.lora_targets))
    )
    for name, parameter in body.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(fresh[name.replace(".default.weight", ".weight")])
    head = torch.nn.Linear(64, 3, bias=False)
    head.weight.data.copy_(load_file(Path(untrained) / "head.safetensors")["weight"])
    trained = [p for p in [*body.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay)
    for rate, batch in zip(rates, batches, strict=True):
        sequences = [tokenizer(texts[i])["input_ids"] for i in batch]
        width = max(map(len, sequences))
        ids = torch.tensor([one + [0] * (width - len(one)) for one in sequences])
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in sequences])
        states = body(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = head(states[torch.arange(len(batch)), mask.sum(1) - 1])
        torch.nn.functional.cross_entropy(logits, torch.tensor([labels[i] for i in batch])).backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    found = learnt(tmp_path / "branch")
    torch.testing.assert_close(found["weight"], head.weight.detach(), rtol=1e-3, atol=1e-5)
    for name, parameter in body.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(
                found[name.replace(".default.weight", ".weight")], parameter.detach(), rtol=1e-3, atol=1e-5
            )


def test_a_branch_may_leave_where_the_trunks_own_cooldown_begins(ray_two_cpus, sources, base_model, untrained, tmp_path):
    """17 and 21 examples are 5 and 6 batches, with cool-downs of 1 and 2."""
    recipe = dataclasses.replace(RECIPE, cooldown_ratio=0.2)
    found = {}
    for size, nested, trunk in ((21, (17,), None), (17, (), str(tmp_path / "21"))):
        set_ = TrainingSetConfig("starting", size, seed=2, nested_sizes=nested)
        draw_training_set(set_, f"{sources}/train.parquet", str(tmp_path / f"set{size}"))
        found[size] = finetune_task_model(
            TaskModelConfig(recipe, 2, nested), str(tmp_path / f"set{size}" / "examples.parquet"), base_model, untrained,
            str(tmp_path / str(size)), trunk=trunk, resources=HERE,
        )  # fmt: skip
    assert (found[21]["num_steps"], found[17]["num_steps"], found[17]["branched_at_step"]) == (6, 5, 4)


def fail_at(step):
    def report(metrics, at):
        if at == step:
            raise ConnectionError("the machine is gone")

    return report


def test_a_killed_trunk_and_a_killed_branch_go_on(trunk, sets, base_model, untrained, tmp_path):
    """Between the branch points, from a checkpoint before the first: what is kept again is what was kept."""
    folder, recipe = trunk
    recipe = dataclasses.replace(recipe, checkpoint_every=2)
    with pytest.raises(ConnectionError):
        train(81, tmp_path / "trunk", sets, base_model, untrained, recipe=recipe, report=fail_at(4))
    assert [path.name for path in (tmp_path / "trunk" / "states").iterdir()] == ["step3"]
    assert train(81, tmp_path / "trunk", sets, base_model, untrained, recipe=recipe)["resumed_at_step"] == 2
    for step in BRANCHES[:2]:
        file = f"states/step{step}/state.safetensors"
        assert (tmp_path / "trunk" / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(ConnectionError):
        train(45, tmp_path / "broken", sets, base_model, untrained, recipe=recipe, trunk=tmp_path / "trunk", report=fail_at(11))
    resumed = train(45, tmp_path / "broken", sets, base_model, untrained, recipe=recipe, trunk=tmp_path / "trunk")
    assert (resumed["branched_at_step"], resumed["resumed_at_step"]) == (7, 10)
    train(45, tmp_path / "whole", sets, base_model, untrained, recipe=recipe)
    for file in ("head.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_trunks_are_trained_together_and_so_are_branches(trunk, sets, base_model, untrained, tmp_path):
    folder, recipe = trunk

    def jobs(size, trunks):
        configs = [config_of(size, recipe, seed) for seed in (2, 7)]
        return [
            finetuning_job(one, sets[size], base_model, untrained, trunk) for one, trunk in zip(configs, trunks, strict=True)
        ]

    def run(name, group):
        outputs = [str(tmp_path / name / str(place)) for place in range(len(group))]
        members = [Member(job, output, no_report) for job, output in zip(group, outputs, strict=True)]
        assert len({shape_together(member) for member in members}) == 1
        assert all(is_trained_together(member, 1) for member in members)
        results = finetune_group(group, outputs, resources=HERE, reports=[no_report] * len(group))
        assert not any(isinstance(result, Exception) for result in results)
        return outputs

    trunks = run("trunks", jobs(81, (None, None)))
    branches = run("branches", [*jobs(22, trunks), *jobs(45, trunks)])
    train(45, tmp_path / "alone", sets, base_model, untrained, recipe=recipe, trunk=folder)
    for together, alone in ((trunks[0], folder), (branches[2], tmp_path / "alone")):
        expected = learnt(alone)
        for name, tensor in learnt(together).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-6)
    for one, other in pairwise(branches):
        assert not torch.equal(learnt(one)["weight"], learnt(other)["weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full"}, "method='full': finetunings that share a trajectory need 'lora'"),
        ({"epochs": 2.0}, r"epochs=2\.0: finetunings that share a trajectory need 1"),
        ({"schedule": "cosine", "cooldown_ratio": 0.0}, "schedule='cosine'.* need 'warmup_stable_decay'"),
        ({"rehearse_steps": 3}, "rehearse_steps=3: a rehearsal has no nested sets"),
    ],
)
def test_what_cannot_share_a_trajectory_is_refused(sets, base_model, untrained, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(81, tmp_path, sets, base_model, untrained, recipe=dataclasses.replace(RECIPE, **changes))


def test_several_workers_and_a_trunk_without_the_branch_are_refused(trunk, sets, base_model, untrained, tmp_path):
    folder, recipe = trunk
    with pytest.raises(UserError, match=r"num_workers=2: .* need 1"):
        finetune_task_model(
            config_of(81), sets[81], base_model, untrained, str(tmp_path / "two"), resources=Resources(num_workers=2)
        )
    with pytest.raises(UserError, match="states/step12 does not exist"):
        train(81, tmp_path / "none", sets, base_model, untrained, recipe=recipe, trunk=folder)

"""The engine on real Ray Train and DeepSpeed, against a plain PyTorch loop over padded batches."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, MistralConfig, Qwen2Config, RobertaConfig

from pipelines.adapters.files import adapter_tensors
from pipelines.errors import NotBegunError, UserError
from pipelines.finetune.alone import deepspeed_config
from pipelines.finetune.checkpoints import read_metrics
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.generator import GeneratorConfig, finetune_generator
from pipelines.finetune.job import FinetuneJob, encode_examples, shared_prefixes
from pipelines.finetune.recipe import FinetuneConfig, adapters_of, learning_rate_at
from pipelines.finetune.task_model import TaskModelConfig, finetune_task_model, finetuning_job
from pipelines.models.tokenizer import load_tokenizer, model_limit
from pipelines.packing.batches import Prefix
from pipelines.packing.dealing import training_order
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import EN_DASH, classifier_prompts

FULL = FinetuneConfig(
    method="full", learning_rate=1e-3, batch_size=16, dtype="float32", max_grad_norm=1.0, warmup_ratio=0.2,
    weight_decay=0.01, log_every=1, lora_dropout=0.0,
)  # fmt: skip
LORA = dataclasses.replace(FULL, method="lora", lora_rank=4)
# Where worker groups are not what is tested.
HERE = Resources(in_process=True)


def test_schedule_by_hand():
    config = FinetuneConfig(learning_rate=1.0, warmup_ratio=0.25, schedule="cosine")
    rates = [learning_rate_at(step, 8, config) for step in range(8)]
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[5] == pytest.approx(0.5)
    assert rates[7] == pytest.approx(0.0669873, abs=1e-6)
    linear = dataclasses.replace(config, schedule="linear")
    assert [learning_rate_at(s, 8, linear) for s in (2, 5)] == pytest.approx([1.0, 0.5])
    assert learning_rate_at(7, 8, dataclasses.replace(config, schedule="constant")) == 1.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "qlora", "method='qlora' is not one of 'lora', 'full'"),
        ("zero_stage", 4, "zero_stage=4 is not one of 0, 1, 2, 3"),
        ("learning_rate", 0.0, "learning_rate=0.0 must be above 0"),
        ("warmup_ratio", 1.0, "warmup_ratio=1.0 must be at least 0 and below 1"),
    ],
)
def test_a_wrong_setting_names_value_and_rule(field, value, message):
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**{field: value})


def test_deepspeed_gets_stage_precision_and_clipping():
    config = deepspeed_config(FinetuneConfig(zero_stage=2, dtype="bfloat16", max_grad_norm=0.3))
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"]["enabled"] is True
    assert config["gradient_clipping"] == 0.3


def reference_losses(config, sources, base_model, untrained, seed, num_steps):
    """Mean loss of the first steps: padded batches, transformers' own attention, torch's own AdamW and clipping."""
    from transformers import AutoModel

    torch.manual_seed(seed)
    table = read_examples(f"{sources}/train.parquet")
    tokenizer = load_tokenizer(base_model)
    texts = classifier_prompts(table)
    labels = [LABELS.index(label) for label in table["label"].to_pylist()]
    body = AutoModel.from_pretrained(Path(base_model) / "model", dtype=torch.float32)
    if config.method == "lora":
        from peft import LoraConfig, get_peft_model

        fresh = adapter_tensors(adapters_of(AutoModel.from_pretrained(Path(base_model) / "model"), config, seeds=[seed]), 0)
        body = get_peft_model(
            body,
            LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(config.lora_targets)),
        )
        # Where training begins is drawn by the seed; what is compared is how it goes on.
        for name, parameter in body.named_parameters():
            if ".lora_" in name:
                parameter.data.copy_(fresh[name.replace(".default.weight", ".weight")])
    head = torch.nn.Linear(64, 3, bias=False)
    head.weight.data.copy_(load_file(Path(untrained) / "head.safetensors")["weight"])
    trained = [p for p in [*body.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    order = training_order(len(texts), config.epochs, seed=seed)
    total = -(-len(order) // config.batch_size)
    losses = []
    for step in range(num_steps):
        batch = order[step * config.batch_size : (step + 1) * config.batch_size]
        sequences = [tokenizer(texts[i])["input_ids"] for i in batch]
        width = max(map(len, sequences))
        ids = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
        mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
        states = body(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = head(states[torch.arange(len(batch)), mask.sum(1) - 1])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([labels[i] for i in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, total, config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("config", "zero_stage", "num_workers", "tokens_per_microbatch"),
    [
        (FULL, 3, 2, 200),
        *(pytest.param(LORA, *more, marks=pytest.mark.slow) for more in ((1, 2, 200), (2, 2, 16_384))),
        (LORA, 3, 1, 200),
    ],
)
def test_losses_equal_a_plain_padded_loop(
    ray_two_cpus,
    sources,
    base_model,
    untrained,
    tmp_path,
    config,
    zero_stage,
    num_workers,
    tokens_per_microbatch,
):
    expected = reference_losses(config, sources, base_model, untrained, seed=5, num_steps=4)
    assert max(expected) - min(expected) > 1e-3, "a loss that stays put would prove nothing"
    config = dataclasses.replace(config, zero_stage=zero_stage, tokens_per_microbatch=tokens_per_microbatch)
    metrics = finetune_task_model(
        TaskModelConfig(config, seed=5),
        f"{sources}/train.parquet",
        base_model,
        untrained,
        str(tmp_path),
        resources=Resources(num_workers=num_workers) if num_workers > 1 else HERE,
    )
    log = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert metrics["num_steps"] == len(log) == 6
    np.testing.assert_allclose([entry["loss"] for entry in log[:4]], expected, rtol=2e-4)


class FailOnce:
    """A report that fails a run once, at a step, as a lost machine would."""

    def __init__(self, marker, step):
        self.marker, self.step = marker, step

    def __call__(self, metrics, step):
        if step >= self.step and not Path(self.marker).exists():
            Path(self.marker).touch()
            raise RuntimeError("the machine is gone")


def test_the_driving_process_can_be_the_worker_again_and_again(sources, base_model, untrained, tmp_path):
    """DeepSpeed and torch keep process groups in globals: a second finetuning must not meet the first one's."""
    expected = reference_losses(FULL, sources, base_model, untrained, seed=5, num_steps=4)
    for name in ("first", "second"):
        finetune_task_model(
            TaskModelConfig(dataclasses.replace(FULL, zero_stage=0), seed=5),
            f"{sources}/train.parquet",
            base_model,
            untrained,
            str(tmp_path / name),
            resources=HERE,
        )
        log = list(read_metrics(tmp_path / name / "metrics.jsonl"))
        np.testing.assert_allclose([entry["loss"] for entry in log[:4]], expected, rtol=2e-4)


@pytest.mark.parametrize(
    ("zero_stage", "dtype"), [(0, "float32"), pytest.param(1, "bfloat16", marks=pytest.mark.slow), (3, "float32")]
)
def test_an_interrupted_run_resumes_and_ends_in_the_same_weights(sources, base_model, untrained, tmp_path, zero_stage, dtype):
    finetune = dataclasses.replace(LORA, checkpoint_every=2, lora_dropout=0.2, zero_stage=zero_stage, dtype=dtype)
    config = TaskModelConfig(finetune, seed=1)

    def run(name, report):
        return finetune_task_model(
            config,
            f"{sources}/train.parquet",
            base_model,
            untrained,
            str(tmp_path / name),
            resources=HERE,
            report=report,
        )

    whole = run("whole", no_report)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run("broken", FailOnce(str(tmp_path / "failed"), step=5))
    resumed = run("broken", no_report)
    assert (whole["resumed_at_step"], resumed["resumed_at_step"]) == (None, 4)
    for name in ("head.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    steps = [[entry["step"] for entry in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "broken")]
    assert steps == [[1, 2, 3, 4, 5, 6]] * 2


def test_members_of_a_group_end_as_they_would_alone(ray_two_cpus, sources, base_model, untrained, tmp_path):
    """One that diverges, one that is refused and one that had ended before among them."""
    recipes = {
        "lora": dataclasses.replace(LORA, lora_dropout=0.2, checkpoint_every=2),
        "diverging": dataclasses.replace(FULL, learning_rate=math.inf),
        "refused": dataclasses.replace(LORA, max_length=30),
        "full": dataclasses.replace(FULL, batch_size=32),
    }
    examples = f"{sources}/train.parquet"
    for name in ("lora", "full"):
        finetune_task_model(
            TaskModelConfig(recipes[name], seed=3),
            examples,
            base_model,
            untrained,
            str(tmp_path / "alone" / name),
            resources=HERE,
        )
    jobs = [finetuning_job(TaskModelConfig(recipe, seed=3), examples, base_model, untrained) for recipe in recipes.values()]
    outputs = [str(tmp_path / "group" / name) for name in recipes]
    written: dict[Path, int] = {}
    for _ in range(2):
        results = dict(zip(recipes, finetune_group(jobs, outputs, resources=HERE, reports=[no_report] * 4), strict=True))
        assert "training diverged" in str(results["diverging"]) and isinstance(results["diverging"], UserError)
        assert "longer than 30 tokens" in str(results["refused"]) and isinstance(results["refused"], UserError)
        assert (results["lora"]["num_steps"], results["full"]["num_steps"]) == (6, 3)
        for name, files in (("lora", ("adapter/adapter_model.safetensors",)), ("full", ("model/model.safetensors",))):
            for file in ("head.safetensors", *files):
                ours, alone = (tmp_path / company / name / file for company in ("group", "alone"))
                if name == "full":
                    assert ours.read_bytes() == alone.read_bytes()
                for key, tensor in load_file(alone).items():
                    # Where others could have been trained at once with it, to rounding.
                    torch.testing.assert_close(load_file(ours)[key], tensor, rtol=1e-3, atol=2e-6)
                # The second time, nothing is done again.
                assert ours.stat().st_mtime_ns == written.setdefault(ours, ours.stat().st_mtime_ns)


def test_a_group_that_loses_its_worker_keeps_what_had_ended(ray_two_cpus, sources, base_model, untrained, tmp_path):
    examples = f"{sources}/train.parquet"
    # Of different ranks, so that one is trained after the other.
    recipes = [dataclasses.replace(LORA, lora_rank=rank) for rank in (2, 3, 4)]
    jobs = [finetuning_job(TaskModelConfig(recipe, 0), examples, base_model, untrained) for recipe in recipes]
    outputs = [str(tmp_path / str(place)) for place in range(3)]
    ended, lost, unmet = finetune_group(jobs, outputs, resources=Resources(), reports=[no_report, _exit, no_report])
    assert ended["num_steps"] == 6
    # It had begun and the last one had not, so that it is at fault.
    assert type(lost).__name__ == "WorkerCrashedError"
    assert isinstance(unmet, NotBegunError)


def _exit(metrics, step):
    os._exit(1)


@pytest.mark.timeout(120)
def test_workers_that_die_while_they_start_are_not_started_again_and_again(
    ray_two_cpus, sources, base_model, untrained, tmp_path
):
    killed = []

    def kill_as_they_appear():
        while len(killed) < 4 and not ended.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in killed and "RayTrainWorker" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)

    ended = threading.Event()
    killer = threading.Thread(target=kill_as_they_appear)
    killer.start()
    try:
        with pytest.raises(Exception, match="failed to initialize"):
            finetune_task_model(
                TaskModelConfig(LORA, 0),
                f"{sources}/train.parquet",
                base_model,
                untrained,
                str(tmp_path),
                resources=Resources(num_workers=2),
            )
    finally:
        ended.set()
        killer.join()
    assert len(killed) in (1, 2)


@pytest.mark.slow
def test_an_interrupted_group_of_workers_resumes_with_as_many_and_on_one(
    ray_two_cpus, sources, base_model, untrained, tmp_path
):
    """With dropout, whose masks are an example's own and not a worker's."""
    config = TaskModelConfig(dataclasses.replace(LORA, checkpoint_every=2, zero_stage=2, lora_dropout=0.2), seed=1)

    def run(name, resources, report=no_report):
        return finetune_task_model(
            config, f"{sources}/train.parquet", base_model, untrained, str(tmp_path / name), resources=resources, report=report
        )

    with pytest.raises(RuntimeError, match="the machine is gone"):
        run("two", Resources(num_workers=2), FailOnce(str(tmp_path / "failed"), step=5))
    shutil.copytree(tmp_path / "two", tmp_path / "two, one")
    assert run("two, one", HERE)["resumed_at_step"] == 4
    assert run("two", Resources(num_workers=2))["resumed_at_step"] == 4
    run("one", HERE)
    names = ("one", "two", "two, one")
    one, *others = ([entry["loss"] for entry in read_metrics(tmp_path / name / "metrics.jsonl")] for name in names)
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)
    # Ray keeps nothing of its own there that a later start could read.
    assert [path.stat().st_size for path in (tmp_path / "two" / ".ray_train").rglob("*") if path.is_file()] == [0]


def test_finetuning_a_starting_point_continues_its_adapter_and_head(ray_two_cpus, sources, base_model, untrained, tmp_path):
    def run(start, name, **changes):
        config = TaskModelConfig(dataclasses.replace(LORA, **changes), seed=2)
        finetune_task_model(config, f"{sources}/train.parquet", base_model, start, str(tmp_path / name), resources=HERE)
        return {
            **load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"),
            **load_file(tmp_path / name / "head.safetensors"),
        }

    first = run(untrained, "first", learning_rate=1e-2)
    still = run(str(tmp_path / "first"), "still", learning_rate=1e-12)
    assert first.keys() == still.keys()
    assert any(".lora_B." in name and tensor.abs().max() > 1e-3 for name, tensor in first.items())
    for name, tensor in first.items():
        torch.testing.assert_close(still[name], tensor, rtol=0, atol=1e-8)
    with pytest.raises(UserError, match="adapter has r=4 and this finetuning asks for 8"):
        run(str(tmp_path / "first"), "other", lora_rank=8)
    loaded = json.loads((tmp_path / "first" / "adapter" / "adapter_config.json").read_text())
    assert loaded["r"] == 4


def test_a_lora_generator_is_merged_into_plain_safetensors(sources, base_model, tmp_path):
    from transformers import AutoModelForCausalLM

    config = GeneratorConfig(dataclasses.replace(LORA, learning_rate=1e-2, epochs=3, train_embeddings=True))
    metrics = finetune_generator(config, f"{sources}/train.parquet", base_model, str(tmp_path), resources=HERE)
    log = [entry["loss"] for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert log[-1] < 0.8 * log[0]
    assert metrics["final_loss"] == log[-1]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    original = AutoModelForCausalLM.from_pretrained(Path(base_model) / "model").state_dict()
    assert merged.keys() == original.keys()
    changed = {name for name in merged if not torch.equal(merged[name], original[name])}
    assert {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"} <= changed
    assert "model.norm.weight" not in changed
    assert {p.suffix for p in (tmp_path / "model").iterdir()} <= {".json", ".safetensors"}


def generator_losses(sources, base_model, output, resources=HERE, **changes):
    """The losses of a generator's finetuning, whose labels' texts begin alike."""
    recipe = dataclasses.replace(LORA, learning_rate=1e-2, train_embeddings=True)
    config = GeneratorConfig(dataclasses.replace(recipe, **changes), seed=4)
    metrics = finetune_generator(config, f"{sources}/train.parquet", base_model, str(output), resources=resources)
    assert (metrics["shared_prefix_tokens"] > 10) == changes.get("share_prefix", True)
    return np.array([entry["loss"] for entry in read_metrics(output / "metrics.jsonl")])


def test_what_a_labels_texts_begin_with_is_computed_once(ray_two_cpus, sources, base_model, tmp_path):
    """Exactly, however a step is cut; with dropout, the masks of those beginnings are a batch's."""

    def losses(name, **changes):
        return generator_losses(sources, base_model, tmp_path / name, **changes)

    apart = losses("apart", share_prefix=False)
    assert apart[-1] < 0.95 * apart[0]
    np.testing.assert_allclose(losses("shared"), apart, rtol=2e-4)
    cut = {"zero_stage": 3, "gradient_checkpointing": True, "tokens_per_microbatch": 200}
    np.testing.assert_allclose(losses("cut", **cut), apart, rtol=2e-4)
    dropped = losses("dropped", lora_dropout=0.3)
    np.testing.assert_allclose(losses("dropped and cut", lora_dropout=0.3, tokens_per_microbatch=200), dropped, rtol=2e-4)
    assert abs(losses("others", lora_dropout=0.3, share_prefix=False) - dropped).max() > 1e-3


@pytest.mark.slow
def test_what_a_labels_texts_begin_with_is_computed_once_a_worker(ray_two_cpus, sources, base_model, tmp_path):
    apart = generator_losses(sources, base_model, tmp_path / "apart", share_prefix=False)
    several = {"zero_stage": 3, "gradient_checkpointing": True, "tokens_per_microbatch": 200}
    found = generator_losses(sources, base_model, tmp_path / "several", Resources(num_workers=2), **several)
    np.testing.assert_allclose(found, apart, rtol=2e-4)


def test_a_generator_of_several_sets_reads_one_after_another(sources, base_model):
    one, other = f"{sources}/train.parquet", f"{sources}/template_test.parquet"
    job = FinetuneJob("language_modeling", FinetuneConfig(), 0, one, base_model, save=print, end_marker=EN_DASH)
    (texts, labels), (others, other_labels) = (
        encode_examples(dataclasses.replace(job, examples=path)) for path in (one, other)
    )
    assert encode_examples(dataclasses.replace(job, examples=(one, other))) == (texts + others, labels + other_labels)


def test_plain_texts_share_nothing():
    """Each begins with its own premise, and what all begin with (a first token that says nothing) is not worth a prefix."""
    job = FinetuneJob("language_modeling", LORA, 0, "", "", lambda *_: None, text="plain")
    assert shared_prefixes(job, [[1, 2, 3], [1, 2, 4]], [0, 1]) == [Prefix(0)] * 2
    generator = dataclasses.replace(job, text="generator")
    sequences = [[1, 2, 3, 4], [1, 5, 6], [1, 2, 3, 5, 6], [1, 5]]
    assert shared_prefixes(generator, sequences, [2, 0, 2, 0]) == [Prefix(3, 2), Prefix(1, 0)] * 2
    apart = dataclasses.replace(generator, config=dataclasses.replace(LORA, share_prefix=False))
    assert shared_prefixes(apart, sequences, [2, 0, 2, 0]) == [Prefix(0)] * 4


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        # Layers attend to a window of it.
        (MistralConfig(sliding_window=256, max_position_embeddings=512), 512),
        (Qwen2Config(use_sliding_window=True, sliding_window=256, max_window_layers=0, max_position_embeddings=512), 512),
        (GPTNeoXConfig(max_position_embeddings=64), 64),
        # Its first two positions are no text's.
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
    ],
)
def test_a_sequence_is_no_longer_than_the_models_positions(config, limit, tmp_path):
    config.save_pretrained(tmp_path / "model")
    assert model_limit(str(tmp_path)) == limit


def test_an_example_longer_than_the_limit_is_an_error_that_names_it(ray_two_cpus, sources, base_model, untrained, tmp_path):
    config = TaskModelConfig(dataclasses.replace(LORA, max_length=30), seed=0)
    with pytest.raises(UserError, match=r"of 96 examples are longer than 30 tokens \(the longest, 'pair-"):
        finetune_task_model(config, f"{sources}/train.parquet", base_model, untrained, str(tmp_path), resources=HERE)


def test_unknown_projections_are_named(ray_two_cpus, sources, base_model, untrained, tmp_path):
    config = TaskModelConfig(dataclasses.replace(LORA, lora_targets=("q_porj",)), seed=0)
    with pytest.raises(UserError, match="q_porj"):
        finetune_task_model(config, f"{sources}/train.parquet", base_model, untrained, str(tmp_path), resources=HERE)

"""The peer of benchmarks of finetuning does the same work as ours: from equal weights it learns the same, step by step."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.finetunings import mean_loss, num_right_of
from benchmarks.peer import ordered_rows, peer_classifier, peer_trainer
from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model
from pipelines.finetune.checkpoints import METRICS_FILE, read_metrics
from pipelines.finetune.job import Member
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model
from pipelines.resources import no_report
from pipelines.tasks.examples import write_examples

RECIPE = FinetuneConfig(
    learning_rate=3e-3, epochs=2, batch_size=2, warmup_ratio=0.2, weight_decay=0.1, max_grad_norm=1.0, dtype="float32",
    lora_rank=4, lora_dropout=0.0, log_every=1,
)  # fmt: skip
SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of different lengths, a tiny base model and a head."""
    folder: Path = tmp_path_factory.mktemp("peer")
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        {
            "id": f"pair-{n}",
            "premise": "the doctor saw the old dog" + " again" * (n % 5),
            "hypothesis": ("the doctor saw it", "a lawyer ran", "nobody saw it")[n % 3],
            "label": labels[n % 3],
        }
        for n in range(13)
    ]
    write_examples(pa.Table.from_pylist(rows), folder / "train.parquet")
    shape = ScratchModelConfig(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, vocabulary_size=300
    )
    prepare_base_model(shape, str(folder / "base"), sources=str(folder))
    initial_task_model(UntrainedConfig(SEED), str(folder / "base"), str(folder / "head"))
    return folder


def losses_of_ours(folder: Path, output: Path, recipe: FinetuneConfig) -> list[float]:
    from pipelines.finetune.together import train_together

    places = [str(folder / name) for name in ("train.parquet", "base", "head")]
    job = finetuning_job(TaskModelConfig(recipe, SEED), *places)
    ((_, result),) = train_together([Member(job, str(output), no_report)], gpu_share=0.0)
    assert not isinstance(result, Exception), result
    return [entry["loss"] for entry in read_metrics(output / METRICS_FILE)]


def peer_from_the_same(folder: Path, recipe: FinetuneConfig) -> tuple[Any, Any, Any]:
    """The peer's model with the head of ours and the adapter that its seed draws; the tokenizer, the rows."""
    import pyarrow.parquet as pq
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from pipelines.adapters.files import PEFT_PREFIX, adapter_tensors
    from pipelines.finetune.recipe import adapters_of
    from pipelines.models.classifier import HEAD_FILE
    from pipelines.models.tokenizer import load_tokenizer
    from pipelines.models.weights import load_classifier_body

    base, device = folder / "base" / "model", torch.device("cpu")
    tokenizer = load_tokenizer(str(folder / "base"))
    head = load_file(folder / "head" / HEAD_FILE)["weight"]
    model = peer_classifier(base, tokenizer, recipe, torch.float32, device, head=head)
    drawn = adapters_of(load_classifier_body(base, torch.float32, device), recipe, seeds=[SEED])
    adapter = {name.replace(PEFT_PREFIX, f"{PEFT_PREFIX}model."): tensor for name, tensor in adapter_tensors(drawn, 0).items()}
    # peft wants all that it trains.
    adapter[f"{PEFT_PREFIX}score.weight"] = model.get_base_model().score.weight.clone()
    assert not set_peft_model_state_dict(model, adapter).unexpected_keys
    return model, tokenizer, ordered_rows(tokenizer, pq.read_table(folder / "train.parquet"), recipe, seed=SEED)


def losses_of_peer(model: Any, tokenizer: Any, rows: Sequence[Any], recipe: FinetuneConfig, output: Path) -> list[float]:
    trainer = peer_trainer(
        model, tokenizer, list(rows), recipe, str(output), seed=SEED, logging_strategy="steps", logging_steps=1
    )
    mean = trainer.train().training_loss
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert mean == pytest.approx(sum(losses) / len(losses))
    return losses


@pytest.mark.parametrize("other", [{}, {"group_by_length": True, "schedule": "linear", "share_prefix": False}])
def test_from_equal_weights_both_learn_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    # Trainer would look for other workers: a finetuning in this process, as other tests do it, leaves this for DeepSpeed.
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    recipe = replace(RECIPE, **other)
    ours = losses_of_ours(folder, tmp_path / "ours", recipe)
    peer = losses_of_peer(*peer_from_the_same(folder, recipe), recipe, tmp_path / "peer")
    assert len(ours) == 13 and ours == pytest.approx(peer, abs=1e-5)
    # It learns: had one stood still, or had other rows, they would differ by more.
    assert max(ours) - min(ours) > 0.1
    assert mean_loss(tmp_path / "ours" / METRICS_FILE) == pytest.approx(sum(ours) / len(ours))


def test_labels_of_two_classes_are_right_for_any_but_entailment() -> None:
    labels = ["entailment", "neutral", "non-entailment", "non-entailment", "non-entailment"]
    assert num_right_of([0, 2, 0, 1, 2], labels) == 3

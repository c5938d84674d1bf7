"""What one would train with transformers and peft alone: the peer of benchmarks of finetuning."""

import contextlib
from pathlib import Path
from typing import Any

from pipelines.finetune.recipe import FinetuneConfig
from pipelines.packing.dealing import training_order
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import classifier_prompts


def peer_classifier(
    base: str | Path,
    tokenizer: Any,
    recipe: FinetuneConfig,
    dtype: Any,
    device: Any,
    *,
    head: Any = None,
    masters: bool = False,
) -> Any:
    """transformers' sequence classifier over the checkpoint in `base`, with peft's adapters if `recipe` is LoRA.

    Its `tokenizer` is made to pad on the right, by the end-of-sequence token where it has none for that. `head`
    [num_labels, hidden_size] takes the place of the one that transformers draws. With `masters` adapters and head are float32
    over a base of any type, as peft has adapters by default and as ours keeps all for the optimizer. Without, they have the
    base's type, which is faster and, in bfloat16, loses the small part of each step.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS), dtype=dtype).to(device)
    model.config.pad_token_id = tokenizer.pad_token_id
    if head is not None:
        model.score.weight.data.copy_(head)
    if recipe.method != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.lora_targets),
        modules_to_save=["score"],
    )
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    if masters:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return model


def is_mixed(model: Any) -> bool:
    """Whether float32 masters are trained over a base of another type, so that products are to be computed in the base's."""
    return len({parameter.dtype for parameter in model.parameters()}) > 1


def peer_precision(model: Any, device: Any) -> contextlib.AbstractContextManager[None]:
    """Compute with `model` as `peer_trainer` does."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if is_mixed(model) else contextlib.nullcontext()


def ordered_rows(tokenizer: Any, table: Any, recipe: FinetuneConfig, *, seed: int) -> list[dict[str, Any]]:
    """The examples of `table` for Trainer, in the order in which ours trains on them, one epoch after another."""
    sequences = tokenizer(classifier_prompts(table))["input_ids"]
    labels = [LABELS.index(label) for label in table["label"].to_pylist()]
    lengths = [len(sequence) for sequence in sequences] if recipe.group_by_length else None
    order = training_order(len(sequences), recipe.epochs, seed=seed, lengths=lengths, batch_size=recipe.batch_size)
    return [{"input_ids": sequences[i], "labels": labels[i]} for i in order.tolist()]


def peer_trainer(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], recipe: FinetuneConfig, output: str, *, seed: int, **settings: Any
) -> Any:
    """A Trainer of `model` by `recipe` over `rows`, once, as they come; `settings` are further TrainingArguments."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=output,
        num_train_epochs=1,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a part
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=is_mixed(model),
        use_cpu=model.device.type == "cpu",
        seed=seed,
        **{"save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True, **settings},
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )

"""What one would train with transformers and peft alone: the peer of benchmarks of finetuning."""

from pathlib import Path
from typing import Any

from pipelines.finetune.recipe import FinetuneConfig
from pipelines.tasks.nli import LABELS


def peer_classifier(base: str | Path, tokenizer: Any, recipe: FinetuneConfig, dtype: Any, device: Any) -> Any:
    """transformers' sequence classifier over the checkpoint in `base`, with peft's adapters if `recipe` is LoRA.

    Its `tokenizer` is made to pad on the right, by the end-of-sequence token where it has none for that.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS), dtype=dtype).to(device)
    model.config.pad_token_id = tokenizer.pad_token_id
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
    # In its own type, which is faster than its float32.
    return get_peft_model(model, lora, autocast_adapter_dtype=False)

"""Finetuning, alone or many at once, and the stages that finetune: base model, generator, task model. No scores."""

"""Many models over one frozen base, also in FP8: LoRA adapters, arithmetic, files and optimizer. No batches are made here."""

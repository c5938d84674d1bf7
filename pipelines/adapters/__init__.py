"""Many models over one frozen base: LoRA adapters, their arithmetic, files and optimizer. No batches are made here."""

"""Many examples in one pass: batches without padding, dropout by hash, attention over a packed batch. No model's weights."""

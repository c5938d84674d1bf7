"""Settings of AdamW's update, a row a model: what `adamw.py` and its kernels both read."""

BETAS = (0.9, 0.999)
EPSILON = 1e-8
RATE, DECAY, FACTOR, FIRST_BIAS, SECOND_BIAS = range(5)
"""Columns of `settings`: learning rate; learning rate times weight decay; what gradients are multiplied with (clipping),
negative for a row that is to stay as it is; 1 - β1^t; the square root of 1 - β2^t."""
STAYS = (0.0, 0.0, -1.0, 1.0, 1.0)
"""The settings of a row that is to stay as it is."""
NUM_SETTINGS = len(STAYS)


def settings_row(step: int, *, rate: float, weight_decay: float) -> list[float]:
    """A row's settings for its update number `step`, from 1; the factor is 1."""
    return [rate, rate * weight_decay, 1.0, 1 - BETAS[0] ** step, (1 - BETAS[1] ** step) ** 0.5]

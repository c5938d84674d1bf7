"""Does original data beside the synthetic keep the blindspot small? Mixes at one size, and synthetic data added on top.

blindsweep run docs/examples/mixtures.py
"""

from dataclasses import replace

from sweep import Added, Experiment, Mix
from sweep.experiments import demo


def mixtures(seeds: tuple[int, ...] = (0, 1, 2), training_size: int = 600) -> Experiment:
    """The demo's study with a quarter, a half and three quarters of original data, and with as much synthetic data added."""
    study = demo(seeds=seeds, training_sizes=(training_size,))
    mixes = tuple(Mix(original=share, synthetic=1 - share) for share in (0.25, 0.5, 0.75))
    return replace(
        study,
        name="mixtures",
        title="Mixtures of original and synthetic data, a tiny Llama on the template corpus",
        kinds=("original", *mixes, Added(synthetic=1.0), "synthetic", "biased_synthetic"),
    )

"""Examples that somebody else wrote in place of a generator's: does training on *them* grow the blindspot?

    blindsweep run docs/examples/own_pool.py -p pool=FILE

FILE is a table of premises, hypotheses and labels: Parquet, CSV, TSV or JSONL. The template corpus is the original data here.
"""

from dataclasses import replace

from sweep import Experiment
from sweep.experiments import demo


def own_pool(
    pool: str = "pool.parquet",
    seeds: tuple[int, ...] = (0, 1, 2),
    training_size: int = 600,
    kinds: tuple[str, ...] = ("original", "synthetic", "biased_synthetic"),
) -> Experiment:
    """The demo's study with a pool from a file: neither a generator nor generation."""
    study = demo(seeds=seeds, training_sizes=(training_size,), kinds=kinds)
    return replace(
        study,
        name="own_pool",
        title="A pool from a file, a tiny Llama on the template corpus",
        synthetic=pool,
        generator=None,
        generation=None,
    )

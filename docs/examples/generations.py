"""Does the blindspot grow from one generation of synthetic data to the next? Each generator learns from the pool before it.

blindsweep run docs/examples/generations.py
blindsweep run docs/examples/generations.py -p accumulate=true
"""

from dataclasses import replace

from sweep import Experiment
from sweep.experiments import demo


def generations(seeds: tuple[int, ...] = (0, 1, 2), num: int = 3, accumulate: bool = False) -> Experiment:
    """The demo's study over `num` generations; with `accumulate`, a generator learns from all data so far."""
    study = demo(seeds=seeds, training_sizes=(600,), pool_size=1_800)
    return replace(
        study,
        name="accumulated_generations" if accumulate else "generations",
        title="Generations of synthetic data, a tiny Llama on the template corpus",
        generations=num,
        accumulate=accumulate,
    )

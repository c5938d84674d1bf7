"""Write docs/coverage.md: `python -m analysis.simulation`, in minutes on one core."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.simulation import cells, figure1, generators, runs
from analysis.simulation.differences import SCENARIOS, SEEDS, VERDICT_SEEDS, coverage
from analysis.simulation.page import Results, page
from analysis.simulation.runs import SETS, SUBCASE_ITEMS, RunCoverage, read_runs, run_coverage, simulated_runs, subcases
from analysis.simulation.scenarios import hans, mnli

NUM_REPLICATIONS = 2000
NUM_SIMULATED = 20
NUM_STUDIES = 10
FIGURE1_SEEDS = (5, 10)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.simulation", description="Write docs/coverage.md.")
    parser.add_argument("--output", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--runs", type=Path, help="bert_100_runs.csv of https://github.com/tommccoy1/hans")
    parser.add_argument("--replications", type=int, default=NUM_REPLICATIONS)
    parser.add_argument("--studies", type=int, default=NUM_STUDIES, help="of the paper's Figure 1, seconds each; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.output.write_text(page(simulate(options.replications, options.seed, options.runs, options.studies)))


def simulate(num: int, seed: int, runs_file: Path | None = None, num_studies: int = 0) -> Results:
    """All tables, from `num` replications a row; those of the real runs only with their file.

    `num_studies` are those of the paper's Figure 1.
    """
    ten_points = hans("HANS, 10 points less", -0.10)
    of_runs = {} if runs_file is None else read_runs(runs_file)
    varying = subcases(of_runs)
    return Results(
        num=num,
        differences=[coverage(scenario, n, seed=seed, num=num) for scenario in SCENARIOS for n in SEEDS],
        verdicts=[coverage(ten_points, n, seed=seed, num=num) for n in VERDICT_SEEDS],
        cells=[
            cells.cell_coverage(name, scenario, n, seed=seed, num=num)
            for level in cells.LEVELS
            for name, scenario in cells.cells_at(level)
            for n in cells.SEEDS
        ],
        one_generator=[
            generators.one_generator(ratio, n, seed=seed, num=num) for ratio in generators.RATIOS for n in generators.SEEDS
        ],
        many_generators=[
            generators.many_generators(ratio, num_generators, n, seed=seed, num=num)
            for ratio in generators.RATIOS
            for num_generators, n in generators.DEALT
        ],
        runs=[
            run_coverage(name, of_runs[column], n, seed=seed, num=num)
            for column, name in SETS.items()
            for n in runs.SEEDS
            if of_runs
        ],
        subcases=[
            run_coverage(name, of_runs[name], n, seed=seed, num=num, num_items=SUBCASE_ITEMS)
            for name in varying
            for n in runs.SEEDS
        ],
        simulated=_simulated(num, seed) if of_runs else None,
        figure1={
            n: figure1.count_verdicts(figure1.judge_by_accuracy_and_scores, n, num_studies, seed=seed)
            for n in FIGURE1_SEEDS
            if num_studies
        },
        num_runs=len(next(iter(of_runs.values()), ())),
        num_subcases=len(varying),
    )


def _simulated(num: int, seed: int) -> dict[tuple[str, int], RunCoverage]:
    """What `runs` does to the real runs, done to simulated ones: the mean over NUM_SIMULATED times 100 of them."""
    means = {}
    for column, scenario in (("MNLI dev acc.", mnli("")), ("Lexical (nonent)", hans(""))):
        sets_of_runs = simulated_runs(scenario, 100, NUM_SIMULATED, seed=seed)
        for n in runs.SEEDS:
            each = [
                run_coverage(SETS[column], values, n, seed=number, num=num // NUM_SIMULATED + 1)
                for number, values in enumerate(sets_of_runs)
            ]
            rejected, covered = (float(np.mean([getattr(one, share) for one in each])) for share in ("rejected", "covered"))
            means[SETS[column], n] = RunCoverage(SETS[column], n, each[0].level, each[0].seed_sd, rejected, covered)
    return means


if __name__ == "__main__":
    main()

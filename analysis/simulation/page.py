"""docs/coverage.md: what intervals, verdicts and planned numbers of seeds are worth, as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.simulation.cells import CellCoverage
from analysis.simulation.differences import Coverage
from analysis.simulation.generators import FalseVerdicts
from analysis.simulation.runs import RunCoverage

PAGE = """# Do the intervals cover what they promise?

Made by `python -m analysis.simulation`. Each row is {num} simulated studies: two kinds of training set, paired by seed, on
the same test items, whose true difference for further seeds and further items (templates, premises) is known. Accuracies
and their standard deviations over seeds are those of 100 BERT finetunings (McCoy, Min and Linzen 2020): 84.3 ± 0.24% on
MultiNLI, 27.7 ± 12.4% on HANS's lexical-overlap non-entailment. `analysis/simulation/scenarios.py` has the model. A share
near 95 or 5% has a Monte Carlo standard error of {error} points.

## Differences

{differences}

Where there is no difference, *leaves out 0* is the type-I error. The interval is that of `analysis/stats/intervals.py`,
on which verdicts rest. Student's t over seeds alone forgets that other test items would have given another difference:
where templates matter it covers less the more seeds there are. So do sign flips, which cannot reach 5% at all with 5
seeds or fewer. The bootstrap over seeds is too narrow for few seeds, so no verdict rests on it. The last two blocks are
not BERT's: there templates matter about as much as seeds, or more, and the interval is wider than it has to be for few
seeds.

### Ten points on HANS, by the number of runs

The same studies, 10 points less for the treatment: how often the claim 'it is less' gets which verdict. It is one claim, so
nothing is corrected for.

{verdicts}

`blindsweep power --seed-sd 17.5` gives the number of runs for other differences (17.5 = 12.4 × √2).

## One cell's accuracy, at the floor and the ceiling, too

The interval of `analysis/stats/shares.py` for seeds like BERT's, on the 25 templates of HANS's lexical-overlap
non-entailment and on the 6 of one subcase: how often it holds the true accuracy, and its median width in points. Of one
seed, the truth is that task model's accuracy on further templates; of several, that of further seeds and templates. Beside
it, with 5 seeds, Student's t for seeds and items, which does not look at the bounds. Subcases of one template have no
degrees of freedom over templates: their intervals speak of further items of that template, and nothing here is about them.

{cells}

Near the floor the interval of a cell is wider than its seeds need: what templates that were not seen would add is not known.

## Generators

The treatment's data comes from a generator, and generators differ. Their standard deviation is given in units of that of
the seeds' differences. *False* are two-sided verdicts at 5% where there is no true difference in the mean over generators,
*seen* is how often 10 points less are found to be less.

One generator, judged by its seeds. About that generator itself the verdicts are right; about further generators they are wrong
the more often, the more seeds there are:

{one_generator}

Generators as units, each the mean of its seeds:

{many_generators}

With three generators there are two degrees of freedom: what is said is right, and little is seen.

{figure1}{runs}"""

FIGURE1 = """## The paper's Figure 1, had it had several seeds

{num} studies in which the accuracies of the paper's Figure 1 are the truth, with seeds like BERT's, HANS's templates and one
generator: how often its claims get which verdict. An accuracy there is of one run, so this says what a study of its size can
tell, and not whether the paper is right.

{verdicts}

"""

RUNS = """## Real runs: 100 BERT finetunings

{num} random draws from the {num_runs} runs of McCoy, Min and Linzen (2020), which differ in the seed only and saw the
same test items (`bert_100_runs.csv` in https://github.com/tommccoy1/hans, given by `--runs`). *False* are draws of as many
runs for 'treatment' and, disjoint, for 'control' that are found to differ at a two-sided 5%; *covers* is how often a draw's
interval holds the mean of the runs that were not drawn. Items being the same, only seeds count in both. *Simulated* is the
same done to 100 runs of the simulation, on average over 20 such.

{sets}

The {num_subcases} subcases in which not all runs agree, least, median and most of them:

{subcases}

Where nearly all runs have everything right, draws agree exactly and no difference is found: the least is 0.
"""

WITHOUT_RUNS = """## Real runs

Left out: `python -m analysis.simulation --runs bert_100_runs.csv` adds the same shares for 100 BERT finetunings (the file is in
https://github.com/tommccoy1/hans).
"""


@dataclass(frozen=True)
class Results:
    """All that the page is made of. `runs` is by set and `subcases` by subcase, empty without the file; `simulated` by set.

    `figure1` is by number of seeds and claim.
    """

    num: int
    differences: Sequence[Coverage]
    verdicts: Sequence[Coverage]
    cells: Sequence[CellCoverage]
    one_generator: Sequence[FalseVerdicts]
    many_generators: Sequence[FalseVerdicts]
    runs: Sequence[RunCoverage] = ()
    subcases: Sequence[RunCoverage] = ()
    simulated: Mapping[tuple[str, int], RunCoverage] | None = None
    num_runs: int = 0
    num_subcases: int = 0
    figure1: Mapping[int, Mapping[str, Counter[str]]] | None = None


def page(results: Results) -> str:
    """docs/coverage.md."""
    return PAGE.format(
        num=f"{results.num:,}",
        error=percent(math.sqrt(0.05 * 0.95 / results.num)),
        differences=_differences(results.differences),
        verdicts=table(
            ("runs", "supported, %", "cannot tell, %", "interval's mean width, points"),
            ([str(row.num_seeds), *map(percent, (row.below, 1 - row.rejected, row.width))] for row in results.verdicts),
        ),
        cells=_cells(results.cells),
        one_generator=table(
            ("generators' SD", "seeds", "false about that generator, %", "false about further generators, %", "seen, %"),
            (
                [f"{row.ratio:g}", str(row.num_seeds), *map(percent, (row.about_own, row.about_others, row.power))]
                for row in results.one_generator
            ),
        ),
        many_generators=table(
            ("generators' SD", "generators", "seeds in all", "false about further generators, %", "seen, %"),
            (
                [f"{row.ratio:g}", str(row.num_generators), str(row.num_seeds), *map(percent, (row.about_others, row.power))]
                for row in results.many_generators
            ),
        ),
        figure1=_figure1(results.figure1) if results.figure1 else "",
        runs=_runs(results) if results.runs else WITHOUT_RUNS,
    )


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent without the sign; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows))


def _differences(results: Sequence[Coverage]) -> str:
    headings = (
        *("simulated", "seeds", "accuracy ± SD, %", "95% interval covers, %", "leaves out 0, %", "sign flips, p ≤ 5%, %"),
        *("t over seeds only covers, %", "two-level bootstrap covers, %", "mean width, points"),
    )
    rows = []
    for row in results:
        level = f"{percent(row.accuracy)} ± {percent(row.seed_sd, 2)}"
        shares = (row.covered, row.rejected, row.rejected_by_sign_flip, row.over_seeds_only, row.bootstrap, row.width)
        rows.append([row.scenario, str(row.num_seeds), level, *map(percent, shares)])
    return table(headings, rows)


def _cells(results: Sequence[CellCoverage]) -> str:
    """A row a kind of cell, a column a number of seeds: 'covers (width)'."""
    seeds = sorted({row.num_seeds for row in results})
    by_kind: dict[tuple[str, float], dict[int, CellCoverage]] = {}
    for row in results:
        by_kind.setdefault((row.name, row.accuracy), {})[row.num_seeds] = row
    rows = []
    for (name, accuracy), of_kind in by_kind.items():
        ours = [f"{percent(of_kind[num].covered)} ({percent(of_kind[num].width)})" for num in seeds]
        by_t = f"{percent(of_kind[5].covered_by_t)} ({percent(of_kind[5].width_by_t)})"
        rows.append([f"{100 * accuracy:g}", name, *ours, by_t])
    columns = [f"{num} seed{'s' if num > 1 else ''}: covers, % (width)" for num in seeds]
    return table(("accuracy, %", "on", *columns, "t, 5 seeds"), rows)


def _figure1(by_seeds: Mapping[int, Mapping[str, Counter[str]]]) -> str:
    """A row a claim, a column a number of seeds: 'supported 8, cannot tell 2'."""
    first = next(iter(by_seeds.values()))
    rows = [
        [
            claim.replace("_", " "),
            *(", ".join(f"{verdict} {num}" for verdict, num in of[claim].most_common()) for of in by_seeds.values()),
        ]
        for claim in first
    ]
    num = sum(next(iter(first.values())).values())
    return FIGURE1.format(num=num, verdicts=table(("claim", *(f"{seeds} seeds" for seeds in by_seeds)), rows))


def _runs(results: Results) -> str:
    simulated = results.simulated or {}
    rows = []
    for row in results.runs:
        beside = simulated.get((row.name, row.num_seeds))
        of_simulation = (beside.rejected, beside.covered) if beside else (math.nan, math.nan)
        level = f"{percent(row.level)} ± {percent(row.seed_sd, 2)}"
        rows.append([row.name, level, str(row.num_seeds), *map(percent, (row.rejected, row.covered, *of_simulation))])
    headings = ("set", "accuracy ± SD, %", "runs", "false, %", "covers, %", "simulated: false, %", "simulated: covers, %")
    return RUNS.format(
        num=f"{results.num:,}",
        num_runs=results.num_runs,
        sets=table(headings, rows),
        num_subcases=results.num_subcases,
        subcases=_subcases(results.subcases),
    )


def _subcases(results: Sequence[RunCoverage]) -> str:
    rows = []
    for num_seeds in sorted({row.num_seeds for row in results}):
        of_seeds = [row for row in results if row.num_seeds == num_seeds]
        shares = []
        for values in ([row.rejected for row in of_seeds], [row.covered for row in of_seeds]):
            shares.append(", ".join(percent(float(share)) for share in np.quantile(values, (0, 0.5, 1))))
        rows.append([str(num_seeds), *shares])
    return table(("runs", "false, %", "covers, %"), rows)

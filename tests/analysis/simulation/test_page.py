"""The page says what the tables hold, and the command writes it."""

from collections import Counter
from pathlib import Path

from analysis.simulation.__main__ import main
from analysis.simulation.cells import CellCoverage
from analysis.simulation.differences import Coverage
from analysis.simulation.generators import FalseVerdicts
from analysis.simulation.page import Results, page
from analysis.simulation.runs import RunCoverage

DIFFERENCE = Coverage("HANS", 5, 0.277, 0.124, 0.951, 0.049, 0.02, 0.0, 0.943, 0.871, 0.321)
CELL = CellCoverage("25 templates", 5, 0.01, 0.99, 0.05, 0.75, 0.02)
ONE = FalseVerdicts(0.5, 0, 10, 0.048, 0.212, 0.4)
MANY = FalseVerdicts(0.5, 5, 10, 0.01, 0.042, 0.26)


def test_the_page_is_made_of_the_figures() -> None:
    text = page(Results(2000, [DIFFERENCE], [DIFFERENCE], [CELL], [ONE], [MANY]))
    assert "| HANS | 5 | 27.7 ± 12.40 | 95.1 | 4.9 | 0.0 | 94.3 | 87.1 | 32.1 |" in text
    assert "| 5 | 2.0 | 95.1 | 32.1 |" in text
    assert "| 1 | 25 templates | 99.0 (5.0) | 75.0 (2.0) |" in text
    assert "| 0.5 | 10 | 4.8 | 21.2 | 40.0 |" in text
    assert "| 0.5 | 5 | 10 | 4.2 | 26.0 |" in text
    assert "standard error of 0.5 points" in text
    assert "Left out" in text


def test_real_runs_stand_beside_the_simulation() -> None:
    real, simulated = RunCoverage("MultiNLI", 3, 0.843, 0.0024, 0.045, 0.945), RunCoverage("MultiNLI", 3, 0, 0, 0.05, 0.95)
    text = page(
        Results(
            2000,
            [DIFFERENCE],
            [DIFFERENCE],
            [CELL],
            [ONE],
            [MANY],
            [real],
            [real],
            {("MultiNLI", 3): simulated},
            100,
            28,
        )
    )
    assert "| MultiNLI | 84.3 ± 0.24 | 3 | 4.5 | 94.5 | 5.0 | 95.0 |" in text
    assert "| 3 | 4.5, 4.5, 4.5 | 94.5, 94.5, 94.5 |" in text
    assert "Left out" not in text


def test_verdicts_on_figure_1_are_counted_by_claim_and_seeds() -> None:
    of_five = {"bias_is_seen": Counter({"cannot tell": 1, "supported": 3})}
    of_ten = {"bias_is_seen": Counter({"supported": 4})}
    text = page(Results(2000, [DIFFERENCE], [DIFFERENCE], [CELL], [ONE], [MANY], figure1={5: of_five, 10: of_ten}))
    assert "\n4 studies in which" in text
    assert "| claim | 5 seeds | 10 seeds |" in text
    assert "| bias is seen | supported 3, cannot tell 1 | supported 4 |" in text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    main(["--output", str(tmp_path / "coverage.md"), "--replications", "20", "--studies", "0"])
    assert (tmp_path / "coverage.md").read_text().count("\n| ") > 70

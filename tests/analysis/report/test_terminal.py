"""`blindsweep verdicts` and `blindsweep power` on a small store, as a user meets them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sweep import cli
from tests.analysis.item_study import ItemStudy, clear


@pytest.fixture(autouse=True)
def is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of pytest-xdist have a width of their own."""
    monkeypatch.delenv("COLUMNS", raising=False)


def blindsweep(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def store(tmp_path: Path, num_seeds: int) -> str:
    study = ItemStudy(tmp_path, clear)
    study.grid(num_seeds=num_seeds)
    return study.write()


def test_verdicts_say_what_is_so_and_how_sure_it_is(tmp_path: Path) -> None:
    result = blindsweep("verdicts", "tiny", "--store", store(tmp_path, 6), "--margin", "5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    start = "With six seeds and one generator, all five primary claims are decided: “Synthetic data lowers"
    assert lines[0].startswith(start) and lines[0].endswith("and three more are supported.")
    assert lines[1].startswith("The positive control is seen: data biased on purpose shows")
    (line,) = [one for one in lines if one.startswith("synthetic_reinforces ")]
    # 70% to 30%, by construction ±2 points a cell.
    assert " supported " in line
    assert "−4" in line and "4 of 4, 4 clear" in line
    assert "One generator: this holds for its data" in result.stdout
    assert "One seed" not in result.stdout


def test_verdicts_fit_a_terminal_of_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = store(tmp_path, 6)
    wide = blindsweep("verdicts", "tiny", "--store", where).stdout
    assert max(map(len, wide.splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "80")
    narrow = blindsweep("verdicts", "tiny", "--store", where).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    lines = narrow.splitlines()
    claim = lines.index("synthetic_reinforces: supported")
    assert lines[claim + 1].startswith("    estimate −4") and "4 of 4, 4 clear" in " ".join(lines[claim + 1 : claim + 4])
    assert narrow.count(": supported") == wide.count(" supported ")


def test_what_marks_the_study_is_said_with_the_verdicts(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.add("sources", "training", marks=("partial MultiNLI",))
    study.grid(num_seeds=2)
    where = study.write()
    lines = blindsweep("verdicts", "tiny", "--store", where).stdout.splitlines()
    (mark,) = json.loads(blindsweep("verdicts", "tiny", "--store", where, "--json").stdout)["marks"]
    assert mark.startswith("partial MultiNLI: 1 of ") and mark.endswith(" artifacts")
    assert lines[2] == f"marked: {mark}" and lines[3] == ""


def test_one_seed_is_said_first(tmp_path: Path) -> None:
    result = blindsweep("verdicts", "tiny", "--store", store(tmp_path, 1))
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "The positive control is not seen, so this study could not have seen a blindspot grow; "
        "with one seed and one generator, none of five primary claims is decided; "
        "how many seeds would settle the open ones can be said from three on."
    )
    assert lines[1].startswith("The positive control is not seen (it cannot be tested): this study could not have")
    assert lines[2:3] == [
        "One seed: nothing is said about training, and every interval is over test items only.",
    ]


def test_verdicts_as_json_have_no_nan(tmp_path: Path) -> None:
    result = blindsweep("verdicts", "tiny", "--store", store(tmp_path, 2), "--json", "--cost-per-seed", "3")

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    found = json.loads(result.stdout, parse_constant=refuse)
    assert len(found["claims"]) == 20
    assert found["claims"][0]["statement"].endswith("compared with synthetic data.")
    assert found["claims"][0]["settings"][0]["setting"] == "start untrained, size 120"
    assert [control["measure"] for control in found["controls"]] == ["accuracy", "margin", "auc", "pull"]
    assert found["claims"][-1]["estimate"] is None
    assert len(found["subcases"]) == 8
    # 2 starting points × (1 + 3 kinds × 2 sizes) × (all and 2 heuristics).
    assert len(found["signal_detection"]) == 2 * 7 * 3


def test_power_from_a_pilot_and_from_a_given_deviation(tmp_path: Path) -> None:
    where = store(tmp_path, 4)
    pilot = json.loads(blindsweep("power", "tiny", "--store", where, "--json", "--cost-per-seed", "2").stdout)
    assert len(pilot["variances"]) == 9
    assert {one["cost"] for one in pilot["power"] if one["seeds"] == 10} == {20.0}
    shown = blindsweep("power", "tiny", "--store", where).stdout
    assert "…" not in shown and "seeds for 2" in shown and "seeds for 10" in shown, "nothing is cut"
    given = blindsweep("power", "--seed-sd", "17.5")
    # As tests/analysis/study/test_power.py has it: 10 points take 27 seeds.
    assert "given" in given.stdout
    assert " 27" in given.stdout
    # Generators that do not differ, and cost nothing, are as many as the seeds: 27 for ten points, of 1 each.
    costs = ["--generator-sd", "0", "--cost-per-generator", "0", "--cost-per-seed", "2"]
    mixed = json.loads(blindsweep("power", "--seed-sd", "17.5", *costs, "--json").stdout)["mixes"]
    assert mixed[-1] == {"metric": "given", "effect": 0.1, "generators": 27, "seeds": 1, "cost": 54.0}
    assert "27 × 1 (54.00)" in blindsweep("power", "--seed-sd", "17.5", *costs).stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["power"], "--seed-sd"),
        (["power", "tiny", "--seed-sd", "3"], "not both"),
        (["power", "--seed-sd", "0"], "above 0"),
        (["power", "--seed-sd", "3", "--generator-sd", "2"], "give all three"),
        (["verdicts", "nothing"], "no study 'nothing'"),
    ],
)
def test_one_clear_error(arguments: list[str], part: str, tmp_path: Path) -> None:
    result = blindsweep(*arguments, "--store", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert part in result.stderr


def test_a_pilot_of_one_seed_is_no_pilot(tmp_path: Path) -> None:
    result = blindsweep("power", "tiny", "--store", store(tmp_path, 1))
    assert result.exit_code == 1
    assert (
        "this study has one seed" in result.stderr and "a pilot needs two; run it with more, as -p seeds=0,1" in result.stderr
    )
    assert "nan" not in result.stderr

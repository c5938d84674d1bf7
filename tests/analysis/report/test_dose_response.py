"""Doses of bias: slopes by hand, their place in frame and report."""

from pathlib import Path

import pytest

from analysis.report.dose_response import GENERATIONS, MIXTURES, dose_figure, has_doses, slopes
from analysis.report.report import build_report
from analysis.study.series import paper_series
from pipelines.errors import UserError
from tests.analysis.fake_store import FakeStudy

SERIES = paper_series("template_test", "template_probe", "lexical_overlap/non-entailment")


def study_with_doses(root: Path, right: dict[float, tuple[int, int]]) -> FakeStudy:
    """Right answers of 200 of two seeds, by dose, on every test set."""
    study = FakeStudy(root)
    study.add_grid(starting_sizes=(0,), sizes=(60,))
    for bias, by_seed in right.items():
        for seed, number in enumerate(by_seed):
            study.add_evaluation(0, f"bias_{bias}", 60, seed, lambda *_, number=number: number, bias=bias)
    return study


def test_doses_are_kinds_in_the_order_of_the_dose_and_have_it_as_a_number(tmp_path: Path) -> None:
    study = study_with_doses(tmp_path, {0.9: (100, 100), 0.25: (120, 120)})
    frame = study.frame()
    kinds = [
        "none",
        "original",
        "synthetic",
        "biased_synthetic",
        "filtered_synthetic",
        "debiased_synthetic",
        "bias_0.25",
        "bias_0.9",
    ]
    assert frame["kind"].cat.categories.tolist() == kinds
    biases = frame.dropna(subset="bias").set_index("kind")["bias"].to_dict()
    assert biases == {"bias_0.25": 0.25, "bias_0.9": 0.9}
    assert frame.loc[frame["kind"] == "biased_synthetic", "bias"].isna().all()


def test_slopes_are_of_least_squares_within_a_seed(tmp_path: Path) -> None:
    # Seed 0: 160, 120, 80 of 200 at 0, 0.5, 1: -0.4 from 0 to 1. Seed 1: 160, 130, 40: -0.6.
    study = study_with_doses(tmp_path, {0.0: (160, 160), 0.5: (120, 130), 1.0: (80, 40)})
    found = slopes(study.frame())
    assert len(found) == 3 and set(found["n"]) == {2} and set(found["num_doses"]) == {3}
    assert found["mean"].tolist() == pytest.approx([-0.5] * 3)
    # t(0.975, 1) = 12.706 × SD 0.14142 / sqrt(2) = 1.2706
    assert found["interval_low"].tolist() == pytest.approx([-1.7706] * 3, abs=1e-3)


def test_a_seed_that_lacks_a_dose_has_no_slope(tmp_path: Path) -> None:
    study = study_with_doses(tmp_path, {0.0: (160, 160), 1.0: (80,)})
    found = slopes(study.frame())
    assert set(found["n"]) == {1} and found["mean"].tolist() == pytest.approx([-0.4] * 3)


def test_without_two_doses_there_is_no_curve(tmp_path: Path) -> None:
    frame = study_with_doses(tmp_path, {0.5: (120, 120)}).frame()
    assert not has_doses(frame)
    with pytest.raises(UserError, match="fewer than two doses"):
        slopes(frame)
    with pytest.raises(UserError, match="fewer than two doses"):
        dose_figure(frame, SERIES)


def test_the_report_has_a_section_and_a_figure_of_doses_only_where_there_are_some(tmp_path: Path) -> None:
    study = study_with_doses(tmp_path / "store", {0.0: (160, 160), 0.5: (120, 130), 1.0: (80, 40)})
    page = build_report(study.write(), "tiny", tmp_path / "with").read_text()
    assert "Dose and response" in page and "Bias 0.5" in page
    assert "0: 80.0%, 0.5: 62.5%, 1: 30.0" in page
    assert {path.name for path in (tmp_path / "with").iterdir()} >= {"doses.png", "doses.svg"}
    plain = FakeStudy(tmp_path / "plain")
    plain.add_grid()
    assert "Dose and response" not in build_report(plain.write(), "tiny", tmp_path / "without").read_text()
    assert not (tmp_path / "without" / "doses.png").exists()


def test_the_adversarial_slice_is_the_studys_heuristics(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.parameters["blindspot_slice"] = "subsequence/non-entailment"
    study.add_grid()
    with pytest.raises(UserError, match="blindspot_set"):
        build_report(study.write(), "tiny", tmp_path / "report")
    assert paper_series("a", "b", "holds/my_own/non-neutral")[2].name == "b, my own, non-neutral"


def study_with(root: Path, kinds: dict[str, tuple[dict[str, float], tuple[int, int]]]) -> FakeStudy:
    """Each kind with its further coordinates, and the right answers of 200 of two seeds on every test set."""
    study = FakeStudy(root)
    for seed in (0, 1):
        study.add_evaluation(0, "none", 0, seed, lambda *_: 100)
        for kind, (dials, right) in kinds.items():
            study.add_evaluation(0, kind, 60, seed, lambda *_, number=right[seed]: number, **dials)
    return study


HALF, ADDED = "mix_original0.5_synthetic0.5", "added_synthetic2"


def test_mixes_lie_between_the_pure_kinds_and_have_a_slope(tmp_path: Path) -> None:
    study = study_with(
        tmp_path / "store",
        {
            "original": ({}, (160, 160)), HALF: ({"synthetic_share": 0.5}, (120, 130)), "synthetic": ({}, (80, 40)),
            ADDED: ({"synthetic_share": 2 / 3}, (0, 0)),
        },
    )  # fmt: skip
    frame = study.frame()
    assert frame["kind"].cat.categories.tolist()[-2:] == [HALF, ADDED]
    found = slopes(frame, MIXTURES)
    # What is added on top has another size.
    assert set(found["num_doses"]) == {3} and found["mean"].tolist() == pytest.approx([-0.5] * 3)
    assert not has_doses(frame) and not has_doses(frame, GENERATIONS)
    page = build_report(study.write(), "tiny", tmp_path / "report").read_text()
    assert "Mixtures" in page and "0: 80.0%, 0.5: 62.5%, 1: 30.0" in page
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"mixtures.png", "mixtures.svg"}
    with pytest.raises(UserError, match="fewer than two generations, so there is no curve; give the experiment generations=2"):
        dose_figure(frame, SERIES, GENERATIONS)


def test_generations_have_a_slope_for_each_further_one(tmp_path: Path) -> None:
    study = study_with(
        tmp_path / "store",
        {
            "original": ({}, (160, 160)), "synthetic": ({}, (120, 100)),
            "synthetic_generation2": ({"generation": 2}, (100, 80)), "synthetic_generation3": ({"generation": 3}, (80, 20)),
        },
    )  # fmt: skip
    frame = study.frame()
    # -0.1 and -0.2 of 200 answers each.
    assert slopes(frame, GENERATIONS)["mean"].tolist() == pytest.approx([-0.15] * 3)
    assert not has_doses(frame, MIXTURES), "without a mix there is nothing between original and synthetic data"
    page = build_report(study.write(), "tiny", tmp_path / "report").read_text()
    assert "Generations" in page and "points a generation" in page and (tmp_path / "report" / "generations.png").exists()

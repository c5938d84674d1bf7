import dataclasses
import math
from pathlib import Path

import pytest

from analysis.stats.intervals import Effect
from analysis.study.artifacts import LabelCount
from analysis.study.claims import Claim, Evidence, Part, claims, load_evidence, overlap_claims
from analysis.study.verdicts import Judgement, Outcome, judge, judge_claims, judgement_table, subcase_table
from pipelines.errors import UserError
from sweep.graph.records import Store, Study
from tests.analysis.item_study import ItemStudy, Rate, clear

# The paper's Table 1.
SYNTHETIC = {
    "entailment": LabelCount(631992, 24360),
    "neutral": LabelCount(562822, 690),
    "contradiction": LabelCount(624999, 1504),
}
ORIGINAL = {
    "entailment": LabelCount(130541, 2139),
    "neutral": LabelCount(130573, 69),
    "contradiction": LabelCount(130608, 172),
}
RULE = "blindspot_falls_while_general_rises"


def judged(tmp_path: Path, rate: Rate, num_seeds: int, *, cost_per_seed: float | None = None) -> dict[str, Judgement]:
    study = ItemStudy(tmp_path, rate)
    study.grid(num_seeds=num_seeds)
    found = judge(study.write(), "tiny", margin=0.05, cost_per_seed=cost_per_seed)
    return {one.name: one for one in found}


def part(mean: float, seed_sd: float, num_seeds: int, sign: int = 1, name: str = "d", item_variance: float = 0.0) -> Part:
    effect = Effect(mean, num_seeds, 1000, seed_sd**2 if num_seeds > 1 else math.nan, item_variance)
    return Part(name, effect, sign, "share", tuple([mean] * num_seeds))  # type: ignore[arg-type]


def one_claim(*parts: Part, margin: float = 0.01, cost_per_seed: float | None = None) -> Judgement:
    (found,) = judge_claims([Claim("c", "It is so.", "yes", lambda: parts)], margin=margin, cost_per_seed=cost_per_seed)
    return found


def test_a_clear_study_gets_clear_verdicts(tmp_path: Path) -> None:
    found = judged(tmp_path, clear, 10)
    assert list(found) == [
        "synthetic_helps_general",
        "synthetic_helps_as_much_as_original",
        f"{RULE}/start=0",
        f"{RULE}/start=50000",
        RULE,
        "original_is_kinder_to_blindspot",
        "bias_collapses_adversarial",
        "synthetic_overlaps_more",
        "overlap_predicts_entailment_more",
    ]
    verdicts = {name: one.verdict for name, one in found.items()}
    assert verdicts["synthetic_helps_general"] == Outcome.SUPPORTED
    assert verdicts["synthetic_helps_as_much_as_original"] == Outcome.EQUIVALENT
    assert verdicts[RULE] == verdicts[f"{RULE}/start=0"] == Outcome.SUPPORTED
    assert verdicts["original_is_kinder_to_blindspot"] == Outcome.SUPPORTED
    assert verdicts["bias_collapses_adversarial"] == Outcome.SUPPORTED
    # This store has neither training data nor a pool.
    assert verdicts["synthetic_overlaps_more"] == Outcome.CANNOT_TELL
    assert math.isnan(found["synthetic_overlaps_more"].estimate)
    helps = found["synthetic_helps_general"]
    # Undertrained is the starting point of 0 only.
    assert helps.estimate == pytest.approx(0.4, abs=0.03)
    assert helps.low < 0.4 < helps.high
    assert (helps.num_seeds, helps.num_items, helps.num_claims) == (10, 90, 7)
    assert helps.p_adjusted >= helps.p
    assert helps.p_sign_flip == 2 / 1024
    # The interaction: +0.4 in general, and −0.3 on half of the probe.
    assert found[RULE].estimate == pytest.approx(0.55, abs=0.03)
    assert [one["claimed_sign"] for one in found[RULE].parts] == [1, 1, -1]


def test_a_study_of_the_opposite_refutes(tmp_path: Path) -> None:
    def opposite(start: int, kind: str, size: int, part: str) -> float:
        return {"none": 0.6, "original": 0.5, "synthetic": 0.3 if part == "general" else 0.9}.get(kind, 0.9)

    found = judged(tmp_path, opposite, 8)
    assert {one.verdict for name, one in found.items() if "overlap" not in name} == {Outcome.REFUTED}


def test_a_fall_that_any_data_brings_is_not_put_down_to_the_bias(tmp_path: Path) -> None:
    def saturated(start: int, kind: str, size: int, part: str) -> float:
        untrained = kind == "none" and start == 0
        return 0.9 if untrained or part != "non-entailment" else 0.3 if kind == "original" else 0.0

    notes = judged(tmp_path, saturated, 3)["bias_collapses_adversarial"].notes
    assert "with synthetic data of that size, unbiased, it is" in notes[1] and notes[1].endswith("the fall is not the bias's")
    assert notes[2] == "at most 5 % before, so with nothing to fall: starting points of 50000"
    assert not any("original" in note for note in notes)
    assert len(judged(tmp_path / "clear", clear, 3)["bias_collapses_adversarial"].notes) == 1


def test_one_seed_says_nothing_of_training(tmp_path: Path) -> None:
    found = judged(tmp_path, clear, 1, cost_per_seed=10.0)
    assert {one.verdict for one in found.values()} == {Outcome.CANNOT_TELL}
    one = found["synthetic_helps_general"]
    assert "one seed" in one.notes[0]
    assert math.isnan(one.p)
    assert one.low < one.estimate < one.high
    assert (one.num_seeds, one.settling_seeds, one.settling_cost) == (1, None, None)


def test_a_conjunction_needs_every_part() -> None:
    clearly, barely, against = part(0.3, 0.1, 10), part(0.01, 0.1, 10, name="b"), part(-0.3, 0.1, 10, name="against")
    assert one_claim(clearly, clearly).verdict == Outcome.SUPPORTED
    undecided = one_claim(clearly, barely)
    assert undecided.verdict == Outcome.CANNOT_TELL
    assert any("not as claimed: b" in note for note in undecided.notes)
    assert one_claim(clearly, barely, against).verdict == Outcome.REFUTED
    # The p of support is the largest part's.
    assert one_claim(clearly, part(0.1, 0.1, 10)).p == pytest.approx(one_claim(part(0.1, 0.1, 10)).p)


def test_a_small_difference_that_is_known_well_is_equivalent() -> None:
    found = one_claim(part(0.001, 0.004, 10), margin=0.01)
    assert found.verdict == Outcome.EQUIVALENT
    assert found.test == "two one-sided tests, margin ±1 points"
    # Known well, small and not 0: the claimed sign is what was asked for.
    assert one_claim(part(0.005, 0.001, 10), margin=0.01).verdict == Outcome.SUPPORTED
    # Claimed to be none, and clearly beyond the margin.
    assert one_claim(part(0.05, 0.01, 10, sign=0), margin=0.01).verdict == Outcome.REFUTED


def test_ten_points_with_five_and_with_thirty_seeds() -> None:
    # 12.4 points on each side; the estimate is exactly 10 points.
    few = one_claim(part(-0.10, 0.1754, 5, sign=-1), cost_per_seed=2.5)
    assert few.verdict == Outcome.CANNOT_TELL
    # As tests/analysis/study/test_power.py has it: 27 seeds in all, so 22 more.
    assert (few.settling_seeds, few.settling_cost) == (27, 55.0)
    assert one_claim(part(-0.10, 0.1754, 30, sign=-1)).verdict == Outcome.SUPPORTED


def test_where_items_set_the_limit_no_number_of_seeds_is_enough() -> None:
    found = one_claim(part(0.02, 0.01, 5, item_variance=0.05**2))
    assert (found.verdict, found.settling_seeds) == (Outcome.CANNOT_TELL, None)
    assert any("no number of seeds" in note for note in found.notes)


def test_holm_runs_over_the_family() -> None:
    # Alone p = 0.028: t = 2.61 with 9 degrees of freedom.
    borderline = part(0.0826, 0.1, 10)
    assert one_claim(borderline).verdict == Outcome.SUPPORTED
    family = [Claim(f"c{i}", "", "", lambda: [borderline]) for i in range(3)]
    found = judge_claims(family)
    assert {one.verdict for one in found} == {Outcome.CANNOT_TELL}
    assert found[0].p_adjusted == pytest.approx(3 * found[0].p)
    with pytest.raises(UserError, match="margin"):
        judge_claims(family, margin=0)


def test_table_1_of_the_paper() -> None:
    found = judge_claims(overlap_claims({"synthetic": SYNTHETIC, "original": ORIGINAL}))
    more, stronger = found
    assert more.verdict == Outcome.SUPPORTED
    # The paper's S:O column.
    assert [round(one["estimate"], 3) for one in more.parts[1:]] == [2.352, 2.320, 1.827]
    # Odds ratios 24360 × 1185627 / (607632 × 2194) = 21.664 and 2139 × 260940 / (128402 × 241) = 18.037; the logarithm of their
    # ratio is 0.18326 ± 1.95996 × 0.07161.
    assert stronger.estimate == pytest.approx(1.2011, abs=1e-3)
    assert (stronger.low, stronger.high) == (pytest.approx(1.0438, abs=1e-3), pytest.approx(1.3821, abs=1e-3))
    assert stronger.p == pytest.approx(0.0105, abs=2e-4)
    assert stronger.verdict == Outcome.SUPPORTED
    assert stronger.unit == "ratio"
    assert "odds ratio 21.7" in stronger.notes[0]


def test_a_study_without_a_kind_cannot_tell_of_it(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    for seed in range(4):
        for kind, size in (("none", 0), ("original", 60), ("synthetic", 60)):
            study.add_cell(0, kind, size, seed)
    found = {one.name: one for one in judge(study.write(), "tiny")}
    assert found["bias_collapses_adversarial"].verdict == Outcome.CANNOT_TELL
    assert "biased_synthetic" in found["bias_collapses_adversarial"].notes[0]
    assert found["synthetic_helps_general"].verdict == Outcome.SUPPORTED


def test_tables(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(starting_sizes=(0,), num_seeds=4)
    store = study.write()
    evidence = load_evidence(store, "tiny")
    table = judgement_table(judge(store, "tiny"))
    assert table["name"].is_unique
    assert table["settling_seeds"].dtype == "Int64"
    subcases = subcase_table(evidence)
    assert list(subcases["subcase"]) == ["le_0", "le_1", "ln_0", "ln_1", "se_0", "se_1", "sn_0", "sn_1"]
    low = subcases[subcases["subcase"].str.contains("n_")]
    assert (low["mean"] < -0.2).all()
    assert (subcases["q"] >= subcases["p"]).all()


def test_a_partial_study_averages_over_the_whole_grid_or_not_at_all(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(num_seeds=3)
    study.logits_path(50_000, "synthetic", 60, 1).unlink()
    store = study.write()
    evidence = load_evidence(Store(store), Study.load(Store(store), "tiny"), partial=True)
    by_name = {one.name: one for one in claims(evidence)}
    assert by_name[RULE].parts()[0].effect.num_seeds == 2
    assert by_name[f"{RULE}/start=0"].parts()[0].effect.num_seeds == 3
    assert isinstance(evidence, Evidence)
    found = judge(store, "tiny", partial=True)
    assert all("1 results are missing" in " ".join(one.notes) for one in found if "overlap" not in one.name)


def test_an_interval_ends_where_a_difference_of_accuracies_does() -> None:
    # Two seeds that differ by 0.3: t with one degree of freedom alone would reach 12.7 times the error.
    wide = part(-0.1, 0.3, 2, sign=-1)
    assert wide.in_unit() == (-0.1, -1.0, 1.0)
    assert dataclasses.replace(wide, bound=2.0).in_unit()[1] == -2.0
    assert math.isnan(part(-0.1, 0.3, 1).in_unit()[1])

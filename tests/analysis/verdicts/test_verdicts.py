import dataclasses
import math
from pathlib import Path

import pytest

from analysis.stats.intervals import Effect
from analysis.study.artifacts import LabelCount
from analysis.verdicts.answer import answer
from analysis.verdicts.evidence import load_evidence, questions
from analysis.verdicts.judgement import ONE_GENERATOR, Judgement, Outcome, Verdicts, judgement_table
from analysis.verdicts.questions import Part, Question, Setting
from analysis.verdicts.subcases import subcase_table
from analysis.verdicts.table1 import overlap_questions
from analysis.verdicts.verdicts import judge, judge_questions
from pipelines.errors import UserError
from sweep.graph.records import Store, Study
from sweep.study.claims import Claim, Comparison, Difference, as_json
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


def judged(
    tmp_path: Path, rate: Rate, num_seeds: int, starts: tuple[int, ...] = (0, 50_000), margin: float | None = None
) -> Verdicts:
    study = ItemStudy(tmp_path, rate)
    study.grid(starting_sizes=starts, num_seeds=num_seeds)
    return judge(study.write(), "tiny", margin=margin)


def part(
    mean: float, seed_sd: float = 0.02, num_seeds: int = 10, sign: int = 1, name: str = "d", item_variance: float = 0.0
) -> Part:
    effect = Effect(mean, num_seeds, 1000, seed_sd**2 if num_seeds > 1 else math.nan, item_variance)
    return Part(name, effect, sign, "share", tuple([mean] * num_seeds))


def question(*settings: tuple[Part, ...] | Part, rule: str = "most", margin: float = 0.01, name: str = "c") -> Question:
    found = tuple(Setting(f"setting {place}", one if isinstance(one, tuple) else (one,)) for place, one in enumerate(settings))
    return Question(name, "It is so.", found, headline=found[0].parts[0], rule=rule, margin=margin)


def verdict(*settings: tuple[Part, ...] | Part, rule: str = "most", margin: float = 0.01) -> Outcome:
    return one(question(*settings, rule=rule, margin=margin)).verdict


def one(asked: Question) -> Judgement:
    return judge_questions([asked]).judgements[0]


def test_a_clear_study_gets_clear_verdicts(tmp_path: Path) -> None:
    found = judged(tmp_path, clear, 10, margin=0.05)
    assert [judgement.name for judgement in found.judgements] == [
        "bias_is_seen",
        "synthetic_reinforces",
        "gap_is_wider_on_blindspot",
        "original_is_kinder_to_blindspot",
        "synthetic_helps_general",
        "synthetic_helps_as_much_as_original",
        "established_gain_nothing",
        f"{RULE}_from/start=50000",
        RULE,
        "biased_is_worst",
        "biased_falls_over_training",
        "biased_ends_near_zero",
        "synthetic_reinforces_by_margin",
        "bias_is_seen_by_margin",
        "synthetic_reinforces_by_auc",
        "bias_is_seen_by_auc",
        "synthetic_reinforces_by_pull",
        "bias_is_seen_by_pull",
        "synthetic_overlaps_more",
        "overlap_predicts_entailment_more",
    ]
    assert sum(judgement.primary for judgement in found.judgements) == 5
    for name in ("bias_is_seen", "synthetic_reinforces", "gap_is_wider_on_blindspot", "original_is_kinder_to_blindspot"):
        assert found[name].verdict == Outcome.SUPPORTED, name
    assert found["synthetic_helps_general"].verdict == found[RULE].verdict == Outcome.SUPPORTED
    assert found["synthetic_helps_as_much_as_original"].verdict == Outcome.EQUIVALENT
    # The starting point of 50,000 examples gains 40 points.
    assert found["established_gain_nothing"].verdict == Outcome.REFUTED
    # This store has neither training data nor a pool.
    assert found["synthetic_overlaps_more"].verdict == Outcome.CANNOT_TELL
    assert math.isnan(found["synthetic_overlaps_more"].estimate)
    helps = found["synthetic_helps_general"]
    # Undertrained is the starting point of 0 only, at two sizes.
    assert helps.estimate == pytest.approx(0.4, abs=0.03)
    assert helps.low < 0.4 < helps.high
    assert (helps.num_units, helps.num_items, helps.num_claims) == (10, 90, 5)
    assert (helps.num_settings, helps.num_signed, helps.num_clear) == (2, 2, 2)
    assert helps.p_adjusted >= helps.p
    assert helps.p_sign_flip == 2 / 1024
    # The interaction: +0.4 in general, and −0.3 on half of the probe.
    assert found[RULE].estimate == pytest.approx(0.55, abs=0.03)
    assert [row["claimed_sign"] for row in found[RULE].settings] == [1, 1, -1] * 2
    assert ONE_GENERATOR in found[RULE].notes


def test_a_mean_over_settings_is_never_judged(tmp_path: Path) -> None:
    """+27 points at one starting point and −3 at three have a mean of +4.4, and synthetic data does not help as a rule."""

    def rate(start: int, kind: str, size: int, place: str) -> float:
        if place != "general":
            return {"none": 0.8, "biased_synthetic": 0.1}.get(kind, 0.5)
        return 0.6 if kind != "synthetic" else 0.87 if start == 0 else 0.53

    found = judged(tmp_path, rate, 6, starts=(0, 5_000, 10_000, 20_000))
    helps = found["synthetic_helps_general"]
    assert helps.estimate > 0 and helps.verdict == Outcome.REFUTED
    assert (helps.num_signed, helps.num_settings) == (2, 8)
    # A mean of 0 of +3, −3, +3, −3 is not 'about as much'.
    about = [part(mean, sign=0) for mean in (0.03, -0.03, 0.03, -0.03)]
    assert verdict(*about, rule="every") == Outcome.REFUTED
    # Kinder by 15 points at one starting point, worse by 1 at three.
    kinder = [part(mean, seed_sd=0.005, sign=-1) for mean in (-0.15, 0.01, 0.01, 0.01)]
    assert verdict(*kinder) == Outcome.REFUTED


def test_in_most_and_in_every() -> None:
    clearly, barely, against = part(0.3), part(0.01, seed_sd=0.1), part(-0.3)
    assert verdict(clearly, clearly, barely, rule="most") == Outcome.SUPPORTED
    assert verdict(clearly, clearly, barely, rule="every") == Outcome.CANNOT_TELL
    assert verdict(clearly, clearly, against, rule="most") == Outcome.SUPPORTED
    assert verdict(clearly, clearly, against, rule="every") == Outcome.REFUTED
    # Half is not most.
    assert verdict(clearly, barely, rule="most") == Outcome.CANNOT_TELL
    assert verdict(clearly, against, against, rule="most") == Outcome.REFUTED
    # A setting that could not be had counts as one that shows nothing.
    gone = dataclasses.replace(question(clearly, clearly), settings=(*question(clearly).settings, Setting("gone", (), "why")))
    assert one(gone).verdict == Outcome.CANNOT_TELL


def test_a_conjunction_needs_every_part() -> None:
    clearly, barely, against = part(0.3, 0.1), part(0.01, 0.1, name="b"), part(-0.3, 0.1, name="against")
    assert verdict((clearly, clearly)) == Outcome.SUPPORTED
    undecided = one(question((clearly, barely)))
    assert undecided.verdict == Outcome.CANNOT_TELL
    assert any("not as claimed: b" in note for note in undecided.notes)
    assert verdict((clearly, barely, against)) == Outcome.REFUTED
    # The p of support is the largest part's.
    assert one(question((clearly, part(0.1, 0.1)))).p == pytest.approx(one(question(part(0.1, 0.1))).p)


def test_a_part_on_which_two_seeds_tie_does_not_keep_another_from_refuting() -> None:
    tied, against = part(0.3, seed_sd=0.0, num_seeds=5, name="tied"), part(-0.3, num_seeds=5, name="against")
    assert verdict((tied, against)) == Outcome.REFUTED
    # It shows nothing by itself.
    assert verdict((tied, part(0.3, num_seeds=5))) == Outcome.CANNOT_TELL
    alone = one(question(tied))
    assert alone.verdict == Outcome.CANNOT_TELL and "agree exactly" in alone.notes[0]
    assert sum("agree exactly" in note for note in alone.notes) == 1
    # Where one of several settings has no variance, no number of seeds can be had, and the note says why.
    of_two = one(question(tied, part(0.01, num_seeds=5)))
    assert of_two.settling_low is None
    assert "the seeds agree exactly in 1 of 2 settings, so their variance there is not known" in of_two.notes
    assert one(question(tied, part(0.01, num_seeds=5), part(0.01, num_seeds=5), rule="most")).settling_low


def test_a_small_difference_that_is_known_well_is_equivalent() -> None:
    found = one(question(part(0.001, 0.004)))
    assert found.verdict == Outcome.EQUIVALENT
    assert found.test == "two one-sided tests, margin ±1 points"
    # t(0.95, 9) = 1.833, and 1.833 × 0.004 / √10 = 0.0023.
    assert found.smallest_margin == pytest.approx(0.001 + 0.00232, abs=1e-5)
    # Known well, small and not 0: the claimed sign is what was asked for.
    assert verdict(part(0.005, 0.001)) == Outcome.SUPPORTED
    # Claimed to be none, and clearly beyond the margin.
    assert verdict(part(0.05, 0.01, sign=0)) == Outcome.REFUTED


def test_a_level_is_compared_with_its_threshold() -> None:
    level = dataclasses.replace(part(0.03, seed_sd=0.01, sign=-1), threshold=0.05)
    assert verdict(level) == Outcome.SUPPORTED
    assert verdict(dataclasses.replace(level, threshold=0.01)) == Outcome.REFUTED


def test_a_study_of_the_opposite_refutes_what_its_control_lets_it(tmp_path: Path) -> None:
    def opposite(start: int, kind: str, size: int, place: str) -> float:
        if place == "non-entailment":
            return {"none": 0.6, "original": 0.4, "synthetic": 0.9}.get(kind, 0.1)
        return {"none": 0.6, "original": 0.7, "synthetic": 0.3}.get(kind, 0.5)

    found = judged(tmp_path, opposite, 6)
    assert found["bias_is_seen"].verdict == Outcome.SUPPORTED
    for name in ("synthetic_reinforces", "gap_is_wider_on_blindspot", "synthetic_helps_general", RULE):
        assert found[name].verdict == Outcome.REFUTED, name


def test_without_a_control_that_is_seen_nothing_about_the_blindspot_is_denied(tmp_path: Path) -> None:
    """Accuracy on the adversarial slice is at the floor whatever a model is trained on, biased or not."""

    def saturated(start: int, kind: str, size: int, place: str) -> float:
        if place == "non-entailment":
            return 0.9 if kind == "none" and start == 0 else 0.0
        return {"none": 0.5, "original": 0.8, "synthetic": 0.8}.get(kind, 0.6)

    found = judged(tmp_path, saturated, 6)
    assert not {control.measure: control for control in found.controls}["accuracy"].is_seen
    # From 90 to 0% since the untrained start, and no claim says that this is the bias's.
    assert found["bias_is_seen"].verdict == Outcome.CANNOT_TELL
    reinforces = found["synthetic_reinforces"]
    assert reinforces.verdict == Outcome.CANNOT_TELL
    withheld = one_withheld(found)
    assert withheld.verdict == Outcome.CANNOT_TELL and "is withheld" in withheld.notes[0]
    assert withheld.settling_high is None, "more seeds do not settle it"
    # The general set has nothing to do with it.
    assert found["synthetic_helps_general"].verdict == Outcome.SUPPORTED


def test_a_pool_as_bad_as_biased_data_is_not_said_to_be_unseen(tmp_path: Path) -> None:
    """Biased sets lie no lower than plain synthetic ones, which lie far below the original: the control has no room."""

    def planted(start: int, kind: str, size: int, place: str) -> float:
        if place == "non-entailment":
            return {"none": 0.6, "original": 0.8}.get(kind, 0.05)
        return 0.8

    found = judged(tmp_path, planted, 6)
    control = {control.measure: control for control in found.controls}["accuracy"]
    assert found["synthetic_reinforces"].verdict == Outcome.SUPPORTED
    assert (control.is_seen, control.is_outdone) == (False, True)
    assert "what is shown stands" in control.sentence and "could not have seen" not in control.sentence
    assert "could not have seen" not in str(answer(found))


def one_withheld(found: Verdicts) -> Judgement:
    return next(judgement for judgement in found.judgements if any("is withheld" in note for note in judgement.notes))


def test_no_change_of_the_blindspot_is_claimed_since_an_untrained_start(tmp_path: Path) -> None:
    found = judged(tmp_path, clear, 4, starts=(0,))
    assert f"{RULE}_from/start=0" not in [judgement.name for judgement in found.judgements]
    assert "no starting point that is trained" in found[RULE].notes[0]
    own = Claim(
        "since_the_start",
        "It falls.",
        (Comparison((Difference("synthetic", "none", "adversarial"),), -1),),
    )
    study = ItemStudy(tmp_path / "own", clear)
    study.parameters["claims"] = as_json([own])
    study.grid(num_seeds=4)
    (judgement, *_) = judge(study.write(), "tiny").judgements
    assert {row["setting"].partition(", size")[0] for row in judgement.settings} == {"start 50,000 examples"}


def test_one_seed_says_nothing_of_training(tmp_path: Path) -> None:
    found = judged(tmp_path, clear, 1)
    assert {judgement.verdict for judgement in found.judgements} == {Outcome.CANNOT_TELL}
    helps = found["synthetic_helps_general"]
    assert "one seed" in helps.notes[0]
    assert math.isnan(helps.p)
    assert helps.low < helps.estimate < helps.high
    assert (helps.num_units, helps.settling_low, helps.settling_cost) == (1, None, None)


def test_primary_claims_are_adjusted_by_holm_and_the_rest_by_their_discoveries() -> None:
    # Alone p = 0.028: t = 2.61 with 9 degrees of freedom.
    borderline = part(0.0826, 0.1)
    assert verdict(borderline) == Outcome.SUPPORTED
    primary = [question(borderline, name=f"c{i}") for i in range(3)]
    found = judge_questions(primary).judgements
    assert {judgement.verdict for judgement in found} == {Outcome.CANNOT_TELL}
    assert found[0].p_adjusted == pytest.approx(3 * found[0].p)
    rest = [dataclasses.replace(asked, primary=False) for asked in primary]
    found = judge_questions(rest).judgements
    assert {judgement.verdict for judgement in found} == {Outcome.SUPPORTED}
    # Families do not meet.
    others = [dataclasses.replace(asked, name=f"{asked.name}x") for asked in rest]
    assert judge_questions([*primary[:1], *others])["c0"].num_claims == 1
    with pytest.raises(UserError, match="margin"):
        judge_questions([question(borderline, margin=0)])


def test_table_1_of_the_paper() -> None:
    more, stronger = judge_questions(overlap_questions({"synthetic": SYNTHETIC, "original": ORIGINAL})).judgements
    assert more.verdict == Outcome.SUPPORTED
    # The paper's S:O column.
    assert [round(row["estimate"], 3) for row in more.settings[1:]] == [2.352, 2.320, 1.827]
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
    found = judge(study.write(), "tiny")
    assert found["bias_is_seen"].verdict == Outcome.CANNOT_TELL
    assert "biased_synthetic" in found["bias_is_seen"].notes[0]
    assert found["synthetic_helps_general"].verdict == Outcome.SUPPORTED


def test_a_user_s_own_claims_are_judged(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.parameters["claims"] = as_json(
        [
            Claim(
                "lower",
                "It is lower.",
                (Comparison((Difference("synthetic", "original", "adversarial"),), -1),),
                rule="every",
                primary=True,
            )
        ]
    )
    study.grid(num_seeds=5)
    found = judge(study.write(), "tiny")
    assert [judgement.name for judgement in found.judgements if judgement.primary] == ["lower"]
    assert found["lower"].verdict == Outcome.SUPPORTED
    assert found.controls == ()


def test_tables(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(starting_sizes=(0,), num_seeds=4)
    store = study.write()
    table = judgement_table(judge(store, "tiny").judgements)
    assert table["name"].is_unique
    assert table["settling_low"].dtype == "Int64"
    subcases = subcase_table(load_evidence(store, "tiny"))
    assert list(subcases["subcase"]) == ["le_0", "le_1", "ln_0", "ln_1", "se_0", "se_1", "sn_0", "sn_1"]
    low = subcases[subcases["subcase"].str.contains("n_")]
    assert (low["mean"] < -0.2).all()
    assert (subcases["q"] >= subcases["p"]).all()


def test_a_partial_study_is_judged_by_the_seeds_that_have_a_setting(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(num_seeds=3)
    study.logits_path(50_000, "synthetic", 60, 1).unlink()
    store = study.write()
    evidence = load_evidence(Store(store), Study.load(Store(store), "tiny"), partial=True)
    by_name = {asked.name: asked for asked in questions(evidence)}
    assert [setting.parts[0].effect.num_seeds for setting in by_name["synthetic_reinforces"].settings] == [3, 3, 2, 3]
    found = judge(store, "tiny", partial=True)
    of_training = [judgement for judgement in found.judgements if "overlap" not in judgement.name]
    assert all("1 results are missing" in " ".join(judgement.notes) for judgement in of_training)


def test_an_interval_ends_where_a_difference_of_accuracies_does() -> None:
    # Two seeds that differ by 0.3: t with one degree of freedom alone would reach 12.7 times the error.
    wide = part(-0.1, 0.3, 2, sign=-1)
    assert wide.in_unit() == (-0.1, -1.0, 1.0)
    assert dataclasses.replace(wide, bound=2.0).in_unit()[1] == -2.0
    assert math.isnan(part(-0.1, 0.3, 1).in_unit()[1])

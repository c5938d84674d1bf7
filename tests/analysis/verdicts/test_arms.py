"""Claims of a study with several arms: settings by arm, what arms share, and arm against arm."""

from dataclasses import replace

import pytest

from analysis.verdicts.evidence import Evidence, load_evidence, questions
from analysis.verdicts.judgement import Outcome
from analysis.verdicts.power import pilot
from analysis.verdicts.questions import Question
from analysis.verdicts.verdicts import judge_evidence
from sweep.study.claims import Claim, Comparison, Difference
from sweep.study.paper_claims import axis_claims
from tests.analysis.item_study import clear, joint_study

GAP = Difference("synthetic", "original", "adversarial")


def kinder(start: int, kind: str, size: int, part: str) -> float:
    """As `clear`, but synthetic data does where the heuristic is wrong what original data does."""
    return clear(start, "original" if kind == "synthetic" else kind, size, part)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    study = joint_study(tmp_path_factory.mktemp("store"), kinder, 6)
    return load_evidence(study.write(), "tiny")


def asked(evidence: Evidence, *comparisons: Comparison, **fields: object) -> Question:
    claim = Claim("one", "…", comparisons, **fields)  # type: ignore[arg-type]
    (question,) = questions(replace(evidence, claims=(claim,)))
    return question


def test_each_arm_is_a_setting_and_what_arms_share_is_one(evidence: Evidence) -> None:
    settings = {setting.name: setting.parts for setting in asked(evidence, Comparison((GAP,), -1)).settings}
    untrained, trained = "start untrained, size", "start 50,000 examples, size"
    assert [name for name in settings] == [
        f"arms two_steps and joint, {untrained} 60",
        f"arms two_steps and joint, {untrained} 120",
        f"arm two_steps, {trained} 60",
        f"arm two_steps, {trained} 120",
        f"arm joint, {trained} 60",
        f"arm joint, {trained} 120",
    ]
    means = [part.effect.mean for (part,) in settings.values()]
    assert means == pytest.approx([-0.4] * 4 + [0] * 2, abs=0.12)


def test_a_claim_can_name_its_arms(evidence: Evidence) -> None:
    found = asked(evidence, Comparison((GAP,), -1), arms=("joint",), starts="trained", sizes="largest")
    assert [setting.name[:10] for setting in found.settings] == ["arm joint,"]
    elsewhere = asked(evidence, Comparison((GAP,), -1), arms=("lm",))
    assert not elsewhere.settings and elsewhere.why_not == "the study has no arm lm"
    of_one = replace(evidence, arms={}, shared={})
    assert asked(of_one, Comparison((GAP,), -1), arms=("joint",)).why_not == "the study has no arm joint"
    against = Comparison((replace(GAP, arm="joint", against="two_steps"),), 1)
    assert asked(of_one, against).why_not == "the study has no arms joint and two_steps"


def test_an_arm_against_another_is_paired_within_the_seed(evidence: Evidence) -> None:
    against = replace(GAP, arm="joint", against="two_steps")
    found = asked(evidence, Comparison((against,), 1))
    # Untrained both arms are one: there is nothing to set against each other.
    assert [setting.name for setting in found.settings] == [
        "start 50,000 examples, size 60", "start 50,000 examples, size 120",
    ]  # fmt: skip
    for size, setting in zip((60, 120), found.settings, strict=True):
        (part,) = setting.parts
        joint, two_steps = (evidence.difference(GAP, 50_000, size, arm).values for arm in ("joint", "two_steps"))
        assert part.by_seed == pytest.approx(joint - two_steps)
        assert part.effect.mean == pytest.approx(0.4, abs=0.08) and part.bound == 2
        assert part.name.endswith(", lexical overlap, non-entailment, joint − two_steps")
    # The same, as two differences of one sum.
    weighed = Comparison((replace(GAP, arm="joint"), replace(GAP, arm="two_steps", weight=-1)), 1)
    both = asked(evidence, weighed).settings
    assert [setting.parts[0].by_seed for setting in both] == [
        pytest.approx(setting.parts[0].by_seed) for setting in found.settings
    ]


def test_levels_of_one_kind_are_compared_across_arms(evidence: Evidence) -> None:
    level = Difference("synthetic", None, "adversarial", arm="joint", against="two_steps")
    found = asked(evidence, Comparison((level,), 1), sizes="largest")
    (setting,) = found.settings
    assert setting.parts[0].effect.mean == pytest.approx(0.4, abs=0.08) and setting.parts[0].bound == 1


def test_each_other_arm_is_set_against_one(evidence: Evidence) -> None:
    found = asked(evidence, Comparison((replace(GAP, against="two_steps"),), 1))
    assert [setting.name[:10] for setting in found.settings] == ["arm joint,"] * 2
    assert found.settings[0].parts[0].name.endswith(", less that in two_steps")


def test_arms_that_are_the_same_everywhere_cannot_be_compared(evidence: Evidence) -> None:
    found = asked(evidence, Comparison((replace(GAP, arm="joint", against="two_steps"),), 1), starts="untrained")
    assert found.why_not == "the arms that it sets against each other are the same in every setting" and not found.settings


def test_slopes_are_taken_within_an_arm(evidence: Evidence) -> None:
    level = Difference("biased_synthetic", None, "adversarial")
    found = asked(evidence, Comparison((level,), -1, over_sizes=True))
    assert [setting.name.split(", ")[0] for setting in found.settings] == [
        "arms two_steps and joint",
        "arm two_steps",
        "arm joint",
    ]


def test_a_claim_about_arms_is_judged_and_refuted_where_they_differ(evidence: Evidence) -> None:
    claims = (*evidence.claims, *axis_claims((), ("synthetic",), ("two_steps", "joint")))
    found = judge_evidence(replace(evidence, claims=claims))
    alike = found["gap_is_as_wide_in_joint"]
    assert alike.verdict == Outcome.REFUTED and alike.num_settings == 2 and alike.estimate == pytest.approx(0.4, abs=0.08)
    # In most of the six settings it does, and in joint ones it does not: the arms' mean is not what is judged.
    assert found["synthetic_reinforces"].num_settings == 6
    every = replace(next(claim for claim in claims if claim.name == "synthetic_reinforces"), rule="every")
    assert judge_evidence(replace(evidence, claims=(every,)))["synthetic_reinforces"].verdict != Outcome.SUPPORTED


def test_each_arm_is_a_pilot_of_its_own(evidence: Evidence) -> None:
    metrics = [variance.metric for variance in pilot(evidence)[0]]
    assert len(metrics) == len(set(metrics))
    assert {metric.rpartition("; ")[2] for metric in metrics} == {"arm two_steps", "arm joint"}
    alone = pilot(evidence.by_arm["joint"])[0]
    assert [f"{variance.metric}; arm joint" for variance in alone] == [name for name in metrics if name.endswith("joint")]

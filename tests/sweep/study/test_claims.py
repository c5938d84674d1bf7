import dataclasses
import json
from typing import Any

import pytest

from pipelines.errors import UserError
from sweep.study.claims import Claim, Comparison, Difference, Measure, as_json, from_json
from sweep.study.experiments import demo
from sweep.study.paper_claims import PAPER_CLAIMS

LOWER = Comparison((Difference("synthetic", "original", "adversarial"),), -1)


def test_a_manifest_keeps_claims_as_they_are() -> None:
    assert from_json(json.loads(json.dumps(as_json(PAPER_CLAIMS)))) == PAPER_CLAIMS
    with pytest.raises(UserError, match="cannot be read"):
        from_json([{"name": "without_the_rest"}])


def test_the_paper_s_claims_are_few_primary_ones_and_one_control_a_measure() -> None:
    assert [claim.name for claim in PAPER_CLAIMS if claim.primary] == [
        "bias_is_seen",
        "synthetic_reinforces",
        "gap_is_wider_on_blindspot",
        "original_is_kinder_to_blindspot",
        "synthetic_helps_general",
    ]
    controls = [claim for claim in PAPER_CLAIMS if claim.control]
    assert [claim.comparisons[0].measure for claim in controls] == list(Measure)
    # Never against the starting point, whose level is the random head's where it is untrained.
    assert not any(comparison.starts_from_nothing for claim in controls for comparison in claim.comparisons)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Difference("synthetic", "original", "somewhere"), "no place of a claim"),
        (lambda: Difference("synthetic", "original", "adversarial", "loss"), "measure='loss'"),  # type: ignore[arg-type]
        (lambda: Difference("synthetic", "original", "general", Measure.AUC), "only accuracy is had there"),
        (lambda: Difference("synthetic", "synthetic", "general"), "with itself"),
        (lambda: Difference("synthetic", "original", "general", weight=0), "weight=0"),
        (lambda: Comparison((), 1), "compares nothing"),
        (lambda: Comparison(LOWER.differences, 2), "sign=2"),
        (lambda: Comparison((*LOWER.differences, Difference("synthetic", "original", "blindspot")), 1), "cannot be on both"),
        (
            lambda: Comparison((*LOWER.differences, Difference("synthetic", "original", "adversarial", Measure.AUC)), 1),
            "several measures",
        ),
        (lambda: Claim("Big", "", (LOWER,)), "claim name='Big'"),
        (lambda: Claim("none", "", ()), "it claims nothing"),
        (lambda: Claim("mixed", "", (LOWER, dataclasses.replace(LOWER, sign=0))), "is two claims"),
        (lambda: Claim("mixed", "", (LOWER, dataclasses.replace(LOWER, over_sizes=True))), "slopes over sizes"),
        (lambda: Claim("rule", "", (LOWER,), rule="some"), "rule='some'"),
        (lambda: Claim("starts", "", (LOWER,), starts="early"), "starts='early'"),
        (lambda: Claim("sizes", "", (LOWER,), sizes="small"), "sizes='small'"),
        (lambda: Claim("margin", "", (LOWER,), margin=0), "a margin is above 0"),
        (lambda: Claim("control", "", (LOWER, LOWER), control=True), "one comparison on the blindspot"),
    ],
)
def test_what_is_no_claim_says_what_it_could_be(make, says) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_a_study_refuses_claims_that_it_cannot_have() -> None:
    own = Claim("lower", "It is lower.", (LOWER,))
    assert dataclasses.replace(demo(), claims=(own,)).claims == (own,)
    with pytest.raises(UserError, match="declared twice"):
        dataclasses.replace(demo(), claims=(own, own))
    with pytest.raises(UserError, match="positive control of one measure"):
        controls = (dataclasses.replace(own, name=name, control=True) for name in ("one", "two"))
        dataclasses.replace(demo(), claims=tuple(controls))
    typo = Claim("typo", "", (Comparison((Difference("synthetik", "original", "general"),), 1),))
    with pytest.raises(UserError, match="synthetik"):
        dataclasses.replace(demo(), claims=(typo,))
    dose = Claim("dose", "", (Comparison((Difference("bias_0.5", "synthetic", "adversarial"),), -1),))
    assert dataclasses.replace(demo(biases=(0.5,)), claims=(dose,)).claims == (dose,)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"sizes": (300, 999)}, r"claim own: sizes=\(300, 999\) names 999, .* training_sizes are 300; .* or sizes='all'"),
        ({"starts": (0, 7)}, r"claim own: starts=\(0, 7\) names 7, .* starting_sizes are 0, 300; .* or starts='all'"),
        ({"arms": ("zero",)}, r"claim own is about the arms \['zero'\]; those of the study would be its arms"),
    ],
)
def test_a_study_refuses_a_claim_about_settings_that_it_lacks(axes: dict[str, Any], says: str) -> None:
    study = demo(starting_sizes=(0, 300), training_sizes=(300,))
    there = Claim("own", "", (LOWER,), starts=(300,), sizes=(300,))
    assert dataclasses.replace(study, claims=(there,)).claims == (there,)
    with pytest.raises(UserError, match=says):
        dataclasses.replace(study, claims=(dataclasses.replace(there, **axes),))

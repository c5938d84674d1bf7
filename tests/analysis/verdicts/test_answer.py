"""The sentence that a report begins with says what the verdicts are, and no more."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.verdicts.answer import NO_CONTROL, NONE_BY_ACCURACY, answer, control_sentences, settling_words
from analysis.verdicts.command import Command, command_of
from analysis.verdicts.judgement import ONE_GENERATOR, Control, Judgement, Outcome, Verdicts
from analysis.verdicts.power import ITEMS_LEAVE_DOUBT
from analysis.verdicts.verdicts import judge
from sweep.experiments import demo
from sweep.graph.records import Store, Study
from sweep.study.loading import load_experiment
from tests.analysis.item_study import ItemStudy, Rate, clear

SEEN = (Control("accuracy", True, "The positive control is seen."),)
UNSEEN = (Control("accuracy", False, "The positive control is not seen."),)
DEMO = Command("demo", (), (0, 1))
LOWER, WIDER = "Synthetic data lowers accuracy.", "The gap is wider."


def judgement(statement: str, verdict: Outcome = Outcome.CANNOT_TELL, num_units: int = 5, **more: object) -> Judgement:
    found = Judgement(statement, statement, "", verdict=verdict, num_units=num_units)
    return dataclasses.replace(found, **more)  # type: ignore[arg-type]


def said(*judgements: Judgement, controls: tuple[Control, ...] = SEEN, command: Command | None = DEMO, missing: int = 0) -> str:
    return str(answer(Verdicts(judgements, controls), command, num_missing=missing))


SUPPORTED, REFUTED = judgement(LOWER, Outcome.SUPPORTED), judgement(WIDER, Outcome.REFUTED)


@pytest.mark.parametrize(
    ("judgements", "sentence"),
    [
        ([SUPPORTED], "With five seeds, the one primary claim is decided: “Synthetic data lowers accuracy” is supported."),
        (
            [SUPPORTED, REFUTED, judgement("It is so.", settling_low=6, settling_high=9)],
            "With five seeds, two of three primary claims are decided: “Synthetic data lowers accuracy” is supported, “The "
            "gap is "
            "wider” is refuted; nine seeds would settle one more with 80% power: "
            "`blindsweep run demo -p seeds=0,1,2,3,4,5,6,7,8`",
        ),
        (
            [judgement("A.", settling_high=7), judgement("B.", settling_high=9), judgement("C.", settling_high=1500)],
            "With five seeds, none of three primary claims is decided; seven seeds would settle one more with 80% power, "
            "and two "
            "would take more: `blindsweep run demo -p seeds=0,1,2,3,4,5,6`",
        ),
        (
            [judgement("A.", settling_high=5), judgement("B.", notes=(ITEMS_LEAVE_DOUBT,)), judgement("C.", num_units=0)],
            "With five seeds, none of three primary claims is decided; no number of seeds would settle one at a difference as "
            "small as the margin, for test items leave too much doubt; one stays open though there are enough seeds for a "
            "difference as large as the margin; one cannot be told from this study.",
        ),
        (
            [judgement("A.", Outcome.EQUIVALENT), *(judgement(f"{name}.", Outcome.SUPPORTED) for name in "BCDE")],
            "With five seeds, all five primary claims are decided: “B”, “C” and two more are supported, “A” is equivalent "
            "within "
            "its margin.",
        ),
        (
            [judgement("A.", num_units=2), judgement("B.", Outcome.SUPPORTED, 2, notes=(ONE_GENERATOR,))],
            "With two seeds and one generator, one of two primary claims is decided: “B” is supported; how many seeds "
            "would settle "
            "it can be said from three on: `blindsweep run demo -p seeds=0,1,2`",
        ),
        (
            [judgement("A.", num_units=2, rests_on="generators")],
            "With two generators, not even the one primary claim is decided; how many generators would settle it can be "
            "said from "
            "three on: `blindsweep run demo -p seeds=0,1,2,3,4,5 -p generators=3`",
        ),
        ([judgement("A.", settling_high=1446)], "none of"),
        ([], "No claim is declared."),
    ],
)  # fmt: skip
def test_what_is_decided_what_is_open_and_what_would_settle_it(judgements: list[Judgement], sentence: str) -> None:
    found = said(*judgements)
    if sentence == "none of":
        assert found.endswith("1,446 seeds would settle one more with 80% power."), "no command names 1,446 seeds"
    else:
        assert found == sentence


def test_a_control_that_is_not_seen_comes_first() -> None:
    withheld = judgement("A.", notes=("'refuted' is withheld: the positive control is not seen by accuracy",), settling_high=9)
    found = said(SUPPORTED, withheld, controls=UNSEEN)
    assert found == (
        "The positive control is not seen, so this study could not have seen a blindspot grow; with five seeds, one of "
        "two primary "
        "claims is decided: “Synthetic data lowers accuracy” is supported; one would be denied, which is withheld as "
        "the control "
        "is not seen."
    )
    by_margin = (*UNSEEN, Control("margin", True, "It is seen."))
    assert said(SUPPORTED, controls=by_margin).startswith(
        "The positive control is not seen by accuracy (by margin it is seen), so by accuracy this study could not have seen"
    )
    outdone = Control("accuracy", False, "", is_outdone=True)
    assert said(SUPPORTED, controls=(outdone,)).startswith(
        "The positive control is not seen, so that nothing about the blindspot is refuted or equivalent; with five seeds"
    )
    assert said(SUPPORTED, controls=(Control("auc", True, ""),)).startswith("With five seeds")
    assert said(SUPPORTED, controls=()).startswith(
        "Whether this study could have seen a blindspot grow is not known, for no claim"
    )


@pytest.mark.parametrize(
    ("controls", "sentences"),
    [
        ((), [NO_CONTROL]),
        ((Control("auc", True, "It is seen by AUC."),), ["It is seen by AUC.", NONE_BY_ACCURACY]),
        (
            (Control("auc", False, "", "no pairs"), Control("pull", False, "It is not seen by pull.")),
            [
                "It is not seen by pull.",
                "By AUC there is no positive control, and nothing is refuted or equivalent: no pairs.",
                NONE_BY_ACCURACY,
            ],
        ),
        ((*SEEN, Control("auc", True, "")), [SEEN[0].sentence]),
        ((*SEEN, Control("auc", False, "It is not seen by AUC.")), [SEEN[0].sentence, "It is not seen by AUC."]),
    ],
)
def test_a_control_of_another_measure_than_accuracy_is_one(controls: Sequence[Control], sentences: list[str]) -> None:
    assert control_sentences(controls) == sentences


def test_what_is_missing_and_exploratory_claims_are_named() -> None:
    exploratory = dataclasses.replace(SUPPORTED, primary=False)
    assert said(exploratory, missing=3) == (
        "With five seeds and 3 results missing, the one claim is decided: “Synthetic data lowers accuracy” is supported."
    )
    assert "Synthetic data lowers" not in said(exploratory, REFUTED), "primary claims are what the answer is about"


def test_claims_that_rest_on_other_numbers_of_seeds_are_no_more_than_they_are() -> None:
    fewer, untrained = judgement("B.", num_units=1), judgement("C.", num_units=0)
    assert said(SUPPORTED, fewer, untrained, command=None).startswith("With one to five seeds, one of three primary claims")
    assert said(fewer, SUPPORTED, missing=3).startswith("With one to five seeds and 3 results missing, one of two")
    of_generators = judgement("B.", num_units=2, rests_on="generators")
    assert said(SUPPORTED, of_generators).startswith("With five seeds, one of two")


def test_how_many_seeds_would_settle_a_claim_is_a_range() -> None:
    open_claim = judgement("A.", settling_low=556, settling_high=2_782)
    assert settling_words(open_claim) == "556 to 2,782 seeds"
    assert settling_words(dataclasses.replace(open_claim, settling_low=2_782)) == "2,782 seeds"
    assert settling_words(SUPPORTED) == "\N{EN DASH}"


def test_the_control_is_no_finding_of_its_own() -> None:
    control = judgement("Bias is seen.", Outcome.SUPPORTED, is_control=True)
    assert "“Synthetic data lowers accuracy” and “Bias is seen” are supported" in said(control, SUPPORTED)


def blind(start: int, kind: str, size: int, place: str) -> float:
    """Biased data does what synthetic data does."""
    return clear(start, "synthetic" if kind == "biased_synthetic" else kind, size, place)


@pytest.mark.parametrize(("rate", "num_seeds"), [(clear, 6), (clear, 2), (clear, 1), (blind, 6)])
def test_the_sentence_never_says_more_than_the_verdicts(tmp_path: Path, rate: Rate, num_seeds: int) -> None:
    study = ItemStudy(tmp_path, rate)
    study.grid(num_seeds=num_seeds)
    verdicts = judge(study.write(), "tiny", margin=0.05)
    found = str(answer(verdicts))
    for one in verdicts.judgements:
        is_said = f"“{one.statement.removesuffix('.')}”" in found
        assert not is_said or (one.primary and one.verdict != Outcome.CANNOT_TELL), one.name
    is_seen = verdicts.controls[0].is_seen
    assert is_seen == (rate is clear and num_seeds == 6)
    assert found.startswith("With six seeds and one generator, all five" if is_seen else "The positive control is not seen")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["demo"], ["demo", "-p", "seeds=0,1,2"]),
        (["demo", "seeds=0,1", "pool_size=600"], ["demo", "-p", "pool_size=600", "-p", "seeds=0,1,2"]),
        (["my study.py:one", "title=a b'c"], ["my study.py:one", "-p", "title=a b'c", "-p", "seeds=0,1,2"]),
    ],
)
def test_the_command_is_what_the_study_was_run_with_and_a_shell_takes_it(given: list[str], expected: list[str]) -> None:
    experiment, *assignments = given
    given_command = {"experiment": experiment, "name": None, "parameters": assignments}
    study = Study("tiny", "", {"command": given_command, "seeds": [0, 1]}, ())
    command = command_of(Store("somewhere/blindsweep-store"), study)
    assert command is not None and shlex.split(command.with_units(3)) == ["blindsweep", "run", *expected]
    elsewhere = command_of(Store("s3://bucket/a b"), study)
    assert elsewhere is not None and shlex.split(elsewhere.with_units(3))[-2:] == ["--store", "s3://bucket/a b"]
    named = dataclasses.replace(command, name="mine").with_units(3)
    assert shlex.split(named) == ["blindsweep", "run", *expected, "--name", "mine"]
    assert dataclasses.replace(command, seeds=(7, 1)).with_units(4).endswith("seeds=7,1,0,2"), "what is built is used again"


@pytest.mark.parametrize(
    ("seeds", "generators", "number", "rests_on", "expected"),
    [
        # Four generators are planned, of which two are built.
        ((0, 1, 2, 3), 4, 3, "generators", "-p seeds=0,1,2,3 -p generators=4"),
        ((0, 1, 2, 3), 4, 5, "generators", "-p seeds=0,1,2,3,4 -p generators=5"),
        ((0, 1, 2, 3), 2, 3, "generators", "-p seeds=0,1,2,3,4,5 -p generators=3"),
        ((100, 101), 2, 3, "generators", "-p seeds=100,101,0 -p generators=3"),
        ((1, 2), 2, 3, "generators", "-p seeds=1,2,0 -p generators=3"),
        # Each generator has as many seeds as the others.
        ((0, 1, 2, 3), 4, 6, "seeds", "-p seeds=0,1,2,3,4,5,6,7 -p generators=4"),
        ((0, 2, 5), 1, 4, "seeds", "-p seeds=0,2,5,1"),
        ((0, 3), 2, 3, "generators", ""),
    ],
)
def test_the_command_deals_seeds_evenly_and_takes_no_generator_away(
    seeds: tuple[int, ...], generators: int, number: int, rests_on: str, expected: str
) -> None:
    said = Command("demo", (), seeds, generators).with_units(number, rests_on)
    assert said == (expected and f"blindsweep run demo {expected}")
    if said:
        named = [int(seed) for seed in said.split("seeds=")[1].split(" ")[0].split(",")]
        demo(seeds=tuple(named), generators=int(said.split("generators=")[1]) if "generators=" in said else 1)


GIVEN = {"experiment": "demo", "name": None, "parameters": []}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"command": GIVEN}, {"command": "demo", "seeds": [0]}, {"command": GIVEN, "seeds": []}, {"command": {}, "seeds": [0]}],
)
def test_without_what_was_run_there_is_no_command(parameters: dict[str, object]) -> None:
    assert command_of(Store("store"), Study("tiny", "", parameters, ())) is None


def test_what_was_given_is_kept() -> None:
    given = {"experiment": "demo", "name": "mine", "parameters": ["seeds=0,1"]}
    assert load_experiment("demo", ["seeds=0,1"], name="mine").command == given

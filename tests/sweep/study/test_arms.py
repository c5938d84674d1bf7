"""Arms in the step graph, the claims, the parameters and the plan; what an arm may be."""

import dataclasses
import re
from collections import Counter

import pytest

from pipelines.errors import UserError
from pipelines.finetune.recipe import FinetuneConfig
from sweep.graph.records import Store
from sweep.graph.step import Step
from sweep.plan.costs import estimate_costs
from sweep.plan.page import _arm_lines, plan_json
from sweep.plan.plan import Plan, PlanCosts, make_plan
from sweep.plan.rehearsal import rehearsal
from sweep.plan.schedule import Schedule
from sweep.plan.throughputs import read_table
from sweep.run.study_run import manifest
from sweep.study.arms import TRAININGS, Arm, find_arm
from sweep.study.claims import Claim, Comparison, Difference, as_json, from_json
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo, mini
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded, load_experiment
from sweep.study.paper_claims import PAPER_CLAIMS

JOINT, LM, FROZEN = Arm(training="joint"), Arm(head="lm"), Arm(head_frozen_share=0.1)
SETTINGS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4_096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 11_008, "vocab_size": 32_000,
}  # fmt: skip
GAP = Difference("synthetic", "original", "adversarial")


def with_arms(experiment: Experiment, *arms: Arm | str, **fields: object) -> Experiment:
    return dataclasses.replace(experiment, arms=arms, **fields)  # type: ignore[arg-type]


def by_name(experiment: Experiment) -> dict[str, Step]:
    return {step.name: step for step in build_grid(experiment)}


# --- what an arm is ---


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        (Arm(), "plain"),
        (Arm(training="two_steps"), "two_steps"),
        (JOINT, "joint"),
        (Arm(head="zero"), "zero"),
        (Arm(head_frozen_share=0), "frozen0"),
        (Arm("joint", "lm", 0.25), "joint+lm+frozen0.25"),
        (Arm(head_frozen_share=1), "frozen1"),
        # Two shares have two names, however close they are.
        (Arm(head_frozen_share=0.1234567), "frozen0.1234567"),
        (Arm(head_frozen_share=1e-5), "frozen1e-05"),
        (Arm(rate_factor=2), "rate2"),
        (Arm(head="lm", head_frozen_share=0.25, rate_factor=0.5), "lm+frozen0.25+rate0.5"),
    ],
)
def test_an_arm_has_a_name_that_finds_it(arm: Arm, name: str) -> None:
    assert arm.name == name and find_arm(name) == arm == find_arm(arm)


def test_the_parts_of_a_name_may_be_in_any_order() -> None:
    assert find_arm("frozen0.10+lm+joint").name == "joint+lm+frozen0.1"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Arm(training="one_step"), "training='one_step' is not one of 'two_steps', 'joint'"),
        (lambda: Arm(head="ones"), "head='ones' is not one of 'random', 'zero', 'lm'"),
        (lambda: Arm(head_frozen_share=1.5), r"head_frozen_share=1\.5: it is a share of the steps"),
        (lambda: Arm(head_frozen_share="all"), r"head_frozen_share='all'\): give a number"),  # type: ignore[arg-type]
        (lambda: Arm(rate_factor=0), r"rate_factor=0\.0: learning rates are multiplied by it; give a number above 0"),
        (lambda: find_arm("joined"), "arm 'joined': 'joined' is none of plain, two_steps, joint, random, zero, lm, or frozen"),
        (lambda: find_arm("lm+"), r"arm 'lm\+': '' is none of"),
        (lambda: find_arm("frozenhalf"), "'frozenhalf' is none of"),
        (lambda: find_arm("lm+zero"), r"arm 'lm\+zero' says twice what its head is"),
        (lambda: find_arm(3), "3 is no arm"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_arm_says_what_it_could_be(make, words) -> None:
    with pytest.raises(UserError, match=words):
        make()


# --- the grid ---


def test_a_study_with_arms_builds_what_the_studies_of_each_arm_build(experiment: Experiment) -> None:
    arms = (Arm(), LM, JOINT, FROZEN, Arm("joint", "lm", 0.5))
    study = with_arms(experiment, *arms, judge=300)
    found = [step.fingerprint for step in build_grid(study)]
    alone = [step.fingerprint for arm in arms for step in build_grid(study.in_arm(arm))]
    assert len(found) == len(set(found)) and set(found) == set(alone)


def test_what_arms_have_in_common_is_one_step(experiment: Experiment) -> None:
    plain, steps = by_name(experiment), by_name(with_arms(experiment, Arm(), LM, JOINT, FROZEN))
    # 2 starting points, 3 kinds × 2 sizes: 12 cells. Joint has the 6 from the start of 500 examples again, and their sets.
    assert Counter(step.stage for step in plain.values())["task_model"] == 12
    counts = Counter(step.stage for step in steps.values()) - Counter(step.stage for step in plain.values())
    # Another head is another start; a frozen one starts as it does without, and so does a joint cell.
    assert counts == {
        "starting_point": 2 + 0 + 1, "training_set": 6, "task_model": 12 + 6 + 12, "evaluation": 14 + 6 + 13,
    }  # fmt: skip
    # The plain arm is the study without arms, by fingerprint and by name.
    assert {name: step.fingerprint for name, step in plain.items()}.items() <= {
        name: step.fingerprint for name, step in steps.items()
    }.items()


def test_models_say_which_arms_they_are_of_and_sets_do_not(experiment: Experiment) -> None:
    steps = by_name(with_arms(experiment, Arm(), LM, JOINT, FROZEN))
    arms = {name: step.coordinates.get("arms") for name, step in steps.items()}
    assert arms["starting_point/start0-seed0"] == arms["evaluation/start0-seed0"] == ("plain", "joint", "frozen0.1")
    assert arms["starting_point/start0-lm-seed0"] == ("lm",)
    assert arms["starting_point/start500-seed0"] == ("plain", "joint")
    assert arms["starting_point/start500-frozen0.1-seed0"] == ("frozen0.1",)
    assert arms["task_model/start0-original-60-seed0"] == ("plain", "joint")
    assert arms["task_model/start500-original-60-seed0"] == ("plain",)
    assert arms["evaluation/start500-joint-original-60-seed0"] == ("joint",)
    others = {name.partition("/")[0] for name, given in arms.items() if given is None}
    assert others == {"sources", "base_model", "generator", "synthetic_pool", "starting_set", "training_set"}
    assert all("arms" not in step.coordinates for step in build_grid(experiment))
    # Inputs are the steps of the grid, with their arms.
    cell = steps["task_model/start500-joint-original-60-seed0"]
    assert cell.inputs["starting_point"] is steps["starting_point/start0-seed0"]


def test_an_arm_may_multiply_both_learning_rates(experiment: Experiment) -> None:
    cell = dataclasses.replace(experiment.task_model, learning_rate=3e-4)
    study = with_arms(experiment, Arm(), "rate0.5", cell=cell)
    steps = by_name(study)
    for name, rate in (
        ("starting_point/start500-seed0", experiment.task_model.learning_rate),
        ("starting_point/start500-rate0.5-seed0", experiment.task_model.learning_rate / 2),
        ("task_model/start500-original-60-seed0", 3e-4),
        ("task_model/start500-rate0.5-original-60-seed0", 1.5e-4),
    ):
        assert steps[name].config.finetune.learning_rate == rate
    # The untrained start has no rate.
    assert steps["evaluation/start0-seed0"].coordinates["arms"] == ("plain", "rate0.5")


def test_names_say_how_an_arm_differs_from_the_study(experiment: Experiment) -> None:
    both = Arm("joint", "lm", 0.25)
    steps = by_name(with_arms(experiment, "random", "zero", both, "frozen0.25"))
    cell = steps["task_model/start500-joint-lm-frozen0.25-original-60-seed0"]
    assert cell.inputs["starting_point"].name == "starting_point/start0-lm-seed0"
    # A set has no head.
    assert cell.inputs["training_set"].name == "training_set/start500-joint-original-60-seed0"
    assert cell.config.finetune.head_frozen_share == 0.25
    assert steps["task_model/start0-zero-original-60-seed0"].inputs["starting_point"].config.head == "zero"
    other = by_name(with_arms(experiment, Arm(), "random", head="lm"))
    assert "task_model/start0-original-60-seed0" in other and "task_model/start0-random-original-60-seed0" in other
    for study in (with_arms(experiment, "random", "zero", both, "frozen0.25"), with_arms(experiment, *map(Arm, TRAININGS))):
        names = Counter(step.name for step in build_grid(study))
        assert max(names.values()) == 1


def test_a_share_that_one_recipe_has_already_marks_the_other_alone(experiment: Experiment) -> None:
    cell = FinetuneConfig(head_frozen_share=0.5)
    steps = by_name(with_arms(experiment, Arm(), "frozen0", cell=cell))
    # Starting points are those of the study without arms: their recipe has no frozen head.
    assert steps["starting_point/start500-seed0"].coordinates["arms"] == ("plain", "frozen0")
    assert steps["task_model/start500-frozen0-original-60-seed0"].config.finetune.head_frozen_share == 0
    half = by_name(with_arms(experiment, Arm(), "frozen0.5", cell=cell))
    # Of the untrained one cells are the same; of the other the starting point is not.
    assert half["task_model/start0-original-60-seed0"].coordinates["arms"] == ("plain", "frozen0.5")
    assert "task_model/start500-frozen0.5-original-60-seed0" in half


def test_seeds_of_several_generators_are_dealt_alike_in_each_arm(experiment: Experiment) -> None:
    steps = by_name(with_arms(experiment, Arm(), LM, seeds=(0, 1), generators=2))
    for name in ("start0-synthetic-60-seed1-generator1", "start0-lm-synthetic-60-seed1-generator1"):
        assert steps[f"evaluation/{name}"].coordinates["generator"] == 1


def test_a_manifest_has_the_arms_in_their_order(experiment: Experiment) -> None:
    for arms in (("plain", "lm", "joint", "frozen0.1"), ("joint", "frozen0.1", "lm", "plain")):
        loaded = Loaded(with_arms(experiment, *arms), {})
        assert manifest(loaded, build_grid(loaded.experiment)).arms == arms
    assert manifest(Loaded(experiment, {}), build_grid(experiment)).arms == ()


# --- what is refused ---


@pytest.mark.parametrize(
    ("arms", "fields", "words"),
    [
        ((LM,), {}, "arms has 'lm' alone"),
        ((LM, "lm"), {}, "arm 'lm' is twice; leave"),
        ((Arm(), "two_steps"), {}, "arms='plain' and 'two_steps' are the same in this study; leave one"),
        (("random", "frozen0"), {}, "arms='random' and 'frozen0' are the same"),
        (("two_steps", "joint"), {"starting_sizes": (0,)}, "'two_steps' and 'joint' are the same .* a starting size above 0"),
        ((Arm(), "ones"), {}, "'ones' is none of plain"),
        ((Arm(), 3), {}, r"3\)\): give a tuple, of which each is Arm"),
        ((Arm(), JOINT), {"trajectories": "shared", "task_model": "stable"}, "arm 'joint': trajectories='shared' with"),
        ((Arm(), FROZEN), {"trajectories": "shared", "task_model": "stable"}, r"arm 'frozen0\.1': head_frozen_share=0\.1"),
        ((Arm(), "zero+frozen1"), {}, r"arm 'zero\+frozen1': head='zero' with head_frozen_share=1"),
    ],
)
def test_impossible_arms_are_refused(experiment: Experiment, arms, fields, words: str) -> None:
    if fields.get("task_model") == "stable":
        fields = fields | {"task_model": FinetuneConfig(schedule="warmup_stable_decay", cooldown_ratio=0.2)}
    with pytest.raises(UserError, match=words):
        with_arms(experiment, *arms, **fields)


def test_a_head_of_zeros_may_be_frozen_where_it_is_one_no_more(experiment: Experiment) -> None:
    recipe = dataclasses.replace(experiment.task_model, head_frozen_share=1.0)
    zero = dataclasses.replace(experiment, head="zero")
    with pytest.raises(UserError, match="through a head of zeros that stays as it is nothing is learnt"):
        dataclasses.replace(zero, cell=recipe)
    # A cell of two steps begins with its starting point's head.
    trained = dataclasses.replace(zero, cell=recipe, starting_sizes=(500,))
    for fields in ({"training": "joint"}, {"task_model": recipe}):
        with pytest.raises(UserError, match="nothing is learnt"):
            dataclasses.replace(trained, **fields)


def test_arms_are_a_tuple(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"arms='joint'\): give a tuple, .* such as \('joint',\)"):
        dataclasses.replace(experiment, arms="joint")  # type: ignore[arg-type]


# --- claims ---


def test_arms_have_a_claim_of_their_own_against_the_first(experiment: Experiment) -> None:
    study = with_arms(experiment, "two_steps", "joint", "joint+lm")
    further = study.declared_claims[len(PAPER_CLAIMS) :]
    assert [claim.name for claim in further] == ["gap_is_as_wide_in_joint", "gap_is_as_wide_in_joint_lm"]
    (comparison,) = further[0].comparisons
    (difference,) = comparison.differences
    assert (difference.arm, difference.against, comparison.sign, further[0].rule) == ("joint", "two_steps", 0, "every")
    assert not any(claim.primary for claim in further)
    assert from_json(as_json(study.declared_claims)) == study.declared_claims
    assert demo().declared_claims == PAPER_CLAIMS


def test_claims_name_arms_by_value_or_by_name(experiment: Experiment) -> None:
    by_value = Difference("synthetic", "original", "adversarial", arm=Arm("joint", "lm"), against="plain")
    assert by_value == Difference("synthetic", "original", "adversarial", arm="lm+joint", against=Arm())
    claim = Claim("wider", "…", (Comparison((by_value,), -1),), arms=(Arm(head="zero"), "plain"))
    assert claim.arms == ("zero", "plain") and claim.named_arms == {"joint+lm", "plain", "zero"}
    assert with_arms(experiment, Arm(), "zero", "joint+lm", claims=(claim,)).declared_claims == (claim,)
    with pytest.raises(UserError, match=r"claim wider is about the arms \['joint\+lm', 'zero'\]; those .* are plain, joint"):
        with_arms(experiment, Arm(), "joint", claims=(claim,))
    with pytest.raises(UserError, match=r"claim wider is about the arms .*; those of the study would be its arms=\(…\)"):
        dataclasses.replace(experiment, claims=(claim,))


def test_a_manifest_from_before_arms_has_claims_of_all_of_them() -> None:
    (old,) = as_json([Claim("lower", "…", (Comparison((GAP,), -1),))])
    del old["arms"], old["comparisons"][0]["differences"][0]["arm"], old["comparisons"][0]["differences"][0]["against"]
    (claim,) = from_json([old])
    assert claim.arms == "all" and not claim.named_arms


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Claim("one", "", (Comparison((GAP,), -1),), arms="lm"), "arms='lm' is none of all, nor a tuple of arms"),
        (lambda: dataclasses.replace(GAP, arm="lm", against="lm"), "arm 'lm' against itself is 0"),
        (lambda: dataclasses.replace(GAP, arm="elsewhere"), "'elsewhere' is none of plain"),
    ],
)
def test_what_is_no_claim_about_arms_is_refused(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


# --- plan and parameters ---


def test_a_study_with_arms_finds_what_the_study_without_has_built(experiment: Experiment, tmp_path, record_all) -> None:
    store = Store(tmp_path / "store")
    record_all(build_grid(experiment), store)
    record_all(build_grid(dataclasses.replace(experiment, training="joint")), store)
    planned = make_plan(build_grid(with_arms(experiment, "two_steps", "joint", "lm")), store)
    missing = [one.step.name for one in planned if not one.is_cached]
    assert missing and all("-lm-" in name for name in missing)


def test_the_plan_prices_what_each_arm_adds(llama: Experiment, tmp_path, record_all) -> None:
    small = dataclasses.replace(llama, starting_sizes=(0, 5_000), training_sizes=(300,))
    store, study = Store(tmp_path / "store"), with_arms(small, Arm(), JOINT, LM)
    record_all(build_grid(small), store)

    def planned(of: Experiment) -> Plan:
        steps = make_plan(build_grid(of), store)
        table = read_table()
        estimate = estimate_costs([one.step for one in steps], table, table.gpu("h200"), settings=SETTINGS)
        missing = frozenset(one.step.fingerprint for one in steps if not one.is_cached)
        schedule = Schedule(1, 0.0, 0.0, (), 0.0)
        return Plan(of, steps, PlanCosts(estimate, missing, (schedule,), 1))

    plan = planned(study)
    # Of 3 kinds: joint sets, cells and evaluations from the one trained start. Another head: 2 starts, 6 cells, 8 evaluations.
    assert {arm: len(steps) for arm, steps in plan.of_arms.items()} == {"plain": 6, "joint": 9, "lm": 16}
    lines = list(_arm_lines(plan))
    assert lines[0] == "arm plain: 6 artifacts of its own, 0 to build"
    assert re.fullmatch(r"arm joint: 9 artifacts of its own, 9 to build, \d+\.\d GPU-hours \(\$\d.* on demand\)", lines[1])
    values = plan_json(plan)["arms"]
    assert values["joint"]["steps"] == 9 and values["joint"]["cached"] == 0 and values["plain"]["to_build"]["gpu_hours"] == 0
    assert values["lm"]["to_build"]["gpu_hours"] == values["lm"]["in_all"]["gpu_hours"] > values["joint"]["in_all"]["gpu_hours"]
    # Together they are what is missing, and what the study costs beyond the one without arms.
    assert sum(arm["to_build"]["gpu_hours"] for arm in values.values()) == pytest.approx(plan.costs.to_build.gpu_hours)
    assert planned(small).of_arms == {} and not list(_arm_lines(planned(small)))


def test_a_rehearsal_has_all_arms(experiment: Experiment) -> None:
    short = rehearsal(with_arms(experiment, Arm(), LM, JOINT))
    assert short.arm_names == ("plain", "lm", "joint")
    assert any("-joint-" in step.slug for step in build_grid(short))


def test_the_built_in_studies_take_them_as_parameters() -> None:
    study = load_experiment("demo", ["starting_sizes=0,3000", "arms=two_steps,joint,lm+frozen0.25"]).experiment
    assert study.arms == (Arm("two_steps"), Arm("joint"), Arm(head="lm", head_frozen_share=0.25))
    assert load_experiment("demo", ["training=joint", "head=lm"]).experiment.arms == ()
    assert "arms" in mini.__annotations__
    with pytest.raises(UserError, match="arm 'lmm': 'lmm' is none of"):
        load_experiment("demo", ["arms=random,lmm"])

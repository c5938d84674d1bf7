"""Mixes, joint training, heads and generations in the step graph, the claims and the plan."""

import dataclasses
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.kinds import Added, Mix
from pipelines.errors import UserError
from pipelines.tasks.heuristics import HEURISTICS
from pipelines.tasks.nli import NLI
from sweep.graph.step import Step
from sweep.plan.costs import estimate_costs, replication
from sweep.plan.rehearsal import rehearsal
from sweep.plan.throughputs import read_table
from sweep.study.claims import Claim, Comparison, Difference, as_json, from_json
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo, mini
from sweep.study.grid import build_grid
from sweep.study.inputs import check_pools
from sweep.study.loading import load_experiment
from sweep.study.paper_claims import PAPER_CLAIMS

HALF = Mix(original=0.5, synthetic=0.5)


def by_name(experiment: Experiment) -> dict[str, Step]:
    return {step.name: step for step in build_grid(experiment)}


def with_kinds(experiment: Experiment, *kinds: str | Mix | Added, **fields: object) -> Experiment:
    return dataclasses.replace(experiment, kinds=kinds, **fields)  # type: ignore[arg-type]


# --- mixes ---


def test_a_mix_is_drawn_from_data_and_pool_beside_the_pure_kinds(experiment: Experiment) -> None:
    plain = {step.fingerprint for step in build_grid(with_kinds(experiment, "original", "synthetic"))}
    steps = by_name(with_kinds(experiment, "original", HALF, "synthetic", Added(synthetic=2)))
    assert plain < {step.fingerprint for step in steps.values()}
    drawn = steps["training_set/mix_original0.5_synthetic0.5-60-seed0"]
    assert {name: step.name for name, step in drawn.inputs.items()} == {"source": "sources/data", "pool": "synthetic_pool/pool"}
    assert drawn.coordinates == {
        "starting_size": None, "kind": "mix_original0.5_synthetic0.5", "size": 60, "seed": 0, "synthetic_share": 0.5,
    }  # fmt: skip
    assert (drawn.config.kind, drawn.config.mix, drawn.config.size) == ("mix", HALF, 60)
    cell = steps["task_model/start500-mix_original0.5_synthetic0.5-60-seed0"]
    assert cell.inputs["training_set"] is drawn
    assert steps["evaluation/start0-added_synthetic2-30-seed0"].coordinates["synthetic_share"] == pytest.approx(2 / 3)


def test_strings_name_mixes_and_stay_what_they_were(experiment: Experiment) -> None:
    named = with_kinds(experiment, "original", "mixed_50", "synthetic")
    assert named.kinds == ("original", HALF, "synthetic")
    assert load_experiment("demo", ["kinds=original,mixed_25"]).experiment.kinds[1] == Mix(original=0.75, synthetic=0.25)
    given = load_experiment("demo", ["kinds=original,mix_original0.9_biased_synthetic0.1"]).experiment
    assert given.kinds[1] == Mix(original=0.9, biased_synthetic=0.1)


def test_a_mix_with_original_examples_avoids_the_starting_sets(experiment: Experiment) -> None:
    study = with_kinds(experiment, HALF, Mix(synthetic=0.5, biased_synthetic=0.5), disjoint_from_starting=True)
    steps = by_name(study)
    drawn = steps["training_set/start500-mix_original0.5_synthetic0.5-60-seed0"]
    assert drawn.inputs["starting_set"].name == "starting_set/start500-seed0" and drawn.config.disjoint_from_starting
    pure = steps["training_set/mix_synthetic0.5_biased_synthetic0.5-60-seed0"]
    assert {name: step.stage for name, step in pure.inputs.items()} == {"pool": "synthetic_pool"}


def test_a_filtered_part_needs_a_judge(experiment: Experiment) -> None:
    kind = Mix(original=0.5, filtered_synthetic=0.5)
    with pytest.raises(UserError, match="give judge, too"):
        with_kinds(experiment, kind)
    steps = by_name(with_kinds(experiment, kind, judge=300))
    assert "judgement" in steps[f"training_set/{kind.name}-60-seed0"].inputs


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("original", "mixture"), r"kinds=\['mixture'\] are unknown; valid: original, .*, mixed_25 .*, Mix"),
        ((HALF, "mixed_50"), "names a value twice"),
        ((Mix(original=1 / 3, synthetic=2 / 3), Mix(original=0.333333, synthetic=0.666667)), "are there twice, in other words"),
        (("mixed_0",), "fewer than two parts"),
    ],
)
def test_impossible_kinds_are_refused(experiment: Experiment, kinds: tuple[str | Mix, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_kinds(experiment, *kinds)


def test_mixes_and_generations_have_claims_of_their_own_unless_the_study_declares_some(experiment: Experiment) -> None:
    study = with_kinds(experiment, "original", HALF, "synthetic", Added(synthetic=2), generations=3)
    claims = {claim.name: claim for claim in study.declared_claims[len(PAPER_CLAIMS) :]}
    assert list(claims) == [
        "mix_original0_5_synthetic0_5_is_between", "added_synthetic2_reinforces", "blindspot_grows_over_generations",
        "general_falls_over_generations",
    ]  # fmt: skip
    assert not any(claim.primary for claim in claims.values())
    between = claims["mix_original0_5_synthetic0_5_is_between"]
    assert [(part.differences[0].treatment, part.differences[0].control, part.sign) for part in between.comparisons] == [
        (HALF.name, "original", -1),
        ("synthetic", HALF.name, -1),
    ]
    (slope,) = claims["blindspot_grows_over_generations"].comparisons
    # Of three, the middle one has no weight in a slope; in all, the first has what makes weights add up to 0.
    assert [(part.treatment, part.weight) for part in slope.differences] == [("synthetic_generation3", 0.5)]
    assert from_json(as_json(study.declared_claims)) == study.declared_claims
    assert dataclasses.replace(study, claims=PAPER_CLAIMS[:1]).declared_claims == PAPER_CLAIMS[:1]
    assert demo().declared_claims == PAPER_CLAIMS


def test_four_generations_have_a_least_squares_slope(experiment: Experiment) -> None:
    study = with_kinds(experiment, "synthetic", generations=4)
    (slope,) = next(c for c in study.declared_claims if c.name == "blindspot_grows_over_generations").comparisons
    # Deviations -1.5, -0.5, 0.5, 1.5 over the sum of their squares, 5.
    assert [part.weight for part in slope.differences] == pytest.approx([-0.1, 0.1, 0.3])


def test_a_claim_may_be_about_a_mix_by_value_or_by_name(experiment: Experiment) -> None:
    claims = tuple(
        Claim(name, "…", (Comparison((Difference(kind, "original", "adversarial"),), -1),))
        for name, kind in (("by_value", HALF), ("by_name", HALF.name), ("shorter", "mixed_50"))
    )
    study = with_kinds(experiment, "original", HALF, claims=claims)
    assert all(claim.kinds == {HALF.name, "original"} and claim.is_from_pool for claim in study.declared_claims)
    with pytest.raises(UserError, match=r"by_value is about .*mix_original0\.5_synthetic0\.5"):
        with_kinds(experiment, "original", claims=claims[:1])


# --- joint training ---


def test_a_cell_of_joint_training_starts_untrained_on_both_sets(experiment: Experiment) -> None:
    two_steps, joint = by_name(experiment), by_name(dataclasses.replace(experiment, training="joint"))
    from_nothing = {name: step.fingerprint for name, step in two_steps.items() if "start500" not in name}
    assert from_nothing.items() <= {name: step.fingerprint for name, step in joint.items()}.items()
    cell = joint["task_model/start500-joint-original-60-seed0"]
    assert cell.inputs["starting_point"].name == "starting_point/start0-seed0"
    assert cell.coordinates == {"starting_size": 500, "kind": "original", "size": 60, "seed": 0}
    drawn = cell.inputs["training_set"]
    assert drawn.name == "training_set/start500-joint-original-60-seed0" and drawn.config.size == 560
    assert {name: step.name for name, step in drawn.inputs.items()} == {
        "starting_set": "starting_set/start500-seed0",
        "own_set": "training_set/original-60-seed0",
    }
    assert joint["evaluation/start500-seed0"].fingerprint == two_steps["evaluation/start500-seed0"].fingerprint
    assert Counter(step.stage for step in joint.values())["task_model"] == 12
    assert "task_model/start500-original-60-seed0" not in joint


def test_joint_training_counts_both_sets_in_the_plan(llama: Experiment) -> None:
    small = dataclasses.replace(llama, starting_sizes=(5_000,), training_sizes=(300,), training="joint")
    table = read_table()
    costs = {
        cost.step.name: cost for cost in estimate_costs(build_grid(small), table, table.gpu("h200"), settings=SETTINGS).steps
    }
    work = costs["task_model/start5000-joint-synthetic-300-seed0"].work
    assert work is not None and work.num_examples == 5_300


SETTINGS = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4_096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 11_008, "vocab_size": 32_000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"training": "one_step"}, "training='one_step' is not one of 'two_steps', 'joint'"),
        ({"head": "ones"}, "head='ones' is not one of 'random', 'zero', 'lm'"),
        ({"generations": 0}, "generations=0: the first is trained on original data"),
        ({"generations": 2, "kinds": ("original", "biased_synthetic")}, "has no 'synthetic' of the first"),
        ({"accumulate": True}, "give generations=2"),
        (
            {"generations": 2, "synthetic": "pool.parquet", "generator": None, "generation": None},
            "the first is of no finetuned generator",
        ),
        ({"trajectories": "shared", "training": "joint"}, "trajectories='shared' with training='joint'"),
    ],
)
def test_what_does_not_go_together_is_refused(experiment: Experiment, fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(experiment, **fields)  # type: ignore[arg-type]


def test_a_generator_has_no_head_to_freeze(experiment: Experiment) -> None:
    recipe = dataclasses.replace(experiment.task_model, head_frozen_share=0.5)
    with pytest.raises(UserError, match=r"the generator has head_frozen_share=0\.5"):
        dataclasses.replace(experiment, generator=dataclasses.replace(experiment.generator, finetune=recipe))
    frozen = build_grid(dataclasses.replace(experiment, task_model=recipe))
    assert all(step.payload["config"]["finetune"]["head_frozen_share"] == 0.5 for step in frozen if step.stage == "task_model")


def test_another_head_is_another_start(experiment: Experiment) -> None:
    random, zero = by_name(experiment), by_name(dataclasses.replace(experiment, head="zero"))
    changed = {name.partition("/")[0] for name, step in zero.items() if random[name].fingerprint != step.fingerprint}
    assert changed == {"starting_point", "task_model", "evaluation"}
    assert zero["starting_point/start0-seed0"].payload["config"]["head"] == "zero"
    assert "head" not in random["starting_point/start0-seed0"].payload["config"]


def test_the_judge_is_the_same_whatever_head_is_asked_about(experiment: Experiment) -> None:
    plain = dataclasses.replace(experiment, judge=300)
    recipe = dataclasses.replace(experiment.task_model, head_frozen_share=1.0)
    judged = [
        {name: step.fingerprint for name, step in by_name(study).items() if step.stage == "judgement"}
        for study in (plain, dataclasses.replace(plain, head="lm", task_model=recipe))
    ]
    assert judged[0] == judged[1] != {}


# --- generations ---


@pytest.mark.parametrize("accumulate", [False, True])
def test_each_generation_is_trained_on_the_pool_before_it_or_on_all_of_them(experiment: Experiment, accumulate: bool) -> None:
    study = with_kinds(experiment, "original", "synthetic", generations=3, accumulate=accumulate)
    plain, steps = by_name(with_kinds(experiment, "original", "synthetic")), by_name(study)
    assert {name: step.fingerprint for name, step in plain.items()}.items() <= {
        name: step.fingerprint for name, step in steps.items()
    }.items()
    inputs = [
        {name: step.name for name, step in steps[f"generator/generator-generation{number}"].inputs.items()} for number in (2, 3)
    ]
    base, data = {"base_model": "base_model/base"}, {"sources": "sources/data"}
    first, second = {"pool1": "synthetic_pool/pool"}, {"pool2": "synthetic_pool/pool-generation2"}
    assert inputs == ([base | data | first, base | data | first | second] if accumulate else [base | first, base | second])
    seeds = {name: steps[name].config.seed for name in steps if name.startswith(("generator/", "synthetic_pool/"))}
    assert seeds["generator/generator-generation2"] == 10_000 and seeds["synthetic_pool/pool-generation3"] == 20_000
    drawn = steps["training_set/synthetic_generation2-60-seed0"]
    assert drawn.inputs["source"].name == "synthetic_pool/pool-generation2" and drawn.config.kind == "synthetic"
    assert drawn.coordinates["generation"] == 2 and drawn.coordinates["kind"] == "synthetic_generation2"
    assert drawn.config == steps["training_set/synthetic-60-seed0"].config
    evaluated = {step.coordinates["kind"] for step in steps.values() if step.stage == "evaluation"}
    assert evaluated == {"none", "original", "synthetic", "synthetic_generation2", "synthetic_generation3"}


def test_each_of_several_generators_has_its_own_chain(experiment: Experiment) -> None:
    study = with_kinds(experiment, "synthetic", seeds=(0, 1), generators=2, generations=2)
    steps = by_name(study)
    pool = steps["synthetic_pool/pool1-generation2"]
    assert pool.coordinates == {"generator": 1, "generation": 2}
    assert pool.inputs["generator"].inputs["pool1"].name == "synthetic_pool/pool1"
    drawn = steps["training_set/synthetic_generation2-60-seed1-generator1"]
    assert drawn.inputs["source"] is pool and drawn.coordinates["generator"] == 1


def test_a_generation_costs_a_generator_trained_on_what_it_reads_and_a_pool(llama: Experiment) -> None:
    table = read_table()

    def costs(**fields: object) -> dict[str, float]:
        study = with_kinds(llama, "original", "synthetic", generations=2, **fields)
        steps = estimate_costs(build_grid(study), table, table.gpu("h200"), settings=SETTINGS).steps
        assert replication(steps).generator == pytest.approx(
            sum(cost.gpu_seconds for cost in steps if cost.step.stage in ("generator", "synthetic_pool")) / 3_600
        )
        return {cost.step.name: cost.work.num_examples for cost in steps if cost.work}

    pool, train = 631_992 + 562_822 + 624_999, 391_952
    assert costs()["generator/generator"] == pytest.approx(train, rel=0.001)
    assert costs()["generator/generator-generation2"] == pool
    assert costs(accumulate=True)["generator/generator-generation2"] == pytest.approx(pool + train, rel=0.001)


# --- debiased sets ---


def test_a_debiased_set_is_measured_by_the_original_data_and_moves_nothing_else(experiment: Experiment) -> None:
    before = {step.fingerprint for step in build_grid(experiment)}
    mix = Mix(original=0.5, debiased_synthetic=0.5)
    study = with_kinds(experiment, *experiment.kinds, "debiased_synthetic", mix)
    steps = by_name(study)
    assert before < {step.fingerprint for step in steps.values()}
    drawn = steps["training_set/debiased_synthetic-60-seed0"]
    inputs = {name: step.name for name, step in drawn.inputs.items()}
    assert inputs == {"source": "synthetic_pool/pool", "reference": "sources/data"}
    # HANS's three come with NLI, after the study's own.
    assert [heuristic.name for heuristic in drawn.config.heuristics] == ["lexical_overlap", "subsequence", "constituent"]
    mixed = steps["training_set/mix_original0.5_debiased_synthetic0.5-60-seed0"]
    inputs = {name: step.name for name, step in mixed.inputs.items()}
    assert inputs == {"source": "sources/data", "pool": "synthetic_pool/pool", "reference": "sources/data"}
    other = dataclasses.replace(study, heuristic=HEURISTICS["subsequence"])
    config = by_name(other)["training_set/debiased_synthetic-60-seed0"].config
    assert [heuristic.name for heuristic in config.heuristics] == ["subsequence", "lexical_overlap", "constituent"]
    named = load_experiment("demo", ["kinds=original,debiased_synthetic"]).experiment
    assert named.kinds == ("original", "debiased_synthetic")


def test_a_study_with_debiased_and_plain_synthetic_sets_asks_whether_that_helped(experiment: Experiment) -> None:
    (claim,) = with_kinds(experiment, "synthetic", "debiased_synthetic").declared_claims[len(PAPER_CLAIMS) :]
    ((comparison,), (difference,)) = claim.comparisons, claim.comparisons[0].differences
    assert (claim.name, claim.primary, comparison.sign) == ("debiasing_helps", False, 1)
    assert (difference.treatment, difference.control, difference.on) == ("debiased_synthetic", "synthetic", "adversarial")
    assert with_kinds(experiment, "original", "debiased_synthetic").declared_claims == PAPER_CLAIMS


def test_a_pool_of_ones_own_that_cannot_be_debiased_is_refused_by_the_plan(experiment: Experiment, tmp_path: Path) -> None:
    rows = [
        {"premise": f"A man {n} sleeps.", "hypothesis": f"Someone else {n}.", "label": label}
        for n in range(40)
        for label in NLI.labels
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    own = {"synthetic": str(tmp_path / "pool.parquet"), "generator": None, "generation": None}
    study = with_kinds(experiment, "synthetic", "debiased_synthetic", **own)
    words = "gives lexical overlap the original data's odds ratio: it holds of no row; give a larger pool, or leave the kind"
    with pytest.raises(UserError, match=words):
        check_pools(build_grid(study))
    check_pools(build_grid(with_kinds(experiment, "synthetic", **own)))


# --- all of it ---


def test_a_rehearsal_has_each_mix_and_two_generations(experiment: Experiment) -> None:
    kinds = ("synthetic", HALF, Mix(original=0.5, filtered_synthetic=0.5), Added(filtered_synthetic=3), "mixed_10")
    short = rehearsal(with_kinds(experiment, *kinds, generations=4, training="joint", judge=300))
    assert short.kinds == ("synthetic", HALF, Added(synthetic=3), Mix(original=0.9, synthetic=0.1))
    assert short.generations == 2 and short.training == "joint"
    (size,) = short.training_sizes
    # A tenth of it has the three labels, and the pool is as large as what is added.
    assert Mix(original=0.9, synthetic=0.1).sizes(size)["synthetic"] >= len(NLI.labels)
    assert short.generation.num_per_label == size
    assert any(step.name == "synthetic_pool/pool-generation2" for step in build_grid(short))


def test_the_built_in_studies_take_them_as_parameters() -> None:
    study = load_experiment(
        "demo", ["kinds=original,synthetic,mixed_50", "training=joint", "head=lm", "generations=2"]
    ).experiment
    assert (study.training, study.head, study.generations, study.accumulate) == ("joint", "lm", 2, False)
    assert set(demo.__annotations__) & set(mini.__annotations__) >= {"kinds", "training", "head", "generations", "accumulate"}

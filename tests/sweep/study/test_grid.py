"""The step graph of the paper's study, counted by hand, and what depends on what."""

import dataclasses
from collections import Counter

import pytest

from pipelines.errors import UserError
from pipelines.finetune.base_model import PretrainedModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.resources import Resources
from pipelines.tasks.heuristics import HEURISTICS, Heuristic
from sweep.graph.step import Step
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.paper_claims import PAPER_CLAIMS

# Six starting points, nine training sets (3 kinds × 3 sizes): 54 cells and 6 starting points evaluated.
PAPER_STEPS = {
    "sources": 1,
    "base_model": 1,
    "generator": 1,
    "synthetic_pool": 1,
    "starting_set": 5,
    "starting_point": 6,
    "training_set": 9,
    "task_model": 54,
    "evaluation": 60,
}


STABLE = FinetuneConfig(schedule="warmup_stable_decay", cooldown_ratio=0.2)


def ancestors(step: Step) -> set[str]:
    return {name for one in step.inputs.values() for name in {one.stage, *ancestors(one)}}


def test_the_papers_grid(paper: Experiment) -> None:
    steps = build_grid(paper)
    assert Counter(step.stage for step in steps) == PAPER_STEPS
    cells = {tuple(step.coordinates.values()) for step in steps if step.stage == "task_model"}
    assert len(cells) == 54
    assert (391_722, "biased_synthetic", 18_020, 0) in cells


def test_a_second_seed_shares_data_base_model_generator_and_pool(paper: Experiment) -> None:
    counts = Counter(step.stage for step in build_grid(dataclasses.replace(paper, seeds=(0, 1))))
    shared = {"sources", "base_model", "generator", "synthetic_pool"}
    assert counts == {stage: n if stage in shared else 2 * n for stage, n in PAPER_STEPS.items()}


def test_slugs_name_artifacts_uniquely(paper: Experiment) -> None:
    names = Counter(step.name for step in build_grid(paper))
    assert max(names.values()) == 1
    assert "task_model/start5000-biased_synthetic-18020-seed0" in names


def test_inputs_come_first(paper: Experiment) -> None:
    seen: set[str] = set()
    for step in build_grid(paper):
        assert all(source.fingerprint in seen for source in step.inputs.values())
        seen.add(step.fingerprint)


def test_original_cells_do_not_depend_on_the_pool(paper: Experiment) -> None:
    for step in build_grid(paper):
        if step.stage in ("task_model", "evaluation"):
            needs_pool = step.coordinates["kind"] in ("synthetic", "biased_synthetic")
            assert ("synthetic_pool" in ancestors(step)) == needs_pool


def test_every_starting_point_begins_with_the_same_head(paper: Experiment) -> None:
    points = [step for step in build_grid(paper) if step.stage == "starting_point"]
    untrained = [step for step in points if step.coordinates["starting_size"] == 0]
    assert len(untrained) == 1
    others = [step for step in points if step is not untrained[0]]
    assert {step.inputs["starting_point"].fingerprint for step in others} == {untrained[0].fingerprint}


def shared(experiment: Experiment) -> Experiment:
    recipe = dataclasses.replace(experiment.task_model, schedule="warmup_stable_decay", cooldown_ratio=0.2)
    return dataclasses.replace(experiment, task_model=recipe, trajectories="shared")


def test_shared_trajectories_have_the_same_steps_and_the_largest_size_for_a_trunk(paper: Experiment) -> None:
    steps = build_grid(shared(paper))
    assert Counter(step.stage for step in steps) == PAPER_STEPS
    seen: set[str] = set()
    for step in steps:
        assert all(source.fingerprint in seen for source in step.inputs.values())
        seen.add(step.fingerprint)
    by_name = {step.name: step for step in steps}
    trunks = {name: step.inputs["trunk"].name for name, step in by_name.items() if "trunk" in step.inputs}
    # Four starting points, and two cells of each of six starting points and three kinds.
    assert len(trunks) == 4 + 6 * 3 * 2
    assert trunks["starting_point/start100000-seed0"] == "starting_point/start391722-seed0"
    assert trunks["task_model/start5000-original-18020-seed0"] == "task_model/start5000-original-73080-seed0"
    point = by_name["starting_point/start20000-seed0"]
    assert point.config.nested_sizes == (5_000, 10_000)
    assert point.inputs["training_set"].config.nested_sizes == (5_000, 10_000)
    assert point.inputs["starting_point"].name == "starting_point/start0-seed0"
    cell = by_name["task_model/start20000-biased_synthetic-73080-seed0"]
    assert cell.config.nested_sizes == cell.inputs["training_set"].config.nested_sizes == (18_020, 36_040)
    assert cell.inputs["starting_point"] is point and "trunk" not in cell.inputs
    assert cell.coordinates == {"starting_size": 20_000, "kind": "biased_synthetic", "size": 73_080, "seed": 0}


def test_nested_sizes_of_a_trajectory_are_what_is_drawn(experiment: Experiment) -> None:
    study = dataclasses.replace(
        shared(experiment), training_sizes=(32, 61, 91), remainder="drop", disjoint_from_starting=True, biases=(0.5,)
    )
    cells = {step.slug: step for step in build_grid(study) if step.stage == "task_model"}
    for kind in ("original", "synthetic", "biased_synthetic", "bias_0.5"):
        for size, nested in ((32, ()), (61, (30,)), (91, (30, 60))):
            assert cells[f"start500-{kind}-{size}-seed0"].config.nested_sizes == nested
    one = cells["start500-original-61-seed0"].inputs["training_set"]
    assert one.config.nested_sizes == (32,) and one.inputs["starting_set"].slug == "start500-seed0"


def test_of_one_size_there_is_nothing_to_share(experiment: Experiment) -> None:
    alone = dataclasses.replace(shared(experiment), training_sizes=(60,))
    separate = dataclasses.replace(alone, trajectories="separate")
    assert [step.fingerprint for step in build_grid(alone)] == [step.fingerprint for step in build_grid(separate)]


def test_disjoint_original_sets_belong_to_one_starting_point(experiment: Experiment) -> None:
    steps = build_grid(dataclasses.replace(experiment, disjoint_from_starting=True))
    sets = [step for step in steps if step.stage == "training_set"]
    # Synthetic and biased: 2 sizes each. Original: 2 sizes, for size 0 without and for 500 with exclusion.
    assert len(sets) == 2 * 2 + 2 * 2
    assert sum("starting_set" in step.inputs for step in sets) == 2


def test_doses_of_bias_are_further_kinds_and_leave_the_others_as_they_are(experiment: Experiment) -> None:
    before = {step.fingerprint: (step.name, dict(step.coordinates)) for step in build_grid(experiment)}
    steps = build_grid(dataclasses.replace(experiment, biases=(0.5, 1), heuristic_share=0.1))
    kept = {step.fingerprint: (step.name, dict(step.coordinates)) for step in steps if step.fingerprint in before}
    assert kept == before
    added = [step for step in steps if step.fingerprint not in before]
    # Two doses × two sizes, from two starting points.
    assert Counter(step.stage for step in added) == {"training_set": 4, "task_model": 8, "evaluation": 8}
    sets = {step.slug: step for step in added if step.stage == "training_set"}
    assert list(sets) == ["bias_0.5-30-seed0", "bias_0.5-60-seed0", "bias_1.0-30-seed0", "bias_1.0-60-seed0"]
    one = sets["bias_0.5-30-seed0"]
    assert (one.config.kind, one.config.bias, one.config.heuristic_share) == ("biased_synthetic", 0.5, 0.1)
    assert one.coordinates == {"starting_size": None, "kind": "bias_0.5", "size": 30, "seed": 0, "bias": 0.5}
    assert one.inputs["source"].stage == "synthetic_pool"


def test_another_heuristic_rebuilds_the_biased_cells_only(experiment: Experiment) -> None:
    before = {step.fingerprint for step in build_grid(experiment)}
    after = build_grid(dataclasses.replace(experiment, heuristic=HEURISTICS["subsequence"]))
    rebuilt = [step for step in after if step.fingerprint not in before]
    assert Counter(step.stage for step in rebuilt) == {"training_set": 2, "task_model": 4, "evaluation": 4}
    assert {step.coordinates["kind"] for step in rebuilt} == {"biased_synthetic"}


def place(step: Step) -> tuple[str, str]:
    return step.name, step.fingerprint


def test_seeds_are_dealt_over_generators_with_a_pool_each(experiment: Experiment) -> None:
    steps = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2, 3), generators=2, biases=(0.5,)))
    by_name = {step.name: step for step in steps}
    assert len(by_name) == len(steps)
    assert Counter(step.stage for step in steps) == {
        "sources": 1, "base_model": 1, "generator": 2, "synthetic_pool": 2, "starting_set": 4, "starting_point": 8,
        "training_set": 4 * 8, "task_model": 4 * 16, "evaluation": 4 * 18,
    }  # fmt: skip
    pools = {number: by_name[f"synthetic_pool/{slug}"] for number, slug in enumerate(("pool", "pool1"))}
    for number, pool in pools.items():
        generator = pool.inputs["generator"]
        assert generator.name == ("generator/generator", "generator/generator1")[number]
        assert (generator.config.seed, pool.config.seed) == (number, number)
        assert generator.coordinates == pool.coordinates == {"generator": number}
    for seed, number, end in ((0, 0, ""), (1, 1, "-generator1"), (2, 0, ""), (3, 1, "-generator1")):
        for kind in ("synthetic", "biased_synthetic", "bias_0.5"):
            drawn = by_name[f"training_set/{kind}-60-seed{seed}{end}"]
            assert drawn.inputs["source"] is pools[number]
            model = by_name[f"task_model/start500-{kind}-60-seed{seed}{end}"]
            assert model.inputs["training_set"] is drawn
            assert model.coordinates["generator"] == drawn.coordinates["generator"] == number


def test_an_evaluation_says_the_generator_of_its_seed_and_what_needs_none_does_not(experiment: Experiment) -> None:
    for step in build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2), generators=3)):
        if step.stage == "evaluation":
            assert step.coordinates["generator"] == step.coordinates["seed"]
        else:
            depends = step.stage in ("generator", "synthetic_pool") or "synthetic_pool" in ancestors(step)
            assert ("generator" in step.coordinates) == depends, step.name


def test_what_the_first_generator_and_none_make_is_what_a_study_with_one_has(experiment: Experiment) -> None:
    one = dataclasses.replace(experiment, seeds=(0, 1, 2, 3))
    before = {place(step) for step in build_grid(one)}
    several = build_grid(dataclasses.replace(one, generators=2))
    new = [step for step in several if place(step) not in before]
    # The second generator, its pool, and the synthetic cells of two seeds: two kinds × two sizes, from two starting points.
    assert Counter(step.stage for step in new) == {
        "generator": 1, "synthetic_pool": 1, "training_set": 8, "task_model": 16, "evaluation": 16,
    }  # fmt: skip
    assert {step.coordinates["generator"] for step in new} == {1}


def test_seeds_added_later_move_none(experiment: Experiment) -> None:
    few = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2), generators=3))
    more = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2, 3, 4, 5), generators=3))
    there = {place(step): dict(step.coordinates) for step in more}
    assert all(there[place(step)] == step.coordinates for step in few)
    # Every one of the three pools serves the new seeds, too.
    assert Counter(step.stage for step in more)["synthetic_pool"] == 3


def test_generators_go_on_from_the_configs_seeds(experiment: Experiment) -> None:
    study = dataclasses.replace(
        experiment,
        seeds=(0, 1),
        generators=2,
        generator=dataclasses.replace(experiment.generator, seed=7),
        generation=dataclasses.replace(experiment.generation, seed=40),
    )
    seeds = {step.name: step.config.seed for step in build_grid(study) if step.stage in ("generator", "synthetic_pool")}
    assert list(seeds.values()) == [7, 40, 8, 41]


def test_a_branch_and_its_trunk_are_of_one_generator(experiment: Experiment) -> None:
    steps = build_grid(dataclasses.replace(shared(experiment), seeds=(0, 1), generators=2))
    branches = [step for step in steps if step.stage == "task_model" and "trunk" in step.inputs]
    assert branches
    for step in branches:
        assert step.inputs["trunk"].coordinates.get("generator") == step.coordinates.get("generator")


@pytest.mark.parametrize(
    ("seeds", "generators", "message"),
    [
        ((0, 1, 2, 4), 3, r"generators 0 to 2 have 1, 2, 1 of them, .*; give seeds=0,1,2 or seeds=0,1,2,3,4,5$"),
        # Its own seeds are kept.
        ((5, 0, 7, 3), 2, r"generators 0 to 1 have 1, 3 of them, .*; give seeds=0,5 or seeds=0,2,3,4,5,7$"),
        ((0,), 3, r"generators 0 to 2 have 1, 0, 0 of them, .*; give seeds=0,1,2$"),
        ((0, 2), 2, r"generators 0 to 1 have 2, 0 of them, .*; give seeds=0,1,2,3$"),
        ((0, 1), 0, "generators=0: at least one writes a pool"),
    ],
)
def test_generators_have_equal_numbers_of_seeds(
    experiment: Experiment, seeds: tuple[int, ...], generators: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(experiment, seeds=seeds, generators=generators)


def test_generators_without_a_pool_are_refused(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"generators=2 are for kinds made from a pool, and kinds=\('original',\) has none"):
        dataclasses.replace(experiment, kinds=("original",), seeds=(0, 1), generators=2)


def test_a_judge_is_finetuned_for_this_alone_and_filtered_sets_are_drawn_from_what_it_says(experiment: Experiment) -> None:
    before = {step.fingerprint: step.name for step in build_grid(experiment)}
    study = dataclasses.replace(experiment, kinds=("original", "synthetic", "biased_synthetic", "filtered_synthetic"), judge=40)
    steps = build_grid(study)
    assert {step.fingerprint: step.name for step in steps if step.fingerprint in before} == before
    added = [step for step in steps if step.fingerprint not in before]
    # The judge, untrained and trained, its examples and its judgement; two sizes from two starting points.
    counts = {"starting_point": 2, "starting_set": 1, "judgement": 1, "training_set": 2, "task_model": 4, "evaluation": 4}
    assert Counter(step.stage for step in added) == counts
    by_name = {step.name: step for step in steps}
    judgement, judge = by_name["judgement/judge-pool"], by_name["starting_point/judge40"]
    assert {name: source.name for name, source in judgement.inputs.items()} == {
        "sources": "sources/data",
        "pool": "synthetic_pool/pool",
        "base_model": "base_model/base",
        "judge0": "starting_point/judge40",
        "judge0_set0": "starting_set/judge40",
    }
    assert judgement.config.sets == ("dev", "template_test") and judgement.config.heuristics == (experiment.heuristic,)
    assert judge.inputs["training_set"].fingerprint == judgement.inputs["judge0_set0"].fingerprint
    # Neither starts from the judge, nor was the judge trained on anything that a generator wrote.
    assert not any(judge in step.inputs.values() for step in steps if step.stage in ("task_model", "starting_point"))
    assert ancestors(judge) == {"sources", "base_model", "starting_set", "starting_point"}
    filtered = [step for step in added if step.stage == "training_set"]
    assert [step.slug for step in filtered] == ["filtered_synthetic-30-seed0", "filtered_synthetic-60-seed0"]
    assert all(step.inputs == {"source": by_name["synthetic_pool/pool"], "judgement": judgement} for step in filtered)


def test_a_judge_without_filtered_sets_adds_a_judgement_and_changes_nothing_else(experiment: Experiment) -> None:
    before = {step.fingerprint for step in build_grid(experiment)}
    steps = build_grid(dataclasses.replace(experiment, judge=40))
    assert before <= {step.fingerprint for step in steps}
    assert Counter(step.stage for step in steps if step.fingerprint not in before) == {
        "starting_point": 2, "starting_set": 1, "judgement": 1,
    }  # fmt: skip
    # A classifier of one's own is a base model beside the study's.
    own = PretrainedModelConfig(files=(), path="judge")
    (judgement,) = [step for step in build_grid(dataclasses.replace(experiment, judge=own)) if step.stage == "judgement"]
    assert set(judgement.inputs) == {"sources", "pool", "base_model"}
    assert judgement.inputs["base_model"].config is own and judgement.inputs["base_model"].slug == "judge"


def test_another_judge_rebuilds_what_it_filters(experiment: Experiment) -> None:
    study = dataclasses.replace(experiment, kinds=("synthetic", "filtered_synthetic"), judge=40)
    before = {step.fingerprint for step in build_grid(study)}
    rebuilt = [step for step in build_grid(dataclasses.replace(study, judge=41)) if step.fingerprint not in before]
    cells = [step for step in rebuilt if step.stage in ("training_set", "task_model", "evaluation")]
    assert {step.coordinates["kind"] for step in cells} == {"filtered_synthetic"} and len(cells) == 10


def test_each_generators_pool_is_judged_by_the_one_judge(experiment: Experiment) -> None:
    kinds = ("original", "filtered_synthetic")
    steps = build_grid(dataclasses.replace(experiment, kinds=kinds, judge=40, seeds=(0, 1), generators=2))
    judgements = {step.slug: step for step in steps if step.stage == "judgement"}
    assert {slug: dict(step.coordinates) for slug, step in judgements.items()} == {
        "judge-pool": {"generator": 0}, "judge-pool1": {"generator": 1},
    }  # fmt: skip
    assert len({step.inputs["judge0"].fingerprint for step in judgements.values()}) == 1
    for step in steps:
        if step.stage == "training_set" and step.coordinates["kind"] == "filtered_synthetic":
            assert step.inputs["judgement"].inputs["pool"] is step.inputs["source"]
            assert step.coordinates["generator"] == step.coordinates["seed"]


def test_without_synthetic_kinds_there_is_no_generator(experiment: Experiment) -> None:
    stages = {step.stage for step in build_grid(dataclasses.replace(experiment, kinds=("original",)))}
    assert not stages & {"generator", "synthetic_pool"}


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        ({"cell": FinetuneConfig(epochs=2)}, {"task_model": 12, "evaluation": 12}),
        (
            {"task_model": FinetuneConfig(epochs=2), "cell": FinetuneConfig()},
            # The trained starting point, its six cells, and their evaluations.
            {"starting_point": 1, "task_model": 6, "evaluation": 7},
        ),
        ({"resources": {"task_model": Resources(num_workers=2)}}, {}),
        ({"sources_folder": "/elsewhere", "title": "Another title", "general_set": "template_probe"}, {}),
        ({"seeds": (0, 1)}, {"starting_set": 1, "starting_point": 2, "training_set": 6, "task_model": 12,
                             "evaluation": 14}),
    ],
)  # fmt: skip
def test_a_changed_field_rebuilds_exactly_its_dependents(experiment: Experiment, change: dict, rebuilt: dict[str, int]) -> None:
    before = {step.fingerprint for step in build_grid(experiment)}
    after = build_grid(dataclasses.replace(experiment, **change))
    assert Counter(step.stage for step in after if step.fingerprint not in before) == rebuilt


def test_a_changed_generation_leaves_original_cells(experiment: Experiment) -> None:
    before = {step.fingerprint for step in build_grid(experiment)}
    generation = dataclasses.replace(experiment.generation, temperature=0.5)
    after = build_grid(dataclasses.replace(experiment, generation=generation))
    assert Counter(step.stage for step in after if step.fingerprint not in before) == {
        "synthetic_pool": 1, "training_set": 4, "task_model": 8, "evaluation": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training_sizes": 600}, r"training_sizes=600\): give a tuple, .* such as \(600,\)"),
        ({"training_sizes": [30, 60]}, r"such as \(30, 60\)"),
        ({"training_sizes": (60.0,)}, r"training_sizes=\(60\.0,\)\): .* each is a whole number"),
        ({"seeds": ("1",)}, r"seeds=\('1',\)\): .* each is a whole number"),
        ({"biases": 0.5}, r"biases=0\.5\): give a tuple"),
        ({"kinds": "original"}, r"kinds='original'\): give a tuple"),
        ({"kinds": ("original", None)}, r"kinds=\('original', None\)\): give .* a text, Mix"),
        ({"task": None}, r"task=None\): give Task"),
        ({"base_model": "models/mine"}, r"base_model='models/mine' .* give pretrained_model_config"),
        ({"generator": (GeneratorConfig(FinetuneConfig()),)}, "GeneratorConfig.*one of them and not in a tuple"),
        ({"generator": FinetuneConfig()}, "is of another type than a study's; give GeneratorConfig"),
        ({"claims": PAPER_CLAIMS[0]}, r"claims=.*: give a tuple, of which each is Claim"),
        ({"sources": "train.csv"}, "sources='train.csv' is no description of data"),
        ({"synthetic": 5, "generator": None, "generation": None}, "synthetic=5 is of another type.*the file's path as a text"),
        ({"name": "a/b"}, "file's name"),
        ({"seeds": ()}, "seeds"),
        ({"training_sizes": (30, 30)}, "twice"),
        ({"starting_sizes": (-1,)}, "at least 0"),
        ({"seeds": (0, 2**32)}, r"seeds=\(0, 4294967296\): a random generator takes seeds of at most 4,294,967,295"),
        ({"kinds": ("original", "generated")}, "generated"),
        ({"resources": {"task_modle": Resources()}}, "task_modle"),
        ({"blindspot_set": "hans"}, "not evaluated"),
        ({"biases": (0.5, 1.2)}, r"bias=1\.2"),
        ({"trajectories": "joint"}, "trajectories='joint' is not one of 'separate', 'shared'"),
        ({"trajectories": "shared"}, "schedule='cosine': .* need 'warmup_stable_decay'"),
        ({"trajectories": "shared", "task_model": dataclasses.replace(STABLE, epochs=2)}, "epochs=2: "),
        ({"trajectories": "shared", "task_model": STABLE, "cell": dataclasses.replace(STABLE, method="full")}, "method='full'"),
        (
            {"trajectories": "shared", "task_model": STABLE, "resources": {"task_model": Resources(num_workers=2)}},
            "num_workers=2: .* need 1",
        ),
        ({"biases": (0.5, 0.5)}, "twice"),
        ({"kinds": ("filtered_synthetic",)}, "rows that a judge agrees with; give judge, too"),
        ({"judge": 0}, "judge=0: it is finetuned on"),
        ({"judge": 9, "kinds": ("original",)}, "judge=9: it judges what a generator writes"),
        ({"judge": 9, "seeds": (0, 1_000_003)}, "1000003 is the judge's"),
        ({"biases": (0.5, 1)}, "is the kind biased_synthetic; leave 1 out"),
        ({"heuristic_share": 0.1}, "give biases, too"),
        ({"heuristic": Heuristic("mine", HEURISTICS["subsequence"].holds)}, "heuristic='mine' has no probe_slice"),
        (
            {"heuristic": Heuristic("mine", HEURISTICS["subsequence"].holds), "blindspot_set": "template_prob"},
            "blindspot_set='template_prob' is not evaluated; it must be one of",
        ),
        ({"biases": (0.5,), "heuristic_share": 2}, "heuristic_share=2"),
        (
            {"base_model": PretrainedModelConfig((), quantization="nf4"), "cell": FinetuneConfig(method="full")},
            r"quantization='nf4' and cell has method='full'.*method='lora'",
        ),
        (
            {"base_model": PretrainedModelConfig((), quantization="fp8"), "cell": FinetuneConfig(zero_stage=3)},
            r"quantization='fp8' and cell has zero_stage=3, .*use zero_stage 0 to 2",
        ),
    ],
)
def test_a_wrong_experiment_is_refused(experiment: Experiment, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(experiment, **change)

"""The paper's study: its grid and recipe by hand, and every difference from it said."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.data.sources import FILES, HANS_COLUMNS
from pipelines.errors import UserError
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.identity import UNKNOWN, identity_fields
from pipelines.tasks.heuristics import HEURISTICS
from pipelines.tasks.prompts import HYPHENS
from sweep import cli
from sweep.graph.identity import canonical_json
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo, paper, paper_fast
from sweep.study.grid import build_grid
from sweep.study.inputs import check_sizes, missing_inputs, with_inputs
from sweep.study.loading import Loaded, load_experiment
from sweep.study.paper import RECIPE_NAMES, departures, unsettled

DATA = (Path(__file__).parents[4] / "shared" / "data").resolve()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without data and models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_grid_of_one_seed() -> None:
    steps = build_grid(paper())
    assert Counter(step.stage for step in steps) == {
        "sources": 1, "base_model": 1, "generator": 1, "synthetic_pool": 1, "starting_set": 5, "starting_point": 6,
        "training_set": 9, "task_model": 54, "evaluation": 60,
    }  # fmt: skip
    trained = [step for step in steps if step.stage == "starting_point" and step.coordinates["starting_size"]]
    assert [step.coordinates["starting_size"] for step in trained] == [5_000, 10_000, 20_000, 100_000, 391_722]
    sets = {(step.coordinates["kind"], step.coordinates["size"]) for step in steps if step.stage == "training_set"}
    assert sets == {(kind, size) for kind in ("original", "synthetic", "biased_synthetic") for size in (73_080, 36_040, 18_020)}


def test_five_seeds_share_data_base_generator_and_pool_and_nothing_else() -> None:
    one, five = build_grid(paper()), build_grid(paper(seeds=(0, 1, 2, 3, 4)))
    assert Counter(step.stage for step in five) == {
        "sources": 1, "base_model": 1, "generator": 1, "synthetic_pool": 1, "starting_set": 25, "starting_point": 30,
        "training_set": 45, "task_model": 270, "evaluation": 300,
    }  # fmt: skip
    assert {step.fingerprint for step in one} <= {step.fingerprint for step in five}
    # With one sample for all seeds, as the scripts have it, the sets are shared and what is trained on them is not.
    fixed = Counter(step.stage for step in build_grid(paper(seeds=(0, 1, 2, 3, 4), starting_set_seed=42)))
    assert fixed["starting_set"] == 5 and fixed["starting_point"] == 30


def test_the_recipe_by_hand() -> None:
    study = paper()
    task_model = study.task_model
    assert dataclasses.asdict(task_model) == {
        **{"method": "lora", "learning_rate": 2e-5, "epochs": 1.0, "batch_size": 2, "schedule": "cosine", "warmup_ratio": 0.3},
        **{"weight_decay": 0.001, "max_grad_norm": 0.3, "dtype": "bfloat16", "lora_rank": 64, "lora_alpha": 16},
        **{"lora_dropout": 0.1, "train_embeddings": False, "share_prefix": False, "group_by_length": True, "max_length": None},
        **{"rehearse_steps": 0, "cooldown_ratio": 0.0, "head_frozen_share": 0.0},
        "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        **{name: getattr(task_model, name) for name in dataclasses.asdict(task_model) if name not in RECIPE_NAMES},
    }
    assert study.generator.finetune == dataclasses.replace(task_model, batch_size=6, train_embeddings=True)
    assert study.cell is None, "a starting point is finetuned by the recipe that made it"
    generation = study.generation
    assert (generation.num_per_label, generation.exact) == ((631_992, 562_822, 624_999), True)
    assert (generation.max_new_tokens, generation.temperature, generation.top_p, generation.top_k) == (512, 1.0, 1.0, -1)
    assert study.evaluation.sets == ("mnli_matched", "mnli_mismatched", "hans")


def test_every_field_of_a_recipe_is_compared() -> None:
    assert set(RECIPE_NAMES) == identity_fields(FinetuneConfig)


def topics(study: object) -> list[str]:
    return [note.topic for note in departures(study)]  # type: ignore[arg-type]


def test_the_default_departs_in_the_frozen_weights_precision_only() -> None:
    assert topics(paper()) == ["frozen weights of the base model"]
    assert topics(paper(base_precision="nf4")) == []
    assert topics(paper(model="meta-llama/Llama-2-7b-hf", base_precision="nf4_double")) == []
    (note,) = departures(paper(base_precision="fp8"))
    assert note.ours == "8-bit FP8, and what meets them is cast to it" and "twice as fast" in note.why
    assert "NF4's constants" not in [note.topic for note in unsettled(paper(base_precision="fp8"))]


def test_a_pool_that_is_written_in_fp8_departs_in_that() -> None:
    (_, note) = departures(paper(generation_precision="fp8"))
    assert (note.topic, note.ours) == ("G's weights and activations as it writes", "8-bit FP8")


def test_paper_fast_departs_in_batch_learning_rate_shared_prefix_and_early_stop() -> None:
    found = {note.topic: (note.paper, note.ours) for note in departures(paper_fast(base_precision="nf4"))}
    assert found == {
        "G: learning rate": ("2e-05", "8e-05"),
        "G: batch size": ("6", "96"),
        "a text ends at the end marker": ("when it is complete", "with its first character"),
        "G: dropout mask of the prompt's beginning shared in a batch": ("no", "yes"),
        "T: learning rate": ("2e-05", "8e-05"),
        "T: batch size": ("2", "32"),
        "T: dropout mask of the prompt's beginning shared in a batch": ("no", "yes"),
    }
    assert all(note.why for note in departures(paper_fast()))


def test_shared_trajectories_are_a_departure_that_leaves_the_grid() -> None:
    found = {note.topic: (note.paper, note.ours, note.why) for note in departures(paper_fast(trajectories="shared"))}
    fewer = {note.topic for note in departures(paper_fast())}
    assert {topic: found[topic][:2] for topic in found if topic not in fewer} == {
        "T: learning rate's schedule": ("cosine", "warmup_stable_decay"),
        "T: cool-down ratio": ("0", "0.2"),
        "finetunings of nested sizes": ("each from the start", "one trajectory, with a branch for each size"),
    }
    assert fewer < found.keys() and all(why != "the experiment's choice" for *_, why in found.values())
    steps = build_grid(paper_fast(trajectories="shared"))
    assert Counter(step.stage for step in steps) == Counter(step.stage for step in build_grid(paper_fast()))
    assert sum("trunk" in step.inputs for step in steps) == 40
    # The generator and its pool, the data and the base are the same artifacts.
    common = {step.fingerprint for step in steps} & {step.fingerprint for step in build_grid(paper_fast())}
    assert {step.stage for step in steps if step.fingerprint in common} >= {"generator", "synthetic_pool", "base_model"}
    with pytest.raises(UserError, match=r"num_workers=2: finetunings that share a trajectory need 1"):
        paper_fast(trajectories="shared", gpus_per_finetuning=2)


@pytest.mark.parametrize("study", [paper(), paper_fast()], ids=lambda study: study.name)
def test_without_them_no_identity_knows_of_trajectories(study: Experiment) -> None:
    for step in build_grid(study):
        text = canonical_json(step.payload)
        assert not any(word in text for word in ("nested_sizes", "cooldown_ratio", "trunk", "trajectories"))


@pytest.mark.parametrize(
    ("changed", "topic", "ours"),
    [
        ({"starting_sizes": (0, 5_000)}, "starting points", "0, 5,000"),
        ({"training_sizes": (18_020,)}, "training-set sizes", "18,020"),
        ({"kinds": ("original",)}, "kinds of training set", "original"),
        ({"biases": (0.7, 0.9)}, "doses of bias", "0.7, 0.9"),
        ({"seeds": (0, 1), "generators": 2}, "generators, each with a pool", "2"),
        ({"heuristic": HEURISTICS["constituent"]}, "heuristic of the biased sets", "constituent"),
        ({"cell": FinetuneConfig(epochs=2.0)}, "T, from its starting point: epochs", "2"),
        ({"task_model": FinetuneConfig(lora_rank=8)}, "T: LoRA rank", "8"),
    ],
)
def test_whatever_is_changed_is_said(changed: dict, topic: str, ours: str) -> None:
    found = {note.topic: note.ours for note in departures(dataclasses.replace(paper(), **changed))}
    assert found[topic] == ours


def test_another_study_departs_in_nearly_everything() -> None:
    found = topics(demo())
    assert {"data", "base model", "starting points", "T: trained weights", "test sets"} <= set(found)


def test_what_is_unsettled_is_chosen_and_said() -> None:
    by_default = {note.topic: note.ours for note in unsettled(paper())}
    assert len(by_default) == 8
    assert by_default["sizes that 3 labels do not divide (36,040, 18,020)"] == "12,014, 12,013, 12,013; 6,007, 6,007, 6,006"
    study = paper(
        seeds=(0, 1), remainder="drop", disjoint_from_starting=True, starting_sizes=(0, 5_000), starting_set_seed=42,
        end_marker="hyphens", temperature=0.6, top_p=0.9, top_k=50, base_precision="nf4",
    )  # fmt: skip
    assert study.generator.end_marker == study.generation.end_marker == HYPHENS
    chosen = {note.topic: note.ours for note in unsettled(study)}
    assert chosen.keys() == by_default.keys() | {"NF4's constants"}
    assert all(chosen[topic] != ours for topic, ours in by_default.items() if "largest biased" not in topic)
    assert chosen["sampling from G"] == "temperature 0.6, top-p 0.9, top-k 50"


@pytest.mark.parametrize(
    ("generators", "shared"),
    [
        (1, "G and its pool are shared"),
        (2, "2 at a time share a G and its pool"),
        (4, "each has a G and a pool of its own"),
    ],
)
def test_what_seeds_share_is_said(generators: int, shared: str) -> None:
    (note,) = (note for note in unsettled(paper(seeds=(0, 1, 2, 3), generators=generators)) if note.topic == "seeds")
    assert note.why.endswith(f"together; {shared}")


def test_the_manifest_keeps_both_lists_as_plain_values() -> None:
    study = paper()
    parameters = manifest(Loaded(study, {"seeds": [0]}), build_grid(study)).parameters
    assert [note["topic"] for note in parameters["departures"]] == ["frozen weights of the base model"]
    assert len(parameters["unsettled"]) == 8
    json.dumps(dict(parameters))
    assert "departures" not in manifest(Loaded(demo(), {}), []).parameters


def test_a_plan_needs_neither_data_nor_weights_and_a_run_says_what_it_lacks(tmp_path: Path) -> None:
    study = paper()
    assert missing_inputs(study) == ("data: not found at data", "weights: not found at models/Llama-2-7b-hf")
    assert {file.sha256 for file in (*study.sources.files, *study.base_model.files)} == {UNKNOWN}  # type: ignore[union-attr]
    on_hub = missing_inputs(paper(model="meta-llama/Llama-2-7b-hf"))
    assert on_hub[1] == "weights: meta-llama/Llama-2-7b-hf is not in the Hugging Face cache; a run fetches it"
    shown = CliRunner().invoke(cli.app, ["plan", "paper", "--store", str(tmp_path / "s")])
    assert shown.exit_code == 0
    for line in (*missing_inputs(study), "138 of 138 to build", "departures from the paper:"):
        assert f"{line}\n" in shown.stdout
    for note in (*departures(study), *unsettled(study)):
        assert f"  {note.topic}: {note.ours}  (paper: {note.paper}) — {note.why}\n" in shown.stdout
    refused = CliRunner().invoke(cli.app, ["run", "paper", "--store", str(tmp_path / "s")])
    assert refused.exit_code == 1 and refused.stderr.count("Error: ") == 1
    assert "data folder 'data' does not exist" in refused.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("there", [(), FILES[:3]])
def test_a_plan_needs_no_more_than_a_folder_that_a_broken_fetch_left(tmp_path: Path, there: tuple[str, ...]) -> None:
    (tmp_path / "data").mkdir()
    for name in there:
        (tmp_path / "data" / name).write_text("cut off")
    line = f"data: data has no {FILES[3]}" if there else "data: not found at data"
    assert missing_inputs(paper())[0] == line
    shown = CliRunner().invoke(cli.app, ["plan", "paper", "--store", str(tmp_path / "s")])
    assert shown.exit_code == 0, shown.stderr
    assert f"{line}\n" in shown.stdout
    refused = CliRunner().invoke(cli.app, ["run", "paper", "--store", str(tmp_path / "s")])
    assert refused.exit_code == 1 and f"data folder 'data' has no {FILES[len(there)]}" in refused.stderr


def write_data(folder: Path, num_rows: int) -> None:
    """MultiNLI files of `num_rows` rows each, and a HANS of as many rows as it must have."""
    folder.mkdir()
    row = json.dumps({"gold_label": "neutral", "sentence1": "a", "sentence2": "b"})
    for name in FILES[:3]:
        (folder / name).write_text(f"{row}\n" * num_rows)
    cells = ["entailment", *["x"] * 7, "lexical_overlap", "x", "x"]
    (folder / FILES[3]).write_text("\n".join(["\t".join(HANS_COLUMNS), *["\t".join(cells)] * 30_000]) + "\n")


def test_too_small_a_multinli_is_refused_with_the_sizes_that_fit(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 21_000)
    with pytest.raises(UserError) as error:
        check_sizes(load_experiment("paper").experiment)
    assert "starting_sizes has 391,722" in str(error.value)
    assert "at most 20,250 training rows" in str(error.value)
    assert str(error.value).endswith("-p starting_sizes=0,5000,10000,20000")
    with pytest.raises(UserError, match=r"training_sizes has 73,080.*-p training_sizes=18020$"):
        check_sizes(load_experiment("paper", ["starting_sizes=0,20000"]).experiment)
    fitting = paper(starting_sizes=(0, 20_000), training_sizes=(18_020,))
    check_sizes(fitting)
    assert missing_inputs(fitting) == ("weights: not found at models/Llama-2-7b-hf",)


def test_a_run_describes_what_appeared_since_the_plan(tmp_path: Path) -> None:
    planned = paper(starting_sizes=(0, 20_000), training_sizes=(18_020,))
    write_data(tmp_path / "data", 21_000)
    with pytest.raises(UserError, match="no model at"):
        with_inputs(planned)
    folder = tmp_path / "models" / "Llama-2-7b-hf"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        (folder / name).write_text(name)
    found = with_inputs(planned)
    assert missing_inputs(found) == () and with_inputs(found) is found
    assert found == paper(starting_sizes=(0, 20_000), training_sizes=(18_020,))
    assert not {step.fingerprint for step in build_grid(planned)} & {step.fingerprint for step in build_grid(found)}


def test_the_part_of_multinli_that_is_here_is_refused_with_its_number() -> None:
    if not DATA.is_dir():
        pytest.skip("no MultiNLI and HANS here")
    with pytest.raises(UserError, match=r"at most 79,430 training rows.*-p starting_sizes=0,5000,10000,20000$"):
        check_sizes(load_experiment("paper", [f"data={DATA}"]).experiment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"pool_per_label": (5,)}, "three numbers"), ({"gpus_per_finetuning": 0}, "at least one")],
)
def test_wrong_parameters_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        paper(**arguments)
    with pytest.raises(UserError, match="batch_factor=0"):
        paper_fast(batch_factor=0)


def test_random_weights_are_not_said_to_be_quantised() -> None:
    with pytest.raises(UserError, match=r"base_precision='nf4' with weights='random': random weights are not quantised"):
        paper(weights="random", base_precision="nf4")

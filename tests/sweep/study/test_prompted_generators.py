"""Generators that are not finetuned: in the grid, the plan, a rehearsal."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.finetune.base_model import pretrained_model_config
from pipelines.resources import Resources
from sweep.graph.records import Store
from sweep.plan.costs import endpoint_costs
from sweep.plan.page import plan_json, print_plan
from sweep.plan.plan import Plan, check_budget, plan_study
from sweep.plan.rehearsal import rehearsal
from sweep.plan.throughputs import read_table
from sweep.study.experiment import Experiment
from sweep.study.generators import EndpointGenerator, PromptedGenerator
from sweep.study.grid import build_grid
from sweep.study.inputs import missing_inputs, with_inputs


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "instruct"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"):
        (folder / name).write_text(f"{{}} {name}")
    return folder


@pytest.fixture
def prompted(experiment: Experiment, checkpoint: Path) -> Experiment:
    return replace(experiment, generator=PromptedGenerator(str(checkpoint), shots=4, shots_seed=10))


@pytest.fixture
def asked(experiment: Experiment) -> Experiment:
    generator = EndpointGenerator(
        "https://host/v1", "a-model", price_per_million_input_tokens=2.0, price_per_million_output_tokens=8.0
    )
    return replace(experiment, generator=generator)


def plan_of(experiment: Experiment, tmp_path: Path) -> Plan:
    table = read_table()
    return plan_study(experiment, Store(tmp_path / "store"), table, lambda _: table.gpu("h100"), None)


def test_a_prompted_model_is_a_base_model_of_its_own_and_nothing_is_finetuned_for_the_pool(prompted: Experiment) -> None:
    steps = build_grid(prompted)
    assert not [step for step in steps if step.stage == "generator"]
    (pool,) = [step for step in steps if step.stage == "synthetic_pool"]
    assert {name: step.stage for name, step in pool.inputs.items()} == {"generator": "base_model", "sources": "sources"}
    assert pool.inputs["generator"].slug == "prompted"
    assert pool.payload["config"]["prompting"] == {"instruction": "", "shots": 4, "shots_seed": 10, "chat": "auto"}
    files = [file["name"] for file in pool.inputs["generator"].payload["config"]["files"]]
    assert "chat_template.jinja" in files, "what is prompted through a template depends on it"
    (pool,) = [
        step
        for step in build_grid(replace(prompted, generator=replace(prompted.generator, shots=0)))
        if step.stage == "synthetic_pool"
    ]
    assert set(pool.inputs) == {"generator"}, "without shots the training data is no input"


def test_a_model_that_is_finetuned_has_no_chat_template_in_its_identity(checkpoint: Path) -> None:
    assert "chat_template.jinja" not in [file.name for file in pretrained_model_config(str(checkpoint)).files]


def test_each_generator_shows_other_examples(prompted: Experiment) -> None:
    pools = [step for step in build_grid(replace(prompted, generators=2, seeds=(0, 1))) if step.stage == "synthetic_pool"]
    assert [pool.slug for pool in pools] == ["pool", "pool1"]
    assert [pool.config.prompting.shots_seed for pool in pools] == [10, 11]
    assert len({pool.config.seed for pool in pools}) == 2
    assert pools[0].fingerprint == next(step.fingerprint for step in build_grid(prompted) if step.stage == "synthetic_pool"), (
        "the first is the one of a study with one generator"
    )


def test_a_prompted_model_that_is_not_here_can_be_planned_and_not_run(experiment: Experiment, tmp_path: Path) -> None:
    study = replace(experiment, generator=PromptedGenerator(str(tmp_path / "nothing")))
    assert missing_inputs(study) == (f"weights: not found at {tmp_path / 'nothing'}",)
    with pytest.raises(UserError, match="no model at"):
        with_inputs(study)


def test_an_endpoint_takes_no_gpu_and_needs_no_model(asked: Experiment) -> None:
    study = replace(asked, resources={"synthetic_pool": Resources(gpus_per_worker=1)})
    steps = build_grid(study)
    assert Counter(step.stage for step in steps)["base_model"] == 1
    (pool,) = [step for step in steps if step.stage == "synthetic_pool"]
    assert set(pool.inputs) == {"sources"} and not pool.resources.total_gpus
    assert pool.payload["config"]["endpoint"] == {"model": "a-model"}
    assert "host" not in json.dumps(pool.payload)


def test_the_plan_has_what_an_endpoint_costs(asked: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(asked, tmp_path)
    cost = plan.endpoint
    assert cost is not None and cost.num_texts > 300 and cost.prompt_tokens > 10 * cost.completion_tokens
    assert cost.dollars == pytest.approx((2 * cost.prompt_tokens + 8 * cost.completion_tokens) / 1e6)
    assert plan_json(plan)["endpoint"]["dollars"] == cost.dollars
    print_plan(plan)
    assert f"written, ${cost.dollars:,.2f}; an estimate" in capsys.readouterr().out
    cheaper = replace(asked, generator=replace(asked.generator, shots=0))
    assert plan_of(cheaper, tmp_path).endpoint.dollars < cost.dollars / 2  # type: ignore[union-attr]
    assert endpoint_costs([], read_table()) is None


def test_a_budget_counts_an_endpoints_tokens(llama: Experiment, tmp_path: Path) -> None:
    generator = EndpointGenerator("https://host/v1", "a-model", price_per_million_input_tokens=1e6)
    generation = replace(llama.generation, num_per_label=30_000)
    base_model = replace(llama.base_model, path="Llama-2-7b-hf")  # type: ignore[type-var]
    study = replace(llama, generator=generator, generation=generation, base_model=base_model)
    plan = plan_of(study, tmp_path)
    assert plan.costs is not None and plan.endpoint is not None
    of_gpus = plan.costs.held_gpu_hours * (plan.costs.estimate.gpu.price or 0)
    with pytest.raises(UserError, match="of an endpoint's tokens, over the budget"):
        check_budget(plan, of_gpus + plan.endpoint.dollars / 2)
    assert "of an endpoint's tokens, within the budget" in check_budget(plan, of_gpus + plan.endpoint.dollars * 1.01)


def test_the_plan_says_how_a_prompted_model_is_reckoned(llama: Experiment, prompted: Experiment, tmp_path: Path) -> None:
    base_model = replace(llama.base_model, path="Llama-2-7b-hf")  # type: ignore[type-var]
    generation = replace(llama.generation, num_per_label=30_000)
    study = replace(llama, generator=prompted.generator, generation=generation, base_model=base_model)
    plan = plan_of(study, tmp_path)
    assert plan.costs is not None and plan.endpoint is None
    assert any("the prompted model is reckoned" in line for line in plan.costs.estimate.assumptions)
    assert plan.costs.replication.generator > 0, "one more generator is one more pool"


def test_rehearsals_keep_what_writes(prompted: Experiment, asked: Experiment) -> None:
    for study in (prompted, asked):
        short = rehearsal(study)
        assert short.generator == study.generator and short.generation is not None and short.generation.stand_ins
        assert build_grid(short)


def test_later_generations_are_of_finetuned_generators(prompted: Experiment) -> None:
    with pytest.raises(UserError, match="the first is of no finetuned generator"):
        replace(prompted, generations=2)


def test_a_prompt_that_cannot_be_made_is_refused_by_the_plan(prompted: Experiment, checkpoint: Path, tmp_path: Path) -> None:
    assert isinstance(prompted.generator, PromptedGenerator)
    many = replace(prompted, generator=replace(prompted.generator, shots=3_000_000))
    with pytest.raises(
        UserError, match="shots=3000000 shows up to 1,000,000 entailment examples in a prompt, and the data has"
    ):
        plan_of(many, tmp_path)
    (checkpoint / "chat_template.jinja").unlink()
    plan_of(prompted, tmp_path)
    with pytest.raises(UserError, match=r"chat='always', and the checkpoint .*instruct has no chat template"):
        plan_of(replace(prompted, generator=PromptedGenerator(str(checkpoint), chat="always")), tmp_path)
    (checkpoint / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    plan_of(replace(prompted, generator=PromptedGenerator(str(checkpoint), chat="always")), tmp_path)

"""The plan names the field that caused a rebuild, and says what is to be paid."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig, pretrained_model_config
from pipelines.finetune.recipe import FinetuneConfig
from sweep.graph import stages
from sweep.graph.records import Record, Store, Study
from sweep.graph.spending import ON_DEMAND, SPOT, Held, RunSpending, Spending
from sweep.plan.costs import EndpointCost, total
from sweep.plan.page import plan_json, print_plan
from sweep.plan.plan import OverBudgetError, Plan, PlanCosts, check_budget, cost_plan, make_plan, plan_study
from sweep.plan.throughputs import Gpu, NoEstimate, read_table
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.experiments import paper
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded
from tests.sweep.conftest import record_of


def reasons(experiment: Experiment, store: Store, earlier: Experiment | None = None) -> dict[str, str]:
    before = manifest(Loaded(earlier, {}), build_grid(earlier)) if earlier else None
    planned = make_plan(build_grid(experiment), store, earlier=before)
    return {one.step.name: one.reason for one in planned if not one.is_cached}


def test_in_an_empty_store_everything_is_new(experiment: Experiment, tmp_path: Path) -> None:
    found = reasons(experiment, Store(tmp_path / "store"))
    assert set(found.values()) == {"new"}
    assert not (tmp_path / "store").exists()


def test_a_built_study_needs_nothing(experiment: Experiment, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path)
    record_all(build_grid(experiment), store)
    assert reasons(experiment, store) == {}


def test_the_changed_field_is_named_through_the_graph(experiment: Experiment, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path)
    record_all(build_grid(experiment), store)
    finetune = FinetuneConfig(learning_rate=0.001)
    generator = dataclasses.replace(experiment.generator, finetune=finetune)
    found = reasons(dataclasses.replace(experiment, generator=generator), store, experiment)
    change = "finetune.learning_rate 2e-05 → 0.001"
    assert found["generator/generator"] == change
    for name, source in (
        ("synthetic_pool/pool", "generator"),
        ("training_set/synthetic-30-seed0", "source"),
        ("task_model/start0-synthetic-30-seed0", "training_set"),
        ("evaluation/start0-synthetic-30-seed0", "task_model"),
    ):
        assert found[name] == f"input {source} changed because generator.{change}"
    assert not any("original" in name for name in found)


def test_a_stage_version_is_named(
    experiment: Experiment, tmp_path: Path, record_all: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = Store(tmp_path), build_grid(experiment)
    record_all(steps, store)
    earlier = manifest(Loaded(experiment, {}), steps)
    monkeypatch.setitem(stages.REGISTRY, "evaluation", dataclasses.replace(stages.REGISTRY["evaluation"], version=7))
    planned = make_plan(build_grid(experiment), store, earlier=earlier)
    assert {one.reason for one in planned if not one.is_cached} == {"stage version 2 → 7"}


def test_the_studys_own_last_build_is_compared_and_no_other(
    experiment: Experiment, tmp_path: Path, record_all: Callable
) -> None:
    store = Store(tmp_path)
    own = dataclasses.replace(experiment, cell=FinetuneConfig(epochs=3, learning_rate=0.5, batch_size=7))
    nearer = dataclasses.replace(experiment, cell=FinetuneConfig(epochs=9))
    for built in (own, nearer):
        record_all(build_grid(built), store)
    changed = dataclasses.replace(experiment, cell=FinetuneConfig(epochs=4, learning_rate=0.5, batch_size=7))
    assert reasons(changed, store, own)["task_model/start0-original-30-seed0"] == "finetune.epochs 3.0 → 4.0"
    assert set(reasons(changed, store).values()) == {"new"}


def test_a_study_beside_another_ones_store_is_new_and_one_line_says_so(
    experiment: Experiment, llama: Experiment, tmp_path: Path, record_all: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    store, table = Store(tmp_path), read_table()
    record_all(build_grid(experiment), store)
    manifest(Loaded(experiment, {}), build_grid(experiment)).save(store)
    other = dataclasses.replace(llama, name="other")
    plan = plan_study(other, store, table, lambda _: table.gpu("h200"), 8)
    print_plan(plan)
    shown = capsys.readouterr().out
    assert f"  {len(plan.steps)} new: 1 sources, 1 base_model, 1 generator, 1 synthetic_pool, " in shown
    assert "gone" not in shown and "what changed" not in shown


def test_an_inherited_change_is_said_once(
    experiment: Experiment, tmp_path: Path, record_all: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    steps = build_grid(experiment)
    record_all(steps, store)
    manifest(Loaded(experiment, {}), steps).save(store)
    changed = dataclasses.replace(
        experiment,
        generator=dataclasses.replace(experiment.generator, finetune=FinetuneConfig(learning_rate=0.001)),
        cell=FinetuneConfig(epochs=7),
    )

    def plan() -> Plan:
        return plan_study(changed, store, read_table(), no_gpu, 8)

    print_plan(plan())
    shown = capsys.readouterr().out
    assert shown.partition("what changed since this study's last build:\n")[2].splitlines() == [
        "  generator.finetune.learning_rate 2e-05 → 0.001: 1 generator, and 5 more for the same reason",
        "  task_model.finetune.epochs 1.0 → 7.0: 4 task_model, and 4 more for the same reason",
        "  and 16 more for several of these reasons: 8 task_model, 8 evaluation",
    ]
    print_plan(plan(), all_steps=True)
    shown = capsys.readouterr().out
    assert shown.count("input source changed because generator.finetune.learning_rate 2e-05 → 0.001") == 4
    # A manifest that cannot be read is the run's to write anew.
    Path(Study.path(store, "small")).write_text("{")
    assert {one.reason for one in plan().missing} == {"new"}


def test_many_changes_are_folded(
    experiment: Experiment, tmp_path: Path, record_all: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    record_all(build_grid(experiment), store)
    manifest(Loaded(experiment, {}), build_grid(experiment)).save(store)
    base_model = ScratchModelConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=96)
    print_plan(plan_study(dataclasses.replace(experiment, base_model=base_model), store, read_table(), no_gpu, 8))
    shown = capsys.readouterr().out.partition("what changed since this study's last build:\n")[2]
    assert shown.startswith("  base_model.hidden_size 128 → 64; base_model.intermediate_size 384 → 96; ")
    assert "; and 2 more fields (--all lists them): 1 base_model, and " in shown and len(shown.splitlines()) == 1


def no_gpu(_: object) -> Gpu:
    raise NoEstimate("no figures are wanted here")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"hidden_size": 100, "num_heads": 3}, "hidden_size=100 with num_heads=3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 with num_kv_heads=3"),
        ({"num_heads": 0}, "num_heads=0 of a model"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 of a model"),
        ({"num_layers": -1}, "num_layers=-1 of a model"),
    ],
)
def test_a_model_of_an_impossible_shape_is_refused_by_name(shape: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ScratchModelConfig(**shape)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 4095}, "hidden_size=4095 and num_attention_heads=32, which does not divide it"),
        ({"num_key_value_heads": 5}, "num_attention_heads=32 and num_key_value_heads=5, which does not divide them"),
    ],
)
def test_a_checkpoint_of_an_impossible_shape_is_refused_before_anything_runs(
    checkpoint: Path, sizes: dict[str, int], words: str
) -> None:
    file = checkpoint / "config.json"
    settings = {**json.loads(file.read_text()), "model_type": "llama"}
    for name in ("model.safetensors", "tokenizer.json"):
        (checkpoint / name).write_text("{}")
    file.write_text(json.dumps(settings))
    assert pretrained_model_config(str(checkpoint)).model_type == "llama"
    file.write_text(json.dumps(settings | sizes))
    with pytest.raises(UserError, match=words):
        pretrained_model_config(str(checkpoint))


def test_a_half_built_folder_is_not_an_artifact(experiment: Experiment, tmp_path: Path) -> None:
    store = Store(tmp_path)
    step = build_grid(experiment)[0]
    Path(store.folder(step.id)).mkdir(parents=True)
    assert reasons(experiment, store)[step.name] == "begun and not finished"


def test_a_store_far_away_is_asked_once_for_a_stage(
    experiment: Experiment, tmp_path: Path, record_all: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = Store(tmp_path), build_grid(experiment)
    record_all(steps[:3], store)
    asked: list[str] = []
    listed, read = Store.names, Store._read
    monkeypatch.setattr(Store, "names", lambda self, folder: asked.append(folder) or listed(self, folder))
    monkeypatch.setattr(Store, "_read", lambda self, path: asked.append(path) or read(self, path))
    assert [one.is_cached for one in make_plan(steps, store)] == [True] * 3 + [False] * (len(steps) - 3)
    # A listing of each of the nine stages, and the three records that are there.
    assert len(asked) == 9 + 3


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the config.json of Llama-2-7B."""
    settings = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({**settings, "vocab_size": 32_000}))
    return tmp_path / "llama"


def costs_of(experiment: Experiment, store: Store, num_gpus: float | None = 8) -> PlanCosts:
    return costs_on("h200", 10, experiment, store, num_gpus)


def costs_on(gpu: str, price: float | None, experiment: Experiment, store: Store, num_gpus: float | None = 8) -> PlanCosts:
    table = read_table()
    planned = make_plan(build_grid(experiment), store)
    return cost_plan(planned, store, table, table.gpu(gpu, price=price), num_gpus)


def test_only_what_is_missing_is_paid_for(llama: Experiment, checkpoint: Path, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path / "store")
    base_model = dataclasses.replace(llama.base_model, path=str(checkpoint))
    llama = dataclasses.replace(llama, base_model=base_model)
    before = costs_of(llama, store)
    assert before.to_build == before.in_all and before.in_all.num_steps == 138
    steps = build_grid(llama)
    record_all([one for one in steps if one.stage not in ("sources", "base_model", "evaluation")], store)
    after = costs_of(llama, store)
    assert after.in_all == before.in_all
    assert after.to_build.num_steps == 62
    evaluations = [one for one in after.estimate.steps if one.step.stage == "evaluation"]
    assert after.to_build.gpu_hours == pytest.approx(sum(one.gpu_seconds for one in evaluations) / 3600)
    # Sixty alike on eight GPUs: eight rounds, after the base model.
    assert after.schedule.seconds == pytest.approx(60 + 8 * evaluations[0].seconds)
    assert after.held_gpu_hours == pytest.approx(after.schedule.seconds * 8 / 3600)


def test_what_is_built_is_asked_first(llama: Experiment, checkpoint: Path, tmp_path: Path, record_all: Callable) -> None:
    store = Store(tmp_path / "store")
    steps = build_grid(llama)
    sources, base_model = steps[0], steps[1]
    counts = {"train": 500, "mnli_matched": 1, "mnli_mismatched": 1, "hans": 1}
    record_all([sources], store)
    record = store.read_record(sources.id)
    assert record is not None
    metrics = {f"{name}/num_examples": count for name, count in counts.items()} | {"train/neutral": 7}
    store.write_record(dataclasses.replace(record, metrics=metrics))
    with pytest.raises(NoEstimate, match="not at hand"):
        costs_of(llama, store)
    model = Path(store.folder(base_model.id)) / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    store.write_record(record_of(base_model, files=store.files(store.folder(base_model.id))))
    estimate = costs_of(llama, store).estimate
    assert estimate.num_parameters == 6_738_415_616
    assert total(one for one in estimate.steps if one.step.stage == "generator").num_examples == 500


def test_the_plan_says_how_many_are_stale_and_how_many_may_become_so(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, built = Store(tmp_path / "store"), dict[str, Record]()
    for step in build_grid(experiment):
        contents = {name: built[source.fingerprint].content for name, source in step.inputs.items()}
        built[step.fingerprint] = record_of(step, input_contents=contents)
        store.write_record(built[step.fingerprint])
    pool = next(step for step in build_grid(experiment) if step.stage == "synthetic_pool")
    store.write_bytes(f"{store.folder(pool.id)}/pool/a", b"another text")
    store.write_record(record_of(pool, files=store.files(store.folder(pool.id))))
    plan = Plan(experiment, make_plan(build_grid(experiment), store), None)
    print_plan(plan)
    shown = capsys.readouterr().out
    # Two kinds of synthetic set in two sizes; two starting points for each, and their evaluations.
    assert "4 of them are there, from inputs that were built again since and have other content" in shown
    assert "  4 training_set: built again with other content: source" in shown
    assert "16 more were built from what is to be built again: they are kept if it comes out as it was" in shown
    assert (plan_json(plan)["stale"], plan_json(plan)["uncertain"]) == (4, 16)
    kept = Plan(experiment, make_plan(build_grid(experiment), store, keep_dependents=True), None)
    print_plan(kept)
    assert "everything is built" in capsys.readouterr().out and (kept.num_stale, kept.num_uncertain) == (0, 0)


def test_the_plan_prices_a_further_generator_and_a_further_seed(
    llama: Experiment, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_model = dataclasses.replace(llama.base_model, path=str(checkpoint))
    llama = dataclasses.replace(llama, base_model=base_model, seeds=(0, 1, 2), generators=3)
    costs = costs_of(llama, Store(tmp_path / "store"))
    plan = Plan(llama, make_plan(build_grid(llama), Store(tmp_path / "store")), costs)
    assert {stage: plan_json(plan)["stages"][stage]["steps"] for stage in ("generator", "synthetic_pool", "sources")} == {
        "generator": 3, "synthetic_pool": 3, "sources": 1,
    }  # fmt: skip
    one_more = plan_json(plan)["costs"]["one_more"]
    assert one_more["seed"]["gpu_hours"] == costs.replication.seed > 0
    assert one_more["generator"]["on_demand"] == 10 * costs.replication.generator > 0
    print_plan(plan)
    shown = capsys.readouterr().out
    assert f"one more generator with its pool costs {costs.replication.generator:,.1f} GPU-hours ($" in shown
    assert f"and one more seed, with its starting points and cells, {costs.replication.seed:,.1f} GPU-hours ($" in shown
    alone = dataclasses.replace(llama, kinds=("original",), generators=1)
    print_plan(Plan(alone, make_plan(build_grid(alone), Store(tmp_path)), costs_of(alone, Store(tmp_path))))
    shown = capsys.readouterr().out
    assert "one more seed, with its starting points and cells, costs " in shown and "one more generator" not in shown


@pytest.mark.parametrize("num_gpus", [0, -1, float("nan"), float("inf")])
def test_a_number_of_gpus_is_above_0(llama: Experiment, checkpoint: Path, tmp_path: Path, num_gpus: float) -> None:
    base_model = dataclasses.replace(llama.base_model, path=str(checkpoint))
    with pytest.raises(UserError, match=r"num_gpus=.* give 1 or more"):
        costs_of(dataclasses.replace(llama, base_model=base_model), Store(tmp_path), num_gpus)


def test_a_budget_is_kept(llama: Experiment, checkpoint: Path, tmp_path: Path) -> None:
    base_model = dataclasses.replace(llama.base_model, path=str(checkpoint))
    llama = dataclasses.replace(llama, base_model=base_model)
    costs = costs_of(llama, Store(tmp_path), None)
    assert costs.num_gpus == 1
    dollars = costs.held_gpu_hours * 10
    plan = Plan(llama, (), costs)
    assert f"within the budget of ${dollars + 0.01:,.2f}" in check_budget(plan, dollars + 0.01)
    with pytest.raises(UserError) as refused:
        check_budget(plan, dollars - 0.01)
    for part in (f"${dollars:,.2f}", f"budget of ${dollars - 0.01:,.2f}", "--budget", "--price", "--gpu", "$10"):
        assert part in str(refused.value)
    with pytest.raises(UserError, match="budget=-1"):
        check_budget(plan, -1)
    # What earlier runs have spent counts, GPU-hours without a price at that of now.
    spent = Spending((RunSpending("a", "", "", None, (Held("h200", ON_DEMAND, 3_600, 5), Held("h200", SPOT, 3_600, None))),))
    assert "$15.00" in check_budget(plan, dollars + 15.01, spent)
    with pytest.raises(OverBudgetError, match=r"\$15\.00 .* spent on it already"):
        check_budget(plan, dollars + 14.99, spent)


def test_a_budget_is_kept_for_an_endpoint_where_nothing_asks_for_a_gpu(llama: Experiment, tmp_path: Path) -> None:
    asked = EndpointCost(num_texts=100, prompt_tokens=1e6, completion_tokens=1e5, dollars=4.0)
    plan = Plan(llama, (), None, "no step asks for a GPU", asked)
    assert check_budget(plan, 4) == (
        f"an endpoint's tokens for {llama.name} would cost about $4.00, within the budget of $4.00"
    )
    spent = Spending((RunSpending("a", "", "", None, asked={"pool": 1.5}),))
    with pytest.raises(OverBudgetError, match=r"\$1\.50 \(endpoint\) spent on it already and .* over the budget of \$5\.00"):
        check_budget(plan, 5, spent)
    on_gpus = [planned for planned in make_plan(build_grid(llama), Store(tmp_path)) if planned.step.resources.total_gpus]
    for unknown in (dataclasses.replace(plan, endpoint=None), dataclasses.replace(plan, steps=on_gpus)):
        with pytest.raises(UserError, match="--budget cannot be checked: no step asks for a GPU"):
            check_budget(unknown, 100)


def test_a_budget_for_a_gpu_that_was_not_measured_says_so(llama: Experiment, checkpoint: Path, tmp_path: Path) -> None:
    llama = dataclasses.replace(llama, base_model=dataclasses.replace(llama.base_model, path=str(checkpoint)))
    plan = Plan(llama, (), costs_on("l40s", 2, llama, Store(tmp_path)))
    note = "not measured on l40s, reckoned from the makers' data sheets: finetune_lora, generate, evaluate, from rates of h200"
    assert note in check_budget(plan, 1e9)
    with pytest.raises(UserError, match=note) as refused:
        check_budget(plan, 1)
    assert "spot" not in str(refused.value)
    assert "data sheets" not in check_budget(Plan(llama, (), costs_of(llama, Store(tmp_path))), 1e9)
    assert plan.costs is not None
    assert plan.costs.held_gpu_hours > 2 * costs_of(llama, Store(tmp_path)).held_gpu_hours


def test_a_budget_without_a_price_is_refused(llama: Experiment, checkpoint: Path, tmp_path: Path) -> None:
    llama = dataclasses.replace(llama, base_model=dataclasses.replace(llama.base_model, path=str(checkpoint)))
    plan = Plan(llama, (), costs_on("rtx4090", None, llama, Store(tmp_path)))
    with pytest.raises(UserError, match=r"no price of rtx4090 is in the table .*--price what you pay"):
        check_budget(plan, 1e9)


def test_the_papers_model_has_a_price_before_its_weights_are_here(tmp_path: Path) -> None:
    def cost(model: str) -> PlanCosts:
        planned = make_plan(build_grid(paper(data=str(tmp_path / "none"), model=model)), Store(str(tmp_path)), reasons=False)
        table = read_table()
        return cost_plan(planned, Store(str(tmp_path)), table, table.gpu("h200"), 8)

    costs = cost("models/Llama-2-7b-hf")
    assert costs.estimate.num_parameters == 6_738_415_616
    assert any("shape of Llama-2-7B, by the name models/Llama-2-7b-hf" in line for line in costs.estimate.assumptions)
    with pytest.raises(NoEstimate, match=r"config\.json is not at hand"):
        cost("models/another-model")


@pytest.mark.parametrize(
    ("precision", "gpu", "refused"),
    [("fp8", "a100", True), ("fp8", "l40s", False), ("fp8", "h200", False), ("bfloat16", "a100", False)],
)
@pytest.mark.parametrize("option", ["base_precision", "generation_precision"])
def test_a_gpu_without_fp8_is_refused_before_it_is_taken(
    option: str, precision: str, gpu: str, refused: bool, tmp_path: Path
) -> None:
    study = paper(data="nowhere", model="nowhere/Llama-2-7b-hf", **{option: precision})  # type: ignore[arg-type]
    table = read_table()

    def planned() -> Plan:
        return plan_study(study, Store(tmp_path), table, lambda _: table.gpu(gpu), 8)

    if not refused:
        assert planned().steps
        return
    with pytest.raises(UserError, match=rf"{option}='fp8' and the a100 has compute capability 8\.0, .*or -p {option}=bfloat16"):
        planned()

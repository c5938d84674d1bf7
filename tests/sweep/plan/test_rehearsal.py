"""A rehearsal: what it cuts and what it keeps, and one for real, in miniature."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model, random_model_config
from pipelines.generate.config import GenerationConfig
from pipelines.generate.shards import Shard
from pipelines.generate.writer import tables
from pipelines.tasks.examples import read_examples
from sweep import cli
from sweep.graph.records import Store, Study
from sweep.plan.rehearsal import _is_no_stand_in, rehearsal, summarize
from sweep.study.claims import Claim, Comparison, Difference
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo, paper, paper_fast
from sweep.study.grid import build_grid
from sweep.study.inputs import with_inputs
from tests.pipelines.tiny_generator import SENTIMENT

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without data and models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_stage_is_rehearsed_at_the_real_batch_shape() -> None:
    study, short = paper(seeds=(3, 4)), rehearsal(paper(seeds=(3, 4)))
    assert Counter(step.stage for step in build_grid(short)) == {
        "sources": 1, "base_model": 1, "generator": 1, "synthetic_pool": 1, "starting_set": 1, "starting_point": 2,
        "training_set": 3, "task_model": 6, "evaluation": 8,
    }  # fmt: skip
    assert (short.starting_sizes, short.training_sizes, short.seeds) == ((0, 391_722), (6,), (3,))
    for real, cut in ((study.task_model, short.task_model), (study.generator.finetune, short.generator.finetune)):
        assert dataclasses.replace(cut, rehearse_steps=0, log_every=real.log_every) == real
        assert cut.rehearse_steps == 3
    assert short.evaluation.sets == study.evaluation.sets and short.resources == study.resources
    # 3 steps of 32 examples; a shard a label, a third of an engine's batch.
    fast = rehearsal(paper_fast())
    assert fast.training_sizes == (96,)
    assert (fast.generation.num_per_label, fast.generation.shard_size, fast.generation.exact) == (32, 342, True)


def test_a_judge_is_rehearsed_and_neither_filters_nor_debiases_anything() -> None:
    study = dataclasses.replace(demo(), kinds=("original", "filtered_synthetic", "debiased_synthetic"), judge=3_000)
    short = rehearsal(study)
    assert short.kinds == ("original", "synthetic") and short.judge == 3_000
    (judgement,) = [step for step in build_grid(short) if step.stage == "judgement"]
    assert judgement.config.rehearse_examples == short.evaluation.rehearse_examples > 0


@pytest.mark.parametrize("study", [paper(), paper_fast(), demo()], ids=lambda study: study.name)
def test_no_artifact_of_a_rehearsal_is_one_of_the_study_or_of_a_study_like_it(study: Experiment) -> None:
    short = rehearsal(study)
    rehearsed = build_grid(short)
    assert all(step.payload["rehearsal"] is True for step in rehearsed)
    real = [*build_grid(study), *build_grid(dataclasses.replace(short, rehearsal=False))]
    assert not any("rehearsal" in step.payload for step in real)
    assert not {step.fingerprint for step in rehearsed} & {step.fingerprint for step in real}


def test_stand_ins_of_any_task_can_be_biased_fully_to_the_rehearsals_heuristic() -> None:
    config = GenerationConfig(task=SENTIMENT, stand_ins=True)
    pool = pa.concat_tables(
        tables(Shard(label, 0, 1, 2), ["some words", "other words"], config)[0] for label in SENTIMENT.labels
    )
    assert _is_no_stand_in(*(pool[name] for name in SENTIMENT.field_names)).tolist() == [True, True, False, False]


def test_a_rehearsal_asks_what_it_can_of_the_claims() -> None:
    def claim(name: str, kind: str, **axes: Any) -> Claim:
        return Claim(name, "", (Comparison((Difference(kind, "original", "general"),), -1),), **axes)

    study = demo(biases=(0.5,), starting_sizes=(0, 30, 300), training_sizes=(300, 600))
    sized, large = claim("sized", "synthetic", starts=(30,), sizes=(600,)), claim("large", "synthetic", sizes="largest")
    rehearsed = rehearsal(dataclasses.replace(study, claims=(sized, claim("dose", "bias_0.5"), large)))
    assert rehearsed.claims == (claim("sized", "synthetic"), large)
    assert rehearsal(study).claims == study.claims


def test_one_generator_is_rehearsed_of_several() -> None:
    one, several = (build_grid(rehearsal(demo((0, 1), generators=number))) for number in (1, 2))
    assert [step.fingerprint for step in several] == [step.fingerprint for step in one]


def test_a_model_made_from_scratch_rehearses_its_pretraining() -> None:
    base_model = rehearsal(demo()).base_model
    assert isinstance(base_model, ScratchModelConfig) and base_model.pretraining is not None
    assert base_model.pretraining.rehearse_steps == 3


def tokenizer_folder(tmp_path: Path) -> Path:
    """A tokenizer and a tiny config.json, without weights."""
    prepare_template_corpus(TemplateCorpusConfig(num_train=300, num_dev=30, num_test=30), str(tmp_path / "corpus"))
    shape = ScratchModelConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=96)
    prepare_base_model(shape, str(tmp_path / "scratch"), sources=str(tmp_path / "corpus"))
    folder = tmp_path / "tokenizer"
    shutil.copytree(tmp_path / "scratch" / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_random_weights_are_for_rehearsals_only(tmp_path: Path) -> None:
    study = dataclasses.replace(demo(), base_model=random_model_config(str(tokenizer_folder(tmp_path))))
    with pytest.raises(UserError, match="demo has random weights, which are for a rehearsal: add --rehearse"):
        with_inputs(study)
    assert with_inputs(rehearsal(study)) == rehearsal(study)


STUDY = """\
import dataclasses
from pipelines.resources import Resources
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.data.template_corpus import TemplateCorpusConfig
from sweep.study.experiment import Experiment
from sweep.study.experiments import paper

def tiny() -> Experiment:
    study = paper(model={model!r}, weights="random")
    recipe = dataclasses.replace(study.task_model, dtype="float32", zero_stage=0)
    return dataclasses.replace(
        study,
        name="tiny",
        sources=TemplateCorpusConfig(num_train=300, num_dev=30, num_test=60),
        sources_folder="",
        base_model=dataclasses.replace(study.base_model, dtype="float32"),
        generator=dataclasses.replace(
            study.generator, finetune=dataclasses.replace(recipe, batch_size=6, train_embeddings=True)),
        generation=dataclasses.replace(study.generation, max_new_tokens=24, max_num_seqs=48, dtype="float32"),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32"),
        starting_sizes=(0, 60, 120),
        training_sizes=(30, 60, 90),
        general_set="template_test",
        blindspot_set="template_probe",
        resources={{
            "generator": Resources(in_process=True),
            "starting_point": Resources(in_process=True),
            "task_model": Resources(in_process=True),
        }},
    )
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rehearsal_in_miniature_runs_every_stage_and_leaves_the_study_unbuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's workers must find the code of this checkout, from another folder.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = tmp_path / "study.py"
    study.write_text(STUDY.format(model=str(tokenizer_folder(tmp_path))))
    arguments = ["run", str(study), "--store", str(tmp_path / "store"), "--max-cpus", "2"]
    refused = CliRunner().invoke(cli.app, arguments)
    assert refused.exit_code == 1 and "add --rehearse" in refused.stderr
    done = CliRunner().invoke(cli.app, [*arguments, "--rehearse"])
    assert done.exit_code == 0, done.output
    assert "tiny-rehearsal: 24 artifacts, 0 were there, 24 built" in done.output
    store = Store(tmp_path / "store" / "rehearsal")
    steps = Study.load(store, "tiny-rehearsal").steps
    records = [step.record for step in steps if step.record]
    assert Counter(record.stage for record in records) == {
        "sources": 1, "base_model": 1, "generator": 1, "synthetic_pool": 1, "starting_set": 1, "starting_point": 2,
        "training_set": 3, "task_model": 6, "evaluation": 8,
    }  # fmt: skip
    assert all(record.payload["rehearsal"] is True for record in records)
    assert {record.marks for record in records} == {("rehearsal",)}
    for record in records:
        if record.stage in ("generator", "task_model"):
            assert record.metrics["num_steps"] == 3
        if record.stage == "evaluation":
            assert record.metrics["num_examples"] <= 2 * 512
    by_stage = {one.stage: one for one in summarize(records)}
    for stage in ("generator", "synthetic_pool", "starting_point", "task_model", "evaluation"):
        assert by_stage[stage].examples_per_s > 0 and by_stage[stage].seconds > 0
        assert f"\n{stage}" in done.output
    (pool,) = [record for record in records if record.stage == "synthetic_pool"]
    assert pool.metrics["stand_ins"] == 48 and pool.metrics["surplus"] == 48 - 6
    examples = read_examples(Path(store.folder(pool.id)) / "pool")
    assert examples.num_rows == 6 and all(name.startswith("stand-in-") for name in examples["id"].to_pylist())
    planned = CliRunner().invoke(cli.app, ["plan", str(study), "--store", str(tmp_path / "store")])
    assert "75 of 75 to build" in planned.output

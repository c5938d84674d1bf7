"""A study with shared trajectories, for real, in miniature: trunks and branches as artifacts of their own."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.graph.records import Store, Study

STUDY = """\
from sweep import (
    EvaluationConfig, Experiment, FinetuneConfig, GenerationConfig, GeneratorConfig, Resources, ScratchModelConfig,
    TemplateCorpusConfig,
)

def tiny() -> Experiment:
    recipe = FinetuneConfig(batch_size=4, dtype="float32", lora_rank=4, zero_stage=0, schedule="warmup_stable_decay",
                            cooldown_ratio=0.2)
    here = Resources(in_process=True, max_group=9)
    return Experiment(
        name="tiny",
        title="Tiny",
        sources=TemplateCorpusConfig(num_train=150, num_dev=30, num_test=60, num_probe_per_group=20),
        base_model=ScratchModelConfig(hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=96),
        generator=GeneratorConfig(finetune=FinetuneConfig()),
        generation=GenerationConfig(num_per_label=10),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32"),
        kinds=("original",),
        starting_sizes=(0, 21, 60),
        training_sizes=(15, 30),
        seeds=(0,),
        general_set="template_test",
        blindspot_set="template_probe",
        trajectories="shared",
        resources={"starting_point": here, "task_model": here, "evaluation": Resources(max_group=9)},
    )
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_in_miniature_and_a_branch_that_is_built_again(blindsweep: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(STUDY)
    assert "tiny: 24 artifacts, 0 were there, 24 built" in blindsweep("run", "study.py", "--max-cpus", "2")
    store = Store(tmp_path / "store")
    steps = {f"{step.stage}/{step.slug}": step for step in Study.load(store, "tiny").steps}
    assert Counter(step.stage for step in steps.values()) == {
        "sources": 1, "base_model": 1, "starting_set": 2, "starting_point": 3, "training_set": 2, "task_model": 6,
        "evaluation": 9,
    }  # fmt: skip
    records = {name: step.record for name, step in steps.items() if step.record}
    # 21 examples in 6 batches of 4, of which the last two are the cool-down.
    trunk, branch = records["starting_point/start60-seed0"], records["starting_point/start21-seed0"]
    assert "states/step4/state.safetensors" in trunk.files and not any(name.startswith("states") for name in branch.files)
    assert branch.inputs["trunk"].fingerprint == trunk.fingerprint
    assert (branch.metrics["branched_at_step"], branch.metrics["num_steps"], branch.metrics["num_examples"]) == (4, 6, 21)
    assert (trunk.metrics["branched_at_step"], trunk.metrics["num_steps"]) == (None, 6 + 10)
    cell = steps["task_model/start21-original-15-seed0"]
    folder = Path(store.folder(cell.id))
    shutil.rmtree(folder)
    assert "tiny: 24 artifacts, 23 were there, 1 built" in blindsweep("run", "study.py", "--max-cpus", "2")
    rebuilt = store.read_record(cell.id)
    assert rebuilt is not None and rebuilt.files.keys() == records["task_model/start21-original-15-seed0"].files.keys()

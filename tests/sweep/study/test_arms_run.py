"""A study with three arms, for real, to its verdicts: it takes over what the study without arms had built."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from sweep.graph.records import Store, Study

ARMS = "arms=two_steps,joint,lm+frozen1"
STUDY = """\
from sweep import Experiment
from tests.sweep.run.tiny_study import writing


def tiny(arms: tuple[str, ...] = ()) -> Experiment:
    return writing(kinds=("original", "synthetic"), seeds=(0, 1), starting_sizes=(0, 120), arms=arms)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_with_arms_is_run_to_its_verdicts(blindsweep: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(STUDY)
    # Sources, base, generator, pool; of each seed two starting points and a set, two sets, four cells, six evaluations.
    assert "tiny: 34 artifacts, 0 were there, 34 built" in blindsweep("run", "study.py", "--max-cpus", "2")
    # Of each seed, joint: two sets, two cells, two evaluations; the other head: all models anew.
    told = blindsweep("run", "study.py", "--max-cpus", "2", "-p", ARMS)
    assert "tiny: 70 artifacts, 34 were there, 36 built" in told

    store = Store("store")
    study = Study.load(store, "tiny")
    assert study.arms == ("two_steps", "joint", "lm+frozen1")
    steps = {f"{step.stage}/{step.slug}": step for step in study.steps}
    assert all(step.record for step in steps.values())
    assert steps["evaluation/start0-synthetic-60-seed1"].arms == ("two_steps", "joint")
    joint = steps["task_model/start120-joint-synthetic-60-seed1"]
    assert joint.record is not None and joint.record.metrics["num_examples"] == 180
    assert tuple(joint.record.coordinates["arms"]) == ("joint",)
    drawn = Path(store.folder(steps["training_set/start120-joint-synthetic-60-seed1"].id)) / "examples.parquet"
    assert pq.read_table(drawn).num_rows == 180

    def head(name: str) -> torch.Tensor:
        return load_file(Path(store.folder(steps[name].id)) / "head.safetensors")["weight"]

    frozen = [head(name) for name in steps if "-lm" in name and name.startswith(("starting_point/", "task_model/"))]
    # Never trained, and no seed's: what the language model's rows of the labels are.
    assert len(frozen) == 2 * (2 + 4) and all(torch.equal(one, frozen[0]) for one in frozen)
    assert not torch.equal(head("starting_point/start0-seed0"), head("task_model/start0-original-60-seed0"))

    claims = {claim["name"]: claim for claim in json.loads(blindsweep("verdicts", "tiny", "--json"))["claims"]}
    settings = [row["setting"].partition(", size")[0] for row in claims["synthetic_reinforces"]["settings"]]
    assert settings == [
        "arms two_steps and joint, start untrained", "arm two_steps, start 120 examples", "arm joint, start 120 examples",
        "arm lm+frozen1, start untrained", "arm lm+frozen1, start 120 examples",
    ]  # fmt: skip
    # Untrained, joint training is what two steps are; another head is one from there on.
    assert [len(claims[f"gap_is_as_wide_in_{arm}"]["settings"]) for arm in ("joint", "lm_frozen1")] == [1, 2]
    assert all(row["num_units"] == 2 for row in claims["gap_is_as_wide_in_lm_frozen1"]["settings"])
    assert "report.html" in blindsweep("report", "tiny")
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "lm+frozen1, start: untrained" in page and "(arm joint)" in page
    cell = "start120-lm-frozen1-synthetic-60-seed0"
    (origin,) = json.loads(blindsweep("explain", "tiny", "template_test/accuracy", "--cell", cell, "--json"))
    assert origin["coordinates"]["arms"] == ["lm+frozen1"]
    assert "arms lm+frozen1" in blindsweep("explain", "tiny", "template_test/accuracy", "--cell", cell)
    plan = blindsweep("plan", "study.py", "-p", ARMS)
    assert "everything is built" in plan and "arm joint: 12 artifacts of its own, 0 to build" in plan

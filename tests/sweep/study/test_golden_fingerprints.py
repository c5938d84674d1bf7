"""Fingerprints of every step of the built-in studies, kept in a file: code may move, artifacts stay valid.

After a change that is meant to move fingerprints (a stage's version went up), run this file as a program: it
writes the fingerprints anew. The commit says why.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipelines.data.sources import FILES, HANS_COLUMNS
from sweep.plan.rehearsal import rehearsal
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo, mini, paper, paper_fast
from sweep.study.grid import build_grid

GOLDEN = Path(__file__).with_name("golden_fingerprints.json")

SMALL = {"starting_sizes": (0, 3), "training_sizes": (6,)}
AXES: Mapping[str, tuple[int, ...]] = {"starting_sizes": (0, 3_000), "training_sizes": (300, 900)}
STUDIES: Mapping[str, Callable[[], Experiment]] = {
    "demo": lambda: demo((0, 1), **AXES),
    "demo with doses of bias": lambda: demo((0,), **AXES, biases=(0.5, 0.7), heuristic_share=0.05),
    "demo biased to subsequence": lambda: demo((0,), **AXES, heuristic="subsequence"),
    "demo with debiased sets": lambda: demo(
        (0,), kinds=("synthetic", "debiased_synthetic", "mix_original0.5_debiased_synthetic0.5")
    ),
    "mini": mini,
    "mini with the paper's recipe": lambda: mini(recipe="paper", seeds=(1,)),
    "mini on a CPU": lambda: mini(device="cpu", seeds=(0, 1), starting_sizes=(0,), biases=(0.9,)),
    "paper": lambda: paper(**SMALL),
    "paper without data": lambda: paper(data="nowhere", model="nowhere"),
    "paper with random weights": lambda: paper(data="nowhere", weights="random"),
    "paper on a 4-bit base": lambda: paper(data="nowhere", model="nowhere", base_precision="nf4_double", seeds=(0, 1)),
    "paper on an 8-bit base": lambda: paper(data="nowhere", model="nowhere", base_precision="fp8", seeds=(0, 1)),
    "paper_fast": lambda: paper_fast(**SMALL),
    "paper_fast without data": lambda: paper_fast(data="nowhere", model="nowhere"),
    "paper_fast with shared trajectories": lambda: paper_fast(data="nowhere", model="nowhere", trajectories="shared"),
    "paper --rehearse": lambda: rehearsal(paper(**SMALL)),
    "paper --rehearse without data": lambda: rehearsal(paper(data="nowhere", model="nowhere")),
    "demo --rehearse": lambda: rehearsal(demo((0, 1), **AXES)),
}


def write_inputs(folder: Path) -> None:
    """Data and checkpoints where the studies look for them by default, with content that never changes."""
    data = folder / "data"
    data.mkdir()
    for name in FILES[:3]:
        labels = ("entailment", "neutral", "contradiction") * 300
        rows = (
            {"gold_label": label, "sentence1": f"Premise {n}.", "sentence2": "A hypothesis."} for n, label in enumerate(labels)
        )
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = "\t".join(("entailment", "", "", "", "", "The a slept .", "The a slept .", "ex0", "constituent", "ce_some", "temp1"))
    (data / FILES[3]).write_text("\n".join(["\t".join(HANS_COLUMNS), *[row] * 30_000]) + "\n")
    for model in ("SmolLM2-135M", "Llama-2-7b-hf", "Llama-2-7b-random"):
        (folder / "models" / model).mkdir(parents=True)
        for name in ("model.safetensors", "config.json", "tokenizer.model"):
            (folder / "models" / model / name).write_text(f"{model}/{name}")


def fingerprints() -> dict[str, list[str]]:
    """Study → `stage/slug fingerprint` of each step, in the grid's order; the working folder is that of `write_inputs`."""
    return {name: [f"{step.name} {step.fingerprint}" for step in build_grid(study())] for name, study in STUDIES.items()}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_inputs(Path(folder))
        return fingerprints()


@pytest.mark.parametrize("study", STUDIES)
def test_every_step_has_the_fingerprint_that_it_has_had(study: str, found: dict[str, list[str]]) -> None:
    assert found[study] == json.loads(GOLDEN.read_text())[study]


def test_with_two_generators_the_first_makes_what_it_has_made() -> None:
    golden = set(json.loads(GOLDEN.read_text())["demo"])
    steps = build_grid(demo((0, 1), **AXES, generators=2))
    kept = [step for step in steps if f"{step.name} {step.fingerprint}" in golden]
    # Of seed 1 the second generator, its pool, and the synthetic cells: two kinds × two sizes, from two starting points.
    assert len(golden) - len(kept) == 4 + 8 + 8
    assert len(steps) - len(kept) == 2 + 4 + 8 + 8


def test_with_arms_the_plain_one_makes_what_the_study_without_has_made() -> None:
    golden = json.loads(GOLDEN.read_text())["demo"]
    steps = [f"{step.name} {step.fingerprint}" for step in build_grid(demo((0, 1), **AXES, arms=("random", "joint", "lm")))]
    assert set(golden) <= set(steps) and len(steps) == len(set(steps))
    # Joint: two seeds × three kinds × two sizes from one trained start, a set, a model, an evaluation each. Another head: two
    # seeds × two starting points, and from each six cells, with the evaluations of all of these.
    assert len(steps) - len(golden) == 12 * 3 + 2 * 2 * (1 + 6) * 2


def test_the_file_has_these_studies_and_no_others() -> None:
    assert set(json.loads(GOLDEN.read_text())) == set(STUDIES)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as inputs, contextlib.chdir(inputs):
        write_inputs(Path(inputs))
        GOLDEN.write_text(json.dumps(fingerprints(), indent=0) + "\n")

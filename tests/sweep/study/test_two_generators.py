"""A study with two generators, for real, in miniature, where a study with one has been run before."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweep.graph.records import Store, Study, StudyStep

STUDY = """\
from sweep import Experiment
from tests.sweep.run.tiny_study import writing


def tiny(seeds: tuple[int, ...] = (0,), generators: int = 1) -> Experiment:
    return writing(kinds=("original", "synthetic"), seeds=seeds, generators=generators)
"""


def premises(store: Store, step: StudyStep, path: str) -> list[str]:
    return list(pq.read_table(Path(store.folder(step.id)) / path, columns=["premise"])["premise"].to_pylist())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_second_generator_joins_a_study_that_was_run_with_one(blindsweep: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(STUDY)
    run, two = ("run", "study.py", "--max-cpus", "2"), ("-p", "seeds=0,1", "-p", "generators=2")
    # Sources, base, generator, pool, starting point, two sets and task models, three evaluations.
    assert "tiny: 12 artifacts, 0 were there, 12 built" in blindsweep(*run)
    # Of seed 1 the second generator and its pool, and the eight others that follow the seed.
    assert "tiny: 22 artifacts, 12 were there, 10 built" in blindsweep(*run, *two)

    store = Store("store")
    steps = {f"{step.stage}/{step.slug}": step for step in Study.load(store, "tiny").steps}
    records = {name: step.record for name, step in steps.items() if step.record}
    assert records.keys() == steps.keys()
    pools = [steps["synthetic_pool/pool"], steps["synthetic_pool/pool1"]]
    assert [step.coordinates for step in pools] == [{"generator": 0}, {"generator": 1}]
    # Another generator with other draws: its weights and its texts are its own.
    assert records["generator/generator"].content != records["generator/generator1"].content
    written = [set(premises(store, pool, "pool")) for pool in pools]
    assert len(written[1] - written[0]) > 10
    for pool, cell in zip(pools, ("synthetic-60-seed0", "synthetic-60-seed1-generator1"), strict=True):
        drawn = steps[f"training_set/{cell}"]
        assert drawn.inputs["source"] == pool.fingerprint
        files = [path for path in records[f"training_set/{cell}"].files if path.endswith(".parquet")]
        assert set(premises(store, drawn, files[0])) <= set(premises(store, pool, "pool"))
    evaluations = [step for step in steps.values() if step.stage == "evaluation"]
    assert Counter((step.coordinates["seed"], step.coordinates["generator"]) for step in evaluations) == {(0, 0): 3, (1, 1): 3}

    status = blindsweep("status", "tiny")
    assert "generator       2/2" in status and "synthetic_pool  2/2" in status
    for number, (cell, pool) in enumerate((("seed0", "pool"), ("seed1-generator1", "pool1"))):
        told = blindsweep("explain", "tiny", "template_test/accuracy", "--cell", f"start0-synthetic-60-{cell}", "--json")
        origin = json.loads(told)[0]
        assert origin["coordinates"]["generator"] == number
        assert pool in {source["slug"] for source in origin["lineage"]}
    assert "report.html" in blindsweep("report", "tiny")
    assert "everything is built" in blindsweep("plan", "study.py", *two)

"""A study with a pool that goes by lexical overlap too much, drawn from as it is and debiased, for real, to its verdicts."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.data.kinds import Mix
from pipelines.data.template_corpus import TemplateCorpusConfig
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from pipelines.tasks.nli import NLI
from sweep.graph.records import Store, Study
from tests.example_data import own_pool

HALF = Mix(original=0.5, debiased_synthetic=0.5).name
STUDY = """\
from dataclasses import replace

from sweep import Experiment, Mix
from tests.sweep.run.tiny_study import tiny as smallest


def tiny(seeds: tuple[int, ...] = (0, 1)) -> Experiment:
    kinds = ("original", "synthetic", "debiased_synthetic", Mix(original=0.5, debiased_synthetic=0.5))
    return replace(smallest(seeds=seeds), synthetic="pool.parquet", generator=None, generation=None, kinds=kinds)
"""


def odds_ratio(path: Path) -> float:
    """Of lexical overlap and entailment, by hand, with a half added to each count."""
    drawn = pq.read_table(path)
    holds = LEXICAL_OVERLAP.of(drawn, NLI)
    entails = [label == "entailment" for label in drawn["label"].to_pylist()]
    a, b, c, d = (sum((held, entailed) == case for held, entailed in zip(holds, entails, strict=True)) + 0.5 for case in CASES)
    return a * d / (b * c)


CASES = ((True, True), (True, False), (False, True), (False, False))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_debiased_sets_are_trained_on_beside_plain_ones_and_judged(blindsweep: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(STUDY)
    own_pool(tmp_path, TemplateCorpusConfig(seed=3, num_train=900, overlap_entailment_rate=0.9))
    told = blindsweep("run", "study.py", "--max-cpus", "2")
    # Sources, base, pool; of each seed a starting point and its evaluation, of four kinds a set, a model and its evaluation.
    assert "tiny: 31 artifacts, 0 were there, 31 built" in told

    store = Store("store")
    steps = {f"{step.stage}/{step.slug}": step for step in Study.load(store, "tiny").steps}
    for seed in (0, 1):
        step = steps[f"training_set/debiased_synthetic-60-seed{seed}"]
        assert step.record is not None
        metrics, folder = step.record.metrics, Path(store.folder(step.id))
        ratio = {name: metrics[f"odds_ratio/lexical_overlap/{name}"] for name in ("pool", "original", "set")}
        assert ratio["pool"] > 5 * ratio["original"] and metrics["debiased/num_offered"] >= 60
        assert ratio["set"] == pytest.approx(odds_ratio(folder / "examples.parquet"))
        # Of 60 rows one more or less in a cell of five is much.
        assert ratio["set"] == pytest.approx(ratio["original"], rel=0.5)
        plain = Path(store.folder(steps[f"training_set/synthetic-60-seed{seed}"].id))
        assert odds_ratio(plain / "examples.parquet") > 2 * ratio["original"]
        mixed = pq.read_table(Path(store.folder(steps[f"training_set/{HALF}-60-seed{seed}"].id)) / "examples.parquet")
        assert mixed["part"].to_pylist().count("debiased_synthetic") == 30

    claims = {claim["name"]: claim for claim in json.loads(blindsweep("verdicts", "tiny", "--json"))["claims"]}
    assert claims["debiasing_helps"]["settings"] and not claims["debiasing_helps"]["primary"]
    assert "report.html" in blindsweep("report", "tiny")
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "Debiased Synthetic" in page and "50% original, 50% debiased synthetic" in page
    assert "everything is built" in blindsweep("plan", "study.py")

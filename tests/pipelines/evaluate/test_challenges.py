"""The challenge sets, from their files to a task model's answers: what is scored, by which slices, with which labels."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.data.sources import nli_sources_config, prepare_nli_sources
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.resources import Resources
from tests.pipelines.challenge_files import SMALL, write_all

CHALLENGES = ("mnli_hard", "med", "scone", "neg_nli")


def test_a_task_models_answers_to_all_sets(tmp_path: Path, base_model: str, untrained: str) -> None:
    write_all(tmp_path / "data")
    sources = nli_sources_config(str(tmp_path / "data"), CHALLENGES, **SMALL)
    prepare_nli_sources(sources, str(tmp_path / "sources"), folder=str(tmp_path / "data"))
    sets = ("mnli_matched", "hans", *CHALLENGES)
    config = EvaluationConfig(sets, dtype="float32", test_sets=sources.test_sets)
    in_process = Resources(in_process=True)
    output = tmp_path / "out"
    metrics = evaluate(config, str(tmp_path / "sources"), base_model, untrained, str(output), resources=in_process)

    sizes = {
        (row["set"], row["slice"]): row["num_examples"] for row in json.loads((output / "metrics.json").read_text())["rows"]
    }
    assert {name: sizes[name, "all"] for name in sets} == {
        "mnli_matched": 2,
        "hans": 1,
        "mnli_hard": 3,
        "med": 5,
        "scone": 24,
        "neg_nli": 3,
    }
    halves = {
        test_set.name: tuple(sizes[test_set.name, half] for half in (test_set.aligned, test_set.adversarial))
        for test_set in sources.test_sets
    }
    # Of NegNLI the pair with a negated premise is in no half.
    assert halves == {"mnli_hard": (2, 1), "med": (2, 2), "scone": (16, 8), "neg_nli": (1, 1)}
    assert {f"{name}/{half}" for name, half in sizes if name == "med" and half.startswith("monotonicity/")} >= {
        "med/monotonicity/upward/entailment",
        "med/monotonicity/non_monotone/non-entailment",
    }
    # One label is always predicted by NegNLI's heuristic alone.
    assert [name for name in metrics if name.endswith("/auc")] == ["neg_nli/half/adversarial/auc"]

    logits = pq.read_table(output / "logits.parquet").to_pandas()
    med = logits[logits["set"] == "med"]
    right = (med[["logit_entailment", "logit_neutral", "logit_contradiction"]].to_numpy().argmax(axis=1) == 0) == (
        med["label"] == "entailment"
    )
    assert metrics["med/accuracy"] == np.mean(right)
    assert set(med["slice/monotonicity"]) == {"upward", "downward", "non_monotone"} and med["slice/half"].isna().all()

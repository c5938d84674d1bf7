"""The registered stages hand a judgement its judges and what they were trained on, and a filtered set its judgement."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig
from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.evaluate.judge import JudgementConfig
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.finetune.task_model import UntrainedConfig
from pipelines.resources import Resources
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from sweep.graph.stages import REGISTRY, Job

SHAPE = ScratchModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64, vocabulary_size=600)


def test_a_pool_is_judged_and_a_set_drawn_from_what_was_agreed(tmp_path: Path) -> None:
    def build(stage: str, name: str, config: object, **inputs: str) -> tuple[str, dict]:
        output = str(tmp_path / name)
        job = Job(config, inputs, output, resources=Resources(in_process=True))
        return output, dict(REGISTRY[stage].run(job))

    sources, _ = build("sources", "data", TemplateCorpusConfig(num_train=300, num_dev=30, num_test=30, num_probe_per_group=6))
    base, _ = build("base_model", "base", SHAPE, sources=sources)
    own_set, _ = build("starting_set", "set", TrainingSetConfig("starting", 60, 0), source=sources)
    head, _ = build("starting_point", "head", UntrainedConfig(0), base_model=base)
    known = {*read_examples(f"{own_set}/examples.parquet")["id"].to_pylist()}
    train = read_examples(f"{sources}/train.parquet")
    rows = [row for row, identifier in enumerate(train["id"].to_pylist()) if identifier not in known]
    write_examples(train.take(rows), tmp_path / "written" / "pool" / "shard.parquet")
    config = JudgementConfig(sets=("dev",), dtype="float32", heuristics=(LEXICAL_OVERLAP,))
    inputs = {"sources": sources, "base_model": base, "judge0": head, "judge0_set0": own_set}
    pool = str(tmp_path / "written")
    judgement, metrics = build("judgement", "judgement", config, pool=pool, **inputs)
    assert metrics["pool/num_judged"] == 240 and metrics["dev/num_judged"] == 30

    # An untrained judge agrees with what it likes: as if it agreed with every other row.
    table = pq.read_table(f"{judgement}/judgements.parquet")
    said = [label if row % 2 else None for row, label in enumerate(table["label"].to_pylist())]
    (tmp_path / "said").mkdir()
    column = table.column_names.index("predicted")
    pq.write_table(table.set_column(column, "predicted", pa.array(said)), tmp_path / "said" / "judgements.parquet")
    filtered = TrainingSetConfig("filtered_synthetic", 30, 0)
    drawn, counts = build("training_set", "filtered", filtered, source=pool, judgement=str(tmp_path / "said"))
    assert {*read_examples(f"{drawn}/examples.parquet")["id"].to_pylist()} <= {*table["id"].to_pylist()[1::2]}
    assert counts["num_examples"] == 30 and counts["num_not_agreed"] == 120

    # The judge's own examples among the pool's.
    write_examples(train, tmp_path / "seen" / "pool" / "shard.parquet")
    with pytest.raises(UserError, match=r"the pool: every judge was trained on 60 of 300 rows"):
        build("judgement", "refused", config, pool=str(tmp_path / "seen"), **inputs)

"""A judgement run for real by tiny models, and that nobody judges what it was trained on."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate
from pipelines.evaluate.judge import NO_JUDGE, Judge, JudgementConfig, assign_judges, judge
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, finetune_task_model
from pipelines.models.tokenizer import load_tokenizer
from pipelines.resources import Resources
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from pipelines.tasks.nli import LABELS
from tests.pipelines.conftest import labelled_pairs

HERE = Resources(in_process=True)
CONFIG = JudgementConfig(sets=("template_test",), dtype="float32", heuristics=(LEXICAL_OVERLAP,))
LORA = FinetuneConfig(learning_rate=1e-2, batch_size=16, lora_rank=4, dtype="float32", zero_stage=0)


def renamed(table: pa.Table, prefix: str) -> pa.Table:
    return table.set_column(0, "id", pa.array([f"{prefix}{identifier}" for identifier in table["id"].to_pylist()]))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    write_examples(renamed(labelled_pairs(40, seed=7), "written-"), folder / "pool" / "shard.parquet")
    return str(folder / "pool")


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    """Prepared sources whose ids are not the training set's."""
    folder = tmp_path_factory.mktemp("gold")
    write_examples(renamed(labelled_pairs(60, seed=1), "test-"), folder / "template_test.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sources, base_model, untrained):
    """Two task models, an adapter and all weights, each finetuned on its half of the training set: folder and examples."""
    folder = tmp_path_factory.mktemp("judges")
    table = read_examples(f"{sources}/train.parquet")
    judges = []
    full = dataclasses.replace(LORA, method="full", learning_rate=2e-3, epochs=4)
    for number, recipe in enumerate((LORA, full)):
        examples = str(folder / f"half{number}.parquet")
        write_examples(table.slice(48 * number, 48), examples)
        config = TaskModelConfig(recipe, seed=number)
        finetune_task_model(config, examples, base_model, untrained, str(folder / recipe.method), resources=HERE)
        judges.append(Judge(str(folder / recipe.method), (examples,)))
    return judges


def test_a_judge_says_what_the_evaluation_says(pool, gold, base_model, trained, tmp_path):
    """The gold rows' shares are the softmax of the evaluation's logits, the pool's agree in form, and both have their cells."""
    metrics = judge(CONFIG, pool, gold, base_model, trained[:1], str(tmp_path / "judged"), resources=HERE)
    of_gold, of_pool = (pq.read_table(tmp_path / "judged" / name) for name in ("gold.parquet", "judgements.parquet"))
    evaluation = EvaluationConfig(sets=("template_test",), dtype="float32")
    evaluated = evaluate(evaluation, gold, base_model, trained[0].task_model, str(tmp_path / "evaluated"), resources=HERE)
    table = pq.read_table(tmp_path / "evaluated" / "logits.parquet")
    logits = np.stack([table[f"logit_{label}"].to_numpy() for label in LABELS], axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    judged = np.stack([of_gold[f"p_{label}"].to_numpy() for label in LABELS], axis=1)
    np.testing.assert_allclose(judged, shares, rtol=1e-5)
    assert of_gold["predicted"].to_pylist() == [str(LABELS[place]) for place in logits.argmax(axis=1)]
    assert metrics["template_test/agreement"] == evaluated["template_test/accuracy"]
    examples = read_examples(pool)
    assert of_pool["id"].to_pylist() == examples["id"].to_pylist() and set(of_pool["judge"].to_pylist()) == {0}
    held = LEXICAL_OVERLAP(examples["premise"], examples["hypothesis"])
    assert of_pool["holds/lexical_overlap"].to_pylist() == held.tolist() and 0 < held.sum() < 40
    assert metrics["num_examples"] == 100 and metrics["num_not_judged"] == 0 and metrics["pool/num_judged"] == 40
    said, labels = of_pool["predicted"].to_pylist(), of_pool["label"].to_pylist()
    assert metrics["pool/agreement"] == np.mean([one == label for one, label in zip(said, labels, strict=True)])


def test_without_gold_sets_a_pool_is_judged_as_with_them(pool, gold, base_model, trained, tmp_path):
    with_gold, without = str(tmp_path / "with"), tmp_path / "without"
    judge(CONFIG, pool, gold, base_model, trained[:1], with_gold, resources=HERE)
    config = dataclasses.replace(CONFIG, sets=())
    metrics = judge(config, pool, str(tmp_path), base_model, trained[:1], str(without), resources=HERE)
    assert metrics["num_examples"] == metrics["pool/num_judged"] == 40
    assert [path.name for path in without.iterdir()] == ["judgements.parquet"]
    assert pq.read_table(without / "judgements.parquet") == pq.read_table(f"{with_gold}/judgements.parquet")
    with pytest.raises(UserError, match="names no test set"):
        EvaluationConfig(sets=())


def test_two_judges_judge_each_others_half(sources, gold, base_model, trained, tmp_path):
    """Of the original rows, each judged by the model that did not see it; as each judge says alone."""
    train = f"{sources}/train.parquet"
    judge(CONFIG, train, gold, base_model, trained, str(tmp_path / "both"), resources=HERE)
    both = pq.read_table(tmp_path / "both" / "judgements.parquet")
    assert both["judge"].to_pylist() == [1] * 48 + [0] * 48
    for number in range(2):
        half = tmp_path / f"half{number}.parquet"
        write_examples(read_examples(train).slice(48 - 48 * number, 48), half)
        alone = str(tmp_path / f"alone{number}")
        judge(CONFIG, str(half), gold, base_model, [trained[number]], alone, resources=HERE)
        of_half = pq.read_table(f"{alone}/judgements.parquet")
        np.testing.assert_allclose(
            both["p_neutral"].to_numpy()[48 - 48 * number :][:48], of_half["p_neutral"].to_numpy(), rtol=1e-4
        )
    # Gold rows are shared out between the two, who are wrong in different ways.
    assert 15 < sum(pq.read_table(tmp_path / "both" / "gold.parquet")["judge"].to_pylist()) < 45


def test_a_judge_of_its_own_training_rows_is_refused(sources, gold, base_model, trained, tmp_path):
    message = r"the pool: every judge was trained on 48 of 96 rows \(pair-0, for one\).*add a judge that is trained without"
    with pytest.raises(UserError, match=message):
        judge(CONFIG, f"{sources}/train.parquet", gold, base_model, trained[:1], str(tmp_path / "x"), resources=HERE)
    with pytest.raises(UserError, match="gold set train: every judge"):
        config = JudgementConfig(sets=("train",), dtype="float32", heuristics=(LEXICAL_OVERLAP,))
        judge(config, f"{gold}/template_test.parquet", sources, base_model, trained[:1], str(tmp_path / "x"), resources=HERE)
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="no judge is given"):
        judge(CONFIG, f"{gold}/template_test.parquet", gold, base_model, [], str(tmp_path / "x"), resources=HERE)


def test_a_copy_of_a_training_pair_is_left_out_and_counted(pool, gold, sources, base_model, trained, tmp_path):
    copies = renamed(read_examples(f"{sources}/train.parquet").slice(0, 3), "copy-")
    table = pa.concat_tables([read_examples(pool), copies])
    write_examples(table, tmp_path / "pool.parquet")
    metrics = judge(
        CONFIG, str(tmp_path / "pool.parquet"), gold, base_model, trained[:1], str(tmp_path / "out"), resources=HERE
    )
    judged = pq.read_table(tmp_path / "out" / "judgements.parquet").to_pylist()
    assert metrics["num_not_judged"] == 3 and metrics["pool/num_judged"] == 40
    for name in ("judge", "predicted", "p_entailment"):
        assert [row[name] is None for row in judged] == [False] * 40 + [True] * 3
    assert judged[-1]["label"] is not None and judged[-1]["id"] == "copy-pair-2"


def test_the_judge_of_a_row_does_not_depend_on_the_other_rows():
    table = renamed(labelled_pairs(300, seed=5), "row-")
    nothing = table.slice(0, 0)
    assigned = assign_judges(table, [nothing] * 3, "rows")
    assert np.bincount(assigned).min() > 70
    assert (assign_judges(table.slice(100, 50), [nothing] * 3, "rows") == assigned[100:150]).all()
    knows_first = assign_judges(table, [table.slice(0, 10), nothing], "rows")
    assert set(knows_first[:10]) == {1} and set(knows_first) == {0, 1}
    copied = renamed(table.slice(0, 10), "copy-")
    assert (assign_judges(table, [copied], "rows") == NO_JUDGE).tolist() == [True] * 10 + [False] * 290


def test_gold_rows_with_two_labels_are_refused(pool, gold, base_model, trained, tmp_path):
    table = read_examples(f"{gold}/template_test.parquet")
    folded = ["entailment" if label == "entailment" else "non-entailment" for label in table["label"].to_pylist()]
    write_examples(table.set_column(3, "label", pa.array(folded)), tmp_path / "template_test.parquet")
    with pytest.raises(UserError, match=r"gold set template_test has rows labelled non-entailment; gold rows have entailment,"):
        judge(CONFIG, pool, str(tmp_path), base_model, trained[:1], str(tmp_path / "out"), resources=HERE)


def test_a_classifiers_own_checkpoint_judges_by_the_names_of_its_classes(pool, gold, base_model, trained, tmp_path):
    """As transformers saves it, its classes in another order: it says what the task model of the same weights says."""
    from safetensors.torch import load_file
    from transformers import LlamaForSequenceClassification

    folder = Path(trained[1].task_model)
    head = load_file(folder / "head.safetensors")["weight"]
    own = LlamaForSequenceClassification.from_pretrained(folder / "model", num_labels=3, dtype="float32")
    own.score.weight.data.copy_(head[[2, 0, 1]])
    own.config.id2label = {0: "CONTRADICTION", 1: "entailment", 2: "neutral"}
    own.save_pretrained(tmp_path / "checkpoint" / "model")
    load_tokenizer(base_model).save_pretrained(tmp_path / "checkpoint" / "model")
    tables = []
    for name, base, judges in (("task", base_model, trained[1:]), ("own", str(tmp_path / "checkpoint"), [Judge(None)])):
        judge(CONFIG, pool, gold, base, judges, str(tmp_path / name), resources=HERE)
        tables.append(pq.read_table(tmp_path / name / "judgements.parquet"))
    for label in LABELS:
        task, own_shares = (table[f"p_{label}"].to_numpy() for table in tables)
        np.testing.assert_allclose(task, own_shares, rtol=1e-4)
    assert np.ptp([tables[0][f"p_{label}"][0].as_py() for label in LABELS]) > 0.05

    config = tmp_path / "checkpoint" / "model" / "config.json"
    named = json.loads(config.read_text())
    config.write_text(json.dumps({**named, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}))
    with pytest.raises(UserError, match=r"classes of the checkpoint in .* are label_0, label_1, label_2, and the task's"):
        judge(CONFIG, pool, gold, str(tmp_path / "checkpoint"), [Judge(None)], str(tmp_path / "out"), resources=HERE)
    shutil.copytree(base_model, tmp_path / "headless")
    with pytest.raises(UserError, match=r"has no score\.weight"):
        judge(CONFIG, pool, gold, str(tmp_path / "headless"), [Judge(None)], str(tmp_path / "out"), resources=HERE)

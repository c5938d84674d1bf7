"""The section on wrong labels: of a judgement written by hand, and of one by a tiny model that was really trained."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.page import Block
from analysis.report.label_noise import label_noise_blocks
from analysis.report.sections import marks_of
from analysis.stats.label_noise import wrong_label_rates
from analysis.study.artifacts import judged_pool
from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.evaluate.judge import Judge, JudgementConfig, judge
from pipelines.finetune.base_model import prepare_base_model
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetune_task_model, initial_task_model
from pipelines.resources import Resources
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP
from pipelines.tasks.nli import LABELS
from sweep.graph.records import Store, Study
from sweep.study.experiments import demo
from tests.analysis.fake_store import FakeStudy

HEURISTICS = {"heuristics": [{"name": "lexical_overlap", "version": 1, "predicts": "entailment"}]}


def content(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def judged_table(counts: dict[tuple[str, str], int], held: bool) -> dict[str, list]:
    """Columns of judged rows: how many have a label and are judged to be another (or the same), each of its own premise."""
    columns: dict[str, list] = {"label": [], "predicted": [], "holds/lexical_overlap": []}
    for (label, predicted), number in counts.items():
        columns["label"] += [label] * number
        columns["predicted"] += [predicted] * number
        columns["holds/lexical_overlap"] += [held] * number
    return columns


def confused(right: int, wrong: int) -> dict[tuple[str, str], int]:
    return {(str(label), str(said)): right if said == label else wrong for label in LABELS for said in LABELS}


def add_judgement(study: FakeStudy, slug: str, pool: dict, gold: dict, inputs: dict[str, str] | None = None) -> None:
    tables = []
    for columns in (pool, gold):
        size = len(columns["label"])
        tables.append(pa.table({"id": [f"e{row}" for row in range(size)], "cluster": list(range(size)), **columns}))
    files = {
        "judgements.parquet": content(tables[0]),
        "gold.parquet": content(tables[1].append_column("set", pa.repeat("dev", tables[1].num_rows))),
    }
    study.add("judgement", slug, files=files, config=HEURISTICS, inputs=inputs)


def both(*parts: dict[str, list]) -> dict[str, list]:
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def blocks(study: FakeStudy) -> list[Block]:
    store = Store(study.write())
    return label_noise_blocks(store, Study.load(store, study.name))


def test_the_table_has_each_label_and_cell_and_the_sentences_the_rate_in_all(tmp_path) -> None:
    study = FakeStudy(tmp_path)
    # The judge is right of 80% of gold rows in both cells. Of entailments with overlap it doubts a fifth more than that.
    gold = both(judged_table(confused(800, 100), False), judged_table(confused(800, 100), True))
    flipped = {**confused(800, 100), ("entailment", "entailment"): 660, ("entailment", "neutral"): 240}
    pool = both(judged_table(confused(800, 100), False), judged_table(flipped, True))
    pool["predicted"][0] = None
    add_judgement(study, "judge-pool", pool, gold)
    (block,) = blocks(study)
    (table,) = block.tables
    assert [row[:2] for row in table.rows] == [
        [label, cell] for label in map(str, LABELS) for cell in ("without lexical overlap", "with lexical overlap")
    ] + [[label, "all"] for label in (*map(str, LABELS), "all")]  # fmt: skip
    by_place = {tuple(row[:2]): row[2:] for row in table.rows}
    held = by_place["entailment", "with lexical overlap"]
    assert held[:3] == ["1,000", "34.0%", "20.0%"]
    assert by_place["entailment", "without lexical overlap"][0] == "999"
    assert table.group_starts == {6}
    assert len(block.text) == 2 and "of those that say entailment with lexical overlap 20.0" in block.text[0]
    assert "right of 80.0% of 6,000 original rows" in block.text[1]


def test_disputed_labels_are_told_from_records_alone(tmp_path) -> None:
    study = FakeStudy(tmp_path)
    gold = {"dev/num_judged": 100, "dev/agreement": 0.9, "dev/agreement/neutral": 0.1}
    gold |= {"matched/num_judged": 300, "matched/agreement": 0.8}
    study.add("judgement", "as-often", metrics=gold | {"pool/num_judged": 9, "pool/agreement": 0.78})
    study.add("judgement", "none-judged", metrics=gold | {"pool/num_judged": 0})
    assert marks(study) == []
    study.add("judgement", "more-often", metrics=gold | {"pool/num_judged": 9, "pool/agreement": 0.5})
    said = "of rows whose labels are known: a difference between kinds of training set may be of wrong labels"
    assert marks(study) == [f"the judge gives another label to 50% of the rows of one synthetic pool, and to 18% {said}"]
    study.add("judgement", "other", metrics=gold | {"pool/num_judged": 9, "pool/agreement": 0.7})
    assert marks(study) == [f"the judge gives another label to 30 to 50% of the rows of two synthetic pools, and to 18% {said}"]


def marks(study: FakeStudy) -> list[str]:
    return marks_of(Study.load(Store(study.write()), study.name))


def test_a_study_without_a_judgement_has_no_section_and_a_judge_at_chance_says_so(tmp_path) -> None:
    study = FakeStudy(tmp_path)
    assert blocks(study) == []
    guesses = judged_table(confused(300, 300), False)
    add_judgement(study, "judge-pool", guesses, guesses)
    add_judgement(study, "judge-other", guesses, both(judged_table(confused(800, 100), False)))
    first, second = blocks(study)
    assert first.tables == () and "is unknown: by 2,700 gold rows the judge does not tell the labels apart" in first.text[0]
    assert second.anchor == "label-noise-judge-other" and second.tables


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_tiny_model_that_was_trained_on_other_rows_finds_what_was_planted(tmp_path, rate: float) -> None:
    """The demo's model, finetuned on template pairs, judges 3,000 others of which some entailments with overlap are flipped."""
    study, here = demo(), Resources(in_process=True)
    sources, base, untrained, trained = (str(tmp_path / name) for name in ("sources", "base", "untrained", "trained"))
    prepare_template_corpus(TemplateCorpusConfig(num_train=9_000, num_dev=3_000), sources)
    prepare_base_model(study.base_model, base, sources=sources, resources=here)
    initial_task_model(UntrainedConfig(0), base, untrained)
    drawn = str(tmp_path / "set")
    draw_training_set(TrainingSetConfig("starting", 6_000, 0), f"{sources}/train.parquet", drawn)
    examples = f"{drawn}/examples.parquet"
    finetune_task_model(TaskModelConfig(study.task_model, 0), examples, base, untrained, trained, resources=here)

    used = set(read_examples(examples)["id"].to_pylist())
    rest = read_examples(f"{sources}/train.parquet")
    rest = rest.filter(pa.array([identifier not in used for identifier in rest["id"].to_pylist()]))
    held = LEXICAL_OVERLAP(rest["premise"], rest["hypothesis"])
    labels = np.array(rest["label"].to_pylist(), dtype=object)
    others = np.flatnonzero(held & (labels != "entailment"))
    # Pairs with overlap that are no entailments are labelled so: that many of what is then labelled entailment.
    num_flipped = round(rate / (1 - rate) * (held & (labels == "entailment")).sum())
    labels[others[:num_flipped]] = "entailment"
    pool = rest.set_column(rest.column_names.index("label"), "label", pa.array(labels.tolist()))
    write_examples(pool, tmp_path / "pool.parquet")
    config = JudgementConfig(sets=("dev", "template_test"), dtype="float32", heuristics=(LEXICAL_OVERLAP,))
    store = tmp_path / "judged"
    judge(config, str(tmp_path / "pool.parquet"), sources, base, [Judge(trained, (examples,))], str(store), resources=here)
    fake = FakeStudy(tmp_path / "store")
    fake.add(
        "judgement", "judge-pool", config=HEURISTICS,
        files={name: (store / name).read_bytes() for name in ("judgements.parquet", "gold.parquet")},
    )  # fmt: skip
    opened = Store(fake.write())
    found = judged_pool(opened, Study.load(opened, "tiny").steps[0])
    rates = {(one.label, one.cell): one for one in wrong_label_rates(found.pool, found.gold, LABELS, 2, seed=0)}
    planted = num_flipped / ((labels == "entailment") & held).sum()
    assert rates[0, 1].interval.low <= planted <= rates[0, 1].interval.high
    assert rates[None, None].interval.low <= num_flipped / len(labels) <= rates[None, None].interval.high
    # Contradictions without overlap are as they were. A judge right of 69% cannot tell a rate of 10% from none.
    assert rates[2, 0].interval.low <= 0

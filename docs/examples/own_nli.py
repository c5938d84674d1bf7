"""Pairs under other names, and a challenge set of one's own: does training on generated pairs grow that blindspot?

    blindsweep run docs/examples/own_nli.py -p data=FOLDER

FOLDER has train.csv and test.csv with the columns sentence1, sentence2 and gold (0, 1, 2 as SNLI numbers its labels), and
challenge.csv with text, statement, answer (yes, no), trick and pattern: on its pairs a trick such as repeating words misleads.
"""

from dataclasses import replace

from sweep import (
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    GenerationConfig,
    GeneratorConfig,
    Resources,
    ScratchModelConfig,
    Table,
    TableSources,
    TestSet,
)

NAMES = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold"}
LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}
CHALLENGE = TestSet(
    "challenge",
    title="My challenge set",
    folded_onto="entailment",
    slices=("trick",),
    cluster="pattern",
    aligned="trick/overlap/entailment",
    adversarial="trick/overlap/non-entailment",
    predicts="entailment",
)


def own_nli(data: str = "data", seeds: tuple[int, ...] = (0, 1, 2), training_size: int = 600) -> Experiment:
    """A tiny Llama on one's own pairs, on two CPU cores."""
    recipe = FinetuneConfig(method="full", learning_rate=2e-3, epochs=5, batch_size=32, dtype="float32", zero_stage=0)
    language = replace(recipe, learning_rate=3e-3, epochs=2)
    return Experiment(
        name="own_nli",
        title="My own pairs and challenge set, a tiny Llama",
        sources=TableSources(
            train=Table("train.csv", columns=NAMES, labels=LABELS),
            general=Table("test.csv", columns=NAMES, labels=LABELS),
            blindspots=Table(
                "challenge.csv",
                columns={"premise": "text", "hypothesis": "statement", "label": "answer"},
                labels={"yes": "entailment", "no": "non-entailment"},
                test_set=CHALLENGE,
            ),
        ),
        sources_folder=data,
        base_model=ScratchModelConfig(hidden_size=96, num_layers=3, num_heads=3, num_kv_heads=3, pretraining=language),
        generator=GeneratorConfig(finetune=replace(language, epochs=4)),
        generation=GenerationConfig(num_per_label=1_200, shard_size=256, max_new_tokens=64, dtype="float32"),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("test", "challenge"), dtype="float32"),
        starting_sizes=(0,),
        training_sizes=(training_size,),
        seeds=seeds,
        general_set="test",
        blindspot_set="challenge",
        resources={
            "base_model": Resources(num_workers=2),
            "generator": Resources(num_workers=2),
            "task_model": Resources(in_process=True),
        },
    )

"""One text, two labels: does training on generated film reviews teach that a negated sentence is negative?

    blindsweep run docs/examples/sst2_negation.py -p data=FOLDER

FOLDER has SST-2's train.tsv, dev.tsv and test.tsv, with the columns sentence and label (1 is positive).
"""

from dataclasses import replace

import numpy as np

from sweep import (
    EvaluationConfig,
    Experiment,
    Field,
    FinetuneConfig,
    GenerationConfig,
    GeneratorConfig,
    Heuristic,
    Resources,
    ScratchModelConfig,
    Table,
    TableSources,
    Task,
    tokens,
)

SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "positive"),
    fields=(Field("sentence", "Sentence:"),),
    classifier_prompt="Is the sentence negative or positive? Sentence: {sentence} The sentiment of the sentence is",
    generator_prompt="This is an example where the sentiment of the sentence is {label}",
)
NEGATIONS = {"no", "not", "n't", "never", "nothing", "neither", "nor", "without", "hardly"}


def is_negated(sentences):
    return np.array([not NEGATIONS.isdisjoint(tokens(sentence)) for sentence in sentences], dtype=bool)


NEGATED = Heuristic("negated", is_negated, predicts="negative", description="The sentence has a negation.")


def sst2_negation(data: str = "data/sst2", seeds: tuple[int, ...] = (0, 1, 2), training_size: int = 480) -> Experiment:
    """A tiny model on SST-2, on two CPU cores: the blindspot is positive sentences with a negation."""
    recipe = FinetuneConfig(method="full", learning_rate=2e-3, epochs=4, batch_size=32, dtype="float32", zero_stage=0)
    language = FinetuneConfig(method="full", learning_rate=3e-3, epochs=1, batch_size=64, dtype="float32", zero_stage=0)
    return Experiment(
        name="sst2_negation",
        title="Negation in SST-2, a tiny Llama",
        task=SENTIMENT,
        sources=TableSources(
            train=Table("train.tsv", labels={"0": "negative", "1": "positive"}),
            general=Table("test.tsv", labels={"0": "negative", "1": "positive"}, test_set="sst2_test"),
        ),
        sources_folder=data,
        base_model=ScratchModelConfig(
            hidden_size=96, num_layers=3, num_heads=3, num_kv_heads=3, pretraining=language, pretraining_examples=20_000
        ),
        generator=GeneratorConfig(finetune=replace(language, epochs=0.25)),
        generation=GenerationConfig(num_per_label=(3_000, 1_500), shard_size=512, max_new_tokens=64, dtype="float32"),
        task_model=recipe,
        evaluation=EvaluationConfig(sets=("sst2_test",), dtype="float32", heuristics=(NEGATED,)),
        starting_sizes=(0,),
        training_sizes=(training_size,),
        seeds=seeds,
        heuristic=NEGATED,
        general_set="sst2_test",
        blindspot_set="sst2_test",
        resources={
            "base_model": Resources(num_workers=2),
            "generator": Resources(num_workers=2),
            "task_model": Resources(in_process=True),
        },
    )

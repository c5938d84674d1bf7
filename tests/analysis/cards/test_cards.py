"""Cards are read by the hub's own reader, and say what is known of licences and no more."""

import dataclasses
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard

from analysis.cards.card import Result, check_card, fenced, model_card_text, plain, size_category
from analysis.cards.dataset_cards import AuditWords, Split, pool_card, training_sets_card
from analysis.cards.licences import HANS, LLAMA_2, MULTINLI, UNKNOWN_LICENCE, given_licence, licence_of_base, sources_of
from analysis.cards.lineage import Base, Lineage, base_lines, model_licence, restrictions
from analysis.cards.model_cards import generator_card, task_model_card
from pipelines.errors import UserError
from pipelines.export.exported import BESIDE, Exported
from pipelines.tasks.nli import NLI
from sweep.graph.records import Record

PLACE = {"starting_size": 5_000, "kind": "biased_synthetic", "size": 1_800, "seed": 3}
MODEL = Record("task_model", "start5000-biased_synthetic-1800-seed3", "ab" * 32, {"config": {}}, coordinates=PLACE)
POOL = Record("synthetic_pool", "pool", "cd" * 32, {"config": {"temperature": 0.7}})
GENERATOR = Record("generator", "generator", "ef" * 32, {"config": {}})
LLAMA = Base("meta-llama/Llama-2-7b-hf", "1" * 40, LLAMA_2, quantized="nf4")
PAPERS = Lineage((MODEL,), (LLAMA,), (MULTINLI, HANS), "en")
WHOLE = Exported("whole", "LlamaForSequenceClassification", "</s>", 2, "last")
RESULTS = (
    Result("mnli_matched", "MultiNLI matched", "all", 3, 0.8125, 7_975, 9_815, MULTINLI.hub_name, "validation_matched"),
    Result("hans", "HANS", "lexical_overlap/non-entailment", 2, 0.05, 250, 5_000, HANS.hub_name, "validation"),
)


def test_a_task_models_card_is_read_back_with_its_results_base_and_data() -> None:
    text = task_model_card(PAPERS, NLI, WHOLE, RESULTS)
    check_card(text, "model")
    data = ModelCard(text).data
    assert (data.license, data.language, data.base_model) == ("llama2", "en", ["meta-llama/Llama-2-7b-hf"])
    # What it is tested on is no data that it was trained on.
    assert data.datasets == ["nyu-mll/multi_nli"] and data.pipeline_tag == "text-classification"
    found = [(each.dataset_type, each.metric_name, each.metric_value) for each in data.eval_results or ()]
    assert found == [
        ("nyu-mll/multi_nli", "accuracy (3 labels)", 0.8125),
        ("jhu-cogsci/hans", "accuracy on lexical_overlap/non-entailment (2 labels)", 0.05),
    ]
    assert NLI.classifier_prompt in text and "250 of 5,000" in text and "4-bit form (nf4)." in text
    (line,) = base_lines([dataclasses.replace(LLAMA, quantized="fp8")])
    assert "8-bit form (fp8). What meets them was cast to 8 bits as well" in line
    assert "finetuned on 1,800 examples of the kind *biased synthetic*" in text
    assert "finetuned on 5,000 original examples. Seed 3" in text


def test_licences_that_bind_are_said_and_a_users_word_does_not_undo_them() -> None:
    assert model_licence(PAPERS, "mit") == "llama2"
    text = task_model_card(PAPERS, NLI, WHOLE, (), licence="mit")
    assert ModelCard(text).data.license == "llama2"
    assert "may be passed on only with a copy of the agreement" in text and "improve another large language model" in text
    assert "CC BY-SA 3.0" in text and "| HANS |" not in text
    assert restrictions(PAPERS) == [
        "meta-llama/Llama-2-7b-hf: Llama 2 Community License",
        "MultiNLI 1.0: mixed: OANC, CC BY 3.0, CC BY-SA 3.0, public domain, by genre",
    ]


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    (own,) = sources_of({"type": "TableSources"}, {})
    lineage = Lineage((POOL,), (Base(),), (own,))
    text = pool_card(lineage, NLI, split(), AuditWords(), rejects={})
    data = DatasetCard(text).data
    assert (data.license, data.language) == ("unknown", None)
    assert "its name on the hub, if it has one, is unknown" in text
    assert "| the study's own data | unknown | unknown |" in text and "It was not audited." in text
    assert restrictions(lineage) == [
        "the base model, from a folder: its licence is unknown",
        "the study's own data: its licence is unknown",
    ]
    assert licence_of_base("org/of-nobody") == UNKNOWN_LICENCE
    assert licence_of_base("meta-llama/Llama-2-13b-hf") == LLAMA_2
    assert licence_of_base("org/of-nobody", "apache-2.0").hub_id == "apache-2.0"


def test_a_licence_the_hub_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--license apache2: the hub has no such identifier; near: apache-2.0"):
        given_licence("apache2", "--license")
    assert given_licence("llama2", "--license") == LLAMA_2


def split(num: int = 40) -> Split:
    return Split("default", "data/train-*.parquet", {"entailment": num, "neutral": 2}, {"id": "string", "premise": "string"})


def test_a_pools_card_has_counts_rejects_prompt_and_the_audits_answer() -> None:
    audit = AuditWords(
        "Fit | to use.", (("act", "copies 4 rows", "Drop them."), ("fine", "varies", "")), against="the original data"
    )
    lineage = Lineage((POOL, GENERATOR), (LLAMA,), (MULTINLI,), "en")
    text = pool_card(lineage, NLI, split(), audit, rejects={"no_hypothesis": 1_200}, licence="cc-by-4.0")
    check_card(text, "dataset")
    data = DatasetCard(text).data
    assert (data.license, data.language, data.size_categories) == ("cc-by-4.0", ["en"], ["n<1K"])
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]  # fmt: skip
    assert "| default | 40 | 2 | 0 | 42 |" in text and "| no_hypothesis | 1,200 |" in text
    assert "> Fit \\| to use." in text and "| act | copies 4 rows | Drop them. |" in text and "- temperature: 0.7" in text
    refused = pool_card(lineage, NLI, split(), AuditWords(refused="it has one row"), rejects={})
    assert "It was not audited: it has one row" in refused


@pytest.mark.parametrize(
    ("config", "said", "is_synthetic"),
    [
        ({"type": "OwnPoolConfig"}, "how it was made is unknown", False),
        ({"type": "GenerationConfig", "prompting": {}}, "a model that was prompted, and not finetuned", True),
        ({"type": "GenerationConfig", "endpoint": {"model": "some-model"}}, "Written by some-model, at an endpoint", True),
    ],
)
def test_a_pool_that_no_finetuned_generator_wrote_says_whose_it_is(
    config: dict[str, Any], said: str, is_synthetic: bool
) -> None:
    lineage = Lineage((dataclasses.replace(POOL, payload={"config": config}),))
    text = pool_card(lineage, NLI, split(), AuditWords(), rejects={})
    assert said in text and ("synthetic" in DatasetCard(text).data.tags) == is_synthetic
    assert (NLI.prompted("entailment") in text, "nobody checked them" in text) == (False, is_synthetic)


def test_marks_are_the_first_thing_said() -> None:
    marked = dataclasses.replace(PAPERS, records=(dataclasses.replace(MODEL, marks=("rehearsal",)),))
    text = task_model_card(marked, NLI, WHOLE, RESULTS)
    assert text.split("\n\n")[2].startswith("> **rehearsal.** It is not what its name promises")
    assert "not-the-real-thing" in (ModelCard(text).data.tags or ())
    of_data = dataclasses.replace(PAPERS, records=(dataclasses.replace(MODEL, marks=("4 of 90 texts are in the pool",)),))
    text = task_model_card(of_data, NLI, WHOLE, RESULTS)
    assert text.split("\n\n")[2] == "> **4 of 90 texts are in the pool.**"
    assert "not-the-real-thing" not in (ModelCard(text).data.tags or ())


def test_training_sets_are_configurations_of_one_dataset() -> None:
    sets = [dataclasses.replace(split(n), config=f"set-{n}", path=f"set-{n}/train-*.parquet", lineage=PAPERS) for n in (10, 20)]
    text = training_sets_card("tiny", PAPERS, NLI, sets)
    check_card(text, "dataset")
    assert [each["config_name"] for each in DatasetCard(text).data["configs"]] == ["set-10", "set-20"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (WHOLE, "AutoModelForSequenceClassification.from_pretrained"),
        (dataclasses.replace(WHOLE, form="adapter", base=BESIDE), 'subfolder="base"'),
        (dataclasses.replace(WHOLE, form="adapter", base="org/base"), "num_labels=3,"),
        (dataclasses.replace(WHOLE, form="body"), "last_hidden_state[:, -1] @ head.T"),
        (dataclasses.replace(WHOLE, form="body", reads="first"), "last_hidden_state[:, 0] @ head.T"),
        (dataclasses.replace(WHOLE, reads="first"), 'tokenizer(example["premise"], example["hypothesis"]'),
    ],
)
def test_the_code_that_loads_a_model_is_python_and_of_its_form(files: Exported, code: str) -> None:
    text = task_model_card(PAPERS, NLI, files, RESULTS, here="my-model")
    block = text.partition("```python\n")[2].partition("```")[0]
    compile(block, "card", "exec")
    assert code in block


def test_a_generators_card_has_the_prompt_with_the_label_first() -> None:
    text = generator_card(dataclasses.replace(PAPERS, records=(GENERATOR,)), NLI, end_marker=" – The end.", has_weights=False)
    check_card(text, "model")
    assert NLI.prompted("entailment") in text and "The weights are not in this folder" in text and "`– The end.`" in text
    assert ModelCard(text).data.pipeline_tag == "text-generation"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"license": "my-own"}, r"'my-own', which is no identifier of the hub's"),
        ({"language": "English"}, "'English', which is no ISO 639 code"),
        ({"base_model": "/home/me/llama"}, "not what the hub takes"),
        ({"datasets": ["a/b/c"]}, "not what the hub takes"),
    ],
)
def test_metadata_that_the_hub_does_not_take_is_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_card(model_card_text(metadata, (), "model", "text"), "model")


def test_text_of_others_stays_text() -> None:
    assert plain("a | b\nc") == "a \\| b c"
    assert fenced("```\nx").splitlines()[0] == "````"
    assert [size_category(n) for n in (999, 1_000, 1_819_813)] == ["n<1K", "1K<n<10K", "1M<n<10M"]

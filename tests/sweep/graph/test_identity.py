"""Fingerprints are stable over releases: golden values are sha256sum's, not this code's."""

import dataclasses
import math
from dataclasses import dataclass

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.identity import identity_fields, runtime, runtime_fields
from pipelines.tasks.heuristics import HEURISTICS
from sweep.graph import identity


@dataclass(frozen=True)
class Config:
    rate: float = 0.5
    names: tuple[str, ...] = ("é", "b")
    path: str = runtime("/anywhere")


def test_fingerprint_is_sha256_of_the_canonical_text() -> None:
    payload = identity.payload("stage", 3, Config(), {"z": "22", "a": "11"})
    # printf '%s' TEXT | sha256sum, with TEXT as here:
    text = '{"config":{"names":["é","b"],"rate":0.5,"type":"Config"},"inputs":{"a":"11","z":"22"},"stage":"stage","version":3}'
    assert identity.canonical_json(payload) == text
    assert identity.fingerprint(payload) == "5227fd0a1720c3342639a5a388886466eb25a86fccfc71ad618d82d4db71873f"


def test_runtime_fields_and_input_order_do_not_count() -> None:
    one = identity.payload("stage", 1, Config(path="/here"), {"a": "1", "b": "2"})
    other = identity.payload("stage", 1, Config(path="/there"), {"b": "2", "a": "1"})
    assert identity.fingerprint(one) == identity.fingerprint(other)


@pytest.mark.parametrize(
    "changed",
    [
        identity.payload("other", 1, Config(), {"a": "1"}),
        identity.payload("stage", 2, Config(), {"a": "1"}),
        identity.payload("stage", 1, Config(rate=0.25), {"a": "1"}),
        identity.payload("stage", 1, Config(), {"a": "2"}),
        identity.payload("stage", 1, Config(), {"b": "1"}),
    ],
)
def test_everything_else_counts(changed: dict) -> None:
    assert identity.fingerprint(changed) != identity.fingerprint(identity.payload("stage", 1, Config(), {"a": "1"}))


def test_values_without_identity_are_refused() -> None:
    with pytest.raises(UserError, match="names"):
        identity.payload("stage", 1, Config(names={"a"}), {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rate"):
        identity.payload("stage", 1, Config(rate=math.nan), {})


def test_fields_that_were_added_later_leave_older_fingerprints_as_they_were() -> None:
    biased = TrainingSetConfig("biased_synthetic", 300, seed=0)
    # printf '%s' TEXT | sha256sum, with TEXT as here, which is the payload from before the bias could be set:
    text = (
        '{"config":{"disjoint_from_starting":false,"kind":"biased_synthetic","remainder":"first_labels","seed":0,"size":300,'
        '"type":"TrainingSetConfig"},"inputs":{"source":"11"},"stage":"training_set","version":1}'
    )
    payload = identity.payload("training_set", 1, biased, {"source": "11"})
    assert identity.canonical_json(payload) == text
    assert identity.fingerprint(payload) == "b33a966c76a041b39f6f332a303cf5e905777678e5125d7e4c3aae46df22368a"
    changed = dataclasses.replace(biased, bias=0.5, heuristic=HEURISTICS["subsequence"])
    config = identity.payload("training_set", 1, changed, {})["config"]
    assert config["bias"] == 0.5 and "heuristic_share" not in config
    assert config["heuristic"] == {"name": "subsequence", "predicts": "entailment", "version": 1}


# Every field of every config, classed by hand. A new field fails here until it is added: put it under
# identity if it can change a result in any way, and only otherwise make it runtime().
CLASSES = {
    "pipelines.finetune.base_model.ScratchModelConfig": (
        "hidden_size num_layers num_heads num_kv_heads intermediate_size vocabulary_size max_length "
        "seed pretraining pretraining_examples task",
        "",
    ),
    "pipelines.finetune.base_model.PretrainedModelConfig": (
        "files revision dtype quantization adds_bos",
        "path model_type",
    ),
    "pipelines.finetune.base_model.RandomModelConfig": (
        "files seed dtype",
        "path model_type",
    ),
    "pipelines.finetune.base_model.FileHash": (
        "name sha256",
        "",
    ),
    "pipelines.finetune.recipe.FinetuneConfig": (
        "method learning_rate epochs batch_size schedule warmup_ratio weight_decay max_grad_norm "
        "dtype lora_rank lora_alpha lora_dropout lora_targets train_embeddings share_prefix "
        "group_by_length max_length rehearse_steps cooldown_ratio head_frozen_share",
        "zero_stage gradient_checkpointing tokens_per_microbatch compile_from_steps log_every checkpoint_every",
    ),
    "pipelines.finetune.generator.GeneratorConfig": (
        "finetune seed end_marker task",
        "",
    ),
    "pipelines.generate.config.GenerationConfig": (
        "num_per_label exact shard_size seed temperature top_p top_k max_new_tokens end_marker dtype quantization stand_ins "
        "stop_early task prompting endpoint",
        "min_yield max_num_seqs shards_in_flight enforce_eager engine_process attention_backend gpu_memory_utilization "
        "cpu_kv_cache_gib progress_bars generator_id examples",
    ),
    "pipelines.generate.prompting.Prompting": (
        "instruction shots shots_seed chat",
        "",
    ),
    "pipelines.generate.prompting.Endpoint": (
        "model",
        "url price_per_million_input_tokens price_per_million_output_tokens concurrency api_key_env most_attempts timeout_s "
        "backoff_s",
    ),
    "pipelines.data.own_pool.OwnPoolConfig": (
        "table task",
        "",
    ),
    "pipelines.finetune.task_model.UntrainedConfig": (
        "seed task head",
        "",
    ),
    "pipelines.finetune.task_model.TaskModelConfig": (
        "finetune seed nested_sizes task",
        "",
    ),
    "pipelines.data.training_set.TrainingSetConfig": (
        "kind size seed remainder disjoint_from_starting heuristic bias heuristic_share nested_sizes task mix heuristics",
        "",
    ),
    "pipelines.evaluate.evaluation.EvaluationConfig": (
        "sets dtype merge_adapter rehearse_examples heuristics task test_sets",
        "tokens_per_batch compile_from_examples",
    ),
    "pipelines.evaluate.judge.JudgementConfig": (
        "sets dtype merge_adapter rehearse_examples heuristics task test_sets",
        "tokens_per_batch compile_from_examples",
    ),
    "pipelines.data.sources.NLISourcesConfig": (
        "files dev_rows_per_label hans_rows drop_blank_rows max_characters challenges",
        "",
    ),
    "pipelines.data.table_sources.TableSources": ("train general blindspots task dev_rows_per_label", ""),
    "pipelines.data.table_sources.Table": ("columns labels content file", "path test_set"),
    "sweep.study.experiment.Experiment": (
        "task_model_base name title sources base_model generator generation task_model evaluation starting_sizes "
        "training_sizes seeds general_set blindspot_set kinds cell remainder disjoint_from_starting "
        "starting_set_seed trajectories rehearsal heuristic biases heuristic_share generators judge task synthetic "
        "generations accumulate training head arms",
        "sources_folder resources replicates_paper claims parameters",
    ),
    "pipelines.data.template_corpus.TemplateCorpusConfig": (
        "seed num_train num_dev num_test num_probe_per_group overlap_share overlap_entailment_rate "
        "overlap_neutral_share modifier_rate",
        "",
    ),
}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_config_field_is_classed(name: str) -> None:
    module, _, type_name = name.rpartition(".")
    config_type = getattr(__import__(module, fromlist=[type_name]), type_name)
    assert dataclasses.is_dataclass(config_type)
    wanted_identity, wanted_runtime = CLASSES[name]
    assert identity_fields(config_type) == set(wanted_identity.split())
    assert runtime_fields(config_type) == set(wanted_runtime.split())

from dataclasses import replace
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.identity import identity_fields, runtime_fields
from pipelines.tasks.prompts import HYPHENS
from tests.pipelines.tiny_generator import SENTIMENT


def test_every_field_is_identity_or_runtime_on_purpose() -> None:
    assert identity_fields(GenerationConfig) == {
        "num_per_label", "exact", "shard_size", "seed", "temperature", "top_p", "top_k", "max_new_tokens",
        "end_marker", "dtype", "stand_ins", "stop_early", "task", "prompting", "endpoint",
        "quantization",
    }  # fmt: skip
    assert runtime_fields(GenerationConfig) == {
        "min_yield", "max_num_seqs", "shards_in_flight", "enforce_eager", "engine_process", "attention_backend",
        "gpu_memory_utilization", "cpu_kv_cache_gib", "progress_bars", "generator_id", "examples",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_per_label", 0), ("num_per_label", (1, 0)), ("num_per_label", ()), ("shard_size", 0), ("temperature", 0.0),
        ("top_p", 0.0), ("top_k", 0), ("max_new_tokens", 0), ("end_marker", "END"), ("dtype", "int8"),
        ("min_yield", 0.0), ("gpu_memory_utilization", 1.5), ("max_num_seqs", -1), ("shards_in_flight", -1),
        ("cpu_kv_cache_gib", 0), ("attention_backend", "fastest"),
        ("quantization", "nf4"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{field}="):
        replace(GenerationConfig(), **{field: value})


def test_engines_of_ours_write_in_fp8_from_half_precision() -> None:
    with pytest.raises(UserError, match=r"^quantization='fp8' with dtype='float32': it is for an engine of ours"):
        GenerationConfig(quantization="fp8", dtype="float32")


def test_there_is_one_number_or_one_a_label_of_the_task() -> None:
    assert GenerationConfig(5).num_by_label == {"entailment": 5, "neutral": 5, "contradiction": 5}
    assert GenerationConfig((1, 2), task=SENTIMENT).num_by_label == {"not bad": 1, "bad": 2}
    with pytest.raises(UserError, match=r"^num_per_label=\(1, 2\): give one number, or 3 of them for entailment, neutral"):
        _ = GenerationConfig((1, 2)).num_by_label


def test_a_marker_that_begins_as_texts_go_on_cannot_stop_early() -> None:
    with pytest.raises(UserError, match=r"^stop_early=True with end_marker=' -- This"):
        GenerationConfig(stop_early=True, end_marker=HYPHENS)
    config = GenerationConfig(stop_early=True)
    assert config.completed(". Premise: a Hypothesis: b –") == f". Premise: a Hypothesis: b{config.end_marker}"
    assert config.completed(". Premise: a Hypothesis: b") == ". Premise: a Hypothesis: b"

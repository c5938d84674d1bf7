"""vLLM's settings for an engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.generate import options
from pipelines.generate.config import GenerationConfig
from pipelines.generate.options import engine_options, kv_cache_bytes, reads_in_place, shards_in_flight
from pipelines.resources import Resources

CONFIG = GenerationConfig(max_new_tokens=64, dtype="float32")
ONE = Resources()


def test_the_engine_holds_a_prompt_and_its_text_but_never_more_than_the_model(models: Path) -> None:
    model = str(models / "trained" / "model")
    assert engine_options(CONFIG, model, ONE, prompt_lengths=[20])["max_model_len"] == 84
    assert engine_options(GenerationConfig(), model, ONE, prompt_lengths=[20])["max_model_len"] == 128


def test_engines_share_a_gpu_by_their_fractions(models: Path) -> None:
    model = str(models / "trained" / "model")
    half = engine_options(CONFIG, model, Resources(gpus_per_worker=0.5), prompt_lengths=[20])
    assert half["gpu_memory_utilization"] == pytest.approx(0.45)
    assert "kv_cache_memory_bytes" not in half
    shared = engine_options(CONFIG, model, Resources(gpus_per_worker=0.5), prompt_lengths=[20], gpu_bytes=8 * 2**30)
    assert shared["kv_cache_memory_bytes"] > 0
    whole = engine_options(CONFIG, model, Resources(gpus_per_worker=1), prompt_lengths=[20], gpu_bytes=8 * 2**30)
    assert "kv_cache_memory_bytes" not in whole
    assert "gpu_memory_utilization" not in engine_options(CONFIG, model, ONE, prompt_lengths=[20])


def test_an_engines_cache_is_what_it_needs_or_what_its_share_leaves(tmp_path: Path) -> None:
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512, "num_hidden_layers": 10}
    (tmp_path / "config.json").write_text(json.dumps(shape))

    # 2 heads of 64 numbers, keys and values of 2 bytes, 10 layers: 5,120 bytes a token.
    def cache(num_seqs: int, context: int, gib: float) -> int:
        return kv_cache_bytes(str(tmp_path), num_seqs=num_seqs, context=context, number_bytes=2, gpu_bytes=gib * 2**30)

    assert cache(4, 100, gib=3) == 4 * 100 * 5_120
    assert cache(4_096, 1_024, gib=7) == 5 * 2**30
    with pytest.raises(UserError, match=r"share of the GPU is 2\.1 GiB"):
        cache(4_096, 1_024, gib=2.1)


def test_weights_are_read_in_place_only_where_vllm_keeps_them_as_it_reads_them(models: Path, tmp_path: Path) -> None:
    untied = {"model": str(models / "trained" / "model")}
    settings = json.loads((models / "trained" / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    tied = {"model": str(tmp_path)}
    assert reads_in_place(untied, on_gpu=False) and reads_in_place(tied, on_gpu=True)
    assert not reads_in_place(tied, on_gpu=False) and not reads_in_place({**untied, "quantization": "fp8"}, on_gpu=True)


@pytest.mark.parametrize(
    ("capability", "why_not"),
    [((9, 0), ""), ((8, 9), ""), ((8, 6), r"the GPU here has compute capability 8\.6"), (None, "there is none here")],
)
def test_a_generator_writes_in_fp8_on_gpus_that_compute_in_it(
    capability: tuple[int, int] | None, why_not: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "get_device_capability", lambda *_: capability)
    in_fp8 = replace(CONFIG, dtype="bfloat16", quantization="fp8")
    arguments = (str(models / "trained" / "model"), Resources(gpus_per_worker=1), [20])
    if why_not:
        with pytest.raises(UserError, match=rf"compute capability 8\.9 or above .*{why_not}.*-p generation_precision=bfloat16"):
            engine_options(in_fp8, *arguments)
        return
    options = engine_options(in_fp8, *arguments)
    assert options["quantization"] == "fp8_per_tensor"
    without = engine_options(replace(in_fp8, quantization="none"), *arguments)
    assert {name: value for name, value in options.items() if name != "quantization"} == without


def test_a_cpu_writes_in_no_fp8(models: Path) -> None:
    with pytest.raises(UserError, match=r"the generator writes in fp8, .*there is none here: take such a GPU"):
        engine_options(replace(CONFIG, dtype="bfloat16", quantization="fp8"), str(models / "trained" / "model"), ONE, [20])


def test_graphs_are_captured_up_to_the_whole_batch(models: Path) -> None:
    config = replace(CONFIG, max_num_seqs=200, enforce_eager=False)
    found = engine_options(config, str(models / "trained" / "model"), Resources(gpus_per_worker=1), prompt_lengths=[20])
    assert found["compilation_config"]["cudagraph_capture_sizes"] == [1, 2, 4, 8, 16, 32, 64, 128, 192, 200]


def test_a_small_model_is_not_compiled_where_all_steps_are_alike(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, gpu = str(models / "trained" / "model"), Resources(gpus_per_worker=1)
    compiled = engine_options(CONFIG, model, gpu, prompt_lengths=[20])["compilation_config"]
    assert "mode" not in compiled, "vLLM's own kernels take steps of several tokens a text"
    monkeypatch.setattr(options, "attention_options", lambda *_: {"attention_config": {"backend": "CUSTOM"}})
    assert engine_options(CONFIG, model, gpu, prompt_lengths=[20])["compilation_config"] == {
        **compiled, "mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"
    }  # fmt: skip
    monkeypatch.setattr(options, "COMPILED_FROM_BYTES", 1)
    assert engine_options(CONFIG, model, gpu, prompt_lengths=[20])["compilation_config"] == compiled


@pytest.mark.parametrize(
    ("shard_size", "num_seqs", "expected"),
    [(1_024, 1_024, 2), (4_096, 1_024, 2), (256, 1_024, 8), (96, 512, 11)],
)
def test_two_batches_of_rows_are_in_an_engine(shard_size: int, num_seqs: int, expected: int) -> None:
    config = GenerationConfig(shard_size=shard_size, max_num_seqs=num_seqs)
    assert shards_in_flight(config, on_gpu=True) == expected
    assert shards_in_flight(replace(config, shards_in_flight=5), on_gpu=True) == 5

"""Which models decode with our kernel; that engines run the same without it and write the same with it."""

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.decode_attention import BACKEND, attention_options, register, token_by_token, unavailable, unsuited
from pipelines.generate.options import engine_environment, engine_options
from pipelines.resources import Resources

ROOT = Path(__file__).parents[3]
# Facts of published config.json files.
LLAMA_2_7B = {"model_type": "llama", "hidden_size": 4_096, "num_attention_heads": 32, "num_key_value_heads": 32}
QWEN_1_5_7B = {
    "model_type": "qwen2", "hidden_size": 4_096, "num_attention_heads": 32, "num_key_value_heads": 32,
    "sliding_window": 32_768, "use_sliding_window": False,
}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4_096, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4_096,
}  # fmt: skip
QWEN_2_1_5B = {"model_type": "qwen2", "hidden_size": 1_536, "num_attention_heads": 12, "num_key_value_heads": 2}
SMOLLM2_135M = {"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}

without_triton = pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is installed")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "settings",
    [
        LLAMA_2_7B,
        QWEN_1_5_7B,
        # Llama 1 came before KV heads were shared.
        {"model_type": "llama", "hidden_size": 4_096, "num_attention_heads": 32},
        {**LLAMA_2_7B, "num_key_value_heads": 16},
        SMOLLM2_135M,
        {**LLAMA_2_7B, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64},
    ],
)
def test_models_with_few_query_heads_to_a_kv_head_decode_with_our_kernel(settings: dict[str, Any], dtype: str) -> None:
    assert unsuited(settings, dtype) is None


@pytest.mark.parametrize(
    ("settings", "dtype", "reason"),
    [
        (LLAMA_2_7B, "float32", "float32"),
        (MISTRAL_7B, "bfloat16", "window of 4096"),
        ({**QWEN_1_5_7B, "use_sliding_window": True}, "bfloat16", "window of 32768"),
        ({**MISTRAL_7B, "sliding_window": None}, "bfloat16", "32 query heads share 8 KV heads"),
        (QWEN_2_1_5B, "bfloat16", "12 query heads share 2 KV heads"),
        ({**LLAMA_2_7B, "num_attention_heads": 40, "num_key_value_heads": 40}, "bfloat16", "heads have 102 numbers"),
        ({**LLAMA_2_7B, "model_type": "gemma2", "attn_logit_softcapping": 50.0}, "bfloat16", "'gemma2'"),
        ({**LLAMA_2_7B, "model_type": "deepseek_v3", "kv_lora_rank": 512}, "bfloat16", "'deepseek_v3'"),
        ({}, "bfloat16", "None"),
    ],
)
def test_every_other_model_is_left_to_vllm_with_the_reason(settings: dict[str, Any], dtype: str, reason: str) -> None:
    assert reason in (unsuited(settings, dtype) or "")


def save_config(folder: Path, settings: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


@without_triton
def test_an_engine_goes_on_without_our_kernel_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = save_config(tmp_path, LLAMA_2_7B)
    own = GenerationConfig(attention_backend="vllm")
    on_gpu = Resources(gpus_per_worker=1)
    with caplog.at_level(logging.INFO, "pipelines"):
        assert engine_options(GenerationConfig(), model, on_gpu, prompt_lengths=[20]) == engine_options(
            own, model, on_gpu, [20]
        )
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "Decoding with vLLM's own choice of attention: triton is not installed")
    ]


def test_a_model_that_does_not_fit_is_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipelines"):
        assert attention_options(save_config(tmp_path, QWEN_2_1_5B), "bfloat16") == {}
    assert [record.levelname for record in caplog.records] == ["INFO"]


@without_triton
def test_who_insists_on_our_kernel_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="triton is not installed; use 'auto' or 'vllm'"):
        attention_options(save_config(tmp_path, LLAMA_2_7B), "bfloat16", "triton")
    with pytest.raises(UserError, match="sliding window of 4096"):
        attention_options(save_config(tmp_path, MISTRAL_7B), "bfloat16", "triton")


@pytest.mark.parametrize(
    ("prompt_lengths", "block_size"),
    # Llama 2's, and those that SmolLM2's tokenizer makes: without a token of beginning.
    [((18, 16, 16), 15), ((16, 15, 15), 14), ((20,), 19), ((100, 90, 80), 11), ((3, 4, 5), None), ((40, 41, 47), None)],
)
def test_blocks_end_where_prompts_do_or_stay_as_they_are(prompt_lengths: tuple[int, ...], block_size: int | None) -> None:
    expected = {"block_size": block_size, "long_prefill_token_threshold": 1} if block_size else {}
    assert token_by_token(prompt_lengths) == expected


SCHEDULED = """
import json, sys
from vllm import LLM, SamplingParams

options, prompt, num = json.loads(sys.argv[1])
llm = LLM(**options)
scheduler = llm.llm_engine.engine_core.engine_core.scheduler
schedule, steps = scheduler.schedule, []

def recorded(*args, **kwargs):
    output = schedule(*args, **kwargs)
    steps.append(sorted(output.num_scheduled_tokens.values()))
    return output

scheduler.schedule = recorded
params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0, detokenize=False)
texts = []
for several in ([prompt], [prompt] * num):
    steps.clear()
    outputs = llm.generate([{"prompt_token_ids": one} for one in several], params, use_tqdm=False)
    texts.append([list(output.outputs[0].token_ids) for output in outputs])
print("RESULT " + json.dumps([steps, texts]))
"""


@pytest.mark.slow
def test_texts_of_a_prompt_that_was_read_begin_at_once(models: Path) -> None:
    """On the CPU, whose blocks have 32 tokens or a multiple: with a prompt of 33 tokens, all but the last are in one."""
    options = {
        "model": str(models / "trained" / "model"), "dtype": "float32", "max_num_seqs": 8, "max_model_len": 64,
        "enforce_eager": True, "block_size": 32, "long_prefill_token_threshold": 1,
    }  # fmt: skip
    environment = os.environ | engine_environment(GenerationConfig(), Resources())
    command = [sys.executable, "-c", SCHEDULED, json.dumps([options, list(range(3, 36)), 5])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2_000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    steps, (alone, together) = json.loads(line.removeprefix("RESULT "))
    assert [step for step in steps if step] == [[1] * 5] * 4
    assert together == alone * 5


def test_an_engine_on_the_cpu_is_not_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = GenerationConfig(attention_backend="triton")
    with caplog.at_level(logging.INFO, "pipelines"):
        options = engine_options(config, save_config(tmp_path, LLAMA_2_7B), Resources(), prompt_lengths=[20])
    assert not options.keys() & {"attention_config", "worker_extension_cls"}
    assert not caplog.records


def test_the_backend_is_registered_as_often_as_one_likes() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    try:
        register()
        register()
        assert AttentionBackendEnum.CUSTOM.get_path() == BACKEND
        # What is registered is found under this name without Triton, and fails for want of it alone.
        if find_spec("triton") is None:
            with pytest.raises(ModuleNotFoundError, match="triton"):
                AttentionBackendEnum.CUSTOM.get_class()
    finally:
        AttentionBackendEnum.CUSTOM.clear_override()


# --- on a GPU ---

ENGINE = """
import json, os, sys
from vllm import LLM, SamplingParams

def used(worker):
    group = worker.model_runner.attn_groups[0][0]
    return [group.backend.__qualname__, worker.model_runner.vllm_config.compilation_config.cudagraph_mode.name]

if __name__ == "__main__":
    options, prompts, lengths = json.loads(sys.argv[1])
    llm = LLM(**options)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, logprobs=0, detokenize=False) for n in lengths]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    texts = [output.outputs[0] for output in outputs]
    print("RESULT " + json.dumps({
        "used": llm.collective_rpc(used)[0],
        "tokens": [list(text.token_ids) for text in texts],
        "logprobs": [[each[token].logprob for token, each in zip(text.token_ids, text.logprobs)] for text in texts],
    }))
"""


def generate(options: dict[str, Any], prompts: list[list[int]], lengths: list[int], *, engine_process: bool) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(engine_process)),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # A function is sent to the engine's process, by this test only.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    }
    script = Path(options["model"]) / "engine.py"
    script.write_text(ENGINE)
    arguments = [sys.executable, str(script), json.dumps([options, prompts, lengths])]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=280)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert found, done.stdout[-2_000:] + done.stderr[-4_000:]
    return json.loads(found[-1].removeprefix("RESULT "))


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_texts_and_their_probabilities_are_those_of_vllms_own_backend(tmp_path: Path) -> None:
    """Batches that shrink from 48, in graphs and between their sizes, with contexts over many pages and prompts that come in
    while others are decoded; with the engine in its process and in one of its own.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=128, max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(shape).to(torch.float16).save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 512, random.integers(2, 200)).tolist() for _ in range(72)]
    lengths = random.integers(5, 60, len(prompts)).tolist()
    options = {
        "model": str(tmp_path), "dtype": "float16", "max_num_seqs": 48, "max_model_len": 272, "seed": 0,
        "gpu_memory_utilization": 0.3, "skip_tokenizer_init": True,
        "compilation_config": {"cudagraph_capture_sizes": [1, 4, 16, 32, 48]},
    }  # fmt: skip
    assert unavailable() is None
    ours = attention_options(str(tmp_path), "float16", "triton")
    expected = generate(options, prompts, lengths, engine_process=False)
    one_a_step = token_by_token([16, 16, 18])
    for more, engine_process in (({}, False), ({}, True), (one_a_step, False)):
        found = generate({**options, **ours, **more}, prompts, lengths, engine_process=engine_process)
        assert found["used"] == ["DecodeBackend", "FULL_AND_PIECEWISE"]
        num_compared = 0
        for tokens, theirs, logprobs, expected_logprobs in zip(
            found["tokens"], expected["tokens"], found["logprobs"], expected["logprobs"], strict=True
        ):
            # Up to where two tokens were as likely as each other to within rounding; what follows is another text.
            same = next((i for i, (one, other) in enumerate(zip(tokens, theirs, strict=True)) if one != other), len(tokens))
            np.testing.assert_allclose(logprobs[:same], expected_logprobs[:same], atol=0.05)
            num_compared += same
        assert num_compared > 0.8 * sum(lengths)
    assert expected["used"][0] != "DecodeBackend"

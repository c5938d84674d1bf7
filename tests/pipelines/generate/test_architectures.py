"""Generators of every architecture, as they are saved, write with vLLM what transformers computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.adapters.adapters import target_layers
from pipelines.adapters.files import PEFT_PREFIX
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config, save_language_model
from pipelines.finetune.job import FinetuneJob
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.generate.config import GenerationConfig
from pipelines.generate.options import engine_environment
from pipelines.models.architectures import ARCHITECTURES
from pipelines.models.tokenizer import load_tokenizer
from pipelines.resources import Resources

# Heads of 32 numbers: vLLM has kernels for them on a CPU.
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
SHARED = {"num_key_value_heads": 1}
# Windows are shorter than most texts, caps are within the scores, and scales are not those of Llama.
WINDOW = {**SHARED, "sliding_window": 12}
GEMMA = {**SHARED, "head_dim": 32}
UNTIED = {"tie_word_embeddings": False}
OWN = {
    "llama": SHARED,
    "mistral": WINDOW,
    "qwen2": SHARED,
    "qwen3": {**SHARED, "head_dim": 32},
    "gemma": {**GEMMA, **UNTIED},
    # vLLM 0.32 has no output matrix for it but the embeddings.
    "gemma2": {
        **GEMMA, "sliding_window": 12, "query_pre_attn_scalar": 48, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 10.0,
    },
    "gemma3_text": {**GEMMA, **UNTIED, "sliding_window": 12, "query_pre_attn_scalar": 48},
    "granite": {**SHARED, "attention_multiplier": 0.1, "residual_multiplier": 0.3, "logits_scaling": 0.5},
    "olmo": {**SHARED, "clip_qkv": 0.5},
    "olmo2": SHARED,
    "smollm3": SHARED,
    "gpt_neox": {},
    "phi": {},
    "phi3": WINDOW,
    "starcoder2": WINDOW,
}  # fmt: skip
NUM_TOKENS = 32
TOLERANCE = 2e-4
"""Of a logarithm of a probability. In fp32 transformers' own are within 1e-4 of those in fp64."""

SCRIPT = """
import gc, json, sys
from pathlib import Path
from vllm import LLM, SamplingParams
from pipelines.generate.config import GenerationConfig
from pipelines.generate.engine import allocate_by_the_block
from pipelines.generate.options import engine_options
from pipelines.resources import Resources

allocate_by_the_block()
folders, prompts, num_tokens = json.loads(sys.argv[1])
params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, logprobs=20)
config = GenerationConfig(max_new_tokens=num_tokens, max_num_seqs=4, dtype="float32")
for folder in folders:
    options = engine_options(config, folder, Resources(), [len(prompt) for prompt in prompts])
    try:
        engine = LLM(**options, skip_tokenizer_init=True)
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    except Exception as error:
        found = repr(error)
    else:
        texts = [output.outputs[0] for output in outputs]
        found = [
            (list(text.token_ids), [{token: one.logprob for token, one in step.items()} for step in text.logprobs])
            for text in texts
        ]
        del engine
        gc.collect()
    Path(folder, "found.json").write_text(json.dumps(found))
"""


def write_generator(folder: Path, kind: str, base_model: str) -> Path:
    """A random checkpoint, prepared as a base and saved as a generator with an adapter merged; returns its model's folder.

    Weights are large, so that the greatest logit is well above the next.
    """
    tokenizer = load_tokenizer(base_model)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), max_position_embeddings=512, **SIZES, **special, **OWN[kind])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("norm.weight")
            parameter.copy_((parameter if is_norm else 0) + 0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "published")
    tokenizer.save_pretrained(folder / "published")
    prepare_base_model(pretrained_model_config(str(folder / "published"), dtype="float32"), str(folder / "base"))
    targets = ARCHITECTURES[kind].projections
    recipe = FinetuneConfig(dtype="float32", lora_rank=4, lora_alpha=4, lora_targets=targets)
    factors = {
        f"{PEFT_PREFIX}{name}.lora_{letter}.weight": 0.1 * torch.randn(shape)
        for name, layer in target_layers(model, targets).items()
        for letter, shape in (("A", (4, layer.in_features)), ("B", (layer.out_features, 4)))
    }
    job = FinetuneJob("language_modeling", recipe, 0, "", str(folder / "base"), save_language_model)
    save_language_model(folder, factors, job)
    return folder / "model"


def prompts_of(vocabulary_size: int) -> list[list[int]]:
    """From a token to more than a block of the engine's cache, of which two have the beginning in common."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, vocabulary_size, (180,), generator=generator).tolist()
    return [[0], [0, *tokens[:2]], [0, *tokens[3:12]], [0, *tokens[:30]], [0, *tokens[:140]], [0, *tokens[:136], *tokens[150:]]]


@pytest.fixture(scope="module", name="folders")
def _folders(base_model, tmp_path_factory) -> dict[str, Path]:
    """Of each architecture, the folder of a generator and of what vLLM wrote with it, in a process of its own: vLLM changes
    transformers' classes."""
    folders = {kind: write_generator(tmp_path_factory.mktemp(kind), kind, base_model) for kind in OWN}
    prompts = prompts_of(len(load_tokenizer(base_model)))
    environment = os.environ | engine_environment(GenerationConfig(), Resources())
    argument = json.dumps([list(map(str, folders.values())), prompts, NUM_TOKENS])
    done = subprocess.run([sys.executable, "-c", SCRIPT, argument], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    return folders


def test_every_decoder_has_a_generator_here() -> None:
    assert OWN.keys() == {kind for kind, found in ARCHITECTURES.items() if not found.is_encoder}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", OWN)
def test_vllm_writes_the_tokens_that_transformers_finds_likeliest(folders, kind) -> None:
    found = json.loads((folders[kind] / "found.json").read_text())
    assert isinstance(found, list), found
    model = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32, attn_implementation="eager").eval()
    prompts = prompts_of(model.config.vocab_size)
    for prompt, (tokens, logprobs) in zip(prompts, found, strict=True):
        assert len(tokens) == len(logprobs) == NUM_TOKENS
        with torch.inference_mode():
            # No `generate`: it takes a prompt's tokens that are equal to `pad_token_id` for filling and leaves them out.
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        for step, token, row in zip(logprobs, tokens, expected, strict=True):
            theirs = torch.tensor(list(step.values()))
            torch.testing.assert_close(theirs, row[list(map(int, step))], rtol=0, atol=TOLERANCE)
            assert row[token] > row.max() - TOLERANCE
        greatest = expected.topk(2).values
        assert (greatest[:, 0] - greatest[:, 1]).median() > 100 * TOLERANCE

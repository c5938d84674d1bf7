"""The base model that G and T start from: a pretrained checkpoint on disk, or a small Llama made from scratch.

The artifact holds `model/`: config, safetensors and tokenizer, checked and complete, so that every worker of a cluster finds
the same weights in the store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.examples import LABELS, read_examples
from pipelines.finetuning import LLAMA_PROJECTIONS, FinetuneConfig, FinetuneJob, finetune, working_folder
from pipelines.hashing import remembered_sha256
from pipelines.hub import hub_repository, hub_snapshot
from pipelines.identity import UNKNOWN, FileHash, runtime, sha256_of
from pipelines.prompts import END_MARKERS, classifier_prompt, generator_text
from pipelines.quantization import QUANTIZATIONS
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import join

SHARD_BYTES = 4 << 30
"""Of a large model's weights, in one file: several are read, written and hashed side by side."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)


@dataclass(frozen=True)
class ScratchModelConfig:
    """A Llama of the given shape with random weights, then pretrained as a language model on unlabelled pairs.

    Its tokenizer is a byte-level BPE of at most `vocabulary_size` pieces learnt from the training file, so that common words
    are one token each. `pretraining` reads each pair twice over, without its label: what a pretrained model knows of words and
    nothing of the task. None leaves the weights random.
    """

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 384
    vocabulary_size: int = 1_024
    max_length: int = 256
    seed: int = 0
    pretraining: FinetuneConfig | None = None
    pretraining_examples: int | None = None


@dataclass(frozen=True)
class PretrainedModelConfig:
    """A checkpoint on disk, identified by its files' content: a transformers folder with safetensors, or one GGUF file.

    A GGUF file is dequantised and kept as `dtype`. `quantization` is "none", or "nf4" for the base of QLoRA: the decoder's
    projections (not embeddings and heads) are quantised to 4 bits and kept as the `dtype` values that this computes with;
    "nf4_double" quantises the constants, too. It is stated here only, so that everything built on the base model agrees.
    `path` is where the files are and not part of what they are.
    """

    files: tuple[FileHash, ...]
    revision: str = ""
    dtype: str = "bfloat16"
    quantization: str = "none"
    path: str = runtime("")

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise UserError(f"quantization={self.quantization!r} is not one of {', '.join(map(repr, QUANTIZATIONS))}")


def pretrained_model_config(
    path: str,
    *,
    revision: str = "",
    dtype: str = "bfloat16",
    quantization: str = "none",
    may_be_absent: bool = False,
    download: bool = False,
) -> PretrainedModelConfig:
    """Describe the checkpoint at `path`, a folder, a `.gguf` file or `org/name[@revision]` on the hub, by its files' hashes.

    What is on the hub is looked for in its local cache; with `download` it is fetched. Its commit becomes the revision. With
    `may_be_absent`, weights that are not here are described by a file of unknown hash: enough to plan with. Otherwise raises
    UserError if they are missing, or lack config, tokenizer or safetensors (pickled weights are never read).
    """
    root = Path(path).expanduser()
    if hub_repository(path) is not None and (found := hub_snapshot(path, download=download)) is not None:
        root, revision = found[0], f"{path.partition('@')[0]}@{found[1]}"
    if root.suffix == ".gguf" and root.is_file():
        file = FileHash(root.name, remembered_sha256(root))
        return PretrainedModelConfig((file,), revision, dtype, quantization, str(root))
    if not root.is_dir():
        if may_be_absent:
            return PretrainedModelConfig((FileHash("*.safetensors", UNKNOWN),), revision, dtype, quantization, path)
        raise UserError(
            f"no model at {str(root)!r}: give a folder with config.json, *.safetensors and a tokenizer, a .gguf file, or "
            "org/name[@revision] on the Hugging Face hub (HF_TOKEN if it is gated, HF_ENDPOINT for a mirror): -p model=FOLDER"
        )
    weights = sorted(p.name for p in root.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"{str(root)!r} has no *.safetensors; pickled weights are not read: convert them with transformers' "
            "save_pretrained first"
        )
    tokenizers = [name for name in TOKENIZER_FILES if (root / name).exists()]
    for name, present in (
        ("config.json", (root / "config.json").exists()),
        ("a tokenizer", bool(tokenizers)),
    ):
        if not present:
            raise UserError(f"{str(root)!r} has no {name}; a complete transformers checkpoint folder is needed")
    extras = [n for n in ("config.json", "generation_config.json", "model.safetensors.index.json") if (root / n).exists()]
    names = sorted({*weights, *tokenizers, *extras})
    files = tuple(FileHash(n, remembered_sha256(root / n)) for n in names)
    return PretrainedModelConfig(files, revision, dtype, quantization, str(root))


# meta-llama/Llama-2-7b-hf's public config.json.
LLAMA_2_7B: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
)


@dataclass(frozen=True)
class RandomModelConfig:
    """A checkpoint's shape and tokenizer with random weights: to rehearse a study without its weights.

    `files` are the tokenizer's and, if the shape is not Llama-2-7B's, a config.json; `path` is their folder.
    """

    files: tuple[FileHash, ...]
    seed: int = 0
    dtype: str = "bfloat16"
    path: str = runtime("")


def random_model_config(path: str, *, dtype: str = "bfloat16") -> RandomModelConfig:
    """Describe the tokenizer in the folder `path`, and a config.json beside it. Raises UserError without a tokenizer."""
    root = Path(path).expanduser()
    names = [name for name in (*TOKENIZER_FILES, "config.json") if (root / name).is_file()]
    if not set(names) - {"config.json"}:
        raise UserError(f"{str(root)!r} has no tokenizer; random weights need one: give a folder with tokenizer.json or .model")
    return RandomModelConfig(
        tuple(FileHash(name, sha256_of(root / name)) for name in sorted(names)), dtype=dtype, path=str(root)
    )


def prepare_base_model(
    config: ScratchModelConfig | PretrainedModelConfig | RandomModelConfig,
    output: str,
    *,
    sources: str | None = None,
    resources: Resources | None = None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Write `output/model/`. A scratch model learns its tokenizer, and its language, from `sources/train.parquet`.

    Returns the parameter count and, if pretrained here, that training's metrics. Raises UserError if the files at
    `config.path` are no longer those that the config names.
    """
    if isinstance(config, PretrainedModelConfig):
        return _copy_pretrained(config, output)
    if isinstance(config, RandomModelConfig):
        return _write_random(config, output)
    assert sources is not None, "a scratch model is made from a training file"
    train = read_examples(join(sources, "train.parquet"))
    with working_folder(output) as folder:
        num_parameters = _write_scratch(config, train, folder / "model")
    metrics: dict[str, Any] = {"num_parameters": num_parameters}
    if config.pretraining is not None:
        job = FinetuneJob(
            objective="language_modeling",
            config=config.pretraining,
            seed=config.seed,
            examples=join(sources, "train.parquet"),
            base_model=output,
            save=save_language_model,
            text="plain",
            max_examples=config.pretraining_examples,
        )
        metrics |= finetune(job, output, resources=resources or Resources(), report=report)
    return metrics


def _check_files(config: PretrainedModelConfig | RandomModelConfig, folder_of: Path) -> None:
    for file in config.files:
        if not (folder_of / file.name).exists() or sha256_of(folder_of / file.name) != file.sha256:
            raise UserError(
                f"{folder_of / file.name} is missing or not the file that the study was planned with (sha256 "
                f"{file.sha256[:12]}…); restore it, or plan again with the new one"
            )


def _write_random(config: RandomModelConfig, output: str) -> dict[str, Any]:
    """Normal weights with the model's own standard deviation, norms of 1, in safetensors of a few GB each."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    source = Path(config.path)
    _check_files(config, source)
    with working_folder(output) as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        (target / "config.json").write_text(json.dumps(dict(LLAMA_2_7B), indent=1))
        for file in config.files:
            shutil.copyfile(source / file.name, target / file.name)
        shape = AutoConfig.from_pretrained(target)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, config.dtype))
        std = getattr(shape, "initializer_range", 0.02)
        # Parameters are named once each, so that a tied output layer is not written beside the embeddings.
        named = list(model.named_parameters())

        def drawn(position: int) -> torch.Tensor:
            empty = named[position][1]
            tensor = torch.ones(empty.shape, dtype=empty.dtype)
            if empty.ndim < 2:
                return tensor
            # A stream for each tensor, so that all cores draw.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + position)
            return tensor.normal_(0.0, std, generator=generator)

        weight_map: dict[str, str] = {}
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for number, positions in enumerate(_shards([empty.nbytes for _, empty in named]), start=1):
                tensors = threads.map(drawn, positions)
                shard = {named[position][0]: tensor for position, tensor in zip(positions, tensors, strict=True)}
                file_name = f"model-{number:05d}.safetensors"
                save_file(shard, target / file_name, metadata={"format": "pt"})
                weight_map |= dict.fromkeys(shard, file_name)
        index = {"metadata": {}, "weight_map": weight_map}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return {"num_parameters": sum(parameter.numel() for _, parameter in named)}


def _shards(sizes: list[int]) -> list[list[int]]:
    """Positions of tensors of so many bytes, in runs that end when they reach `SHARD_BYTES`."""
    runs: list[list[int]] = [[]]
    used = 0
    for position, size in enumerate(sizes):
        if used >= SHARD_BYTES:
            runs.append([])
            used = 0
        runs[-1].append(position)
        used += size
    return runs


def _copy_pretrained(config: PretrainedModelConfig, output: str) -> dict[str, Any]:
    source = Path(config.path)
    folder_of = source.parent if source.suffix == ".gguf" else source
    _check_files(config, folder_of)
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    from pipelines.finetuning import quiet_libraries
    from pipelines.weights import load_weights

    quiet_libraries()
    with working_folder(output) as folder:
        target = folder / "model"
        target.mkdir(exist_ok=True)
        if source.suffix == ".gguf":
            _convert_gguf(source, target, getattr(torch, config.dtype))
        else:
            for file in config.files:
                (target / file.name).unlink(missing_ok=True)
                # Where a link leads: in the Hugging Face cache every file is one, and links to it would break elsewhere.
                original = (folder_of / file.name).resolve()
                try:
                    os.link(original, target / file.name)
                except OSError:
                    shutil.copyfile(original, target / file.name)
            # Here, before any worker waits for it: each name and shape is looked up, no weight is kept.
            load_weights(AutoModelForCausalLM, target, device_map="meta")
        num_quantized = _quantize(target, config) if config.quantization != "none" else 0
        count = 0
        for path in target.glob("*.safetensors"):
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a dict)
                    size = 1
                    for dim in tensors.get_slice(key).get_shape():
                        size *= dim
                    count += size
    return {"num_parameters": count, "num_quantized_parameters": num_quantized}


def _quantize(model: Path, config: PretrainedModelConfig) -> int:
    """Give the decoder's projections in the folder `model` the values of their NF4 form; returns how many values those are."""
    import torch
    from safetensors.torch import load_file, save_file

    from pipelines.quantization import nf4_round_trip

    count = 0
    for path in sorted(model.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith(tuple(f".{projection}.weight" for projection in LLAMA_PROJECTIONS)):
                rounded = nf4_round_trip(tensor, double_quantization=config.quantization == "nf4_double")
                tensors[name] = rounded.to(getattr(torch, config.dtype))
                count += tensor.numel()
        # Never in place: the file may be a hard link to the user's own.
        fresh = path.with_name(f".{path.name}")
        save_file(tensors, fresh, metadata={"format": "pt"})
        fresh.replace(path)
    if not count:
        raise UserError(
            f"quantization={config.quantization!r}: {config.path} has no projections named {', '.join(LLAMA_PROJECTIONS)}; "
            "quantise a model in Llama's architecture, or none"
        )
    return count


def _convert_gguf(source: Path, target: Path, dtype: Any) -> None:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.weights import load_weights

    # Releases with GgufConfig keep the weights packed unless told otherwise; those without it always dequantise.
    packed = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packed(dequantize=True)} if packed else {}
    model = load_weights(AutoModelForCausalLM, source.parent, gguf_file=source.name, dtype=dtype, **options)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(dtype).save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def _write_scratch(config: ScratchModelConfig, train: pa.Table, target: Path) -> int:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _train_tokenizer(config, train)
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return model.num_parameters()


def _train_tokenizer(config: ScratchModelConfig, train: pa.Table) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    premises, hypotheses = train.column("premise").to_pylist(), train.column("hypothesis").to_pylist()
    texts = [*premises, *hypotheses]
    for label in LABELS:
        for marker in END_MARKERS:
            # Often enough that the template's words become whole pieces.
            texts += [generator_text(label, premises[0], hypotheses[0], marker)] * 50
    texts += [classifier_prompt(premises[0], hypotheses[0])] * 100
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=config.max_length
    )


def save_language_model(folder: Path, tensors: dict[str, Any], job: FinetuneJob) -> None:
    """Write `folder/model/`: the base model with `tensors` in place, adapters merged; plain safetensors and tokenizer.

    On the worker's GPU, if it has one: merging seven billion weights takes a CPU core minutes.
    """
    from transformers import AutoModelForCausalLM

    from pipelines.adapter_files import merge_adapter
    from pipelines.finetuning import load_tokenizer
    from pipelines.storage import fetch
    from pipelines.weights import load_weights

    import torch  # isort: skip

    model = load_weights(AutoModelForCausalLM, join(fetch(job.base_model), "model"), dtype=getattr(torch, job.config.dtype))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scale = job.config.lora_alpha / job.config.lora_rank
    merge_adapter(model, tensors, scale=scale)
    place_tensors(model, {n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder.")})
    tokenizer = load_tokenizer(job.base_model)
    # Beside the old one, then swapped: the base model is what a retry would start from.
    fresh = folder / ".model"
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh, max_shard_size=SHARD_BYTES)
    tokenizer.save_pretrained(fresh)
    shutil.rmtree(folder / "model", ignore_errors=True)
    fresh.rename(folder / "model")


def place_tensors(model: Any, tensors: dict[str, Any]) -> None:
    """Copy each named tensor into the parameter of that name; a name that the model lacks is a defect of ours."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)

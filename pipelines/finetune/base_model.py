"""The base model that G and T start from: a pretrained checkpoint on disk, or a small Llama made from scratch.

The artifact holds `model/`: config, safetensors and tokenizer, checked and complete, so that every worker of a cluster finds
the same weights in the store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.finetune.driver import finetune
from pipelines.finetune.job import FinetuneJob
from pipelines.finetune.recipe import FinetuneConfig, check_one_of
from pipelines.hashing import remembered_sha256
from pipelines.identity import UNKNOWN, FileHash, added, runtime, sha256_of
from pipelines.imports import lasting_imports, without_modules
from pipelines.models.architectures import ARCHITECTURES, architecture, architecture_in
from pipelines.models.checkpoint_files import (
    check_checkpoint,
    check_finite,
    check_heads,
    check_inside,
    check_shape,
    check_texts,
    check_tokenizer,
)
from pipelines.models.gguf_files import check_gguf
from pipelines.models.hub import hub_snapshot
from pipelines.models.process import has_gpu, quiet_libraries
from pipelines.models.quantization import QUANTIZATIONS
from pipelines.models.tokenizer import train_tokenizer
from pipelines.resources import Report, Resources, no_report
from pipelines.storage import join, working_folder
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from pipelines.terminal import with_article

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)

CHAT_TEMPLATE = "chat_template.jinja"
"""A model that is finetuned or classifies meets no chat, so that its description leaves the template out."""


@dataclass(frozen=True)
class ScratchModelConfig:
    """A Llama of the given shape with random weights, then pretrained as a language model on unlabelled examples.

    Its tokenizer is a byte-level BPE of at most `vocabulary_size` pieces learnt from the training file, so that common words
    are one token each. `pretraining` reads each example twice over, without its label: what a pretrained model knows of words
    and nothing of the task. None leaves the weights random.

    Raises :class:`UserError` for a size below 1, and for heads that do not divide the hidden size, or that cannot
    share keys and values evenly.
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
    task: Task = added(NLI)

    def __post_init__(self) -> None:
        check_types(self)
        sizes = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "vocabulary_size", "max_length")
        for name in sizes:
            if (size := getattr(self, name)) < 1:
                raise UserError(f"{name}={size} of a model that is made from scratch; give a whole number from 1 on")
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"hidden_size={self.hidden_size} with num_heads={self.num_heads}: each head has an even share of it; give a "
                f"multiple of {2 * self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} with num_kv_heads={self.num_kv_heads}: as many heads share each key and value; "
                "give a number of heads that num_kv_heads divides"
            )

    @property
    def head_size(self) -> int:
        """The numbers that an attention head computes with."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class PretrainedModelConfig:
    """A checkpoint on disk, identified by its files' content: a transformers folder with safetensors, or one GGUF file.

    A GGUF file is dequantised and kept as `dtype`. `quantization` is "none", or "nf4" for the base of QLoRA: the decoder's
    projections (not embeddings and heads) are quantised to 4 bits and kept as the `dtype` values that this computes with;
    "nf4_double" quantises the constants, too. With "fp8" the projections have 8 bits, and what meets them is cast to 8 bits as
    well wherever the base is computed with (`adapters/fp8.py`); a generator's merged weights are not. It is stated here only,
    so that everything built on the base model agrees.
    `adds_bos`: a GGUF file says that its tokenizer begins texts with the beginning-of-sequence token, and so does the one that
    is kept. `path` is where the files are and not part of what they are, and `model_type` follows from them; it is "" while
    they are not here.
    """

    files: tuple[FileHash, ...]
    revision: str = ""
    dtype: str = "bfloat16"
    quantization: str = "none"
    adds_bos: bool = added(False)
    path: str = runtime("")
    model_type: str = runtime("")

    def __post_init__(self) -> None:
        check_types(self)
        check_one_of("quantization", self.quantization, QUANTIZATIONS)
        known = ARCHITECTURES.get(self.model_type)
        if self.quantization != "none" and known is not None and not known.projections:
            raise UserError(
                f"quantization={self.quantization!r}: {self.path} is {with_article(self.model_type)}, none of whose "
                "projections can have an adapter, without which a quantised base is not trained; leave it out"
            )


def pretrained_model_config(
    path: str,
    *,
    revision: str = "",
    dtype: str = "bfloat16",
    quantization: str = "none",
    may_be_absent: bool = False,
    download: bool = False,
    chat: bool = False,
) -> PretrainedModelConfig:
    """Describe the checkpoint at `path`, a folder, a `.gguf` file or `org/name[@revision]` on the hub, by its files' hashes.

    With `chat` a chat template that is a file of its own is among them. What is on the hub is looked for in its local cache;
    with `download` it is fetched. Its commit becomes the revision. With `may_be_absent`, weights that are not here are
    described by a file of unknown hash: enough to plan with. Otherwise raises UserError if they are missing, lack config,
    tokenizer or safetensors (pickled weights are never read), or are of an architecture that is not known here
    (`models/architectures.py`).
    """
    root = Path(path).expanduser()
    if (snapshot := hub_snapshot(path, download=download)) is not None:
        root, revision = snapshot[0], f"{path.partition('@')[0]}@{snapshot[1]}"
    if root.suffix == ".gguf" and root.is_file():
        header = check_gguf(root)
        file = FileHash(root.name, remembered_sha256(root))
        return PretrainedModelConfig(
            (file,), revision, dtype, quantization, header.adds_bos, path=str(root), model_type=header.model_type
        )
    if not root.is_dir():
        if may_be_absent:
            return PretrainedModelConfig((FileHash("*.safetensors", UNKNOWN),), revision, dtype, quantization, path=path)
        raise UserError(
            f"no model at {str(root)!r}: give a folder with config.json, *.safetensors and a tokenizer, a .gguf file, or "
            "org/name[@revision] on the Hugging Face hub (HF_TOKEN if it is gated, HF_ENDPOINT for a mirror): in a study, "
            "-p model=FOLDER"
        )
    weights = sorted(p.name for p in root.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"{str(root)!r} has no *.safetensors; pickled weights are not read: convert them with transformers' "
            "save_pretrained first"
        )
    tokenizers = [name for name in TOKENIZER_FILES if (root / name).exists()]
    for name, present in (("config.json", (root / "config.json").exists()), ("a tokenizer", bool(tokenizers))):
        if not present:
            raise UserError(f"{str(root)!r} has no {name}; a complete transformers checkpoint folder is needed")
    extras = [n for n in ("config.json", "generation_config.json", "model.safetensors.index.json") if (root / n).exists()]
    extras += [CHAT_TEMPLATE] if chat and (root / CHAT_TEMPLATE).exists() else []
    names = sorted({*weights, *tokenizers, *extras})
    check_inside(root, names)
    files = tuple(FileHash(n, remembered_sha256(root / n)) for n in names)
    model_type = _model_type(root)
    return PretrainedModelConfig(files, revision, dtype, quantization, path=str(root), model_type=model_type)


def _model_type(folder: Path) -> str:
    """The architecture that `folder/config.json` names, "" if it cannot be read.

    Raises UserError if it is not known here, and for heads that its sizes do not allow.
    """
    try:
        settings = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        # What is damaged is refused, with its reason, when the model is prepared.
        return ""
    is_named = isinstance(settings, dict) and isinstance(settings.get("model_type"), str)
    if not is_named:
        return ""
    check_heads(folder / "config.json", settings)
    return architecture(settings, folder / "config.json").model_type


# meta-llama/Llama-2-7b-hf's public config.json.
LLAMA_2_7B: Mapping[str, Any] = {
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


@dataclass(frozen=True)
class RandomModelConfig:
    """A checkpoint's shape and tokenizer with random weights: to rehearse a study without its weights.

    `files` are the tokenizer's and, if the shape is not Llama-2-7B's, a config.json; `path` is their folder.
    """

    files: tuple[FileHash, ...]
    seed: int = 0
    dtype: str = "bfloat16"
    path: str = runtime("")
    model_type: str = runtime("")

    def __post_init__(self) -> None:
        check_types(self)


def random_model_config(path: str, *, dtype: str = "bfloat16") -> RandomModelConfig:
    """Describe the tokenizer in the folder `path`, and a config.json beside it. Raises UserError without a tokenizer."""
    root = Path(path).expanduser()
    names = [name for name in (*TOKENIZER_FILES, "config.json") if (root / name).is_file()]
    if not set(names) - {"config.json"}:
        raise UserError(f"{str(root)!r} has no tokenizer; random weights need one: give a folder with tokenizer.json or .model")
    files = tuple(FileHash(name, sha256_of(root / name)) for name in sorted(names))
    model_type = _model_type(root) if "config.json" in names else str(LLAMA_2_7B["model_type"])
    return RandomModelConfig(files, dtype=dtype, path=str(root), model_type=model_type)


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
    # Another thread of this process may be at it. transformers puts something else into its own place as it is imported, and
    # whoever asks for it meanwhile is given the empty module.
    import_libraries()
    if isinstance(config, PretrainedModelConfig):
        return _copy_pretrained(config, output)
    if isinstance(config, RandomModelConfig):
        return _write_random(config, output)
    assert sources is not None, "a scratch model is made from a training file"
    train = read_examples(join(sources, "train.parquet"), config.task)
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
            task=config.task,
        )
        metrics |= finetune(job, output, resources=resources or Resources(), report=report)
    return metrics


def import_libraries() -> None:
    """Import what models are prepared with, which takes about as long as to prepare a small one."""
    # Which transformers would import for what nobody uses here, a third of the wait for it.
    with lasting_imports(), without_modules("sklearn"):
        import pipelines.models.model_files  # noqa: F401


def _check_files(config: PretrainedModelConfig | RandomModelConfig, folder_of: Path) -> None:
    for file in config.files:
        if not (folder_of / file.name).exists() or sha256_of(folder_of / file.name) != file.sha256:
            raise UserError(
                f"{folder_of / file.name} is missing or not the file that the study was planned with (sha256 "
                f"{file.sha256[:12]}…); restore it, or plan again with the new one"
            )


def _write_random(config: RandomModelConfig, output: str) -> dict[str, Any]:
    """Write the config's shape and tokenizer, with random weights in safetensors of a few GB each."""
    from pipelines.models.model_files import write_random

    source = Path(config.path)
    check_inside(source, [file.name for file in config.files])
    _check_files(config, source)
    with working_folder(output) as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        (target / "config.json").write_text(json.dumps(LLAMA_2_7B, indent=1))
        for file in config.files:
            shutil.copyfile(source / file.name, target / file.name)
        check_texts(target, [path.name for path in target.iterdir()])
        check_shape(target / "config.json")
        check_tokenizer(target, source)
        return {"num_parameters": write_random(target, seed=config.seed, dtype=config.dtype)}


def _copy_pretrained(config: PretrainedModelConfig, output: str) -> dict[str, Any]:
    source = Path(config.path)
    folder_of = source.parent if source.suffix == ".gguf" else source
    names = [file.name for file in config.files]
    if source.suffix != ".gguf":
        check_inside(source, names)
    _check_files(config, folder_of)
    header = check_gguf(source) if source.suffix == ".gguf" else None
    if header is None:
        check_checkpoint(source, names)
        for name in names:
            if name.endswith(".safetensors"):
                check_finite(source / name, source / name)
    import_libraries()
    from pipelines.models.model_files import check_complete, convert_gguf, num_parameters

    quiet_libraries()
    metrics: dict[str, Any] = {}
    with working_folder(output) as folder:
        target = folder / "model"
        target.mkdir(exist_ok=True)
        if header is not None:
            metrics = convert_gguf(source, header, target, dtype=config.dtype)
            for path in target.glob("*.safetensors"):
                check_finite(path, source)
        else:
            for file in config.files:
                (target / file.name).unlink(missing_ok=True)
                # Where a link leads: in the Hugging Face cache every file is one, and links to it would break elsewhere.
                original = (folder_of / file.name).resolve()
                try:
                    os.link(original, target / file.name)
                except OSError:
                    shutil.copyfile(original, target / file.name)
            # Here, before any worker waits for it.
            check_complete(target, source)
        check_tokenizer(target, source)
        num_quantized = _quantize(target, config) if config.quantization != "none" else 0
        return {"num_parameters": num_parameters(target), "num_quantized_parameters": num_quantized, **metrics}


def _quantize(model: Path, config: PretrainedModelConfig) -> int:
    from pipelines.models.model_files import quantize

    projections = architecture_in(model).projections
    count = quantize(model, projections, dtype=config.dtype, quantization=config.quantization)
    assert count, "a whole checkpoint has its architecture's projections"
    return count


def _write_scratch(config: ScratchModelConfig, train: pa.Table, target: Path) -> int:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.models.model_files import save_model

    tokenizer = train_tokenizer(train, vocabulary_size=config.vocabulary_size, max_length=config.max_length, task=config.task)
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
    save_model(model, target)
    tokenizer.save_pretrained(target)
    return model.num_parameters()


def save_language_model(folder: Path, tensors: dict[str, Any], job: FinetuneJob) -> None:
    """Write `folder/model/`: the base model with `tensors` in place, adapters merged; plain safetensors and tokenizer.

    On the worker's GPU, if it has one: merging seven billion weights takes a CPU core minutes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from pipelines.adapters.files import merge_adapter
    from pipelines.models.model_files import SHARD_BYTES, save_model
    from pipelines.models.tokenizer import load_tokenizer
    from pipelines.models.weights import load_weights, place_tensors, weights_of

    model = load_weights(AutoModelForCausalLM, weights_of(None, job.base_model), dtype=getattr(torch, job.config.dtype))
    model.to("cuda" if has_gpu() else "cpu")
    merge_adapter(model, tensors, scale=job.config.lora_alpha / job.config.lora_rank)
    place_tensors(model, {n.removeprefix("decoder."): t for n, t in tensors.items() if n.startswith("decoder.")})
    tokenizer = load_tokenizer(job.base_model)
    # Beside the old one, then swapped: the base model is what a retry would start from.
    fresh = folder / ".model"
    shutil.rmtree(fresh, ignore_errors=True)
    save_model(model, fresh, max_shard_size=SHARD_BYTES)
    tokenizer.save_pretrained(fresh)
    shutil.rmtree(folder / "model", ignore_errors=True)
    fresh.rename(folder / "model")

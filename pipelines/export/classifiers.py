"""A task model's folder for transformers or peft, whose logits are those that are computed here.

    export_classifier("…/task_model/start0-original-60-seed0-0123456789ab", "…/base_model/…", Path("taken"), task=NLI)

A decoder becomes its architecture's ``…ForSequenceClassification``, which reads the class off the last token that is not the
pad token, by a linear `score` without bias: what our head does. An encoder's class has a layer between the first token's state
and its classifier, which ours lacks, so that it is made to change nothing (`_fit_encoder_head`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.adapters.files import ADAPTER_FILE, PEFT_PREFIX, merge_adapter
from pipelines.errors import UserError
from pipelines.export.exported import ADAPTER, BESIDE, BODY, WHOLE, Exported
from pipelines.models.architectures import ARCHITECTURES, architecture_in
from pipelines.models.classifier import HEAD_FILE
from pipelines.models.model_files import SHARD_BYTES, save_model
from pipelines.models.process import quiet_libraries
from pipelines.models.tokenizer import load_tokenizer
from pipelines.models.weights import load_body, merge_saved_adapter, weights_of
from pipelines.storage import fetch
from pipelines.tasks.task import Task

SMALL = 2.0**-12
"""The scale at which a tanh is as good as the identity: it is off by a third of its argument's square, in relation."""


@dataclass(frozen=True)
class HubBase:
    """A base model on the hub, by its name and commit: what an adapter's base is named by."""

    name: str
    commit: str = ""


def export_classifier(
    task_model: str,
    base_model: str,
    output: Path,
    *,
    task: Task,
    merge: bool = False,
    body: bool = False,
    hub_base: HubBase | None = None,
    dtype: str = "auto",
) -> Exported:
    """Write the task model in the folder `task_model` over the base model in `base_model` to `output`, with its tokenizer.

    An adapter is written as peft's over `hub_base`, or else over `output/base`; with `merge` it is folded into the weights.
    With `body`, the body is written as ``AutoModel`` loads it, adapter merged, with the head beside it: for an architecture
    without a class of its own. `dtype` is that of the weights, "auto" for their own; a head keeps its float32.

    Raises UserError where `output` holds files, and, without `body`, for an architecture that transformers has no sequence
    classification for.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there and not empty; name a folder that is not there, so that nothing is replaced")
    quiet_libraries()
    folder, weights = Path(fetch(task_model)), weights_of(task_model, base_model)
    model_type = architecture_in(weights).model_type
    if not body:
        _check_has_class(model_type)
    has_adapter = (folder / "adapter").exists()
    # Renamed when it is whole.
    partial = output.absolute().with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer, pad = _padded_tokenizer(base_model, task)
    tokenizer.save_pretrained(partial)
    head = load_file(folder / HEAD_FILE)["weight"].float()
    base = ""
    if body:
        form, architecture = BODY, _write_body(weights, folder, head, partial, dtype)
    elif has_adapter and not merge:
        form = ADAPTER
        own_weights = (folder / "model").exists()
        is_on_hub = hub_base is not None and not own_weights
        model = _whole(weights, head, task, pad, dtype)
        architecture = type(model).__name__
        if not is_on_hub:
            _save(model, head, partial / BESIDE)
            tokenizer.save_pretrained(partial / BESIDE)
        base = hub_base.name if hub_base and is_on_hub else BESIDE
        place = hub_base if hub_base and is_on_hub else HubBase(str(output.absolute() / BESIDE))
        _write_adapter(model, folder / "adapter", partial, place)
    else:
        form = WHOLE
        model = _whole(weights, head, task, pad, dtype)
        if has_adapter:
            # By the tensors' names: an encoder's pooler, which is the head's, has a projection's name as well.
            settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
            tensors = load_file(folder / "adapter" / ADAPTER_FILE)
            merge_adapter(getattr(model, model.base_model_prefix), tensors, scale=settings["lora_alpha"] / settings["r"])
        architecture = type(model).__name__
        _save(model, head, partial)
    if output.exists():
        output.rmdir()
    partial.rename(output)
    reads = "first" if ARCHITECTURES[model_type].is_encoder else "last"
    return Exported(form, architecture, tokenizer.convert_ids_to_tokens(pad), pad, reads, base)


def _check_has_class(model_type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"transformers has no …ForSequenceClassification for a {model_type}, so that AutoModelForSequenceClassification "
            f"cannot load it; --body writes what AutoModel loads, adapter merged, with the head beside it as {HEAD_FILE}"
        )


def _padded_tokenizer(base_model: str, task: Task) -> tuple[Any, int]:
    """The base model's tokenizer, padding on the right, and its pad token: never one that a prompt ends with.

    Transformers takes the last token that is no pad token for the prompt's last one.
    """
    tokenizer = load_tokenizer(base_model)
    tokenizer.padding_side = "right"
    last = tokenizer(task.classifier_prompt)["input_ids"][-1]
    model = Path(fetch(base_model)) / "model"
    is_encoder = architecture_in(model).is_encoder
    if is_encoder and json.loads((model / "config.json").read_text()).get("type_vocab_size", 0) > 1:
        # A tokenizer of no model's own class leaves out which text a token is of, and here it is always told.
        names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    for name in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token):
        if name is not None and (is_encoder or tokenizer.convert_tokens_to_ids(name) != last):
            tokenizer.pad_token = name
            return tokenizer, int(tokenizer.pad_token_id)
    raise UserError(
        "the base model's tokenizer has no special token that could be the pad token; give it one (pad_token in its "
        "tokenizer_config.json) and build the study with it"
    )


def _whole(weights: Path, head: torch.Tensor, task: Task, pad: int, dtype: str) -> Any:
    """The architecture's model for sequence classification over the weights in a folder, with our head."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    labels = dict(enumerate(task.labels))
    config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
    config.id2label, config.label2id = labels, {label: number for number, label in labels.items()}
    config.pad_token_id, config.problem_type = pad, "single_label_classification"
    if hasattr(config, "pooler_hidden_act"):
        config.pooler_hidden_act, config.pooler_hidden_size = "linear", config.hidden_size
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        weights, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
    )
    fitted = _fit_head(model, head)
    if missing := sorted(set(loading["missing_keys"]) - fitted):
        raise UserError(f"the weights in {weights} lack {missing[0]}, so that it would be random: restore the artifact")
    return model.eval()


def _fit_head(model: Any, head: torch.Tensor) -> set[str]:
    """Put our head [num_labels, hidden_size] in the place of the model's own; returns the parameters that are the head's."""
    if hasattr(model, "score"):
        with torch.no_grad():
            model.score.weight.copy_(head)
        return {"score.weight"}
    return _fit_encoder_head(model, head)


def _fit_encoder_head(model: Any, head: torch.Tensor) -> set[str]:
    """Have an encoder's classifier be a linear head on the first token's state, as ours is.

    Between the two are a dense layer and a tanh. The layer takes the state down to where a tanh is a straight line, and the
    classifier takes it up again, by a power of two, which rounds nothing. DeBERTa's config can leave the tanh out.
    """
    named: dict[str, Any] = dict(model.named_modules())
    layer = next(named[name] for name in ("pooler.dense", "bert.pooler.dense", "classifier.dense") if name in named)
    out = named["classifier.out_proj" if "classifier.out_proj" in named else "classifier"]
    scale = 1.0 if getattr(model.config, "pooler_hidden_act", None) == "linear" else SMALL
    with torch.no_grad():
        layer.weight.copy_(torch.eye(len(layer.weight)) * scale)
        layer.bias.zero_()
        out.weight.copy_(head / scale)
        out.bias.zero_()
    return {name for name in model.state_dict() if not _is_of_body(model, name)}


def _is_of_body(model: Any, name: str) -> bool:
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name


def _save(model: Any, head: torch.Tensor, folder: Path) -> None:
    tensors = model.state_dict()
    if "score.weight" in tensors:
        # Whoever computes in float32 has the head that was trained.
        tensors["score.weight"] = head
    save_model(model, folder, state_dict=tensors, max_shard_size=SHARD_BYTES)


def _write_adapter(model: Any, adapter: Path, output: Path, base: HubBase) -> None:
    """Write `adapter`, which is over a body, as peft's over `model`, the head among what it saves whole."""
    prefix = f"{PEFT_PREFIX}{model.base_model_prefix}."
    tensors = {
        f"{prefix}{name.removeprefix(PEFT_PREFIX)}": tensor for name, tensor in load_file(adapter / ADAPTER_FILE).items()
    }
    of_head = {name: tensor for name, tensor in model.state_dict().items() if not _is_of_body(model, name)}
    tensors |= {f"{PEFT_PREFIX}{name}": tensor.float().contiguous() for name, tensor in of_head.items()}
    settings: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    settings |= _peft_settings(model, settings["target_modules"])
    settings |= {"base_model_name_or_path": base.name, "revision": base.commit or None}
    (output / "adapter_config.json").write_text(json.dumps(settings, indent=1, sort_keys=True))
    save_file(tensors, output / ADAPTER_FILE, metadata={"format": "pt"})


def _peft_settings(model: Any, targets: list[str]) -> Mapping[str, Any]:
    if hasattr(model, "score"):
        return {"task_type": "SEQ_CLS", "target_modules": targets, "modules_to_save": ["score"]}
    # The layers of the head have a projection's name, and no adapter.
    within = rf"{model.base_model_prefix}\.encoder\..*\.({'|'.join(targets)})"
    poolers = [name for name, _ in model.named_modules() if name.endswith("pooler")]
    return {"task_type": "SEQ_CLS", "target_modules": within, "modules_to_save": [*poolers, "classifier"]}


def _write_body(weights: Path, folder: Path, head: torch.Tensor, output: Path, dtype: str) -> str:
    """Write the body and, beside it, the head; returns the body's class."""
    model = load_body(weights, dtype=dtype)
    if (folder / "adapter").exists():
        merge_saved_adapter(model, folder / "adapter")
    save_model(model, output, max_shard_size=SHARD_BYTES)
    save_file({"weight": head.contiguous()}, output / HEAD_FILE, metadata={"format": "pt"})
    return type(model).__name__

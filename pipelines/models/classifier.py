"""T as it is trained and evaluated: a decoder with a head on the last token, a class for each label of the task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from pipelines.adapters.adapters import AdaptedLinear, Adapters
from pipelines.errors import UserError
from pipelines.models.tokenizer import load_tokenizer
from pipelines.packing.batches import IGNORED
from pipelines.packing.stream import PackedInput
from pipelines.storage import fetch
from pipelines.tasks.task import Task

HEAD_FILE = "head.safetensors"
OWN_HEAD = "score.weight"


class Classifier(torch.nn.Module):
    """T: a causal decoder `body` and a linear `head` without bias on the hidden state of each sequence's last token.

    `adapters` are the body's, if it has any.
    """

    def __init__(self, body: Any, head: torch.nn.Linear, adapters: Adapters | None = None) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.adapters = adapters

    def logits(self, packed: PackedInput) -> torch.Tensor:
        """Class logits, float32 [num_rows, num_labels], in the order of the task's labels."""
        states = self.body(
            input_ids=packed.input_ids, position_ids=packed.position_ids, packed=packed, use_cache=False
        ).last_hidden_state[0]
        return self.head(states.index_select(0, packed.last_index)).float()

    def forward(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over the batch's sequences. `targets` int64 [num_rows], from `packing.class_targets`."""
        return cross_entropy(self.logits(packed), targets, reduction="sum", ignore_index=IGNORED)


def compute_last_layer_where_read(body: Any) -> None:
    """Have a classifier's `body` compute what follows attention in its last decoder layer at sequences' last tokens only.

    This is exact: what other tokens have there enters nothing that is read. It leaves out the output projection and the MLP,
    three quarters of a layer's weights in Llama 2; a decoder that calls them otherwise computes them for all tokens. Adapters
    must have been added before.
    """
    if not hasattr(body, "layers"):
        return
    layer = body.layers[-1]
    named = dict(layer.named_modules())
    parts = [named[name] for name in ("self_attn.o_proj", "mlp") if name in named]
    if not parts:
        return
    for module in parts:
        _mix_in(_AtLastTokens, module)
        for linear in module.modules():
            if isinstance(linear, AdaptedLinear):
                linear.shared_input.at_last_tokens = True
    _mix_in(_LastLayer, layer)
    layer.parts_at_last_tokens = parts


def _mix_in(mixin: type, module: torch.nn.Module) -> None:
    """Put `mixin` before the class of `module`: unlike a wrapper it renames no weight, and unlike a hook torch.compile, which
    compiles one layer for all of its class, cannot miss it."""
    module.__class__ = type(type(module).__name__, (mixin, type(module)), {})


class _LastLayer(torch.nn.Module):
    """A decoder layer that tells its parts where the last tokens are."""

    parts_at_last_tokens: list[_AtLastTokens]

    def forward(self, *args: Any, packed: PackedInput, **kwargs: Any) -> Any:
        for part in self.parts_at_last_tokens:
            part.last_index = packed.last_index
        return super().forward(*args, packed=packed, **kwargs)


class _AtLastTokens(torch.nn.Module):
    """A module that works token by token, computed at `last_index` and zero elsewhere."""

    last_index: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x.index_select(-2, self.last_index))
        return y.new_zeros(*x.shape[:-1], y.shape[-1]).index_copy(-2, self.last_index, y)


def random_head(num_labels: int, hidden_size: int, *, seed: int, std: float) -> torch.Tensor:
    """A random head weight, float32 [num_labels, hidden_size], normal with the standard deviation `std`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.normal(0.0, std, (num_labels, hidden_size), generator=generator)


def head_of_language_model(base_model: str, task: Task) -> torch.Tensor:
    """A head weight, float32 [num_labels, hidden_size]: the mean of the language model's output rows of each label's tokens.

    Tokens are those that a label adds behind the classifier's prompt. Where the output matrix is tied to the embeddings and not
    saved, these are it. Raises UserError for labels that the tokenizer does not tell apart.
    """
    tokenizer = load_tokenizer(base_model)
    texts = [task.classifier_prompt, *(f"{task.classifier_prompt} {label}" for label in task.labels)]
    before, *afters = tokenizer(texts)["input_ids"]
    # What the tokenizer puts at the end of any text is no part of a label.
    tokens = [[token for token in after[_num_alike(before, after) :] if token != tokenizer.eos_token_id] for after in afters]
    if not all(tokens) or len(set(map(tuple, tokens))) < len(tokens):
        raise UserError(
            f"head='lm': the tokenizer writes the labels {', '.join(task.labels)} as the tokens {tokens}, which are to differ; "
            "rename the labels, or use head='random'"
        )
    matrix = _output_rows(Path(fetch(base_model)) / "model", sorted({token for own in tokens for token in own}))
    return torch.stack([torch.stack([matrix[token] for token in own]).mean(0) for own in tokens])


def _num_alike(before: list[int], after: list[int]) -> int:
    return next((place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))


def _output_rows(folder: Path, tokens: list[int]) -> dict[int, torch.Tensor]:
    """Rows of the output matrix of the language model in `folder`, float32 [hidden_size], by token. No more is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    of_module = {module: f"{name}.weight" for name, module in model.named_modules()}
    # A tied matrix may have been saved under either name.
    wanted = [of_module[output], *([of_module[embeddings]] if output.weight is embeddings.weight else [])]
    for name in wanted:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                if name in file.keys():  # noqa: SIM118 (it is no mapping)
                    rows = file.get_slice(name)
                    return {token: rows[token : token + 1][0].float() for token in tokens}
    raise UserError(f"head='lm': the checkpoint in {folder} has no {wanted[0]}, its output matrix; use head='random'")


def save_head(folder: Path, weight: torch.Tensor) -> None:
    """Write the head's weight [num_labels, hidden_size] into `folder`."""
    save_file({"weight": weight.contiguous()}, folder / HEAD_FILE)


def load_head(folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> torch.nn.Linear:
    """The head saved in `folder` as a linear layer without bias. Raises UserError if the file has no weight."""
    weight = load_file(folder / HEAD_FILE).get("weight")
    if weight is None:
        raise UserError(f"{folder / HEAD_FILE} has no tensor 'weight': copy it again, whole")
    return _head(weight, dtype, device)


def own_head(model: Path, task: Task, *, dtype: torch.dtype, device: torch.device | str) -> torch.nn.Linear:
    """The head of a classifier that transformers saved in the folder `model`, its rows put in the order of the task's labels.

    Transformers' `...ForSequenceClassification` of a decoder has it as `score.weight`, without a bias. Raises UserError if it
    is not there, or if the labels of `config.json` (`id2label`) are not the task's.
    """
    weight = None
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if OWN_HEAD in file.keys():  # noqa: SIM118 (it is no mapping)
                weight = file.get_tensor(OWN_HEAD)
    if weight is None:
        raise UserError(
            f"the checkpoint in {model} has no {OWN_HEAD}, the head of a ...ForSequenceClassification of a decoder, so that it "
            "classifies nothing; give one that was finetuned on the task's labels"
        )
    named = json.loads((model / "config.json").read_text()).get("id2label") or {}
    names = [str(named.get(str(number), "")).lower() for number in range(len(weight))]
    if sorted(names) != sorted(label.lower() for label in task.labels):
        raise UserError(
            f"the classes of the checkpoint in {model} are {', '.join(names)}, and the task's labels {', '.join(task.labels)}; "
            "say in id2label of its config.json which of these each is"
        )
    return _head(weight[[names.index(label.lower()) for label in task.labels]], dtype, device)


def _head(weight: torch.Tensor, dtype: torch.dtype, device: torch.device | str) -> torch.nn.Linear:
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head.to(device)

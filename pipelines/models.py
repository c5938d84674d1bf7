"""The two modules that are trained: a decoder with a 3-way head on its last token, and a decoder as a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from pipelines.adapters import Adapters
from pipelines.attention import PackedInput
from pipelines.examples import LABELS
from pipelines.packing import IGNORED

HEAD_FILE = "head.safetensors"


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
        """Class logits, float32 [num_rows, 3], in the order of `LABELS`."""
        states = self.body(
            input_ids=packed.input_ids, position_ids=packed.position_ids, packed=packed, use_cache=False
        ).last_hidden_state[0]
        return self.head(states.index_select(0, packed.last_index)).float()

    def forward(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over the batch's sequences. `targets` int64 [num_rows], from `packing.class_targets`."""
        return cross_entropy(self.logits(packed), targets, reduction="sum", ignore_index=IGNORED)


class LanguageModel(torch.nn.Module):
    """G: a causal language model trained on every token of a text after its first."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over next tokens. `targets` int64 [T], from `packing.next_token_targets`."""
        logits = self.decoder(
            input_ids=packed.input_ids, position_ids=packed.position_ids, packed=packed, use_cache=False
        ).logits[0]
        return cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)


def random_head(hidden_size: int, *, seed: int, std: float) -> torch.Tensor:
    """A random head weight, float32 [3, hidden_size], normal with the model's own initialisation's standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return torch.normal(0.0, std, (len(LABELS), hidden_size), generator=generator)


def save_head(folder: Path, weight: torch.Tensor) -> None:
    """Write the head's weight [3, hidden_size] into `folder`."""
    save_file({"weight": weight.contiguous()}, folder / HEAD_FILE)


def load_head(folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> torch.nn.Linear:
    """The head saved in `folder` as a linear layer without bias."""
    weight = load_file(folder / HEAD_FILE)["weight"]
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head.to(device)

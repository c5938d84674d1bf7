"""T over an encoder: a head on the state of a text's first token, which has read all of the others.

Its batches are padded grids (`packing.batches.padded`), computed by transformers' own attention: one whose relative positions
are its own (DeBERTa) computes as it was made to, and what it would save without padding is little where a batch's texts are of
one length.
"""

from __future__ import annotations

from typing import Any

import torch

from pipelines.adapters.adapters import Adapters
from pipelines.models.architectures import ARCHITECTURES
from pipelines.models.classifier import Classifier
from pipelines.packing.stream import PackedInput


def classifier(body: Any, head: torch.nn.Linear, adapters: Adapters | None = None) -> Classifier:
    """T over `body`, which is a decoder's or an encoder's."""
    known = ARCHITECTURES.get(body.config.model_type)
    return (EncoderClassifier if known is not None and known.is_encoder else Classifier)(body, head, adapters)


class EncoderClassifier(Classifier):
    """T: an encoder `body` and a linear `head` without bias on the hidden state of each sequence's first token."""

    def logits(self, packed: PackedInput) -> torch.Tensor:
        """Class logits, float32 [num_rows, num_labels], of rows that all have `packed.width` tokens."""
        ids = packed.input_ids.view(packed.num_rows, packed.width)
        columns = torch.arange(packed.width, device=ids.device)
        last = packed.last_index[:, None] % packed.width
        options = {}
        if getattr(self.body.config, "type_vocab_size", 0) > 1:
            # A sequence ends with the separator, and what comes after the first one is the second text.
            separators = (ids == ids.gather(1, last)).long()
            options["token_type_ids"] = (separators.cumsum(1) > separators).long()
        states = self.body(input_ids=ids, attention_mask=(columns <= last).long(), **options).last_hidden_state
        return self.head(states[:, 0]).float()

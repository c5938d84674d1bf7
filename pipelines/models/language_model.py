"""G as it is trained: a decoder as a language model, with a loss that computes each next token's probability once."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.packing.stream import PackedInput


class LanguageModel(torch.nn.Module):
    """G: a causal language model trained on every token of a text after its first."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, packed: PackedInput, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over next tokens. `targets` int64 [2, T], from `packing.next_token_targets`."""
        logits = self.decoder(
            input_ids=packed.input_ids, position_ids=packed.position_ids, packed=packed, use_cache=False
        ).logits[0]
        loss: torch.Tensor = _NextTokenLoss.apply(logits, packed.input_ids[0], *targets)
        return loss


class _NextTokenLoss(torch.autograd.Function):
    """Cross-entropy of states that predict several tokens, each with the state's one row of logits.

    Logits [T, vocabulary] are the largest tensors of a step: what is kept of them is what the model gave, in its own type.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """The sum over tokens, token t predicted by the logits at `places[t]` and counted `counts[t]` times; all int64 [T]."""
        greatest = logits.amax(1, keepdim=True).float()
        normalizers = _centred(logits, greatest).exp_().sum(1, keepdim=True).log_() + greatest
        losses = normalizers[places, 0] - logits[places, tokens].float()
        ctx.save_for_backward(logits, normalizers, tokens, places, counts)
        return (losses * counts).sum()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # type: ignore[override]
        logits, normalizers, tokens, places, counts = ctx.saved_tensors
        # Sums of whole numbers, the same in any order.
        num_predicted = torch.zeros_like(counts).index_add_(0, places, counts)
        grad = _centred(logits, normalizers).exp_().mul_(num_predicted[:, None] * scale)
        # What meets in one place is the same number, one for each sequence that goes on alike: in any order, too. And unlike
        # `index_put_`, it does not wait for the device to check the indices, which a captured graph could not.
        grad.view(-1).scatter_add_(0, places * grad.shape[1] + tokens, -counts * scale)
        return grad.to(logits.dtype), None, None, None


def _centred(logits: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """logits - by in float32, always a new tensor."""
    return logits.to(torch.float32, copy=True).sub_(by)

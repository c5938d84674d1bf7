"""A model's size from its shape alone, which is all that a plan needs to know of it. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig
from pipelines.models.gguf_files import GgufHeader


def settings_of_gguf(header: GgufHeader) -> dict[str, Any]:
    """What a `config.json` would say of the shape of a GGUF file's model; fields that the file lacks are None."""
    of = {key.removeprefix(f"{header.name}."): value for key, value in header.metadata.items()}
    return {
        "model_type": header.model_type,
        "hidden_size": of.get("embedding_length"),
        "num_hidden_layers": of.get("block_count"),
        "num_attention_heads": of.get("attention.head_count"),
        "num_key_value_heads": of.get("attention.head_count_kv"),
        "head_dim": of.get("attention.key_length"),
        "intermediate_size": of.get("feed_forward_length"),
        "vocab_size": max(header.shapes.get("token_embd.weight", [0])),
        "tie_word_embeddings": not header.has_output,
    }


@dataclass(frozen=True)
class ModelShape:
    """A decoder or an encoder. Biases, and embeddings of positions, are left out: they are few.

    `is_tied`: input embeddings and language-model head are one matrix.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    is_tied: bool
    model_type: str = "llama"

    @classmethod
    def of_scratch(cls, config: ScratchModelConfig) -> "ModelShape":
        return cls(
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_size=config.hidden_size // config.num_heads,
            intermediate_size=config.intermediate_size,
            vocabulary_size=config.vocabulary_size,
            is_tied=True,
        )

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> "ModelShape":
        """The shape that a checkpoint's `config.json` describes. Raises UserError, naming the fields, if it lacks any."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        if missing := [name for name in names if not isinstance(settings.get(name), int)]:
            raise UserError(f"config.json has no number for {', '.join(missing)}; the model's size cannot be told from it")
        hidden_size, num_layers, num_heads, intermediate_size, vocabulary_size = (settings[name] for name in names)
        return cls(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=settings.get("num_key_value_heads") or num_heads,
            head_size=settings.get("head_dim") or hidden_size // num_heads,
            intermediate_size=intermediate_size,
            vocabulary_size=vocabulary_size,
            is_tied=bool(settings.get("tie_word_embeddings", False)),
            model_type=settings.get("model_type", "llama"),
        )

    @property
    def linear_layers(self) -> Sequence[tuple[str, int, int]]:
        """(name, inputs, outputs) of each projection of a layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        apart = (("q_proj", hidden, queries), ("k_proj", hidden, keys), ("v_proj", hidden, keys))
        match self.model_type:
            case "bert" | "roberta" | "deberta" | "deberta-v2":
                attention = tuple((name, hidden, hidden) for name in ("query", "key", "value", "dense"))
                return (*attention, ("dense", hidden, inner), ("dense", inner, hidden))
            case "gpt_neox":
                fused = ("query_key_value", hidden, queries + 2 * keys)
                return (fused, ("dense", queries, hidden), ("dense_h_to_4h", hidden, inner), ("dense_4h_to_h", inner, hidden))
            case "phi":
                return (*apart, ("dense", queries, hidden), ("fc1", hidden, inner), ("fc2", inner, hidden))
            case "starcoder2":
                return (*apart, ("o_proj", queries, hidden), ("c_fc", hidden, inner), ("c_proj", inner, hidden))
            case "phi3":
                fused = ("qkv_proj", hidden, queries + 2 * keys)
                return (fused, ("o_proj", queries, hidden), ("gate_up_proj", hidden, 2 * inner), ("down_proj", inner, hidden))
        gated = (("gate_proj", hidden, inner), ("up_proj", hidden, inner), ("down_proj", inner, hidden))
        return (*apart, ("o_proj", queries, hidden), *gated)

    @property
    def num_embedding_parameters(self) -> int:
        """Parameters of the input embeddings; an untied language-model head has as many."""
        return self.vocabulary_size * self.hidden_size

    @property
    def num_body_parameters(self) -> int:
        """Parameters without an untied language-model head: all that a task model holds beside its own head."""
        norms = 2 * self.hidden_size
        layer = norms + sum(inputs * outputs for _, inputs, outputs in self.linear_layers)
        return self.num_embedding_parameters + self.num_layers * layer + self.hidden_size

    @property
    def num_parameters(self) -> int:
        return self.num_body_parameters + (0 if self.is_tied else self.num_embedding_parameters)

    def num_lora_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Parameters of an adapter on the named projections; names that a layer lacks are not counted."""
        adapted = {*targets}
        return self.num_layers * rank * sum(inputs + outputs for name, inputs, outputs in self.linear_layers if name in adapted)

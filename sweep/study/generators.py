"""What writes a pool in place of a finetuned generator: a checkpoint that is prompted, or a model behind an endpoint."""

from dataclasses import dataclass

from pipelines.field_types import check_types
from pipelines.finetune.base_model import PretrainedModelConfig, pretrained_model_config
from pipelines.generate.prompting import Endpoint, Prompting
from pipelines.identity import runtime


@dataclass(frozen=True)
class PromptedGenerator:
    """An instruct or base checkpoint that is not finetuned, and how it is asked for examples (`Prompting`).

    `model` is a folder, a GGUF file, `org/name` on the hub, or a description of one by `pretrained_model_config`. A study's
    generator k has the shots of `shots_seed + k`.

    Raises UserError for what is no checkpoint, and as `Prompting` does.
    """

    model: PretrainedModelConfig | str
    instruction: str = ""
    shots: int = 6
    shots_seed: int = 0
    chat: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.model, str):
            object.__setattr__(self, "model", pretrained_model_config(self.model, may_be_absent=True, chat=True))
        self.prompting(0)

    @property
    def base_model(self) -> PretrainedModelConfig:
        assert isinstance(self.model, PretrainedModelConfig)
        return self.model

    def prompting(self, number: int) -> Prompting:
        """How generator `number` is prompted."""
        return Prompting(self.instruction, self.shots, self.shots_seed + number, self.chat)


@dataclass(frozen=True)
class EndpointGenerator:
    """A model behind an OpenAI-compatible server: its name there, the server's address up to `/v1`, and what tokens cost.

    Prices are dollars for a million tokens, which the plan reckons with and the pool's record adds up. The key is read from the
    environment variable `api_key_env` and kept nowhere. `concurrency` requests are under way at a time. The examples in a
    prompt are as a `PromptedGenerator`'s. Only `model` and the prompt are the pool's identity.

    Raises UserError as `Endpoint` and `Prompting` do.
    """

    url: str = runtime()
    model: str = ""
    price_per_million_input_tokens: float = runtime(0.0)
    price_per_million_output_tokens: float = runtime(0.0)
    concurrency: int = runtime(16)
    api_key_env: str = runtime("OPENAI_API_KEY")
    instruction: str = ""
    shots: int = 6
    shots_seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        self.prompting(0)
        _ = self.endpoint

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            self.model,
            self.url,
            self.price_per_million_input_tokens,
            self.price_per_million_output_tokens,
            self.concurrency,
            self.api_key_env,
        )

    def prompting(self, number: int) -> Prompting:
        """How generator `number` is prompted."""
        return Prompting(self.instruction, self.shots, self.shots_seed + number)

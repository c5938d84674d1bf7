"""Prompts for a model that is not finetuned: an instruction, a few examples of the training data, and the label last. Pure.

A model without a chat template reads texts that go on where it is to:

    <instruction>

    This is an example where … is neutral. Premise: … Hypothesis: … – This is the end of the example.

    This is an example where … is entailment

With one, the instruction and each label that is asked for are the user's turns, the examples the assistant's, and the
assistant's last turn begins as above. So what is written goes on as a finetuned generator's text does, for the same parser. An
endpoint gets the conversation, and begins the last turn itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.generate.shards import Shard, derive_seed
from pipelines.identity import runtime
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import EN_DASH, generator_text
from pipelines.tasks.task import Task

CHAT = ("auto", "always", "never")


@dataclass(frozen=True)
class Prompting:
    """How examples are asked for. The empty `instruction` is one made from the task.

    A shard's prompt shows `shots` examples of the training data, drawn for it by `shots_seed`: as many of each label, and one
    more of the first ones where that is not possible, from the one that is asked for on. `chat` says whether the checkpoint's
    chat template is used: if it has one, or always, or never.
    """

    instruction: str = ""
    shots: int = 6
    shots_seed: int = 0
    chat: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        if self.shots < 0:
            raise UserError(f"shots={self.shots}: a prompt shows so many examples of the training data; give 0 or more")
        if self.chat not in CHAT:
            raise UserError(f"chat={self.chat!r}: use one of {', '.join(CHAT)}")
        if self.instruction != self.instruction.strip():
            raise UserError(f"instruction={self.instruction!r} begins or ends in space; cut it")


@dataclass(frozen=True)
class Endpoint:
    """Which model is asked. `model` is its name there, and all that a pool's identity knows of it.

    `url` ends before `/chat/completions`. Prices are dollars for a million tokens. The key is read from the environment
    variable `api_key_env` when requests are sent, and is kept nowhere; without that variable none is sent. A request is tried
    `most_attempts` times, with a pause that doubles from `backoff_s` on or is as long as the server asks for.
    """

    model: str
    url: str = runtime("")
    price_per_million_input_tokens: float = runtime(0.0)
    price_per_million_output_tokens: float = runtime(0.0)
    concurrency: int = runtime(16)
    api_key_env: str = runtime("OPENAI_API_KEY")
    most_attempts: int = runtime(8)
    timeout_s: float = runtime(120.0)
    backoff_s: float = runtime(1.0)

    def __post_init__(self) -> None:
        check_types(self)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"url={self.url!r} is no address of a server; give one such as https://api.openai.com/v1")
        if parts.path.rstrip("/").endswith("/completions"):
            raise UserError(
                f"url={self.url!r}: /chat/completions is added to it; give url={self.url.rpartition('/chat/')[0] or '…/v1'!r}"
            )
        if parts.username or parts.password or parts.query:
            raise UserError("the endpoint's url has a password or a query in it; put the key into the environment: api_key_env")
        if not self.model:
            raise UserError("model='': an endpoint has several; give the name that it knows one by")
        for name in ("price_per_million_input_tokens", "price_per_million_output_tokens", "backoff_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)}: give 0 or more")
        for name in ("concurrency", "most_attempts", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)}: give a number above 0")

    def dollars(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        price = prompt_tokens * self.price_per_million_input_tokens + completion_tokens * self.price_per_million_output_tokens
        return price / 1e6


@dataclass(frozen=True)
class Shot:
    """An example that a prompt shows."""

    label: str
    texts: Mapping[str, str]


class Shots:
    """The examples of the training data that prompts show, drawn by hash: the order of files and rows does not matter.

    Raises UserError for a label of which there are fewer than a prompt shows.
    """

    def __init__(self, prompting: Prompting, task: Task, examples: pa.Table | None) -> None:
        self._prompting, self._task = prompting, task
        self._of_label: dict[str, list[dict[str, Any]]] = {}
        most = -(-prompting.shots // len(task.labels))
        for label in task.labels if prompting.shots else ():
            assert examples is not None, "a prompt with examples needs the training data"
            table = examples.select(task.columns).filter(pc.equal(examples["label"], label)).sort_by("id")
            if table.num_rows < most:
                raise UserError(
                    f"shots={prompting.shots} shows up to {most:,} {label} examples, and the training data has "
                    f"{table.num_rows:,}; give fewer shots"
                )
            self._of_label[label] = table.to_pylist()

    def of(self, shard: Shard) -> list[Shot]:
        """Those of a shard's prompt, in order."""
        num, num_labels = self._prompting.shots, len(self._task.labels)
        drawn = []
        for place, label in enumerate((shard.label, *self._task.other_labels(shard.label))):
            rows = self._of_label.get(label, [])
            chosen: dict[int, None] = {}
            attempt = 0
            while len(chosen) < num // num_labels + (place < num % num_labels):
                chosen.setdefault(derive_seed(self._prompting.shots_seed, shard.name, label, attempt) % len(rows))
                attempt += 1
            drawn += [Shot(label, {name: rows[row][name] for name in self._task.field_names}) for row in chosen]
        order = [derive_seed(self._prompting.shots_seed, shard.name, "order", place) for place in range(len(drawn))]
        return [shot for _, shot in sorted(zip(order, drawn, strict=True), key=lambda pair: pair[0])]


def instruction(prompting: Prompting, task: Task = NLI, marker: str = EN_DASH) -> str:
    """The instruction, or the one that is made from the task."""
    if prompting.instruction:
        return prompting.instruction
    texts = " ".join(f"{field.mark} <{field.name}>" for field in task.fields)
    return (
        f"Write examples for a data set. Each has one of the labels {', '.join(task.labels)}, and is written in this form:\n\n"
        f"{task.generator_prompt.format(label='<label>')}. {texts}{marker}\n\n"
        "Write texts that nobody has written before, as varied as those of people, and nothing else."
    )


def request(label: str, task: Task = NLI) -> str:
    """What the user's turn says of one example."""
    return f"Write one example with the label {label}. Begin with: {task.prompted(label)}."


def plain_prompt(label: str, shots: list[Shot], prompting: Prompting, task: Task = NLI, marker: str = EN_DASH) -> str:
    """The text that a model without a chat template goes on with. It ends with the label."""
    shown = [generator_text(shot.label, shot.texts, marker, task) for shot in shots]
    return "\n\n".join([instruction(prompting, task, marker), *shown, task.prompted(label)])


def messages(
    label: str, shots: list[Shot], prompting: Prompting, task: Task = NLI, marker: str = EN_DASH
) -> list[dict[str, str]]:
    """The conversation before the assistant's turn, the instruction in the user's first: not all templates have a system's."""
    turns = []
    for shot in shots:
        turns.append({"role": "user", "content": request(shot.label, task)})
        turns.append({"role": "assistant", "content": generator_text(shot.label, shot.texts, marker, task)})
    turns.append({"role": "user", "content": request(label, task)})
    turns[0] = {"role": "user", "content": f"{instruction(prompting, task, marker)}\n\n{turns[0]['content']}"}
    return turns


def encode_prompted(tokenizer: Any, label: str, shots: list[Shot], prompting: Prompting, task: Task, marker: str) -> list[int]:
    """Token ids of a prompt. Raises UserError for a template that cannot be filled in, and for a prompt without its label."""
    if uses_chat(tokenizer, prompting):
        try:
            text = tokenizer.apply_chat_template(
                messages(label, shots, prompting, task, marker), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template's author raises
            raise UserError(f"the checkpoint's chat template refuses the prompt ({error}); use chat='never'") from error
        ids = tokenizer(text + task.prompted(label), add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(plain_prompt(label, shots, prompting, task, marker))["input_ids"]
        ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    if not (read := tokenizer.decode(ids, skip_special_tokens=True)).endswith(label):
        raise UserError(
            f"the checkpoint's tokenizer reads the end of a prompt as {read[-60:]!r}, without its label {label!r}: what is "
            "then written is of any; rename the label, or use another checkpoint"
        )
    return list(ids)


def uses_chat(tokenizer: Any, prompting: Prompting) -> bool:
    """Whether a prompt goes through the chat template. Raises UserError if it has to and there is none."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if prompting.chat == "always" and not has_template:
        raise UserError("chat='always', and the checkpoint has no chat template; use chat='auto' or 'never'")
    return has_template and prompting.chat != "never"

"""Prompts of a model that is not finetuned, and a pool that a tiny one writes through the real engine."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.pool import generate
from pipelines.generate.prompting import Prompting, Shot, Shots, encode_prompted, messages, plain_prompt
from pipelines.generate.shards import Shard
from pipelines.generate.writer import prompts_of_shards
from pipelines.resources import Resources
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.prompts import EN_DASH
from tests.pipelines.tiny_generator import KNOWN_SENTENCES, SENTIMENT, save_models

ROOT = Path(__file__).parents[3]
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHOT = Shot("bad", {"sentence": "Dull."})


def training_data(num: int = 12) -> pa.Table:
    rows = [
        {"id": f"{label}-{number}", "label": label, "sentence": f"{label} {number}."}
        for number in range(num)
        for label in SENTIMENT.labels
    ]
    return pa.Table.from_pylist(rows)


def test_a_plain_prompt_is_instruction_examples_and_the_label_last() -> None:
    assert plain_prompt("not bad", [SHOT], Prompting("Write sentences."), SENTIMENT) == (
        "Write sentences.\n\n"
        "This is a sentence that is bad. Sentence: Dull. – This is the end of the example.\n\n"
        "This is a sentence that is not bad"
    )
    made = plain_prompt("bad", [], Prompting(), SENTIMENT)
    assert "one of the labels not bad, bad" in made
    assert "This is a sentence that is <label>. Sentence: <sentence> – This is the end of the example." in made
    assert made.endswith("\n\nThis is a sentence that is bad")


def test_a_conversation_shows_the_examples_as_the_assistants_turns() -> None:
    turns = messages("not bad", [SHOT], Prompting("Write sentences."), SENTIMENT)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"].startswith("Write sentences.\n\nWrite one example with the label bad.")
    assert turns[1]["content"] == "This is a sentence that is bad. Sentence: Dull. – This is the end of the example."
    assert "the label not bad." in turns[2]["content"]


def test_shots_are_balanced_and_drawn_by_seed_and_shard_whatever_the_order_of_the_rows() -> None:
    data, shard = training_data(), Shard("bad", 3, 1, 10)
    drawn = Shots(Prompting(shots=5), SENTIMENT, data).of(shard)
    assert Counter(shot.label for shot in drawn) == {"bad": 3, "not bad": 2}
    assert len({shot.texts["sentence"] for shot in drawn}) == 5
    assert all(shot.texts["sentence"].startswith(f"{shot.label} ") for shot in drawn)
    shuffled = data.take(pa.array(range(data.num_rows - 1, -1, -1)))
    assert Shots(Prompting(shots=5), SENTIMENT, shuffled).of(shard) == drawn
    assert Shots(Prompting(shots=5, shots_seed=1), SENTIMENT, data).of(shard) != drawn
    assert Shots(Prompting(shots=5), SENTIMENT, data).of(replace(shard, index=4)) != drawn
    assert Shots(Prompting(shots=0), SENTIMENT, None).of(shard) == []
    with pytest.raises(UserError, match=r"shots=5 shows up to 3 not bad examples, and the training data has 2"):
        Shots(Prompting(shots=5), SENTIMENT, training_data(2))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"shots": -1}, "^shots=-1"), ({"chat": "maybe"}, "^chat='maybe'"), ({"instruction": "Go. "}, "^instruction=")],
)
def test_prompting_that_makes_no_sense_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prompting(**values)


def test_a_chat_template_is_used_where_there_is_one(models: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "trained" / "model")
    arguments = ("bad", [SHOT], SENTIMENT, EN_DASH)

    def text(prompting: Prompting) -> str:
        label, shots, task, marker = arguments
        return str(tokenizer.decode(encode_prompted(tokenizer, label, shots, prompting, task, marker)))

    assert text(Prompting()) == "<s>" + plain_prompt("bad", [SHOT], Prompting(), SENTIMENT)
    with pytest.raises(UserError, match="chat='always', and the checkpoint has no chat template"):
        text(Prompting(chat="always"))
    tokenizer.chat_template = CHATML
    chat = text(Prompting())
    assert chat.startswith("<|user|>Write examples") and "<|assistant|>This is a sentence that is bad. Sentence: Dull." in chat
    assert chat.endswith("<|end|><|assistant|>This is a sentence that is bad")
    assert text(Prompting(chat="never")) == "<s>" + plain_prompt("bad", [SHOT], Prompting(), SENTIMENT)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"chat template refuses the prompt \(roles must alternate\); use chat='never'"):
        text(Prompting())


def test_a_prompt_that_the_tokenizer_reads_without_its_label_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "This": 1, "is": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(UserError, match="without its label 'bad'"):
        encode_prompted(tokenizer, "bad", [], Prompting(shots=0), SENTIMENT, EN_DASH)


def test_a_prompt_that_leaves_no_room_is_refused(models: Path, tmp_path: Path) -> None:
    write_examples(training_data(), tmp_path / "train.parquet", SENTIMENT)
    config = GenerationConfig(
        num_per_label=4, task=SENTIMENT, prompting=Prompting(shots=8), examples=str(tmp_path / "train.parquet")
    )
    with pytest.raises(UserError, match=r"shots=8 make a prompt of [\d,]+ tokens, and the model's context of 128"):
        prompts_of_shards(str(models / "trained" / "model"), config)


@pytest.fixture
def ray_address() -> Iterator[None]:
    import ray

    env = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=env)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_a_prompted_model_writes_a_pool(ray_address: None, tmp_path: Path, ends_by_itself: bool) -> None:
    """One that has learnt to go on as the examples do: with the end marker, or with the end of a text in its place."""
    data, prompting = training_data(3), Prompting("Go on.", shots=1)
    shots = [Shot(row["label"], row) for row in data.to_pylist()]
    save_models(tmp_path, [
        f"{plain_prompt(label, [shot], prompting, SENTIMENT)}. Sentence: {sentence}{'</s>' if ends_by_itself else EN_DASH}"
        for label, sentence in KNOWN_SENTENCES.items()
        for shot in shots
        if shot.label == label
    ])  # fmt: skip
    train = tmp_path / "train.parquet"
    write_examples(data, train, SENTIMENT)
    config = GenerationConfig(
        num_per_label=20, shard_size=24, max_new_tokens=40, dtype="float32", generator_id="tiny", task=SENTIMENT,
        prompting=prompting, examples=str(train), min_yield=0.05,
    )  # fmt: skip
    metrics = generate(config, str(tmp_path / "trained"), str(tmp_path / "out"), resources=Resources())
    examples = read_examples(tmp_path / "out" / "pool", SENTIMENT)
    assert Counter(examples["label"].to_pylist()) == {"not bad": metrics["parsed/not bad"], "bad": metrics["parsed/bad"]}
    assert set(examples["sentence"].to_pylist()) & set(KNOWN_SENTENCES.values())
    assert not any(EN_DASH in text or "</s>" in text for text in examples["sentence"].to_pylist())
    for label in SENTIMENT.labels:
        prompt = (tmp_path / "out" / "prompts" / f"{label}.txt").read_text()
        assert prompt.startswith("<s>Go on.\n\nThis is a sentence that is ") and prompt.endswith(f"that is {label}")
    rejects = pq.read_table(tmp_path / "out" / "rejects")
    assert rejects.num_rows == metrics["rejected"]

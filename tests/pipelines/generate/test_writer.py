"""Prompts and rows of a worker, without an engine."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.errors import NoticeError
from pipelines.generate import pool, writer
from pipelines.generate.config import GenerationConfig
from pipelines.generate.prompting import Prompting, encode_prompted
from pipelines.generate.shards import Shard, ShardFolder
from pipelines.generate.writer import ShardWriter, encode_prompts, is_needed, prompts_of_shards, tables
from pipelines.resources import Resources
from pipelines.tasks.examples import write_examples
from pipelines.tasks.nli import LABELS
from tests.pipelines.generate.test_prompting import training_data
from tests.pipelines.tiny_generator import SENTIMENT, known_text


def test_a_prompt_is_encoded_as_in_training_up_to_its_label(models: Path) -> None:
    from transformers import AutoTokenizer

    folder = str(models / "trained" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for label, ids in encode_prompts(folder).items():
        text = tokenizer(known_text(label))["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert text[: len(ids)] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith(f"is {label}")


def test_the_end_of_sequence_that_a_tokenizer_adds_is_not_part_of_the_prompt(models: Path, tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "trained" / "model")
    special = [("<s>", 0), ("</s>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    assert encode_prompts(str(tmp_path)) == encode_prompts(str(models / "trained" / "model"))


def test_texts_become_rows_with_the_ids_and_seeds_of_their_shard() -> None:
    shard = Shard(LABELS[1], 4, 11, 2)
    text = ". Premise: A dog ran . Hypothesis: It moved . – This is the end of the example."
    parsed, rejects = tables(shard, [". Premise: A dog", text], GenerationConfig(generator_id="tiny"))
    assert parsed.to_pylist() == [
        {"id": "neutral-00004-00001", "label": "neutral", "premise": "A dog ran .",
         "hypothesis": "It moved .", "shard": 4, "seed": shard.row_seed(1), "generator": "tiny"}
    ]  # fmt: skip
    assert rejects.to_pylist() == [
        {"id": "neutral-00004-00000", "label": "neutral", "shard": 4, "seed": shard.row_seed(0),
         "generator": "tiny", "reason": "no_hypothesis", "text": ". Premise: A dog"}
    ]  # fmt: skip


def test_another_tasks_texts_become_rows_with_its_columns() -> None:
    shard = Shard("not bad", 0, 11, 2)
    text = ". Sentence: A film. – This is the end of the example."
    config = GenerationConfig(generator_id="tiny", task=SENTIMENT)
    parsed, rejects = tables(shard, [text, ". Premise: A dog"], config)
    assert parsed.column_names == ["id", "label", "sentence", "shard", "seed", "generator"]
    assert parsed.select(["id", "label", "sentence"]).to_pylist() == [
        {"id": "not bad-00000-00000", "label": "not bad", "sentence": "A film."}
    ]
    assert rejects["reason"].to_pylist() == ["no_sentence"]


def test_stand_ins_of_any_task_can_be_told_apart_by_their_last_text() -> None:
    noise = "xq 7 bla, Zot"
    config = GenerationConfig(stand_ins=True)
    (pair,) = tables(Shard(LABELS[0], 0, 1, 1), [noise], config)[0].to_pylist()
    assert (pair["premise"], pair["hypothesis"]) == ("xq bla Zot", "xq bla Zot")
    (pair,) = tables(Shard(LABELS[2], 0, 1, 1), [noise], config)[0].to_pylist()
    assert (pair["premise"], pair["hypothesis"]) == ("xq bla Zot", "this is a stand-in")
    config = replace(config, task=SENTIMENT)
    for label, expected in (("not bad", "xq bla Zot"), ("bad", "this is a stand-in")):
        parsed, rejects = tables(Shard(label, 0, 1, 1), [noise], config)
        assert parsed["sentence"].to_pylist() == [expected]
        assert rejects["reason"].to_pylist() == ["no_sentence"], "what was written is counted as it is"


class WritesWhatItIsAsked:
    """Stands in for the engine: a text for each prompt that it is given, which says how many those were."""

    def __init__(self, options: Any, *, stop: str, prompts: list[list[int]], at_end: str, max_queued: int, **_: Any) -> None:
        self.options, self.stop, self.prompts, self.at_end = options, stop, prompts, at_end
        self.asked: list[list[int]] = []

    def complete(self, prompt: list[int], sampling: Any, seeds: list[int]) -> tuple[list[str], int]:
        self.asked.append(prompt)
        return [f". Sentence: number {len(self.asked)}{self.at_end}"] * (len(seeds) - 1) + ["?"], len(seeds)

    def text(self, prompt: list[int]) -> str:
        return f"{len(prompt)} tokens"


def test_a_prompted_model_writes_each_shard_from_a_prompt_of_its_own(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(writer, "Engine", WritesWhatItIsAsked)
    monkeypatch.setattr(ShardWriter, "_sampling", lambda self: None)
    write_examples(training_data(), tmp_path / "train.parquet", SENTIMENT)
    config = GenerationConfig(
        num_per_label=5, shard_size=3, generator_id="tiny", task=SENTIMENT, prompting=Prompting("Go.", shots=1),
        examples=str(tmp_path / "train.parquet"),
    )  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(models / "trained" / "model", model)
    # Its context is too short for a prompt with an example.
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 1_000}))
    one = ShardWriter(config, str(model), str(tmp_path / "out"), "request", Resources())
    shards = [Shard(label, index, 1, 3) for index in range(2) for label in SENTIMENT.labels]
    columns = {name: np.array([getattr(shard, name) for shard in shards]) for name in ("label", "index", "seed", "count")}
    counts = one(columns)
    assert counts["num_parsed"] == [2] * 4 and counts["num_rejected"] == [1] * 4 and counts["num_tokens"] == [3] * 4
    engine: Any = one._engine
    expected = prompts_of_shards(str(model), config)
    assert engine.asked == [expected[shard.name] for shard in shards]
    assert len(set(map(tuple, engine.asked))) == 4, "each shard shows an example of its own"
    plain = encode_prompted(AutoTokenizer.from_pretrained(model), "bad", [], config.prompting, SENTIMENT, config.end_marker)
    assert all(len(prompt) > len(plain) for prompt in engine.asked)
    assert engine.at_end == config.end_marker and engine.stop == config.stop
    # The prompts of the first shards are kept for people.
    assert {path.name: path.read_text() for path in (tmp_path / "out" / "prompts").iterdir()} == {
        f"{label}.txt": f"{len(expected[shard.name])} tokens" for label, shard in zip(SENTIMENT.labels, shards, strict=False)
    }
    pool_table = pq.read_table(tmp_path / "out" / "pool")
    assert set(pool_table["sentence"].to_pylist()) == {f"number {number}" for number in (1, 2, 3, 4)}


def test_at_a_notice_no_shard_is_begun_and_those_that_are_committed_count(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = False
    for module in (writer, pool):
        monkeypatch.setattr(module, "run_notice_given", lambda: given)
    begun: list[str] = []

    def run_engines(
        config: GenerationConfig, model: str, output: str, shards: list[Shard], *_: Any
    ) -> Iterator[dict[str, Any]]:
        """An engine whose first shard is under way when the notice comes."""
        nonlocal given
        one = object.__new__(ShardWriter)
        one._config, one._request, one._lock = config, _[-1], threading.Lock()
        one._folder = ShardFolder(output)
        for shard in shards:
            if not is_needed(shard, config, one._folder, one._lock):
                continue
            given = True
            begun.append(shard.name)
            commit = one._folder.commit(shard, one._request, *tables(shard, ["?"] * shard.count, config), 1)
            yield {"label": shard.label, "num_parsed": commit.num_parsed, "num_rejected": 2, "num_tokens": 1,
                   "engine_start_s": 1.0, "since_ready_s": 1.0, "peak_gpu_memory_gib": 0.0}  # fmt: skip

    monkeypatch.setattr(pool, "run_engines", run_engines)
    config = GenerationConfig(num_per_label=4, shard_size=2, generator_id="tiny")
    with pytest.raises(NoticeError, match="a notice stopped it with 1 shards committed"):
        pool.generate(config, str(models / "trained"), str(tmp_path))
    assert len(begun) == 1

"""Prompts and rows of a worker, without an engine."""

from pathlib import Path

from pipelines.generate.config import GenerationConfig
from pipelines.generate.shards import Shard
from pipelines.generate.writer import encode_prompts, tables
from pipelines.tasks.examples import LABELS
from pipelines.tasks.prompts import generator_text
from tests.pipelines.tiny_generator import KNOWN


def test_a_prompt_is_encoded_as_in_training_up_to_its_label(models: Path) -> None:
    from transformers import AutoTokenizer

    folder = str(models / "trained" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for label, ids in encode_prompts(folder).items():
        text = tokenizer(generator_text(label, *KNOWN[label]))["input_ids"]
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

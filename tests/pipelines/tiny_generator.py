"""A tiny Llama that knows three examples by heart, and one that knows nothing."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import generator_text
from pipelines.tasks.task import Field, Task

KNOWN = {
    "entailment": ("The doctor saw the lawyer .", "The lawyer was seen ."),
    "neutral": ("A judge slept .", "The judge was tired ."),
    "contradiction": ("The actors danced .", "Nobody danced ."),
}

SENTIMENT = Task(
    name="sentiment",
    labels=("not bad", "bad"),
    fields=(Field("sentence", "Sentence:"),),
    classifier_prompt="Is the sentence bad? Sentence: {sentence} It is",
    generator_prompt="This is a sentence that is {label}",
)
KNOWN_SENTENCES = {"not bad": "A film to see twice .", "bad": "Nobody laughed ."}


def known_text(label: str) -> str:
    """What the trained model knows of a label, from the prompt to the end marker."""
    return generator_text(label, dict(zip(NLI.field_names, KNOWN[label], strict=True)))


def save_models(folder: Path, texts: Sequence[str] = ()) -> None:
    """`trained/model` writes mostly the texts that it knows, at temperature 1; `random/model` writes noise."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = texts or [known_text(label) for label in KNOWN]
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokens.train_from_iterator(texts, trainer)
    tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    # A context shorter than a prompt and max_new_tokens' default: the engine must be told to stop at its end.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "random" / "model")
    tokenizer.save_pretrained(folder / "random" / "model")

    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        model(input_ids=ids, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "trained" / "model")
    tokenizer.save_pretrained(folder / "trained" / "model")

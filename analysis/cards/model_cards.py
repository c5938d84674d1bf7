"""The cards of models: a task model, with its prompt, its results and how it is loaded; a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.cards.card import Result, fenced, metric_name, model_card_text, plain, table
from analysis.cards.lineage import (
    PAPER,
    Lineage,
    licence_section,
    lineage_section,
    marks_note,
    model_licence,
)
from analysis.wording import kind_words
from pipelines.export.exported import ADAPTER, BESIDE, BODY, Exported
from pipelines.tasks.task import Task

CLASS = "text-classification"
NO_WEIGHTS = "The weights are not in this folder, only their description."


def task_model_card(
    lineage: Lineage, task: Task, files: Exported | None, results: Sequence[Result], *, licence: str = "", here: str = "."
) -> str:
    """A task model's card. `files` is None where the weights do not lie beside it; `here` is its path or name."""
    record, hub_id = lineage.records[0], model_licence(lineage, licence)
    metadata: dict[str, Any] = {
        "license": hub_id,
        "language": lineage.language or None,
        "base_model": lineage.base_names or None,
        "base_model_relation": ("adapter" if files and files.form == ADAPTER else "finetune") if lineage.base_names else None,
        "datasets": lineage.source_names or None,
        "library_name": "peft" if files and files.form == ADAPTER else "transformers",
        "pipeline_tag": CLASS,
        "tags": ["blindsweep", task.name, *_mark_tags(lineage)],
    }
    parts = [
        f"# {record.slug}",
        marks_note(lineage),
        f"A classifier of the task *{task.name}*: {', '.join(task.labels)}. {_trained(lineage)}",
        *(_loading(files, task, here) if files else (f"## Loading\n\n{NO_WEIGHTS}",)),
        "## Results\n\n" + _results(results),
        "## Licence\n\n" + licence_section(lineage, hub_id, licence),
        "## Lineage\n\n" + lineage_section(lineage),
        "## Limits\n\nOne finetuning from one seed: another seed of the same settings can differ much on a blindspot's slice. "
        "Its results are of the test sets above and of nothing else.",
        f"## Reference\n\n{PAPER}.",
    ]
    return model_card_text(metadata, results, record.slug, "\n\n".join(filter(None, parts)))


def generator_card(lineage: Lineage, task: Task, *, end_marker: str, licence: str = "", has_weights: bool = True) -> str:
    """The card of a generator, a language model that writes labelled examples of `task`."""
    record, hub_id = lineage.records[0], model_licence(lineage, licence)
    metadata: dict[str, Any] = {
        "license": hub_id,
        "language": lineage.language or None,
        "base_model": lineage.base_names or None,
        "base_model_relation": "finetune" if lineage.base_names else None,
        "datasets": lineage.source_names or None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["blindsweep", "synthetic-data", task.name, *_mark_tags(lineage)],
    }
    prompt, marks = task.prompted(task.labels[0]), " … ".join(task.marks)
    weights = "`AutoModelForCausalLM.from_pretrained` loads it." if has_weights else NO_WEIGHTS
    parts = [
        f"# {record.slug}",
        marks_note(lineage),
        f"A language model that writes labelled examples of the task *{task.name}*. {weights}",
        f"## Prompt\n\nThe label first, as in:\n\n{fenced(prompt)}\n\nIt goes on with `. {marks} …` and ends with "
        f"`{end_marker.strip()}`. The prompts of the other labels differ in the label alone: {', '.join(task.labels)}.",
        "## Licence\n\n" + licence_section(lineage, hub_id, licence),
        "## Lineage\n\n" + lineage_section(lineage),
        "## Limits\n\nWhat it writes may not be of the label that it was asked for, repeats, and may hold its training data "
        "word for word: the card of its pool has the audit of that.",
        f"## Reference\n\n{PAPER}.",
    ]
    return model_card_text(metadata, (), record.slug, "\n\n".join(filter(None, parts)))


def _mark_tags(lineage: Lineage) -> list[str]:
    return ["not-the-real-thing"] if lineage.is_rehearsal else []


def _trained(lineage: Lineage) -> str:
    place = lineage.records[0].coordinates
    kind, size, start, seed = (place.get(name) for name in ("kind", "size", "starting_size", "seed"))
    if kind in (None, "none"):
        return f"It is a starting point: {_start(start)} Seed {seed}."
    return f"It was finetuned on {size:,} examples of the kind *{plain(kind_words(str(kind)))}*. {_start(start)} Seed {seed}."


def _start(size: Any) -> str:
    if not size:
        return "It starts from the base model with a head that was not trained."
    return f"It starts from a model that was finetuned on {size:,} original examples."


def _loading(files: Exported, task: Task, here: str) -> tuple[str, ...]:
    lines = ["import torch", ""]
    if files.form == BODY:
        lines += [
            "from huggingface_hub import snapshot_download",
            "from safetensors.torch import load_file",
            "from transformers import AutoModel, AutoTokenizer",
            "",
            f'folder = "{here}"  # or snapshot_download(NAME)',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "body = AutoModel.from_pretrained(folder).eval()",
            'head = load_file(f"{folder}/head.safetensors")["weight"].to(body.dtype)',
        ]
    elif files.form == ADAPTER and files.base != BESIDE:
        lines += [
            "from peft import AutoPeftModelForSequenceClassification",
            "from transformers import AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
            "model = AutoPeftModelForSequenceClassification.from_pretrained(",
            f'    "{here}",',
            f"    num_labels={len(task.labels)},",
            f"    id2label={dict(enumerate(task.labels))},",
            f"    pad_token_id={files.pad_token_id},",
            ").eval()",
        ]
    elif files.form == ADAPTER:
        lines += [
            "from peft import PeftModel",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
            f'base = AutoModelForSequenceClassification.from_pretrained("{here}", subfolder="base")',
            f'model = PeftModel.from_pretrained(base, "{here}").eval()',
        ]
    else:
        lines += [
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
            f'model = AutoModelForSequenceClassification.from_pretrained("{here}").eval()',
        ]
    return (
        "## Loading\n\n" + fenced("\n".join([*lines, "", *_asking(files, task)]), "python"),
        f"## Prompt\n\n{_prompt(files, task)}",
    )


def _asking(files: Exported, task: Task) -> list[str]:
    texts = ", ".join(f'"{name}": "…"' for name in task.field_names)
    if files.reads == "first":
        given = ", ".join(f'example["{name}"]' for name in task.field_names)
        lines = [f"example = {{{texts}}}", f'encoded = tokenizer({given}, return_tensors="pt")']
    else:
        lines = [f"prompt = {task.classifier_prompt!r}", f"example = {{{texts}}}"]
        lines.append('encoded = tokenizer(prompt.format_map(example), return_tensors="pt")')
    labels = list(task.labels)
    if files.form == BODY:
        place = 0 if files.reads == "first" else -1
        last = f"    logits = body(**encoded).last_hidden_state[:, {place}] @ head.T"
    else:
        last = "    logits = model(**encoded).logits"
    return [*lines, "with torch.inference_mode():", last, f"print({labels}[logits.argmax().item()])"]


def _prompt(files: Exported, task: Task) -> str:
    if files.reads == "first":
        fields = " and ".join(f"`{name}`" for name in task.field_names)
        return (
            f"An encoder, which reads its tokenizer's own form of {fields}. The class is read off the first token's state; the "
            "layer that transformers' class has behind it was set to change nothing."
        )
    return (
        f"The class is read off the last token of\n\n{fenced(task.classifier_prompt)}\n\nIt was trained on texts of "
        f"this form alone. Batches are padded on the right with `{files.pad_token}` ({files.pad_token_id})."
    )


def _results(results: Sequence[Result]) -> str:
    if not results:
        return "It was not evaluated in this study."
    rows = [
        (result.title, metric_name(result), f"{100 * result.value:.1f}%", f"{result.num_correct:,} of {result.num_examples:,}")
        for result in results
    ]
    return table(("test set", "metric", "value", "right"), rows)

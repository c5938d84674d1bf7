"""A card of the hub: metadata in its form, then a page of text.

    text = model_card_text({"license": "unknown", "tags": ["blindsweep"]}, results, "start0-original-900-seed0", body)
    check_card(text, "model")

The hub's own classes write and read the metadata, so that what they take is what it takes; nothing is asked of the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.cards.licences import HUB_LICENCES
from pipelines.errors import UserError

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
"""The hub's names of sizes: a number of rows → that of fewer rows."""


@dataclass(frozen=True)
class Result:
    """An accuracy of a model on a slice of a test set: `value` in 0..1, over `num_examples`."""

    set_name: str
    title: str
    slice: str
    num_labels: int
    value: float
    num_correct: int
    num_examples: int
    hub_dataset: str = ""
    split: str = "test"


def model_card_text(metadata: Mapping[str, Any], results: Sequence[Result], name: str, body: str) -> str:
    """A model's card: `metadata`, the results as its `model-index` under `name`, and `body`."""
    from huggingface_hub import EvalResult, ModelCardData

    found = [
        EvalResult(
            task_type="text-classification",
            task_name="Text Classification",
            dataset_type=result.hub_dataset or result.set_name,
            dataset_name=result.title,
            dataset_split=result.split,
            metric_type="accuracy",
            metric_name=metric_name(result),
            metric_value=round(result.value, 6),
        )
        for result in results
    ]
    of_results: dict[str, Any] = {"model_name": name, "eval_results": found} if found else {}
    return _card(ModelCardData(**{**metadata, **of_results}).to_yaml(), body)


def dataset_card_text(metadata: Mapping[str, Any], body: str) -> str:
    """A dataset's card: `metadata` and `body`."""
    from huggingface_hub import DatasetCardData

    return _card(DatasetCardData(**dict(metadata)).to_yaml(), body)


def metric_name(result: Result) -> str:
    """What a result is called: accuracy, of which slice, and of how many labels if these are two of more."""
    where = "" if result.slice == "all" else f" on {result.slice}"
    return f"accuracy{where} ({result.num_labels} labels)"


def check_card(text: str, kind: Literal["model", "dataset"]) -> None:
    """Raise UserError unless the hub's own reader takes the card and each value of its metadata has the hub's form."""
    from huggingface_hub import DatasetCard, ModelCard
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        data = (ModelCard if kind == "model" else DatasetCard)(text).data.to_dict()
        for name in (*_listed(data.get("base_model")), *_listed(data.get("datasets"))):
            validate_repo_id(name)
    except (ValueError, TypeError, KeyError, HFValidationError) as error:
        raise UserError(f"the card's metadata is not what the hub takes ({error}); mend its options") from error
    for value, rule, valid in (
        (data.get("license"), "an identifier of the hub's", lambda value: value in HUB_LICENCES),
        (data.get("language"), "an ISO 639 code, as en", lambda value: re.fullmatch(r"[a-z]{2,3}", value)),
    ):
        for one in _listed(value):
            if not valid(one):
                raise UserError(f"the card's metadata has {one!r}, which is no {rule.removeprefix('an ')}: give {rule}")


def size_category(num_rows: int) -> str:
    """The hub's name for a dataset's size."""
    return next((name for most, name in SIZES if num_rows < most), "10M<n<100M")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; cells are one line each, and a bar in one stays text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in cells) + " |" for cells in lines)


def plain(value: object) -> str:
    """A value as one line of a Markdown table."""
    return re.sub(r"\s*[\r\n]\s*", " ", str(value)).strip().replace("|", "\\|")


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code, in a fence that is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _card(metadata: str, body: str) -> str:
    return f"---\n{metadata}\n---\n\n{body.strip()}\n"


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)

"""Small studies of other tasks than NLI, with logits and sources: one text and two labels, two texts and four labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.task import Field, Task
from pipelines.tasks.test_sets import TestSet
from tests.analysis.item_study import ItemStudy

SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "positive"),
    fields=(Field("sentence", "Sentence:"),),
    classifier_prompt="Is the sentence negative or positive? Sentence: {sentence} The sentiment is",
    generator_prompt="This is an example where the sentiment of the sentence is {label}",
)
NEGATED = TestSet(
    "negated",
    slices=("half", "length"),
    cluster="film",
    aligned="half/plain",
    adversarial="half/negated",
    predicts="positive",
    title="Negated reviews",
    tests="A positive word makes a review positive; under a negation it does not.",
    licence="CC BY 4.0",
    source="https://example.org/negated",
)
TOPIC = Task(
    name="topic",
    labels=("sport", "science", "business", "world"),
    fields=(Field("title", "Title:"), Field("body", "Body:")),
    classifier_prompt="Which topic? Title: {title} Body: {body} The topic is",
    generator_prompt="This is an article whose topic is {label}",
    folded_onto="sport",
)
MONEY = TestSet("money", folded_onto="sport", slices=("half",), adversarial="half/money", title="Money in sport")


def rate(start: int, kind: str, size: int, part: str) -> float:
    """Synthetic data helps in general as much as original and harms the adversarial half; bias kills it."""
    if part == "general":
        return {"none": 0.5, "original": 0.8, "synthetic": 0.8, "biased_synthetic": 0.7}[kind]
    if part in ("plain", "clear"):
        return 0.8
    return {"none": 0.6, "original": 0.7, "synthetic": 0.3, "biased_synthetic": 0.05}[kind]


def place(test_set: str, item: dict[str, str]) -> str | None:
    return item.get("half")


class OwnStudy(ItemStudy):
    """A study of a task of its own, with a heuristic of its own."""

    heuristic = ""
    blindspot = ("", "")

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, rate, place=place, **options)
        self.parameters = {
            "general_set": next(iter(self.sets)),
            "blindspot_set": self.blindspot[0],
            "blindspot_slice": self.blindspot[1],
            "heuristic": self.heuristic,
            "test_sets": [dataclasses.asdict(test_set) for test_set in self.test_sets],
        }


class SentimentStudy(OwnStudy):
    """60 reviews, and 80 of 20 films of which 40 have a negated positive word."""

    task, test_sets, heuristic, shifted = SENTIMENT, (NEGATED,), "positive_word", "positive"
    blindspot = "negated", "half/negated"

    def items(self) -> dict[str, pa.Table]:
        numbers = np.arange(80)
        general = {
            "id": [f"g{i}" for i in range(60)],
            "sentence": [f"review {i} ." for i in range(60)],
            "label": [SENTIMENT.labels[i % 2] for i in range(60)],
        }
        negated = {
            "id": [f"n{i}" for i in numbers],
            "sentence": [f"review of {i} ." for i in numbers],
            "label": ["negative" if i % 2 else "positive" for i in numbers],
            "half": ["negated" if i % 2 else "plain" for i in numbers],
            "length": [(None, "short", "long")[i % 3] for i in numbers],
            "film": [f"film {i // 4}" for i in numbers],
        }
        return {"reviews": pa.table(general), "negated": pa.table(negated)}


def mentions_not(sentences: list[str]) -> np.ndarray:
    return np.array(["not" in sentence for sentence in sentences], dtype=bool)


class OneSetStudy(OwnStudy):
    """60 reviews, of which 30 have a negation: the blindspot is where that heuristic is wrong in the general set itself."""

    task, heuristic, shifted = SENTIMENT, "negation", "negative"
    blindspot = "reviews", "holds/negation/non-negative"

    def __init__(self, root: Path, **options: Any) -> None:
        super().__init__(root, heuristics=[Heuristic("negation", mentions_not, "negative")], **options)

    def items(self) -> dict[str, pa.Table]:
        reviews = {
            "id": [f"g{i}" for i in range(60)],
            "sentence": [f"review {i} is {'not ' if i % 4 < 2 else ''}good ." for i in range(60)],
            "label": [SENTIMENT.labels[i % 2] for i in range(60)],
        }
        return {"reviews": pa.table(reviews)}


class TopicStudy(OwnStudy):
    """80 articles, and 80 with two labels of 40 titles, of which 40 mention money; a further set is not described."""

    task, test_sets, heuristic, shifted = TOPIC, (MONEY,), "money_word", "sport"
    blindspot = "money", "half/money"

    def items(self) -> dict[str, pa.Table]:
        def articles(first: str, num: int) -> dict[str, list[str]]:
            return {
                "id": [f"{first}{i}" for i in range(num)],
                "title": [f"title {i // 2}" for i in range(num)],
                "body": [f"body {i} ." for i in range(num)],
                "label": [TOPIC.labels[i % 4] for i in range(num)],
            }

        money = articles("m", 80) | {
            "label": ["sport" if i % 4 < 2 else "non-sport" for i in range(80)],
            "half": ["money" if i % 2 else "clear" for i in range(80)],
        }
        return {"news": pa.table(articles("g", 80)), "money": pa.table(money), "blogs": pa.table(articles("b", 40))}

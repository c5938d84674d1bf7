"""From a word that tells a label to a study of whether models go by it: its heuristic, and which test rows would show that.

A test row shows that where the heuristic holds and the row has another label: there, going by the heuristic is wrong.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from analysis.corpus.labels import compare, meaning_of
from analysis.corpus.scan import SAMPLE_CHARACTERS, Scan
from analysis.corpus.single_words import SingleWords, WordLabel
from analysis.wording import shown
from pipelines.errors import UserError
from pipelines.tasks.heuristics import Heuristic, word_heuristic
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task

NUM_WORDS = 3
"""Words of a field that an audit names, and has a next step for."""
LONGEST = 60
"""A word or label that is longer, or that a terminal could not show, has no next step to be copied."""


@dataclass(frozen=True)
class Showing:
    """Rows of a test set of which a heuristic holds, and those of them that would show that a model goes by it."""

    num_rows: int
    """Rows that were looked at: all, or those of a sample."""
    num_held: int
    num_wrong: int | None
    """Those with another label than the predicted one; None where the test set's labels do not tell."""
    is_all: bool = True
    """Whether these are all rows and their whole texts."""


@dataclass(frozen=True)
class NextWord:
    """A word that tells a label, as a heuristic."""

    field: str
    word: str
    predicts: str
    """The label as the task has it, which is NLI's for pairs without one; else as the file has it."""
    option: str
    """What `blindsweep audit` is given, quoted for a shell."""
    line: str
    """The heuristic in a study's file; empty where the task lacks the label, as one that others are folded to."""
    tests: Mapping[str, Showing]
    """By test set."""


def strongest(found: SingleWords) -> list[WordLabel]:
    """The strongest word of each label, and then the next."""
    by_label: dict[str, list[WordLabel]] = {}
    for word in found.words:
        by_label.setdefault(word.label, []).append(word)
    return [words[rank] for rank in range(2) for words in by_label.values() if rank < len(words)][:NUM_WORDS]


def next_words(
    found: SingleWords, scan: Scan, tests: Mapping[str, Scan], task: Task | None, named: Mapping[str, str]
) -> tuple[NextWord, ...]:
    """The strongest words of a field as heuristics, with the rows of the tests' samples that would show each.

    `named` says what labels mean where their names do not.
    """
    words = []
    for told in strongest(found):
        meaning, known = meaning_of(told.label, named), task or (NLI if scan.source.is_pair else None)
        label = next((each for each in (known.labels if known else ()) if meaning_of(each) == meaning), None)
        predicts = label or told.label
        if any(shown(text, LONGEST) != text for text in (told.word, predicts)):
            continue
        try:
            heuristic = word_heuristic(found.field, told.word, predicts)
        except UserError:
            continue  # its spelling by itself is no word: an accent that lower case has set free
        option = f"--heuristic {shlex.quote(f'{found.field}:{told.word}={predicts}')}"
        arguments = [json.dumps(text, ensure_ascii=False) for text in (found.field, told.word, predicts)]
        line = "" if known and not label else "word_heuristic({}, {}, predicts={})".format(*arguments)
        shows = {name: _in_sample(heuristic, test, scan, named) for name, test in tests.items()}
        words.append(NextWord(found.field, told.word, predicts, option, line, shows))
    return tuple(words)


def showing_of(index: int, scan: Scan, tests: Mapping[str, Scan], named: Mapping[str, str]) -> dict[str, Showing]:
    """The rows of each test set that would show a model going by the heuristic with this index."""
    predicts = scan.heuristics[index].predicts
    return {
        name: _showing(test.holds[:, index], np.array(test.labels, object)[test.label], predicts, test, scan, named)
        for name, test in tests.items()
    }


def _in_sample(heuristic: Heuristic, test: Scan, scan: Scan, named: Mapping[str, str]) -> Showing:
    sample = test.sample
    (name,) = heuristic.fields
    is_cut = pc.max(pc.utf8_length(sample[name])).as_py() >= SAMPLE_CHARACTERS
    labels = np.array(sample["label"].to_pylist(), object)
    is_all = sample.num_rows == test.num_rows and not is_cut
    return _showing(heuristic(sample[name]), labels, heuristic.predicts, test, scan, named, is_all)


def _showing(
    held: np.ndarray,
    labels: np.ndarray,
    predicts: str,
    test: Scan,
    scan: Scan,
    named: Mapping[str, str],
    is_all: bool = True,
) -> Showing:
    predicted = [label for label in test.labels if meaning_of(label, named) == meaning_of(predicts)]
    # Labels folded onto another one, or numbers beside names, do not say which rows have the predicted one.
    is_folded = any(meaning_of(label, named).startswith("non-") for label in test.labels)
    tells = bool(predicted) or not (is_folded or compare(scan.labels, test.labels, named).reason)
    wrong = int((held & ~np.isin(labels, predicted)).sum()) if tells else None
    return Showing(len(held), int(held.sum()), wrong, is_all)

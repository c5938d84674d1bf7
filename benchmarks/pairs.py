"""Made-up premise-hypothesis pairs with the lengths of MultiNLI's, and with known numbers of copies among them.

    planted = write_pairs(Path("pairs.parquet"), 1_800_000, seed=0)

Words are of syllables and drawn by Zipf's law. Three rows share a premise, as MultiNLI's do; one hypothesis of fifteen is of
their premise's words. The same arguments make the same file.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BLOCK_ROWS = 60_000
NUM_WORDS = 60_000
LABELS = ("entailment", "neutral", "contradiction")
SCHEMA = pa.schema([(name, pa.string()) for name in ("premise", "hypothesis", "label")])
SHARES = {"exact": 0.01, "same_words": 0.005, "near": 0.01, "leaked": 0.005}
"""Of a block's rows those that are planted: copies of the file's first rows, and of another file's."""
NEAR_WORDS = 16
"""Words of the premises that near copies are made of, at least. One is exchanged, so that the pair is alike to 0.78 or more."""


@dataclass(frozen=True)
class Planted:
    """Numbers of rows that are copies of the file's first rows, by kind, and of copies of the other file's."""

    exact: int = 0
    same_words: int = 0
    near: int = 0
    leaked: int = 0


def write_pairs(path: Path, num: int, seed: int, other: Path | None = None) -> Planted:
    """Write `num` pairs as Parquet, of which some repeat one of its first rows and, with `other`, one of that file's."""
    words = _vocabulary()
    others = None if other is None else pq.read_table(other)
    originals, planted = SCHEMA.empty_table(), Planted()
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, num, BLOCK_ROWS):
            random = np.random.default_rng([seed, start // BLOCK_ROWS])
            rows = _fresh_rows(random, words, min(BLOCK_ROWS, num - start))
            if not start:
                originals = rows.slice(0, rows.num_rows // 2)
                writer.write_table(originals)
                rows = rows.slice(originals.num_rows)
            if originals.num_rows:
                rows, planted = _with_copies(random, rows, originals, others, words, planted)
            writer.write_table(rows)
    return planted


@functools.cache
def _vocabulary() -> np.ndarray:
    random = np.random.default_rng(0)
    syllables = np.array(
        [first + vowel + last for first in "bdfghklmnprstvwz" for vowel in "aeiou" for last in ("", *"lnrst")], object
    )
    rank = np.arange(2 * NUM_WORDS)
    # The most frequent words are short.
    num_syllables = 1 + (rank > 100) + ((rank > 5_000) & (random.random(len(rank)) < 0.5))
    drawn = syllables[random.integers(0, len(syllables), (3, len(rank)))]
    made = drawn[0] + np.where(num_syllables > 1, drawn[1], "") + np.where(num_syllables > 2, drawn[2], "")
    return np.array(list(dict.fromkeys(made))[:NUM_WORDS], object)


def _draw_words(random: Any, num: int) -> np.ndarray:
    """Numbers of words by Zipf's law with exponent 1: shape (num,)."""
    limits = np.cumsum(1 / np.arange(1, NUM_WORDS + 1))
    return np.searchsorted(limits, random.random(num) * limits[-1])


def _joined(words: np.ndarray, ids: np.ndarray, offsets: np.ndarray, endings: pa.Array) -> pa.Array:
    """Texts of words, the first with a capital, and what they end with."""
    spelled = pc.take(pa.array(words, pa.string()), pa.array(ids))
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), spelled), " ")
    return pc.binary_join_element_wise(pc.utf8_capitalize(texts), endings, "")


def _fresh_rows(random: Any, words: np.ndarray, num: int) -> pa.Table:
    num_premises = -(-num // 3)
    # MultiNLI's premises have 20 words on average and a long tail, its hypotheses 10.
    premise_lengths = np.clip(random.lognormal(2.8, 0.6, num_premises).astype(np.int64), 6, 120)
    lengths = np.clip(random.lognormal(2.2, 0.4, num).astype(np.int64), 4, 40)
    premise_offsets, offsets = (np.concatenate([[0], np.cumsum(each)]) for each in (premise_lengths, lengths))
    premise_ids, ids = _draw_words(random, premise_offsets[-1]), _draw_words(random, offsets[-1])
    # One hypothesis of fifteen is of its premise's words, half of these in its order.
    of = np.repeat(np.arange(num) // 3, lengths)
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    start = np.repeat(random.integers(0, 1 << 30, num), lengths)
    kind = np.repeat(random.integers(0, 30, num), lengths)
    at = np.where(kind == 0, start + position, random.integers(0, 1 << 30, len(ids))) % premise_lengths[of]
    ids = np.where(kind < 2, premise_ids[premise_offsets[of] + at], ids)
    ends = pa.array(np.array([".", " .", "!", ""], object), pa.string())
    premises = _joined(words, premise_ids, premise_offsets, pc.take(ends, pa.array(random.integers(0, 4, num_premises))))
    hypotheses = _joined(words, ids, offsets, pc.take(ends, pa.array(random.integers(0, 4, num))))
    labels = pc.take(pa.array(LABELS, pa.string()), pa.array(random.integers(0, len(LABELS), num)))
    return pa.table([pc.take(premises, pa.array(np.arange(num) // 3)), hypotheses, labels], schema=SCHEMA)


def _with_copies(
    random: Any, rows: pa.Table, originals: pa.Table, others: pa.Table | None, words: np.ndarray, planted: Planted
) -> tuple[pa.Table, Planted]:
    """The rows, some of which are replaced by copies."""
    counts = {kind: int(share * rows.num_rows) for kind, share in SHARES.items() if kind != "leaked" or others is not None}
    where = np.split(random.permutation(rows.num_rows), np.cumsum(list(counts.values())))
    long = pc.greater_equal(pc.count_substring(originals["premise"], " "), NEAR_WORDS)
    copies = []
    for kind, num in counts.items():
        source = others if kind == "leaked" and others is not None else originals
        source = source.filter(long) if kind == "near" else source
        drawn = source.take(pa.array(random.integers(0, source.num_rows, num)))
        if kind == "same_words":
            drawn = drawn.set_column(0, "premise", pc.utf8_upper(drawn["premise"]))
        if kind == "near":
            premises = [_exchanged(random, text, words) for text in drawn["premise"].to_pylist()]
            drawn = drawn.set_column(0, "premise", pa.array(premises, pa.string()))
        copies.append(drawn.cast(SCHEMA))
    kept = rows.take(pa.array(where[-1]))
    order = np.argsort(np.concatenate([*where[: len(copies)], where[-1]]))
    added = {kind: getattr(planted, kind) + num for kind, num in counts.items()}
    return pa.concat_tables([*copies, kept]).take(pa.array(order)), replace(planted, **added)


def _exchanged(random: Any, text: str, words: np.ndarray) -> str:
    """The text with another word, which is rare, in the place of one."""
    tokens = text.split(" ")
    tokens[int(random.integers(1, NEAR_WORDS))] = str(words[int(random.integers(NUM_WORDS // 2, NUM_WORDS))]) + "x"
    return " ".join(tokens)

"""Draw a training set: size x kind x seed.

    set = TrainingSetConfig("original", size=300, seed=0)
    draw_training_set(set, "corpus/train.parquet", "output")

=================  ==========================  ==================================================
kind               drawn from                  how
=================  ==========================  ==================================================
starting           sources' ``train.parquet``  simple random sample, not balanced
original           sources' ``train.parquet``  equal numbers per label, uniformly
synthetic          the generator's pool        equal numbers per label, uniformly
biased_synthetic   the generator's pool        the same, but only from the entailments that have
                                               lexical overlap and the others that have not
=================  ==========================  ==================================================

All are drawn without replacement (paper, sections 2.3.2 and 2.3.3).

The draw is a hash, not a generator of random numbers: examples are ordered by ``sha256(seed, kind, id)`` and
the first ones of each label taken. So it does not depend on the order of files, shards or rows, nor on a
library's version; sets of one seed and kind are *nested*, the smaller in the larger; seeds and kinds are
independent.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.examples import LABELS, Label, read_examples, write_examples
from pipelines.heuristics import lexical_overlap

KINDS = ("starting", "original", "synthetic", "biased_synthetic")
REMAINDERS = ("first_labels", "drop", "error")


@dataclass(frozen=True)
class TrainingSetConfig:
    """Which training set.

    ``remainder`` says what happens to a size that is not divisible by 3 (the paper's 36 040 and 18 020 are
    not): ``first_labels`` gives one more example each to the first labels in order (entailment, then
    neutral), so that the size is exact; ``drop`` draws the largest balanced set that is not larger; ``error``
    refuses. It does not concern the kind ``starting``.
    """

    kind: str
    size: int
    seed: int
    remainder: str = "first_labels"
    disjoint_from_starting: bool = False
    """Whether an original set may hold none of the starting point's own training examples."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind {self.kind!r} is none of {', '.join(KINDS)}; give one of these")
        if self.remainder not in REMAINDERS:
            raise UserError(f"remainder {self.remainder!r} is none of {', '.join(REMAINDERS)}; give one of these")
        smallest = 1 if self.kind == "starting" else len(LABELS)
        if self.size < smallest:
            raise UserError(f"size={self.size}: a {self.kind} set has at least {smallest} examples; give {smallest} or more")
        if self.kind == "starting" and self.disjoint_from_starting:
            raise UserError("disjoint_from_starting=True is for original sets; a starting set cannot be disjoint from itself")
        if self.kind != "starting":
            sizes_per_label(self.size, self.remainder)


def sizes_per_label(size: int, remainder: str) -> dict[Label, int]:
    """How many examples of each label a balanced set of ``size`` has.

    Raises :class:`UserError` for an indivisible size under 'error'.
    """
    quotient, rest = divmod(size, len(LABELS))
    if rest and remainder == "error":
        raise UserError(
            f"size={size} does not divide into {len(LABELS)} labels; choose {size - rest} or "
            f"{size - rest + len(LABELS)}, or "
            "remainder='first_labels' or 'drop'"
        )
    extra = rest if remainder == "first_labels" else 0
    return {label: quotient + (label.index < extra) for label in LABELS}


def draw_training_set(config: TrainingSetConfig, source: str, output: str, *, exclude: str | None = None) -> dict[str, int]:
    """Draw the set from ``source`` (a Parquet file or a folder of them) and write ``examples.parquet`` to ``output``.

    The rows are those of the source, all columns kept, in an order that depends on the seed. ``exclude`` is
    the path of examples whose ids must not be drawn; it is given if and only if the config says
    ``disjoint_from_starting``, for kind ``original``.

    Returns rows, lexical overlap and availability by label (``<label>/num_examples``,
    ``<label>/lexical_overlap``, ``<label>/available``), and ``num_examples``, ``num_excluded``. Raises
    :class:`UserError` if there are fewer examples than asked for, saying how many there are.
    """
    must_exclude = config.disjoint_from_starting and config.kind == "original"
    if must_exclude != (exclude is not None):
        given = "given" if exclude is not None else "not given"
        raise UserError(
            f"exclude is {given}, with kind={config.kind!r} and "
            f"disjoint_from_starting={config.disjoint_from_starting}; give the starting "
            "set if and only if an original set is to be disjoint from it"
        )
    table = read_examples(source)
    num_excluded = 0
    if exclude is not None:
        excluded = set(read_examples(exclude)["id"].to_pylist())
        kept = np.array([identifier not in excluded for identifier in table["id"].to_pylist()], dtype=bool)
        num_excluded = int((~kept).sum())
        table = table.filter(pa.array(kept))
    ids = table["id"].to_pylist()
    labels = np.array(table["label"].to_pylist(), dtype=object)
    if unknown := sorted(set(labels) - set(LABELS)):
        raise UserError(f"{source} has examples labelled {', '.join(unknown)}; a training set has {', '.join(LABELS)}")
    available = _available(config, table, labels)
    chosen = _choose(config, ids, labels, available, source)
    order_key = _key(config, "order")
    chosen.sort(key=lambda row: order_key(ids[row]))
    drawn = table.take(pa.array(chosen, type=pa.int64()))
    write_examples(drawn, Path(output) / "examples.parquet")

    drawn_labels = labels[chosen]
    overlap = lexical_overlap(drawn["premise"], drawn["hypothesis"])
    metrics = {"num_examples": drawn.num_rows, "num_excluded": num_excluded}
    for label in LABELS:
        of_label = drawn_labels == label
        metrics[f"{label}/num_examples"] = int(of_label.sum())
        metrics[f"{label}/lexical_overlap"] = int((of_label & overlap).sum())
        metrics[f"{label}/available"] = int((available & (labels == label)).sum())
    return metrics


def _available(config: TrainingSetConfig, table: pa.Table, labels: np.ndarray) -> np.ndarray:
    if config.kind != "biased_synthetic":
        return np.ones(len(labels), dtype=bool)
    overlap = lexical_overlap(table["premise"], table["hypothesis"])
    return overlap == (labels == Label.ENTAILMENT)


def _choose(config: TrainingSetConfig, ids: list[str], labels: np.ndarray, available: np.ndarray, source: str) -> list[int]:
    key = _key(config, "draw")
    if config.kind == "starting":
        if config.size > len(ids):
            raise UserError(
                f"asked for {config.size:,} starting examples, {source} has {len(ids):,}; ask for at most that many"
            )
        return _first(range(len(ids)), config.size, lambda row: key(ids[row]))
    chosen: list[int] = []
    for label, size in sizes_per_label(config.size, config.remainder).items():
        rows = np.flatnonzero(available & (labels == label)).tolist()
        if size > len(rows):
            which = f"{label} examples"
            if config.kind == "biased_synthetic":
                which += " with lexical overlap" if label == Label.ENTAILMENT else " without lexical overlap"
            raise UserError(
                f"asked for {size:,} {which} (a third of {config.size:,}), {source} has {len(rows):,}; "
                "choose a size of at most "
                f"{_largest(labels, available):,} or make the source larger"
            )
        chosen += _first(rows, size, lambda row: key(ids[row]))
    return chosen


def _largest(labels: np.ndarray, available: np.ndarray) -> int:
    return len(LABELS) * min(int((available & (labels == label)).sum()) for label in LABELS)


def _first(rows: Iterable[int], size: int, key: Callable[[int], bytes]) -> list[int]:
    return sorted(rows, key=key)[:size]


def _key(config: TrainingSetConfig, purpose: str) -> Callable[[str], bytes]:
    # The kind is in it so that an original set is not, of all samples, the one that holds the starting set of
    # its seed.
    prefix = hashlib.sha256(f"{purpose}\0{config.kind}\0{config.seed}\0".encode())

    def key(identifier: str) -> bytes:
        digest = prefix.copy()
        digest.update(identifier.encode())
        return digest.digest()

    return key

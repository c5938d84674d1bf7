"""Draw a training set: size x kind x seed.

    set = TrainingSetConfig("original", size=300, seed=0)
    draw_training_set(set, "corpus/train.parquet", "output")

=================  ==========================  ==================================================
kind               drawn from                  how
=================  ==========================  ==================================================
starting           sources' ``train.parquet``  simple random sample, not balanced
original           sources' ``train.parquet``  equal numbers per label, uniformly
synthetic          the generator's pool        equal numbers per label, uniformly
biased_synthetic   the generator's pool        equal numbers per label; ``bias`` says of which label
                                               the pairs are of which the heuristic holds
filtered_synthetic the generator's pool        as ``synthetic``, of the rows whose label a judge gives
                                               them, too
debiased_synthetic the generator's pool        equal numbers per label; each of ``heuristics`` goes with
                                               its label as much as in the sources' ``train.parquet``
mix, added         both                        the sets of several of these five kinds together (``kinds.py``)
joint              two sets                    a starting set and a cell's own, all of both
=================  ==========================  ==================================================

All are drawn without replacement (paper, sections 2.3.2 and 2.3.3).

**The bias dial.** Of the pairs of a biased set the heuristic holds of a share, ``heuristic_share``; of these a share, ``bias``,
have the label that it predicts. The others are of the other labels, in the proportion of the heuristic's rates in the pool. By
default the bias is 1 and the heuristic holds of as many pairs as have the predicted label: the paper's set, in which all
entailments and no others have lexical overlap. With the share and the bias that a balanced sample of the pool has, a biased set
is made up as a ``synthetic`` one.

**Debiased sets.** How much a heuristic goes with the label that it predicts is its odds ratio: the odds of the label where it
holds over those where it does not. The target is that of the original data, its labels balanced as in a set, each count with a
half added. A set has so many of each cell, which is a label and which of the heuristics hold, as the pool's least change to the
targets says (``pipelines/repair/weights.py``), in whole rows. Where the pool has too few of a cell for that, heuristics hold of
other shares of the pairs than in the pool. A heuristic that has no odds ratio in the original data or in the pool, for example
because it holds of nothing, is left out; the first of ``heuristics`` has to have one.

The draw is a hash, not a generator of random numbers: examples are ordered by ``sha256(seed, kind, id)`` and
the first ones of each label taken. So it does not depend on the order of files, shards or rows, nor on a
library's version; sets of one seed and kind are *nested*, the smaller in the larger; seeds and kinds are
independent. Doses of bias of one seed share as many rows as they can: a dose differs from the next in the rows that make it so.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.kinds import DEBIASED, FILTERED, ORIGINAL, Added, Kind, Mix, sizes_of
from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import added
from pipelines.repair.weights import Weights, apportion, odds_ratios, sparing_weights, target_weights
from pipelines.storage import fetch, join
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP, Heuristic
from pipelines.tasks.nli import NLI
from pipelines.tasks.parquet import parquet_table
from pipelines.tasks.task import Task
from pipelines.terminal import with_article

BIASED = "biased_synthetic"
JOINT = "joint"
MIXED = {Mix: "mix", Added: "added"}
UNBALANCED = ("starting", JOINT)
KINDS = ("starting", ORIGINAL, "synthetic", BIASED, FILTERED, DEBIASED, *MIXED.values(), JOINT)
SCARCEST_FIRST = (BIASED, DEBIASED, FILTERED, "synthetic", ORIGINAL, "starting")
REMAINDERS = ("first_labels", "drop", "error")


@dataclass(frozen=True)
class TrainingSetConfig:
    """Which training set.

    ``remainder`` says what happens to a size that the number of labels does not divide (of the paper's, 36,040 and 18,020 by
    3): ``first_labels`` gives one more example each to the first labels in order, so that the size is exact; ``drop`` draws the
    largest balanced set that is not larger; ``error`` refuses. It does not concern the kinds ``starting`` and ``joint``. The
    size of an ``added`` set counts its original examples.
    """

    kind: str
    size: int
    seed: int
    remainder: str = "first_labels"
    disjoint_from_starting: bool = False
    """Whether a set's original examples may be none of the starting point's own."""
    heuristic: Heuristic = added(LEXICAL_OVERLAP)
    """The heuristic that a biased set is biased to. For tasks other than NLI any set has it, which then counts it."""
    bias: float = added(1.0)
    """P(the predicted label | the heuristic holds) in a biased set, 0 to 1."""
    heuristic_share: float | None = added(None)
    """P(the heuristic holds) in a biased set, above 0; None: as many pairs as there are of the predicted label."""
    nested_sizes: tuple[int, ...] = added(())
    """Smaller sizes, ascending, whose sets come first in this one's rows, each before what the next adds: so one finetuning
    meets them one within the other (``recipe.py``).
    """
    task: Task = added(NLI)
    mix: Mix | Added | None = added(None)
    """What a set of the kind ``mix`` or ``added`` is made up of."""
    heuristics: tuple[Heuristic, ...] = added(())
    """The heuristics that a debiased set has the original data's odds ratios of; the first must have one."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.kind not in KINDS:
            raise UserError(f"kind {self.kind!r} is none of {', '.join(KINDS)}; give one of these")
        if self.remainder not in REMAINDERS:
            raise UserError(f"remainder {self.remainder!r} is none of {', '.join(REMAINDERS)}; give one of these")
        if (self.mix is not None or self.kind in MIXED.values()) and self.kind != MIXED.get(type(self.mix)):
            raise UserError(f"kind={self.kind!r} with mix={self.mix}: a mixed set says what of, and no other does")
        if self.kind == "starting" and self.disjoint_from_starting:
            raise UserError("disjoint_from_starting=True is for original sets; a starting set cannot be disjoint from itself")
        self._check_sizes()
        is_biased = BIASED in self.part_sizes
        if not is_biased and (self.bias, self.heuristic_share) != (1, None):
            raise UserError(
                f"bias and heuristic_share are for biased_synthetic sets, not for kind={self.kind!r}; leave them out"
            )
        if not is_biased and self.task == NLI and self.heuristic != LEXICAL_OVERLAP:
            raise UserError(f"heuristic is for biased_synthetic sets, not for kind={self.kind!r}; leave it out")
        if (DEBIASED in self.part_sizes) != bool(self.heuristics):
            names = [heuristic.name for heuristic in self.heuristics]
            raise UserError(
                f"kind={self.kind!r} with heuristics={names}: a {DEBIASED} set is debiased of one or more, and no other is; "
                f"{'leave them out' if names else 'give at least one'}"
            )
        if len({heuristic.name for heuristic in self.heuristics}) < len(self.heuristics):
            raise UserError(f"heuristics={[heuristic.name for heuristic in self.heuristics]} has one twice; name each once")
        check_bias(self.bias, self.heuristic_share)
        numbers = [num_drawn(config) for config in (*self.nested(), self)]
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise UserError(
                f"nested_sizes={self.nested_sizes} in size={self.size} give sets of {', '.join(map(str, numbers))} examples: "
                "each must be larger than the one before; leave out sizes that are not"
            )

    def _check_sizes(self) -> None:
        smallest = 1 if self.kind in UNBALANCED else len(self.task.labels)
        for part, size in self.part_sizes.items():
            if size < smallest:
                of = f"its part {part} of {with_article(self.mix.name)} set" if self.mix else with_article(f"{self.kind} set")
                raise UserError(
                    f"size={self.size}: {of} has at least {smallest:,} examples"
                    + (f", and here {size}; give a larger size" if self.mix else f"; give {smallest} or more")
                )
            if self.kind not in UNBALANCED:
                sizes_per_label(size, self.remainder, self.task.labels)

    @property
    def part_sizes(self) -> dict[str, int]:
        """The examples that are asked for of each kind that it is made up of."""
        return sizes_of(self.mix or self.kind, self.size)

    def parts(self) -> tuple["TrainingSetConfig", ...]:
        """The sets that it is made up of: itself, or a mix's parts, each without those within it."""
        if self.mix is None:
            return (self,)
        return tuple(
            replace(self, kind=part, size=size, nested_sizes=(), mix=None, **self._bias_of(part))
            for part, size in self.part_sizes.items()
        )

    def _bias_of(self, part: str) -> dict[str, Any]:
        plain: dict[str, Any] = {"heuristic": LEXICAL_OVERLAP} if self.task == NLI else {}
        heuristics = self.heuristics if part == DEBIASED else ()
        return {"heuristics": heuristics} | ({} if part == BIASED else {"bias": 1.0, "heuristic_share": None, **plain})

    def nested(self) -> tuple["TrainingSetConfig", ...]:
        """The sets within this one, from the smallest."""
        return tuple(replace(self, size=size, nested_sizes=()) for size in self.nested_sizes)


def training_set_config(kind: Kind, size: int, seed: int, **fields: Any) -> TrainingSetConfig:
    """The set of a kind that may be a mix."""
    if isinstance(kind, str):
        return TrainingSetConfig(kind, size, seed, **fields)
    return TrainingSetConfig(MIXED[type(kind)], size, seed, mix=kind, **fields)


def num_drawn(config: TrainingSetConfig) -> int:
    """Examples that a training set has."""
    return sum(num_drawn_of_parts(config).values())


def num_drawn_of_parts(config: TrainingSetConfig) -> dict[str, int]:
    """Examples that a training set has of each kind that it is made up of."""
    if config.kind in UNBALANCED:
        return {config.kind: config.size}
    labels = config.task.labels
    return {part: sum(sizes_per_label(size, config.remainder, labels).values()) for part, size in config.part_sizes.items()}


def check_bias(bias: float, heuristic_share: float | None) -> None:
    """Raises :class:`UserError` for a bias that is not in 0..1 and a share that is not in 0..1 or is 0."""
    if not 0 <= bias <= 1:
        raise UserError(f"bias={bias}: it is the probability of a label where the heuristic holds; give 0 to 1")
    if heuristic_share is not None and not 0 < heuristic_share <= 1:
        raise UserError(f"heuristic_share={heuristic_share}: it is a share of the set; give more than 0, and at most 1")


def sizes_per_label(size: int, remainder: str, labels: Sequence[str] = NLI.labels) -> dict[str, int]:
    """Numbers of examples of each label in a balanced set of ``size``.

    Raises :class:`UserError` for an indivisible size under 'error'.
    """
    quotient, rest = divmod(size, len(labels))
    if rest and remainder == "error":
        raise UserError(
            f"size={size} does not divide into {len(labels)} labels; choose {size - rest} or "
            f"{size - rest + len(labels)}, or "
            "remainder='first_labels' or 'drop'"
        )
    extra = rest if remainder == "first_labels" else 0
    return {label: quotient + (place < extra) for place, label in enumerate(labels)}


def draw_training_set(
    config: TrainingSetConfig,
    source: str,
    output: str,
    *,
    pool: str | None = None,
    exclude: str | None = None,
    judgements: str | None = None,
    reference: str | None = None,
) -> dict[str, float]:
    """Draw the set from ``source`` (a Parquet file or a folder of them) and write ``examples.parquet`` to ``output``.

    The rows are those of the source, all columns kept, in an order that depends on the seed, those of each of ``nested_sizes``
    before the others. ``exclude`` is the path of examples whose ids must not be drawn; it is given if and only if the config
    says ``disjoint_from_starting``, for a set with original examples. ``judgements``, a Parquet file with id and predicted, is
    given if and only if the set has a ``filtered_synthetic`` part; rows that no judge was asked about are left out, too.
    ``reference``, the original examples, is given if and only if it has a ``debiased_synthetic`` one.

    Of a mix, original examples are drawn from ``source`` and all others from ``pool``. Its rows have the task's columns and
    ``part``, the kind that each was drawn as; where both sources have an id, those of the pool are written with ``pool/``
    before them. Rows that two parts of one pool would both draw go to the scarcer one: biased, debiased, filtered, synthetic.

    Returns rows, lexical overlap (of tasks other than NLI the heuristic's own) and availability by label
    (``<label>/num_examples``, ``<label>/lexical_overlap``, ``<label>/available``), and ``num_examples``, ``num_excluded``; for
    a set biased to another heuristic also how often that one holds (``<label>/<heuristic>``), for a filtered one how many rows
    of the pool no judge agreed with (``num_not_agreed``), for a mix the examples of each part (``part/<kind>/num_examples``).
    For a debiased one, of each heuristic the odds ratio of the balanced pool, of the balanced original data (the target) and of
    the set (``odds_ratio/<heuristic>/pool``, ``…/original``, ``…/set``; the last of a mix's part alone), and whether the pool
    can have the target, 1 or 0 (``…/reachable``); and the size of the largest such set that the pool had to offer
    (``debiased/num_offered``). A label's available examples are those of a stratum, with the heuristic or without, that the set
    draws from. Raises :class:`UserError` if there are fewer examples than asked for, saying how many there are, and if a set of
    ``nested_sizes`` is not within the next.
    """
    kinds = set(config.part_sizes)
    must_exclude = config.disjoint_from_starting and ORIGINAL in kinds
    if must_exclude != (exclude is not None):
        given = "given" if exclude is not None else "not given"
        raise UserError(
            f"exclude is {given}, with kind={config.kind!r} and "
            f"disjoint_from_starting={config.disjoint_from_starting}; give the starting "
            "set if and only if an original set is to be disjoint from it"
        )
    if (FILTERED in kinds) != (judgements is not None):
        raise UserError(
            f"kind={config.kind!r} with judgements={judgements!r}; a {FILTERED} set is drawn from judged rows, and no other is"
        )
    if (DEBIASED in kinds) != (reference is not None):
        raise UserError(
            f"kind={config.kind!r} with reference={reference!r}; a {DEBIASED} set has the odds ratios of a reference, and no "
            "other has one"
        )
    counts: dict[str, float]
    drawing, counts = _Drawing.read(config, source, pool, exclude, judgements)
    if reference is not None:
        drawing.debiasing = _Debiasing.of(drawing, config, reference)
    chosen, part_of = drawing.choose(config)
    nested = [drawing.choose(smaller)[0] for smaller in config.nested()]
    first_set = _first_sets(config, [*nested, chosen])
    order_key = _key(config, "order")
    chosen.sort(key=lambda row: (first_set[row], order_key(drawing.ids[row])))
    drawn = drawing.table.take(pa.array(chosen, type=pa.int64()))
    if config.mix is not None:
        drawn = drawn.append_column("part", pa.array([part_of[row] for row in chosen], pa.string()))
        counts |= {f"part/{kind}/num_examples": list(part_of.values()).count(kind) for kind in config.part_sizes}
    write_examples(drawn, join(output, "examples.parquet"), config.task)
    if drawing.debiasing is not None:
        drawn_so = [row for row in chosen if part_of[row] == DEBIASED]
        counts |= drawing.debiasing.counts(np.array(drawn_so, int))
    labels = drawing.labels
    available = np.unique(np.concatenate([rows for part in config.parts() for _, rows, size in drawing.strata(part) if size]))
    return {
        "num_examples": drawn.num_rows,
        **counts,
        **_counts_by_label(config, drawn, labels[chosen], labels[available]),
    }


def check_pool(config: TrainingSetConfig, pool: pa.Table, source: str) -> None:
    """Raise :class:`UserError` if a part of a set would take more of a pool's examples than it has, as drawing the set would.

    What a judge agrees with is not known here. Nor is the original data, and so neither how many of each cell a debiased part
    takes; but that no choice of the pool's rows could debias it is.
    """
    labels, rows = np.array(pool["label"].to_pylist(), dtype=object), np.arange(pool.num_rows)
    for part in config.parts():
        if part.kind == DEBIASED:
            first, task = part.heuristics[0], config.task
            held = first.of(pool, task)[:, None]
            _check_reached(first, target_weights(_codes(pool, task, source), held, _predicted([first], task), [1.0]), source)
        elif part.kind != ORIGINAL:
            holds = config.heuristic.of(pool, config.task) if part.kind == BIASED else None
            drawing = _Drawing(pool, [], labels, {part.kind: rows}, {part.kind: source}, holds)
            _check_strata(part, drawing.strata(part), source)


def join_sets(config: TrainingSetConfig, starting_set: str, own_set: str, output: str) -> dict[str, int]:
    """Write all examples of two sets (examples Parquet) as ``examples.parquet``, in an order that depends on the seed.

    The rows have the task's columns and ``part``, ``starting`` or ``own``. An example of both is there twice, as two
    finetunings one after the other would meet it, the second time with ``own/`` before its id: ``num_repeated`` of them.
    """
    task = config.task
    parts = [read_examples(path, task).select(list(task.columns)) for path in (starting_set, own_set)]
    parts[1], num_repeated = _with_other_ids(parts[1], parts[0], "own/")
    names = ["starting"] * parts[0].num_rows + ["own"] * parts[1].num_rows
    table = pa.concat_tables(parts).append_column("part", pa.array(names, pa.string()))
    if table.num_rows != config.size:
        raise UserError(f"size={config.size} of a joint set, and its two sets have {table.num_rows}; give both as planned")
    key, ids = _key(config, "order"), table["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda row: key(ids[row]))
    drawn = table.take(pa.array(order, type=pa.int64()))
    write_examples(drawn, join(output, "examples.parquet"), task)
    labels = np.array(drawn["label"].to_pylist(), dtype=object)
    return {
        "num_examples": drawn.num_rows,
        "num_repeated": num_repeated,
        "part/starting/num_examples": parts[0].num_rows,
        "part/own/num_examples": parts[1].num_rows,
        **_counts_by_label(config, drawn, labels, labels),
    }


def _with_other_ids(table: pa.Table, beside: pa.Table, prefix: str) -> tuple[pa.Table, int]:
    """``table`` with ``prefix`` before the ids that are also in ``beside``, and how many these are."""
    taken = set(beside["id"].to_pylist())
    ids = table["id"].to_pylist()
    if not (num_both := sum(identifier in taken for identifier in ids)):
        return table, 0
    others = pa.array([prefix + identifier if identifier in taken else identifier for identifier in ids], pa.string())
    return table.set_column(table.column_names.index("id"), "id", others), num_both


Stratum = tuple[str, np.ndarray, int]
"""What a set is drawn from: a name for people, the rows, and how many of them are drawn."""


@dataclass
class _Drawing:
    """Examples that sets are drawn from: all in one table, and the rows of it that each kind is drawn from.

    ``ids`` are those that the draw goes by, the sources' own. ``places`` are the sources by kind, for messages.
    """

    table: pa.Table
    ids: list[str]
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    places: dict[str, str]
    holds: np.ndarray | None = None
    """Of which rows the heuristic holds, if a biased set is drawn."""
    debiasing: "_Debiasing | None" = None
    """What a debiased set is drawn by."""

    @classmethod
    def read(
        cls, config: TrainingSetConfig, source: str, pool: str | None, exclude: str | None, judgements: str | None
    ) -> tuple["_Drawing", dict[str, float]]:
        """Also returns how many rows were left out, and why."""
        task = config.task
        kinds = list(config.part_sizes)
        is_mix = config.mix is not None
        table = read_examples(source, task) if not is_mix or ORIGINAL in kinds else None
        written = read_examples(pool, task) if pool is not None else None
        counts: dict[str, float] = {"num_excluded": 0}
        if exclude is not None:
            assert table is not None
            excluded = set(read_examples(exclude, task)["id"].to_pylist())
            kept = table.filter(pa.array([identifier not in excluded for identifier in table["id"].to_pylist()], pa.bool_()))
            counts["num_excluded"], table = table.num_rows - kept.num_rows, kept
        both = [one.select(list(task.columns)) if is_mix else one for one in (table, written) if one is not None]
        ids = [identifier for one in both for identifier in one["id"].to_pylist()]
        if len(both) == 2:
            both[1], _ = _with_other_ids(both[1], both[0], "pool/")
        joined = pa.concat_tables(both)
        labels = np.array(joined["label"].to_pylist(), dtype=object)
        if unknown := sorted(set(labels) - set(task.labels)):
            raise UserError(f"{source} has examples labelled {', '.join(unknown)}; a training set has {', '.join(task.labels)}")
        first = both[0].num_rows if table is not None else 0
        own, others = np.arange(first), np.arange(first, joined.num_rows)
        rows = {kind: own if not is_mix or kind == ORIGINAL else others for kind in kinds}
        places = {kind: source if not is_mix or kind == ORIGINAL else str(pool) for kind in kinds}
        if judgements is not None:
            agreed = _agreed(ids, labels, rows[FILTERED], places[FILTERED], judgements)
            counts["num_not_agreed"], rows[FILTERED] = len(rows[FILTERED]) - len(agreed), agreed
        holds = None
        if BIASED in kinds:
            holds = np.zeros(len(labels), bool)
            holds[rows[BIASED]] = config.heuristic.of(joined.take(pa.array(rows[BIASED])), task)
        return cls(joined, ids, labels, rows, places, holds), counts

    def choose(self, config: TrainingSetConfig) -> tuple[list[int], dict[int, str]]:
        """The rows of a set, and the kind that each was drawn as."""
        part_of: dict[int, str] = {}
        for part in sorted(config.parts(), key=lambda part: SCARCEST_FIRST.index(part.kind)):
            strata = self.strata(part)
            if part_of:
                strata = [
                    (name, np.array([row for row in rows if row not in part_of], int), size) for name, rows, size in strata
                ]
            part_of |= dict.fromkeys(_choose(part, self.ids, strata, self.places[part.kind]), part.kind)
        return list(part_of), part_of

    def strata(self, config: TrainingSetConfig) -> list[Stratum]:
        """The strata of a set that is no mix."""
        rows = self.rows[config.kind]
        if config.kind == "starting":
            return [("starting examples", rows, config.size)]
        task = config.task
        of_label = {label: rows[self.labels[rows] == label] for label in task.labels}
        sizes = sizes_per_label(config.size, config.remainder, task.labels)
        if config.kind == DEBIASED:
            assert self.debiasing is not None
            return self.debiasing.strata(config, sizes)
        if config.kind != BIASED:
            return [(f"{label} examples", of_label[label], sizes[label]) for label in task.labels]
        holds = self.holds
        assert holds is not None
        rates = {label: holds[of_label[label]].mean() if len(of_label[label]) else 0.0 for label in task.labels}
        held = num_held(config, rates)
        strata = []
        for label in task.labels:
            which = holds[of_label[label]]
            name = f"{label} examples {{}} {_in_words(config.heuristic)}"
            strata.append((name.format("with"), of_label[label][which], held[label]))
            strata.append((name.format("without"), of_label[label][~which], sizes[label] - held[label]))
        return strata


@dataclass
class _Debiasing:
    """The pool's cells, and how much of a debiased set each of them is."""

    heuristics: tuple[Heuristic, ...]
    """Those that have an odds ratio in the original data."""
    predicted: list[int]
    rows: np.ndarray
    """int [num_rows]: the pool's rows, ascending, by their place in the drawing."""
    labels: np.ndarray
    """int [num_rows]: places in the task's labels."""
    holds: np.ndarray
    """bool [num_rows, num_heuristics]."""
    targets: np.ndarray

    @classmethod
    def of(cls, drawing: _Drawing, config: TrainingSetConfig, reference: str) -> "_Debiasing":
        """Raises UserError if the first of the config's heuristics has no odds ratio in the original data or in the pool."""
        task, rows, source = config.task, drawing.rows[DEBIASED], drawing.places[DEBIASED]
        original = read_examples(reference, task)
        labels = _codes(original, task, reference)
        holds = np.stack([heuristic.of(original, task) for heuristic in config.heuristics], axis=1)
        first = config.heuristics[0]
        if holds[:, 0].all() or not holds[:, 0].any():
            raise UserError(
                f"{_in_words(first)} holds of {'every' if holds[:, 0].any() else 'no'} example of {reference}, which so has no "
                f"odds ratio for a {DEBIASED} set to have; give the study another heuristic, or leave this kind out"
            )
        aimed = np.flatnonzero(holds.any(0) & ~holds.all(0))
        heuristics = tuple(config.heuristics[index] for index in aimed)
        predicted = _predicted(heuristics, task)
        targets = odds_ratios(labels, holds[:, aimed], predicted, _balancing(labels))
        pool = drawing.table.take(pa.array(rows))
        held = np.stack([heuristic.of(pool, task) for heuristic in heuristics], axis=1)
        debiasing = cls(heuristics, predicted, rows, _codes(pool, task, source), held, targets)
        _check_reached(first, debiasing.least_change, source)
        return debiasing

    @cached_property
    def least_change(self) -> Weights:
        return target_weights(self.labels, self.holds, self.predicted, self.targets, label_shares=self._shares, half=0)

    @cached_property
    def most_rows(self) -> Weights:
        """Heuristics that hold of other shares of the pairs take less of the scarcest cells."""
        return sparing_weights(self.labels, self.holds, self.predicted, self.targets, label_shares=self._shares, half=0)

    @property
    def _shares(self) -> np.ndarray:
        return np.ones(self.labels.max() + 1)

    def weights(self, size: int) -> Weights:
        """Of a set of ``size``."""
        return self.least_change if self._offered(self.least_change) >= size else self.most_rows

    def _offered(self, weights: Weights) -> int:
        """The largest set that there are rows for."""
        return int(len(self.rows) / weights.largest + 1e-6)

    def strata(self, config: TrainingSetConfig, sizes: Mapping[str, int]) -> list[Stratum]:
        """The cells of each label, and how many rows of each are drawn."""
        weights, task = self.weights(config.size), config.task
        first = np.unique(weights.cells, return_index=True)[1]
        masses = np.bincount(weights.cells, weights.values)
        strata = []
        for code, label in enumerate(task.labels):
            own = np.flatnonzero(weights.labels[first] == code)
            for cell, number in zip(own, apportion(masses[own], sizes[label]), strict=True):
                held = self.holds[first[cell]]
                strata.append((f"{label} examples{self._pattern(held)}", self.rows[weights.cells == cell], int(number)))
        return strata

    def _pattern(self, held: np.ndarray) -> str:
        words = ""
        for word, which in (("with", True), ("without", False)):
            if names := [
                _in_words(heuristic) for heuristic, holds in zip(self.heuristics, held, strict=True) if holds == which
            ]:
                words += f" {word} {' and '.join(names) if which else ' or '.join(names)}"
        return words

    def counts(self, drawn: np.ndarray) -> dict[str, float]:
        """Odds ratios of pool, original data and set, for which ``drawn`` are rows by their place in the drawing."""
        places = np.searchsorted(self.rows, drawn)
        of_pool = odds_ratios(self.labels, self.holds, self.predicted, _balancing(self.labels))
        of_set = odds_ratios(self.labels[places], self.holds[places], self.predicted)
        counts: dict[str, float] = {"debiased/num_offered": max(map(self._offered, (self.least_change, self.most_rows)))}
        for index, heuristic in enumerate(self.heuristics):
            ratios = {"pool": of_pool[index], "original": self.targets[index], "set": of_set[index]}
            counts |= {f"odds_ratio/{heuristic.name}/{name}": float(ratio) for name, ratio in ratios.items()}
            counts[f"odds_ratio/{heuristic.name}/reachable"] = int(index not in self.least_change.unreached)
        return counts


def _codes(table: pa.Table, task: Task, source: str) -> np.ndarray:
    """Each example's place in the task's labels. Raises UserError for a label without examples."""
    codes = np.array([task.labels.index(label) for label in table["label"].to_pylist()], int)
    numbers = np.bincount(codes, minlength=len(task.labels))
    if not numbers.all():
        raise UserError(
            f"{source} has no {task.labels[int(numbers.argmin())]} examples, and a {DEBIASED} set has as many of each label; "
            "give a larger source"
        )
    return codes


def _predicted(heuristics: Sequence[Heuristic], task: Task) -> list[int]:
    return [task.labels.index(str(heuristic.predicts)) for heuristic in heuristics]


def _check_reached(first: Heuristic, weights: Weights, source: str) -> None:
    if 0 in weights.unreached:
        raise UserError(
            f"no choice of the rows of {source} gives {_in_words(first)} the original data's odds ratio: "
            f"{weights.unreached[0]}; give a larger pool, or leave the kind {DEBIASED} out"
        )


def _balancing(labels: np.ndarray) -> np.ndarray:
    """Weights of rows, with mean 1, under which all labels have equal shares."""
    numbers = np.bincount(labels)
    return (len(labels) / len(numbers) / numbers)[labels]


def _agreed(ids: Sequence[str], labels: np.ndarray, rows: np.ndarray, source: str, judgements: str) -> np.ndarray:
    """Those of ``rows`` whose label is the predicted one. Raises UserError for a row that has no judgement."""
    judged = parquet_table(fetch(judgements), judgements, ["id", "predicted"])
    predicted = dict(zip(judged["id"].to_pylist(), judged["predicted"].to_pylist(), strict=True))
    if missing := [ids[row] for row in rows if ids[row] not in predicted]:
        raise UserError(
            f"{judgements} lacks {len(missing):,} of the {len(rows):,} rows of {source} ({missing[0]}, for one); judge "
            "this pool"
        )
    return rows[np.array([predicted[ids[row]] == labels[row] for row in rows], bool)]


def _counts_by_label(config: TrainingSetConfig, drawn: pa.Table, labels: np.ndarray, available: np.ndarray) -> dict[str, int]:
    holds = {heuristic.name: heuristic.of(drawn, config.task) for heuristic in _counted(config)}
    counts = {}
    for label in config.task.labels:
        of_label = labels == label
        counts[f"{label}/num_examples"] = int(of_label.sum())
        for name, held in holds.items():
            counts[f"{label}/{name}"] = int((of_label & held).sum())
        counts[f"{label}/available"] = int((available == label).sum())
    return counts


def _counted(config: TrainingSetConfig) -> Sequence[Heuristic]:
    """The heuristics that are counted: lexical overlap in NLI, and the config's own, if they are of the task."""
    if config.task == NLI:
        return tuple(dict.fromkeys((LEXICAL_OVERLAP, config.heuristic, *config.heuristics)))
    try:
        config.heuristic.check(config.task)
    except UserError:
        return config.heuristics
    return tuple(dict.fromkeys((config.heuristic, *config.heuristics)))


def _first_sets(config: TrainingSetConfig, sets: list[list[int]]) -> dict[int, int]:
    """Row → the number of the first of `sets` that has it. Raises UserError unless each set is within the next."""
    first_sets: dict[int, int] = {}
    for number, rows in enumerate(sets):
        if missing := len(first_sets.keys() - set(rows)):
            sizes = (*config.nested_sizes, config.size)
            raise UserError(
                f"the {config.kind} set of size={sizes[number - 1]} has {missing:,} examples that the one of "
                f"size={sizes[number]} lacks: its strata do not all grow with the size; choose sizes further apart, or train "
                "each on its own"
            )
        for row in rows:
            first_sets.setdefault(row, number)
    return first_sets


def num_held(config: TrainingSetConfig, rates: Mapping[str, float]) -> dict[str, int]:
    """Numbers of examples by label of which the heuristic holds in a biased set; ``rates`` are P(it holds | label) in the pool.

    Raises :class:`UserError` if that is more than the label has in the set.
    """
    labels = config.task.labels
    sizes = sizes_per_label(config.size, config.remainder, labels)
    predicted = str(config.heuristic.predicts)
    share = config.heuristic_share
    total = sizes[predicted] if share is None else _round(share * sum(sizes.values()))
    others = config.task.other_labels(predicted)
    rest = total - _round(config.bias * total)
    weights = [rates[label] for label in others] if any(rates[label] for label in others) else [1.0] * len(others)
    ends = list(accumulate(weights))
    # The last end is the sum itself, so that nothing is lost to rounding.
    ends_held = [_round(rest * (end / ends[-1])) for end in ends]
    held = {predicted: total - rest} | {
        label: end - before for label, end, before in zip(others, ends_held, [0, *ends_held[:-1]], strict=True)
    }
    for label in labels:
        if held[label] > sizes[label]:
            raise UserError(
                f"bias={config.bias} and heuristic_share={share} ask for {held[label]:,} {label} examples with "
                f"{_in_words(config.heuristic)}, and {sizes[label]:,} of {config.size:,} have this label; lower the share"
            )
    return {label: held[label] for label in labels}


def _choose(config: TrainingSetConfig, ids: Sequence[str], strata: Sequence[Stratum], source: str) -> list[int]:
    _check_strata(config, strata, source)
    key = _key(config, "draw")
    return [row for _, rows, size in strata for row in sorted(rows.tolist(), key=lambda row: key(ids[row]))[:size]]


def _check_strata(config: TrainingSetConfig, strata: Sequence[Stratum], source: str) -> None:
    for name, rows, size in strata:
        if size > len(rows):
            # All strata grow with the set, so that the scarcest says how much smaller it has to be.
            step = 1 if config.kind == "starting" else len(config.task.labels)
            largest = min(len(rows) * config.size // size for _, rows, size in strata if size) // step * step
            choices = [f"a size of at most {largest:,}"] if largest else []
            choices += ["another bias or heuristic_share"] if config.bias < 1 or config.heuristic_share else []
            choices += ["or a larger source" if choices else "a larger source"]
            too_few = "" if largest else "no size is small enough: "
            raise UserError(
                f"asked for {size:,} {name} (in a set of {config.size:,}), {source} has {len(rows):,}; {too_few}choose "
                f"{', '.join(choices)}"
            )


def _in_words(heuristic: Heuristic) -> str:
    return heuristic.name.replace("_", " ")


def _round(number: float) -> int:
    """To the nearest whole number, halves up: unlike Python's round, it never falls where the number grows."""
    return math.floor(number + 0.5)


def _key(config: TrainingSetConfig, purpose: str) -> Callable[[str], bytes]:
    # The kind is in it so that an original set is not, of all samples, the one that holds the starting set of
    # its seed.
    prefix = hashlib.sha256(f"{purpose}\0{config.kind}\0{config.seed}\0".encode())

    def key(identifier: str) -> bytes:
        digest = prefix.copy()
        digest.update(identifier.encode())
        return digest.digest()

    return key

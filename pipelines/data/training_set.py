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
=================  ==========================  ==================================================

All are drawn without replacement (paper, sections 2.3.2 and 2.3.3).

**The bias dial.** Of the pairs of a biased set the heuristic holds of a share, ``heuristic_share``; of these a share, ``bias``,
have the label that it predicts. The others are of the other labels, in the proportion of the heuristic's rates in the pool. By
default the bias is 1 and the heuristic holds of as many pairs as have the predicted label: the paper's set, in which all
entailments and no others have lexical overlap. With the share and the bias that a balanced sample of the pool has, a biased set
is made up as a ``synthetic`` one.

The draw is a hash, not a generator of random numbers: examples are ordered by ``sha256(seed, kind, id)`` and
the first ones of each label taken. So it does not depend on the order of files, shards or rows, nor on a
library's version; sets of one seed and kind are *nested*, the smaller in the larger; seeds and kinds are
independent. Doses of bias of one seed share as many rows as they can: a dose differs from the next in the rows that make it so.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.identity import added
from pipelines.storage import fetch, join
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import LEXICAL_OVERLAP, Heuristic
from pipelines.tasks.nli import LABELS, Label
from pipelines.tasks.parquet import parquet_table

FILTERED = "filtered_synthetic"
KINDS = ("starting", "original", "synthetic", "biased_synthetic", FILTERED)
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
    heuristic: Heuristic = added(LEXICAL_OVERLAP)
    """The heuristic that a biased set is biased to."""
    bias: float = added(1.0)
    """P(the predicted label | the heuristic holds) in a biased set, 0 to 1."""
    heuristic_share: float | None = added(None)
    """P(the heuristic holds) in a biased set, above 0; None: as many pairs as there are of the predicted label."""
    nested_sizes: tuple[int, ...] = added(())
    """Smaller sizes, ascending, whose sets come first in this one's rows, each before what the next adds: so one finetuning
    meets them one within the other (``recipe.py``).
    """

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
        if self.kind != "biased_synthetic" and (self.heuristic, self.bias, self.heuristic_share) != (LEXICAL_OVERLAP, 1, None):
            raise UserError(
                f"heuristic, bias and heuristic_share are for biased_synthetic sets, not for kind={self.kind!r}; leave them out"
            )
        check_bias(self.bias, self.heuristic_share)
        numbers = [num_drawn(config) for config in (*self.nested(), self)]
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise UserError(
                f"nested_sizes={self.nested_sizes} in size={self.size} give sets of {', '.join(map(str, numbers))} examples: "
                "each must be larger than the one before; leave out sizes that are not"
            )

    def nested(self) -> tuple["TrainingSetConfig", ...]:
        """The sets within this one, from the smallest."""
        return tuple(replace(self, size=size, nested_sizes=()) for size in self.nested_sizes)


def num_drawn(config: TrainingSetConfig) -> int:
    """Examples that a training set has."""
    return config.size if config.kind == "starting" else sum(sizes_per_label(config.size, config.remainder).values())


def check_bias(bias: float, heuristic_share: float | None) -> None:
    """Raises :class:`UserError` for a bias that is not in 0..1 and a share that is not in 0..1 or is 0."""
    if not 0 <= bias <= 1:
        raise UserError(f"bias={bias}: it is the probability of a label where the heuristic holds; give 0 to 1")
    if heuristic_share is not None and not 0 < heuristic_share <= 1:
        raise UserError(f"heuristic_share={heuristic_share}: it is a share of the set; give more than 0, and at most 1")


def sizes_per_label(size: int, remainder: str) -> dict[Label, int]:
    """Numbers of examples of each label in a balanced set of ``size``.

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


def draw_training_set(
    config: TrainingSetConfig, source: str, output: str, *, exclude: str | None = None, judgements: str | None = None
) -> dict[str, int]:
    """Draw the set from ``source`` (a Parquet file or a folder of them) and write ``examples.parquet`` to ``output``.

    The rows are those of the source, all columns kept, in an order that depends on the seed, those of each of ``nested_sizes``
    before the others. ``exclude`` is the path of examples whose ids must not be drawn; it is given if and only if the config
    says ``disjoint_from_starting``, for kind ``original``. ``judgements``, a Parquet file with id and predicted, is given if
    and only if the kind is ``filtered_synthetic``; rows that no judge was asked about are left out, too.

    Returns rows, lexical overlap and availability by label (``<label>/num_examples``,
    ``<label>/lexical_overlap``, ``<label>/available``), and ``num_examples``, ``num_excluded``; for a set biased to another
    heuristic also how often that one holds (``<label>/<heuristic>``), for a filtered one how many rows of the pool no judge
    agreed with (``num_not_agreed``). A label's available examples are those of a stratum, with
    the heuristic or without, that the set draws from. Raises :class:`UserError` if there are fewer examples than asked for,
    saying how many there are, and if a set of ``nested_sizes`` is not within the next.
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
    num_given = table.num_rows
    if exclude is not None:
        excluded = set(read_examples(exclude)["id"].to_pylist())
        table = table.filter(pa.array([identifier not in excluded for identifier in table["id"].to_pylist()], pa.bool_()))
    if (config.kind == FILTERED) != (judgements is not None):
        raise UserError(
            f"kind={config.kind!r} with judgements={judgements!r}; a {FILTERED} set is drawn from judged rows, and no other is"
        )
    num_kept = table.num_rows
    if judgements is not None:
        table = _agreed(table, source, judgements)
    ids = table["id"].to_pylist()
    labels = np.array(table["label"].to_pylist(), dtype=object)
    if unknown := sorted(set(labels) - set(LABELS)):
        raise UserError(f"{source} has examples labelled {', '.join(unknown)}; a training set has {', '.join(LABELS)}")
    strata = _strata(config, table, labels)
    chosen = _choose(config, ids, strata, source)
    nested = [_choose(smaller, ids, _strata(smaller, table, labels), source) for smaller in config.nested()]
    first_set = _first_sets(config, [*nested, chosen])
    order_key = _key(config, "order")
    chosen.sort(key=lambda row: (first_set[row], order_key(ids[row])))
    drawn = table.take(pa.array(chosen, type=pa.int64()))
    write_examples(drawn, join(output, "examples.parquet"))
    available = labels[np.concatenate([rows for _, rows, size in strata if size])]
    return {
        "num_examples": drawn.num_rows,
        "num_excluded": num_given - num_kept,
        **({"num_not_agreed": num_kept - table.num_rows} if judgements is not None else {}),
        **_counts_by_label(config, drawn, labels[chosen], available),
    }


def _agreed(table: pa.Table, source: str, judgements: str) -> pa.Table:
    """The rows of an examples table whose label is the predicted one. Raises UserError for a row that has no judgement."""
    judged = parquet_table(fetch(judgements), judgements, ["id", "predicted"])
    predicted = dict(zip(judged["id"].to_pylist(), judged["predicted"].to_pylist(), strict=True))
    ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
    if missing := [identifier for identifier in ids if identifier not in predicted]:
        raise UserError(
            f"{judgements} lacks {len(missing):,} of the {len(ids):,} rows of {source} ({missing[0]}, for one); judge this pool"
        )
    return table.filter(pa.array([predicted[key] == label for key, label in zip(ids, labels, strict=True)], pa.bool_()))


def _counts_by_label(config: TrainingSetConfig, drawn: pa.Table, labels: np.ndarray, available: np.ndarray) -> dict[str, int]:
    heuristics = dict.fromkeys((LEXICAL_OVERLAP, config.heuristic))
    holds = {heuristic.name: heuristic(drawn["premise"], drawn["hypothesis"]) for heuristic in heuristics}
    counts = {}
    for label in LABELS:
        of_label = labels == label
        counts[f"{label}/num_examples"] = int(of_label.sum())
        for name, held in holds.items():
            counts[f"{label}/{name}"] = int((of_label & held).sum())
        counts[f"{label}/available"] = int((available == label).sum())
    return counts


def _first_sets(config: TrainingSetConfig, sets: list[list[int]]) -> dict[int, int]:
    """Row → the number of the first of `sets` that has it. Raises UserError unless each set is within the next."""
    first_sets: dict[int, int] = {}
    for number, rows in enumerate(sets):
        if missing := len(first_sets.keys() - set(rows)):
            sizes = (*config.nested_sizes, config.size)
            raise UserError(
                f"the {config.kind} set of size={sizes[number - 1]} has {missing} examples that the one of "
                f"size={sizes[number]} lacks: its strata do not all grow with the size; choose sizes further apart, or train "
                "each on its own"
            )
        for row in rows:
            first_sets.setdefault(row, number)
    return first_sets


def num_held(config: TrainingSetConfig, rates: Mapping[Label, float]) -> dict[Label, int]:
    """Numbers of examples by label of which the heuristic holds in a biased set; ``rates`` are P(it holds | label) in the pool.

    Raises :class:`UserError` if that is more than the label has in the set.
    """
    sizes = sizes_per_label(config.size, config.remainder)
    predicted = Label(config.heuristic.predicts)
    share = config.heuristic_share
    total = sizes[predicted] if share is None else _round(share * sum(sizes.values()))
    second, third = (label for label in LABELS if label != predicted)
    rest = total - _round(config.bias * total)
    of_both = rates[second] + rates[third]
    of_second = _round(rest * (rates[second] / of_both if of_both else 0.5))
    held = {predicted: total - rest, second: of_second, third: rest - of_second}
    for label in LABELS:
        if held[label] > sizes[label]:
            raise UserError(
                f"bias={config.bias} and heuristic_share={share} ask for {held[label]:,} {label} examples with "
                f"{_in_words(config.heuristic)}, and {sizes[label]:,} of {config.size:,} have this label; lower the share"
            )
    return {label: held[label] for label in LABELS}


def _strata(config: TrainingSetConfig, table: pa.Table, labels: np.ndarray) -> list[tuple[str, np.ndarray, int]]:
    """Strata that the set is drawn from: a name for people, the rows, and how many of them are drawn."""
    if config.kind == "starting":
        return [("starting examples", np.arange(len(labels)), config.size)]
    rows = {label: np.flatnonzero(labels == label) for label in LABELS}
    sizes = sizes_per_label(config.size, config.remainder)
    if config.kind != "biased_synthetic":
        return [(f"{label} examples", rows[label], sizes[label]) for label in LABELS]
    holds = config.heuristic(table["premise"], table["hypothesis"])
    held = num_held(config, {label: holds[rows[label]].mean() if len(rows[label]) else 0.0 for label in LABELS})
    strata = []
    for label in LABELS:
        which = holds[rows[label]]
        name = f"{label} examples {{}} {_in_words(config.heuristic)}"
        strata.append((name.format("with"), rows[label][which], held[label]))
        strata.append((name.format("without"), rows[label][~which], sizes[label] - held[label]))
    return strata


def _choose(config: TrainingSetConfig, ids: list[str], strata: list[tuple[str, np.ndarray, int]], source: str) -> list[int]:
    key = _key(config, "draw")
    chosen: list[int] = []
    for name, rows, size in strata:
        if size > len(rows):
            # All strata grow with the set, so that the scarcest says how much smaller it has to be.
            step = 1 if config.kind == "starting" else len(LABELS)
            largest = min(len(rows) * config.size // size for _, rows, size in strata if size) // step * step
            dial = "another bias or heuristic_share, " if config.bias < 1 or config.heuristic_share else ""
            raise UserError(
                f"asked for {size:,} {name} (in a set of {config.size:,}), {source} has {len(rows):,}; choose a size of at "
                f"most {largest:,}, {dial}or a larger source"
            )
        chosen += sorted(rows.tolist(), key=lambda row: key(ids[row]))[:size]
    return chosen


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

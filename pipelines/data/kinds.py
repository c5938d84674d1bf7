"""Kinds of training set as values: what a set is made up of, where a name alone does not say it. Pure.

    Mix(original=0.5, synthetic=0.5)   # of a set of 900, 450 are original: the total is fixed
    Added(synthetic=2.0)               # 900 original examples and 1,800 synthetic ones: the number of original ones is fixed

Each part is a set of its kind as it would be drawn alone, of its own size and balanced by label: half of a mix is the pure set
of half the size, and within the pure one of the full size.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import accumulate

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.identity import added

ORIGINAL = "original"
FILTERED = "filtered_synthetic"
DEBIASED = "debiased_synthetic"
PARTS = (ORIGINAL, "synthetic", "biased_synthetic", FILTERED, DEBIASED)
"""Kinds that a mix can have parts of."""


@dataclass(frozen=True)
class Mix:
    """Shares of one set, which add up to 1: a set of a size has that many examples in all.

    Raises :class:`UserError` for a share that is none, for shares that do not add up, and for fewer than two parts.
    """

    original: float = added(0.0)
    synthetic: float = added(0.0)
    biased_synthetic: float = added(0.0)
    filtered_synthetic: float = added(0.0)
    debiased_synthetic: float = added(0.0)

    def __post_init__(self) -> None:
        check_types(self)
        _check_parts(self)
        if len(self.parts) < 2:
            raise UserError(f"{_shown(self)} has fewer than two parts; give two or more, or the kind's name for a pure set")
        if not math.isclose(total := math.fsum(self.parts.values()), 1, abs_tol=1e-5):
            raise UserError(
                f"{_shown(self)} adds up to {total:g}: shares of one set add up to 1; mend them, or use Added(synthetic=…) for "
                "synthetic examples on top of a fixed number of original ones"
            )

    @property
    def parts(self) -> Mapping[str, float]:
        """Kind → its share, without those that are 0."""
        return _parts(self)

    @property
    def name(self) -> str:
        """What tables, slugs and claims call it: ``mix_original0.5_synthetic0.5``."""
        return _name("mix", self)

    @property
    def title(self) -> str:
        """What pages call it: ``50% original, 50% synthetic``."""
        return ", ".join(f"{100 * share:g}% {_words(kind)}" for kind, share in self.parts.items())

    @property
    def synthetic_share(self) -> float:
        """The share of the set that a generator wrote."""
        return 1 - self.original

    def sizes(self, size: int) -> dict[str, int]:
        """Examples of each part in a set of ``size``; they add up to it."""
        shares = list(self.parts.values())
        ends = [math.floor(size * end / math.fsum(shares) + 0.5) for end in accumulate(shares)]
        ends[-1] = size
        return {kind: end - before for kind, end, before in zip(self.parts, ends, [0, *ends[:-1]], strict=True)}


@dataclass(frozen=True)
class Added:
    """Synthetic examples for each original one: the size of such a set counts the original ones.

    Raises :class:`UserError` for a ratio that is none, and if there is nothing that is added.
    """

    synthetic: float = added(0.0)
    biased_synthetic: float = added(0.0)
    filtered_synthetic: float = added(0.0)
    debiased_synthetic: float = added(0.0)

    def __post_init__(self) -> None:
        check_types(self)
        _check_parts(self)
        if len(self.parts) < 2:
            raise UserError(f"{_shown(self)} adds nothing; give a ratio above 0, or the kind 'original' for a pure set")

    @property
    def parts(self) -> Mapping[str, float]:
        """Kind → examples of it for each original one, those first."""
        return {ORIGINAL: 1.0, **_parts(self)}

    @property
    def name(self) -> str:
        """What tables, slugs and claims call it: ``added_synthetic2``."""
        return _name("added", self)

    @property
    def title(self) -> str:
        """What pages call it: ``original + 2 × synthetic``."""
        return " + ".join([ORIGINAL, *(f"{ratio:g} × {_words(kind)}" for kind, ratio in _parts(self).items())])

    @property
    def synthetic_share(self) -> float:
        """The share of the set that a generator wrote."""
        return 1 - 1 / math.fsum(self.parts.values())

    def sizes(self, size: int) -> dict[str, int]:
        """Examples of each part in a set with ``size`` original ones."""
        return {kind: math.floor(size * ratio + 0.5) for kind, ratio in self.parts.items()}


Kind = str | Mix | Added


def find_kind(kind: Kind) -> Kind:
    """The value that a text stands for: ``mixed_25`` (a quarter is synthetic) or a mix's own name; any other is returned.

    Raises :class:`UserError` for a text that names an impossible mix.
    """
    if not isinstance(kind, str):
        return kind
    if mixed := re.fullmatch(r"mixed_(\d+)", kind):
        share = int(mixed[1]) / 100
        return Mix(original=1 - share, synthetic=share)
    if named := re.fullmatch(rf"(mix|added)((?:_(?:{'|'.join(PARTS)})\d+(?:\.\d+)?)+)", kind):
        found = re.findall(rf"_({'|'.join(PARTS)})(\d+(?:\.\d+)?)", named[2])
        parts = {part: float(number) for part, number in found}
        if named[1] == "mix" and len(parts) == len(found):
            return Mix(**parts)
        if named[1] == "added" and len(parts) == len(found) and ORIGINAL not in parts:
            return Added(**parts)
    return kind


def kind_name(kind: Kind) -> str:
    """The name of a kind, as coordinates and claims have it."""
    return kind if isinstance(kind, str) else kind.name


def parts_of(kind: Kind) -> tuple[str, ...]:
    """The kinds that a set of ``kind`` is drawn as: its own, or a mix's parts."""
    return (kind,) if isinstance(kind, str) else tuple(kind.parts)


def sizes_of(kind: Kind, size: int) -> dict[str, int]:
    """Examples of each of :func:`parts_of` in a set of ``size``."""
    return {kind: size} if isinstance(kind, str) else kind.sizes(size)


def _parts(mix: Mix | Added) -> dict[str, float]:
    return {field.name: getattr(mix, field.name) for field in fields(mix) if getattr(mix, field.name)}


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _check_parts(mix: Mix | Added) -> None:
    for kind, number in _parts(mix).items():
        if not (math.isfinite(number) and number > 0):
            raise UserError(f"{_shown(mix)}: {kind}={number} is no share of a set; give numbers of 0 or more")


def _shown(mix: Mix | Added) -> str:
    return f"{type(mix).__name__}({', '.join(f'{kind}={number:g}' for kind, number in _parts(mix).items())})"


def _name(prefix: str, mix: Mix | Added) -> str:
    return "_".join([prefix, *(f"{kind}{number:g}" for kind, number in _parts(mix).items())])

"""All that a study's claims are judged by: its responses, its grid, and the questions that its claims put to them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.stats.intervals import Replicates, mean_of
from analysis.study.artifacts import LabelCount, lexical_overlap_counts
from analysis.study.frame import evaluation_frame
from analysis.study.items import Responses, load_arms
from analysis.study.series import study_series
from analysis.verdicts.questions import Part, Question, Setting
from analysis.wording import in_words, kind_words, set_name, slice_name, starting_point_name
from pipelines.data.kinds import kind_name
from pipelines.errors import UserError
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task
from sweep.graph.records import Store, Study
from sweep.study.claims import START, Claim, Comparison, Difference, Measure, from_json
from sweep.study.paper_claims import PAPER_CLAIMS

UNDERTRAINED = 20_000
"""The paper calls starting points undertrained without a number; in its Figure 1 MultiNLI rises up to 20,000 examples."""
MARGINS = {Measure.ACCURACY: 0.05, Measure.MARGIN: 0.5, Measure.AUC: 0.05, Measure.PULL: 0.05}
"""What counts as 'about as much' where a claim declares nothing: five points of accuracy or of a probability, half a unit of
log-odds."""


@dataclass(frozen=True)
class Evidence:
    """All that claims are made of.

    `blindspot_slice` is where going by the study's heuristic is wrong; `claims` are the study's own, as its manifest has them;
    `counts` are lexical overlaps by label of "original" and "synthetic" data, where known. In a study with several arms
    `arms` has the responses of each, and `responses` are the first's; `shared` maps a cell of an arm to the first arm of those
    that have this very cell.
    """

    responses: Responses
    general_set: str
    blindspot_set: str
    blindspot_slice: str
    starting_sizes: tuple[int, ...]
    sizes: tuple[int, ...]
    claims: tuple[Claim, ...] = PAPER_CLAIMS
    counts: Mapping[str, Mapping[str, LabelCount]] = field(default_factory=dict)
    arms: Mapping[str, Responses] = field(default_factory=dict)
    shared: Mapping[tuple[str, int, str, int], str] = field(default_factory=dict)

    @property
    def by_arm(self) -> dict[str, Evidence]:
        """Each arm's own evidence, as of a study with that arm alone; "" and this where there is one."""
        return {arm: replace(self, responses=found, arms={}) for arm, found in self.arms.items()} or {"": self}

    def change(self, place: tuple[str, str], treatment: str, control: str, starts: Sequence[int]) -> Replicates:
        """One kind minus another on a set and a slice, averaged over `starts` and all sizes (`Responses.change`)."""
        return self.responses.change(*place, treatment, control, starts, self.sizes)

    def place(self, on: str) -> tuple[str, str]:
        """The set and the slice of "general", "blindspot" or "adversarial"."""
        places = {
            "general": (self.general_set, "all"),
            "blindspot": (self.blindspot_set, "all"),
            "adversarial": (self.blindspot_set, self.blindspot_slice),
        }
        return places[on]

    def title(self, test_set: str) -> str:
        """What people call a test set."""
        items = self.responses.items.get(test_set)
        return items.title if items else set_name(test_set)

    def level(self, difference: Difference, kind: str, start: int, size: int, arm: str = "") -> Replicates:
        """The measure of one cell, or of its starting point for the kind "none", by seed."""
        cell = (start, kind, 0 if kind == START else size)
        test_set, slice_ = self.place(difference.on)
        responses = self.arms[arm] if arm else self.responses
        try:
            return responses.measured(difference.measure, test_set, slice_, [cell], self.general_set)
        except UserError as error:
            raise UserError(f"{arm}, {kind}: {error}" if arm else f"{kind}: {error}") from error

    def difference(self, difference: Difference, start: int, size: int, arm: str = "") -> Replicates:
        """Treatment minus control in one setting, paired by seed; the treatment's level without a control.

        It is taken in the difference's arm or else in `arm`; against another arm, less the same in that.
        """
        terms = self._terms(difference, start, size, arm)
        levels = [self.level(difference, kind, start, size, of) * sign for of, kind, sign in terms]
        total = levels[0]
        for level in levels[1:]:
            total = total.minus(level * -1)
        return total

    def _terms(self, difference: Difference, start: int, size: int, arm: str) -> list[tuple[str, str, int]]:
        """The levels that it is made of: arm, kind and sign of each."""
        arms = [(str(difference.arm or arm), 1), *([(str(difference.against), -1)] if difference.against else [])]
        kinds = [(kind_name(difference.treatment), 1)]
        kinds += [(kind_name(difference.control), -1)] if difference.control is not None else []
        return [(of, kind, sign * side) for of, sign in arms for kind, side in kinds]

    def made_of(self, comparison: Comparison, start: int, sizes: Sequence[int], arm: str) -> frozenset[tuple[Any, ...]]:
        """The levels that a comparison comes to in a setting, each with its weight, without what cancels out.

        A cell that several arms have is the first one's.
        """
        weights: defaultdict[tuple[Any, ...], float] = defaultdict(float)
        for difference in comparison.differences:
            for size in sizes:
                for of, kind, sign in self._terms(difference, start, size, arm):
                    cell = start, kind, 0 if kind == START else size
                    weights[self.shared.get((of, *cell), of), *cell, difference.on, size] += sign * difference.weight
        return frozenset((term, weight) for term, weight in weights.items() if weight)

    def compare(self, comparison: Comparison, start: int, size: int, arm: str = "") -> Replicates:
        """The comparison's weighted sum in one setting, by seed, or by generator where there are several and they play a part.

        Raises UserError where no seed has all of its cells.
        """
        by_place: dict[str, Replicates] = {}
        for difference in comparison.differences:
            part = self.difference(difference, start, size, arm) * difference.weight
            before = by_place.get(difference.on)
            by_place[difference.on] = part if before is None else before.minus(part * -1)
        total, *others = by_place.values()
        for other in others:
            common = sorted(set(total.seeds) & set(other.seeds))
            if not common:
                raise UserError("no seed is on both test sets; a paired difference needs both")
            total = total.of(common) + other.of(common)
        return self.responses.by_unit(comparison.kinds, total)

    def slope(self, comparison: Comparison, start: int, sizes: Sequence[int], arm: str = "") -> Replicates:
        """The comparison's least-squares slope per doubling of the training set's size. Raises UserError for fewer than two."""
        if len(sizes) < 2:
            raise UserError(f"a slope needs two training sizes, and the study has {len(sizes)}")
        doublings = [math.log2(size) for size in sizes]
        middle = math.fsum(doublings) / len(doublings)
        squares = math.fsum((doubling - middle) ** 2 for doubling in doublings)
        terms = [
            self.compare(comparison, start, size, arm) * ((doubling - middle) / squares)
            for size, doubling in zip(sizes, doublings, strict=True)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total.minus(term * -1)
        return total

    @property
    def task(self) -> Task:
        return next((items.task for items in self.responses.items.values()), NLI)

    @property
    def num_generators(self) -> int:
        return max(1, len(set(self.responses.generator_of.values())))


def load_evidence(
    store: Store | str,
    study: Study | str,
    *,
    partial: bool = False,
    frame: pd.DataFrame | None = None,
    counts: Mapping[str, Mapping[str, LabelCount]] | None = None,
    also: Sequence[str] = (),
) -> Evidence:
    """Read what the claims need of a study, and the answers to the test sets `also`. Raises as `judge` does.

    Who has the study's `frame` (`evaluation_frame`) or overlap `counts` (`lexical_overlap_counts`) already hands them on: a
    pool of millions is not read twice.
    """
    store = store if isinstance(store, Store) else Store(store)
    study = study if isinstance(study, Study) else Study.load(store, study)
    frame = evaluation_frame(store, study, partial=partial) if frame is None else frame
    series = study_series(study, frame)
    counts = _overlap_counts(store, study) if counts is None else counts
    general, blindspot = series[0].set, series[1].set
    sets = list(dict.fromkeys([general, blindspot, *also]))
    arms = load_arms(store, study, sets, frame, partial=partial)
    # The study's own grid, not what is there of it: what happens to be built is another question.
    grid = [step.coordinates for step in study.steps if step.stage == "evaluation"]
    shared = {
        (arm, int(cell["starting_size"]), str(cell["kind"]), int(cell["size"])): cell["arms"][0]
        for cell in grid
        for arm in cell.get("arms", ())
    }
    declared = study.parameters.get("claims")
    return Evidence(
        next(iter(arms.values())),
        general,
        blindspot,
        study.blindspot_slice,
        tuple(sorted({int(cell["starting_size"]) for cell in grid})),
        tuple(sorted({int(cell["size"]) for cell in grid} - {0})),
        # Manifests from before claims were declared have none.
        PAPER_CLAIMS if declared is None else from_json(declared),
        # One without the other makes no claim.
        counts if len(counts) > 1 else {},
        arms if study.arms else {},
        shared,
    )


def questions(evidence: Evidence, *, undertrained: int = UNDERTRAINED, margin: float | None = None) -> list[Question]:
    """The study's claims as they are put to its results, in their order; `margin` stands for that of accuracies, if given."""
    asked = []
    for claim in evidence.claims:
        for start in _starts(claim, evidence, undertrained) if claim.each_start else (None,):
            asked.append(_question(claim, evidence, start, undertrained, margin))
    return asked


def _question(claim: Claim, evidence: Evidence, start: int | None, undertrained: int, margin: float | None) -> Question:
    measure = claim.comparisons[0].measure
    declared = claim.margin if claim.margin is not None else MARGINS[measure]
    question = Question(
        claim.name if start is None else f"{claim.name}/start={start}",
        claim.statement if start is None else claim.statement.replace("{start}", f"{start:,}"),
        # What the paper found is about its own task.
        paper=claim.paper if evidence.task == NLI else "",
        rule=claim.rule,
        margin=declared if margin is None or measure != Measure.ACCURACY else margin,
        measure=str(measure),
        primary=claim.primary,
        control=claim.control,
        is_on_blindspot=claim.is_on_blindspot,
        compares_on_blindspot=claim.compares_on_blindspot,
        is_from_pool=claim.is_from_pool,
    )
    starts = _starts(claim, evidence, undertrained) if start is None else [start]
    if not starts:
        return replace(question, why_not=f"the study has no starting point that is {claim.starts}")
    sizes = _sizes(claim, evidence)
    if not sizes:
        return replace(question, why_not=f"the study has none of the training sizes {claim.sizes}")
    where = {each.on for comparison in claim.comparisons for each in comparison.differences}
    if evidence.general_set == evidence.blindspot_set and "blindspot" in where:
        # A verdict would call general accuracy the blindspot's, whatever becomes of the slice where the heuristic is wrong.
        return replace(
            question, why_not="the study's blindspot set is its general set, so that accuracy on it is general accuracy"
        )
    if absent := sorted(claim.named_arms - set(evidence.arms)):
        return replace(question, why_not=f"the study has no {_arm_words(absent)}")
    places = _places(claim, evidence, _arms(claim, evidence), starts, sizes)
    if not places:
        return replace(question, why_not="the arms that it sets against each other are the same in every setting")
    settings, headlines = [], []
    for of_arms, at, size in places:
        name = f"start {starting_point_name(at)}" + ("" if size is None else f", size {size:,}")
        name = f"{_arm_words(of_arms)}, {name}" if of_arms[0] and not _names_all_arms(claim) else name
        try:
            data = [
                evidence.slope(comparison, at, sizes, of_arms[0])
                if size is None
                else evidence.compare(comparison, at, size, of_arms[0])
                for comparison in claim.comparisons
            ]
        except UserError as error:
            settings.append(Setting(name, why_not=str(error)))
            continue
        parts = zip(claim.comparisons, data, strict=True)
        settings.append(Setting(name, tuple(_part(comparison, one, evidence) for comparison, one in parts)))
        headlines.append(data[0])
    if not headlines:
        return replace(question, settings=tuple(settings), why_not=settings[0].why_not)
    headline = _part(claim.comparisons[0], mean_of(headlines), evidence)
    notes = tuple(f"{setting.name}: {setting.why_not}" for setting in settings if setting.why_not)
    return replace(question, settings=tuple(settings), headline=headline, notes=notes)


def _places(
    claim: Claim, evidence: Evidence, arms: Sequence[str], starts: Sequence[int], sizes: Sequence[int]
) -> list[tuple[list[str], int, int | None]]:
    """A claim's settings: arms, starting point and size (None: all), each once.

    Arms that have the very same cells there are one setting, not several; where they are set against each other, there is none.
    """
    over_sizes = claim.comparisons[0].over_sizes
    found: dict[Any, tuple[list[str], int, int | None]] = {}
    for arm, at, size in ((arm, at, size) for arm in arms for at in starts for size in ((None,) if over_sizes else sizes)):
        key = tuple(evidence.made_of(one, at, sizes if size is None else [size], arm) for one in claim.comparisons)
        if all(key) or not evidence.arms:
            found.setdefault(key if evidence.arms else (at, size), ([], at, size))[0].append(arm)
    return list(found.values())


def _arms(claim: Claim, evidence: Evidence) -> list[str]:
    """The arms that a claim is judged in; one is enough where it names them all itself."""
    if isinstance(claim.arms, tuple):
        return [arm for arm in evidence.arms if arm in claim.arms]
    return list(evidence.arms or ("",))[: 1 if _names_all_arms(claim) else None]


def _names_all_arms(claim: Claim) -> bool:
    return all(comparison.names_all_arms for comparison in claim.comparisons)


def _arm_words(arms: Sequence[str]) -> str:
    return f"arm {arms[0]}" if len(arms) == 1 else f"arms {in_words(arms)}"


def _part(comparison: Comparison, data: Replicates, evidence: Evidence) -> Part:
    is_accuracy = comparison.measure == Measure.ACCURACY
    bound = sum(
        # How much wider a gap is in one arm than in another is a difference of two.
        abs(difference.weight) * (2 if difference.control is not None and difference.against is not None else 1)
        for difference in comparison.differences
    )
    return Part.of(
        part_name(comparison, evidence),
        data,
        comparison.sign,
        unit="share" if is_accuracy else "number",
        bound=math.inf if comparison.measure == Measure.MARGIN else float(bound),
        threshold=comparison.threshold,
    )


def part_name(comparison: Comparison, evidence: Evidence) -> str:
    """A comparison in words: 'synthetic − original on HANS'."""
    text = ""
    for difference in comparison.differences:
        test_set, slice_ = evidence.place(difference.on)
        title = evidence.title(test_set)
        where = title if slice_ == "all" else f"{title}, {slice_name(slice_)}"
        treatment, control = (
            "starting point" if kind == START else kind_words(kind_name(kind)) if kind else ""
            for kind in (difference.treatment, difference.control)
        )
        words = f"{treatment} − {control} on {where}" if control else f"{treatment} on {where}"
        words += f", {difference.arm}" if difference.arm else ""
        words += f" − {difference.against}" if difference.arm and difference.against else ""
        words += f", less that in {difference.against}" if difference.against and not difference.arm else ""
        sign = " − " if difference.weight < 0 else " + "
        text += (sign if text else "") + (f"({words})" if len(comparison.differences) > 1 else words)
    if comparison.measure != Measure.ACCURACY:
        text = f"{MEASURE_NAMES[comparison.measure]}, {text}"
    return f"{text}, per doubling of the size" if comparison.over_sizes else text


MEASURE_NAMES = {Measure.ACCURACY: "accuracy", Measure.MARGIN: "margin (log-odds)", Measure.AUC: "AUC", Measure.PULL: "pull"}


def _starts(claim: Claim, evidence: Evidence, undertrained: int) -> list[int]:
    """The study's starting points that a claim is about; an untrained one has no level on a blindspot to change from."""
    if isinstance(claim.starts, tuple):
        chosen = [start for start in evidence.starting_sizes if start in claim.starts]
    else:
        belongs = {
            "all": lambda start: True,
            "untrained": lambda start: start == 0,
            "trained": lambda start: start > 0,
            "undertrained": lambda start: start <= undertrained,
            "established": lambda start: start > undertrained,
        }[claim.starts]
        chosen = [start for start in evidence.starting_sizes if belongs(start)]
    from_nothing = any(comparison.starts_from_nothing for comparison in claim.comparisons)
    return [start for start in chosen if start or not from_nothing]


def _sizes(claim: Claim, evidence: Evidence) -> list[int]:
    if isinstance(claim.sizes, tuple):
        return [size for size in evidence.sizes if size in claim.sizes]
    return list(evidence.sizes[-1:] if claim.sizes == "largest" else evidence.sizes)


def _overlap_counts(store: Store, study: Study) -> dict[str, dict[str, LabelCount]]:
    built = {step.stage for step in study.steps if step.record}
    return lexical_overlap_counts(store, study) if {"sources", "synthetic_pool"} <= built else {}

"""A part of a study's steps that is built, or bundled, apart from the others, on another machine or at another time. Pure."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from pipelines.errors import UserError
from sweep.graph.records import StudyStep
from sweep.graph.step import Step

AnyStep = TypeVar("AnyStep", Step, StudyStep)
"""One to be built, or one of a manifest."""

SHARED = "shared"
AXES = ("seed", "generator")
UNIQUE = ("starting_point", "generator", "synthetic_pool", "judgement", "task_model", "evaluation")
"""Stages of which two machines would not write the same bytes; what the others write follows from their inputs. A base model
that is made from texts is trained as well, and a pool that is read from a file follows from that."""
READ_FROM_FILE = "OwnPoolConfig"
"""The type of such a pool's config, as its payload has it."""
NO_WEIGHTS_TRAVEL = ("base_model", "starting_point")
"""Stages of which the steps that share one need the weights, which a bundle does not have."""


@dataclass(frozen=True)
class Only:
    """Which steps: those of some seeds or generators (`axis`, `values`), what several seeds share, or both of it."""

    axis: str = ""
    values: frozenset[int] = frozenset()
    shared: bool = False

    def __str__(self) -> str:
        of_axis = f"{self.axis}={','.join(map(str, sorted(self.values)))}"
        return ",".join([SHARED] * self.shared + [of_axis] * bool(self.axis))


def parse_only(text: str, *, more: str = "") -> Only:
    """`seed=3,4`, `generator=1`, `shared` or `shared,seed=3,4`.

    Raises UserError for anything else, which names what `more` there is.
    """
    if text == SHARED:
        return Only(shared=True)
    axis, _, values = text.removeprefix(f"{SHARED},").partition("=")
    numbers = [value.strip() for value in values.split(",")]
    if axis not in AXES or not all(number.isdecimal() for number in numbers):
        words = f", {SHARED} or {more}" if more else f" or {SHARED}"
        raise UserError(
            f"--only {text}: a piece is some seeds, some generators or what seeds share; give seed=3,4, generator=1{words}; "
            f"with what they share it is {SHARED},seed=3,4"
        )
    return Only(axis, frozenset(map(int, numbers)), text.startswith(f"{SHARED},"))


def piece_of(steps: Sequence[AnyStep], only: Only) -> list[AnyStep]:
    """The steps of a piece with all that they are built from, in the order of `steps`.

    Raises UserError for a seed or generator that the study does not have, and for a study in which seeds share nothing.
    """
    seeds = seeds_of(steps)
    chosen = _shared(steps, seeds) if only.shared else set()
    if only.shared and not chosen:
        raise UserError(f"--only {only}: seeds of this study share nothing that is trained; build them with --only seed=…")
    if only.axis:
        there = sorted({step.coordinates[only.axis] for step in steps if only.axis in step.coordinates})
        if unknown := sorted(only.values.difference(there)):
            have = ", ".join(map(str, there)) if there else f"no {only.axis}s of their own"
            raise UserError(f"--only {only}: the study has no {only.axis} {unknown[0]}; its steps have {have}")
        chosen |= {step.fingerprint for step in steps if step.coordinates.get(only.axis) in only.values}
    if only.axis == "seed":
        chosen |= {fingerprint for fingerprint, of_step in seeds.items() if of_step and of_step <= only.values}
    return _with_inputs(steps, chosen)


def check_apart(
    steps: Sequence[Step],
    piece: Sequence[Step],
    built: Collection[str],
    only: Only,
    without_weights: Collection[str] = (),
    damage: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise UserError for a step that the piece would build and that steps outside of it need as well.

    Built twice, it would not have the same content, and the pieces could not be merged. `built` are fingerprints, and
    `without_weights` those of what was built elsewhere and would be built again for its weights; `damage` says in what others
    are damaged.
    """
    inside = {step.fingerprint for step in piece}
    may_be_built = {*built, *(_shared(steps, seeds_of(steps)) if only.shared else ())}
    for step in steps:
        if step.fingerprint in inside:
            continue
        for source in step.inputs.values():
            if _is_unique(source) and source.fingerprint in inside and source.fingerprint not in may_be_built:
                first = f"--only {SHARED}, or --only {SHARED},{replace(only, shared=False)}"
                if source.fingerprint in without_weights:
                    raise UserError(
                        f"--only {only}: {source.name} came without its weights, as bundles do, and built again it would not "
                        f"be the one that {step.name}, of another piece, is built from; copy its folder from the store that "
                        "has them, or build what needs it there, once this piece's bundle is merged there"
                    )
                if found := damage.get(source.fingerprint):
                    raise UserError(
                        f"--only {only}: {source.name} is damaged ({found}), and built again it need not be the one that "
                        f"{step.name}, of another piece, is built from; restore its files, or build what is shared in one "
                        f"piece ({first}), and what was built from it after that"
                    )
                then = (
                    "copy its folder to the same place of the others' stores, since bundles have no weights"
                    if source.stage in NO_WEIGHTS_TRAVEL
                    else "merge its bundle into the stores of the others"
                )
                raise UserError(
                    f"--only {only}: {source.name} would be built here, and {step.name}, which is of another piece, needs the "
                    "same one; name all seeds that share it (--only generator=… does), or build what is shared in one piece "
                    f"({first}) and {then}"
                )


def seeds_lacking(steps: Sequence[StudyStep]) -> dict[int, int]:
    """Seed → how many artifacts it lacks of those that it needs: 0 of one that is whole. In the order of the study."""
    seeds = dict.fromkeys(step.coordinates["seed"] for step in steps if "seed" in step.coordinates)
    return {seed: sum(step.record is None for step in piece_of(steps, Only("seed", frozenset({seed})))) for seed in seeds}


def seeds_of(steps: Sequence[AnyStep]) -> dict[str, set[int]]:
    """Fingerprint → the seeds that need a step. One that none needs, such as a pool's judgement, is its pool's."""
    seeds = {step.fingerprint: {step.coordinates["seed"]} if "seed" in step.coordinates else set() for step in steps}

    def hand_back() -> None:
        for step in reversed(steps):
            for source in _sources(step):
                seeds[source] |= seeds[step.fingerprint]

    hand_back()
    trained = {step.fingerprint for step in steps if step.stage in UNIQUE}
    for step in steps:
        if not seeds[step.fingerprint]:
            seeds[step.fingerprint].update(*(seeds[source] for source in _sources(step) if source in trained))
    hand_back()
    return seeds


def _shared(steps: Sequence[AnyStep], seeds: Mapping[str, Collection[int]]) -> set[str]:
    """What is trained, or written by what is trained, and needed by several seeds."""
    return {step.fingerprint for step in steps if _is_unique(step) and len(seeds[step.fingerprint]) > 1}


def _is_unique(step: Step | StudyStep) -> bool:
    if step.stage == "base_model":
        return bool(step.inputs)
    return step.stage in UNIQUE and not _is_read(step)


def _is_read(step: Step | StudyStep) -> bool:
    """Whether it is a finished pool. Of one of a manifest that is not built nothing says so."""
    if step.stage != "synthetic_pool":
        return False
    payload = step.payload if isinstance(step, Step) else step.record.payload if step.record else {}
    return bool(payload.get("config", {}).get("type") == READ_FROM_FILE)


def _sources(step: Step | StudyStep) -> Iterator[str]:
    """The fingerprints of what a step is built from."""
    return (source if isinstance(source, str) else source.fingerprint for source in step.inputs.values())


def _with_inputs(steps: Sequence[AnyStep], chosen: Collection[str]) -> list[AnyStep]:
    needed = set(chosen)
    for step in reversed(steps):
        if step.fingerprint in needed:
            needed.update(_sources(step))
    return [step for step in steps if step.fingerprint in needed]

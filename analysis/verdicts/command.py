"""The command that runs a study again with more seeds, or generators, as a shell takes it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from sweep.graph.records import Store, Study

MOST_IN_COMMAND = 40
"""Seeds that a command names one by one; a longer one would hide what it says."""
STORE = "blindsweep-store"
"""The store that the commands take where none is given."""


@dataclass(frozen=True)
class Command:
    """What a study was run with: the experiment, its `name=value` texts but for units, its seeds, generators and store."""

    experiment: str
    assignments: tuple[str, ...]
    seeds: tuple[int, ...]
    generators: int = 1
    store: str = STORE
    name: str = ""
    """The study's name, where it was given one of its own."""

    def with_units(self, number: int, rests_on: str = "seeds") -> str:
        """The command with `number` seeds, or generators with as many seeds each as now; "" where it would be too long.

        Seeds that there are stay, so that what is built is used again, and so do generators that are planned and not built yet.
        Each generator gets as many seeds as the others; "" where those that there are cannot be dealt so.
        """
        generators = max(number, self.generators) if rests_on == "generators" else self.generators
        num_seeds = max(number, len(self.seeds)) if rests_on == "seeds" else generators * -(-len(self.seeds) // self.generators)
        each = -(-num_seeds // generators)
        dealt = Counter(seed % generators for seed in self.seeds)
        if generators * each > MOST_IN_COMMAND or max(dealt.values()) > each:
            return ""
        seeds = [*self.seeds]
        for seed in (seed for seed in count() if seed not in self.seeds):
            if len(seeds) == generators * each:
                break
            if dealt[seed % generators] < each:
                dealt[seed % generators] += 1
                seeds.append(seed)
        assigned = [*self.assignments, f"seeds={','.join(map(str, seeds))}"]
        assigned += [f"generators={generators}"] if generators > 1 else []
        words = ["blindsweep", "run", self.experiment, *(word for text in assigned for word in ("-p", text))]
        words += ["--name", self.name] if self.name else []
        return shlex.join([*words, *(["--store", self.store] if self.store != STORE else [])])


def command_of(store: Store, study: Study) -> Command | None:
    """How the study was run, from its manifest; None where that does not say it, or the experiment takes no seeds."""
    given, seeds = study.parameters.get("command"), study.parameters.get("seeds")
    if not (isinstance(given, Mapping) and _is_list_of(int, seeds) and seeds):
        return None
    experiment, name = given.get("experiment"), given.get("name")
    assignments: Any = given.get("parameters")
    if not (isinstance(experiment, str) and _is_list_of(str, assignments)):
        return None
    kept = tuple(text for text in assignments if text.partition("=")[0].strip() not in ("seeds", "generators"))
    generators = study.parameters.get("generators", 1)
    of_store = STORE if store.is_local and store.uri.rpartition("/")[2] == STORE else store.uri
    num = generators if isinstance(generators, int) and generators > 0 else 1
    return Command(experiment, kept, tuple(seeds), num, of_store, name if isinstance(name, str) else "")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(one) is kind for one in value)

"""What a run would do: what is cached, what would be built, and which changed field is the reason."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sweep.grid import Step
from sweep.identity import flatten
from sweep.records import Record, Store


@dataclass(frozen=True)
class Planned:
    """A step and the record of its artifact; without a record, `reason` says why it has to be built."""

    step: Step
    record: Record | None
    reason: str = ""

    @property
    def is_cached(self) -> bool:
        return self.record is not None


def make_plan(steps: Iterable[Step], store: Store, *, reasons: bool = True) -> list[Planned]:
    """Look each step up in the store. Without `reasons`, older artifacts are not read.

    Raises UserError for a record that cannot be read.
    """
    planned = []
    for step in steps:
        record = store.read_record(step.stage, step.slug, step.fingerprint)
        reason = _reason(step, store) if record is None and reasons else ""
        planned.append(Planned(step, record, reason))
    return planned


def _reason(step: Step, store: Store) -> str:
    """Why there is no artifact: what differs from the nearest one of the same stage and slug."""
    if store.is_begun(step.stage, step.slug, step.fingerprint):
        return "begun and not finished"
    candidates = [(changes(step, old, store), old.created) for old in store.records(step.stage, step.slug)]
    if not candidates:
        return "new"
    # Stable sorts: the newest of those with the fewest changes.
    candidates.sort(key=lambda candidate: candidate[1], reverse=True)
    candidates.sort(key=lambda candidate: len(candidate[0]))
    return "; ".join(candidates[0][0])


def changes(step: Step, old: Record, store: Store) -> list[str]:
    """What differs between `step` and an existing artifact: its own fields, then its inputs', each with its root field."""
    found = _own_changes(step, old)
    for name, source in sorted(step.inputs.items()):
        reference = old.inputs.get(name)
        if reference is None:
            found.append(f"input {name} is new")
        elif reference["fingerprint"] != source.fingerprint:
            roots = _root_changes(source, reference, store)
            found.append(f"input {name} changed because {', '.join(roots)}")
    found.extend(f"input {name} is gone" for name in sorted(set(old.inputs) - set(step.inputs)))
    return found


def _own_changes(step: Step, old: Record) -> list[str]:
    found = []
    if old.payload["version"] != step.payload["version"]:
        found.append(f"stage version {old.payload['version']} → {step.payload['version']}")
    before, after = dict(flatten(old.payload["config"])), dict(flatten(step.payload["config"]))
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            found.append(f"{name} is new: {_short(after[name])}")
        elif name not in after:
            found.append(f"{name} is gone")
        elif before[name] != after[name]:
            found.append(f"{name} {_short(before[name])} → {_short(after[name])}")
    return found


def _root_changes(step: Step, reference: Any, store: Store) -> list[str]:
    """The changed fields, as stage.field, that made the input another artifact."""
    old = store.read_record(reference["stage"], reference["slug"], reference["fingerprint"])
    if old is None:
        return [f"{step.stage} is another artifact than {reference['slug']}, which is gone"]
    found = [f"{step.stage}.{change}" for change in _own_changes(step, old)]
    for name, source in sorted(step.inputs.items()):
        before = old.inputs.get(name)
        if before is None:
            found.append(f"{step.stage} has a new input {name}")
        elif before["fingerprint"] != source.fingerprint:
            found.extend(one for one in _root_changes(source, before, store) if one not in found)
    found.extend(f"{step.stage} has lost its input {name}" for name in sorted(set(old.inputs) - set(step.inputs)))
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

"""An artifact by whatever it is called: a slug, a fingerprint, `stage/slug`, its folder's name, its folder or URI.

store, record = find_artifact(Store("blindsweep-store"), "start0-original-900-seed0", ("starting_point", "task_model"))
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator, Sequence

from analysis.wording import in_words
from pipelines.errors import UserError
from pipelines.storage import RECORD_FILE, is_local, join, local_path, read_text
from sweep.graph.identity import SHORT
from sweep.graph.records import ArtifactId, Record, Store, Study

FEWEST_DIGITS = 4
"""Of a fingerprint, fewer hexadecimal digits are no name."""
EVALUATION, MODEL = "evaluation", "task_model"


def find_artifact(
    store: Store, given: str, stages: Sequence[str], within: Collection[str] | None = None
) -> tuple[Store, Record]:
    """The complete artifact that `given` names, of one of `stages`, and its store, which a folder or URI brings itself.

    An evaluation's name stands for the model that it is of. `within` are the fingerprints that count. Raises UserError for a
    name of none, with the nearest ones, and of several, which it lists.
    """
    if (at := _at_address(given)) is not None:
        store, record = at
        if record.stage == EVALUATION and EVALUATION not in stages:
            record = _read(store, record.inputs[MODEL])
        if record.stage not in stages:
            raise UserError(
                f"{given} is an artifact of the stage {record.stage}, and one of {' or '.join(stages)} is asked for"
            )
        return store, record
    found = list(_matching(store, given, stages, within))
    if not found and EVALUATION not in stages:
        models = [record.inputs[MODEL] for record in _matching(store, given, (EVALUATION,), None) if MODEL in record.inputs]
        found = [
            record
            for record in (_read(store, model) for model in dict.fromkeys(models))
            if record.stage in stages and (within is None or record.fingerprint in within)
        ]
    if len(found) == 1:
        return store, found[0]
    if found:
        names = _listed(f"{_name(record)}{_of_studies(store, record)}" for record in found)
        raise UserError(f"{given!r} names {len(found):,} artifacts of {store.uri}; give one of {names}")
    raise UserError(f"no built artifact {given!r} in {store.uri}{_nearest(store, given, stages, within)}")


def _at_address(given: str) -> tuple[Store, Record] | None:
    if "/" not in given or read_text(join(given, RECORD_FILE)) is None:
        return None
    address = str(local_path(given).absolute()) if is_local(given) else given.rstrip("/")
    *of_store, stage, name = address.split("/")
    store = Store("/".join(of_store))
    return store, _read(store, ArtifactId(stage, name[: -SHORT - 1], name[-SHORT:]))


def _matching(store: Store, given: str, stages: Sequence[str], within: Collection[str] | None) -> Iterator[Record]:
    wanted_stage, _, name = given.rpartition("/")
    is_fingerprint = re.fullmatch(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}", name) is not None
    for stage in stages:
        if wanted_stage and wanted_stage != stage:
            continue
        for slug, fingerprints in store.folders(stage).items():
            for short in fingerprints:
                is_named = name in (slug, f"{slug}-{short}")
                if not is_named and not (is_fingerprint and (short.startswith(name) or name.startswith(short))):
                    continue
                record = store.read_record(ArtifactId(stage, slug, name if is_fingerprint and len(name) > SHORT else short))
                if record is not None and (within is None or record.fingerprint in within):
                    yield record


def _read(store: Store, artifact: ArtifactId) -> Record:
    record = store.read_record(artifact)
    if record is None:
        raise UserError(f"{store.folder(artifact)} is not there, or not complete; restore it, or build it again")
    return record


def _name(record: Record) -> str:
    return f"{record.stage}/{record.slug}-{record.fingerprint[:SHORT]}"


def _of_studies(store: Store, record: Record) -> str:
    """Which studies an artifact is of, as they were last run: alike by name, artifacts are told apart by that."""
    of = []
    for name in store.studies():
        with contextlib.suppress(UserError):  # a damaged manifest names nothing
            of += [name for step in Study.listed(store, name).steps if step.fingerprint == record.fingerprint]
    return f" (of {in_words(of)})" if of else ""


def _nearest(store: Store, given: str, stages: Sequence[str], within: Collection[str] | None) -> str:
    there = {
        f"{slug}-{short}": slug
        for stage in stages
        for slug, shorts in store.folders(stage).items()
        for short in shorts
        if within is None or any(fingerprint.startswith(short) for fingerprint in within)
    }
    if not there:
        return f"; nothing of {' or '.join(stages)} is built there: give --store"
    name = given.rpartition("/")[2]
    near = difflib.get_close_matches(name, {*there, *there.values()}, n=5, cutoff=0.3)
    return (
        f"; the nearest that there are: {_listed(dict.fromkeys(there.get(each, each) for each in near) or sorted(there)[:5])}"
    )


def _listed(names: Collection[str] | Iterator[str]) -> str:
    return ", ".join(names)

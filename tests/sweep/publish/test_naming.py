"""An artifact is found by each of its names, and one that is unknown or ambiguous is refused with the near ones."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweep.graph.records import Record, Store
from sweep.publish.models import TASK_MODELS
from sweep.publish.naming import find_artifact
from tests.sweep.publish.small_study import MODEL


def test_it_is_found_by_slug_fingerprint_folder_and_uri(built: tuple[Store, dict[str, Record]]) -> None:
    store, records = built
    model = records[f"task_model/{MODEL}"]
    folder, evaluation = store.folder(model.id), records[f"evaluation/{MODEL}"]
    names = [MODEL, f"task_model/{MODEL}", model.fingerprint, model.fingerprint[:12], model.fingerprint[:4]]
    names += [Path(folder).name, f"task_model/{Path(folder).name}", folder, f"file://{folder}"]
    # What `explain` says a number is of is an evaluation.
    names += [f"evaluation/{MODEL}", evaluation.fingerprint, store.folder(evaluation.id)]
    for name in names:
        where, found = find_artifact(store, name, TASK_MODELS)
        assert found.fingerprint == model.fingerprint, name
        assert where.folder(found.id) in (folder, f"file://{folder}")
    elsewhere = Store(Path(store.uri) / "elsewhere")
    assert find_artifact(elsewhere, folder, TASK_MODELS)[1].fingerprint == model.fingerprint


def test_an_unknown_one_is_refused_with_the_nearest(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    with pytest.raises(UserError, match=rf"no built artifact 'start0-syntetic-48-seed0' in .*nearest that there are: {MODEL}"):
        find_artifact(store, "start0-syntetic-48-seed0", TASK_MODELS)
    with pytest.raises(UserError, match="is an artifact of the stage base_model, and one of task_model or starting_point is"):
        find_artifact(store, store.folder(records["base_model/base"].id), TASK_MODELS)
    with pytest.raises(UserError, match="nothing of task_model or starting_point is built there: give --store"):
        find_artifact(Store(tmp_path), MODEL, TASK_MODELS)
    # A fingerprint that begins alike and goes on otherwise is another one.
    wrong = records[f"task_model/{MODEL}"].fingerprint[:12] + "f" * 52
    with pytest.raises(UserError):
        find_artifact(store, wrong, TASK_MODELS)


def test_an_ambiguous_one_is_refused_and_both_are_named(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    shutil.copytree(store.uri, tmp_path / "store")
    model = records[f"task_model/{MODEL}"]
    other = dataclasses.replace(model, fingerprint="0007" + "b" * 60)
    (copy := Store(tmp_path / "store")).write_record(other)
    for name in (MODEL, "0007"):
        both = rf"{MODEL}-0007000000a6 \(of tiny\), task_model/{MODEL}-0007bbbbbbbb$"
        with pytest.raises(UserError, match=f"names 2 artifacts of .*{both}"):
            find_artifact(copy, name, TASK_MODELS)
    assert find_artifact(copy, MODEL, TASK_MODELS, within={other.fingerprint})[1].fingerprint == other.fingerprint
    assert find_artifact(copy, "0007b", TASK_MODELS)[1].fingerprint == other.fingerprint

"""A study as the repository keeps it: the same verdicts without its store, in few bytes, and what is refused."""

import gzip
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.publication import kept
from analysis.publication.kept import is_kept, keep, load, read_kept, write_kept
from analysis.publication.page import fill
from analysis.publication.pilot import write_outcome
from analysis.study.frame import IncompleteSweepError, evaluation_frame
from analysis.verdicts.evidence import load_evidence
from analysis.verdicts.judgement import judgement_table
from analysis.verdicts.verdicts import judge
from pipelines.errors import UserError
from pipelines.identity import sha256_of
from sweep.graph.records import Store, Study
from sweep.graph.sealed import unseal
from tests.analysis.fake_store import parquet
from tests.analysis.item_study import ItemStudy, clear, joint_study
from tests.analysis.publication.test_pools import TRAIN, add_pool, pool_rows


def published_study(root: Path, **parameters: str) -> Store:
    study = ItemStudy(
        root, clear, jitter=64, shift=lambda kind: 0.4 * (kind == "synthetic") + 2.0 * (kind == "biased_synthetic")
    )
    study.grid()
    study.parameters |= parameters
    return Store(study.write())


def test_verdicts_are_the_stores_without_the_store(tmp_path: Path) -> None:
    plan = tmp_path / "plan.md"
    plan.write_text("We shall see.\n")
    store = published_study(tmp_path / "store", plan=sha256_of(plan))
    said = keep(store, "tiny", tmp_path / "data/tiny", plan=plan)
    before, frame = judge(store, "tiny"), evaluation_frame(store, Study.load(store, "tiny"))
    shutil.rmtree(tmp_path / "store")
    published = load(tmp_path / "data/tiny")
    after = kept.judge_evidence(published.evidence)
    assert [(control.measure, control.is_seen) for control in after.controls] == [
        (control.measure, control.is_seen) for control in before.controls
    ]
    one, other = (judgement_table(verdicts.judgements) for verdicts in (before, after))
    by_scores = one["measure"] != "accuracy"
    assert by_scores.any() and {"supported", "cannot tell"} <= set(one["verdict"])
    pd.testing.assert_frame_equal(one[~by_scores], other[~by_scores])
    numbers = ["name", "verdict", "estimate", "low", "high", "num_units", "num_items", "margin"]
    pd.testing.assert_frame_equal(one.loc[by_scores, numbers], other.loc[by_scores, numbers], atol=0.03, rtol=0)
    pd.testing.assert_frame_equal(published.frame, frame)
    assert published.plan == {"path": "plan.md", "sha256": sha256_of(plan)}
    assert "changes no verdict" in said and 0 < published.largest_change < 1 / published.steps
    # By cell, as the scores were: not rounded.
    assert len(published.measures) == 3 * 2 * 7 and not published.measures["margin"].isna().any()


def test_a_plan_that_was_changed_after_the_seeds_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.md"
    plan.write_text("We shall see.\n")
    store = published_study(tmp_path / "store", plan=sha256_of(plan))
    plan.write_text("We always knew.\n")
    with pytest.raises(UserError, match=r"tiny was built under a plan with sha256 .*: restore the file as it was"):
        keep(store, "tiny", tmp_path / "data/tiny", plan=plan)


def test_where_things_lay_on_the_machine_is_not_published(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path / "store", clear)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    study.add_evaluation(0, "original", 120, 0, built=False)
    error = "/home/me/store/pool/pool-12ab/pool has 29; https://example.org/a/b has more"
    study.failures.append({name: study.steps[-1][name] for name in ("stage", "slug", "fingerprint")} | {"error": error})
    study.parameters |= {"data": "/home/me/data", "command": {"parameters": ["model=/home/me/models/base.gguf", "rate=1/2"]}}
    keep(Store(study.write()), "tiny", tmp_path / "data/tiny", partial=True)
    texts = [(tmp_path / "data/tiny/kept.json").read_text()]
    texts.append(gzip.decompress((tmp_path / "data/tiny/study.json.gz").read_bytes()).decode())
    assert not any("home" in text or "12ab" in text for text in texts)
    published = load(tmp_path / "data/tiny")
    assert published.study.parameters["command"] == {"parameters": ["model=…/base.gguf", "rate=1/2"]}
    assert "…/pool has 29; https://example.org/a/b has more" in published.frame.attrs["missing"][0]["why"]


def test_what_is_kept_can_be_written_anew(tmp_path: Path) -> None:
    store = published_study(tmp_path / "store")
    keep(store, "tiny", tmp_path / "data/tiny")
    (tmp_path / "data/tiny/stale").write_text("")
    first = {path.name: path.read_bytes() for path in (tmp_path / "data/tiny").iterdir() if path.name != "stale"}
    keep(store, "tiny", tmp_path / "data/tiny")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data/tiny").iterdir()} == first
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny"]


class CutOffError(BaseException):
    """Stands for a process that ends where it is raised."""


@pytest.mark.parametrize("moment", ["the old one is aside", "the new one is there"])
def test_a_keep_that_is_cut_off_leaves_a_whole_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    folder, rename, remove = tmp_path / "data/tiny", Path.rename, shutil.rmtree
    keep(published_study(tmp_path / "store"), "tiny", folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = []

    def cut_off(path: Path, target: Path) -> None:
        rename(path, target)
        done.append(target)
        if len(done) == (1 if moment == "the old one is aside" else 2):
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise CutOffError

    monkeypatch.setattr(Path, "rename", cut_off)
    with pytest.raises(CutOffError):
        keep(Store(tmp_path / "store"), "tiny", folder)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert folder.exists() == (moment == "the new one is there")
    there = sorted(path.relative_to(tmp_path) for path in (tmp_path / "data").rglob("*"))
    assert is_kept(folder) and load(folder).seeds_there == (0, 1, 2)
    page = tmp_path / "tiny.md"
    page.write_text("<!-- tiny: plan -->\n<!-- end -->\n")
    fill(page, tmp_path / "data")
    assert "No plan was declared" in page.read_text()
    # Whoever reads moves nothing: the `keep` may still go on.
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "data").rglob("*")) == there
    where = folder if folder.exists() else folder.with_name(".tiny-before")
    assert {path.name: path.read_bytes() for path in where.iterdir()} == whole
    with pytest.raises(UserError, match=r"has no result of tiny that .* lacks"):
        keep(Store(tmp_path / "store"), "tiny", folder, onto=True)
    keep(Store(tmp_path / "store"), "tiny", folder)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny"]


@pytest.mark.parametrize("how", ["gone", "empty", "cut off", "another"])
@pytest.mark.parametrize(
    "file", ["kept.json", "study.json.gz", *(f"{name}.parquet" for name in ("records", "cells", "pools", "items", "answers"))]
)
def test_a_published_study_of_which_a_file_is_damaged_says_so(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, file: str, how: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "published/tiny"
    if not folder.exists():
        keep(published_study(tmp_path / "store"), "tiny", folder)
    shutil.copytree(folder, tmp_path / "tiny")
    path = tmp_path / "tiny" / file
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes({"empty": b"", "cut off": content[:-20], "another": b'["of another kind"]\n'}[how])
    with pytest.raises(UserError, match=r"tiny holds no whole published study \(.*\); restore its files as they were"):
        load(tmp_path / "tiny")


class FewerItems(ItemStudy):
    def items(self) -> dict[str, pa.Table]:
        return super().items() | {"template_test": super().items()["template_test"].slice(0, 60)}


STUDIES = Path(__file__).parents[3] / "docs/studies"
FILES = ("study.json.gz", *(f"{name}.parquet" for name in ("records", "cells", "measures", "pools", "items", "answers")))


def test_a_file_of_another_state_or_study_is_refused(tmp_path: Path) -> None:
    folder, other = tmp_path / "data/tiny", tmp_path / "other/tiny"
    keep(published_study(tmp_path / "store"), "tiny", folder)
    study = FewerItems(tmp_path / "later", clear, jitter=8)
    study.add("sources", "training", files={"train.parquet": parquet([*TRAIN, *pool_rows(1)])})
    study.steps.reverse()
    study.grid(num_seeds=1)
    add_pool(study, 0, pool_rows(1))
    keep(Store(study.write()), "tiny", other)
    for name in FILES:
        content, another = (folder / name).read_bytes(), (other / name).read_bytes()
        (folder / name).write_bytes(another)
        mine, theirs = (hashlib.sha256(of).hexdigest() for of in (content, another))
        said = (
            f"{folder} holds no whole published study ({name} has the sha256 {theirs}, and kept.json has {mine} of it); "
            "restore its files as they were (git), or keep the study there anew from its store, once the folder is removed"
        )
        for read in (load, lambda folder: keep(Store(tmp_path / "later"), "tiny", folder, onto=True, partial=True)):
            with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
                read(folder)
        (folder / name).write_bytes(content)
    assert load(folder).seeds_there == (0, 1, 2)


@pytest.mark.parametrize("file", ["tiny/kept.json", "tiny_pilot.json"])
def test_values_that_were_edited_are_refused(tmp_path: Path, file: str) -> None:
    store = published_study(tmp_path / "store")
    keep(store, "tiny", tmp_path / "tiny")
    write_outcome(store, "tiny", tmp_path / "tiny_pilot.json")
    path = tmp_path / file
    values = json.loads(path.read_text())
    values |= {"earlier": [[0]]} if "earlier" in values else {"chosen": 7}
    path.write_text(json.dumps(values))
    said = (
        rf"tiny holds no whole published study \({path.name}: it has other values than were written, by its checksum\); restore"
    )
    with pytest.raises(UserError, match=said):
        load(tmp_path / "tiny")
    if path.name == "kept.json":
        with pytest.raises(UserError, match=said):
            keep(store, "tiny", tmp_path / "tiny")


def test_what_the_repository_keeps_has_its_digests() -> None:
    published = sorted(STUDIES.glob("data/*/kept.json"))
    assert {path.parent.name for path in published} >= {"study_qwen", "study_smollm"}
    for path in published:
        values = json.loads(path.read_text())
        assert set(values["files"]) == {beside.name for beside in path.parent.iterdir()} - {"kept.json"} == set(FILES)
        assert read_kept(path.parent) == {name: value for name, value in values.items() if name not in ("files", "checksum")}
    pilot = (STUDIES / "data/study_qwen_pilot.json").read_bytes()
    assert "checksum" in json.loads(pilot) and unseal(pilot)["chosen"] == 12


def test_what_was_kept_before_there_were_digests_is_read_and_gets_them(tmp_path: Path) -> None:
    store, folder = published_study(tmp_path / "store"), tmp_path / "tiny"
    keep(store, "tiny", folder)
    whole = (folder / "kept.json").read_bytes()
    values = json.loads(whole)
    assert values["files"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(FILES)}
    del values["files"], values["checksum"]
    before = json.dumps(values, indent=1) + "\n"
    (folder / "kept.json").write_text(before)
    assert load(folder).seeds_there == (0, 1, 2)
    write_kept(folder, read_kept(folder))
    assert (folder / "kept.json").read_bytes() == whole and whole.startswith(before.encode().removesuffix(b"\n}\n"))
    (folder / "kept.json").write_text(before)
    keep(store, "tiny", folder)
    assert (folder / "kept.json").read_bytes() == whole


def test_rounding_that_changes_a_verdict_is_refused_and_leaves_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = published_study(tmp_path / "store")
    keep(store, "tiny", tmp_path / "data/tiny")
    before = (tmp_path / "data/tiny/kept.json").read_bytes()
    monkeypatch.setattr(kept, "STEPS", (0.05, 0.1))
    with pytest.raises(UserError, match=r"with scores rounded to 1/0\.1, .* is .* and not supported; keep finer scores"):
        keep(store, "tiny", tmp_path / "data/tiny")
    assert (tmp_path / "data/tiny/kept.json").read_bytes() == before


def test_scores_are_kept_as_coarse_as_they_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = published_study(tmp_path / "store")
    # The first changes a verdict, the second an estimate by more than a little.
    monkeypatch.setattr(kept, "STEPS", (0.1, 4, 256, 512))
    monkeypatch.setattr(kept, "LITTLE", 3e-3)
    assert "rounding scores to 1/256 changes no verdict" in keep(store, "tiny", tmp_path / "data/tiny")
    published = load(tmp_path / "data/tiny")
    assert published.steps == 256 and 0 < published.largest_change <= 3e-3
    scores, before = published.evidence.responses.scores, load_evidence(store, "tiny").responses.scores
    for name, of_set in scores.items():
        for cell, rounded in of_set.items():
            there = ~np.isnan(rounded)
            assert there.any() and np.abs(rounded[there] - before[name][cell][there]).max() <= 0.5 / 256 + 1e-6


def test_all_studies_together_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = published_study(tmp_path / "store")
    (tmp_path / "data/other").mkdir(parents=True)
    (tmp_path / "data/other/answers.parquet").write_bytes(bytes(1_000))
    keep(store, "tiny", tmp_path / "data/tiny")
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "data/tiny").iterdir())
    monkeypatch.setattr(kept, "MOST_BYTES", num_bytes + 900)
    with pytest.raises(UserError, match=r"data would have .* bytes, more than .*: keep fewer sets or studies"):
        keep(store, "tiny", tmp_path / "data/tiny")


def test_a_study_that_is_not_whole_or_has_arms_is_not_published(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path / "part", clear)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    study.add_evaluation(0, "original", 120, 0, built=False)
    with pytest.raises(IncompleteSweepError):
        keep(Store(study.write()), "tiny", tmp_path / "data/tiny")
    keep(Store(study.write()), "tiny", tmp_path / "partial/tiny", partial=True)
    published = load(tmp_path / "partial/tiny")
    (missing,) = published.evidence.responses.missing
    assert "original" in missing and published.frame.attrs["missing"][0]["size"] == 120
    assert published.frame.head().attrs["missing"] is published.frame.attrs["missing"]
    arms = joint_study(tmp_path / "arms", clear, 1, (0,))
    with pytest.raises(UserError, match="tiny has the arms two_steps, joint, and a study of one is published"):
        keep(Store(arms.write()), "tiny", tmp_path / "data/tiny")
    assert not (tmp_path / "data").exists()
    with pytest.raises(UserError, match="holds no published study"):
        load(tmp_path / "data/tiny")


def test_numbers_that_are_not_known_stay_so(tmp_path: Path) -> None:
    keep(published_study(tmp_path / "store"), "tiny", tmp_path / "data/tiny")
    values = json.loads((tmp_path / "data/tiny/kept.json").read_text())
    assert values["plan"] == {} and values["estimate"] is None
    assert math.isfinite(values["largest_change"]) and load(tmp_path / "data/tiny").pools.empty

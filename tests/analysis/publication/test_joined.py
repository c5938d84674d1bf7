"""A published study that is kept in two goes, from two stores, is the one that is kept in one; and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.publication import kept
from analysis.publication.__main__ import main
from analysis.publication.kept import keep, load, write_kept
from analysis.publication.page import PARTS, fill
from analysis.publication.published import Published
from analysis.study.frame import IncompleteSweepError
from analysis.verdicts.judgement import judgement_table
from analysis.verdicts.verdicts import judge_evidence
from pipelines.errors import UserError
from sweep.graph.records import Store
from tests.analysis.fake_store import KINDS, parquet
from tests.analysis.item_study import ItemStudy, clear
from tests.analysis.publication.test_page import page_of
from tests.analysis.publication.test_pools import TRAIN, add_pool, pool_rows

SEEDS = (0, 1, 2, 3)
NUMBERS = ["name", "verdict", "estimate", "low", "high", "num_units", "num_items", "margin"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a study of four seeds with a generator and a pool each."""
    root = tmp_path_factory.mktemp("whole") / "store"
    shifts = {"synthetic": 0.4, "biased_synthetic": 2.0}
    study = ItemStudy(root, clear, jitter=64, shift=lambda kind: shifts.get(kind, 0.0))
    study.add("sources", "training", files={"train.parquet": parquet([*TRAIN, *pool_rows(5)])})
    # Table 1 is of the first.
    study.steps.reverse()
    for seed in SEEDS:
        add_pool(study, seed, pool_rows(seed + 1))
        for kind, size in [("none", 0), *((kind, size) for kind in KINDS for size in (60, 120))]:
            study.add_cell(0, kind, size, seed, generator=seed)
    study.parameters |= {"seeds": list(SEEDS), "plan": "0" * 64, "blindspot_slice": "lexical_overlap/non-entailment"}
    study.write()
    return root


def part(whole: Path, root: Path, *seeds: int) -> Store:
    """The same study in a store that has these seeds alone."""
    shutil.copytree(whole, root)
    for step in json.loads((root / "studies/tiny.json").read_text())["steps"]:
        if step["coordinates"].get("seed", step["coordinates"].get("generator", seeds[0])) not in seeds:
            shutil.rmtree(root / step["stage"] / f"{step['slug']}-{step['fingerprint'][:12]}")
    return Store(root)


@pytest.fixture(scope="module")
def seed_0(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept of seed 0."""
    root = tmp_path_factory.mktemp("seed_0")
    keep(part(whole, root / "store", 0), "tiny", root / "tiny", partial=True)
    return root / "tiny"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def scores(published: Published) -> dict[tuple[Any, ...], np.ndarray]:
    of_sets = published.evidence.responses.scores.items()
    return {(name, *cell): of_cell for name, of_set in of_sets for cell, of_cell in of_set.items()}


def test_a_study_kept_in_two_goes_is_the_one_that_is_kept_in_one(whole: Path, tmp_path: Path) -> None:
    keep(Store(whole), "tiny", tmp_path / "one/tiny")
    store = part(whole, tmp_path / "first", 0, 1)
    keep(store, "tiny", tmp_path / "two/tiny", partial=True)
    shutil.rmtree(store.uri)
    first = load(tmp_path / "two/tiny")
    # What both have is the same: the sources, and seed 1 with its pool.
    keep(part(whole, tmp_path / "later", 1, 2, 3), "tiny", tmp_path / "two/tiny", onto=True)
    one, two = (load(tmp_path / name / "tiny") for name in ("one", "two"))
    pd.testing.assert_frame_equal(two.frame, one.frame)
    pd.testing.assert_frame_equal(two.measures, one.measures)
    pd.testing.assert_frame_equal(two.pools, one.pools)
    assert two.study == one.study and two.study.num_built == len(two.study.steps)
    assert two.frame.attrs["missing"] == [] and two.evidence.responses.missing == ()
    assert two.evidence.counts == one.evidence.counts and two.evidence.responses.generator_of == {seed: seed for seed in SEEDS}
    # The pools of four generators, each once: they have 1, 2, 3 and 4 entailments with lexical overlap.
    entailments = two.evidence.counts["synthetic"]["entailment"]
    assert (entailments.num_rows, entailments.num_lexical_overlap) == (40, 10)
    assert one.earlier == () and two.earlier == ((0, 1),) and two.seeds_there == SEEDS
    before, ours, theirs = scores(first), scores(two), scores(one)
    assert ours.keys() == theirs.keys() and 0 < len(before) < len(ours)
    for cell, of_cell in ours.items():
        np.testing.assert_allclose(of_cell, theirs[cell], rtol=0, atol=0.5 / first.steps + 0.5 / one.steps)
        if cell in before:
            np.testing.assert_array_equal(of_cell, before[cell])
    for name, of_set in one.evidence.responses.predicted.items():
        for where, classes in of_set.items():
            np.testing.assert_array_equal(two.evidence.responses.predicted[name][where], classes)
    tables = [judgement_table(judge_evidence(side.evidence).judgements)[NUMBERS] for side in (two, one)]
    assert {"supported", "cannot tell"} <= set(tables[1]["verdict"])
    pd.testing.assert_frame_equal(*tables, atol=0.03, rtol=0)
    assert first.largest_change < two.largest_change


def test_the_page_differs_in_the_earlier_look_alone(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "STEPS", (64,))
    keep(Store(whole), "tiny", tmp_path / "one/data/tiny")
    keep(part(whole, tmp_path / "first", 0, 1), "tiny", tmp_path / "two/data/tiny", partial=True)
    keep(part(whole, tmp_path / "later", 2, 3), "tiny", tmp_path / "two/data/tiny", onto=True)
    texts = []
    for name in ("one", "two"):
        page = page_of(tmp_path / name, *PARTS)
        fill(page, tmp_path / name / "data")
        # Paragraphs as lines again.
        texts.append(re.sub(r"(?<=[^>|\n])\n(?=[^<|\n])", " ", page.read_text()).splitlines())
    lost, new = ([line for line in one if line not in other] for one, other in (texts, texts[::-1]))
    earlier = "Results of seeds 0 and 1 were published before all others were built"
    # What rounding changes is another number, too.
    assert min(new).startswith(earlier)
    assert [line[:15] for line in sorted(new)[1:]] == [line[:15] for line in lost] == ["Scores are kept"]


def test_what_neither_has_is_missing_and_why_is_from_both(whole: Path, tmp_path: Path) -> None:
    data = tmp_path / "data/tiny"
    first, second = part(whole, tmp_path / "first", 0), part(whole, tmp_path / "second", 2)

    def fail(manifest: dict[str, Any]) -> None:
        slugs = ("start0-original-60-seed1", "start0-original-60-seed2")
        failed = [step for step in manifest["steps"] if step["slug"] in slugs]
        manifest["failures"] = [
            {name: step[name] for name in ("stage", "slug", "fingerprint")} | {"error": "out of memory"} for step in failed
        ]

    edit(tmp_path / "first/studies/tiny.json", fail)
    keep(first, "tiny", data, partial=True)
    before = (data / "kept.json").read_bytes()
    with pytest.raises(IncompleteSweepError) as error:
        keep(second, "tiny", data, onto=True)
    assert {result["seed"] for result in error.value.missing} == {1, 3} and (data / "kept.json").read_bytes() == before
    keep(second, "tiny", data, onto=True, partial=True)
    published = load(data)
    assert [seed for seed, missing in published.missing_of_seed.items() if not missing] == [0, 2]
    why = {(result["kind"], result["size"], result["seed"]): result["why"] for result in published.frame.attrs["missing"]}
    assert len(why) == len(published.evidence.responses.missing) == 14
    assert "out of memory" in why["original", 60, 1] and why["original", 60, 3] == "not built"
    # Of what is built by now no failure is left.
    assert [failure["slug"] for failure in published.study.failures] == ["start0-original-60-seed1"]
    keep(part(whole, tmp_path / "third", 1, 3), "tiny", data, onto=True)
    published = load(data)
    assert published.earlier == ((0,), (0, 2)) and not published.frame.attrs["missing"] and not published.study.failures


def test_a_cell_that_a_kept_seed_lacked_is_added(whole: Path, tmp_path: Path) -> None:
    first, later = part(whole, tmp_path / "first", *SEEDS), part(whole, tmp_path / "later", 3)
    shutil.rmtree(next((tmp_path / "first/evaluation").glob("start0-synthetic-60-seed3-*")))
    keep(first, "tiny", tmp_path / "two/tiny", partial=True)
    keep(later, "tiny", tmp_path / "two/tiny", onto=True)
    keep(Store(whole), "tiny", tmp_path / "one/tiny")
    one, two = (load(tmp_path / name / "tiny") for name in ("one", "two"))
    pd.testing.assert_frame_equal(two.frame, one.frame)
    pd.testing.assert_frame_equal(two.pools, one.pools)
    assert two.evidence.counts == one.evidence.counts and two.study == one.study


def test_scores_that_were_rounded_stay_as_they_are(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, later = tmp_path / "data/tiny", part(whole, tmp_path / "later", 1)
    monkeypatch.setattr(kept, "STEPS", (16,))
    keep(part(whole, tmp_path / "first", 0), "tiny", data, partial=True)
    first = load(data)
    # 4 and 24 would round them anew; 64 is taken where 16 changes too much.
    monkeypatch.setattr(kept, "STEPS", (4, 16, 24, 64))
    for little, steps in ((1.0, 16), (0.0, 64)):
        shutil.copytree(data, folder := tmp_path / f"{steps}/tiny")
        monkeypatch.setattr(kept, "LITTLE", little)
        keep(later, "tiny", folder, onto=True, partial=True)
        joined = load(folder)
        after = scores(joined)
        assert joined.steps == steps and joined.largest_change > first.largest_change
        for cell, before in scores(first).items():
            np.testing.assert_array_equal(after[cell], before)


def of_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    return lambda store, _: edit(store / "studies/tiny.json", change)


def of_record(slug: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    return lambda store, _: edit(next(store.glob(f"*/{slug}-*/record.json")), change)


def of_table(name: str, column: str) -> Callable[[Path, Path], None]:
    def change(_: Path, folder: Path) -> None:
        frame = pd.read_parquet(folder / name)
        frame.loc[0, column] += 1
        frame.to_parquet(folder / name, index=False)
        values = json.loads((folder / "kept.json").read_text())
        write_kept(folder, {key: value for key, value in values.items() if key != "checksum"})

    return change


def add_step(values: dict[str, Any]) -> None:
    step = next(step for step in values["steps"] if step["coordinates"].get("seed") == 0)
    values["steps"].append(step | {"slug": "further", "fingerprint": "f" * 64})


NO_SEED_3 = of_manifest(lambda values: values.update(steps=[step for step in values["steps"] if "seed3" not in step["slug"]]))
REFUSED = {
    "plan": (
        of_manifest(lambda values: values["parameters"].update(plan="1" * 64)),
        rf"STORE has tiny under another plan than FOLDER: {'1' * 64} and {'0' * 64}; all seeds of a study are judged by one",
    ),
    "claims": (
        of_manifest(lambda values: values["parameters"].update(claims=[])),
        "STORE has tiny under other claims than FOLDER; all seeds",
    ),
    "slice": (
        of_manifest(lambda values: values["parameters"].update(blindspot_slice="subsequence/non-entailment")),
        "STORE has tiny under another slice of the blindspot set than FOLDER: subsequence/non-entailment and lexical_",
    ),
    "fewer steps": (
        NO_SEED_3,
        r"FOLDER has steps that the study in STORE has no place for \(7, evaluation/start0-none-0-seed3-[0-9a-f]{12} for one\)"
        ": run tiny there with the same parameters first",
    ),
    "other steps": (
        of_manifest(add_step),
        r"the study in STORE has other steps of the seeds that FOLDER has \(1, evaluation/further-f{12} for one\): run tiny",
    ),
    "content": (
        of_record("training", lambda values: values["files"].update(more={"sha256": "0" * 64, "bytes": 0})),
        r"sources/training-[0-9a-f]{12} has other content in STORE \(sha256 .*\) than in FOLDER \(sha256 .*\): what several",
    ),
    "input": (
        of_record("start0-none-0-seed2", lambda values: values.update(input_contents={"sources": "0" * 64})),
        "evaluation/start0-none-0-seed2 in STORE was built from another sources/sources than that in FOLDER",
    ),
    "items": (
        of_table("items.parquet", "cluster"),
        "template_test has other items, slices or clusters in STORE than in FOLDER",
    ),
    "slices": (of_table("cells.parquet", "num_examples"), "has other items, slices or clusters in STORE than in FOLDER"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_further_seeds_of_the_same_study_is_refused(whole: Path, seed_0: Path, tmp_path: Path, what: str) -> None:
    later, data = part(whole, tmp_path / "later", 2), tmp_path / "data/tiny"
    shutil.copytree(seed_0, data)
    change, said = REFUSED[what]
    change(tmp_path / "later", data)
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    with pytest.raises(UserError, match=said.replace("STORE", later.uri).replace("FOLDER", str(data))):
        keep(later, "tiny", data, onto=True, partial=True)
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


def test_a_folder_without_the_study_and_a_store_without_further_seeds_are_refused(
    whole: Path, seed_0: Path, tmp_path: Path
) -> None:
    store, data = part(whole, tmp_path / "store", 0), tmp_path / "data/tiny"
    with pytest.raises(UserError, match=f"{data} holds no published study that {store.uri} could be added to; keep it without"):
        keep(store, "tiny", data, onto=True, partial=True)
    shutil.copytree(seed_0, data)
    with pytest.raises(UserError, match=f"{store.uri} has no result of tiny that {data} lacks"):
        keep(store, "tiny", data, onto=True, partial=True)
    edit(tmp_path / "store/studies/tiny.json", lambda values: values.update(experiment="other"))
    (tmp_path / "store/studies/tiny.json").rename(tmp_path / "store/studies/other.json")
    with pytest.raises(UserError, match=f"{data} has the study tiny, and {store.uri} was asked for other"):
        keep(store, "other", data, onto=True, partial=True)


def test_seeds_whose_store_is_gone_are_not_replaced_by_others(whole: Path, seed_0: Path, tmp_path: Path) -> None:
    shutil.copytree(seed_0, tmp_path / "tiny")
    later = part(whole, tmp_path / "later", 1, 2)
    with pytest.raises(UserError, match=r"tiny has results of the seeds 0, and .*later has none of these: .* with --onto"):
        keep(later, "tiny", tmp_path / "tiny", partial=True)
    assert load(tmp_path / "tiny").seeds_there == (0,)
    shutil.rmtree(tmp_path / "tiny")
    keep(later, "tiny", tmp_path / "tiny", partial=True)
    assert load(tmp_path / "tiny").seeds_there == (1, 2)


def test_the_command_adds_seeds_to_what_is_kept(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    part(whole, tmp_path / "first", 0, 1)
    part(whole, tmp_path / "later", 2, 3)
    edit(tmp_path / "first/studies/tiny.json", lambda values: values["parameters"].pop("plan"))
    edit(tmp_path / "later/studies/tiny.json", lambda values: values["parameters"].pop("plan"))
    (tmp_path / "estimate.json").write_text('{"of": "all seeds"}')
    first = ["keep", "tiny", "--data", "data", "--store", "first", "--partial", "--estimate", "estimate.json"]
    assert main(first) == 0
    assert main(["keep", "tiny", "--data", "data", "--store", "later", "--onto"]) == 0
    published = load(Path("data/tiny"))
    assert published.seeds_there == SEEDS and published.estimate == {"of": "all seeds"}
    for text in ("no JSON", "[1]"):
        (tmp_path / "estimate.json").write_text(text)
        capsys.readouterr()
        assert main(first) == 1
        assert "Error: --estimate estimate.json is no JSON" in capsys.readouterr().err
    assert main(["keep", "tiny", "--data", "elsewhere", "--store", "later", "--onto"]) == 1
    assert "Error: elsewhere/tiny holds no published study" in capsys.readouterr().err

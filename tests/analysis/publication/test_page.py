"""A published study's page: what is made stands between its marks, is the verdicts' own, and is made again from files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.publication.__main__ import main
from analysis.publication.kept import keep, load
from analysis.publication.page import NOT_BUILT, PARTS, Made, fill
from analysis.publication.pilot import write_outcome
from analysis.publication.pools import COLUMNS
from analysis.study.artifacts import LabelCount
from analysis.verdicts.verdicts import judge_evidence
from pipelines.errors import UserError
from pipelines.identity import sha256_of
from sweep.graph.records import Store
from tests.analysis.fake_store import KINDS
from tests.analysis.item_study import ItemStudy, clear
from tests.analysis.publication.test_kept import published_study

HARD = "non-entailment"
STUDIES = Path(__file__).parents[3] / "docs/studies"


def page_of(folder: Path, *parts: str, study: str = "tiny") -> Path:
    page = folder / "tiny.md"
    text = "".join(f"\n## {part}\n\nMy own words.\n\n<!-- {study}: {part} -->\nold\n<!-- end -->\n" for part in parts)
    page.write_text(f"# Tiny\n{text}\nThe end.\n")
    return page


def test_all_parts_are_made_from_the_files_and_words_between_them_stay(tmp_path: Path) -> None:
    plan = tmp_path / "qwen-plan.md"
    plan.write_text("We shall see.\n")
    store = published_study(tmp_path / "store", plan=sha256_of(plan))
    keep(store, "tiny", tmp_path / "data/tiny", plan=plan)
    page = page_of(tmp_path, *PARTS)
    written = fill(page, tmp_path / "data")
    text = page.read_text()
    assert text.count("My own words.") == len(PARTS) and text.endswith("The end.\n") and "\nold\n" not in text
    assert [path.name for path in written] == ["tiny.md", "tiny-figure1.png", "tiny-differences.png", "tiny-measures.png"]
    assert all(f"]({path.name})" in text and path.stat().st_size > 5_000 for path in written[1:])
    judged = judge_evidence(load(tmp_path / "data/tiny").evidence)
    for name in ("bias_is_seen", "synthetic_reinforces"):
        judgement = judged[name]
        assert f"| {judgement.statement} | {judgement.paper} | {judgement.verdict} |" in text
        assert f"| {judgement.verdict}{' (positive control)' if judgement.is_control else ''} | {judgement.statement} |" in text
    assert f"sha256 `{sha256_of(plan)}`; the file is as it was then" in " ".join(text.split())
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 132
    # Made again, it is the same.
    fill(page, tmp_path / "data")
    assert page.read_text() == text


def test_time_is_set_beside_what_was_estimated(tmp_path: Path) -> None:
    stages = {"sources": {"gpus_per_step": 0}, "evaluation": {"gpus_per_step": 0.5}}
    estimate = {
        "stages": {name: stage | {"in_all": {"gpu_hours": 0.25}} for name, stage in stages.items()},
        "costs": {"price": None, "gpu": "h200"},
    }
    keep(published_study(tmp_path / "store"), "tiny", tmp_path / "data/tiny", estimate=estimate)
    page = page_of(tmp_path, "time")
    fill(page, tmp_path / "data")
    # 42 evaluations of 12.5 s on half a GPU.
    assert "| evaluation | 42 of 42 | 8 min 45 s | 0.25 | 0.07 |" in page.read_text()


def test_a_study_that_could_not_have_seen_it_says_so_first(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path / "store", lambda start, kind, size, part: 0.9 if part == "general" else 0.5)
    study.grid()
    keep(Store(study.write()), "tiny", tmp_path / "data/tiny")
    page = page_of(tmp_path, "answer", "plan")
    fill(page, tmp_path / "data")
    made = page.read_text().partition("<!-- tiny: answer -->\n")[2]
    assert made.startswith("**The positive control is not seen, so this study could not have seen a blindspot grow")
    assert "nothing in it is confirmatory" in made


def test_a_plan_that_is_another_now_is_said_to_be(tmp_path: Path) -> None:
    plan = tmp_path / "qwen-plan.md"
    plan.write_text("We shall see.\n")
    keep(published_study(tmp_path / "store", plan=sha256_of(plan)), "tiny", tmp_path / "data/tiny", plan=plan)
    plan.write_text("We always knew.\n")
    page = page_of(tmp_path, "plan")
    fill(page, tmp_path / "data")
    assert "**the file has been changed since**" in page.read_text()


def grown_study(root: Path, *built: int, parameters: Sequence[str] = ()) -> Store:
    """A study of three seeds of which these are built; seed 0 lacks one cell."""
    study = ItemStudy(root, clear, jitter=64)
    for seed in range(3):
        for kind, size in (("none", 0), *((kind, 60) for kind in KINDS)):
            if seed not in built or (kind == "synthetic" and seed == 0):
                study.add_evaluation(0, kind, size, seed, built=False)
            else:
                study.add_cell(0, kind, size, seed)
    study.parameters["command"] = {"experiment": "tiny", "name": None, "parameters": ["data=here", *parameters]}
    return Store(study.write())


def test_seeds_that_are_not_there_are_named_and_said_to_be_fewer_than_planned(tmp_path: Path) -> None:
    keep(grown_study(tmp_path / "store", 0, 2, parameters=["rate=0.1"]), "tiny", tmp_path / "data/tiny", partial=True)
    page = page_of(tmp_path, "answer", "departed", "made_of")
    fill(page, tmp_path / "data")
    said = "**Of 3 seeds that were planned 1 is whole**: 2. Not built: 1. Seed 0 lacks Synthetic 60 (not built)."
    text = page.read_text()
    assert text.count(said) == 2 and "Built with `-p rate=0.1`." in text and "`-p data" not in text
    assert "were published before" not in text
    assert "| not built |" not in text


def whole_study(root: Path, **where_the_heuristic_is_wrong: float) -> Store:
    study = ItemStudy(root, lambda start, kind, size, part: where_the_heuristic_is_wrong.get(kind * (part == HARD), 0.8))
    study.grid()
    return Store(study.write())


def test_a_study_that_is_whole_departs_from_nothing(tmp_path: Path) -> None:
    keep(whole_study(tmp_path / "store", synthetic=0.5, biased_synthetic=0.1), "tiny", tmp_path / "data/tiny")
    page = page_of(tmp_path, "answer", "departed", "pilot")
    fill(page, tmp_path / "data")
    text = page.read_text()
    assert "planned" not in text and "The files show nothing that departs from it." in text and "No pilot is kept." in text
    assert "is marked" not in text


def test_what_marks_the_artifacts_is_said_beneath_the_answer(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path / "store", clear)
    study.add("sources", "training", marks=("partial MultiNLI: 80 of 393 labelled rows",))
    study.grid()
    study.parameters["pool_copies"] = ["pool: mine.csv: 3 of 9 texts of hans are in the pool, too"]
    keep(Store(study.write()), "tiny", tmp_path / "data/tiny")
    num = load(tmp_path / "data/tiny").study.num_built
    page = page_of(tmp_path, "answer")
    fill(page, tmp_path / "data")
    assert (
        "What these numbers were made with, or what that was made with, is marked: partial MultiNLI: 80 of 393 labelled rows: "
        f"1 of {num} artifacts; pool: mine.csv: 3 of 9 texts of hans are in the pool, too."
    ) in " ".join(page.read_text().split())


def test_what_is_supported_although_the_control_is_not_seen_departs_from_a_plan(tmp_path: Path) -> None:
    keep(whole_study(tmp_path / "store", synthetic=0.1, biased_synthetic=0.1), "tiny", tmp_path / "data/tiny")
    page = page_of(tmp_path, "departed")
    fill(page, tmp_path / "data")
    assert "By accuracy the positive control is not seen, and a claim about the blindspot is supported all" in page.read_text()


def test_results_that_were_published_before_further_seeds_stay_with_the_study(tmp_path: Path) -> None:
    page = page_of(tmp_path, "departed")
    for number, built in enumerate(((2,), (2,), (1, 2), (0, 1, 2))):
        keep(grown_study(tmp_path / f"store{number}", *built), "tiny", tmp_path / "data/tiny", partial=True)
        assert load(tmp_path / "data/tiny").earlier == ((), (), ((2,),), ((2,), (1, 2)))[number]
        fill(page, tmp_path / "data")
    text = page.read_text()
    assert "Results of seed 2 were published before all others were built" in text
    assert "Results of seeds 1 and 2 were published before all others were built" in text


def test_what_the_pilot_said_is_quoted(tmp_path: Path) -> None:
    keep(published_study(tmp_path / "store"), "tiny", tmp_path / "data/tiny")
    said = write_outcome(Store(tmp_path / "store"), "tiny", tmp_path / "data/tiny_pilot.json")
    page = page_of(tmp_path, "pilot", "departed")
    fill(page, tmp_path / "data")
    asked = load(tmp_path / "data/tiny").pilot
    text = " ".join(page.read_text().split())
    assert asked and f"The pilot asked for {asked['chosen']} seeds, and 3 were planned." in text
    assert said in text


def test_a_study_that_is_not_there_is_said_not_to_be_built(tmp_path: Path) -> None:
    page = page_of(tmp_path, "answer", study="other")
    fill(page, tmp_path / "data")
    assert f"<!-- other: answer -->\n{NOT_BUILT}<!-- end -->" in page.read_text()
    page_of(tmp_path, "verdict")
    with pytest.raises(UserError, match=r"asks for 'verdict' of tiny; parts are answer, plan"):
        fill(page, tmp_path / "data")
    assert main(["pages", "--folder", str(tmp_path)]) == 1


def test_a_mark_may_name_any_study_and_one_without_its_end_is_refused(tmp_path: Path) -> None:
    page = page_of(tmp_path, "answer", "plan", study="My-Study2")
    fill(page, tmp_path / "data")
    assert page.read_text().count(NOT_BUILT) == 2
    whole = page.read_text()
    for cut_off in (whole.replace("<!-- end -->\n", "", 1), whole[: whole.rindex("<!-- end -->")]):
        page.write_text(cut_off)
        with pytest.raises(UserError, match=r"My-Study2: (answer|plan) --> has no <!-- end --> before the next mark"):
            fill(page, tmp_path / "data")
        assert page.read_text() == cut_off


def test_a_folder_without_pages_and_a_study_without_its_files_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pages", "--folder", str(tmp_path)]) == 1
    assert f"--folder {tmp_path}: there are no pages (*.md)" in capsys.readouterr().err
    page = page_of(tmp_path, "answer", study="other")
    text = page.read_text()
    (tmp_path / "data/other").mkdir(parents=True)
    assert main(["pages", "--folder", str(tmp_path)]) == 1
    assert f"{tmp_path}/data/other holds no whole published study" in capsys.readouterr().err
    assert page.read_text() == text


def test_the_repositorys_pages_are_as_their_files_make_them(tmp_path: Path) -> None:
    pages = sorted(STUDIES.glob("*.md"))
    assert pages
    for page in pages:
        copy = tmp_path / page.name
        copy.write_text(page.read_text())
    for page in pages:
        fill(tmp_path / page.name, STUDIES / "data")
        assert (tmp_path / page.name).read_text() == page.read_text(), f"{page}: make study-report makes it anew"


def test_the_pools_table_has_a_row_for_each_generator_and_table_1_beside_it(tmp_path: Path) -> None:
    keep(published_study(tmp_path / "store"), "tiny", tmp_path / "data/tiny")
    published = load(tmp_path / "data/tiny")
    rows = [
        {"generator": generator, "label": label, "generated": 1_000, "parsed": 990, "num_rows": 990, "num_lexical_overlap": num}
        for generator in (0, 1)
        for label, num in (("entailment", 17), ("neutral", 3), ("contradiction", 0))
    ]
    whole = {"generated": 3_000, "parsed": 2_970, "num_rows": 2_970, "copies": 30, "near_copies": 3, "training_copies": 297}
    for row, wrong in zip(rows, (0.2, 0.05, 0.125), strict=False):
        row["wrong"] = wrong
    rows += [{"generator": 0, "label": "all"} | whole | {"wrong": 0.125, "wrong_low": 0.1, "wrong_high": 0.15}]
    rows += [{"generator": 1, "label": "all"} | whole]
    counts = {"entailment": LabelCount(990, 17), "neutral": LabelCount(990, 3), "contradiction": LabelCount(990, 1)}
    both = {"original": counts, "synthetic": counts}
    evidence = replace(published.evidence, counts=both)
    made = Made(replace(published, pools=pd.DataFrame(rows, columns=list(COLUMNS)), evidence=evidence), tmp_path)
    text = "\n\n".join(PARTS["pools"](made))
    numbers = "| 3,000 | 99.0% | 1.72% / 0.30% / 0.00% | 1.01% | 0.10% | 10.00% |"
    assert f"| 0 {numbers} 12.5% [10.0 to 15.0%]; 20.0% / 5.0% / 12.5% |" in text and f"| 1 {numbers} – |" in text
    assert "the pools of 2 generators together" in text

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.study import tables
from analysis.study.artifacts import LabelCount, count_lexical_overlap, lexical_overlap_counts, pool_overlap_counts
from analysis.study.items import load_arms
from analysis.study.tables import accuracy_table, entailment_odds_ratio, lexical_overlap_table
from pipelines.errors import UserError
from sweep.graph.records import Store, Study
from tests.analysis.fake_store import FakeStudy, parquet
from tests.analysis.item_study import ItemStudy, clear

# The counts of the paper's Table 1; the ratios and shares are the ones it prints.
SYNTHETIC = {
    "entailment": LabelCount(631992, 24360),
    "neutral": LabelCount(562822, 690),
    "contradiction": LabelCount(624999, 1504),
}
ORIGINAL = {
    "entailment": LabelCount(130541, 2139),
    "neutral": LabelCount(130573, 69),
    "contradiction": LabelCount(130608, 172),
}


@pytest.mark.parametrize("num_clusters", [1, 2_500])
def test_items_and_clusters_are_counted_as_all_numbers_are_written(num_clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "share_interval", lambda _: object())
    items = SimpleNamespace(clusters=np.arange(3_000) % num_clusters, chosen=lambda _: slice(None), clustered_by="premise")
    data = SimpleNamespace(seeds=[0, 1], num_items=3_000, num_clusters=num_clusters)
    words = tables._method(items, "all", data, pd.DataFrame({"generator": [np.nan]}))  # type: ignore[arg-type]
    assert words.startswith("Wilson over 2 seeds and ")
    assert ("3,000 items" if num_clusters == 1 else "2,500 premises") in words


def test_table_1_of_the_paper() -> None:
    table = lexical_overlap_table(ORIGINAL, SYNTHETIC)
    assert table["dataset"].tolist() == ["synthetic"] * 3 + ["original"] * 3
    assert table["label"].tolist() == ["entailment", "neutral", "contradiction"] * 2
    # The paper prints 3.854 for the first, cut off rather than rounded: 24,360 / 631,992 = 0.0385448.
    assert (100 * table["share"]).tolist() == pytest.approx([3.854, 0.123, 0.241, 1.639, 0.053, 0.132], abs=6e-4)
    # Its ratio of contradiction, 1.827, is that of its rounded shares, 0.241 / 0.132.
    assert table["ratio"].tolist()[:3] == pytest.approx([2.352, 2.320, 1.827], abs=2e-3)
    assert table["ratio"].isna().tolist() == [False] * 3 + [True] * 3
    assert (table["share_low"] < table["share"]).all() and (table["share"] < table["share_high"]).all()


def test_table_1_refuses_an_empty_label_and_has_no_ratio_over_nothing() -> None:
    with pytest.raises(UserError, match="no neutral examples in the synthetic"):
        lexical_overlap_table(ORIGINAL, SYNTHETIC | {"neutral": LabelCount(0, 0)})
    with pytest.raises(UserError, match="labels differ"):
        lexical_overlap_table(ORIGINAL, {"entailment": LabelCount(1, 1)})
    table = lexical_overlap_table(ORIGINAL | {"neutral": LabelCount(10, 0)}, SYNTHETIC)
    assert pd.isna(table.loc[table["label"] == "neutral", "ratio"]).all()


def test_odds_ratios_of_the_paper() -> None:
    original, synthetic = entailment_odds_ratio(ORIGINAL), entailment_odds_ratio(SYNTHETIC)
    # 2,139 × 260,940 / (128,402 × 241), 241 being 69 + 172; √(1/2 139 + 1/128 402 + 1/241 + 1/260 940) = 0.0680331.
    assert original.ratio == pytest.approx(558_150_660 / 30_944_882)
    assert (original.interval().low, original.interval().high) == pytest.approx((15.7853, 20.6097), abs=1e-4)
    # 24,360 × 1,185,627 / (607,632 × 2,194); the logarithm's error is 0.0223457.
    assert synthetic.ratio == pytest.approx(21.66447, abs=1e-5)
    assert (synthetic.interval().low, synthetic.interval().high) == pytest.approx((20.7361, 22.6344), abs=1e-4)
    ratio = synthetic.over(original)
    # "Just slightly stronger" (the paper's section on limitations).
    assert ratio.ratio == pytest.approx(1.20112, abs=1e-5)
    assert (ratio.interval().low, ratio.interval().high) == pytest.approx((1.04384, 1.38210), abs=1e-5)
    with pytest.raises(UserError, match="entailment and of something else"):
        entailment_odds_ratio({"entailment": LabelCount(10, 1)})


def test_lexical_overlap_is_counted_per_label() -> None:
    examples = pa.table(
        {
            "premise": [
                "The doctor saw the lawyer .",
                "The doctor saw the lawyer .",
                "A man sleeps",
                "Birds fly",
            ],
            "hypothesis": ["The lawyer saw the doctor .", "A doctor ran .", "A man !", "Birds"],
            "label": ["contradiction", "neutral", "entailment", "contradiction"],
        }
    )
    assert count_lexical_overlap(examples) == {
        "entailment": LabelCount(1, 1),
        "neutral": LabelCount(1, 0),
        "contradiction": LabelCount(2, 2),
    }


def test_of_several_pools_the_overlaps_are_counted_together_and_each(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    overlaps, other = ("A man sleeps", "A man"), ("A man sleeps", "A dog")
    study.add("sources", "data", files={"train.parquet": parquet([(*overlaps, "neutral")])})
    # The same training set beside further test sets is not counted twice.
    study.add("sources", "data-with-test-sets", files={"train.parquet": parquet([(*overlaps, "neutral")])})
    of_first = [(*overlaps, "neutral"), (*other, "neutral"), (*other, "entailment")]
    study.add("synthetic_pool", "pool", coordinates={"generator": 0}, files={"pool/a.parquet": parquet(of_first)})
    of_second = [(*overlaps, "neutral")]
    study.add("synthetic_pool", "pool1", coordinates={"generator": 1}, files={"pool/a.parquet": parquet(of_second)})
    study.add("synthetic_pool", "pool2", coordinates={"generator": 2}, built=False)
    store = Store(study.write())
    loaded = Study.load(store, "tiny")
    assert lexical_overlap_counts(store, loaded) == {
        "original": {"neutral": LabelCount(1, 1)},
        "synthetic": {"entailment": LabelCount(1, 0), "neutral": LabelCount(3, 2)},
    }
    assert pool_overlap_counts(store, loaded) == {
        0: {"entailment": LabelCount(1, 0), "neutral": LabelCount(2, 1)},
        1: {"neutral": LabelCount(1, 1)},
    }


def frame_of(tmp_path: Path, accuracies: dict[tuple[str, int, int], int], generators: int = 1) -> pd.DataFrame:
    """A study of one starting point from {(kind, size, seed): correct of 200 on every set}."""
    study = FakeStudy(tmp_path)
    study.generators = generators
    for (kind, size, seed), correct in accuracies.items():
        study.add_evaluation(0, kind, size, seed, lambda *_, correct=correct: correct)
    return study.frame()


def test_accuracy_table_with_and_without_seeds(tmp_path: Path) -> None:
    frame = frame_of(
        tmp_path,
        {
            ("none", 0, 0): 160,
            ("original", 60, 0): 100,
            ("original", 60, 1): 104,
            ("original", 120, 0): 100,
            ("original", 120, 1): 140,
        },
    )
    table = accuracy_table(frame)
    table = table[(table["set"] == "template_probe") & (table["slice"] == "all")]
    start, trained, wide = table.iloc[0], table.iloc[1], table.iloc[2]
    assert (start["mean"], start["n"]) == (0.8, 1)
    # Wilson of 160 of 200: (0.8 + z²/400 ± z √(0.16/200 + z²/160000)) / (1 + z²/200).
    assert (start["interval_low"], start["interval_high"]) == pytest.approx((0.73918, 0.84953), abs=1e-4)
    assert "Wilson" in start["method"]
    assert (trained["mean"], trained["low"], trained["high"], trained["n"]) == (0.51, 0.5, 0.52, 2)
    # 0.51 ± 12.7062 × 0.01.
    assert (trained["interval_low"], trained["interval_high"]) == pytest.approx((0.38294, 0.63706), abs=1e-4)
    # 0.6 ± 12.7062 × 0.1, of which an accuracy can only be 0..1.
    assert (wide["interval_low"], wide["interval_high"]) == (0.0, 1.0)


def test_with_answers_intervals_are_over_templates_too_and_hold_at_the_floor(tmp_path: Path) -> None:
    def rate(start: int, kind: str, size: int, part: str) -> float:
        return 0.0 if (kind, part) == ("biased_synthetic", "non-entailment") else clear(start, kind, size, part)

    study = ItemStudy(tmp_path, rate, noise=0.0)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=3)
    frame, store = study.frame(), Store(str(tmp_path))
    responses = load_arms(store, Study.load(store, "tiny"), ("template_test", "template_probe"), frame)[""]
    by = ["kind", "set", "slice", "num_labels", "folding"]
    alone, both = (accuracy_table(frame, given).set_index(by) for given in (None, responses))
    floor = ("biased_synthetic", "template_probe", "lexical_overlap/non-entailment", 2, "argmax")
    assert alone.loc[floor, "method"] == "no interval (the 3 seeds agree exactly)"
    assert both.loc[floor, "method"] == "Wilson over 3 seeds and 6 templates"
    # Six clusters of five items each count for all 30: t(0.975, 5) = 2.57058, squared 6.60789; 6.60789 / 36.60789.
    assert both.loc[floor, ["interval_low", "interval_high"]].tolist() == pytest.approx([0.0, 0.18051], abs=1e-4)
    assert (alone["mean"] - both["mean"]).abs().max() == 0
    # Whichever folding the answers do not have stays as it was.
    summed = both[both.index.get_level_values("folding") == "summed"]
    assert not summed["method"].str.contains("templates").any()


def test_with_one_seed_templates_make_the_interval_wider_than_items_would(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear, noise=0.0)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    frame, store = study.frame(), Store(str(tmp_path))
    responses = load_arms(store, Study.load(store, "tiny"), ("template_test", "template_probe"), frame)[""]
    table = accuracy_table(frame, responses)
    row = table[(table["kind"] == "original") & (table["set"] == "template_test") & (table["slice"] == "all")].iloc[0]
    assert row["method"] == "Wilson over 30 premises (1 seed)"
    assert row["interval_low"] < 0.8 < row["interval_high"]

"""What is kept of each generator's pool: its yield, overlaps and copies, by label and in all, and its wrong labels."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.publication.pools import COLUMNS, pools_frame
from sweep.graph.records import Store, Study
from tests.analysis.fake_store import FakeStudy, parquet
from tests.analysis.report.test_label_noise import add_judgement, confused, judged_table

LABELS = ("entailment", "neutral", "contradiction")
TRAIN = [
    ("The old doctor saw a lawyer at noon .", "A lawyer was seen at noon .", "entailment"),
    ("It rains .", "It is dry .", "neutral"),
]


def pool_rows(number: int) -> list[tuple[str, str, str]]:
    """Ten rows of each label, all else than one another; of entailments, as many as `number` have lexical overlap."""
    rows = []
    for place, label in enumerate(LABELS):
        for row in range(10):
            word = f"w{number}{place}{row}"
            overlaps = label == "entailment" and row < number
            rows.append(
                (f"The {word} met {word}s of {word}t .", f"The {word} met ." if overlaps else f"No{word} slept .", label)
            )
    return rows


def add_pool(study: FakeStudy, number: int, rows: list[tuple[str, str, str]]) -> str:
    counts = {
        "generated": dict.fromkeys(LABELS, 12),
        "parsed": dict.fromkeys(LABELS, 10),
        "rejected": {"no_hypothesis": 6},
    }
    files = {"yield.json": json.dumps(counts).encode(), "pool/a.parquet": parquet(rows)}
    return study.add("synthetic_pool", f"pool{number or ''}", coordinates={"generator": number}, files=files)


def test_each_pool_has_its_own_rows(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add("sources", "data", files={"train.parquet": parquet(TRAIN)})
    first, second = pool_rows(1), pool_rows(3)
    # A copy of a training row, and one of an earlier row of the pool.
    second[-1] = (*TRAIN[0][:2], "contradiction")
    second[-2] = (*second[0][:2], "contradiction")
    for number, rows in enumerate((first, second)):
        add_pool(study, number, rows)
    store = Store(study.write())
    frame = pools_frame(store, Study.load(store, "tiny"))
    assert list(frame.columns) == list(COLUMNS) and list(frame["label"]) == [*LABELS, "all"] * 2
    whole = frame[frame["label"] == "all"].set_index("generator")
    assert whole["num_rows"].tolist() == [30, 30] and whole["generated"].tolist() == [36, 36]
    assert whole["copies"].tolist() == [0, 1] and whole["training_copies"].tolist() == [0, 1]
    assert whole["wrong"].isna().all()
    entailments = frame[frame["label"] == "entailment"]
    assert entailments["num_lexical_overlap"].tolist() == [1, 3] and entailments["parsed"].tolist() == [10, 10]


def test_wrong_labels_are_told_of_each_label_and_in_all(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    gold = judged_table(confused(800, 100), False)
    # The judge is right of 80%, and doubts a fifth more of the entailments.
    doubted = {**confused(800, 100), ("entailment", "entailment"): 660, ("entailment", "neutral"): 240}
    pool = add_pool(study, 0, pool_rows(1))
    add_pool(study, 1, pool_rows(1))
    add_judgement(study, "judge-pool", judged_table(doubted, False), gold, inputs={"pool": pool})
    store = Store(study.write())
    frame = pools_frame(store, Study.load(store, "tiny")).set_index(["generator", "label"])
    assert frame["wrong"][0].round(3).to_dict() == {"entailment": 0.2, "neutral": 0.0, "contradiction": 0.0, "all": 0.067}
    assert (frame["wrong_low"][0] <= frame["wrong"][0]).all() and (frame["wrong"][0] < frame["wrong_high"][0]).all()
    assert frame["wrong"][1].isna().all()


def test_a_study_without_pools_has_none(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid(seeds=(0,))
    store = Store(study.write())
    frame = pools_frame(store, Study.load(store, "tiny"))
    assert frame.empty and list(frame.columns) == list(COLUMNS)


def test_what_is_not_known_is_nan(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    add_pool(study, 0, pool_rows(2))
    store = Store(study.write())
    (whole,) = pools_frame(store, Study.load(store, "tiny")).query("label == 'all'").to_dict("records")
    assert np.isnan(whole["training_copies"]) and whole["copies"] == 0
    assert pd.isna(whole["wrong"])

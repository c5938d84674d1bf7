"""Results of studies that are not about NLI: other labels, other fields, described test sets."""

from pathlib import Path

import numpy as np
import pytest

from analysis.stats.ranking import auc_replicates
from analysis.study.described import described_sets, task_of, titles_of
from analysis.study.items import Responses, load_arms, predicted_label
from analysis.study.series import study_series
from analysis.study.signal_detection import signal_table
from analysis.study.tables import accuracy_table
from pipelines.errors import UserError
from pipelines.evaluate.scoring import placements
from pipelines.tasks.nli import NLI
from sweep.graph.records import Store, Study
from sweep.study.claims import Measure
from tests.analysis.item_study import ItemStudy, clear
from tests.analysis.own_study import MONEY, NEGATED, SENTIMENT, TOPIC, OwnStudy, SentimentStudy, TopicStudy

CELLS = [(0, "synthetic", 60)]


def load(study: ItemStudy) -> tuple[Study, Responses]:
    frame = study.frame()
    store = Store(str(study.root))
    loaded = Study.load(store, "tiny")
    return loaded, load_arms(store, loaded, list(study.sets), frame)[""]


def small(study: OwnStudy) -> OwnStudy:
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=2)
    return study


def test_task_and_test_sets_are_those_of_the_records(tmp_path: Path) -> None:
    loaded, _ = load(small(SentimentStudy(tmp_path / "sentiment")))
    assert task_of(loaded) == SENTIMENT
    # With the words for people, which no fingerprint has.
    assert described_sets(loaded) == {"negated": NEGATED}
    assert titles_of(loaded)["negated"] == "Negated reviews"
    loaded, _ = load(small(TopicStudy(tmp_path / "topic")))
    assert (task_of(loaded), described_sets(loaded)) == (TOPIC, {"money": MONEY})
    study = ItemStudy(tmp_path / "nli", clear)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    loaded, _ = load(study)
    assert (task_of(loaded), described_sets(loaded)) == (NLI, {})


def test_slices_clusters_and_labels_of_a_described_set(tmp_path: Path) -> None:
    _, responses = load(small(SentimentStudy(tmp_path)))
    items = responses.items["negated"]
    assert (items.title, items.clustered_by, len(set(items.clusters))) == ("Negated reviews", "film", 20)
    assert responses.items["reviews"].clustered_by == "sentence"
    assert items.slices == ("half/negated", "half/plain", "length/long", "length/short")
    assert (items.asked("all"), items.asked("half/negated")) == (None, None)
    # Items 2, 5, 8 … are long, 27 or 26 of 80; every other one has the label. Nulls are in no slice.
    assert items.chosen("length/long").sum() == 26
    assert items.chosen("length/long/negative").sum() == 13
    for nowhere in ("length", "length/", "length/other", "half/plain/negative", "elsewhere"):
        with pytest.raises(UserError, match="no item of negated"):
            items.chosen(nowhere)
    # 30% of 40 items, give or take the noise of 2 points.
    (first, _) = responses.accuracy("negated", "half/negated", CELLS).values
    assert first == pytest.approx(0.3, abs=0.06)


def test_a_folded_set_asks_for_one_label_of_four(tmp_path: Path) -> None:
    _, responses = load(small(TopicStudy(tmp_path)))
    items = responses.items["money"]
    assert (items.folded_onto, items.asked("half/money"), items.clustered_by) == ("sport", "sport", "title")
    assert responses.items["news"].asked("all") is None
    assert items.is_of("sport").sum() == 40
    with pytest.raises(UserError, match="may or may not be of science"):
        items.is_of("science")
    predicted = responses.predicted["money"][0, "synthetic", 60, 0]
    by_hand = (predicted == 0) == (items.labels == "sport")
    assert responses.accuracy("money", "all", CELLS).values[0] == by_hand.mean()


def test_halves_of_a_described_set_have_margin_auc_and_pull(tmp_path: Path) -> None:
    study = small(SentimentStudy(tmp_path, jitter=8))
    _, responses = load(study)
    assert responses.label == "positive"
    items, scores = responses.items["negated"], responses.scores["negated"][0, "synthetic", 60, 0]
    wrong = items.chosen("half/negated")
    margin = responses.measured(Measure.MARGIN, "negated", "half/negated", CELLS)
    assert margin.values[0] == pytest.approx(scores[wrong].mean())
    above, below = placements(scores[~wrong], scores[wrong])
    by_hand = auc_replicates((0,), above[np.newaxis], below[np.newaxis], np.arange(80), np.zeros(80, dtype=int))
    auc = responses.measured(Measure.AUC, "negated", "half/negated", CELLS)
    assert auc.values[0] == pytest.approx(by_hand.values[0])
    general = responses.scores["reviews"][0, "synthetic", 60, 0][responses.items["reviews"].labels == "negative"]
    pull = responses.measured(Measure.PULL, "negated", "half/negated", CELLS, "reviews")
    assert pull.values[0] == pytest.approx(placements(scores[wrong], general)[0].mean())
    with pytest.raises(UserError, match="no counterpart"):
        responses.measured(Measure.AUC, "negated", "length/long", CELLS)


def test_without_a_predicted_label_there_is_accuracy_alone(tmp_path: Path) -> None:
    _, responses = load(small(TopicStudy(tmp_path)))
    assert responses.label is None
    for measure in (Measure.MARGIN, Measure.AUC, Measure.PULL):
        with pytest.raises(UserError, match=r"Money in sport.*measure its accuracy"):
            responses.measured(measure, "money", "half/money", CELLS, "news")
    assert responses.measured(Measure.ACCURACY, "money", "half/money", CELLS).num_items == 40


def test_the_predicted_label_is_the_description_s_or_the_slice_s() -> None:
    assert predicted_label("half/negated", NEGATED, SENTIMENT) == "positive"
    assert predicted_label("holds/shouting/non-negative", NEGATED, SENTIMENT) == "negative"
    assert predicted_label("half/money", MONEY, TOPIC) is None
    assert predicted_label("lexical_overlap/non-entailment", None, NLI) == "entailment"
    assert predicted_label("lexical_overlap", None, NLI) == "entailment"
    assert predicted_label("anything", None, SENTIMENT) is None


def test_series_are_named_for_people_and_scored_by_the_labels_of_the_set(tmp_path: Path) -> None:
    study = small(TopicStudy(tmp_path))
    loaded, responses = load(study)
    general, blindspot, adversarial = study_series(loaded, study.frame())
    assert (general.name, general.num_labels) == ("news", 4)
    assert (blindspot.name, blindspot.num_labels) == ("Money in sport", 2)
    assert (adversarial.name, adversarial.num_labels) == ("Money in sport, half, money", 2)
    with pytest.raises(UserError, match="has no evaluation yet; run it"):
        study_series(loaded, study.frame().head(0))
    table = accuracy_table(study.frame(), responses)
    of_money = table[(table["set"] == "money") & (table["folding"] == "argmax")]
    assert of_money["method"].str.contains("40 values of title").any()
    assert not table["method"].str.contains("premise").any()


def test_signal_detection_of_a_described_set(tmp_path: Path) -> None:
    _, responses = load(small(SentimentStudy(tmp_path / "sentiment")))
    table = signal_table(responses, "negated")
    # Each half has one label only.
    assert set(table["slice"]) == {"all", "length/long", "length/short"}
    assert (table[table["kind"] == "biased_synthetic"]["criterion"] < 0).all()
    _, responses = load(small(TopicStudy(tmp_path / "topic")))
    assert set(signal_table(responses, "money")["slice"]) == {"all"} | {"half/clear", "half/money"}


def test_logits_of_another_task_are_refused(tmp_path: Path) -> None:
    study = SentimentStudy(tmp_path)
    study.add_cell(0, "none", 0, 0, edit=lambda table: table.drop_columns(["logit_positive"]))
    with pytest.raises(UserError, match="no column logit_positive"):
        load(study)

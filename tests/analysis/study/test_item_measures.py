"""Measures that still move where accuracy is at 0 or 1, on a small study whose logits are shifted."""

from pathlib import Path

import numpy as np
import pytest

from analysis.stats.intervals import mean_of
from analysis.study.items import Responses, load_arms
from analysis.study.tables import unit_of
from pipelines.errors import UserError
from pipelines.tasks.heuristics import LEXICAL_OVERLAP, Heuristic
from pipelines.tasks.nli import Label
from sweep.graph.records import Store, Study
from sweep.study.claims import Measure
from tests.analysis.item_study import ItemStudy, clear

GENERAL, PROBE, SLICE = "template_test", "template_probe", "lexical_overlap/non-entailment"
SHIFT = 8.0
EVEN = Heuristic("even", lambda p, h: np.array([int(text.split()[1]) % 2 == 0 for text in h]), predicts=Label.CONTRADICTION)
BEYOND_ACCURACY = (Measure.MARGIN, Measure.AUC, Measure.PULL)


def load(study: ItemStudy) -> Responses:
    store = Store(study.write())
    return load_arms(store, Study.load(store, "tiny"), (GENERAL, PROBE), study.frame())[""]


def shifted(folder: Path, shift: dict[str, float]) -> Responses:
    """Two seeds; `shift` is added to the logit of entailment of a kind's models."""
    study = ItemStudy(folder, clear, jitter=40, shift=lambda kind: shift.get(kind, 0.0))
    study.grid(starting_sizes=(0, 5), sizes=(60,), num_seeds=2)
    return load(study)


def change(responses: Responses, measure: Measure) -> np.ndarray:
    return responses.change(PROBE, SLICE, "synthetic", "original", (0, 5), (60,), measure, GENERAL).values


def test_a_shift_of_every_model_hides_a_change_from_accuracy_alone(tmp_path: Path) -> None:
    before = shifted(tmp_path / "before", {})
    after = shifted(tmp_path / "after", dict.fromkeys(("none", "original", "synthetic", "biased_synthetic"), SHIFT))
    assert (change(before, Measure.ACCURACY) < -0.2).all()
    assert (after.accuracy(PROBE, SLICE, [(0, "original", 60)]).values == 0).all()
    assert (change(after, Measure.ACCURACY) == 0).all()
    for measure in BEYOND_ACCURACY:
        assert (np.abs(change(before, measure)) > 0.02).all()
        assert change(after, measure) == pytest.approx(change(before, measure), abs=1e-5)


def test_a_shift_of_one_kind_moves_its_margin_alone_and_by_as_much(tmp_path: Path) -> None:
    before, after = shifted(tmp_path / "before", {}), shifted(tmp_path / "after", {"synthetic": SHIFT})
    assert change(after, Measure.MARGIN) == pytest.approx(change(before, Measure.MARGIN) + SHIFT, abs=1e-5)
    for measure in (Measure.AUC, Measure.PULL):
        assert change(after, measure) == pytest.approx(change(before, measure), abs=1e-5)


def test_measures_are_those_of_items_counted_one_by_one(tmp_path: Path) -> None:
    responses = shifted(tmp_path, {})
    items, general = responses.items[PROBE], responses.items[GENERAL]
    cells = [(0, "synthetic", 60), (5, "synthetic", 60)]

    def by_hand(seed: int) -> dict[Measure, float]:
        found: dict[Measure, list[float]] = {measure: [] for measure in BEYOND_ACCURACY}
        for cell in cells:
            score, of_general = (responses.scores[name][*cell, seed].astype(float) for name in (PROBE, GENERAL))
            of_overlap = items.heuristics == "lexical_overlap"
            wrong, right = (score[of_overlap & (items.labels == label)] for label in ("non-entailment", "entailment"))
            alike = of_general[general.labels != "entailment"]
            found[Measure.MARGIN].append(wrong.mean())
            for measure, above, below in ((Measure.AUC, right, wrong), (Measure.PULL, wrong, alike)):
                difference = above[:, np.newaxis] - below
                found[measure].append(((difference > 0) + 0.5 * (difference == 0)).mean())
        return {measure: float(np.mean(values)) for measure, values in found.items()}

    for measure in BEYOND_ACCURACY:
        data = responses.measured(measure, PROBE, SLICE, cells, GENERAL)
        assert data.values == pytest.approx([by_hand(seed)[measure] for seed in (0, 1)])
        assert data.seeds == (0, 1)
        # Clusters stay in their strata, as for accuracies.
        for stratum in np.unique(data.strata):
            assert data.residuals[:, data.strata == stratum].sum(axis=1) == pytest.approx(0, abs=1e-12)
    auc = responses.measured(Measure.AUC, PROBE, SLICE, cells)
    # 6 templates a side.
    assert (auc.num_items, auc.num_clusters, len(np.unique(auc.strata))) == (60, 12, 2)
    pull = responses.measured(Measure.PULL, PROBE, SLICE, cells, GENERAL)
    # 30 general premises, each with items that are not entailment.
    assert (pull.num_items, pull.num_clusters) == (30 + 60, 6 + 30)
    both = mean_of([auc, auc.of([0])])
    assert both.values.tolist() == [auc.values[0]]


def test_accuracy_is_a_measure_like_the_others(tmp_path: Path) -> None:
    responses = shifted(tmp_path, {})
    cells = [(0, "original", 60)]
    measured = responses.measured(Measure.ACCURACY, PROBE, SLICE, cells)
    assert measured.values.tolist() == responses.accuracy(PROBE, SLICE, cells).values.tolist()


def test_the_heuristic_of_a_user_is_measured_by_its_own_label(tmp_path: Path) -> None:
    # Of 90 general items the label of every third is contradiction; 45 are even, 15 of these contradictions.
    study = ItemStudy(tmp_path, clear, jitter=40, heuristics=[EVEN, LEXICAL_OVERLAP])
    study.parameters |= {"blindspot_slice": "holds/even/non-contradiction", "blindspot_set": GENERAL}
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=2)
    responses = load(study)
    assert responses.label == Label.CONTRADICTION
    cells, where = [(0, "original", 60)], "holds/even/non-contradiction"
    even = np.arange(90) % 2 == 0
    score, is_label = responses.scores[GENERAL][0, "original", 60, 0], np.arange(90) % 3 == 2
    margin, auc, pull = (responses.measured(measure, GENERAL, where, cells, GENERAL) for measure in BEYOND_ACCURACY)
    assert margin.values[0] == pytest.approx(score[even & ~is_label].mean())
    assert auc.num_items == 45
    difference = score[even & is_label][:, np.newaxis] - score[even & ~is_label]
    assert auc.values[0] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    # Of the same label, and not of the slice itself: 60 - 30 items.
    difference = score[even & ~is_label][:, np.newaxis] - score[~even & ~is_label]
    assert pull.values[0] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    with pytest.raises(UserError, match="asks for entailment, and scores are of contradiction"):
        responses.measured(Measure.MARGIN, PROBE, SLICE, cells)


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    study = ItemStudy(tmp_path, clear)
    study.grid(starting_sizes=(0,), sizes=(60,), num_seeds=1)
    responses = load(study)
    cells = [(0, "original", 60)]
    for slice_name in ("all", "lexical_overlap", "subcase/ln_0", "lexical_overlap/entailment"):
        with pytest.raises(UserError, match="no counterpart"):
            responses.measured(Measure.AUC, PROBE, slice_name, cells)
    with pytest.raises(UserError, match="items of entailment and others"):
        responses.measured(Measure.PULL, PROBE, "lexical_overlap", cells, GENERAL)
    responses.items[GENERAL].labels[:] = "entailment"
    with pytest.raises(UserError, match="no further item of non-entailment"):
        responses.measured(Measure.PULL, PROBE, SLICE, cells, GENERAL)
    with pytest.raises(UserError, match="no seed has all"):
        responses.measured(Measure.MARGIN, PROBE, SLICE, [(0, "original", 61)])


def test_the_generator_is_the_unit_of_what_comes_from_a_pool(tmp_path: Path) -> None:
    def deal(folder: Path, num_generators: int) -> Responses:
        study = ItemStudy(folder, clear, noise=0.1, jitter=40)
        for seed in range(5):
            for kind, size in (("none", 0), ("original", 60), ("synthetic", 60), ("biased_synthetic", 60)):
                from_pool = kind not in ("none", "original")
                study.add_cell(0, kind, size, seed, generator=seed % num_generators if from_pool else None)
        return load(study)

    one, several = deal(tmp_path / "one", 1), deal(tmp_path / "several", 2)
    assert one.generator_of == {}
    assert several.generator_of == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}
    for measure in Measure:
        by_seed, by_generator = (
            data.change(PROBE, SLICE, "synthetic", "original", (0,), (60,), measure, GENERAL) for data in (one, several)
        )
        assert (by_seed.seeds, by_seed.num_seeds_each) == ((0, 1, 2, 3, 4), ())
        assert (by_generator.seeds, by_generator.num_seeds_each) == ((0, 1), (3, 2))
        values = by_seed.values
        assert by_generator.values == pytest.approx([values[[0, 2, 4]].mean(), values[[1, 3]].mean()])
        assert by_generator.residuals[1] == pytest.approx(by_seed.residuals[[1, 3]].mean(axis=0))
    assert several.change(PROBE, SLICE, "original", "none", (0,), (60,)).seeds == (0, 1, 2, 3, 4)
    assert several.change(PROBE, SLICE, "biased_synthetic", "synthetic", (0,), (60,)).seeds == (0, 1)


def test_of_several_generators_of_which_one_has_made_results_seeds_are_the_unit(tmp_path: Path) -> None:
    """As in a study of one generator, whose verdicts say so."""
    study = ItemStudy(tmp_path, clear, noise=0.1)
    for seed in (0, 2, 4):
        for kind, size in (("none", 0), ("original", 60), ("synthetic", 60)):
            study.add_cell(0, kind, size, seed, generator=0)
    late = {"starting_size": 0, "kind": "synthetic", "size": 60, "seed": 1, "generator": 1}
    study.add("evaluation", "late", coordinates=late, built=False)
    frame = study.frame(partial=True)
    store = Store(str(study.root))
    responses = load_arms(store, Study.load(store, "tiny"), (GENERAL, PROBE), frame, partial=True)[""]
    assert responses.generator_of == {} and unit_of(frame) == "seeds"
    change = responses.change(PROBE, SLICE, "synthetic", "original", (0,), (60,))
    assert (change.seeds, responses.by_unit({"synthetic"}, change).seeds) == ((0, 2, 4), (0, 2, 4))

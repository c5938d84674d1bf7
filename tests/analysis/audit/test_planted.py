"""What was planted in a set is found, each plant within its interval, and nothing else; in three languages."""

import pytest

from analysis.audit.audit import Audit, AuditSettings, audit
from tests.analysis.audit.planted import LANGUAGES, Planted, flipped, planted

# By HANS's tokens a Chinese sentence is one.
OVERLAP = "lexical_overlap_by_words"


def audited(made: Planted) -> Audit:
    return audit(made.table, AuditSettings(tests={"held_out": made.test}, processes=1))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_plant_is_found(language: str) -> None:
    made = planted(language)
    found = audited(made)
    kinds, wanted = found.duplicates.kinds, made.counts
    # A row with the words of another and another label is an exact copy, too.
    assert kinds["exact"].count == wanted["exact"] + wanted["other_label"]
    assert kinds["same_words"].count == wanted["same_words"]
    assert kinds["near"].interval.low <= wanted["near"] / found.file.num_rows <= kinds["near"].interval.high
    assert found.duplicates.other_label is not None and found.duplicates.other_label.count == wanted["other_label"]
    leaks = found.leaks["held_out"]
    assert leaks.given_away is not None and leaks.given_away.count == wanted["leaks"]
    ratio = {one.name: one.odds_ratio for one in found.heuristics}[OVERLAP]
    assert ratio is not None and ratio.interval.low <= made.odds_ratio <= ratio.interval.high


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_found_where_nothing_is(language: str) -> None:
    found = audited(planted(language, seed=2, is_clean=True))
    assert {kind: share.count for kind, share in found.duplicates.kinds.items()} == {
        "exact": 0,
        "same_words": 0,
        "near": 0,
        "any": 0,
    }
    assert found.leaks["held_out"].kinds["any"].count == 0
    overlap = {one.name: one for one in found.heuristics}[OVERLAP]
    assert overlap.odds_ratio is not None and overlap.verdict in ("independent of the label", "cannot tell")
    assert overlap.odds_ratio.interval.low <= 1 <= overlap.odds_ratio.interval.high
    for baseline in found.one_field.values():
        assert baseline.lift is not None and baseline.lift.interval is not None
        assert baseline.lift.interval.low <= 0


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("share", "verdict"), [(0.0, "few wrong"), (0.15, "many wrong")])
def test_flipped_labels_are_found(language: str, share: float, verdict: str) -> None:
    made = flipped(language, share)
    found = audit(made, AuditSettings(trusted=flipped(language, 0.0, 2_000, seed=1), processes=1))
    assert found.label_noise is not None and found.label_noise.noise is not None
    in_all = found.label_noise.noise.in_all
    truth = sum(made["is_wrong"].to_pylist()) / made.num_rows
    assert in_all.interval.low <= truth <= in_all.interval.high and in_all.verdict == verdict
    wrong = made["is_wrong"].to_numpy(zero_copy_only=False)[found.label_noise.rows - 1]
    assert wrong.mean() > 0.9 if share else len(wrong) < 0.02 * made.num_rows

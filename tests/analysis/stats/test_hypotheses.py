"""Golden values worked out by hand, not from the code under test."""

import math

import pytest

from analysis.stats.hypotheses import benjamini_hochberg, equivalence, holm, partial_conjunction, sign_flip
from analysis.stats.intervals import Effect


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),
        # Of the 8 sums, 6, 4, −4 and −6 are as far from 0 as the observed 4.
        ([3.0, 2.0, -1.0], 4 / 8),
        ([1.0, 2.0, -3.0], 1.0),
        ([0.1] * 12, 2 / 4096),
    ],
)
def test_sign_flip_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip(differences) == p


def test_sign_flip_of_many_seeds_is_sampled_and_never_zero() -> None:
    assert sign_flip([1.0] * 40, seed=1, num_samples=999) == 1 / 1000
    assert sign_flip([1.0, -1.0] * 10, seed=1) == 1.0
    with pytest.raises(ValueError, match="nothing"):
        sign_flip([])


def test_equivalence_by_hand() -> None:
    # One-sided 5% points of the normal distribution are 1.644854 standard errors away.
    exact = Effect(0.0, 1, 100, math.nan, 1.0)
    assert equivalence(exact, 1.644854) == pytest.approx(0.05, abs=1e-6)
    # Off the middle, the nearer margin decides.
    assert equivalence(Effect(-1.0, 1, 100, math.nan, 1.0), 2.644854) == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(ValueError, match="margin"):
        equivalence(exact, 0.0)


def test_holm_by_hand() -> None:
    # Sorted: 0.01 × 3, 0.03 × 2, 0.04 × 1, none less than the one before; what was not tested counts for nothing.
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_benjamini_hochberg_by_hand() -> None:
    # Sorted: 0.01 × 3/1, 0.03 × 3/2, 0.04 × 3/3, none more than the one after.
    assert benjamini_hochberg([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.04, math.nan, 0.04], nan_ok=True)


def test_benjamini_hochberg_within_families_by_hand() -> None:
    # Alone 0.01 of two is 0.02, and 0.03 of one stays; together 0.01 of three would be 0.03.
    assert benjamini_hochberg([0.01, 0.03, 0.9], ["several", "one", "several"]) == pytest.approx([0.02, 0.03, 0.9])
    assert benjamini_hochberg([0.01, 0.03, 0.9]) == pytest.approx([0.03, 0.045, 0.9])


def test_partial_conjunction_by_hand() -> None:
    p = [0.04, 0.01, 0.2]
    # All: the largest. One of three: three times the smallest. Two of three: twice the second.
    assert [partial_conjunction(p, at_least) for at_least in (3, 1, 2)] == pytest.approx([0.2, 0.03, 0.08])
    assert partial_conjunction([0.6, 0.7], 1) == 1.0
    with pytest.raises(ValueError, match="at_least=4"):
        partial_conjunction(p, 4)


def test_a_part_that_ties_supports_nothing_and_hides_no_refutation() -> None:
    p = [math.nan, 0.001, 0.3]
    assert partial_conjunction(p, 3) == 1.0
    assert partial_conjunction(p, 1) == pytest.approx(0.003)
    assert math.isnan(partial_conjunction([math.nan, math.nan], 1))

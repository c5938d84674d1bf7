"""Mixes: what they may be, what they are called, and what their sets have."""

import pytest

from pipelines.data.kinds import Added, Mix, find_kind, kind_name, parts_of, sizes_of
from pipelines.errors import UserError
from pipelines.identity import identity


def test_a_mix_is_called_by_its_parts_and_found_by_that_name():
    mix = Mix(original=0.5, synthetic=0.5)
    assert mix.name == "mix_original0.5_synthetic0.5" and find_kind(mix.name) == mix
    assert find_kind("mixed_50") == mix
    assert find_kind("mixed_25") == Mix(original=0.75, synthetic=0.25)
    debiased = Mix(original=0.5, debiased_synthetic=0.5)
    assert debiased.name == "mix_original0.5_debiased_synthetic0.5" and find_kind(debiased.name) == debiased
    assert find_kind("added_debiased_synthetic2_biased_synthetic0.5") == Added(debiased_synthetic=2, biased_synthetic=0.5)
    more = Mix(original=0.2, biased_synthetic=0.3, filtered_synthetic=0.5)
    assert find_kind(more.name) == more and parts_of(more) == ("original", "biased_synthetic", "filtered_synthetic")
    added = Added(synthetic=2)
    assert added.name == "added_synthetic2" and find_kind(added.name) == added
    assert find_kind(mix) is mix and kind_name(mix) == mix.name
    for name in (
        "synthetic",
        "mixture",
        "mix_",
        "mix_bias0.5_synthetic0.5",
        "added_original1",
        "mix_synthetic0.5_synthetic0.5",
    ):
        assert find_kind(name) == name == kind_name(name)


@pytest.mark.parametrize(
    ("mix", "size", "sizes"),
    [
        (Mix(original=0.5, synthetic=0.5), 900, (450, 450)),
        (Mix(original=0.5, synthetic=0.5), 901, (451, 450)),
        (Mix(original=1 / 3, synthetic=1 / 3, biased_synthetic=1 / 3), 100, (33, 34, 33)),
        (Added(synthetic=2), 900, (900, 1_800)),
        (Added(synthetic=0.25, biased_synthetic=0.5), 10, (10, 3, 5)),
    ],
)
def test_sizes_of_parts(mix, size, sizes):
    assert tuple(mix.sizes(size).values()) == tuple(sizes_of(mix, size).values()) == sizes
    assert isinstance(mix, Added) or sum(sizes) == size


def test_how_much_of_it_a_generator_wrote():
    assert Mix(original=0.25, synthetic=0.5, biased_synthetic=0.25).synthetic_share == 0.75
    assert Added(synthetic=1).synthetic_share == 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Mix(original=0.5, synthetic=0.4),
            r"Mix\(original=0\.5, synthetic=0\.4\) adds up to 0\.9: shares of one set add",
        ),
        (lambda: Mix(original="half", synthetic=0.5), r"original='half'\): give a number"),
        (lambda: Mix(original=1.5, synthetic=-0.5), r"synthetic=-0\.5 is no share"),
        (lambda: Mix(original=float("nan"), synthetic=0.5), "original=nan is no share"),
        (lambda: Mix(synthetic=1), r"Mix\(synthetic=1\) has fewer than two parts"),
        (lambda: Mix(), r"Mix\(\) has fewer than two parts"),
        (lambda: Added(), r"Added\(\) adds nothing"),
        (lambda: Added(synthetic=-1), r"synthetic=-1 is no share"),
        (lambda: find_kind("mixed_100"), "fewer than two parts"),
        (lambda: find_kind("mix_original0.5_synthetic0.6"), r"adds up to 1\.1"),
    ],
)
def test_impossible_mixes_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_identities_name_the_parts_that_there_are():
    assert identity(Mix(original=0.5, synthetic=0.5)) == {"original": 0.5, "synthetic": 0.5}
    assert identity(Added(synthetic=2)) == {"synthetic": 2.0}

import math

import pandas as pd

from analysis.report.claims_section import _with_interval
from analysis.wording import duration, kind_name, kind_words, percent, points, points_range


def test_numbers_as_they_are_read() -> None:
    assert points(0.0123) == "+1.2"
    assert points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert points(-0.0001) == "0.0"
    assert points_range(-0.05, 0.01) == "[\N{MINUS SIGN}5.0, +1.0]"
    assert percent(0.0385448, 3) == "3.854%"
    assert percent(math.nan) == "\N{EN DASH}"
    assert [duration(s) for s in (0.01, 3.24, 75.2, 7260)] == ["<0.1 s", "3.2 s", "1 min 15 s", "2 h 01 min"]


def test_an_estimate_that_is_rounded_to_nothing_has_no_sign() -> None:
    estimate = pd.Series({"criterion": -0.0004, "criterion_low": -0.0049, "criterion_high": 0.12})
    assert _with_interval(estimate, "criterion") == "0.00 [0.00, 0.12]"


def test_kinds_are_called_by_what_is_in_them() -> None:
    names = ("synthetic", "bias_0.7", "synthetic_generation2", "mix_original0.25_biased_synthetic0.75", "added_synthetic2")
    assert [kind_name(name) for name in names] == [
        "Synthetic", "Bias 0.7", "Synthetic, generation 2", "25% original, 75% biased synthetic", "Original + 2 × synthetic",
    ]  # fmt: skip
    assert kind_words("synthetic_generation2") == "synthetic, generation 2" and kind_words("added_synthetic2")[0] == "o"

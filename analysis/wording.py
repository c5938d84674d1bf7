"""Numbers and names as people read them. A count is written by Python's own format, `f"{count:,}"`: 73,080."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

import pandas as pd

from pipelines.data.kinds import find_kind

KIND_NAMES = {
    "none": "Starting point",
    "original": "Original",
    "synthetic": "Synthetic",
    "biased_synthetic": "Biased Synthetic",
    "filtered_synthetic": "Filtered Synthetic",
    "debiased_synthetic": "Debiased Synthetic",
}
SET_NAMES = {
    "mnli_matched": "MultiNLI matched",
    "mnli_mismatched": "MultiNLI mismatched",
    "hans": "HANS",
    "template_test": "Template test set",
    "template_probe": "Template probe",
}
HOLDS = "holds/"
"""The beginning of the name of a slice where a heuristic holds."""
SLICE = "slice/"
"""The beginning of the names of the columns that a described test set's slices have beside logits."""
NOTHING = "–"
_MINUS = "\N{MINUS SIGN}"


def kind_name(kind: str) -> str:
    """The name of a kind of training set in figures and tables.

    A dose of bias has its own name ('bias_0.7' is 'Bias 0.7'), a mix its parts ('50% original, 50% synthetic'), a later
    generation its number ('Synthetic, generation 2').
    """
    words = kind_words(kind)
    return KIND_NAMES.get(kind, words[0].upper() + words[1:])


def kind_words(kind: str) -> str:
    """A kind of training set within a sentence."""
    made_of = find_kind(kind)
    return (
        re.sub(r"_generation(?=\d+$)", ", generation ", made_of).replace("_", " ")
        if isinstance(made_of, str)
        else made_of.title
    )


def set_name(name: str, titles: Mapping[str, str] = SET_NAMES) -> str:
    """The name of a test set in figures and tables; one without a title keeps its own name."""
    return titles.get(name, name)


def slice_name(name: str) -> str:
    """'lexical_overlap/non-entailment' -> 'lexical overlap, non-entailment'; so, too, 'holds/…', where a heuristic holds."""
    return name.removeprefix(HOLDS).replace("_", " ").replace("/", ", ")


def starting_point_name(starting_size: int) -> str:
    """A starting point by the number of original examples it was finetuned on."""
    return "untrained" if starting_size == 0 else f"{starting_size:,} examples"


def in_arm(title: str, arm: str) -> str:
    """A title, and which of a study's arms it is about; as it is in a study of one ("")."""
    return f"{title} (arm {arm})" if arm else title


def shown(text: str, num_characters: int = 300) -> str:
    """Text of unknown origin as one line for people: cut, and without characters that control a terminal or reorder a page."""
    line = " ".join(text[: 4 * num_characters].split())
    # Format characters (Cf) turn the direction of text; lone surrogates and unassigned ones cannot be written.
    safe = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") else character
        for character in line
    )
    return safe if len(safe) <= num_characters else safe[: num_characters - 1] + "…"


def measure_word(measure: str) -> str:
    """'auc' -> 'AUC', as a sentence has it; other measures are called by their own names."""
    return {"auc": "AUC"}.get(measure, measure)


def in_words(names: Sequence[str]) -> str:
    """('a', 'b', 'c') -> 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def counted(number: int, what: str) -> str:
    """`1 cell`, `1,200 cells`; `what` is one of them."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def number_word(number: int) -> str:
    """3 -> 'three'; digits from eleven on."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)


def percent(share: float, digits: int = 1) -> str:
    """0.8567 -> '85.7%'; nothing for NaN."""
    return NOTHING if math.isnan(share) else f"{share:.{digits}%}"


def percent_range(low: float, high: float, digits: int = 1) -> str:
    """(0.851, 0.86) -> '85.1 to 86.0%'."""
    if math.isnan(low) or math.isnan(high):
        return NOTHING
    return f"{100 * low:.{digits}f} to {high:.{digits}%}"


def percent_estimate(share: float, low: float, high: float) -> str:
    """(0.277, 0.25, 0.304) -> '27.7 [25.0, 30.4]', in per cent; without the brackets where there is no interval."""
    if math.isnan(share):
        return NOTHING
    return f"{100 * share:.1f}" if math.isnan(low) else f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: float) -> str:
    """0.0123 -> '+1.2'; a difference of accuracies in percentage points, always with its sign."""
    text = f"{100 * difference:+.1f}"
    # Rounded to nothing, it has no sign to show.
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def points_range(low: float, high: float) -> str:
    """(-0.05, 0.01) -> '[−5.0, +1.0]'."""
    return f"[{points(low)}, {points(high)}]"


def estimate_words(value: float, unit: str) -> str:
    """0.0123 as a "share" -> '+1.2' points; 1.234 as a "ratio" -> '×1.23', as a "number" '+1.23'; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    if unit == "number":
        return f"{value:+z.2f}".replace("-", _MINUS)
    return f"×{value:.2f}" if unit == "ratio" else points(value)


def range_words(low: float, high: float, unit: str) -> str:
    """The interval of `estimate_words`: '[−5.0, +1.0]' or '[×1.02, ×1.13]'; a dash where there is none."""
    if math.isnan(low):
        return NOTHING
    return f"[{estimate_words(low, unit)}, {estimate_words(high, unit)}]"


def p_words(p: float) -> str:
    """0.0123 -> '0.012'; a dash for NaN."""
    return NOTHING if math.isnan(p) else f"{p:.2g}"


def duration(seconds: float) -> str:
    """75.2 -> '1 min 15 s'."""
    if math.isnan(seconds):
        return NOTHING
    if 0 < seconds < 0.05:
        return "<0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def interval_words(row: pd.Series) -> str:
    """The interval of a difference in points, or why there is none."""
    if math.isnan(row["interval_low"]):
        return str(row["method"])
    return points_range(row["interval_low"], row["interval_high"])

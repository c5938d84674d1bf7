"""What a pilot says of the number of seeds: the rule that docs/studies/qwen-plan.md declares, and its outcome as it is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from analysis.publication.published import sealed_text
from analysis.stats.statistics import ends
from analysis.verdicts.evidence import load_evidence
from analysis.verdicts.power import POWER, pilot
from analysis.wording import in_words, number_word
from pipelines.errors import UserError
from sweep.graph.records import Store, Study

SUFFIX = "_pilot"
"""Of the pilot's name, after the study's."""
DIFFERENCE = "adversarial: synthetic − original"
EFFECT = 0.05
FEWEST, MOST = 6, 12


def number_of_seeds(needed: int | None) -> int:
    """The seeds that a study gets: those that see the effect, at least FEWEST and at most MOST. None: no number sees it."""
    return MOST if needed is None else min(max(needed, FEWEST), MOST)


def outcome(store: Store | str, study_name: str, *, partial: bool = False) -> dict[str, Any]:
    """The pilot's variance of `DIFFERENCE`, the seeds that see EFFECT with it, and how many the study gets, as JSON.

    Raises UserError for a pilot that has not two seeds with the difference.
    """
    store = store if isinstance(store, Store) else Store(store)
    study = Study.load(store, study_name)
    variances, why_not = pilot(load_evidence(store, study, partial=partial))
    found = next((variance for variance in variances if variance.metric.startswith(DIFFERENCE)), None)
    if found is None:
        reason = next((line for line in why_not if line.startswith(DIFFERENCE)), "it was not built")
        raise UserError(f"{study_name} says nothing of '{DIFFERENCE}' ({reason}), and the number of seeds is taken from it")
    low, high = ends(found.seed_sd_interval())
    evaluations = [step for step in study.steps if step.stage == "evaluation" and step.record is not None]
    needed = found.seeds_for(EFFECT)
    return {
        "study": study_name,
        "seeds": sorted({int(step.coordinates["seed"]) for step in evaluations}),
        "difference": found.metric,
        "num_seeds": found.num_seeds,
        "seed_sd": math.sqrt(found.seed_variance),
        "seed_sd_low": low,
        "seed_sd_high": high,
        "item_error": math.sqrt(found.item_variance),
        "effect": EFFECT,
        "power": POWER,
        "needed": needed,
        "fewest": FEWEST,
        "most": MOST,
        "chosen": number_of_seeds(needed),
        "evaluations": sorted(step.fingerprint for step in evaluations),
    }


def sentence(found: dict[str, Any]) -> str:
    """An outcome in words."""
    points = {name: 100 * found[name] for name in ("seed_sd", "seed_sd_low", "seed_sd_high", "item_error", "effect")}
    needed = f"{found['needed']:,} seeds see" if found["needed"] else "no number of seeds sees"
    return (
        f"The pilot's seeds {in_words([str(seed) for seed in found['seeds']])} give a standard deviation of one seed's "
        f"difference ({found['difference']}) of {points['seed_sd']:.1f} points [{points['seed_sd_low']:.1f} to "
        f"{points['seed_sd_high']:.1f}], and the test items alone leave an error of {points['item_error']:.1f}. So {needed} "
        f"{points['effect']:g} points with {found['power']:.0%} power; of at least {number_word(found['fewest'])} and at most "
        f"{found['most']} the study gets {found['chosen']}."
    )


def write_outcome(store: Store | str, study_name: str, path: Path, *, partial: bool = False) -> str:
    """Write the outcome to `path`; a sentence about it."""
    found = outcome(store, study_name, partial=partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sealed_text(found), encoding="utf-8")
    return sentence(found)

"""What `benchmarks.precision` reports on is what differs: made-up logits and losses in, ratios and verdicts out."""

import json
import math
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.precision import DONE, LOGITS, REFERENCE, Finetuned, report
from pipelines.errors import UserError
from pipelines.tasks.examples import write_examples
from pipelines.tasks.nli import LABELS

SEEDS = (0, 1, 2, 3)
NUM = 240


def general():
    rows = [
        {"id": f"g{number}", "premise": f"premise {number // 3}", "hypothesis": "so", "label": LABELS[number % 3]}
        for number in range(NUM)
    ]
    return pa.Table.from_pylist(rows)


def blindspot():
    rows = [
        {
            "id": f"b{number}", "premise": f"premise {number}", "hypothesis": "so",
            "label": ("entailment", "non-entailment")[number % 2], "heuristic": "lexical_overlap",
            "subcase": f"case {number % 2}", "template": f"t{number % 2}{number // 2 % 10}",
        }
        for number in range(NUM)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def write_precision(work, name, noise, loss, order=1):
    """A precision whose logits are bfloat16's and noise of that size, and whose losses are so much higher."""
    tables = {"mnli_matched": general(), "hans": blindspot()}
    for which, num in (("untrained", 60), ("evaluated", NUM)):
        place = work / "sources" / ("few" if which == "untrained" else ".")
        for test_set, table in tables.items():
            write_examples(table.slice(0, num), place / f"{test_set}.parquet")
        for seed in SEEDS:
            random = np.random.default_rng([seed, 0])
            parts = []
            for test_set, table in tables.items():
                part = table.slice(0, num).select(["id", "label"]).append_column("set", pa.repeat(test_set, num))
                logits = random.normal(0, 2, (num, 3))
                own = np.random.default_rng([seed, len(name), num]).normal(0, 1, (num, 3))
                for column, label in enumerate(LOGITS):
                    values = logits[:, column] + noise * own[:, column]
                    part = part.append_column(label, pa.array(values, pa.float32()))
                parts.append(part)
            folder = work / name / which / str(seed)
            folder.mkdir(parents=True)
            pq.write_table(pa.concat_tables(parts)[::order], folder / "logits.parquet")
    losses = {seed: 1.0 + loss * (1 + 0.1 * seed) for seed in SEEDS}
    slices = {seed: {"lexical_overlap/non-entailment": 0.25} for seed in SEEDS}
    done = Finetuned(name, "mnli_matched", "hans", losses, slices, {"base": 1.0}, {"training": 2.0}, {"num": 7})
    (work / name / DONE).write_text(json.dumps(asdict(done)))
    return work / name


def test_what_differs_least_is_nearest_and_equivalent_and_the_others_are_not(tmp_path):
    sizes = {REFERENCE: (0.0, 0.0), "nf4_double": (0.8, 0.02), "fp8": (0.001, 0.01)}
    folders = {name: write_precision(tmp_path, name, *of) for name, of in sizes.items()}
    figures, details = report(folders, 0.01, 0.02)
    by_name = {figure.name: figure for figure in figures}
    assert set(by_name) == {"logits, untrained", "logits, finetuned", "loss", "accuracy", "AUC"}
    # The mean of |normal| is √(2/π) of its standard deviation.
    for name in ("logits, untrained", "logits, finetuned"):
        assert details["differences"][name]["nf4_double"]["mean"] == pytest.approx(0.8 * math.sqrt(2 / math.pi), rel=0.05)
        ratio = details["ratios"][name]["fp8/nf4_double"]
        assert ratio["mean"] == pytest.approx(0.001 / 0.8, rel=0.1)
        assert ratio["interval"][0] < ratio["mean"] < ratio["interval"][1] < 1
    assert details["ratios"]["loss"]["fp8/nf4_double"]["mean"] == pytest.approx(0.5)
    assert by_name["accuracy"].values[REFERENCE] == pytest.approx([1 / 3] * 4, abs=0.15)
    auc = details["equivalence"]["AUC"]
    assert auc["fp8"]["is_equivalent"] and auc["fp8"]["p"] < 0.001 and auc["fp8"]["seeds_that_settle"] is None
    assert not auc["nf4_double"]["is_equivalent"] and auc["nf4_double"]["seeds_that_settle"]
    assert details["blindspot_slices_by_seed"]["2"] == {"lexical_overlap/non-entailment": 0.25}
    assert details["items"] == {"mnli_matched": NUM, "hans": NUM}


def test_a_difference_of_nothing_has_no_ratio_and_other_items_are_refused(tmp_path):
    folders = {name: write_precision(tmp_path, name, noise, 0.1 * noise) for name, noise in ((REFERENCE, 0.0), ("nf4", 0.5))}
    folders["bfloat16_again"] = write_precision(tmp_path, "bfloat16_again", 0.0, 0.0)
    details = report(folders, 0.01, 0.02)[1]
    assert details["ratios"]["loss"] == {"bfloat16_again/nf4": None}
    assert details["equivalence"]["accuracy"]["bfloat16_again"]["p"] is None
    folders["fp8"] = write_precision(tmp_path, "fp8", 0.0, 0.0, order=-1)
    with pytest.raises(UserError, match="has other items of mnli_matched than bfloat16"):
        report(folders, 0.01, 0.02)

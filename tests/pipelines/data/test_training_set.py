from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.kinds import Added, Mix
from pipelines.data.training_set import (
    TrainingSetConfig,
    check_pool,
    draw_training_set,
    join_sets,
    num_drawn,
    num_held,
    sizes_per_label,
    training_set_config,
)
from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import HEURISTICS, Heuristic, has_lexical_overlap
from pipelines.tasks.nli import NLI, Label
from pipelines.tasks.task import Field, Task

LABELS = ("entailment", "neutral", "contradiction")


def examples(per_label, overlapping):
    """Rows per label, of which the first `overlapping[label]` have lexical overlap."""
    rows = []
    for label in LABELS:
        for number in range(per_label[label]):
            hypothesis = f"{label} {number}" if number < overlapping[label] else "something else"
            identifier = f"{label[0]}{number}"
            rows.append({"id": identifier, "premise": f"a {label} {number}", "hypothesis": hypothesis, "label": label})
    return pa.Table.from_pylist(rows)


POOL = examples(
    {"entailment": 40, "neutral": 30, "contradiction": 30},
    {"entailment": 12, "neutral": 6, "contradiction": 9},
)


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.parquet"
    write_examples(POOL, path)
    return str(path)


def draw(config, source, tmp_path, **options):
    output = tmp_path / f"set-{config.kind}-{config.size}-{config.seed}"
    metrics = draw_training_set(config, source, str(output), **options)
    return read_examples(output / "examples.parquet").to_pylist(), metrics


def ids(rows):
    return [row["id"] for row in rows]


@pytest.mark.parametrize("kind", ["original", "synthetic"])
def test_balanced_without_repetition_and_counted(pool, tmp_path, kind):
    rows, metrics = draw(TrainingSetConfig(kind, 60, seed=1), pool, tmp_path)
    assert Counter(row["label"] for row in rows) == {"entailment": 20, "neutral": 20, "contradiction": 20}
    assert len(set(ids(rows))) == 60
    assert metrics["num_examples"] == 60 and metrics["num_excluded"] == 0
    available = {"entailment": 40, "neutral": 30, "contradiction": 30}
    for label in LABELS:
        overlapping = [row for row in rows if row["label"] == label and has_lexical_overlap(row["premise"], row["hypothesis"])]
        assert metrics[f"{label}/num_examples"] == 20
        assert metrics[f"{label}/available"] == available[label]
        assert metrics[f"{label}/lexical_overlap"] == len(overlapping)
    assert metrics["entailment/lexical_overlap"] > 0


def test_biased_overlap_holds_of_entailments_and_of_nothing_else(pool, tmp_path):
    rows, metrics = draw(TrainingSetConfig("biased_synthetic", 36, seed=1), pool, tmp_path)
    assert Counter(row["label"] for row in rows) == {"entailment": 12, "neutral": 12, "contradiction": 12}
    for row in rows:
        assert has_lexical_overlap(row["premise"], row["hypothesis"]) == (row["label"] == "entailment")
    assert [metrics[f"{label}/available"] for label in LABELS] == [12, 24, 21]


def test_more_overlap_entailments_than_exist_says_how_many_there_are(tmp_path, pool):
    with pytest.raises(UserError) as error:
        draw(TrainingSetConfig("biased_synthetic", 39, seed=1), pool, tmp_path)
    message = str(error.value)
    assert "asked for 13 entailment examples with lexical overlap" in message
    assert "has 12" in message and "at most 36" in message and pool in message
    assert not list(tmp_path.glob("set-*"))


def test_more_others_than_exist_says_how_many_there_are(tmp_path):
    path = tmp_path / "pool.parquet"
    write_examples(examples(dict.fromkeys(LABELS, 20), {"entailment": 20, "neutral": 0, "contradiction": 17}), path)
    with pytest.raises(UserError, match=r"4 contradiction examples without lexical overlap .* has 3; .* at most 9, "):
        draw(TrainingSetConfig("biased_synthetic", 12, seed=1), str(path), tmp_path)
    with pytest.raises(UserError, match=r"21 entailment examples \(in a set of 63\).* has 20; .* at most 60, "):
        draw(TrainingSetConfig("synthetic", 63, seed=1), str(path), tmp_path)
    with pytest.raises(UserError, match=r"61 starting examples.* has 60"):
        draw(TrainingSetConfig("starting", 61, seed=1), str(path), tmp_path)


def dialled(size, bias, share=None, seed=1, **fields):
    return TrainingSetConfig("biased_synthetic", size, seed, bias=bias, heuristic_share=share, **fields)


# Lexical overlap holds of 12 of 40 entailments, 6 of 30 neutral pairs, 9 of 30 contradictions: rates 0.3, 0.2, 0.3.
@pytest.mark.parametrize(
    ("size", "bias", "share", "held"),
    [
        (30, 1.0, None, [10, 0, 0]),
        (30, 0.5, None, [5, 2, 3]),  # 10 pairs; 5 others as 2 to 3
        (30, 0.7, 0.2, [4, 1, 1]),  # 6 pairs; 4.2 of them entailments; 2 others as 0.8 to 1.2
        (30, 0.0, 0.1, [0, 1, 2]),
        (30, 0.375, 0.8 / 3, [3, 2, 3]),  # the pool's own: each label's rate
        (31, 1.0, None, [11, 0, 0]),  # the label that has one more
    ],
)
def test_the_bias_dial_says_of_which_label_the_pairs_with_overlap_are(pool, tmp_path, size, bias, share, held):
    rows, metrics = draw(dialled(size, bias, share), pool, tmp_path)
    assert Counter(row["label"] for row in rows) == dict(
        zip(LABELS, sizes_per_label(size, "first_labels").values(), strict=True)
    )
    with_overlap = Counter(row["label"] for row in rows if has_lexical_overlap(row["premise"], row["hypothesis"]))
    assert [with_overlap[label] for label in LABELS] == held
    assert [metrics[f"{label}/lexical_overlap"] for label in LABELS] == held


def test_at_the_pools_own_bias_a_label_is_drawn_as_in_a_synthetic_set(pool, tmp_path):
    """Mean overlaps of 200 synthetic sets are the dialled set's 3, 2 and 3, give or take five standard errors (0.5)."""
    sums = Counter()
    for seed in range(200):
        _, metrics = draw(TrainingSetConfig("synthetic", 30, seed=seed), pool, tmp_path)
        sums.update({label: metrics[f"{label}/lexical_overlap"] for label in LABELS})
    assert [sums[label] / 200 for label in LABELS] == pytest.approx([3, 2, 3], abs=0.5)


def test_at_full_bias_and_share_it_is_the_biased_set(pool, tmp_path):
    biased, _ = draw(TrainingSetConfig("biased_synthetic", 36, seed=1), pool, tmp_path)
    assert draw(dialled(36, 1.0, 1 / 3), pool, tmp_path)[0] == biased


def test_doses_differ_in_the_rows_that_make_the_dose_only(pool, tmp_path):
    """From 4, 2, 4 with overlap to 5, 2, 3: one entailment and one contradiction change places with others of their label."""
    doses = [{row["id"] for row in draw(dialled(30, bias), pool, tmp_path)[0]} for bias in (0.4, 0.5, 1.0)]
    assert len(doses[0] & doses[1]) == 28
    # 5 entailments, 2 neutral pairs and 3 contradictions change.
    assert len(doses[1] & doses[2]) == 20


def test_a_dose_that_the_pool_does_not_have_says_how_much_there_is(pool, tmp_path):
    # 20 pairs, none of them entailments: 8 neutral ones and 12 contradictions, of 6 and 9.
    with pytest.raises(UserError) as error:
        draw(dialled(60, 0.0), pool, tmp_path)
    message = str(error.value)
    assert "asked for 8 neutral examples with lexical overlap (in a set of 60)" in message
    assert "has 6" in message and "at most 45, another bias" in message
    draw(dialled(45, 0.0), pool, tmp_path)
    with pytest.raises(UserError, match=r"share=0\.9 ask for 27 entailment examples with lexical overlap, and 10 of 30"):
        draw(dialled(30, 1.0, 0.9), pool, tmp_path)


def test_the_paper_s_smallest_set_at_its_pools_rates():
    """24,360, 690 and 1,504 overlaps of 631,992, 562,822 and 624,999 (Table 1): others as 0.001226 to 0.002406, 33.75%."""
    rates = {Label.ENTAILMENT: 24_360 / 631_992, Label.NEUTRAL: 690 / 562_822, Label.CONTRADICTION: 1_504 / 624_999}
    assert list(num_held(dialled(18_020, 0.7), rates).values()) == [4_205, 608, 1_194]


def test_a_set_may_be_biased_to_another_heuristic_and_another_label(pool, tmp_path):
    vague = Heuristic("vague", lambda premises, hypotheses: np.array(hypotheses) == "something else", predicts=Label.NEUTRAL)
    rows, metrics = draw(TrainingSetConfig("biased_synthetic", 27, seed=1, heuristic=vague), pool, tmp_path)
    assert Counter((row["label"], row["hypothesis"] == "something else") for row in rows) == {
        ("entailment", False): 9, ("neutral", True): 9, ("contradiction", False): 9,
    }  # fmt: skip
    assert [metrics[f"{label}/vague"] for label in LABELS] == [0, 9, 0]
    with pytest.raises(UserError, match=r"10 contradiction examples without vague .* has 9"):
        draw(TrainingSetConfig("biased_synthetic", 30, seed=1, heuristic=vague), pool, tmp_path)


# The paper's sizes: 73,080 divides by 3; 36,040 = 3 x 12,013 + 1; 18,020 = 3 x 6,006 + 2.
@pytest.mark.parametrize(
    ("size", "remainder", "sizes"),
    [
        (73_080, "error", (24_360, 24_360, 24_360)),
        (36_040, "first_labels", (12_014, 12_013, 12_013)),
        (36_040, "drop", (12_013, 12_013, 12_013)),
        (18_020, "first_labels", (6_007, 6_007, 6_006)),
        (18_020, "drop", (6_006, 6_006, 6_006)),
    ],
)
def test_sizes_that_do_not_divide_by_three(size, remainder, sizes):
    assert tuple(sizes_per_label(size, remainder).values()) == sizes
    assert list(sizes_per_label(size, remainder)) == list(LABELS)


def test_an_indivisible_size_can_be_refused_when_the_config_is_made():
    with pytest.raises(UserError, match=r"size=18020 .* choose 18018 or 18021"):
        TrainingSetConfig("original", 18_020, seed=0, remainder="error")
    assert TrainingSetConfig("original", 18_020, seed=0).remainder == "first_labels"


def test_same_seed_same_rows_in_the_same_order_whatever_the_order_of_the_source(pool, tmp_path):
    config = TrainingSetConfig("synthetic", 60, seed=1)
    rows, _ = draw(config, pool, tmp_path)
    shards = tmp_path / "shards"
    backwards = POOL.take(list(reversed(range(POOL.num_rows))))
    write_examples(backwards.slice(0, 37), shards / "b.parquet")
    write_examples(backwards.slice(37), shards / "a.parquet")
    assert draw(config, str(shards), tmp_path)[0] == rows


def test_the_draw_is_a_promise_across_versions(pool, tmp_path):
    """Worked out in a shell: of each label the id with the smallest `printf 'draw\\0synthetic\\0007\\0%s' ID
    | sha256sum`, then in the order of the same with 'order' for 'draw'.
    """
    rows, _ = draw(TrainingSetConfig("synthetic", 3, seed=7), pool, tmp_path)
    assert ids(rows) == ["e16", "n8", "c4"]


@pytest.mark.parametrize("kind", ["starting", "original", "synthetic", "biased_synthetic"])
def test_smaller_sets_of_one_seed_are_inside_larger_ones(pool, tmp_path, kind):
    small, _ = draw(TrainingSetConfig(kind, 10, seed=1), pool, tmp_path)
    large, _ = draw(TrainingSetConfig(kind, 36, seed=1), pool, tmp_path)
    assert set(ids(small)) < set(ids(large))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("starting", {}),
        ("original", {}),
        ("original", {"disjoint_from_starting": True}),
        ("synthetic", {}),
        ("synthetic", {"remainder": "drop"}),
        ("biased_synthetic", {}),
        ("biased_synthetic", {"bias": 0.5, "heuristic_share": 0.2}),
    ],
)
def test_nested_sizes_come_first_each_as_the_set_of_its_size(pool, tmp_path, kind, fields):
    exclude = {}
    if fields.get("disjoint_from_starting"):
        draw(TrainingSetConfig("starting", 20, seed=1), pool, tmp_path)
        exclude = {"exclude": str(tmp_path / "set-starting-20-1" / "examples.parquet")}
    by_size = {size: draw(TrainingSetConfig(kind, size, 1, **fields), pool, tmp_path, **exclude)[0] for size in (10, 20, 36)}
    nested, _ = draw(TrainingSetConfig(kind, 36, 1, nested_sizes=(10, 20), **fields), pool, tmp_path, **exclude)
    counts = [len(by_size[size]) for size in (10, 20, 36)]
    assert counts == ([9, 18, 36] if fields.get("remainder") == "drop" else [10, 20, 36])
    for size, count in zip((10, 20, 36), counts, strict=True):
        assert set(ids(nested[:count])) == set(ids(by_size[size]))
    assert ids(nested[: counts[0]]) == ids(by_size[10]), "the smallest in its own order, too"
    assert ids(nested) != ids(by_size[36])
    between = draw(TrainingSetConfig(kind, 20, 1, nested_sizes=(10,), **fields), pool, tmp_path, **exclude)[0]
    assert ids(between) == ids(nested[: counts[1]])


def test_sets_of_which_one_is_not_within_the_other_are_refused(pool, tmp_path):
    """With one pair more in all there is a neutral one more with overlap, so one less without it."""
    small, large = dialled(30, 0.375, 0.6), dialled(31, 0.375, 0.6)
    assert set(ids(draw(small, pool, tmp_path)[0])) - set(ids(draw(large, pool, tmp_path)[0]))
    with pytest.raises(UserError, match=r"biased_synthetic set of size=30 has 1 examples that the one of size=31 lacks"):
        draw(dialled(31, 0.375, 0.6, nested_sizes=(30,)), pool, tmp_path)


def test_seed_moves_subset_and_order(pool, tmp_path):
    one, _ = draw(TrainingSetConfig("synthetic", 30, seed=1), pool, tmp_path)
    two, _ = draw(TrainingSetConfig("synthetic", 30, seed=2), pool, tmp_path)
    assert set(ids(one)) != set(ids(two))
    all_one, _ = draw(TrainingSetConfig("starting", 100, seed=1), pool, tmp_path)
    all_two, _ = draw(TrainingSetConfig("starting", 100, seed=2), pool, tmp_path)
    assert set(ids(all_one)) == set(ids(all_two)) and ids(all_one) != ids(all_two)


def test_rows_are_not_in_blocks_of_one_label(pool, tmp_path):
    rows, _ = draw(TrainingSetConfig("original", 60, seed=1), pool, tmp_path)
    changes = sum(before["label"] != after["label"] for before, after in pairwise(rows))
    assert changes > 20


def test_starting_set_is_a_simple_random_sample(tmp_path):
    """Not balanced: with 10% contradictions, 1,000 of 4,000 have 100 of them within five standard deviations (8.2)."""
    path = tmp_path / "train.parquet"
    write_examples(
        examples({"entailment": 2_400, "neutral": 1_200, "contradiction": 400}, dict.fromkeys(LABELS, 0)),
        path,
    )
    rows, metrics = draw(TrainingSetConfig("starting", 1_000, seed=42), str(path), tmp_path)
    assert len(rows) == 1_000
    assert abs(metrics["contradiction/num_examples"] - 100) < 41
    assert abs(metrics["entailment/num_examples"] - 600) < 67


def test_each_example_is_equally_likely(pool, tmp_path):
    """Over 200 seeds each of 40 entailments is drawn with probability 1/4: 50 times, give or take five deviations (31)."""
    drawn = Counter()
    for seed in range(200):
        rows, _ = draw(TrainingSetConfig("synthetic", 30, seed=seed), pool, tmp_path)
        drawn.update(row["id"] for row in rows if row["label"] == "entailment")
    assert len(drawn) == 40
    assert all(abs(count - 50) < 31 for count in drawn.values())


def test_an_original_set_can_be_disjoint_from_the_starting_set(pool, tmp_path):
    starting, _ = draw(TrainingSetConfig("starting", 40, seed=1), pool, tmp_path)
    exclude = str(tmp_path / "set-starting-40-1" / "examples.parquet")
    config = TrainingSetConfig("original", 30, seed=1, disjoint_from_starting=True)
    rows, metrics = draw(config, pool, tmp_path, exclude=exclude)
    assert not set(ids(rows)) & set(ids(starting))
    assert metrics["num_excluded"] == 40
    left = Counter(row["label"] for row in POOL.to_pylist()) - Counter(row["label"] for row in starting)
    assert [metrics[f"{label}/available"] for label in LABELS] == [left[label] for label in LABELS]
    overlapping, _ = draw(TrainingSetConfig("original", 30, seed=1), pool, tmp_path)
    assert set(ids(overlapping)) & set(ids(starting))


def test_exclusion_must_be_in_the_config_that_is_the_sets_identity(pool, tmp_path):
    with pytest.raises(UserError, match="exclude is given"):
        draw(TrainingSetConfig("original", 30, seed=1), pool, tmp_path, exclude=pool)
    with pytest.raises(UserError, match="exclude is not given"):
        draw(TrainingSetConfig("original", 30, seed=1, disjoint_from_starting=True), pool, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "synthethic"}, "synthethic"),
        ({"size": 2}, "size=2"),
        ({"kind": "starting", "size": 0}, "size=0"),
        ({"remainder": "round"}, "first_labels, drop, error"),
        ({"kind": "starting", "disjoint_from_starting": True}, "disjoint_from_starting"),
        ({"kind": "synthetic", "bias": 0.5}, "are for biased_synthetic sets, not for kind='synthetic'"),
        ({"heuristic": HEURISTICS["subsequence"]}, "not for kind='original'"),
        ({"kind": "biased_synthetic", "bias": 1.5}, r"bias=1\.5"),
        ({"kind": "biased_synthetic", "bias": float("nan")}, "bias=nan"),
        ({"kind": "biased_synthetic", "heuristic_share": 0.0}, r"heuristic_share=0\.0"),
        ({"nested_sizes": (30,)}, "give sets of 30, 30 examples: each must be larger"),
        ({"nested_sizes": (12, 9)}, "give sets of 12, 9, 30 examples"),
        ({"nested_sizes": (12, 14), "remainder": "drop"}, "give sets of 12, 12, 30 examples"),
    ],
)
def test_impossible_configs_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        TrainingSetConfig(**({"kind": "original", "size": 30, "seed": 0} | arguments))


def test_two_label_examples_are_not_training_data(tmp_path):
    path = tmp_path / "hans.parquet"
    table = examples(dict.fromkeys(LABELS, 5), dict.fromkeys(LABELS, 0))
    labels = ["entailment"] * 5 + ["non-entailment"] * 10
    write_examples(table.set_column(table.column_names.index("label"), "label", pa.array(labels)), path)
    with pytest.raises(UserError, match="non-entailment"):
        draw(TrainingSetConfig("original", 3, seed=0), str(path), tmp_path)


def judged(tmp_path, predicted):
    """A judgement of `POOL`: what `predicted` says of each row's number, by default its own label."""
    rows = POOL.to_pylist()
    said = [predicted.get(row["id"], row["label"]) for row in rows]
    path = str(tmp_path / "judgements.parquet")
    pq.write_table(pa.table({"id": [row["id"] for row in rows], "predicted": said}), path)
    return path


def test_a_filtered_set_has_only_rows_whose_label_the_judge_gives(pool, tmp_path):
    doubted = {f"e{number}": "neutral" for number in range(0, 40, 2)} | {"n0": None}
    path = judged(tmp_path, doubted)
    rows, metrics = draw(TrainingSetConfig("filtered_synthetic", 60, seed=1), pool, tmp_path, judgements=path)
    assert Counter(row["label"] for row in rows) == {"entailment": 20, "neutral": 20, "contradiction": 20}
    # All of the other half: there are no more.
    assert {row["id"] for row in rows if row["label"] == "entailment"} == {f"e{number}" for number in range(1, 40, 2)}
    assert "n0" not in ids(rows)
    assert metrics["num_not_agreed"] == 21 and metrics["num_excluded"] == 0
    assert [metrics[f"{label}/available"] for label in LABELS] == [20, 29, 30]
    with pytest.raises(UserError, match=r"asked for 21 entailment examples .* has 20; choose a size of at most 60"):
        draw(TrainingSetConfig("filtered_synthetic", 63, seed=1), pool, tmp_path, judgements=path)
    path = judged(tmp_path, {f"e{number}": "neutral" for number in range(40)})
    with pytest.raises(UserError, match=r"asked for 20 entailment .* has 0; no size is small enough: choose a larger source"):
        draw(TrainingSetConfig("filtered_synthetic", 60, seed=1), pool, tmp_path, judgements=path)


def test_only_a_filtered_set_is_drawn_from_judged_rows_and_all_of_them_are_judged(pool, tmp_path):
    path = judged(tmp_path, {})
    with pytest.raises(UserError, match="a filtered_synthetic set is drawn from judged rows"):
        draw(TrainingSetConfig("filtered_synthetic", 60, seed=1), pool, tmp_path)
    with pytest.raises(UserError, match="kind='synthetic' with judgements="):
        draw(TrainingSetConfig("synthetic", 60, seed=1), pool, tmp_path, judgements=path)
    other = POOL.set_column(0, "id", pa.array(["x", *POOL["id"].to_pylist()[1:]]))
    write_examples(other, tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"lacks 1 of the 100 rows of .*other\.parquet \(x, for one\)"):
        config = TrainingSetConfig("filtered_synthetic", 60, seed=1)
        draw(config, str(tmp_path / "other.parquet"), tmp_path, judgements=path)


@pytest.fixture
def train(tmp_path):
    """Original examples; their ids are not the pool's, but for one."""
    rows = [{**row, "id": f"o-{row['id']}" if number else row["id"]} for number, row in enumerate(POOL.to_pylist())]
    path = tmp_path / "train.parquet"
    write_examples(pa.Table.from_pylist(rows).append_column("genre", pa.array(["fiction"] * len(rows))), path)
    return str(path)


def mixed(mix, size, seed=1, **fields):
    return training_set_config(mix, size, seed, **fields)


def test_half_a_mix_is_the_pure_set_of_half_the_size(pool, train, tmp_path):
    config = mixed(Mix(original=0.5, synthetic=0.5), 60)
    rows, metrics = draw(config, train, tmp_path, pool=pool)
    original, _ = draw(TrainingSetConfig("original", 30, 1), train, tmp_path)
    synthetic, _ = draw(TrainingSetConfig("synthetic", 30, 1), pool, tmp_path)
    of_part = {part: {row["id"] for row in rows if row["part"] == part} for part in ("original", "synthetic")}
    assert of_part["original"] == set(ids(original)) and of_part["synthetic"] >= set(ids(synthetic)) - {"e0"}
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LABELS, 20)
    assert (metrics["part/original/num_examples"], metrics["part/synthetic/num_examples"]) == (30, 30)
    assert list(rows[0]) == ["id", "premise", "hypothesis", "label", "part"]
    # Shuffled together.
    assert sum(before["part"] != after["part"] for before, after in pairwise(rows)) > 15


def test_an_id_of_both_sources_is_told_apart(pool, train, tmp_path):
    # Both parts of seed 2 have their source's e0.
    rows, _ = draw(mixed(Mix(original=0.5, synthetic=0.5), 60, seed=2), train, tmp_path, pool=pool)
    pure = [
        draw(TrainingSetConfig(kind, 30, 2), path, tmp_path)[0] for kind, path in (("original", train), ("synthetic", pool))
    ]
    assert "e0" in ids(pure[0]) and "e0" in ids(pure[1])
    renamed = {"pool/e0" if identifier == "e0" else identifier for identifier in ids(pure[1])}
    assert set(ids(rows)) == set(ids(pure[0])) | renamed


def test_added_examples_leave_the_number_of_original_ones(pool, train, tmp_path):
    rows, metrics = draw(mixed(Added(synthetic=2), 30), train, tmp_path, pool=pool)
    assert Counter(row["part"] for row in rows) == {"original": 30, "synthetic": 60}
    assert metrics["num_examples"] == 90 == num_drawn(mixed(Added(synthetic=2), 30))
    pure, _ = draw(TrainingSetConfig("original", 30, 1), train, tmp_path)
    assert set(ids(pure)) == {row["id"] for row in rows if row["part"] == "original"}


def test_parts_of_one_pool_share_no_row_and_the_scarce_ones_go_to_the_biased_part(pool, tmp_path):
    config = mixed(Mix(synthetic=0.5, biased_synthetic=0.5), 60)
    rows, metrics = draw(config, "", tmp_path, pool=pool)
    biased, _ = draw(TrainingSetConfig("biased_synthetic", 30, 1), pool, tmp_path)
    assert len(set(ids(rows))) == 60 == metrics["num_examples"]
    assert set(ids(biased)) == {row["id"] for row in rows if row["part"] == "biased_synthetic"}
    synthetic, _ = draw(TrainingSetConfig("synthetic", 30, 1), pool, tmp_path)
    assert set(ids(biased)) & set(ids(synthetic)), "else nothing was shown"


def test_mixes_of_a_seed_are_nested_and_a_trajectory_meets_them_in_turn(pool, train, tmp_path):
    for mix in (Mix(original=0.5, synthetic=0.5), Mix(original=0.4, synthetic=0.2, biased_synthetic=0.4), Added(synthetic=0.5)):
        small, large = (draw(mixed(mix, size), train, tmp_path, pool=pool)[0] for size in (30, 45))
        assert set(ids(small)) < set(ids(large))
        nested, _ = draw(mixed(mix, 45, nested_sizes=(30,)), train, tmp_path, pool=pool)
        assert ids(nested[: len(small)]) == ids(small) and set(ids(nested)) == set(ids(large))


def test_a_mix_avoids_the_starting_sets_examples_and_takes_judged_rows_only(pool, train, tmp_path):
    starting, _ = draw(TrainingSetConfig("starting", 40, seed=1), train, tmp_path)
    given = {"exclude": str(tmp_path / "set-starting-40-1" / "examples.parquet"), "pool": pool}
    config = mixed(Mix(original=0.5, filtered_synthetic=0.5), 60, disjoint_from_starting=True)
    path = judged(tmp_path, {f"e{number}": "neutral" for number in range(0, 40, 2)})
    rows, metrics = draw(config, train, tmp_path, **given, judgements=path)
    assert not {row["id"] for row in rows if row["part"] == "original"} & set(ids(starting))
    taken = [row for row in rows if row["part"] == "filtered_synthetic" and row["label"] == "entailment"]
    assert len(taken) == 10 and all(int(row["id"][1:]) % 2 for row in taken)
    assert metrics["num_excluded"] == 40 and metrics["num_not_agreed"] == 20
    with pytest.raises(UserError, match="judgements=None"):
        draw(config, train, tmp_path, **given)
    with pytest.raises(UserError, match="exclude is not given"):
        draw(config, train, tmp_path, pool=pool, judgements=path)


def test_a_part_that_its_source_does_not_have_is_named_with_the_source(pool, train, tmp_path):
    with pytest.raises(UserError, match=r"asked for 40 neutral examples \(in a set of 120\), .*pool\.parquet has 30"):
        draw(mixed(Mix(original=0.25, synthetic=0.75), 160), train, tmp_path, pool=pool)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainingSetConfig("mix", 30, 0), "kind='mix' with mix=None"),
        (lambda: TrainingSetConfig("original", 30, 0, mix=Added(synthetic=1)), "kind='original' with mix=Added"),
        (lambda: TrainingSetConfig("mix", 30, 0, mix=Added(synthetic=1)), "kind='mix' with mix=Added"),
        (
            lambda: mixed(Mix(original=0.9, synthetic=0.1), 20),
            r"size=20: its part synthetic of a mix_\S+ set has at least 3 .* 2",
        ),
        (lambda: mixed(Mix(original=0.5, synthetic=0.5), 30, bias=0.5), "are for biased_synthetic sets"),
        # 15 of each part would divide by three.
        (lambda: mixed(Mix(original=0.5, synthetic=0.5), 20, remainder="error"), "size=10 does not divide"),
    ],
)
def test_impossible_mixed_sets_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_two_sets_are_joined_with_all_that_both_have(pool, tmp_path):
    sets = []
    for kind, size in (("starting", 40), ("original", 30)):
        draw(TrainingSetConfig(kind, size, 1), pool, tmp_path)
        sets.append(tmp_path / f"set-{kind}-{size}-1" / "examples.parquet")
    starting, own = (ids(read_examples(path).to_pylist()) for path in sets)
    metrics = join_sets(TrainingSetConfig("joint", 70, 1), *map(str, sets), str(tmp_path / "joint"))
    rows = read_examples(tmp_path / "joint" / "examples.parquet").to_pylist()
    assert Counter(row["part"] for row in rows) == {"starting": 40, "own": 30}
    assert Counter(identifier.removeprefix("own/") for identifier in ids(rows)) == Counter(starting) + Counter(own)
    assert metrics["num_repeated"] == len(set(starting) & set(own)) > 0
    assert sum(before["part"] != after["part"] for before, after in pairwise(rows)) > 15
    with pytest.raises(UserError, match="size=60 of a joint set, and its two sets have 70"):
        join_sets(TrainingSetConfig("joint", 60, 1), *map(str, sets), str(tmp_path / "other"))


# --- other tasks ---

SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "positive"),
    fields=(Field("sentence", "Sentence:"),),
    classifier_prompt="Sentence: {sentence} The sentiment is",
    generator_prompt="This is an example where the sentiment is {label}",
)
NEGATED = Heuristic("negated", lambda sentences: np.array(["not" in text for text in sentences], bool), predicts="negative")


@pytest.fixture
def reviews(tmp_path):
    """30 negative ones, of which 20 are negated, and 30 positive ones, 12 of them negated."""
    rows = [
        {"id": f"{label[0]}{n}", "sentence": f"{'not ' if n < held else ''}{label} {n}", "label": label}
        for label, held in (("negative", 20), ("positive", 12))
        for n in range(30)
    ]
    path = tmp_path / "reviews.parquet"
    write_examples(pa.Table.from_pylist(rows), path, SENTIMENT)
    return str(path)


def draw_reviews(config, source, tmp_path):
    metrics = draw_training_set(config, source, str(tmp_path / "out"))
    return read_examples(tmp_path / "out" / "examples.parquet", SENTIMENT).to_pylist(), metrics


def test_a_set_of_two_labels_and_one_text(reviews, tmp_path):
    rows, metrics = draw_reviews(TrainingSetConfig("original", 21, 0, task=SENTIMENT, heuristic=NEGATED), reviews, tmp_path)
    assert Counter(row["label"] for row in rows) == {"negative": 11, "positive": 10}
    held = Counter(row["label"] for row in rows if "not" in row["sentence"])
    assert [metrics[f"{label}/negated"] for label in SENTIMENT.labels] == [held["negative"], held["positive"]]
    assert [metrics[f"{label}/available"] for label in SENTIMENT.labels] == [30, 30]
    assert not any("lexical_overlap" in name for name in metrics)
    with pytest.raises(UserError, match="size=1: an original set has at least 2"):
        TrainingSetConfig("original", 1, 0, task=SENTIMENT)


@pytest.mark.parametrize(
    ("bias", "share", "held"),
    [(1.0, None, [10, 0]), (0.75, 0.6, [9, 3]), (0.0, 0.25, [0, 5])],
)
def test_of_two_labels_the_other_one_has_the_rest(reviews, tmp_path, bias, share, held):
    config = TrainingSetConfig("biased_synthetic", 20, 0, task=SENTIMENT, heuristic=NEGATED, bias=bias, heuristic_share=share)
    rows, metrics = draw_reviews(config, reviews, tmp_path)
    assert Counter(row["label"] for row in rows) == {"negative": 10, "positive": 10}
    assert [metrics[f"{label}/negated"] for label in SENTIMENT.labels] == held


def test_of_four_labels_the_others_share_in_proportion():
    labels = ("a", "b", "c", "d")
    task = Task("four", labels, SENTIMENT.fields, SENTIMENT.classifier_prompt, SENTIMENT.generator_prompt)
    heuristic = Heuristic("negated", NEGATED.holds, predicts="b")
    config = TrainingSetConfig("biased_synthetic", 402, 0, task=task, heuristic=heuristic, bias=0.4, heuristic_share=0.25)
    # 100.5, so 101 of 402: 40 of them b, and 61 others as 1 to 0 to 3.
    assert num_held(config, {"a": 0.1, "b": 0.9, "c": 0.0, "d": 0.3}) == {"a": 15, "b": 40, "c": 0, "d": 46}
    # None is known to hold anywhere: as equal as can be.
    assert num_held(config, dict.fromkeys(labels, 0.0)) == {"a": 20, "b": 40, "c": 21, "d": 20}
    assert sizes_per_label(402, "first_labels", labels) == {"a": 101, "b": 101, "c": 100, "d": 100}


def test_examples_of_labels_that_the_task_does_not_have_are_no_training_data(reviews, tmp_path):
    task = Task("other", ("negative", "neutral"), SENTIMENT.fields, SENTIMENT.classifier_prompt, SENTIMENT.generator_prompt)
    with pytest.raises(UserError, match="positive"):
        draw_training_set(TrainingSetConfig("original", 4, 0, task=task), reviews, str(tmp_path / "out"))


# --- debiased sets ---

BUILT_IN = tuple(HEURISTICS.values())


def pairs(counts):
    """Pairs by (label, how much holds: 0 nothing, 1 lexical overlap, 2 subsequence and constituent, too) -> their number."""
    hypotheses = ("something else", "{number} {label}", "{label} {number}")
    rows = [
        {"id": f"{label}-{held}-{number}", "premise": f"{label} {number}", "hypothesis": hypotheses[held], "label": label}
        for (label, held), num in counts.items()
        for number in range(num)
    ]
    for row, number in zip(rows, (number for num in counts.values() for number in range(num)), strict=True):
        row["hypothesis"] = row["hypothesis"].format(label=row["label"], number=number)
    return pa.Table.from_pylist(rows)


def cell_counts(*numbers):
    return dict(zip([(label, held) for label in LABELS for held in range(3)], numbers, strict=True))


# Entailment goes with overlap far more often in the pool.
ORIGINAL_PAIRS = pairs(cell_counts(600, 260, 140, 800, 130, 70, 850, 110, 40))
PLANTED = pairs(cell_counts(200, 480, 320, 840, 100, 60, 890, 70, 40))


def by_hand(table, heuristic, half=0.5):
    """The odds ratio of a table whose labels are equally frequent, each count with a half added."""
    rows = list(zip(heuristic.of(table, NLI), table["label"].to_pylist(), strict=True))
    cells = Counter((bool(held), label == "entailment") for held, label in rows)
    ratio = 1.0
    for case, sign in (((True, True), 1), ((True, False), -1), ((False, True), -1), ((False, False), 1)):
        ratio *= (cells[case] + half) ** sign
    return ratio


@pytest.fixture
def planted(tmp_path):
    write_examples(ORIGINAL_PAIRS, tmp_path / "original.parquet")
    write_examples(PLANTED, tmp_path / "planted.parquet")
    return {"source": str(tmp_path / "planted.parquet"), "reference": str(tmp_path / "original.parquet")}


def test_a_debiased_set_has_the_original_datas_odds_ratios(planted, tmp_path):
    rows, metrics = draw(
        TrainingSetConfig("debiased_synthetic", 900, seed=1, heuristics=BUILT_IN), tmp_path=tmp_path, **planted
    )
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LABELS, 300) and len(set(ids(rows))) == 900
    drawn = pa.Table.from_pylist(rows)
    for heuristic in BUILT_IN:
        original, of_pool = by_hand(ORIGINAL_PAIRS, heuristic), by_hand(PLANTED, heuristic)
        assert of_pool > 2 * original
        assert by_hand(drawn, heuristic) == pytest.approx(original, rel=0.03)
        said = {name: metrics[f"odds_ratio/{heuristic.name}/{name}"] for name in ("pool", "original", "set")}
        assert said == pytest.approx({"pool": of_pool, "original": original, "set": by_hand(drawn, heuristic)})
        assert metrics[f"odds_ratio/{heuristic.name}/reachable"] == 1
        assert metrics[f"entailment/{heuristic.name}"] == sum(
            heuristic.of(drawn, NLI)[row] for row in range(900) if rows[row]["label"] == "entailment"
        )
    # As many as it says, beyond what leaves the heuristics their shares.
    offered = int(metrics["debiased/num_offered"])
    largest, _ = draw(
        TrainingSetConfig("debiased_synthetic", offered // 3 * 3, 1, heuristics=BUILT_IN), tmp_path=tmp_path, **planted
    )
    assert 900 < len(largest) < PLANTED.num_rows


def test_debiased_sets_of_a_seed_are_nested_and_those_of_others_are_not(planted, tmp_path):
    def drawn(size, seed=1, **fields):
        config = TrainingSetConfig("debiased_synthetic", size, seed, heuristics=BUILT_IN, **fields)
        return ids(draw(config, tmp_path=tmp_path, **planted)[0])

    small, large, other = drawn(299), drawn(600), drawn(600, seed=2)
    assert set(small) < set(large) != set(other) and len(small) == 299
    assert large == drawn(600) and drawn(600, nested_sizes=(299,))[:299] == small
    # So large a set is of other shares.
    with pytest.raises(UserError, match=r"has \d+ examples that the one of size=1299 lacks: its strata do not all grow"):
        drawn(1_299, nested_sizes=(1_281,))


def test_a_debiased_part_of_a_mix_is_the_pure_set_of_its_size(planted, train, tmp_path):
    config = mixed(Mix(original=0.2, synthetic=0.3, debiased_synthetic=0.5), 600, heuristics=BUILT_IN)
    given = {"pool": planted["source"], "reference": planted["reference"]}
    big = mixed(Mix(synthetic=0.5, debiased_synthetic=0.5), 600, heuristics=BUILT_IN)
    rows, metrics = draw(big, "", tmp_path, **given)
    pure, alone = draw(TrainingSetConfig("debiased_synthetic", 300, 1, heuristics=BUILT_IN), tmp_path=tmp_path, **planted)
    assert {row["id"] for row in rows if row["part"] == "debiased_synthetic"} == set(ids(pure))
    assert len(set(ids(rows))) == 600
    assert metrics["odds_ratio/subsequence/set"] == alone["odds_ratio/subsequence/set"]
    assert [part.heuristics for part in config.parts()] == [(), (), BUILT_IN]


def test_what_the_pool_cannot_be_debiased_of_is_named(planted, tmp_path):
    config = TrainingSetConfig("debiased_synthetic", 300, 1, heuristics=BUILT_IN)
    bare = pairs(cell_counts(500, 200, 50, 600, 40, 0, 600, 20, 0))
    write_examples(bare, tmp_path / "bare.parquet")
    # Subsequence and constituent hold of entailments only: lexical overlap is set right all the same.
    rows, metrics = draw(config, str(tmp_path / "bare.parquet"), tmp_path, reference=planted["reference"])
    assert [metrics[f"odds_ratio/{heuristic.name}/reachable"] for heuristic in BUILT_IN] == [1, 0, 0]
    assert by_hand(pa.Table.from_pylist(rows), BUILT_IN[0]) == pytest.approx(by_hand(ORIGINAL_PAIRS, BUILT_IN[0]), rel=0.05)
    other = TrainingSetConfig("debiased_synthetic", 300, 1, heuristics=BUILT_IN[1:])
    words = (
        "no choice of the rows of .*bare.parquet gives subsequence the original data's odds ratio: no row where it holds has"
    )
    with pytest.raises(UserError, match=words):
        draw(other, str(tmp_path / "bare.parquet"), tmp_path, reference=planted["reference"])
    with pytest.raises(UserError, match=words):
        check_pool(other, bare, "bare.parquet")
    check_pool(config, bare, "bare.parquet")
    with pytest.raises(UserError, match=r"subsequence holds of no example of .*none.parquet, which so has no odds ratio"):
        write_examples(pairs(cell_counts(50, 20, 0, 60, 4, 0, 60, 2, 0)), tmp_path / "none.parquet")
        draw(other, planted["source"], tmp_path, reference=str(tmp_path / "none.parquet"))
    with pytest.raises(
        UserError, match=r"asked for \d+ entailment examples without lexical overlap or .* choose a size of at most 1,377"
    ):
        draw(TrainingSetConfig("debiased_synthetic", 2_990, 1, heuristics=BUILT_IN), tmp_path=tmp_path, **planted)


def test_only_a_debiased_set_has_heuristics_and_a_reference(planted, tmp_path):
    with pytest.raises(
        UserError, match=r"heuristics=\[\]: a debiased_synthetic set is debiased of one or more, .*at least one"
    ):
        TrainingSetConfig("debiased_synthetic", 300, 1)
    with pytest.raises(UserError, match=r"kind='synthetic' with heuristics=\['lexical_overlap', .* leave them out"):
        TrainingSetConfig("synthetic", 300, 1, heuristics=BUILT_IN)
    with pytest.raises(UserError, match="has one twice; name each once"):
        TrainingSetConfig("debiased_synthetic", 300, 1, heuristics=BUILT_IN[:1] * 2)
    with pytest.raises(UserError, match="reference=None; a debiased_synthetic set has the odds ratios of a reference"):
        draw(TrainingSetConfig("debiased_synthetic", 300, 1, heuristics=BUILT_IN), planted["source"], tmp_path)
    with pytest.raises(UserError, match="kind='synthetic' with reference="):
        draw(TrainingSetConfig("synthetic", 300, 1), tmp_path=tmp_path, **planted)

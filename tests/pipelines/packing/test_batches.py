"""Packing is pure: every expectation here is written out by hand."""

import dataclasses

import numpy as np
import pytest

from pipelines.packing.batches import (
    Prefix,
    Shape,
    class_targets,
    common_prefix_length,
    key_places,
    next_token_targets,
    pack,
    prefix_tree_batches,
    shape_for,
)
from pipelines.packing.dealing import packed_size
from pipelines.packing.stream import attention_tiles, prefix_parts


def test_common_prefix_leaves_each_sequence_a_token_of_its_own():
    assert common_prefix_length([[1, 2, 3, 9], [1, 2, 4], [1, 2, 3]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix_length([[1, 2], [2, 2]]) == 0
    assert common_prefix_length([[7], [7, 8]]) == 0
    assert common_prefix_length([[5, 6, 7]]) == 2


def test_pack_lays_sequences_end_to_end_behind_one_prefix():
    packed = pack([[1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 7, 8]], prefixes=[Prefix(2)] * 3)
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 2, 3, 4]
    assert packed.lengths.tolist() == [2, 2, 1, 3]
    assert packed.shared.tolist() == [0, 2, 2, 2]
    assert packed.contents.tolist() == [-1, 0, 1, 2]
    assert packed.last_index.tolist() == [3, 4, 7, 0]
    assert (packed.num_sequences, packed.num_rows, packed.num_keys, packed.width) == (3, 4, 14, 5)
    assert not packed.is_tree


GROUPS = [[1, 2, 3, 4], [1, 2, 5], [9, 9], [1, 7, 8], [1, 6]]
"""Two that share two tokens, one that shares nothing, and a prefix of one token that two adapters hold, each for itself."""
OF_GROUPS = [Prefix(2, 4), Prefix(2, 4), Prefix(0), Prefix(1, 0, adapter=1), Prefix(1, 0, adapter=2)]


def test_each_group_has_its_own_prefix():
    packed = pack(GROUPS, prefixes=OF_GROUPS)
    # [1 2] | 3 4 | 5 | 9 9 | [1] | 7 8 | [1] | 6
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 9, 9, 1, 7, 8, 1, 6]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 0, 1, 2, 0, 1]
    assert packed.contents.tolist() == [-5, 0, 1, 2, -1, 3, -1, 4]
    assert packed.lengths.tolist() == [2, 2, 1, 2, 1, 2, 1, 1]
    assert packed.shared.tolist() == [0, 2, 2, 0, 0, 1, 0, 1]
    assert packed.last_index.tolist() == [3, 4, 6, 9, 11, 0, 0, 0]
    assert (packed.num_sequences, packed.num_keys, packed.width) == (5, 18, 4)
    assert packed.num_tokens == packed_size([len(one) for one in GROUPS], OF_GROUPS)
    assert key_places(packed).tolist() == [
        *(0, 1),
        *(0, 1, 2, 3),
        *(0, 1, 4),
        *(5, 6),
        *(7,),
        *(7, 8, 9),
        *(10,),
        *(10, 11),
    ]  # fmt: skip


def test_batches_of_one_shape_measure_the_same_whatever_shares_what():
    shape = Shape(num_tokens=17, num_rows=10, width=5, num_shared=8)
    batches = [
        pack(GROUPS, prefixes=OF_GROUPS, shape=shape),
        pack(GROUPS[:2], prefixes=OF_GROUPS[:2], shape=dataclasses.replace(shape, width=12)),
        pack([[1, 2, 3], [1, 2, 4], [1, 2, 5], [1, 2, 6, 7, 8, 9, 9, 9]], prefixes=[Prefix(2)] * 4, shape=Shape(17, 10, 8, 8)),
    ]
    for packed in batches:
        assert (packed.num_tokens, packed.num_rows, packed.num_keys, len(packed.last_index)) == (17, 10, 25, 10)
    filled = batches[0]
    assert filled.input_ids.tolist()[:12] == pack(GROUPS, prefixes=OF_GROUPS).input_ids.tolist()
    assert filled.lengths.tolist() == [2, 2, 1, 2, 1, 2, 1, 1, 5, 0]
    assert filled.last_index.tolist() == [3, 4, 6, 9, 11, 0, 0, 0, 0, 0]


def test_pack_without_prefix_holds_no_padding():
    packed = pack([[1, 2], [3, 4, 5]])
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert packed.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert packed.num_tokens == packed.num_keys == 5


def test_pack_to_a_shape_adds_one_row_of_filling_and_empty_rows():
    packed = pack([[1, 2, 3, 4], [1, 2, 5]], prefixes=[Prefix(2)] * 2, shape=Shape(8, 5, width=4, num_shared=6))
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 5, 5, 5]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2]
    assert packed.lengths.tolist() == [2, 2, 1, 3, 0]
    assert packed.shared.tolist() == [0, 2, 2, 0, 0]
    assert packed.last_index.tolist() == [3, 4, 0, 0, 0]
    assert (packed.num_sequences, packed.num_rows, packed.num_keys, packed.width) == (2, 5, 14, 4)
    assert class_targets(packed, [2, 0]).tolist() == [2, 0, -100, -100, -100]


@pytest.mark.parametrize(
    "shape", [Shape(4, 5, 4, 4), Shape(8, 3, 4, 4), Shape(8, 5, 3, 4), Shape(9, 5, 3, 4), Shape(8, 5, 4, 3)]
)
def test_pack_refuses_a_shape_that_is_too_small(shape):
    with pytest.raises(ValueError, match="do not fit Shape"):
        pack([[1, 2, 3, 4], [1, 2, 5]], prefixes=[Prefix(2)] * 2, shape=shape)


def test_next_tokens_stay_within_their_sequence():
    assert next_token_targets(pack([[1, 2], [3, 4, 5]])).tolist() == [[0, 0, 2, 2, 3], [0, 1, 0, 1, 1]]
    before, counts = next_token_targets(pack([[1, 2], [3, 4, 5]], shape=Shape(8, 4, 3)))
    assert (before[:5].tolist(), counts.tolist()) == ([0, 0, 2, 2, 3], [0, 1, 0, 1, 1, 0, 0, 0])


def test_a_prefix_predicts_for_each_sequence_that_shares_it():
    # [1 2] | 3 4 | 5 | 9 9 | [1] | 7 8 | [1] | 6
    before, counts = next_token_targets(pack(GROUPS, prefixes=OF_GROUPS))
    assert before.tolist() == [0, 0, 1, 2, 1, 5, 5, 7, 7, 8, 10, 10]
    assert counts.tolist() == [0, 2, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1]
    # As many predictions as the texts have tokens after their first.
    assert counts.sum() == sum(len(sequence) - 1 for sequence in GROUPS)


def test_shapes_are_few_and_hold_what_they_are_made_for():
    sizes = {
        1: 64,
        128: 128,
        129: 192,
        512: 512,
        513: 640,
        2_048: 2_048,
        2_049: 2_304,
        4_097: 4_608,
        9_000: 9_216,
        16_384: 16_384,
    }
    assert {n: shape_for(n, num_rows=2, width=50).num_tokens for n in sizes} == sizes
    assert shape_for(100, num_rows=2, width=50) == Shape(128, 3, 64, 0)
    assert shape_for(1_000, num_rows=40, width=150, num_shared=129) == Shape(1_024, 41, 150, 256)
    assert shape_for(4_000, num_rows=40, width=300, num_shared=1_100) == Shape(4_096, 41, 300, 2_048)


def test_pack_refuses_a_sequence_that_is_only_prefix():
    with pytest.raises(ValueError, match="prefix of 2 tokens leaves no token of a sequence of 2"):
        pack([[1, 2], [1, 2, 3]], prefixes=[Prefix(2)] * 2)
    with pytest.raises(ValueError, match="at least one sequence"):
        pack([])


def test_a_prefix_tree_holds_what_sequences_begin_with_once():
    #            0             1          2          3       4          5
    sequences = [[1, 2, 7, 8], [1, 2, 5], [1, 3, 4], [1, 2], [1, 2, 5], [1, 2, 7, 9, 6]]
    ((rows, batch),) = prefix_tree_batches(sequences, 100)
    assert rows.tolist() == [3, 1, 4, 0, 5, 2]
    # [1 2] | 5 | 5, of a duplicate again | 7 8 | 9 6 | 3 4
    assert batch.input_ids.tolist() == [1, 2, 5, 5, 7, 8, 9, 6, 3, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 2, 2, 3, 3, 4, 1, 2]
    assert batch.lengths.tolist() == [2, 1, 1, 2, 2, 2]
    assert batch.shared.tolist() == [0, 2, 2, 2, 3, 1]
    assert batch.last_index.tolist() == [1, 2, 3, 5, 7, 9]
    assert (batch.num_sequences, batch.num_keys, batch.width, batch.is_tree) == (6, 20, 5, True)
    assert key_places(batch).tolist() == [
        *(0, 1),
        *(0, 1, 2),
        *(0, 1, 3),
        *(0, 1, 4, 5),
        *(0, 1, 4, 6, 7),
        *(0, 8, 9),
    ]  # fmt: skip


def test_a_prefix_tree_is_cut_at_the_budget_and_begins_anew():
    sequences = [[1, 2, 3, n] for n in range(6)]
    # A batch's first sequence has 4 tokens to compute, each further one 1.
    batches = prefix_tree_batches(sequences, 6)
    assert [rows.tolist() for rows, _ in batches] == [[0, 1, 2], [3, 4, 5]]
    assert [batch.input_ids.tolist() for _, batch in batches] == [[1, 2, 3, 0, 1, 2], [1, 2, 3, 3, 4, 5]]
    # One longer than the budget has a batch of its own.
    assert [rows.tolist() for rows, _ in prefix_tree_batches([[1], list(range(9)), [2]], 4)] == [[1], [0, 2]]


def test_a_prefix_tree_is_cut_where_few_tokens_would_have_many_keys():
    # 9 tokens of which 8 are shared: by tokens alone, 1,000 would hold all 500 sequences, with 4,500 keys.
    batches = prefix_tree_batches([[*range(8), n] for n in range(500)], 1_000)
    assert [len(rows) for rows, _ in batches] == [444, 56]


def test_a_prefix_tree_of_nothing_and_of_an_empty_sequence():
    assert prefix_tree_batches([], 10) == []
    with pytest.raises(ValueError, match="no tokens has no last one"):
        prefix_tree_batches([[1], []], 10)


def test_attention_is_computed_in_tiles_of_rows_and_parts_of_what_they_share():
    """Two prefixes, of 20 and of 3 tokens, between them a row that shares none; filling and two empty rows."""
    sequences = [[*range(20), *range(n)] for n in (70, 250, 5)] + [[*range(9)]] + [[*range(3), *range(n)] for n in (4, 64)]
    prefixes = [Prefix(20, 0)] * 3 + [Prefix(0)] + [Prefix(3, 1)] * 2
    packed = pack(sequences, prefixes=prefixes, shape=Shape(450, 11, 300, 80))
    tiles = attention_tiles(packed)
    assert tiles.shape == (450 // 64 + 11, 5)
    assert [tuple(tile) for tile in tiles.tolist()] == [
        (0, 0, 20, 0, 0),
        (20, 20, 90, 20, 0),
        (84, 20, 90, 20, 0),
        (90, 90, 340, 20, 0),
        (154, 90, 340, 20, 0),
        (218, 90, 340, 20, 0),
        (282, 90, 340, 20, 0),
        (340, 340, 345, 20, 0),
        (345, 345, 354, 0, 345),
        (354, 354, 357, 0, 354),
        (357, 357, 361, 3, 354),
        (361, 361, 425, 3, 354),
        (425, 425, 450, 0, 425),
        *[(0, 0, 0, 0, 0)] * 5,
    ]
    parts, sums = prefix_parts(packed)
    assert parts.shape == (450 // 256 + 11 // 2, 5)
    assert [tuple(part) for part in parts.tolist()] == [
        (0, 20, 20, 340, 0),
        (0, 20, 340, 345, 20),
        (354, 357, 357, 425, 40),
        *[(0, 0, 0, 0, 0)] * 3,
    ]
    assert sums.shape == (80 // 16 + 11 // 2, 5)
    assert [tuple(one) for one in sums.tolist()] == [
        (0, 20, 20, 2, 0),
        (16, 20, 20, 2, 16),
        (354, 357, 3, 1, 40),
        *[(0, 0, 0, 0, 0)] * 7,
    ]


def test_a_trees_tiles_find_their_keys():
    ((_, batch),) = prefix_tree_batches([[1, 2, 3], [1, 2, 4, *range(70)], [1, 5]], 100)
    tiles = attention_tiles(batch)
    assert tiles.tolist() == [[0, 0, 3, 0, 0], [3, 3, 74, 2, 3], [67, 3, 74, 2, 3], [74, 74, 75, 1, 76]]


@pytest.mark.parametrize("seed", range(20))
def test_no_shape_is_short_of_tiles_or_parts(seed):
    """The least shape that a batch fits into: more than it has room for would raise."""
    generator = np.random.default_rng(seed)
    sequences, prefixes = [], []
    for number in range(generator.integers(1, 9)):
        length = int(generator.choice([0, 1, 15, 16, 17, 40]))
        for _ in range(generator.integers(1, 7)):
            sequences.append([0] * (length + int(generator.choice([1, 63, 64, 65, 255, 257, 300]))))
            prefixes.append(Prefix(length, number))
    packed = pack(sequences, prefixes=prefixes)
    tiles = attention_tiles(packed)
    assert (np.minimum(tiles[:, 0] + 64, tiles[:, 2]) - tiles[:, 0]).sum() == packed.num_tokens
    parts, sums = prefix_parts(packed)
    assert (parts[:, 3] - parts[:, 2]).sum() == packed.lengths[packed.shared > 0].sum()
    assert (parts[:, 1] - parts[:, 0]).sum() <= packed.num_keys - packed.num_tokens
    of_prefixes = packed.lengths[:-1][(packed.shared[:-1] == 0) & (packed.shared[1:] > 0)]
    assert (np.minimum(sums[:, 0] + 16, sums[:, 1]) - sums[:, 0]).sum() == of_prefixes.sum()

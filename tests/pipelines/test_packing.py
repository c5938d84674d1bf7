"""Packing is pure: every expectation here is written out by hand."""

import numpy as np
import pytest

from pipelines.packing import common_prefix_length, microbatches, pack, split_by_tokens, training_order


def test_common_prefix_leaves_each_sequence_a_token_of_its_own():
    assert common_prefix_length([[1, 2, 3, 9], [1, 2, 4], [1, 2, 3]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix_length([[1, 2], [2, 2]]) == 0
    assert common_prefix_length([[7], [7, 8]]) == 0
    assert common_prefix_length([[5, 6, 7]]) == 2


def test_pack_lays_sequences_end_to_end_behind_one_prefix():
    packed = pack([[1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 7, 8]], prefix_length=2)
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 2, 3, 4]
    assert packed.last_index.tolist() == [3, 4, 7]
    assert (packed.num_rows, packed.width, packed.prefix_length) == (3, 3, 2)
    assert packed.slots.tolist() == [0, 1, 3, 6, 7, 8]


def test_pack_without_prefix_holds_no_padding():
    packed = pack([[1, 2], [3, 4, 5]])
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert packed.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert packed.num_tokens == 5


def test_pack_refuses_a_sequence_that_is_only_prefix():
    with pytest.raises(ValueError, match="prefix_length=2 leaves no token"):
        pack([[1, 2], [1, 2, 3]], prefix_length=2)
    with pytest.raises(ValueError, match="at least one sequence"):
        pack([])


def test_split_keeps_within_the_budget_and_drops_nothing():
    assert split_by_tokens([4, 4, 4, 20, 4], 10) == [[0, 1], [2], [3], [4]]
    # 3 tokens are shared, so each sequence of 4 costs 1: a budget of 5 holds the prefix and two.
    assert split_by_tokens([4, 4, 4], 5, prefix_length=3) == [[0, 1], [2]]


def test_training_order_permutes_each_epoch_afresh():
    order = training_order(5, 2.4, seed=1)
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5].tolist() != order[5:10].tolist()
    assert order.tolist() == training_order(5, 2.4, seed=1).tolist()
    assert order.tolist() != training_order(5, 2.4, seed=2).tolist()
    with pytest.raises(ValueError, match="nothing to train on"):
        training_order(3, 0.1, seed=0)


def test_microbatches_give_every_worker_the_same_number_and_every_example_once():
    lengths = [9, 3, 5, 7, 2, 8, 1]
    shares = microbatches([0, 1, 2, 3, 4, 5, 6], lengths, num_workers=2, token_budget=12)
    # From the longest to the shortest (0 5 3 2 1 4 6), dealt forwards and back: 0|5, 2|3, 1|4, then 6.
    assert shares == [[[0], [2, 1]], [[5], [3, 4, 6]]]
    assert sorted(np.concatenate([np.concatenate(share) for share in shares]).tolist()) == list(range(7))


def test_microbatches_fill_up_with_empty_ones_for_a_worker_without_examples():
    assert microbatches([4], [0, 0, 0, 0, 6], num_workers=3, token_budget=100) == [[[4]], [[]], [[]]]

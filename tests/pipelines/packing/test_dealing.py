"""Examples are dealt in one order, within the budget, and none is left out."""

import itertools

import numpy as np
import pytest

from pipelines.packing.batches import Prefix
from pipelines.packing.dealing import fullest, group_by_length, microbatches, split_by_tokens, training_order


@pytest.mark.parametrize("room", [-3, 0, 1, 7, 20, 33, 100])
def test_the_fullest_is_the_fullest_of_all(room):
    sizes = [5, 9, 5, 7, 2, 13, 4]
    chosen = fullest(sizes, room)
    assert chosen == sorted(set(chosen))
    several = [places for number in range(len(sizes) + 1) for places in itertools.combinations(range(len(sizes)), number)]
    fitting = {places: sum(sizes[place] for place in places) for places in several}
    most = max((total for total in fitting.values() if total <= room), default=0)
    # Of several, that whose places come first.
    assert tuple(chosen) == min(places for places, total in fitting.items() if total == most)


def test_split_keeps_within_the_budget_and_drops_nothing():
    assert split_by_tokens([4, 4, 4, 20, 4], 10) == [[0, 1], [2], [3], [4]]
    # 3 tokens are shared, so each sequence of 4 costs 1: a budget of 5 holds the prefix and two.
    assert split_by_tokens([4, 4, 4], 5, prefixes=[Prefix(3)] * 3) == [[0, 1], [2]]
    # Each prefix costs its tokens once a run, wherever in the run its sequences are.
    one, other = Prefix(3, 1), Prefix(3, 2)
    assert split_by_tokens([4, 4, 4, 4], 10, prefixes=[one, other, one, other]) == [[0, 1, 2, 3]]
    assert split_by_tokens([4, 4, 4, 4], 9, prefixes=[one, other, one, other]) == [[0, 1, 2], [3]]
    assert split_by_tokens([4, 4, 4, 4], 7, prefixes=[one, other, one, other]) == [[0], [1], [2], [3]]


def test_training_order_permutes_each_epoch_afresh():
    order = training_order(5, 2.4, seed=1)
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5].tolist() != order[5:10].tolist()
    assert order.tolist() == training_order(5, 2.4, seed=1).tolist()
    assert order.tolist() != training_order(5, 2.4, seed=2).tolist()
    with pytest.raises(ValueError, match="nothing to train on"):
        training_order(3, 0.1, seed=0)


def test_batches_are_grouped_by_length_in_runs_with_the_longest_example_first():
    # 12 examples in batches of 1 make four runs of 3 batches: (0 1 2) (3 4 5) (6 7 8) (9 10 11).
    lengths = [5, 9, 7, 1, 2, 3, 4, 30, 6, 8, 8, 20]
    # Sorted within the runs: 1 2 0 | 5 4 3 | 7 8 6 | 11 9 10 (9 before 10: equally long). Then 7, the longest, and 1, the
    # first, change places.
    assert group_by_length(np.arange(12), lengths, batch_size=1).tolist() == [7, 2, 0, 5, 4, 3, 1, 8, 6, 11, 9, 10]
    # In batches of 2 there is one batch a run, of two examples.
    assert group_by_length(np.arange(12), lengths, batch_size=2).tolist() == [7, 0, 2, 3, 5, 4, 1, 6, 9, 8, 11, 10]


def test_grouping_follows_the_permutation_and_never_makes_runs_of_more_than_50_batches():
    assert group_by_length(np.array([3, 1, 0, 2]), [1, 2, 3, 4], batch_size=1).tolist() == [3, 1, 0, 2]
    # One run would sort all of them; 500 examples in batches of 1 are ten runs of 50, each already rising.
    rising = group_by_length(np.arange(500), list(range(500)), batch_size=1).tolist()
    assert rising[:3] == [499, 48, 47] and rising[49:51] == [0, 99] and rising[450] == 49
    # A batch larger than the data: one run.
    assert group_by_length(np.arange(3), [1, 3, 2], batch_size=8).tolist() == [1, 2, 0]


def test_training_order_groups_each_epoch_afresh():
    lengths = [length for length in range(1, 41)]
    order = training_order(40, 2, seed=1, lengths=lengths, batch_size=2)
    plain = training_order(40, 2, seed=1)
    # Runs of 5 batches of 2: the same examples are in a run as without grouping, but for the two that changed places.
    assert order[0] == 39 and order[40] == 39
    assert len(set(order[10:20]) - set(plain[10:20])) <= 1
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40))
    assert order[:40].tolist() != order[40:].tolist()


def test_microbatches_give_every_worker_the_same_number_and_every_example_once():
    lengths = [9, 3, 5, 7, 2, 8, 1]
    shares = microbatches(lengths, num_workers=2, token_budget=12)
    # From the longest to the shortest (0 5 3 2 1 4 6), dealt forwards and back: 0|5, 2|3, 1|4, then 6.
    assert shares == [[[0], [2, 1]], [[5], [3, 4, 6]]]
    assert sorted(np.concatenate([np.concatenate(share) for share in shares]).tolist()) == list(range(7))


def test_microbatches_hold_any_prefixes_within_their_budget():
    lengths = [9, 8, 7, 6, 5, 4]
    prefixes = [Prefix(3, 0), Prefix(3, 1), Prefix(3, 1), Prefix(3, 0), Prefix(3, 0), Prefix(3, 0)]
    shares = microbatches(lengths, num_workers=2, token_budget=12, prefixes=prefixes)
    # 0|1, 3|2, 4|5: the first worker's share one prefix, 9 + 3 and 5; of the others' two do, 8 + 4, and 4.
    assert shares == [[[0, 3], [4]], [[1, 2], [5]]]


def test_microbatches_fill_up_with_empty_ones_for_a_worker_without_examples():
    assert microbatches([6], num_workers=3, token_budget=100) == [[[0]], [[]], [[]]]

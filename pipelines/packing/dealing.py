"""The order in which examples are trained on, and how they are dealt into batches that fill a budget of tokens. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.packing.batches import Prefix


def packed_size(lengths: Sequence[int], prefixes: Sequence[Prefix]) -> int:
    """Tokens of a batch of sequences of `lengths` tokens, of which those of equal prefix share it."""
    return sum(lengths) - sum(prefix.length for prefix in prefixes) + sum(prefix.length for prefix in set(prefixes))


def fullest(sizes: Sequence[int], room: int) -> list[int]:
    """Places of those of `sizes`, all above 0, that fill `room` best and no further, ascending; of equal ones the first."""
    # Bit n: a sum of n can be had from the sizes from a place on.
    sums = [1]
    within = (1 << max(room, 0) + 1) - 1
    for size in reversed(sizes):
        sums.append((sums[-1] | sums[-1] << size) & within)
    total = sums.pop().bit_length() - 1
    chosen = []
    for place, size in enumerate(sizes):
        later = sums.pop()
        if size <= total and later >> total - size & 1:
            chosen.append(place)
            total -= size
    return chosen


def split_by_tokens(lengths: Sequence[int], token_budget: int, *, prefixes: Sequence[Prefix] | None = None) -> list[list[int]]:
    """Cut positions 0..n-1, in the order given, into runs whose packed size stays within `token_budget` tokens.

    A sequence longer than the budget gets a run of its own: nothing is dropped.
    """
    runs: list[list[int]] = []
    held: set[Prefix] = set()
    used = 0
    for position, (length, prefix) in enumerate(zip(lengths, prefixes or [Prefix(0)] * len(lengths), strict=True)):
        used += length - (prefix.length if prefix in held else 0)
        if not runs or used > token_budget:
            runs.append([])
            held, used = set(), length
        runs[-1].append(position)
        held.add(prefix)
    return runs


def training_order(
    num_examples: int, epochs: float, *, seed: int, lengths: Sequence[int] | None = None, batch_size: int = 1
) -> np.ndarray:
    """Example indices in training order, int64 [round(num_examples * epochs)]: one fresh permutation an epoch.

    With `lengths` (in tokens, one an example), batches of `batch_size` hold examples of similar length (`group_by_length`).
    """
    total = round(num_examples * epochs)
    if num_examples < 1 or total < 1:
        raise ValueError(f"{num_examples:,} examples for {epochs} epochs give nothing to train on")
    generator = np.random.default_rng(seed)
    permutations = [generator.permutation(num_examples) for _ in range(-(-total // num_examples))]
    if lengths is not None:
        permutations = [group_by_length(permutation, lengths, batch_size=batch_size) for permutation in permutations]
    return np.concatenate(permutations)[:total]


def group_by_length(permutation: np.ndarray, lengths: Sequence[int], *, batch_size: int) -> np.ndarray:
    """`permutation` int64 [n], reordered so that batches hold examples of similar length, as transformers' Trainer does it.

    The permutation is cut into runs of 50 batches (fewer if that makes less than 4 runs), and each run sorted from its longest
    example to its shortest. Then the longest example of all changes places with the first one, so that a batch that does not
    fit into memory fails at once.
    """
    batches_per_run = max(1, min(len(permutation) // (4 * batch_size), 50))
    run = batches_per_run * batch_size
    by_example = np.asarray(lengths)
    grouped = np.concatenate(
        [
            part[np.argsort(-by_example[part], kind="stable")]
            for part in (permutation[start : start + run] for start in range(0, len(permutation), run))
        ]
    )
    longest = int(np.argmax(by_example[grouped]))
    grouped[[0, longest]] = grouped[[longest, 0]]
    return grouped


def microbatches(
    lengths: Sequence[int], *, num_workers: int, token_budget: int, prefixes: Sequence[Prefix] | None = None
) -> list[list[list[int]]]:
    """Deal one optimizer step's examples, of `lengths` in tokens, to the workers, and each one's share into microbatches.

    Returns, for each worker, its microbatches as lists of places in the batch. Every worker gets the same number of
    microbatches, because ZeRO's collectives must meet; a worker with less to do gets empty ones at the end. Examples are dealt
    from the longest to the shortest, forwards and back, so that the workers' token counts stay close.
    """
    by_length = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    for turn in range(0, len(by_length), num_workers):
        dealt = by_length[turn : turn + num_workers]
        workers = range(num_workers) if (turn // num_workers) % 2 == 0 else range(num_workers - 1, -1, -1)
        for worker, place in zip(workers, dealt, strict=False):
            shares[worker].append(place)
    cut = []
    for share in shares:
        of_share = [prefixes[place] for place in share] if prefixes else None
        runs = split_by_tokens([lengths[place] for place in share], token_budget, prefixes=of_share)
        cut.append([[share[position] for position in run] for run in runs])
    most = max(len(runs) for runs in cut)
    return [runs + [[] for _ in range(most - len(runs))] for runs in cut]

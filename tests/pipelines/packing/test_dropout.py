"""Dropout is a function of seed, step, place and position, whose masks look random."""

import numpy as np
import pytest
import torch

from pipelines.packing.dropout import keep, keep_bits, keep_mask, token_keys

# Worked out once from the definitions with Python's own integers: splitmix64 for each of the four values; then the hash.
GOLDEN_KEYS = [-1501787943, -1313240806, -1417959539]
GOLDEN_MASK = ["101100101111101110111111", "111110011101111111111010", "011101100001111111010111"]


def test_token_keys_and_masks_are_these():
    keys = token_keys(5, 100_000, np.array([-1, 0, 1]), np.array([0, 0, 9]))
    assert keys.dtype == np.int32
    assert keys.tolist() == GOLDEN_KEYS
    mask = keep_mask(torch.from_numpy(keys), torch.tensor([1_000_000_007], dtype=torch.int32), 24, 0.25)
    assert ["".join(map(str, row)) for row in mask.int().tolist()] == GOLDEN_MASK


def centred(mask, dropout):
    """A mask's elements with mean 0 and variance 1, if it keeps 1 - dropout of them."""
    return (mask.double() - (1 - dropout)) / (dropout * (1 - dropout)) ** 0.5


def assert_independent(first, second, limit=5.0):
    """The mean product of two centred masks is zero within `limit` standard errors."""
    assert abs((first * second).sum().item()) / first.numel() ** 0.5 < limit


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5])
def test_masks_are_uniform_and_neighbours_are_independent(dropout):
    salts = torch.arange(3, dtype=torch.int32).split(1)
    keys = {
        name: torch.from_numpy(token_keys(seed, step, place, np.arange(1024)))
        for name, (seed, step, place) in {"self": (0, 0, 0), "seed": (1, 0, 0), "step": (0, 1, 0), "place": (0, 0, 1)}.items()
    }
    masks = {name: centred(keep_mask(value, salts[0], 1024, dropout), dropout) for name, value in keys.items()}
    own = masks["self"]
    assert_independent(own, torch.ones_like(own))
    for other in ("seed", "step", "place"):
        assert_independent(own, masks[other])
    for salt in salts[1:]:
        assert_independent(own, centred(keep_mask(keys["self"], salt, 1024, dropout), dropout))
    for shift in (1, 2, 16, 512):
        assert_independent(own[shift:], own[:-shift])
        assert_independent(own[:, shift:], own[:, :-shift])
    for pairs in (own @ own.t(), own.t() @ own):
        # Half a million pairs of rows (columns): their correlations are spread as those of independent ones are.
        off_diagonal = pairs[~torch.eye(1024, dtype=torch.bool)] / 1024**0.5
        assert off_diagonal.std().item() == pytest.approx(1, abs=0.01)
        assert off_diagonal.abs().max().item() < 8
    rows, columns = own.mean(1) * 1024**0.5, own.mean(0) * 1024**0.5
    assert rows.std().item() == pytest.approx(1, abs=0.15) == columns.std().item()


def test_a_keys_every_bit_moves_half_of_what_decides():
    keys = torch.from_numpy(token_keys(3, 1, 4, np.arange(256)))
    salt = torch.zeros(1, dtype=torch.int32)
    mask = keep_mask(keys, salt, 256, 0.5)
    for bit in range(32):
        flipped = keys ^ (1 << bit if bit < 31 else -(2**31))
        assert (keep_mask(flipped, salt, 256, 0.5) != mask).double().mean().item() == pytest.approx(0.5, abs=0.01), bit


@pytest.mark.gpu
def test_masks_are_the_same_bits_on_a_gpu():
    keys, salt = torch.from_numpy(token_keys(1, 2, 3, np.arange(500))), torch.tensor([-77], dtype=torch.int32)
    expected = keep_mask(keys, salt, 300, 0.1)
    assert torch.equal(keep_mask(keys.cuda(), salt.cuda(), 300, 0.1).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_kept_is_as_it_was_and_the_rest_is_zero(dtype: torch.dtype) -> None:
    keys, salt = torch.arange(50, dtype=torch.int32), torch.tensor([7], dtype=torch.int32)
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[3, :] = -torch.inf
    kept = keep(x, keep_bits(keys, salt, 24, 0.25))
    mask = keep_mask(keys, salt, 24, 0.25)
    assert torch.equal(kept, torch.where(mask, x, 0)) and 0 < mask[3].sum() < 24
    # No zero is a negative one: what sums of them give would differ in its bits.
    assert not torch.signbit(kept[~mask]).any()

"""Dropout by hash: a function of what is dropped and not of a random stream.

So a mask is recomputed wherever it is needed, and an example's masks do not depend on the company it is computed in.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from pipelines.splitmix import GOLDEN, mixed

MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""The factors of the 32-bit hash lowbias32 (Chris Wellons, https://nullprogram.com/blog/2018/07/31/), as int32."""

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers of so many bytes."""


def token_keys(seed: ArrayLike, step: ArrayLike, place: ArrayLike, position: ArrayLike) -> np.ndarray:
    """The dropout key of each token, int32 in the shape that the four integers (arrays) broadcast to.

    A token is known by its run's `seed`, the optimizer `step`, its example's `place` in that step's whole batch (-1 - n for
    prefix n, which examples share) and its `position` in the example: by nothing that depends on how a batch is dealt and
    packed.
    """
    state = np.zeros(1, dtype=np.uint64)
    for value in (seed, step, place, position):
        # 64 bits, so that only single tokens and never whole examples can meet.
        state = mixed(state + np.asarray(value, dtype=np.int64).astype(np.uint64) + GOLDEN)
    return (state >> np.uint64(32)).astype(np.uint32).view(np.int32)


def stir(words: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 words that spreads close ones over their whole range: lowbias32's two products."""
    words = words * MULTIPLIERS[0]
    # A signed shift copies the sign, so what it shifted in is masked out.
    words = words ^ ((words >> 15) & 0x1FFFF)
    return words * MULTIPLIERS[1]


def drop_below(dropout: float) -> int:
    """The int32 below which a hash, uniform over int32, means 'dropped' with probability `dropout`."""
    return round(dropout * 2**32) - 2**31


def keep_mask(keys: torch.Tensor, salt: torch.Tensor, num_channels: int, dropout: float) -> torch.Tensor:
    """A mask of the elements that dropout keeps, bool [T, num_channels], by `keys` int32 [T] and the module's `salt` int32 [1].

    Multiply-shift hashing (Dietzfelbinger et al. 1997, https://doi.org/10.1006/jagm.1997.0873): each row draws an odd factor,
    and the product's high bits decide. Only int32 operations that wrap around, so that CPU, GPU and Triton kernels agree in
    every bit, and few: a kernel does them in the time that it waits for memory.
    """
    return keep_bits(keys, salt, num_channels, dropout).bool()


def keep_bits(keys: torch.Tensor, salt: torch.Tensor, num_channels: int, dropout: float) -> torch.Tensor:
    """`keep_mask` as int32 words, of which all bits are set where an element is kept, and none where it is dropped."""
    rows = stir(keys + salt)
    factors = stir(rows) | 1
    channels = torch.arange(num_channels, dtype=torch.int32, device=keys.device)
    # The low half tells any two of 65,536 channels apart: those that differ in high bits only would be dropped together.
    columns = (stir(channels) << 16) ^ channels
    hashes = (rows[:, None] ^ columns).mul_(factors[:, None])
    # A comparison in place is 1 or 0 in the words' own type, which a CPU computes several at a time.
    return hashes.ge_(drop_below(dropout)).neg_()


def keep(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """`x` where `bits` (`keep_bits`) keep it, and 0 elsewhere: faster on a CPU than to choose by a mask of booleans."""
    words = WORDS[x.element_size()]
    return (x.view(words) & bits.to(words)).view(x.dtype)

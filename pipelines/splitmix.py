"""splitmix64 (Steele, Lea and Flood 2014): 64-bit numbers without a pattern from numbers that have one. Pure numpy.

    mixed(np.arange(num, dtype=np.uint64) * GOLDEN)    # its stream from 0 on

Masks, samples and the hashes of words are made of it, so that no library's next version can change them.
"""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What the generator adds for each number: odd, and 2^64 divided by the golden ratio."""
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 to uint64 in the same shape, one to one: the generator's last step (Stafford's mix 13)."""
    values = values ^ (values >> np.uint64(30))
    values *= _MIX[0]
    values ^= values >> np.uint64(27)
    values *= _MIX[1]
    values ^= values >> np.uint64(31)
    return values

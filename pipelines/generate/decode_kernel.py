"""A Triton kernel of attention for decoding steps: one query of each sequence over its keys and values in a paged cache.

It takes one query head of one sequence at a time and multiplies without tensor cores, whose tiles are for many queries of a
key. A token's key and value are read once, and what is computed with them takes a fraction of that time. Loads of a tile are
under way together, and a program is one warp, which never waits for another: the many that fit on a GPU hide what a load takes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

HEADS = 1
"""Query heads of a program."""
TILE = 8
"""Keys that a program reads at a time."""
NUM_WARPS = 1


@triton.jit(do_not_specialize=["table_stride"])
def _decode_kernel(
    out,  # [sequences, heads, CHANNELS], as the queries
    query,
    cache,  # [blocks, KV heads, BLOCK_SIZE, 2 CHANNELS] by its strides
    block_table,  # [sequences, blocks of one]
    lengths,  # [sequences], in tokens; none for rows that fill up a CUDA graph's batch
    scale,  # with the factor from base e to base 2
    query_stride,
    out_stride,
    table_stride,
    block_stride,
    head_stride,
    token_stride,
    GROUP: tl.constexpr,  # query heads to a KV head
    CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
):
    heads, sequence = tl.program_id(0) * HEADS + tl.arange(0, HEADS), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, CHANNELS)
    numbers_of_heads = heads[:, None] * CHANNELS + channels[None, :]
    length = tl.load(lengths + sequence)
    q = tl.load(query + sequence * query_stride + numbers_of_heads).to(tl.float32) * scale
    of_heads = (heads // GROUP).to(tl.int64)[:, None] * head_stride + channels[None, :]
    block_table += sequence * table_stride
    highest = tl.full([HEADS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([HEADS], dtype=tl.float32)
    mean = tl.zeros([HEADS, CHANNELS], dtype=tl.float32)
    for first in range(0, length, TILE):
        tokens = first + tl.arange(0, TILE)
        there = tokens < length
        blocks = tl.load(block_table + tokens // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
        places = blocks * block_stride + (tokens % BLOCK_SIZE) * token_stride
        pointers = cache + places[:, None, None] + of_heads[None, :, :]
        k = tl.load(pointers, mask=there[:, None, None], other=0.0).to(tl.float32)
        v = tl.load(pointers + CHANNELS, mask=there[:, None, None], other=0.0).to(tl.float32)
        scores = tl.where(there[:, None], tl.sum(k * q[None, :, :], axis=2), float("-inf"))
        # Of at least one token, so this is finite.
        new_highest = tl.maximum(highest, tl.max(scores, axis=0))
        weights = tl.exp2(scores - new_highest[None, :])
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, axis=0)
        mean = mean * decay[:, None] + tl.sum(weights[:, :, None] * v, axis=0)
        highest = new_highest
    mean /= tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + sequence * out_stride + numbers_of_heads, mean.to(out.dtype.element_ty))


def decode(
    out: torch.Tensor, query: torch.Tensor, cache: torch.Tensor, block_table: torch.Tensor, lengths: torch.Tensor, scale: float
) -> None:
    """Attention of `query` [S, H, C] over what S sequences have in `cache`, into `out` [S, H, C].

    `cache` [B, K, N, 2 C] in any order of memory: of B blocks, K KV heads and N tokens of a block, a token's key and then its
    value. The first tokens of a sequence are in the first block of its row of `block_table` [S, blocks], and so on; `lengths`
    [S] are in tokens, the query's own included. Scores are multiplied by `scale`. Zeros where a length is 0.
    """
    num_sequences, num_heads, num_channels = query.shape
    num_kv_heads, block_size = cache.shape[1:3]
    heads = math.gcd(num_heads, HEADS)
    _decode_kernel[num_heads // heads, num_sequences](
        out, query, cache, block_table, lengths, scale * math.log2(math.e),
        query.stride(0), out.stride(0), block_table.stride(0), cache.stride(0), cache.stride(1), cache.stride(2),
        GROUP=num_heads // num_kv_heads, CHANNELS=num_channels, BLOCK_SIZE=block_size,
        HEADS=heads, TILE=TILE, num_warps=NUM_WARPS,
    )  # fmt: skip

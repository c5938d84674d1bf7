"""The decoding kernel attends as plain attention does, wherever the cache has a sequence's tokens."""

import pytest
import torch

from tests.pipelines.interpreted import needs_interpreter

LENGTHS = (1, 0, 15, 16, 17, 46, 61, 200, 30)
"""In tokens: of a new text, of a row that is none, at a block's and a tile's ends, and of several blocks and tiles."""


def case(device, dtype, *, num_heads, num_kv_heads, num_channels, block_size, heads_first):
    """Queries, cache, block table and lengths; blocks that no sequence has, and what is behind a sequence's end, hold NaN."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    of_each = [-(-length // block_size) for length in LENGTHS]
    num_blocks = sum(of_each) + 3
    shape = (num_blocks, num_kv_heads, block_size, 2 * num_channels)
    if not heads_first:
        shape = (num_blocks, block_size, num_kv_heads, 2 * num_channels)
    cache = torch.full(shape, torch.nan, device=device, dtype=dtype)
    cache = cache if heads_first else cache.transpose(1, 2)
    order = torch.randperm(num_blocks, generator=generator).tolist()
    # Wider than any sequence needs, as vLLM's is.
    table = torch.full((len(LENGTHS), max(of_each) + 2), 10**6, dtype=torch.int32)
    for row, (length, num) in enumerate(zip(LENGTHS, of_each, strict=True)):
        for column in range(num):
            table[row, column] = block = order.pop()
            filled = min(block_size, length - column * block_size)
            cache[block, :, :filled] = draw(num_kv_heads, filled, 2 * num_channels)
    # As vLLM's are: parts of one tensor with keys and values.
    query = draw(len(LENGTHS), num_heads + 2 * num_kv_heads, num_channels)[:, :num_heads]
    return query, cache, table.to(device), torch.tensor(LENGTHS, dtype=torch.int32, device=device)


def plain(query, cache, table, lengths, scale):
    out = torch.zeros_like(query, dtype=torch.float32)
    for row, length in enumerate(lengths.tolist()):
        if length:
            blocks = table[row, : -(-length // cache.shape[2])].long()
            tokens = cache[blocks].float().transpose(0, 1).flatten(1, 2)[:, :length]
            keys, values = tokens.repeat_interleave(query.shape[1] // cache.shape[1], dim=0).chunk(2, dim=-1)
            scores = torch.einsum("hc,hnc->hn", query[row].float(), keys) * scale
            out[row] = torch.einsum("hn,hnc->hc", scores.softmax(-1), values)
    return out


def check(device, dtype, tolerance, **shape):
    from pipelines.generate.decode_kernel import decode

    query, *rest = case(device, dtype, **shape)
    out = torch.full_like(query, torch.nan, memory_format=torch.contiguous_format)
    decode(out, query, *rest, scale=0.3)
    torch.testing.assert_close(out.float(), plain(query, *rest, scale=0.3), rtol=tolerance, atol=tolerance)


SHAPES = pytest.mark.parametrize(
    "shape",
    [
        {"num_heads": 4, "num_kv_heads": 4, "num_channels": 128, "block_size": 15, "heads_first": False},
        {"num_heads": 4, "num_kv_heads": 4, "num_channels": 128, "block_size": 15, "heads_first": True},
        {"num_heads": 6, "num_kv_heads": 3, "num_channels": 64, "block_size": 16, "heads_first": False},
        {"num_heads": 9, "num_kv_heads": 3, "num_channels": 64, "block_size": 11, "heads_first": True},
        {"num_heads": 3, "num_kv_heads": 3, "num_channels": 256, "block_size": 8, "heads_first": False},
    ],
    ids=["Llama", "heads first", "two heads to a KV head", "SmolLM2", "wide heads"],
)


@needs_interpreter
@SHAPES
def test_the_interpreted_kernel_is_plain_attention(shape):
    check("cpu", torch.float32, 1e-5, **shape)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@SHAPES
def test_the_kernel_is_plain_attention(shape, dtype, tolerance):
    check("cuda", dtype, tolerance, **shape)

"""Kernels of `few_tokens.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from pipelines.adapters.kernels import _column_words, _keep, _row_words, follow, pick


@triton.jit
def _place_of(block, widths, BLOCK: tl.constexpr):
    """Output, block of columns in it, and columns of the outputs before it, of a block of all outputs' columns."""
    which, before = 0, 0
    for place in tl.static_range(len(widths) - 1):
        num_blocks = tl.cdiv(widths[place], BLOCK)
        is_past = (which == place) & (block >= num_blocks)
        block = tl.where(is_past, block - num_blocks, block)
        before = tl.where(is_past, before + widths[place], before)
        which = tl.where(is_past, place + 1, which)
    return which, block, before


@triton.jit(do_not_specialize=["num_tokens"])
def shrink_kernel(
    wides,  # one for all, or m, of [T, channels]
    factors,  # m of [rank, channels] by their strides
    narrow,  # out: [m, T, rank]
    parts,  # [parts, m, T, rank], float32
    counters,  # zeros, and left so
    starts,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    widths,
    rank,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    DROP: tl.constexpr,
    RANK_FIRST: tl.constexpr,
    WAITS: tl.constexpr,
    LEADS: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    """narrow = scale · dropout(wide) @ factorᵀ of one projection, one tile of tokens, one part of its channels."""
    tile, which, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if FOLLOWS:
        follow(WAITS, LEADS)
    wide, factor = pick(wides, which), pick(factors, which)
    channels = pick(widths, which)
    end = tl.load(starts + 1)
    rows = tile * TILE + tl.arange(0, TILE)
    valid = rows < end
    ranks = tl.arange(0, RANK)
    per_part = tl.cdiv(tl.cdiv(channels, PARTS), BLOCK) * BLOCK
    begin = part * per_part
    stop = tl.minimum(begin + per_part, channels)
    if DROP:
        row_words = _row_words(keys, rows, valid, pick(salts, which))
    total = tl.zeros([RANK, TILE], dtype=tl.float32)
    for start in range(begin, stop, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < stop
        values = tl.load(wide + rows[:, None] * channels + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        places = ranks[:, None] * channels + columns[None, :] if RANK_FIRST else columns[None, :] * rank + ranks[:, None]
        own = tl.load(factor + places, mask=(ranks < rank)[:, None] & inside[None, :], other=0.0)
        if DROP:
            values = tl.where(_keep(row_words, _column_words(columns), threshold), values, 0.0)
        total = tl.dot(own, tl.trans(values), total)
    at = (which * num_tokens + rows)[None, :] * rank + ranks[:, None]
    there = (rows < num_tokens)[None, :] & (ranks < rank)[:, None]
    if PARTS == 1:
        tl.store(narrow + at, (total * scale).to(narrow.dtype.element_ty), mask=there)
    else:
        stride = tl.num_programs(1) * num_tokens * rank
        tl.store(parts + part * stride + at, total, mask=there)
        # Every thread's, before this program is counted.
        tl.debug_barrier()
        counter = counters + which * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel") == PARTS - 1:
            total = tl.zeros([RANK, TILE], dtype=tl.float32)
            for each in tl.static_range(PARTS):
                total += tl.load(parts + each * stride + at, mask=there, other=0.0, cache_modifier=".cg")
            tl.store(narrow + at, (total * scale).to(narrow.dtype.element_ty), mask=there)
            tl.store(counter, 0)
    if FOLLOWS and not WAITS:
        follow(True, False)


@triton.jit
def _with_adapters(
    total,
    narrow,
    factors,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    rank,
    width,
    rows,
    columns,
    which,
    TERMS: tl.constexpr,
    RANK: tl.constexpr,
    DROP: tl.constexpr,
    RANK_FIRST: tl.constexpr,
):
    """total [rows, columns] + scale · Σ dropout(narrow @ factor), of one projection or of all."""
    ranks = tl.arange(0, RANK)
    inside = columns < width
    valid = rows < num_tokens
    if DROP:
        column_words = _column_words(columns)
    for term in tl.static_range(TERMS):
        projection = which + term
        states = tl.load(
            narrow + (projection * num_tokens + rows)[:, None] * rank + ranks[None, :],
            mask=valid[:, None] & (ranks < rank)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        places = ranks[:, None] * width + columns[None, :] if RANK_FIRST else columns[None, :] * rank + ranks[:, None]
        own = tl.load(pick(factors, projection) + places, mask=(ranks < rank)[:, None] & inside[None, :], other=0.0)
        values = tl.dot(states, own)
        if DROP:
            kept = _keep(_row_words(keys, rows, valid, pick(salts, projection)), column_words, threshold)
            values = tl.where(kept, values, 0.0)
        total += values * scale
    return total


@triton.jit(do_not_specialize=["num_tokens"])
def product_kernel(
    rows_0,  # TERMS of [T, depth], or descriptors of their tiles, which a tuple cannot hold
    rows_1,
    rows_2,
    weight_0,  # WEIGHTS, one an output or one a term; likewise
    weight_1,
    weight_2,
    outs,  # [T, width] each; or the one [parts, T, Σ width] in float32
    row_scales,  # float32 [T]
    scales,  # float32 [Σ width]
    narrow,
    factors,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    total_width,
    rank,
    depths,
    widths,
    column_stride,
    depth_stride,
    TERMS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ADDED: tl.constexpr,
    WHOLE: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_ROW_SCALES: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    RANK: tl.constexpr,
    DROP: tl.constexpr,
    RANK_FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BY_TILES: tl.constexpr,
    DEPTH_LAST: tl.constexpr,
    WAITS: tl.constexpr,
    LEADS: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    """Σ rows @ weightᵀ of one tile, over one part of the terms' channels. Whole sums get what adapters add."""
    if FOLLOWS:
        follow(WAITS, LEADS)
    num_row_tiles = tl.cdiv(num_tokens, BM)
    which, block, before = _place_of(tl.program_id(0) // num_row_tiles, widths, BN)
    part = tl.program_id(1)
    width = pick(widths, which)
    first_token = (tl.program_id(0) % num_row_tiles) * BM
    tokens = first_token + tl.arange(0, BM)
    valid = tokens < num_tokens
    # What is read twice is not stored.
    read = tl.minimum(tokens, num_tokens - 1)
    columns = block * BN + tl.arange(0, BN)
    channels = tl.arange(0, BK)
    num_blocks = 0
    for term in tl.static_range(TERMS):
        num_blocks += depths[term] // BK
    per_part = tl.cdiv(num_blocks, tl.num_programs(1))
    begin, end = part * per_part, tl.minimum((part + 1) * per_part, num_blocks)
    total = tl.zeros([BM, BN], dtype=tl.float32)
    first = 0
    rows = (rows_0, rows_1, rows_2)
    weights = (weight_0, weight_1, weight_2)
    for place in tl.static_range(WEIGHTS):
        depth = depths[place % TERMS]
        low, high = tl.maximum(begin - first, 0), tl.minimum(end - first, depth // BK)
        if TERMS == 1:
            high = tl.where(which == place, high, low)
        else:
            first += depth // BK
        if BY_TILES:
            for number in range(low, high):
                values = rows[place % TERMS].load([first_token, number * BK])
                if DEPTH_LAST:
                    numbers = weights[place].load([block * BN, number * BK]).T
                else:
                    numbers = weights[place].load([number * BK, block * BN])
                total = tl.dot(values, numbers, total)
        else:
            own_rows = rows[place % TERMS] + read[:, None] * depth + (low * BK + channels)[None, :]
            own_weights = weights[place] + columns[None, :] * column_stride + (low * BK + channels)[:, None] * depth_stride
            for _ in range(low, high):
                values = tl.load(own_rows)
                numbers = tl.load(own_weights) if EVEN else tl.load(own_weights, mask=(columns < width)[None, :], other=0.0)
                total = tl.dot(values, numbers, total)
                own_rows += BK
                own_weights += BK * depth_stride
    if FOLLOWS and not WAITS:
        follow(True, False)
    inside = valid[:, None] & (columns < width)[None, :]
    if not WHOLE:
        place = (part * num_tokens + tokens)[:, None] * total_width + before + columns[None, :]
        tl.store(outs[0] + place, total, mask=inside)
    else:
        if HAS_ROW_SCALES:
            total *= tl.load(row_scales + read)[:, None]
        if HAS_SCALES:
            total *= tl.load(scales + before + columns, mask=columns < width, other=0.0)[None, :]
        total = _with_adapters(
            total, narrow, factors, keys, salts, threshold, scale, num_tokens, rank, width, tokens, columns, which,
            ADDED, RANK, DROP, RANK_FIRST,
        )  # fmt: skip
        out = pick(outs, which)
        tl.store(out + tokens[:, None] * width + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def finish_kernel(
    parts,  # [parts, T, Σ width], float32
    outs,
    row_scales,
    scales,
    narrow,
    factors,
    keys,
    salts,
    threshold,
    scale,
    num_tokens,
    total_width,
    rank,
    widths,
    ADDED: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_ROW_SCALES: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    RANK: tl.constexpr,
    DROP: tl.constexpr,
    RANK_FIRST: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WAITS: tl.constexpr,
    LEADS: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    """The sum of a tile's parts, the first part first, and what adapters add."""
    if FOLLOWS:
        follow(WAITS, LEADS)
    which, block, before = _place_of(tl.program_id(0), widths, BLOCK)
    width = pick(widths, which)
    tokens = tl.program_id(1) * TILE + tl.arange(0, TILE)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = (tokens < num_tokens)[:, None] & (columns < width)[None, :]
    total = tl.zeros([TILE, BLOCK], dtype=tl.float32)
    place = tokens[:, None] * total_width + before + columns[None, :]
    for part in tl.static_range(PARTS):
        # From the L2 cache: what another kernel has written may not be in a multiprocessor's own yet.
        total += tl.load(parts + part * num_tokens * total_width + place, mask=inside, other=0.0, cache_modifier=".cg")
    if HAS_ROW_SCALES:
        total *= tl.load(row_scales + tokens, mask=tokens < num_tokens, other=0.0)[:, None]
    if HAS_SCALES:
        total *= tl.load(scales + before + columns, mask=columns < width, other=0.0)[None, :]
    total = _with_adapters(
        total, narrow, factors, keys, salts, threshold, scale, num_tokens, rank, width, tokens, columns, which,
        ADDED, RANK, DROP, RANK_FIRST,
    )  # fmt: skip
    out = pick(outs, which)
    tl.store(out + tokens[:, None] * width + columns[None, :], total.to(out.dtype.element_ty), mask=inside)
    if FOLLOWS and not WAITS:
        follow(True, False)


@triton.jit
def _gradient_tile(
    narrow,
    wide,
    out,
    end,
    keys,
    salt,
    threshold,
    scale,
    rank,
    width,
    block,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
    RANK_FIRST: tl.constexpr,
):
    """out = scale · narrowᵀ @ dropout(wide), [rank, columns] or transposed, of one block of columns."""
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    ranks = tl.arange(0, RANK)
    if DROP:
        column_words = _column_words(columns)
    total = tl.zeros([RANK, BLOCK], dtype=tl.float32)
    for start in range(0, end, TILE):
        rows = start + tl.arange(0, TILE)
        valid = rows < end
        values = tl.load(wide + rows[:, None] * width + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
        states = tl.load(
            narrow + rows[None, :] * rank + ranks[:, None], mask=(ranks < rank)[:, None] & valid[None, :], other=0.0
        )
        if DROP:
            values = tl.where(_keep(_row_words(keys, rows, valid, salt), column_words, threshold), values, 0.0)
        total = tl.dot(states, values, total)
    result = (total * scale).to(out.dtype.element_ty)
    there = (ranks < rank)[:, None] & inside[None, :]
    if RANK_FIRST:
        tl.store(out + ranks[:, None] * width + columns[None, :], result, mask=there)
    else:
        tl.store(out + columns[None, :] * rank + ranks[:, None], result, mask=there)


@triton.jit(do_not_specialize=["num_tokens"])
def gradients_kernel(
    x,
    grads,  # m of [T, width]
    z,  # [m, T, rank], as the next
    grad_z,
    grads_a,  # out: m of [rank, channels]
    grads_b,  # out: m of [width, rank]
    starts,
    keys,
    salts,
    threshold,
    scale_a,
    scale_b,
    num_tokens,
    channels,
    widths,
    rank,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROP: tl.constexpr,
    WAITS: tl.constexpr,
    LEADS: tl.constexpr,
    FOLLOWS: tl.constexpr,
):
    """Gradients of a or of b of one projection, for one block of columns."""
    if FOLLOWS:
        follow(WAITS, LEADS)
    number, block = tl.program_id(1), tl.program_id(0)
    end = tl.load(starts + 1)
    which = number // 2
    before = which * num_tokens * rank
    if number % 2 == 0:
        if block * BLOCK < channels:
            _gradient_tile(
                grad_z + before, x, pick(grads_a, which), end, keys, pick(salts, which), threshold, scale_a, rank, channels,
                block, TILE, RANK, BLOCK, DROP, True,
            )  # fmt: skip
    else:
        width = pick(widths, which)
        if block * BLOCK < width:
            _gradient_tile(
                z + before, pick(grads, which), pick(grads_b, which), end, keys, pick(salts, which), threshold, scale_b, rank,
                width, block, TILE, RANK, BLOCK, False, False,
            )  # fmt: skip

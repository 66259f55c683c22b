"""Triton kernels of what `math` has in PyTorch: dropout, SwiGLU together with the small matrix products of LoRA beside it, the gradients of
queries, keys and values turned back and joined, and the loss.

Each large tensor is read and written once; apart, LoRA's products would read it again. A program takes TOKENS x CHANNELS values; that of
the loss takes a row, and reads it twice.
"""

import os

import torch
import triton
import triton.language as tl

from xtuner_wulewule.model.fused.math import BITS

NAMES = "draw_masks drop add_dropped_product swiglu_project swiglu_backward"  # of `math` that are here, too
JOINS = "join_grouped join_listed"
ALWAYS = "cross_entropy"
CHANNELS, TOKENS = 64, 64  # multiples that widths and numbers of tokens must have
RANKS = 16, 32, 64  # more does not fit the registers
BLOCK = 1024
ASSEMBLY = torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"  # of Nvidia's cards
ROPED = 8  # tokens whose queries, keys and values a program joins
PROGRAMS = 512  # that keep a large GPU busy
ENTRIES, LANES = 16384, 1024  # of the vocabulary that a program reads at a time, and that have a maximum and a sum of their own
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _draw(mask, seed, threshold, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(tl.load(seed), place, 7)
    byte = _two(a, threshold) + _two(b, threshold) * 4 + _two(c, threshold) * 16 + _two(d, threshold) * 64
    tl.store(mask + place, byte.to(tl.uint8), mask=place < size)


@triton.jit
def _two(number, threshold):
    number = number.to(tl.uint32, bitcast=True)
    return ((number & 0xFFFF) >= threshold).to(tl.int32) + ((number >> 16) >= threshold).to(tl.int32) * 2


@triton.jit
def _kept(mask, token, channel, WIDTH: tl.constexpr):
    byte = tl.load(mask + (token // 8)[:, None] * WIDTH + channel[None, :])
    return ((byte >> (token % 8).to(tl.uint8)[:, None]) & 1) != 0


@triton.jit
def _drop(x, masks, out, scale, tokens, stride, WIDTH: tl.constexpr, COUNT: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    value = tl.load(x + token[:, None] * stride + channel[None, :]).to(tl.float32) * scale
    for number in tl.static_range(COUNT):
        kept = _kept(masks + number * (tokens // 8) * WIDTH, token, channel, WIDTH)
        tl.store(out + (number * tokens + token)[:, None] * WIDTH + channel[None, :], tl.where(kept, value, 0.0))


@triton.jit
def _add_dropped_product(
    x,
    stride,
    inner,
    inner_stride,
    a,
    masks,
    out,
    scale,
    tokens,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    COUNT: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.load(x + token[:, None] * stride + channel[None, :]).to(tl.float32)
    for number in tl.static_range(COUNT):
        rank = number * RANK + tl.arange(0, RANK)
        left = tl.load(inner + token[:, None] * inner_stride + rank[None, :])
        branch = tl.dot(left, tl.load(a + rank[:, None] * WIDTH + channel[None, :]), input_precision="ieee")
        kept = _kept(masks + number * (tokens // 8) * WIDTH, token, channel, WIDTH)
        total += tl.where(kept, branch * scale, 0.0)
    tl.store(out + token[:, None] * WIDTH + channel[None, :], total)


@triton.jit
def _held(x):
    # what made x of 16 bits is not computed once more in the layout of a product's operand, which Triton does, at 1.6 times the time
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)


@triton.jit
def _sigmoid(x, ASSEMBLY: tl.constexpr):
    if ASSEMBLY:  # Triton's own division is exact to the last bit, for a tenth of the kernels' time
        below = 1.0 + tl.exp2(x * -LOG2_E)
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [below], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.sigmoid(x)


@triton.jit
def _swiglu_project(
    wide,
    stride,
    outer,
    outer_stride,
    b,
    mask,
    a,
    act,
    act_stride,
    inner,
    inner_stride,
    scale,
    tokens,
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    ADAPTED: tl.constexpr,
    DROPPED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    rank = tl.arange(0, RANK)
    if ADAPTED:
        at_gate = tl.load(outer + token[:, None] * outer_stride + rank[None, :])
        at_up = tl.load(outer + token[:, None] * outer_stride + RANK + rank[None, :])
    total = tl.zeros([TOKENS, RANK], tl.float32)
    for begin in range(0, SPAN, CHANNELS):
        channel = tl.program_id(1) * SPAN + begin + tl.arange(0, CHANNELS)
        place = token[:, None] * stride + channel[None, :]
        gate, up = tl.load(wide + place).to(tl.float32), tl.load(wide + place + WIDTH).to(tl.float32)
        if ADAPTED:
            weight = b + channel[:, None] * RANK + rank[None, :]
            gate += tl.dot(at_gate, tl.trans(tl.load(weight)), input_precision="ieee")
            up += tl.dot(at_up, tl.trans(tl.load(weight + WIDTH * RANK)), input_precision="ieee")
        value = (gate * _sigmoid(gate, ASSEMBLY) * up).to(act.dtype.element_ty)
        tl.store(act + token[:, None] * act_stride + channel[None, :], value)
        if DROPPED:
            value = tl.where(_kept(mask, token, channel, WIDTH), value, 0.0)
        total = tl.dot(value, tl.trans(tl.load(a + rank[:, None] * WIDTH + channel[None, :])), total, input_precision="ieee")
    tl.store(inner + (tl.program_id(1) * tokens + token[:, None]) * inner_stride + rank[None, :], total * scale)


@triton.jit
def _swiglu_backward(
    of_act,
    act_stride,
    wide,
    stride,
    outer,
    outer_stride,
    b,
    mask,
    a,
    of_inner,
    inner_stride,
    of_wide,
    grads,
    scale,
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    ADAPTED: tl.constexpr,
    SHARED: tl.constexpr,
    DROPPED: tl.constexpr,
    HELD: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    rank = tl.arange(0, RANK)
    if ADAPTED:
        weight = b + channel[:, None] * RANK + rank[None, :]
        b_gate, b_up = tl.trans(tl.load(weight)), tl.trans(tl.load(weight + WIDTH * RANK))
    if SHARED:
        down = tl.load(a + rank[:, None] * WIDTH + channel[None, :])
    # gradients of A and B lie channels first: tensor cores take products of 64 rows at once, and a rank is often less
    of_a = tl.zeros([CHANNELS, RANK], tl.float32)
    of_b_gate = tl.zeros([CHANNELS, RANK], tl.float32)
    of_b_up = tl.zeros([CHANNELS, RANK], tl.float32)
    for begin in range(0, SPAN, TOKENS):
        token = (tl.program_id(1) * SPAN + begin + tl.arange(0, TOKENS)).to(tl.int64)
        place = token[:, None] * stride + channel[None, :]
        gate, up = tl.load(wide + place).to(tl.float32), tl.load(wide + place + WIDTH).to(tl.float32)
        grad = tl.load(of_act + token[:, None] * act_stride + channel[None, :]).to(tl.float32)
        at_gate = tl.load(outer + token[:, None] * outer_stride + rank[None, :])
        at_up = tl.load(outer + token[:, None] * outer_stride + RANK + rank[None, :])
        back = tl.load(of_inner + token[:, None] * inner_stride + rank[None, :])
        if ADAPTED:
            gate += tl.dot(at_gate, b_gate, input_precision="ieee")
            up += tl.dot(at_up, b_up, input_precision="ieee")
        if DROPPED:
            kept = _kept(mask, token, channel, WIDTH)
        if SHARED:
            share = tl.dot(back, down, input_precision="ieee") * scale
            if DROPPED:
                share = tl.where(kept, share, 0.0)
            grad += share
        sigmoid = _sigmoid(gate, ASSEMBLY)
        silu = gate * sigmoid
        of_gate = (grad * up * (sigmoid + silu * (1 - sigmoid))).to(of_wide.dtype.element_ty)
        of_up = (grad * silu).to(of_wide.dtype.element_ty)
        place = token[:, None] * (2 * WIDTH) + channel[None, :]
        tl.store(of_wide + place, of_gate)
        tl.store(of_wide + place + WIDTH, of_up)
        act = (silu * up).to(of_wide.dtype.element_ty)
        if DROPPED:
            act = tl.where(kept, act, 0.0)
        if HELD:
            act = _held(act)
        of_a = tl.dot(tl.trans(act), back, of_a, input_precision="ieee")
        of_b_gate = tl.dot(tl.trans(of_gate), at_gate, of_b_gate, input_precision="ieee")
        of_b_up = tl.dot(tl.trans(of_up), at_up, of_b_up, input_precision="ieee")
    place = (tl.program_id(1) * 3 * RANK + rank[None, :]) * WIDTH + channel[:, None]
    tl.store(grads + place, of_b_gate)
    tl.store(grads + place + RANK * WIDTH, of_b_up)
    tl.store(grads + place + 2 * RANK * WIDTH, of_a * scale)


@triton.jit
def _sum_parts(parts, out, stride, size, COLUMNS: tl.constexpr, PARTS: tl.constexpr, ADDED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    target = out + (place // COLUMNS).to(tl.int64) * stride + place % COLUMNS
    total = tl.load(target, mask=inside, other=0.0) if ADDED else tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * size + place, mask=inside, other=0.0)
    tl.store(target, total, mask=inside)


@triton.jit
def _join(
    q,
    k,
    v,
    cos,
    sin,
    out,
    QUERIES: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    GROUPED: tl.constexpr,
    TOKENS: tl.constexpr,
):
    WIDTH: tl.constexpr = 2 * HALF
    PER: tl.constexpr = QUERIES // GROUPS
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    channel = tl.arange(0, HALF)[None, :]
    place = token * WIDTH + channel
    cos_first, cos_second = tl.load(cos + place), tl.load(cos + place + HALF)
    sin_first, sin_second = tl.load(sin + place), tl.load(sin + place + HALF)
    begin = out + token * ((QUERIES + 2 * GROUPS) * WIDTH) + channel
    for head in range(QUERIES):
        source = q + (token * QUERIES + head) * WIDTH + channel
        slot = head // PER * (PER + 2) + head % PER if GROUPED else head
        _turn_back(source, begin + slot * WIDTH, cos_first, cos_second, sin_first, sin_second, HALF)
    for group in range(GROUPS):
        place = (token * GROUPS + group) * WIDTH + channel
        slot = group * (PER + 2) + PER if GROUPED else QUERIES + group
        _turn_back(k + place, begin + slot * WIDTH, cos_first, cos_second, sin_first, sin_second, HALF)
        slot = slot + 1 if GROUPED else slot + GROUPS
        tl.store(begin + slot * WIDTH, tl.load(v + place))
        tl.store(begin + slot * WIDTH + HALF, tl.load(v + place + HALF))


@triton.jit
def _turn_back(source, target, cos_first, cos_second, sin_first, sin_second, HALF: tl.constexpr):
    first, second = tl.load(source).to(tl.float32), tl.load(source + HALF).to(tl.float32)
    tl.store(target, first * cos_first + second * sin_second)
    tl.store(target + HALF, second * cos_second - first * sin_first)


@triton.jit
def _cross_entropy(
    logits,
    stride,
    share,
    targets,
    weight,
    losses,
    VOCABULARY: tl.constexpr,
    ENTRIES: tl.constexpr,
    LANES: tl.constexpr,
    SHARED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target, factor = tl.load(targets + row), tl.load(weight)
    entry = tl.arange(0, LANES)[:, None] * (ENTRIES // LANES) + tl.arange(0, ENTRIES // LANES)[None, :]
    logits += row * stride
    share += row * VOCABULARY
    highest, total = tl.full([LANES], -1e30, tl.float32), tl.zeros([LANES], tl.float32)
    picked = _logits(logits, share, tl.maximum(target, 0), VOCABULARY, SHARED)  # before the barriers after which it is overwritten
    for begin in range(0, VOCABULARY, ENTRIES):
        x = _logits(logits, share, begin + entry, VOCABULARY, SHARED)
        higher = tl.maximum(highest, tl.max(x, 1))
        total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(x - higher[:, None]), 1)
        highest = higher
    top = tl.max(highest, 0)
    norm = top + tl.log2(tl.sum(total * tl.exp2(highest - top), 0))
    trained = target >= 0
    tl.store(losses + row, tl.where(trained, (norm - picked) / LOG2_E * factor, 0.0))
    factor = tl.where(trained, factor, 0.0)
    for begin in range(0, VOCABULARY, ENTRIES):
        place = begin + entry
        chance = tl.exp2(_logits(logits, share, place, VOCABULARY, SHARED) - norm)
        tl.store(logits + place, (chance - tl.where(place == target, 1.0, 0.0)) * factor, mask=place < VOCABULARY)


@triton.jit
def _logits(logits, share, place, VOCABULARY: tl.constexpr, SHARED: tl.constexpr):
    x = tl.load(logits + place, mask=place < VOCABULARY, other=-float("inf")).to(tl.float32)
    if SHARED:
        x += tl.load(share + place, mask=place < VOCABULARY, other=0.0).to(tl.float32)
    return x * LOG2_E


def serves(width, rank):
    """Return whether tensors of so many channels, with LoRA of a rank, can be given to the kernels of `NAMES`."""
    return width % CHANNELS == 0 and rank in RANKS


def joins(head):
    """Return whether heads of so many channels can be given to the kernels of `JOINS`."""
    return head >= 16 and head & (head - 1) == 0


def draw_masks(x, count, p):
    """As `math.draw_masks`, p rounded to 1/65536: from Philox's numbers of 7 rounds (Salmon et al. 2011), of a seed that torch draws."""
    masks = torch.empty(count, len(x) // BITS, x.shape[1], dtype=torch.uint8, device=x.device)
    seed = torch.randint(2**31 - 1, (1,), device=x.device)
    _draw[(triton.cdiv(masks.numel(), BLOCK),)](masks, seed, round(p * 2**16), masks.numel(), BLOCK=BLOCK)
    return masks


def drop(x, masks, p):
    """As `math.drop`."""
    (tokens, width), count = x.shape, len(masks)
    out = torch.empty(count, tokens, width, dtype=x.dtype, device=x.device)
    shape = dict(WIDTH=width, COUNT=count, TOKENS=TOKENS // 2, CHANNELS=CHANNELS)
    _drop[(2 * tokens // TOKENS, width // CHANNELS)](x, masks, out, 1 / (1 - p), tokens, x.stride(0), **shape)
    return out


def add_dropped_product(x, inner, a, masks, p):
    """As `math.add_dropped_product`."""
    (tokens, width), count = x.shape, len(masks)
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    shape = dict(WIDTH=width, RANK=len(a) // count, COUNT=count, TOKENS=TOKENS, CHANNELS=CHANNELS)
    _add_dropped_product[(tokens // TOKENS, width // CHANNELS)](
        x, x.stride(0), inner, inner.stride(0), a, masks, out, 1 / (1 - p), tokens, **shape
    )
    return out


def swiglu_project(wide, outer, b, mask, a, p, act, inner):
    """As `math.swiglu_project`."""
    tokens, width, rank = len(wide), wide.shape[1] // 2, len(a)
    given = dict(ADAPTED=b is not None, DROPPED=mask is not None, ASSEMBLY=ASSEMBLY)
    light = b is None and wide.dtype != torch.float32  # three stages of fp32 would not fit the shared memory
    wider = width % (2 * CHANNELS) == 0 and not light
    channels, stages = 2 * CHANNELS if wider else CHANNELS, 3 if light else 2  # the fastest of a dozen on an H100, as in `swiglu_backward`
    programs = tokens // TOKENS
    whole = rank <= 32 and programs >= PROGRAMS  # each program sums over all channels
    parts = 1 if whole else _parts(width, channels, 4)
    sums = inner if whole else torch.empty(parts, tokens, rank, device=wide.device)
    shape = dict(SPAN=width // parts, WIDTH=width, RANK=rank, TOKENS=TOKENS, CHANNELS=channels)
    _swiglu_project[(programs, parts)](
        *(wide, wide.stride(0), outer, outer.stride(0), b, mask, a, act, act.stride(0), sums, sums.stride(-2), 1 / (1 - p), tokens),
        **given,
        **shape,
        num_stages=stages,
    )
    if not whole:
        _sum(sums, inner)


def swiglu_backward(of_act, wide, outer, b, mask, a, of_inner, p, sums):
    """As `math.swiglu_backward`."""
    (tokens, width), rank = of_act.shape, of_inner.shape[1]
    adapted, half = b is not None, wide.dtype != torch.float32
    given = dict(
        ADAPTED=adapted, SHARED=a is not None, DROPPED=mask is not None, HELD=half and mask is None and ASSEMBLY, ASSEMBLY=ASSEMBLY
    )
    parts = _parts(tokens, TOKENS, 8)
    of_wide = torch.empty(wide.shape, dtype=wide.dtype, device=wide.device)
    grads = torch.empty(parts, 3, rank, width, device=wide.device)
    block, channels, stages = (TOKENS, CHANNELS, 2) if adapted else (TOKENS // 2, CHANNELS, 3)
    if half and not adapted and mask is None and rank <= 32 and width % (2 * CHANNELS) == 0:
        block, channels, stages = TOKENS // 4, 2 * CHANNELS, 4  # more sums of a higher rank would not fit the registers
    shape = dict(SPAN=tokens // parts, WIDTH=width, RANK=rank, TOKENS=block, CHANNELS=channels)
    grid = width // channels, parts
    _swiglu_backward[grid](
        *(of_act, of_act.stride(0), wide, wide.stride(0), outer, outer.stride(0), b, mask, a, of_inner, of_inner.stride(0)),
        *(of_wide, grads, 1 / (1 - p)),
        **given,
        **shape,
        num_stages=stages,
    )
    _sum(grads.view(parts, 3 * rank, width), sums.view(3 * rank, width), added=True)
    return of_wide


def _sum(parts, out, added=False):
    """Write the sum of parts (parts, rows, columns) to a tensor (rows, columns), or add it."""
    size = out.numel()
    shape = dict(COLUMNS=out.shape[1], PARTS=len(parts), ADDED=added, BLOCK=BLOCK)
    _sum_parts[(triton.cdiv(size, BLOCK),)](parts, out, out.stride(0), size, **shape)


def cross_entropy(logits, share, targets, weight):
    """As `math.cross_entropy`; the gradient is written over the logits, most of which a second reading finds in the cache."""
    losses = torch.empty(len(logits), device=logits.device)
    given = dict(VOCABULARY=logits.shape[1], ENTRIES=ENTRIES, LANES=LANES, SHARED=share is not None)
    beside = logits if share is None else share
    _cross_entropy[(len(logits),)](logits, logits.stride(0), beside, targets, weight, losses, **given, num_warps=32)
    return losses.sum(), logits


def _parts(size, block, parts):
    while size % (block * parts):
        parts //= 2
    return parts


def join_grouped(q, k, v, cos, sin, heads):
    """As `math.join_grouped`."""
    return _joined(q, k, v, cos, sin, heads, grouped=True)


def join_listed(q, k, v, cos, sin, heads):
    """As `math.join_listed`."""
    return _joined(q, k, v, cos, sin, heads, grouped=False)


def _joined(q, k, v, cos, sin, heads, grouped):
    (queries, groups, width), tokens = heads, len(q)
    out = torch.empty(tokens, (queries + 2 * groups) * width, dtype=q.dtype, device=q.device)
    shape = dict(QUERIES=queries, GROUPS=groups, HALF=width // 2, GROUPED=grouped, TOKENS=ROPED)
    _join[(tokens // ROPED,)](*(x.contiguous() for x in (q, k, v, cos, sin)), out, **shape)
    return out

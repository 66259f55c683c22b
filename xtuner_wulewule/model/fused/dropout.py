"""Dropout by masks of one bit a value, drawn once: Triton kernels for a GPU. `math` has the same in PyTorch."""

import torch
import triton
import triton.language as tl

BLOCK = 512  # bytes of the mask, each for eight values, that a program works on


@triton.jit
def _draw(mask, seed, threshold, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    half = tl.arange(0, 2)[None, :]
    a, b, c, d = tl.randint4x(tl.load(seed), place[:, None] * 2 + half)
    four = (_kept(a, threshold) + _kept(b, threshold) * 2 + _kept(c, threshold) * 4 + _kept(d, threshold) * 8) << (4 * half)
    tl.store(mask + place, tl.sum(four, 1).to(tl.uint8), mask=place < size)


@triton.jit
def _kept(number, threshold):
    return (number.to(tl.uint32, bitcast=True) >= threshold).to(tl.int32)


@triton.jit
def _drop(x, mask, out, scale, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (place < size)[:, None]
    bit = tl.arange(0, 8)[None, :]
    kept = (tl.load(mask + place, mask=place < size, other=0)[:, None].to(tl.int32) >> bit) & 1
    values = tl.load(x + place[:, None] * 8 + bit, mask=inside).to(tl.float32)
    tl.store(out + place[:, None] * 8 + bit, tl.where(kept != 0, values * scale, 0.0), mask=inside)


@triton.jit
def _add_dropped(x, branch, mask, out, scale, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (place < size)[:, None]
    bit = tl.arange(0, 8)[None, :]
    kept = (tl.load(mask + place, mask=place < size, other=0)[:, None].to(tl.int32) >> bit) & 1
    values = tl.load(branch + place[:, None] * 8 + bit, mask=inside).to(tl.float32)
    values = tl.load(x + place[:, None] * 8 + bit, mask=inside).to(tl.float32) + tl.where(kept != 0, values * scale, 0.0)
    tl.store(out + place[:, None] * 8 + bit, values, mask=inside)


def draw_mask(x, p):
    """As `math.draw_mask`; the random numbers are Philox's, of a seed that torch draws."""
    mask = torch.empty(len(x), x.shape[1] // 8, dtype=torch.uint8, device=x.device)
    seed = torch.randint(2**31 - 1, (1,), device=x.device)
    _draw[(triton.cdiv(mask.numel(), BLOCK),)](mask, seed, round(p * 2**32), mask.numel(), BLOCK=BLOCK)
    return mask


def drop(x, mask, p):
    """As `math.drop`."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _drop[(triton.cdiv(mask.numel(), BLOCK),)](x, mask, out, 1 / (1 - p), mask.numel(), BLOCK=BLOCK)
    return out


def add_dropped(x, branch, mask, p):
    """As `math.add_dropped`."""
    out = torch.empty_like(x)
    _add_dropped[(triton.cdiv(mask.numel(), BLOCK),)](x, branch, mask, out, 1 / (1 - p), mask.numel(), BLOCK=BLOCK)
    return out

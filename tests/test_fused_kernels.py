"""The Triton kernels of the fused step, in Triton's interpreter, against the same in PyTorch."""

import os
import subprocess
import sys

import pytest
import torch

from xtuner_wulewule.model.fused.math import OLDEST_TRITON, triton_release

SCRIPT = """
from itertools import product

import torch
from xtuner_wulewule.model.fused import kernels, math

def same(found, expected):
    assert found.shape == expected.shape and (found - expected).norm() <= 1e-6 * expected.norm()

def wider(x):
    return torch.cat([x, x], 1)[:, : x.shape[1]]

torch.manual_seed(0)
tokens, width, rank, p = 128, 192, 16, 0.1
x, a = torch.randn(tokens, width), torch.randn(rank, width)
masks = kernels.draw_masks(x, 2, p)
mask = masks[:1]
wide = torch.randn(tokens, 2 * width + 32)[:, : 2 * width]
for values in (x, wide[:, width:]):
    assert torch.equal(kernels.drop(values, masks, p), math.drop(values, masks, p))
outer, b, inner = torch.randn(tokens, 2 * rank), torch.randn(2 * width, rank), torch.randn(tokens, rank)
arguments = x, outer, torch.randn(2 * rank, width), masks, p
same(kernels.add_dropped_product(*arguments), math.add_dropped_product(*arguments))
part = torch.randn(tokens, width + 2 * rank)[:, :width]  # as a product with more columns leaves it
same(kernels.add_dropped_product(part, *arguments[1:]), math.add_dropped_product(part, *arguments[1:]))
acts = torch.empty(tokens, width), torch.empty(tokens, width + 32)[:, :width]
space = torch.empty(tokens, rank + 8)
for outers, second, one, rate, act in product((outer, wider(outer)), (b, None), (mask, None), (p,), acts):
    arguments = wide, outers, second, one, a, rate if one is not None else 0.0
    expected_act, expected_inner = torch.empty(tokens, width), torch.empty(tokens, rank)
    math.swiglu_project(*arguments, expected_act, expected_inner)
    for kernels.PROGRAMS in (512, 1):  # the sums in parts, and whole
        act.zero_(), space.zero_()
        kernels.swiglu_project(*arguments, act, space[:, :rank])
        same(act, expected_act)
        same(space[:, :rank], expected_inner)
        assert not space[:, rank:].any()
for first, second, third, one in product((x, part), (b, None), (a, None), (mask, None)):
    arguments = first, wide, outer, second, one, third, inner, p if one is not None else 0.0
    found_sums, sums = torch.ones(3, rank, width), torch.ones(3, rank, width)
    same(kernels.swiglu_backward(*arguments, found_sums), math.swiglu_backward(*arguments, sums))
    same(found_sums, sums)
# inputs of other strides, as parts of larger products
arguments = x, wide, wider(outer), b, mask, a, wider(inner), 0.1
same(kernels.swiglu_backward(*arguments, found_sums), math.swiglu_backward(*arguments, sums))
same(found_sums, sums)
arguments = x, wider(outer), torch.randn(2 * rank, width), masks, 0.1
same(kernels.add_dropped_product(*arguments), math.add_dropped_product(*arguments))
for queries, groups in ((6, 2), (3, 3)):
    q, k, v = (torch.randn(24, heads, 16) for heads in (queries, groups, groups))
    arguments = q, k, v.transpose(0, 1).contiguous().transpose(0, 1), torch.randn(24, 16), torch.randn(24, 16), (queries, groups, 16)
    for name in ("join_grouped", "join_listed"):
        same(getattr(kernels, name)(*arguments), getattr(math, name)(*arguments))
for entries, at_once in ((300, 16384), (300, 1024), (1024, 1024), (2500, 1024)):
    kernels.ENTRIES, kernels.LANES = at_once, at_once // 16
    logits, share = torch.randn(24, entries) * 9, torch.randn(24, entries)
    targets = torch.randint(-1, entries, (24,))
    targets[:4] = torch.tensor([-100, 0, entries - 1, -100])
    for one in (share, None):
        expected_loss, expected = math.cross_entropy(logits, one, targets, torch.tensor(0.3))
        loss, found = kernels.cross_entropy(logits.clone(), one, targets, torch.tensor(0.3))
        assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss)
        same(found, expected)
        assert not found[targets < 0].any()
        wider_logits = torch.cat([logits, torch.ones(24, 5)], 1)
        same(kernels.cross_entropy(wider_logits[:, :entries], one, targets, torch.tensor(0.3))[1], expected)
        assert bool((wider_logits[:, entries:] == 1).all())
for p in (0.1, 0.6):
    ones = torch.ones(2048, 64)
    kept = list(kernels.drop(ones, kernels.draw_masks(ones, 2, p), p) != 0)
    error = (p * (1 - p) / ones.numel()) ** 0.5
    for one in kept:
        assert abs(float(one.float().mean()) - (1 - p)) < 5 * error
        assert float((one.float().mean(0) - (1 - p)).abs().max()) < 5 * (p * (1 - p) / 2048) ** 0.5
    for other in (kept[1], kept[0].roll(1, 1), *(kept[0].roll(tokens, 0) for tokens in (1, 2, 4))):
        assert abs(float((~kept[0] & ~other).float().mean()) - p * p) < 5 * p / ones.numel() ** 0.5
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.skipif(triton_release() < OLDEST_TRITON, reason="this Triton does not serve")
def test_kernels():
    result = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

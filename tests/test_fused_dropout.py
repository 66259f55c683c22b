"""The Triton kernels of the dropout, in Triton's interpreter, against the same in PyTorch."""

import os
import subprocess
import sys

import pytest
import torch

from xtuner_wulewule.model.fused.math import OLDEST_TRITON, triton_release

SCRIPT = """
import torch
from xtuner_wulewule.model.fused import dropout, math
torch.manual_seed(0)
x = torch.randn(100, 72)
mask = dropout.draw_mask(x, 0.1)
assert torch.equal(dropout.drop(x, mask, 0.1), math.drop(x, mask, 0.1))
assert torch.allclose(dropout.add_dropped(x, x + 1, mask, 0.1), math.add_dropped(x, x + 1, mask, 0.1))
for p in (0.1, 0.6):
    ones = torch.ones(2000, 64)
    kept = [dropout.drop(ones, dropout.draw_mask(ones, p), p) != 0 for _ in range(2)]
    error = (p * (1 - p) / ones.numel()) ** 0.5
    for one in kept:
        assert abs(float(one.float().mean()) - (1 - p)) < 5 * error
        assert float((one.float().mean(0) - (1 - p)).abs().max()) < 5 * (p * (1 - p) / 2000) ** 0.5
    for other in (kept[1], kept[0].roll(1, 1), kept[0].roll(1, 0)):
        assert abs(float((~kept[0] & ~other).float().mean()) - p * p) < 5 * p / ones.numel() ** 0.5
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.skipif(triton_release() < OLDEST_TRITON, reason="this Triton does not serve")
def test_kernels_of_dropout():
    result = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

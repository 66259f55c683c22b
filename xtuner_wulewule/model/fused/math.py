"""The element-wise parts of a decoder, forward and backward. Plain PyTorch: `compiled` makes one kernel of each on a GPU.

Shapes: T tokens, H heads, D channels a head, V entries of the vocabulary. Everything is computed in fp32 and returned in the type of the
matrix products.
"""

import importlib.metadata

import torch


def add_rms_norm(x, y, weight, eps, dtype):
    """Return x + y (T, channels), in the type of x, and that normed: Zhang and Sennrich 2019."""
    x = (x.float() + y.float()).to(x.dtype)
    h = x.float()
    return x, (weight * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps))).to(dtype)


def rms_norm_backward(grad, passed_by, x, weight, eps):
    """Return the gradient of x, that of the residual which passed by the norm added; the same in the type of `grad`; and x normed again."""
    h, g = x.float(), grad.float() * weight
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    h = h * scale
    of_x = passed_by.float() + scale * (g - h * (g * h).mean(-1, keepdim=True))
    return of_x.to(passed_by.dtype), of_x.to(grad.dtype), (weight * h).to(grad.dtype)


def swiglu(both):
    """Return silu(gate) * up of `both` (T, 2 * channels), the gate first: Shazeer 2020."""
    gate, up = both.float().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(both.dtype)


def swiglu_backward(grad, both):
    """Return the gradient of `both`, and silu(gate) * up once more."""
    (gate, up), grad = both.float().chunk(2, -1), grad.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    of_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat([of_gate, grad * silu], -1).to(both.dtype), (silu * up).to(both.dtype)


def _turned(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rope(x, cos, sin):
    """Return x (T, H, D) turned by its positions: Su et al. 2021. cos and sin are (T, D)."""
    h, cos, sin = x.float(), cos[:, None], sin[:, None]
    return (h * cos + _turned(h) * sin).to(x.dtype)


def rope_backward(grad, cos, sin):
    """Return the gradient of x."""
    g, cos, sin = grad.float(), cos[:, None], sin[:, None]
    return (g * cos - _turned(g * sin)).to(grad.dtype)


def split_grouped(qkv, cos, sin, heads):
    """Return turned queries, turned keys and values of InternLM2's layout: (T, groups, queries of a group + key + value, D)."""
    queries, groups, width = heads
    qkv = qkv.view(len(qkv), groups, queries // groups + 2, width)
    q, k, v = qkv[:, :, :-2].reshape(len(qkv), queries, width), qkv[:, :, -2], qkv[:, :, -1]
    return rope(q, cos, sin), rope(k, cos, sin), v.contiguous()


def join_grouped(q, k, v, cos, sin, heads):
    """Return the gradient of what `split_grouped` took (T, channels) from those of what it gave."""
    queries, groups, width = heads
    q = rope_backward(q, cos, sin).view(len(q), groups, queries // groups, width)
    return torch.cat([q, rope_backward(k, cos, sin)[:, :, None], v[:, :, None]], 2).flatten(1)


def split_listed(qkv, cos, sin, heads):
    """As `split_grouped`, of all queries, then all keys, then all values, as the Llama family has them."""
    queries, groups, width = heads
    q, k, v = qkv.view(len(qkv), -1, width).split([queries, groups, groups], 1)
    return rope(q, cos, sin), rope(k, cos, sin), v.contiguous()


def join_listed(q, k, v, cos, sin, heads):
    """As `join_grouped`, for `split_listed`."""
    return torch.cat([rope_backward(q, cos, sin), rope_backward(k, cos, sin), v], 1).flatten(1)


def cross_entropy(logits, targets, weight):
    """Return the sum of the losses times `weight`, and its gradient by the logits.

    Args:
        logits (torch.Tensor): (T, V).
        targets (torch.Tensor): (T,), -100 where not trained.
        weight (torch.Tensor): a number.
    """
    x = logits.float()
    trained = targets >= 0
    highest = x.amax(-1, keepdim=True)
    norm = highest + (x - highest).exp().sum(-1, keepdim=True).log()
    picked = x.gather(-1, targets.clamp(min=0)[:, None])
    loss = (torch.where(trained[:, None], norm - picked, 0.0)).sum() * weight
    hit = torch.arange(x.shape[-1], device=x.device) == targets[:, None]
    grad = ((x - norm).exp() - hit.float()) * torch.where(trained[:, None], weight, 0.0)
    return loss, grad.to(logits.dtype)


OPTIONS = {"max_pointwise_cat_inputs": 0}  # one kernel writes all parts of what is joined, instead of asking of each value where it lies
NO_TRITON = (0,)
OLDEST_TRITON = (3, 3)  # 3.1 was seen to compute the kernels of `dropout` wrong, in its interpreter
BITS = 8


def draw_mask(x, p):
    """Return bits (uint8, (T, channels / 8)): set where dropout at rate p keeps a value of x (T, channels)."""
    kept = torch.rand(len(x), x.shape[1] // BITS, BITS, device=x.device) >= p
    powers = 2 ** torch.arange(BITS, device=x.device, dtype=torch.int32)
    return (kept * powers).sum(-1).to(torch.uint8)


def drop(x, mask, p):
    """Return x (T, channels) with dropout by a mask that `draw_mask` drew."""
    kept = (mask[..., None] >> torch.arange(BITS, device=x.device, dtype=torch.uint8)) & 1
    return torch.where(kept.view(x.shape) != 0, x.float() * (1 / (1 - p)), 0.0).to(x.dtype)


def add_dropped(x, branch, mask, p):
    """Return x plus the branch (T, channels) with dropout."""
    return (x.float() + drop(branch.float(), mask, p)).to(x.dtype)


class Kernels:
    """The functions of this module as attributes, each one kernel or two where `compiled`.

    Args:
        compiled (bool): whether torch.compile is used.
    """

    NAMES = (
        "add_rms_norm rms_norm_backward swiglu swiglu_backward split_grouped join_grouped split_listed join_listed cross_entropy draw_mask "
        "drop add_dropped"
    )

    def __init__(self, compiled):
        for name in self.NAMES.split():
            setattr(self, name, torch.compile(globals()[name], options=OPTIONS) if compiled else globals()[name])
        if compiled and triton_release() >= OLDEST_TRITON:
            from xtuner_wulewule.model.fused import dropout

            self.draw_mask, self.drop, self.add_dropped = dropout.draw_mask, dropout.drop, dropout.add_dropped


def triton_release():
    """Return the release of Triton (tuple[int, ...]), `NO_TRITON` where it is not installed."""
    try:
        return tuple(int(number) for number in importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return NO_TRITON

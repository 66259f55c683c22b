"""The element-wise parts of a decoder, forward and backward. Plain PyTorch: `compiled` makes one kernel of each on a GPU.

Shapes: T tokens, H heads, D channels a head, V entries of the vocabulary. Everything is computed in fp32 and returned in the type of the
matrix products. A `share` is what LoRA adds to the argument before it (its shape; None where there is nothing to add): both are rounded
already, and only their sum in fp32 keeps a small one (docs/decisions.md). Not in the values of attention, which are that sum rounded, in
XTuner's model as well.
"""

import functools
import importlib.metadata

import torch


def _added(x, share):
    return x.float() if share is None else x.float() + share.float()


def add_rms_norm(x, y, share, weight, eps, normed):
    """Return x + y (T, channels), in the type of x, and its scale (T, 1), for the backward; write it normed: Zhang and Sennrich 2019.

    Args: besides
        normed (torch.Tensor): where to write (T, channels).
    """
    x = (x.float() + _added(y, share)).to(x.dtype)
    h = x.float()
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    normed.copy_(weight * (h * scale))
    return x, scale


def rms_norm_backward(grad, share, passed_by, normed, scale, weight, of_x):
    """Write the gradient of x, that of the residual which passed by the norm added.

    x is not needed: x * scale is `normed` / weight.

    Args: besides
        of_x (torch.Tensor): where to write (T, channels).
    """
    g, n = _added(grad, share), normed.float()
    h = torch.where(weight == 0, 0.0, n / weight)
    of_x.copy_(passed_by.float() + scale * (g * weight - h * (g * n).mean(-1, keepdim=True)))


def swiglu(both):
    """Return silu(gate) * up of `both` (T, 2 * channels), the gate first: Shazeer 2020."""
    gate, up = both.float().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(both.dtype)


def swiglu_project(wide, outer, b, mask, a, p, act, inner):
    """Write SwiGLU of two adapted projections, and A x of the next adapter.

    Args:
        wide (torch.Tensor): gate and up (T, 2 * channels), without LoRA where there is a b.
        outer (torch.Tensor): A x of both adapters (T, 2 * rank), with their dropout.
        b (torch.Tensor | None): B of both (2 * channels, rank).
        mask (torch.Tensor | None): of the next adapter's dropout, as `draw_masks` drew it (1, T / 8, channels); None without dropout.
        a (torch.Tensor): A of the next adapter (rank, channels).
        p (float): rate of the dropout.
        act (torch.Tensor): where to write SwiGLU (T, channels).
        inner (torch.Tensor): where to write A x (T, rank).
    """
    value = swiglu(wide if b is None else _adapted(wide, outer, b)).to(wide.dtype)
    act.copy_(value)
    inner.copy_(_dropped(value, mask, p) @ a.t())


def swiglu_backward(of_act, wide, outer, b, mask, a, of_inner, p, sums):
    """Return the gradient of `wide`; add those of the adapters.

    Args: as of `swiglu_project`, and
        of_act (torch.Tensor): the gradient of SwiGLU's result (T, channels), the next adapter's share left out where there is an a.
        a (torch.Tensor | None): A of the next adapter (rank, channels).
        of_inner (torch.Tensor): that of what the next adapter took (T, rank).
        sums (torch.Tensor): the gradients of B of both, transposed, and of A of the next adapter are added to it, fp32 (3, rank, channels).
    """
    adapted, grad = wide.float(), of_act.float()
    if b is not None:
        adapted = _adapted(wide, outer, b)
    if a is not None:
        grad = grad + _dropped(of_inner @ a, mask, p).float()
    gate, up = adapted.chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    of_gate, of_up = (grad * up * (sigmoid + silu * (1 - sigmoid))).to(wide.dtype), (grad * silu).to(wide.dtype)
    act = _dropped((silu * up).to(wide.dtype), mask, p)
    inputs, grads = outer.chunk(2, -1), (of_gate, of_up)
    of_b = [inner.t() @ part for inner, part in zip(inputs, grads, strict=True)]
    sums += torch.stack([*of_b, of_inner.t() @ act])
    return torch.cat([of_gate, of_up], -1)


def _dropped(x, mask, p):
    """Return x (T, channels) with dropout by a mask that `draw_masks` drew (1, T / 8, channels), x itself where that is None."""
    return x if mask is None else drop(x, mask, p)[0]


def _adapted(wide, outer, b):
    """Return gate and up with LoRA (T, 2 * channels), in fp32: rounded to bf16, the sum would often be what it was without LoRA."""
    both = [inner @ part.t() for inner, part in zip(outer.chunk(2, -1), b.chunk(2), strict=True)]
    return wide.float() + torch.cat(both, -1).float()


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


def split_grouped(qkv, share, cos, sin, heads, values=True):
    """Return turned queries, turned keys and values of InternLM2's layout: (T, groups, queries of a group + key + value, D).

    Args: besides
        values (bool): whether the values are copied; else None is returned for them, and `values_grouped` has them where they are.
    """
    (queries, groups, width), dtype = heads, qkv.dtype
    all_of_a_group = _added(qkv, share).view(len(qkv), groups, queries // groups + 2, width)
    q, k, v = all_of_a_group[:, :, :-2].reshape(len(qkv), queries, width), all_of_a_group[:, :, -2], all_of_a_group[:, :, -1]
    return _turned_queries_and_keys(q, k, v if values else None, cos, sin, dtype)


def _turned_queries_and_keys(q, k, v, cos, sin, dtype):
    return rope(q, cos, sin).to(dtype), rope(k, cos, sin).to(dtype), None if v is None else v.to(dtype).contiguous()


def values_grouped(qkv, heads):
    """Return the values (T, groups, D), a part of what `split_grouped` takes."""
    queries, groups, width = heads
    return qkv.view(len(qkv), groups, queries // groups + 2, width)[:, :, -1]


def join_grouped(q, k, v, cos, sin, heads):
    """Return the gradient of what `split_grouped` took (T, channels) from those of what it gave."""
    queries, groups, width = heads
    q = rope_backward(q, cos, sin).view(len(q), groups, queries // groups, width)
    return torch.cat([q, rope_backward(k, cos, sin)[:, :, None], v[:, :, None]], 2).flatten(1)


def split_listed(qkv, share, cos, sin, heads, values=True):
    """As `split_grouped`, of all queries, then all keys, then all values, as the Llama family has them."""
    (queries, groups, width), dtype = heads, qkv.dtype
    q, k, v = _added(qkv, share).view(len(qkv), -1, width).split([queries, groups, groups], 1)
    return _turned_queries_and_keys(q, k, v if values else None, cos, sin, dtype)


def values_listed(qkv, heads):
    """As `values_grouped`, for `split_listed`."""
    _, groups, width = heads
    return qkv.view(len(qkv), -1, width)[:, -groups:]


def join_listed(q, k, v, cos, sin, heads):
    """As `join_grouped`, for `split_listed`."""
    return torch.cat([rope_backward(q, cos, sin), rope_backward(k, cos, sin), v], 1).flatten(1)


def cross_entropy(logits, share, targets, weight):
    """Return the sum of the losses times `weight`, and its gradient by the logits.

    Args:
        logits, share (torch.Tensor): (T, V).
        targets (torch.Tensor): (T,), -100 where not trained.
        weight (torch.Tensor): a number.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: the sum, and the gradient (T, V), which may lie where the logits did.
    """
    x = _added(logits, share)
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
OLDEST_TRITON = (3, 3)  # 3.1 was seen to compute the kernels of dropout wrong, in its interpreter
BITS = 8
SHAPES = 192  # numbers of tokens that are compiled for, three times that: with a share and without, and with room for A x beside


def draw_masks(x, count, p):
    """Return bits (uint8, (count, T / 8 rounded up, channels)): set where dropout at rate p keeps a value of x (T, channels).

    A byte is for eight tokens.
    """
    kept = torch.rand(count, -(-len(x) // BITS), BITS, x.shape[1], device=x.device) >= p
    powers = 2 ** torch.arange(BITS, device=x.device, dtype=torch.int32)
    return (kept * powers[:, None]).sum(2).to(torch.uint8)


def drop(x, masks, p):
    """Return x (T, channels) with dropout by each of the masks that `draw_masks` drew (count, T, channels)."""
    kept = (masks[:, :, None] >> torch.arange(BITS, device=x.device, dtype=torch.uint8)[:, None]) & 1
    return torch.where(kept.flatten(1, 2)[:, : len(x)] != 0, x.float() * (1 / (1 - p)), 0.0).to(x.dtype)


def add_dropped_product(x, inner, a, masks, p):
    """Return x (T, channels) plus, for each mask, dropout of a product: of `inner` (T, count * rank) and a (count * rank, channels)."""
    parts = zip(inner.chunk(len(masks), 1), a.chunk(len(masks)), masks.split(1), strict=True)
    return (x.float() + sum(drop(one @ two, mask, p)[0].float() for one, two, mask in parts)).to(x.dtype)


class Kernels:
    """The functions of this module as attributes, each one kernel or a few where `compiled`.

    They are compiled for the very shapes that are met: what serves any shape is at times compiled anew while a graph is recorded, which
    CUDA refuses.

    Args:
        compiled (bool): whether torch.compile is used, and Triton where it is recent enough.

    Attributes:
        overwriting (bool): whether the gradient of the logits is written over them, and chunks may be of any size.
    """

    NAMES = (
        "add_rms_norm rms_norm_backward swiglu swiglu_project swiglu_backward split_grouped join_grouped split_listed join_listed "
        "cross_entropy draw_masks drop add_dropped_product"
    )

    def __init__(self, compiled):
        self.compiled, self.overwriting = compiled, False
        if compiled:
            _allow_shapes()
        for name in self.NAMES.split():
            setattr(self, name, _compiled(name) if compiled else globals()[name])

    def take_triton(self, widths, rank, head):
        """Take the kernels of Triton where they serve tensors of all these widths, LoRA of this rank, and heads of so many channels."""
        if not self.compiled or triton_release() < OLDEST_TRITON:
            return
        from xtuner_wulewule.model.fused import kernels

        served = kernels.NAMES.split() if all(kernels.serves(width, rank) for width in widths) else []
        self.overwriting = bool(served)  # else chunks of another size would be compiled for, perhaps while a graph is recorded
        served += kernels.JOINS.split() if kernels.joins(head) else []
        served += kernels.ALWAYS.split()
        for name in served:
            setattr(self, name, getattr(kernels, name))


@functools.cache
def _compiled(name):
    """Compile a function of this module once a process: a second model in it takes the same kernels."""
    return torch.compile(globals()[name], dynamic=False, options=OPTIONS)


def _allow_shapes():
    """Let a function be compiled for more shapes than torch's 8, after which it would run uncompiled: rows have many lengths."""
    import torch._dynamo.config as config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # its name before torch 2.7
    setattr(config, name, max(SHAPES, getattr(config, name)))


def triton_release():
    """Return the release of Triton (tuple[int, ...]), `NO_TRITON` where it is not installed."""
    try:
        return tuple(int(number) for number in importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return NO_TRITON

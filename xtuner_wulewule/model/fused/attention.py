"""Causal attention within documents, with the fastest kernel that is there."""

import inspect

import torch

try:
    from torch.nn.attention.varlen import varlen_attn

    if "window_size" not in inspect.signature(varlen_attn).parameters:  # torch 2.10 has another one
        varlen_attn = None
except ImportError:
    varlen_attn = None


class Layout:
    """Where the documents of a batch lie.

    Args:
        shape (tuple[int, int]): rows and tokens of a row.
        bounds (torch.Tensor): int32, the places between the documents of the batch laid end to end, from 0 to rows * tokens; the last may
            be repeated.
        mask (torch.Tensor | None): additive mask as `document_mask` makes it; None where `bounds` serve, or each row is one document.
    """

    def __init__(self, shape, bounds=None, mask=None):
        self.shape, self.bounds, self.mask = shape, bounds, mask


def attend(q, k, v, layout):
    """Return what each token attends to.

    Args:
        q (torch.Tensor): queries (T, heads, channels).
        k, v (torch.Tensor): keys and values (T, groups, channels).
        layout (Layout): of the T tokens.

    Returns:
        torch.Tensor: (T, heads, channels).
    """
    rows, tokens = layout.shape
    if layout.bounds is not None:
        return varlen_attn(q, k, v, layout.bounds, layout.bounds, tokens, tokens, window_size=(-1, 0))
    q, k, v = (x.view(rows, tokens, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.device.type == "cpu":  # enable_gqa takes the kernel there that keeps all scores
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        grouped = False
    causal = layout.mask is None
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)


def document_mask(document_ids, dtype):
    """Return the additive mask of causal attention within documents.

    Args:
        document_ids (torch.Tensor): of each token the number of its document within the row, shape (batch, tokens).
        dtype (torch.dtype): that of the hidden states.

    Returns:
        torch.Tensor: 0 where a token (second to last dimension) sees another one (last), else the lowest number, shape
        (batch, 1, tokens, tokens).
    """
    tokens = document_ids.shape[1]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=document_ids.device).triu(1)
    hidden = hidden | (document_ids[:, None, :, None] != document_ids[:, None, None, :])
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)

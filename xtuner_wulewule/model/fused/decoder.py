"""A decoder of the InternLM2 and Llama families, from token ids to loss and gradients of its LoRA adapters, without autograd.

Each part keeps what its own backward needs and nothing else; what is cheap is computed again.
"""

from dataclasses import dataclass

import torch

from xtuner_wulewule.model.fused.attention import attend
from xtuner_wulewule.model.fused.linear import Linears

CHUNK = 1024  # tokens whose logits exist at a time


class Layer:
    """One decoder layer.

    Args:
        parts (shapes.LayerParts): its modules.
        dtype (torch.dtype): of the matrix products.
        kernels (math.Kernels): how to compute.
    """

    def __init__(self, parts, dtype, kernels):
        self.norms, self.kernels, self.dtype = parts.norms, kernels, dtype
        self.heads = parts.heads
        self.split, self.join = (getattr(kernels, f"{name}_{parts.layout}") for name in ("split", "join"))
        self.qkv, self.o, self.up, self.down = (Linears(group, dtype) for group in (parts.qkv, parts.o, parts.up, parts.down))
        self.linears = (self.qkv, self.o, self.up, self.down)

    def forward(self, x, y, place, checkpointing):
        """Return the residual stream and what is to be added to it (T, channels), and what `backward` needs.

        Args:
            x (torch.Tensor): the residual stream (T, channels).
            y (torch.Tensor): to be added to it (T, channels).
            place (Place): positions and documents.
            checkpointing (str): "none", "selective" (gate and up, the widest, are computed again in `backward`) or "full" (everything is).
        """
        x, normed = self._norm(0, x, y)
        saved = Saved(x)
        self._attention(saved, normed, place)
        self._widen(saved, self._to_middle(saved))
        y = self.down.forward(self.kernels.swiglu(saved.wide), saved.branches[3], self.kernels)
        x = saved.middle
        saved.forget(checkpointing)
        return x, y, saved

    def _attention(self, saved, normed, place):
        qkv = self.qkv.forward(normed, saved.branches[0], self.kernels)
        q, k, v = self.split(qkv, place.cos, place.sin, self.heads)
        saved.qkv = [t.detach().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            saved.attended = attend(*saved.qkv, place.layout)

    def _to_middle(self, saved):
        y = self.o.forward(saved.attended.detach().flatten(1), saved.branches[1], self.kernels)
        saved.middle, normed = self._norm(1, saved.x, y)
        return normed

    def _widen(self, saved, normed):
        saved.wide = self.up.forward(normed, saved.branches[2], self.kernels)

    def _again(self, saved, place):
        """Compute what was not kept."""
        if saved.attended is None:
            self._attention(saved, self._norm(0, saved.x, torch.zeros_like(saved.x))[1], place)
            self._widen(saved, self._to_middle(saved))
        elif saved.wide is None:
            self._widen(saved, self._norm(1, saved.middle, torch.zeros_like(saved.middle))[1])

    def backward(self, grad, low, saved, place):
        """Return the gradient of x + y, in two types, and add those of the adapters; `saved` is used up.

        Args:
            grad (torch.Tensor): the gradient of what `forward` returned, added (T, channels).
            low (torch.Tensor): the same in the type of the matrix products.
            saved (Saved): what `forward` returned.
            place (Place): positions and documents.
        """
        self._again(saved, place)
        k = self.kernels
        of_act, inner = self.down.input_gradient(low, saved.branches[3], k)
        of_wide, act = k.swiglu_backward(of_act, saved.wide)
        saved.wide = None
        self.down.add_gradients(act, low, inner, saved.branches[3], k)
        del of_act, act
        of_normed, inner = self.up.input_gradient(of_wide, saved.branches[2], k)
        grad, low, normed = self._norm_backward(1, of_normed, grad, saved.middle)
        self.up.add_gradients(normed, of_wide, inner, saved.branches[2], k)
        del of_wide, normed
        of_attended, inner = self.o.input_gradient(low, saved.branches[1], k)
        self.o.add_gradients(saved.attended.detach().flatten(1), low, inner, saved.branches[1], k)
        of_qkv = torch.autograd.grad(saved.attended, saved.qkv, of_attended.view_as(saved.attended))
        saved.attended = saved.qkv = None
        of_qkv = self.join(*of_qkv, place.cos, place.sin, self.heads)
        of_normed, inner = self.qkv.input_gradient(of_qkv, saved.branches[0], k)
        grad, low, normed = self._norm_backward(0, of_normed, grad, saved.x)
        self.qkv.add_gradients(normed, of_qkv, inner, saved.branches[0], k)
        return grad, low

    def _norm(self, number, x, y):
        norm = self.norms[number]
        return self.kernels.add_rms_norm(x, y, norm.weight, norm.variance_epsilon, self.dtype)

    def _norm_backward(self, number, of_normed, grad, x):
        norm = self.norms[number]
        return self.kernels.rms_norm_backward(of_normed, grad, x, norm.weight, norm.variance_epsilon)


class Saved:
    """What the forward of a layer leaves for its backward."""

    def __init__(self, x):
        self.x = x
        self.qkv = self.attended = self.middle = self.wide = None
        self.branches = [], [], [], []  # under dropout, of qkv, o, up and down; small, so they are always kept

    def forget(self, checkpointing):
        """Drop what will be computed again."""
        if checkpointing != "none":
            self.wide = None
        if checkpointing == "full":
            self.qkv = self.attended = self.middle = None


@dataclass
class Place:
    """Positions and documents of a batch: cos and sin of the rotary embedding (T, channels of a head), and the `attention.Layout`."""

    cos: torch.Tensor
    sin: torch.Tensor
    layout: object


class Decoder:
    """The whole model.

    Args:
        parts (shapes.Parts): its modules.
        dtype (torch.dtype): of the matrix products.
        residual (torch.dtype): of the residual stream and its gradient.
        kernels (math.Kernels): how to compute.

    Attributes:
        resident (bool): whether the weights are kept dequantised.
        checkpointing (str): see `Layer.forward`.
    """

    def __init__(self, parts, dtype, residual, kernels):
        self.parts, self.dtype, self.residual, self.kernels = parts, dtype, residual, kernels
        self.checkpointing, self.resident = "none", False
        self.layers = [Layer(layer, dtype, kernels) for layer in parts.layers]
        self.head = Linears([parts.head], dtype)
        if self.head.rows and self.head.merged:
            self.head.make_resident()
        self.linears = [*(linears for layer in self.layers for linears in layer.linears), self.head]
        self.parameters = [parameter for linears in self.linears for parameter in linears.parameters]

    def begin_step(self):
        """Take the adapters as they are now; forget the gradients."""
        for linears in self.linears:
            linears.begin_step()

    def gradients(self):
        """Return the gradients of `parameters`, of all batches since `begin_step`."""
        return [grad for linears in self.linears for grad in linears.gradients()]

    def weight_bytes(self):
        """Return the bytes (int) that the layers' weights take dequantised."""
        return sum(sum(linears.outs) * linears.width * self.dtype.itemsize for layer in self.layers for linears in layer.linears)

    def head_bytes(self):
        """Return the bytes (int) of the logits of a chunk, and of their gradient."""
        return 3 * CHUNK * self.head.outs[0] * self.dtype.itemsize

    def make_resident(self):
        """Keep the weights dequantised from now on."""
        self.resident = True
        for layer in self.layers:
            for linears in layer.linears:
                linears.make_resident()

    def token_bytes(self, checkpointing):
        """Return the bytes (int) that a token takes: what the layers keep, and the most that one of them needs besides."""
        half, full = self.dtype.itemsize, self.residual.itemsize
        kept = most = 0
        for layer in self.layers:
            dropped = [linears for linears in layer.linears if not linears.merged]
            attention = half * (sum(layer.qkv.outs) + layer.o.width) + full * layer.o.outs[0] + 4 * layer.heads[0]
            wide = half * sum(layer.up.outs)
            kept += full * layer.qkv.width + sum(linears.width // 8 * len(linears.rows) + half * len(linears.a) for linears in dropped)
            kept += attention * (checkpointing != "full") + wide * (checkpointing == "none")
            most = max(most, attention + 4 * wide)
        return kept + most

    @torch.no_grad()
    def add_batch(self, ids, targets, weight, place):
        """Add the gradients of a batch; return its loss.

        Args:
            ids (torch.Tensor): token ids (T,).
            targets (torch.Tensor): the ids to be predicted (T,), -100 where none is.
            weight (torch.Tensor): a number by which the sum of the losses is multiplied.
            place (Place): positions and documents.
        """
        x, saved = self.parts.embedding(ids).to(self.residual), []
        y = torch.zeros_like(x, dtype=self.dtype)
        for layer in self.layers:
            x, y, kept = layer.forward(x, y, place, self.checkpointing)
            saved.append(kept)
        loss, grad, low = self._loss(x, y, targets, weight)
        while saved:
            grad, low = self.layers[len(saved) - 1].backward(grad, low, saved.pop(), place)
        return loss

    def _loss(self, x, y, targets, weight):
        norm, k = self.parts.norm, self.kernels
        x, normed = k.add_rms_norm(x, y, norm.weight, norm.variance_epsilon, self.dtype)
        of_normed, loss = torch.empty_like(normed), torch.zeros((), device=x.device)
        for begin in range(0, len(x), CHUNK):
            part = slice(begin, begin + CHUNK)
            branches = []
            logits = self.head.forward(normed[part], branches, k)
            of_part, of_logits = k.cross_entropy(logits, targets[part], weight)
            loss += of_part
            of_normed[part], inner = self.head.input_gradient(of_logits, branches, k)
            self.head.add_gradients(normed[part], of_logits, inner, branches, k)
        return loss, *k.rms_norm_backward(of_normed, torch.zeros_like(x), x, norm.weight, norm.variance_epsilon)[:2]

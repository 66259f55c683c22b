"""A decoder of the InternLM2 and Llama families, from token ids to loss and gradients of its LoRA adapters, without autograd.

Each part keeps what its own backward needs and nothing else; what is cheap is computed again.
"""

from dataclasses import dataclass

import torch

from xtuner_wulewule.model.fused.attention import attend
from xtuner_wulewule.model.fused.linear import Branch, Linears
from xtuner_wulewule.model.fused.math import values_grouped, values_listed

CHUNK = 1024  # tokens whose logits exist at a time, twice as many where their gradient is written over them
VALUES = {"grouped": values_grouped, "listed": values_listed}
LOGITS = 4  # as many tensors of their size: they, the adapter's share, their gradient, and what the loss needs meanwhile


class Layer:
    """One decoder layer.

    Args:
        parts (shapes.LayerParts): its modules.
        dtype (torch.dtype): of the matrix products.
        kernels (math.Kernels): how to compute.
        lora (dict): rank and rate of the dropout, as `Linears` takes them.
    """

    def __init__(self, parts, dtype, kernels, lora):
        self.norms, self.kernels, self.dtype, self.rate = parts.norms, kernels, dtype, lora["rate"]
        self.heads, self.layout = parts.heads, parts.layout
        self.qkv = Linears(parts.qkv, dtype, **lora, joint=True)
        self.o = Linears(parts.o, dtype, **lora, stacked=True)  # attention writes its input, and wants its gradient in one piece
        self.up, self.down = (Linears(group, dtype, **lora, complete=True, joint=True) for group in (parts.up, parts.down))
        self.linears = (self.qkv, self.o, self.up, self.down)
        self.keep, self.middle = False, None

    def forward(self, x, y, place, checkpointing):
        """Return the residual stream (T, channels), what is to be added to it, and what `backward` needs.

        Args:
            x (torch.Tensor): the residual stream (T, channels).
            y (tuple[torch.Tensor, torch.Tensor | None]): to be added to it (T, channels), as `Linears.forward` returns it.
            place (Place): positions and documents.
            checkpointing (str): "none", "selective" (gate and up, the widest, are computed again in `backward`) or "full" (everything is).
        """
        saved = Saved()
        x = saved.x = self._norm(saved, 0, x, y)
        self._attention(saved, place)
        x = self._norm(saved, 1, x, self._out(saved))
        self._widen(saved)
        y = self.down.forward(self._act(saved), saved.down, self.kernels)
        saved.down.leave_input()
        saved.forget(checkpointing)
        return x, y, saved

    def _norm(self, saved, number, x, y):
        norm, (linears, branch) = self.norms[number], ((self.qkv, saved.qkv), (self.up, saved.up))[number]
        normed = saved.normed[number] = linears.input(len(x), branch)
        x, saved.scales[number] = self.kernels.add_rms_norm(x, *y, norm.weight, norm.variance_epsilon, normed)
        return x

    def _attention(self, saved, place):
        qkv = self.qkv.forward(saved.normed[0], saved.qkv, self.kernels)
        copied = not self.keeps_values()
        q, k, v = getattr(self.kernels, f"split_{self.layout}")(*qkv, place.cos, place.sin, self.heads, copied)
        v = v if copied else VALUES[self.layout](qkv[0], self.heads)
        saved.heads = [t.detach().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            saved.attended = attend(*saved.heads, place.layout)

    def keeps_values(self):
        """Return whether the values are read where the product has written them, so that its whole result is kept for the backward."""
        return self.keep and not self.qkv.apart

    def _out(self, saved):
        return self.o.forward(saved.attended.detach().flatten(1), saved.o, self.kernels)

    def _widen(self, saved):
        saved.wide, _ = self.up.forward(saved.normed[1], saved.up, self.kernels, later=True)

    def _act(self, saved):
        if self.down.merged:
            return self.kernels.swiglu(saved.wide)
        branch, down = saved.down, self.down
        branch.masks = self.kernels.draw_masks(saved.wide[:, : down.width], 1, self.rate) if self.rate else None
        act = down.input(len(saved.wide), branch)
        branch.inner = down.room(len(act), branch)
        self.kernels.swiglu_project(saved.wide, saved.up.inner, self._b_of_up(), branch.masks, down.a, self.rate, act, branch.inner)
        return act

    def _b_of_up(self):
        """Return the B of gate and up where SwiGLU has to add what their adapters give, else None."""
        return self.up.b if self.up.apart else None

    def _again(self, saved, place):
        """Compute what was not kept."""
        if saved.attended is None:
            x = self._norm(saved, 0, saved.x, (torch.zeros_like(saved.x, dtype=self.dtype), None))
            self._attention(saved, place)
            self._norm(saved, 1, x, self._out(saved))
        if saved.wide is None:
            self._widen(saved)

    def backward(self, grad, saved, place, first=False):
        """Return the gradient of x + y (T, channels), None for the first layer; add those of the adapters; `saved` is used up.

        Args:
            grad (torch.Tensor): the gradient of what `forward` returned, added (T, channels).
            saved (Saved): what `forward` returned.
            place (Place): positions and documents.
            first (bool): whether the layer reads the embeddings, which are not trained.
        """
        self._again(saved, place)
        of_normed = self._feed_backward(grad, saved)
        room = self.o.gradient_room(len(grad))
        grad = self._norm_backward(saved, 1, *of_normed, grad, room[:, : grad.shape[1]])
        del of_normed
        of_attended = self.o.add_adapters(*self._backward_of(self.o, grad, saved.o, saved.attended.detach().flatten(1), room=room))
        of_heads = torch.autograd.grad(saved.attended, saved.heads, of_attended.view_as(saved.attended))
        saved.attended = saved.heads = None
        of_qkv = getattr(self.kernels, f"join_{self.layout}")(*of_heads, place.cos, place.sin, self.heads)
        of_normed = self._backward_of(self.qkv, of_qkv, saved.qkv, saved.normed[0], first)
        return None if first else self._norm_backward(saved, 0, *self.qkv.share(*of_normed), grad, torch.empty_like(of_normed[0]))

    def _backward_of(self, linears, grad, branch, x, first=False, room=None):
        """Add the gradients of the adapters of linear layers; return what `Linears.share` takes, for the gradient of their input x."""
        of_inner, of_x = (linears.inner_gradient(grad), None) if first else linears.input_gradients(grad, room)
        linears.add_gradient_of_b(grad, branch.inner)
        linears.add_gradient_of_a(x, of_inner, branch, self.kernels)
        return of_x, of_inner, branch.masks, self.kernels

    def _feed_backward(self, grad, saved):
        up, down, branch = self.up, self.down, saved.down
        of_inner, of_act = down.input_gradients(grad)
        down.add_gradient_of_b(grad, branch.inner)
        a = None if down.merged else down.a
        inputs = saved.wide, saved.up.inner, self._b_of_up(), branch.masks
        of_wide = self.kernels.swiglu_backward(of_act, *inputs, a, of_inner, self.rate, self.middle)
        saved.wide = saved.up.inner = None  # the latter may be a part of the former
        of_inner, of_normed = up.input_gradients(of_wide)
        up.add_gradient_of_a(saved.normed[1], of_inner, saved.up, self.kernels)
        return up.share(of_normed, of_inner, saved.up.masks, self.kernels)

    def take_sums(self, sums):
        """Take the sums of the gradients of B of gate and up, and of A of down, as one tensor: they lie one behind the other.

        Args:
            sums (torch.Tensor): all that `Linears.take_sums` was given, fp32.
        """
        parts = [*self.up.grad_b, self.down.grad_a]
        size, begin = parts[0].numel(), parts[0].storage_offset()
        assert [part.storage_offset() for part in parts] == [begin, begin + size, begin + 2 * size]
        self.middle = sums[begin : begin + 3 * size].view(3, *parts[0].shape)

    def _norm_backward(self, saved, number, of_normed, share, grad, of_x):
        norm = self.norms[number]
        self.kernels.rms_norm_backward(of_normed, share, grad, saved.normed[number], saved.scales[number], norm.weight, of_x)
        return of_x


class Saved:
    """What the forward of a layer leaves for its backward."""

    def __init__(self):
        self.x = self.heads = self.attended = self.wide = None
        self.normed, self.scales = [None, None], [None, None]
        self.qkv, self.o, self.up, self.down = Branch(), Branch(), Branch(), Branch()  # small, so they are always kept

    def forget(self, checkpointing):
        """Drop what will be computed again, and x where nothing is."""
        if checkpointing != "none":
            self.wide = None
            if self.up.joint is None:
                self.up.inner = self.up.inner.contiguous()  # it may be a part of `wide`
        if checkpointing == "full":
            for branch in (self.qkv, self.up):
                branch.leave_input()
            self.heads = self.attended = None
            self.normed, self.scales = [None, None], [None, None]
        else:
            self.x = None


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
        residual (torch.dtype): of the residual stream; its gradient has that of the matrix products.
        kernels (math.Kernels): how to compute.

    Attributes:
        resident (bool): whether the weights are kept dequantised.
        roomy (bool): whether memory is taken for time: what dropout leaves (`Linears.keep`) and the values of attention, where the product
            has written them, are kept for the backward.
        checkpointing (str): see `Layer.forward`.
    """

    def __init__(self, parts, dtype, residual, kernels):
        self.parts, self.dtype, self.residual, self.kernels = parts, dtype, residual, kernels
        self.checkpointing, self.resident, self.roomy = "none", False, False
        lora = lora_of([*(module for layer in parts.layers for module in layer.linears()), parts.head])
        self.layers = [Layer(layer, dtype, kernels, lora) for layer in parts.layers]
        self.head = Linears([parts.head], dtype, **lora)
        self.linears = [*(linears for layer in self.layers for linears in layer.linears), self.head]
        kernels.take_triton({linears.width for linears in self.linears}, lora["rank"], parts.layers[0].heads[2])
        self.parameters = [parameter for linears in self.linears for parameter in linears.parameters]
        self.sizes = [size for linears in self.linears for size in linears.gradient_sizes()]
        self.sums = torch.zeros(sum(self.sizes), device=self.head.device)
        parts = iter(self.sums.split(self.sizes))
        for linears in self.linears:
            linears.take_sums(parts)
        for layer in self.layers:
            layer.take_sums(self.sums)
        if self.head.ranks and self.head.merged:
            self.head.make_resident()

    def begin_step(self):
        """Take the adapters as they are now; forget the gradients."""
        self.sums.zero_()
        if self.parameters:
            kept, trained, factors = zip(*(one for linears in self.linears for one in linears.adapters_now()), strict=True)
            torch._foreach_copy_(kept, torch._foreach_mul(trained, factors))
        for linears in self.linears:
            linears.begin_step()

    def gradients(self, factor):
        """Return the gradients of `parameters`, of all batches since `begin_step`, times a factor (torch.Tensor, a number)."""
        parts = iter((self.sums * factor).split(self.sizes))
        grads, of_b, scales = [], [], []
        for linears in self.linears:
            for grad, scale in linears.gradients(parts):
                grads.append(grad)
                of_b += [grad] * (scale is not None)
                scales += [scale] * (scale is not None)
        torch._foreach_mul_(of_b, scales)
        return grads

    def weight_bytes(self):
        """Return the bytes (int) that the layers' weights take dequantised, with what they have beside them."""
        return sum(linears.resident_bytes() for layer in self.layers for linears in layer.linears)

    def head_bytes(self):
        """Return the bytes (int) that the logits of a chunk need."""
        return LOGITS * CHUNK * self.head.outs[0] * self.dtype.itemsize

    def make_resident(self):
        """Keep the weights dequantised from now on."""
        self.resident = True
        for layer in self.layers:
            for linears in layer.linears:
                linears.make_resident()

    def make_roomy(self, roomy=True):
        """Keep what saves time from now on, or no longer: only where nothing is computed again."""
        self.roomy = roomy
        for one in [*self.layers, *self._dropping()]:
            one.keep = roomy

    def _dropping(self):
        """Return the linear layers whose dropped input can be kept; SwiGLU's kernels drop what `down` takes."""
        return [linears for layer in self.layers for linears in (layer.qkv, layer.o, layer.up) if linears.rate]

    def roomy_bytes(self):
        """Return the bytes (int) that a token takes besides `token_bytes` after `make_roomy`."""
        dropped = sum(linears.width * len(linears.ranks) for linears in self._dropping())
        beside_values = sum(sum(layer.qkv.outs) - layer.heads[1] * layer.heads[2] for layer in self.layers)
        return self.dtype.itemsize * (dropped + beside_values)

    def token_bytes(self, checkpointing):
        """Return the bytes (int) that a token takes: what the layers keep, and the most that one of them needs besides."""
        half, full = self.dtype.itemsize, self.residual.itemsize
        kept = most = 0
        for layer in self.layers:
            dropped = [linears for linears in layer.linears if linears.rate]
            attention = half * (sum(layer.qkv.outs) + layer.o.width + layer.qkv.width + layer.o.outs[0]) + 4 * layer.heads[0] + 8
            wide = half * sum(layer.up.outs)
            kept += sum(half * len(linears.a) for linears in layer.linears) + sum(
                linears.width // 8 * len(linears.ranks) for linears in dropped
            )
            kept += full * layer.qkv.width if checkpointing == "full" else attention
            kept += wide * (checkpointing == "none")
            most = max(most, attention + 4 * wide)
        return kept + most

    @torch.no_grad()
    def add_batch(self, ids, targets, weight, picked, place):
        """Add the gradients of a batch; return its loss.

        Args:
            ids (torch.Tensor): token ids (T,).
            targets (torch.Tensor): the ids to be predicted (T,), -100 where none is.
            weight (torch.Tensor): a number by which the sum of the losses is multiplied.
            picked (torch.Tensor): the places (int64) of all tokens with a target, and perhaps of some without: the head sees no others.
            place (Place): positions and documents.
        """
        x, saved = self.parts.embedding(ids).to(self.residual), []
        y = torch.zeros_like(x, dtype=self.dtype), None
        for layer in self.layers:
            x, y, kept = layer.forward(x, y, place, self.checkpointing)
            saved.append(kept)
        loss, grad = self._loss(x, y, targets, weight, picked)
        del x, y
        while saved:
            number = len(saved) - 1
            grad = self.layers[number].backward(grad, saved.pop(), place, first=number == 0)
        return loss

    def _loss(self, x, y, targets, weight, picked):
        norm, head, k = self.parts.norm, self.head, self.kernels
        normed = torch.empty_like(x, dtype=self.dtype)
        scale = k.add_rms_norm(x, *y, norm.weight, norm.variance_epsilon, normed)[1]
        of_normed, loss = torch.zeros_like(normed), torch.zeros((), device=x.device)
        for places in picked.split(2 * CHUNK if k.overwriting else CHUNK):
            seen, branch = normed[places], Branch()
            of_part, of_logits = k.cross_entropy(*head.forward(seen, branch, k), targets[places], weight)
            loss += of_part
            of_inner, of_seen = head.input_gradients(of_logits)
            head.add_gradient_of_b(of_logits, branch.inner)
            head.add_gradient_of_a(seen, of_inner, branch, k)
            of_normed.index_copy_(0, places, head.add_adapters(of_seen, of_inner, branch.masks, k))
            del of_logits  # before the next are made
        of_x = torch.empty_like(normed)
        k.rms_norm_backward(of_normed, None, torch.zeros_like(normed), normed, scale, norm.weight, of_x)
        return loss, of_x


def lora_of(layers):
    """Return the rank (a power of two that no adapter exceeds, 16 at least) and the rate of the dropout of layers' adapters (dict)."""
    adapters = [layer for layer in layers if hasattr(layer, "lora_A")]
    highest = max((len(layer.lora_A["default"].weight) for layer in adapters), default=1)
    rate = max((getattr(layer.lora_dropout["default"], "p", 0.0) for layer in adapters), default=0.0)
    return dict(rank=max(16, 1 << (highest - 1).bit_length()), rate=rate)

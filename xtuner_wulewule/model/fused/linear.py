"""Linear layers that read the same input, with LoRA: one matrix product for all of them, gradients of A and B summed in place."""

import torch


class Linears:
    """Frozen linear layers with one input, those of the queries, keys and values for example, and their LoRA adapters.

    Args:
        layers (list[torch.nn.Module]): `Linear` or bitsandbytes' `Linear4bit`, or peft's LoRA layer around one.
        dtype (torch.dtype): of the matrix products.

    Attributes:
        parameters (list[torch.nn.Parameter]): A and B of each layer that has them.
    """

    def __init__(self, layers, dtype):
        self.bases = [getattr(layer, "base_layer", layer) for layer in layers]
        self.outs = [base.out_features for base in self.bases]
        self.width = self.bases[0].in_features
        self.dtype, self.device = dtype, self.bases[0].weight.device
        self.bias = self._bias()
        adapters = [(number, layer) for number, layer in enumerate(layers) if hasattr(layer, "lora_A")]
        self.parameters = [p for _, layer in adapters for p in (layer.lora_A["default"].weight, layer.lora_B["default"].weight)]
        self.scales = [layer.scaling["default"] for _, layer in adapters]
        self.rate = max([getattr(layer.lora_dropout["default"], "p", 0.0) for _, layer in adapters], default=0.0)
        ranks = [a.shape[0] for a in self.parameters[::2]]
        ends = [sum(self.outs[: number + 1]) for number, _ in adapters]
        self.rows = [slice(end - self.outs[number], end) for end, (number, _) in zip(ends, adapters, strict=True)]
        self.ranks = [slice(sum(ranks[:n]), sum(ranks[: n + 1])) for n in range(len(ranks))]
        make = dict(device=self.device)
        self.a = torch.empty(sum(ranks), self.width, dtype=dtype, **make)
        self.b = [torch.empty(rows.stop - rows.start, rank, dtype=dtype, **make) for rows, rank in zip(self.rows, ranks, strict=True)]
        self.grad_a = torch.zeros(self.a.shape, **make)
        self.grad_b = [torch.zeros(b.shape, **make) for b in self.b]
        self.merged = self.rate == 0.0
        self.resident = None

    def make_resident(self):
        """Keep the weights in `dtype` from now on, instead of dequantising them for each use."""
        self.resident = torch.empty(sum(self.outs), self.width, dtype=self.dtype, device=self.device)
        self._fill(self.resident)

    def _bias(self):
        if all(base.bias is None for base in self.bases):
            return None
        zeros = [torch.zeros(out, dtype=self.dtype, device=self.device) for out in self.outs]
        return torch.cat([zero if base.bias is None else base.bias.to(self.dtype) for zero, base in zip(zeros, self.bases, strict=True)])

    def begin_step(self):
        """Take the adapters as they are now; forget the gradients."""
        for n, (a, b, scale) in enumerate(zip(self.parameters[::2], self.parameters[1::2], self.scales, strict=True)):
            self.a[self.ranks[n]].copy_(a.detach())
            self.b[n].copy_(b.detach() * scale)
        torch._foreach_zero_([self.grad_a, *self.grad_b])
        if self.resident is not None and self.merged and self.rows:
            self._fill(self.resident)
            self._merge(self.resident)

    def gradients(self):
        """Return the gradients (list[torch.Tensor], fp32) of `parameters`."""
        pairs = zip(self.ranks, self.grad_b, self.scales, strict=True)
        return [grad for rank, grad_b, scale in pairs for grad in (self.grad_a[rank], grad_b * scale)]

    def _fill(self, weight):
        """Write the frozen weights, dequantised, into a tensor (sum of outs, width)."""
        begin = 0
        for base, out in zip(self.bases, self.outs, strict=True):
            part = weight[begin : begin + out]
            state = getattr(base.weight, "quant_state", None)
            if state is None:
                part.copy_(base.weight)
            else:
                from bitsandbytes.functional import dequantize_4bit

                dequantize_4bit(base.weight.data, state, out=part)
            begin += out

    def _merge(self, weight):
        for rows, rank, b in zip(self.rows, self.ranks, self.b, strict=True):
            weight[rows].addmm_(b, self.a[rank])

    def weight(self):
        """Return what x is multiplied with (sum of outs, width): the frozen weights, plus the adapters' B A where there is no dropout."""
        if self.resident is not None:
            return self.resident
        if len(self.bases) == 1 and self.bases[0].weight.dtype == self.dtype and not (self.merged and self.rows):
            return self.bases[0].weight
        weight = torch.empty(sum(self.outs), self.width, dtype=self.dtype, device=self.device)
        self._fill(weight)
        if self.merged:
            self._merge(weight)
        return weight

    def forward(self, x, branches, kernels):
        """Return the outputs side by side (T, sum of outs).

        Args:
            x (torch.Tensor): (T, width).
            branches (list[list[torch.Tensor]]): of each adapter with dropout its mask and A x; where it is empty the masks are drawn.
            kernels (math.Kernels): how to compute.
        """
        transposed = self.weight().t()
        y = x @ transposed if self.bias is None else torch.addmm(self.bias, x, transposed)
        if not self.merged:
            branches += [[kernels.draw_mask(x, self.rate), None] for _ in self.rows[len(branches) :]]
            for rows, rank, b, branch in zip(self.rows, self.ranks, self.b, branches, strict=True):
                branch[1] = kernels.drop(x, branch[0], self.rate) @ self.a[rank].t()
                y[:, rows].addmm_(branch[1], b.t())
        return y

    def input_gradient(self, grad, branches, kernels):
        """Return the gradient of x (T, width), and that of A x (T, sum of ranks)."""
        of_inner = self._inner_gradient(grad)
        of_x = grad @ self.weight()
        if not self.merged:
            for rank, (mask, _) in zip(self.ranks, branches, strict=True):
                of_x = kernels.add_dropped(of_x, of_inner[:, rank] @ self.a[rank], mask, self.rate)
        return of_x, of_inner

    def _inner_gradient(self, grad):
        if not self.rows:
            return None
        parts = [grad[:, rows] @ b for rows, b in zip(self.rows, self.b, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def add_gradients(self, x, grad, of_inner, branches, kernels):
        """Add the gradients of A and B.

        Args:
            x (torch.Tensor): the input (T, width).
            grad (torch.Tensor): gradient of the outputs (T, sum of outs).
            of_inner (torch.Tensor): as `input_gradient` returned it.
            branches (list): as for `forward`.
            kernels (math.Kernels): how to compute.
        """
        if not self.rows:
            return
        if self.merged:
            self.grad_a += of_inner.t() @ x
            inners = (x @ self.a.t()).split([rank.stop - rank.start for rank in self.ranks], 1)
        else:
            for rank, (mask, _) in zip(self.ranks, branches, strict=True):
                self.grad_a[rank] += of_inner[:, rank].t() @ kernels.drop(x, mask, self.rate)
            inners = [inner for _, inner in branches]
        for rows, grad_b, inner in zip(self.rows, self.grad_b, inners, strict=True):
            grad_b += grad[:, rows].t() @ inner

"""Linear layers that read the same input, with LoRA: one matrix product for all of them, gradients of A and B summed in place."""

import functools

import torch


@functools.cache
def sums_in_fp32(device, dtype):
    """Return whether (bool) this PyTorch adds a product of a type to fp32 sums on a kind of device (str), from 2.8 on with cuBLAS."""
    if dtype == torch.float32:
        return True
    try:
        one = torch.ones(16, 16, device=device, dtype=dtype)
        total = torch.ones(16, 16, device=device)
        torch.addmm(total, one.t(), one, out_dtype=torch.float32, out=total)
        return bool((total == 17).all())
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError, NotImplementedError):
        return False


def add_product(total, left, right):
    """Add left.T @ right to a sum.

    Args:
        total (torch.Tensor): fp32 (m, n).
        left (torch.Tensor): (T, m).
        right (torch.Tensor): (T, n), of the same type.
    """
    if not sums_in_fp32(total.device.type, left.dtype):
        total += left.t() @ right
    elif left.dtype == torch.float32:
        total.addmm_(left.t(), right)
    else:
        torch.addmm(total, left.t(), right, out_dtype=torch.float32, out=total)


class Branch:
    """What the adapters of `Linears` leave for the backward.

    Attributes:
        masks (torch.Tensor | None): of their dropout, as of `math.draw_masks`; None without dropout.
        inner (torch.Tensor | None): A x of all of them side by side (T, adapters * rank).
        dropped (torch.Tensor | None): x with each of the masks (adapters, T, width), where memory is traded for time.
        joint (torch.Tensor | None): x and A x in one tensor (T, width + adapters * rank), as `Linears.input` made it.
    """

    def __init__(self):
        self.masks = self.inner = self.dropped = self.joint = None

    def leave_input(self):
        """Let the input be forgotten, but for A x."""
        if self.joint is not None:
            self.inner, self.joint = self.inner.contiguous(), None


class Linears:
    """Frozen linear layers with one input, those of the queries, keys and values for example, and their LoRA adapters.

    Args:
        layers (list[torch.nn.Module]): `Linear` or bitsandbytes' `Linear4bit`, or peft's LoRA layer around one.
        dtype (torch.dtype): of the matrix products.
        rank (int): to which all adapters are filled up with zeros.
        rate (float): of LoRA's dropout.
        complete (bool): whether a layer without an adapter gets one of zeros, which is not trained.
        joint (bool): whether resident weights have B beside them, where it is not merged.
        stacked (bool): whether they have A below them, where it is not merged and there is no dropout.

    Attributes:
        parameters (list[torch.nn.Parameter]): A and B of each layer that has them.
        a (torch.Tensor): A of the adapters, one below the other (adapters * rank, width).
        b (torch.Tensor | None): their B, scaled (sum of outs with an adapter, rank); None where it is beside the weights.
        b_parts (list[torch.Tensor]): B of each adapter, scaled (its outs, rank).
        merged (bool): whether the weights hold B A: in fp32 and without dropout. In bf16 the B A of the first updates is less than half a
            step between two numbers, and rounding would leave the weights as they were (docs/decisions.md).
        beside (torch.Tensor | None): the resident weights with the B of all adapters right of them (sum of outs, width + adapters *
            rank): one product with x and A x gives the outputs, and one gives both gradients of the backward, that of x and that of A x.
        stack (torch.Tensor | None): the resident weights with the A of all adapters below them (sum of outs + adapters * rank, width): one
            product with the gradients of the outputs and of A x gives that of x.
        keep (bool): keep `Branch.dropped` for the backward.
    """

    def __init__(self, layers, dtype, rank, rate, complete=False, joint=False, stacked=False):
        self.bases = [getattr(layer, "base_layer", layer) for layer in layers]
        self.outs = [base.out_features for base in self.bases]
        self.width, self.rank, self.rate = self.bases[0].in_features, rank, rate
        self.dtype, self.device = dtype, self.bases[0].weight.device
        self.bias = self._bias()
        self.adapters = [layer if hasattr(layer, "lora_A") else None for layer in layers]
        ends = [sum(self.outs[: number + 1]) for number in range(len(layers))]
        adapted = [number for number, adapter in enumerate(self.adapters) if complete or adapter]
        self.adapters = [self.adapters[number] for number in adapted]
        self.rows = [slice(ends[number] - self.outs[number], ends[number]) for number in adapted]
        self.ranks = [slice(rank * number, rank * (number + 1)) for number in range(len(adapted))]
        pairs = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in self.adapters if layer]
        self.parameters = [parameter for pair in pairs for parameter in pair]
        self.a = torch.zeros(rank * len(adapted), self.width, dtype=dtype, device=self.device)
        self.b = torch.zeros(sum(self.outs[number] for number in adapted), rank, dtype=dtype, device=self.device)
        self.b_parts = self.b.split([self.outs[number] for number in adapted]) if adapted else ()
        self.grad_a, self.grad_b = None, []
        self.merged = rate == 0.0 and dtype == torch.float32
        self.joint = joint and bool(adapted) and not self.merged
        self.stacked = stacked and bool(adapted) and not self.merged and not rate
        self.resident = self.beside = self.stack = None
        self.keep = False
        self.height = sum(self.outs) + self.merged * len(self.a)

    def gradient_sizes(self):
        """Return how many numbers (list[int]) the gradients of A, and of B of each adapter, transposed, hold."""
        return [self.a.numel(), *(b.numel() for b in self.b_parts)]

    def take_sums(self, parts):
        """Take the tensors in which gradients are summed from an iterator (fp32, as many numbers as `gradient_sizes` says)."""
        self.grad_a, *self.grad_b = self._shaped(parts)

    def _shaped(self, parts):
        return [next(parts).view(self.a.shape), *(next(parts).view(self.rank, len(b)) for b in self.b_parts)]

    def make_resident(self):
        """Keep the weights in `dtype` from now on, instead of dequantising them for each use; with B beside them where they are `joint`."""
        if self.joint:
            # transposed: products with rows of an odd length are slower (docs/decisions.md)
            whole = torch.zeros(self.width + len(self.a), self.height, dtype=self.dtype, device=self.device).t()
            self._fill(whole)
            places = [whole[rows, self.width :][:, rank] for rows, rank in zip(self.rows, self.ranks, strict=True)]
            torch._foreach_copy_(places, self.b_parts)
            self.b, self.b_parts, self.resident, self.beside = None, places, whole, whole
        elif self._only() is None:
            rows = self.height
            whole = torch.empty(rows + self.stacked * len(self.a), self.width, dtype=self.dtype, device=self.device)
            self.resident = whole[:rows]
            self._fill(self.resident)
            if self.stacked:
                whole[rows:] = self.a
                self.a, self.stack = whole[rows:], whole

    def resident_bytes(self):
        """Return the bytes (int) that `make_resident` takes."""
        if not self.joint and self._only() is not None:
            return 0
        return (self.height + self.stacked * len(self.a)) * (self.width + self.joint * len(self.a)) * self.dtype.itemsize

    def _bias(self):
        if all(base.bias is None for base in self.bases):
            return None
        zeros = [torch.zeros(out, dtype=self.dtype, device=self.device) for out in self.outs]
        return torch.cat([zero if base.bias is None else base.bias.to(self.dtype) for zero, base in zip(zeros, self.bases, strict=True)])

    def adapters_now(self):
        """Yield of each A and B: where it is kept, the trained weight, and the number by which that is to be multiplied."""
        for layer, rank, b in zip(self.adapters, self.ranks, self.b_parts, strict=True):
            if layer:
                of_a, of_b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
                yield self.a[rank][: len(of_a)], of_a, 1.0
                yield b[:, : of_b.shape[1]], of_b, layer.scaling["default"]

    def begin_step(self):
        """Bring the resident weights to the adapters as they are kept now."""
        if self.resident is not None and self.merged and self.parameters:
            self._fill(self.resident)

    def gradients(self, parts):
        """Return the gradients of `parameters`, each with the number by which it is still to be multiplied, None where by none.

        Args:
            parts (Iterator[torch.Tensor]): as of `take_sums`.
        """
        of_a, *of_b = self._shaped(parts)
        found = []
        for layer, rank, part in zip(self.adapters, self.ranks, of_b, strict=True):
            if layer:
                size = len(layer.lora_A["default"].weight)
                found += [(of_a[rank][:size], None), (part[:size].t(), layer.scaling["default"])]
        return found

    def _filled(self):
        weight = torch.empty(self.height, self.width, dtype=self.dtype, device=self.device)
        self._fill(weight)
        return weight

    def _fill(self, weight):
        """Write the frozen weights, dequantised, into a tensor (height, width or more); where adapters are merged, add B A, and A below."""
        weight, begin = weight[:, : self.width], 0
        for base, out in zip(self.bases, self.outs, strict=True):
            part = weight[begin : begin + out]
            state = getattr(base.weight, "quant_state", None)
            if state is None:
                part.copy_(base.weight)
            else:
                from bitsandbytes.functional import dequantize_4bit

                whole = part.is_contiguous()
                frozen = dequantize_4bit(base.weight.data, state, out=part if whole else None)
                if not whole:
                    part.copy_(frozen)
            begin += out
        if self.merged:
            for rows, rank, b in zip(self.rows, self.ranks, self.b_parts, strict=True):
                weight[rows].addmm_(b, self.a[rank])
            weight[begin:].copy_(self.a)

    def _only(self):
        """Return the weight itself (torch.Tensor) where it is the only one and as `_fill` would write it, else None."""
        weight, state = self.bases[0].weight, getattr(self.bases[0].weight, "quant_state", None)
        alone = len(self.bases) == 1 and self.height == self.outs[0]
        return weight if alone and state is None and weight.dtype == self.dtype else None

    def _weight(self):
        """Return what `_fill` writes (height, width)."""
        kept = self.resident if self.resident is not None else self._only()
        return self._filled() if kept is None else kept[:, : self.width]

    def weight(self):
        """Return what x is multiplied with (sum of outs, width): the frozen weights, plus the adapters' B A where they are merged."""
        return self._weight()[: sum(self.outs)]

    @property
    def apart(self):
        """Whether (bool) what the adapters add does not come with the product of the weights: neither merged into them nor beside them."""
        return bool(self.ranks) and not self.merged and self.beside is None

    def input(self, tokens, branch):
        """Return a tensor (tokens, width) into which the input of `forward` is to be written; where B is beside the weights, a part of one
        that has room for A x."""
        columns = 0 if self.beside is None else len(self.a)
        whole = torch.empty(tokens, self.width + columns, dtype=self.dtype, device=self.device)
        branch.joint = whole if columns else None
        return whole[:, : self.width]

    def forward(self, x, branch, kernels, later=False):
        """Return the outputs side by side (T, sum of outs), and what the adapters add to them, None where there is nothing to be added.

        Who reads them adds both in fp32. cuBLAS adds a matrix only after its product was rounded to bf16, and most of a small share would
        be lost (docs/decisions.md).

        Args:
            x (torch.Tensor): (T, width), as of `input` where B is beside the weights.
            branch (Branch): of the adapters; where it is empty the masks are drawn and A x computed.
            kernels (math.Kernels): how to compute.
            later (bool): leave what is `apart` to the caller, who has A x, which may be a part of the outputs' tensor.
        """
        if self.merged or not self.ranks:
            return self._forward_merged(x, branch, later), None
        if branch.inner is None:
            branch.masks = kernels.draw_masks(x, len(self.ranks), self.rate) if self.rate else None
            branch.inner = self._project(x, branch, kernels)
        if branch.joint is None:
            assert self.beside is None, "the input is not that of `input`"
            weight = self.weight().t()
        else:
            beside = branch.joint[:, self.width :]
            if branch.inner.data_ptr() != beside.data_ptr():
                beside.copy_(branch.inner)
            x, weight = branch.joint, self.beside.t()
        y = x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)
        return y, self._share(branch.inner, y) if self.apart and not later else None

    def _share(self, inner, y):
        share = torch.empty_like(y)
        if len(self.rows) < len(self.outs):
            share.zero_()
        for rows, rank, b in zip(self.rows, self.ranks, self.b_parts, strict=True):
            torch.mm(inner[:, rank], b.t(), out=share[:, rows])
        return share

    def _forward_merged(self, x, branch, later):
        both = x @ self._weight().t()
        y = both[:, : sum(self.outs)]
        if self.bias is not None:
            y += self.bias
        if self.ranks and branch.inner is None:
            branch.inner = both[:, sum(self.outs) :]
            if not later:
                branch.inner = branch.inner.contiguous()  # `both` need not be kept for it
        return y

    def room(self, tokens, branch):
        """Return a tensor (tokens, adapters * rank) into which A x is to be written: beside the input where that has room for it."""
        if branch.joint is None:
            return torch.empty(tokens, len(self.a), dtype=self.dtype, device=self.device)
        return branch.joint[:, self.width :]

    def _project(self, x, branch, kernels):
        inner = self.room(len(x), branch)
        if branch.masks is None:
            return torch.mm(x, self.a.t(), out=inner)
        dropped = kernels.drop(x, branch.masks, self.rate)
        branch.dropped = dropped if self.keep else None
        for rank, part in zip(self.ranks, dropped, strict=True):
            torch.mm(part, self.a[rank].t(), out=inner[:, rank])
        return inner

    def gradient_room(self, tokens):
        """Return a tensor (tokens, sum of outs or more) that begins with room for the gradient of the outputs, for `input_gradients`."""
        columns = 0 if self.stack is None else len(self.a)
        return torch.empty(tokens, sum(self.outs) + columns, dtype=self.dtype, device=self.device)

    def inner_gradient(self, grad, inner=None):
        """Return the gradient of A x of all adapters, None without any.

        Args:
            grad (torch.Tensor): that of the outputs (T, sum of outs).
            inner (torch.Tensor, optional): where to write (T, adapters * rank).
        """
        if not self.ranks:
            return None
        if inner is None:
            inner = torch.empty(len(grad), len(self.a), dtype=self.dtype, device=self.device)
        for rows, rank, b in zip(self.rows, self.ranks, self.b_parts, strict=True):
            torch.mm(grad[:, rows], b, out=inner[:, rank])
        return inner

    def input_gradients(self, grad, room=None):
        """Return what `inner_gradient` returns, and the gradient of x (T, width), without the share of adapters that are neither merged nor
        in the `stack`.

        Both may be parts of one tensor.

        Args:
            grad (torch.Tensor): that of the outputs (T, sum of outs).
            room (torch.Tensor, optional): what `gradient_room` returned, of which `grad` is the beginning; needed where there is a `stack`.
        """
        if self.stack is not None:
            return self.inner_gradient(grad, room[:, sum(self.outs) :]), room @ self.stack
        if self.beside is not None:
            both = grad @ self.beside
            return both[:, self.width :], both[:, : self.width]
        return self.inner_gradient(grad), grad @ self.weight()

    def share(self, of_x, of_inner, masks, kernels):
        """Return the gradient of x (T, width), and what is still to be added to it, None where there is nothing.

        Args:
            of_x (torch.Tensor): as `input_gradients` returned it.
            of_inner (torch.Tensor): as `inner_gradient` returned it.
            masks (torch.Tensor | None): of the `Branch`.
            kernels (math.Kernels): how to compute.
        """
        if masks is not None:
            return kernels.add_dropped_product(of_x, of_inner, self.a, masks, self.rate), None
        return of_x, of_inner @ self.a if self.ranks and not self.merged else None

    def add_adapters(self, of_x, of_inner, masks, kernels):
        """As `share`, but return one tensor, the sum; `of_x` may be changed to it."""
        if self.stack is not None:
            return of_x
        if masks is None and self.ranks and not self.merged:
            # rounded twice, as XTuner's: what is lost of the adapters' share is far less than what rounding adds to a gradient anyway
            return of_x.addmm_(of_inner, self.a)
        return self.share(of_x, of_inner, masks, kernels)[0]

    def add_gradient_of_a(self, x, of_inner, branch, kernels):
        """Add the gradient of A; x is the input (T, width), `branch` that of the forward, the others are as for `add_adapters`."""
        if not self.ranks:
            return
        if branch.masks is None:
            add_product(self.grad_a, of_inner, x)
            return
        parts = kernels.drop(x, branch.masks, self.rate) if branch.dropped is None else branch.dropped
        for rank, dropped in zip(self.ranks, parts, strict=True):
            add_product(self.grad_a[rank], of_inner[:, rank], dropped)

    def add_gradient_of_b(self, grad, inner):
        """Add the gradient of B, from that of the outputs (T, sum of outs) and the `inner` of the `Branch`."""
        for rows, rank, grad_b in zip(self.rows, self.ranks, self.grad_b, strict=True):
            add_product(grad_b, inner[:, rank], grad[:, rows])

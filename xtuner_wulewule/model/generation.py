"""Answers without waiting: from a model with LoRA at the speed of one without, and by attention that needs no plan for each length."""

import copy
from contextlib import contextmanager

import torch
from torch.nn import functional

from xtuner_wulewule.device import free_memory

SPARE = 2**30  # bytes that stay free, for keys, values and logits


@contextmanager
def without_plans():
    """Let SDPA not take cuDNN's kernels, which are planned anew for each length, as long as the context lasts.

    With a mask, as of padded prompts, torch takes them on an H100 or H200, and each further token is another length: 12 tokens took 3.5 s
    of planning (docs/decisions.md).
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and not _others_enabled())
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def last_logits(llm):
    """Let the head see the last token only, as long as the context lasts: generation reads no other logits.

    InternLM2's own code computes those of each token of a prompt, in fp32: 1.2 GB for twenty prompts of 113 tokens.

    Args:
        llm (torch.nn.Module): a model of transformers, or one within peft's.
    """
    handle = llm.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0][:, -1:], *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def _others_enabled():
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled()


@contextmanager
def merged_for_generation(llm):
    """Let each linear layer with LoRA compute x (W + s B A), with a weight of its own, for as long as the context lasts.

    peft computes x W and s B A x one after the other, a dozen calls a layer; a 4-bit W is dequantised anew for each token besides. For a
    few rows all that is waiting for the host. Nothing is trained or saved differently: parameters stay as they are. The sum is made in fp32
    and rounded to the type of the products: of an adapter that has hardly begun, a 16-bit W that is not quantised loses much.

    Args:
        llm (torch.nn.Module): a model of transformers within peft's. Layers that are not plain LoRA on a `Linear` or bitsandbytes'
            `Linear4bit` keep their way; all do where the memory for the weights is not free.

    Yields:
        int: how many layers have a merged weight.
    """
    layers = [module for module in llm.modules() if _served(module)]
    before = [layer.__dict__.get("forward") for layer in layers]
    products = _products(layers)
    try:
        for layer, product in zip(layers, products, strict=False):
            layer.forward = product
        yield len(products)
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
        if products and products[0].weight.is_cuda:
            products.clear()
            product = None
            torch.cuda.empty_cache()  # the fused step plans by what is free


def _products(layers):
    """Return what computes the layers meanwhile (list[_Product]), nothing where the memory does not suffice."""
    if not layers:
        return []
    sizes = [layer.in_features * layer.out_features for layer in layers]
    needed = sum(size * _dtype(layer).itemsize for size, layer in zip(sizes, layers, strict=True))
    needed += 8 * max(sizes)  # in fp32 before and after the sum, while one is made
    if needed + SPARE > free_memory(layers[0].base_layer.weight.device, cached=False):
        return []
    try:
        return [_Product(layer) for layer in layers]
    except torch.cuda.OutOfMemoryError:  # another process was quicker
        return []


class _Product:
    """The forward of a layer whose adapter is merged into a copy of its weight."""

    def __init__(self, layer):
        base, dtype = layer.base_layer, _dtype(layer)
        self.bias = base.bias
        with torch.no_grad():
            state = getattr(base.weight, "quant_state", None)
            if state is None:
                frozen = base.weight
            else:
                from bitsandbytes.functional import dequantize_4bit

                state = copy.copy(state)
                state.dtype = torch.float32  # on a number of bf16 the sum would be rounded back to it, and a new adapter lost
                frozen = dequantize_4bit(base.weight.data, state)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            merged = torch.addmm(frozen.float(), b.float(), a.float(), alpha=layer.scaling["default"])
            self.weight = merged.to(dtype)

    def __call__(self, x, *args, **kwargs):
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return functional.linear(x.to(self.weight.dtype), self.weight, bias).to(x.dtype)


def _dtype(layer):
    """Return the type (torch.dtype) in which a layer's base computes."""
    base = layer.base_layer
    state = getattr(base.weight, "quant_state", None)
    return base.weight.dtype if state is None else base.compute_dtype or state.dtype


def _served(module):
    """Return whether a module is plain LoRA, not merged and not switched off, on a layer that is whole on this device."""
    from peft.tuners.lora import LoraLayer

    base = getattr(module, "base_layer", None)
    if not isinstance(module, LoraLayer) or type(base).__name__ not in ("Linear", "Linear4bit"):
        return False
    if type(base).__name__ == "Linear4bit" and not base.weight.is_cuda:
        return False  # on a CPU bitsandbytes packs the weight anew, in an order of its own
    if list(module.lora_A) != ["default"] or module.active_adapters != ["default"] or module.merged or module.disable_adapters:
        return False
    if module.use_dora.get("default") or module.lora_B["default"].bias is not None or getattr(module, "fan_in_fan_out", False):
        return False
    return not any(hasattr(parameter, "ds_id") for parameter in module.parameters())

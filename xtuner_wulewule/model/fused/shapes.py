"""The modules of the models that are served, and the reasons why a model is not."""

from dataclasses import dataclass

import torch


@dataclass
class LayerParts:
    """Modules of a decoder layer: groups of linear layers, each with one input; two norms; and how queries, keys and values lie."""

    qkv: list
    o: list
    up: list
    down: list
    norms: tuple
    layout: str
    heads: tuple[int, int, int]  # queries, keys, channels of each

    def linears(self):
        """Return the linear layers of all groups (list)."""
        return [*self.qkv, *self.o, *self.up, *self.down]


@dataclass
class Parts:
    """Modules of a model; `rotary` gives cos and sin for a tensor, which says the type, and position ids (rows, tokens)."""

    embedding: torch.nn.Module
    layers: list
    norm: torch.nn.Module
    head: torch.nn.Module
    rotary: torch.nn.Module


def parts_of(causal_lm):
    """Return the `Parts` of a causal language model of transformers."""
    return _internlm2(causal_lm) if causal_lm.config.model_type == "internlm2" else _llama(causal_lm)


def _internlm2(causal_lm):
    model, config = causal_lm.model, causal_lm.config
    heads = config.num_attention_heads, config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    layers = []
    for layer in model.layers:
        attention, feed = layer.attention, layer.feed_forward
        norms = layer.attention_norm, layer.ffn_norm
        layers.append(LayerParts([attention.wqkv], [attention.wo], [feed.w1, feed.w3], [feed.w2], norms, "grouped", heads))
    return Parts(model.tok_embeddings, layers, model.norm, causal_lm.output, model.layers[0].attention.rotary_emb)


def _llama(causal_lm):
    model, config = causal_lm.model, causal_lm.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads, config.num_key_value_heads, width
    layers = []
    for layer in model.layers:
        attention, feed = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        norms = layer.input_layernorm, layer.post_attention_layernorm
        layers.append(LayerParts(qkv, [attention.o_proj], [feed.gate_proj, feed.up_proj], [feed.down_proj], norms, "listed", heads))
    return Parts(model.embed_tokens, layers, model.norm, causal_lm.lm_head, model.rotary_emb)


SERVED = ("internlm2", "llama", "mistral", "qwen2")


def why_not(llm):
    """Return why a model isn't served (str), None where it is.

    Args:
        llm (torch.nn.Module): a model of transformers, within peft's or not.
    """
    if not hasattr(llm, "peft_config"):
        return "it is trained without LoRA"
    causal_lm = llm.get_base_model()
    config = causal_lm.config
    if config.model_type not in SERVED:
        return f"its type is {config.model_type}, not one of {', '.join(SERVED)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if getattr(config, "pretraining_tp", 1) > 1:
        return "its config has pretraining_tp over 1"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it has sliding-window attention"
    return _why_not_lora(llm, parts_of(causal_lm))


def _why_not_lora(llm, parts):
    from peft.tuners.lora import LoraLayer

    if list(llm.peft_config) != ["default"] or llm.peft_config["default"].peft_type != "LORA":
        return "its adapter is not one of LoRA named default"
    served = {id(parts.head)}
    for layer in parts.layers:
        served |= {id(module) for module in layer.linears()}
    settings = llm.peft_config["default"]
    if settings.use_dora or getattr(settings, "lora_bias", False) or settings.bias != "none" or settings.modules_to_save:
        return "DoRA, LoRA's bias and modules_to_save are not served"
    adapters = [module for module in llm.modules() if isinstance(module, LoraLayer)]
    if any(id(module) not in served for module in adapters):
        return "LoRA lies on a layer that is none of attention, feed-forward and head"
    if any(module.merged or module.disable_adapters for module in adapters):
        return "its adapter is merged or switched off"
    expected = {id(p) for module in adapters for pair in (module.lora_A, module.lora_B) for p in pair.parameters()}
    if {id(p) for p in llm.parameters() if p.requires_grad} != expected:
        return "something other than LoRA is trained, or only a part of it"
    bases = [getattr(module, "base_layer", module) for layer in parts.layers for module in layer.linears()]
    if any(type(base).__name__ not in ("Linear", "Linear4bit") for base in [*bases, getattr(parts.head, "base_layer", parts.head)]):
        return "a linear layer of it is neither plain nor of 4 bit"
    return None

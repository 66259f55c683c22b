"""Generation with merged copies of the weights, and without cuDNN's attention: the same answers, and nothing of the model changed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fused_models import lora, tune
from torch.nn.attention import SDPBackend, sdpa_kernel

from xtuner_wulewule.engine.evaluate_chat_hook import BatchedEvaluateChatHook
from xtuner_wulewule.evaluation.runner import text_losses
from xtuner_wulewule.model import generation
from xtuner_wulewule.model.generation import last_logits, merged_for_generation, without_plans
from xtuner_wulewule.model.tiny import tiny_model
from xtuner_wulewule.recipe.ask import answer, load_tokenizer


def logits(model, ids):
    with torch.no_grad():
        return model.llm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture
def ids():
    return torch.randint(5, 500, (3, 20), generator=torch.Generator().manual_seed(3))


def adapted(model):
    return [module for module in model.llm.modules() if hasattr(module, "lora_A")]


@pytest.mark.parametrize("name", ["internlm2", "llama", "qwen2", "tied"])
def test_outputs_are_those_of_the_layers_apart(name, ids):
    model = tune(name, adapter=lora(lora_dropout=0.1)).eval()
    names, before = list(model.state_dict()), logits(model, ids)
    with merged_for_generation(model.llm) as count:
        inside = logits(model, ids)
        assert list(model.state_dict()) == names
        assert all(isinstance(layer.forward, generation._Product) for layer in adapted(model))
    assert count == len(adapted(model)) > 0
    assert inside.sub(before).norm() <= 1e-5 * before.norm()
    assert torch.equal(logits(model, ids), before)
    assert not any("forward" in layer.__dict__ for layer in adapted(model))


def test_adapters_are_taken_as_they_are_now(ids):
    model = tune("llama").eval()
    for factor in (1.0, -2.0):
        for layer in adapted(model):
            layer.lora_B["default"].weight.data *= factor
        expected = logits(model, ids)
        with merged_for_generation(model.llm):
            assert logits(model, ids).sub(expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("changes", [dict(use_dora=True), dict(bias="lora_only")], ids=["dora", "bias"])
def test_other_adapters_keep_their_way(changes, ids):
    model = tune("llama", adapter=lora(**changes)).eval()
    if "use_dora" in changes:
        with merged_for_generation(model.llm) as count:
            assert count == 0
        return
    expected = logits(model, ids)
    with merged_for_generation(model.llm):
        assert logits(model, ids).sub(expected).norm() <= 1e-5 * expected.norm()


def test_adapter_that_is_switched_off_stays_off(ids):
    model = tune("llama").eval()
    with model.llm.disable_adapter():
        expected = logits(model, ids)
        with merged_for_generation(model.llm) as count:
            assert count == 0 and torch.equal(logits(model, ids), expected)


def test_memory_that_is_not_free_is_not_taken(ids, monkeypatch):
    model = tune("llama").eval()
    expected = logits(model, ids)
    for free, enough in ((generation.SPARE, False), (generation.SPARE + 2**30, True)):
        monkeypatch.setattr(generation, "free_memory", lambda device, cached, free=free: free)
        with merged_for_generation(model.llm) as count:
            assert bool(count) == enough
            assert logits(model, ids).sub(expected).norm() <= 1e-5 * expected.norm()


def test_an_error_and_a_forward_of_somebody_else_are_survived(ids):
    model = tune("llama").eval()
    layer = adapted(model)[0]
    layer.forward = own = layer.forward
    with pytest.raises(KeyboardInterrupt), merged_for_generation(model.llm):
        raise KeyboardInterrupt
    assert layer.__dict__["forward"] is own
    assert not any("forward" in other.__dict__ for other in adapted(model)[1:])


def quantised(std):
    from fused_models import folder_of
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    llm = AutoModelForCausalLM.from_pretrained(folder_of("llama"), quantization_config=settings, torch_dtype=torch.bfloat16)
    llm = get_peft_model(llm, lora()).eval()
    for layer in llm.modules():
        if hasattr(layer, "lora_B"):
            layer.lora_B["default"].weight.data.normal_(std=std)
    return llm


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_of_4_bit(ids):
    llm, ids = quantised(0.05), ids.cuda()
    with torch.no_grad():
        expected = llm(input_ids=ids).logits.float()
        with merged_for_generation(llm) as count:
            found = llm(input_ids=ids).logits.float()
    assert count and (found - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_small_adapter_counts_in_weights_of_4_bit():
    from bitsandbytes.functional import dequantize_4bit

    layers = [layer for layer in quantised(5e-5).modules() if generation._served(layer)]
    assert len(layers) == 4  # peft adapts queries and values where no layers are named; the model has two layers
    for layer in layers:
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        share = layer.scaling["default"] * b @ a
        state = copy.copy(layer.base_layer.weight.quant_state)
        state.dtype = torch.float32
        found = generation._Product(layer).weight.float() - dequantize_4bit(layer.base_layer.weight.data, state)
        assert abs(float((found * share).sum() / share.square().sum()) - 1) < 0.3


@pytest.mark.parametrize("name", ["internlm2", "tied"])
def test_head_sees_the_last_token_only(name, ids):
    model = tune(name).eval()
    arguments = dict(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0)
    expected, whole = model.llm.generate(**arguments), logits(model, ids)
    with last_logits(model.llm):
        last = logits(model, ids)
        assert last.shape == whole[:, -1:].shape and last.sub(whole[:, -1:]).norm() <= 1e-5 * last.norm()
        assert torch.equal(model.llm.generate(**arguments), expected)
    assert torch.equal(logits(model, ids), whole)


def test_attention_without_plans():
    q = torch.randn(2, 4, 8, 16)
    mask = torch.ones(8, 8).tril().log()
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with without_plans():
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
        assert torch.allclose(torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask), expected)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_attention_without_plans_keeps_what_the_caller_chose():
    with sdpa_kernel(SDPBackend.MATH), without_plans():
        assert not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), without_plans():
        assert torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(KeyboardInterrupt), without_plans():
        raise KeyboardInterrupt
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("caller", ["answers in training", "ask", "perplexity"])
def test_who_generates_does_without_plans(caller, monkeypatch):
    model = tune("internlm2").eval()
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def noting(*args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    tokenizer = load_tokenizer(tiny_model())
    if caller == "ask":
        answer(model.llm, tokenizer, ["a", "b c"], max_new_tokens=2)
    elif caller == "perplexity":
        text_losses(model.llm, tokenizer, ["a b", "c"])
    else:
        config = dict(type=load_tokenizer, folder=tiny_model())
        hook = BatchedEvaluateChatHook(config, ["a"], max_new_tokens=2)
        runner = SimpleNamespace(cfg={}, logger=SimpleNamespace(info=lambda text: None))
        hook._eval_language(runner, model, "cpu", max_new_tokens=2)
    assert seen and not any(seen)

"""Small models with LoRA, batches for them, and their loss and gradients: for the tests of the fused step."""

import atexit
import functools
import shutil
import tempfile

import torch
from mmengine.config import ConfigDict
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from xtuner_wulewule.model.finetune import WulewuleFinetune
from xtuner_wulewule.model.tiny import tiny_model

SIZES = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama3": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_scaling=dict(
                rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
            ),
        )
    ),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "wide_heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=32)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),  # with biases
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
}


def lora(**changes):
    return LoraConfig(**{**dict(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"), **changes})


@functools.cache
def folder_of(name):
    if name == "internlm2":
        return tiny_model()
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(folder)
    return folder


def tune(name, kind=WulewuleFinetune, adapter=None, **arguments):
    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=folder_of(name),
        trust_remote_code=True,
        torch_dtype=torch.float32,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = kind(llm=llm, lora=adapter or lora(), use_activation_checkpointing=False, **arguments).train()
    generator = torch.Generator().manual_seed(1)
    for key, parameter in model.llm.named_parameters():
        if "lora_B" in key:  # zeros at first, which would hide errors in the gradients of A
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        elif "bias" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def batch(rows=3, tokens=40, documents=False, vocabulary=500):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, vocabulary, (rows, tokens), generator=generator)
    labels = torch.where(torch.rand(rows, tokens, generator=generator) < 0.4, -100, ids)
    labels[-1, 25:] = -100
    data = dict(input_ids=ids, labels=labels, position_ids=torch.arange(tokens).expand(rows, -1).contiguous())
    if documents:
        data["document_ids"] = torch.ones(rows, tokens, dtype=torch.int32)
        data["document_ids"][:, 17:] = 2
        data["document_ids"][-1, 25:] = 0
        data["position_ids"] = data["position_ids"].clone()
        data["position_ids"][:, 17:] -= 17
    return data


def grads(model, data):
    model.zero_grad()
    loss = model(data)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

"""A tiny InternLM2 that the package makes itself: XTuner's modelling code, a tokenizer trained on the packaged data, random weights.

It runs the full recipe on a CPU in minutes. What it learns is learned by heart: it shows that training works, not that it generalises.
"""

import hashlib
import json
import shutil
from pathlib import Path

from xtuner_wulewule import __version__, paths, prompts

SHAPE = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
VOCABULARY = 2048
# The frozen random weights must pass the signal on for LoRA to learn from it: unit embeddings and variance-preserving layers (1/sqrt(128)).
# At the usual 0.02 the same training stays at the frequencies of single tokens (docs/decisions.md).
EMBEDDING_STD, WEIGHT_STD = 1.0, 0.09
SEED = 0
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _texts():
    for file in sorted(paths.packaged_data_dir().glob("*.jsonl")):
        yield from file.read_text(encoding="utf-8").splitlines()
    yield from (prompts.WULEWULE_SYSTEM, prompts.WULEWULE_SYSTEM_EN)


def tiny_model_dir():
    """Return where the tiny model lies (pathlib.Path), known beforehand; its name changes with the package's version and data."""
    digest = hashlib.sha256(json.dumps([__version__, SHAPE, VOCABULARY, EMBEDDING_STD, WEIGHT_STD, SEED]).encode())
    for text in _texts():
        digest.update(text.encode("utf-8"))
    return paths.cache_dir() / f"internlm2-tiny-{digest.hexdigest()[:12]}"


def tiny_model():
    """Return the folder (str) of the tiny model; make it first where it does not exist yet.

    Several ranks and processes may start together.

    Raises:
        OSError: the cache folder cannot be written; `XDG_CACHE_HOME` moves it.
    """
    target = tiny_model_dir()
    if not (target / "config.json").is_file():
        with paths.made_aside(target, "config.json") as building:
            build_tiny_model(building)
    return str(target)


def tiny_model_or_setting():
    """Return `WULEWULE_MODEL` where it is set, else the folder of the tiny model, which is made on first use (str)."""
    return paths.model_or("") or tiny_model()


def build_tiny_model(folder):
    """Write tokenizer, modelling code, config and random weights (seed 0, fp32) of the tiny model.

    Args:
        folder (pathlib.Path): an existing folder.
    """
    import importlib.util

    xtuner = Path(importlib.util.find_spec("xtuner").submodule_search_locations[0])  # type: ignore[union-attr,index]
    for file in ("modeling_internlm2.py", "configuration_internlm2.py"):
        shutil.copyfile(xtuner / "tools" / "model_converters" / "modeling_internlm2_reward" / file, folder / file)
    _tokenizer().save_pretrained(folder)
    config = dict(
        architectures=["InternLM2ForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        },
        model_type="internlm2",
        vocab_size=VOCABULARY,
        **SHAPE,
        hidden_act="silu",
        initializer_range=WEIGHT_STD,
        rms_norm_eps=1e-5,
        bias=False,
        max_position_embeddings=4096,
        rope_theta=10000,
        pretraining_tp=1,
        attn_implementation="eager",
        tie_word_embeddings=False,
        torch_dtype="float32",
        bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
        pad_token_id=SPECIAL_TOKENS.index("</s>"),
    )
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.02)  # starts near even odds over the vocabulary
    model.save_pretrained(folder)


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=SPECIAL_TOKENS[3:],
        clean_up_tokenization_spaces=False,
    )

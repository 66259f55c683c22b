"""What a step needs of disk and GPU memory, checked before it begins."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.settings import READ_ONCE

GIB = 2**30
# bytes for each parameter of a nf4 model with double quantisation, with its constants
FOUR_BIT = 0.55
AT_A_TIME = 4096  # tokens that the fused step takes at a time, and how it holds logits: `model.fused.step` and `.decoder`
LOGITS = 4 * 1024 * 2
# a trained parameter, its gradient twice (the fused step's and autograd's), two moments in float32, and the value in bf16
TRAINED_BYTES = 22


def shapes(model):
    """Return the `config.json` (dict) of a model folder, None for a hub id that is not on this machine."""
    file = Path(model) / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def parameters(config):
    """Return the parameters (int) of a Llama- or InternLM2-shaped model from its `config.json`."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    return layers * sum(rows * columns for rows, columns in _linears(config)) + 2 * config["vocab_size"] * hidden


def lora_parameters(config, rank):
    """Return the parameters (int) of LoRA of that rank on every linear layer and the head."""
    shapes_ = config["num_hidden_layers"] * [*_linears(config)] + [(config["hidden_size"], config["vocab_size"])]
    return rank * sum(rows + columns for rows, columns in shapes_)


def _linears(config):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    key_value = hidden // heads * config.get("num_key_value_heads", heads)
    intermediate = config["intermediate_size"]
    yield hidden, hidden + 2 * key_value
    yield hidden, hidden
    for _ in range(3):
        yield hidden, intermediate


def setting(text, options, name, option, default):
    """Return a number (int) of a config: from the options, else from PART 1 of its text, else the default."""
    for value in reversed(options):
        if value.startswith(f"{option}="):
            try:
                return int(float(value.partition("=")[2]))
            except ValueError:
                raise SettingsError(f"--set {value}: {option} must be a number") from None
    match = re.search(rf"^{name} = (\d+)|\b{name}=(\d+)", text, re.MULTILINE)
    return int(match[1] or match[2]) if match else default


def training_memory(config, tokens, rank, least=False):
    """Return how many bytes (float) a QLoRA training takes on a GPU with the fused step. The rows of an iteration do not matter.

    Measured on an H100, 1.89 B parameters, rows of 2048 tokens: 10.95 GB at rank 32; this says 11.8.

    Args:
        config (dict): the model's `config.json`.
        tokens (int): tokens a row.
        rank (int): LoRA rank.
        least (bool): a row at a time, everything computed again, weights dequantised for each use: what it does where memory is short.
    """
    vocabulary, hidden, layers = config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]
    weights = parameters(config) - 2 * vocabulary * hidden
    fixed = FOUR_BIT * weights + 2 * vocabulary * hidden * 2 + TRAINED_BYTES * lora_parameters(config, rank) + LOGITS * vocabulary
    (_, qkv), *_ = _linears(config)
    attention, wide = 2 * (qkv + 3 * hidden), 4 * config["intermediate_size"]
    once = attention + 4 * wide
    if least:
        return fixed + (layers * 4 * hidden + once) * tokens
    return fixed + 2 * weights + (layers * (attention + wide) + once) * max(tokens, AT_A_TIME)


def four_bit(text):
    """Return whether a config (str, its text) loads the model in 4 bit, which needs a GPU (bool)."""
    return "BitsAndBytesConfig" in text


def free_gpu_memory():
    """Return the free bytes (int) of the first GPU that this process may use, None where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return None
    if visible:
        command += ["-i", visible.partition(",")[0]]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = output.strip().partition("\n")[0]
    return int(first) * 2**20 if first.isdigit() else None


def size(count):
    """Return a number of bytes as text, in MiB under one GiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def check_disk(folder, needed, what):
    """Raise SettingsError where `folder` has fewer than `needed` bytes free; `what` says for what."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SettingsError(
            f"{what} needs {size(needed)} on the disk of {folder}, which has {size(free)} free; make room or use another --out, then run "
            "the same command again"
        )


def check_step(step, settings):
    """Check that disk and GPU hold what a step is about to make.

    Args:
        step (xtuner_wulewule.recipe.plan.Step): the step.
        settings (xtuner_wulewule.recipe.plan.Settings): of its run.

    Raises:
        SettingsError: they don't; the message says how much is missing and what to change.
    """
    config = shapes(settings.model)
    if config is None or "intermediate_size" not in config:
        return
    text = Path(settings.config(step.stage)).read_text(encoding="utf-8")
    options = settings.options.get(step.stage, ())
    rank = setting(text, options, "r", "model.lora.r", 64)
    lora = lora_parameters(config, rank)
    needed = {
        "train": 3 * 12 * lora,  # two checkpoints are kept while a third is written; weights and two moments each
        "convert": 4 * lora,
        "merge": 2 * parameters(config) + 2**20,
    }.get(step.kind, 2**20)
    check_disk(settings.out, needed, step.name)
    if step.kind != "train" or not four_bit(text):
        return
    free = free_gpu_memory()
    tokens = setting(text, options, "max_length", READ_ONCE["max_length"], 2048)
    wanted = training_memory(config, tokens, rank, least=True)
    if free is not None and free < wanted:
        raise SettingsError(
            f"{step.name} needs {wanted / GIB:.1f} GiB of GPU memory at least and {free / GIB:.1f} GiB are free; end other programs on the "
            "GPU (nvidia-smi lists them), or use a smaller model or a GPU with more memory"
        )

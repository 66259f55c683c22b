"""Training speed on one GPU: the published recipe, TRL, TRL with Liger kernels, Unsloth and ours, on the same rows.

    python benchmarks/train_speed.py --list
    python benchmarks/train_speed.py --trl-python /path/of/trl/python --unsloth-python /path/of/unsloth/python
    python benchmarks/train_speed.py --only published,ours --repeats 1 --memory-gib 12 --out lean.json

Each run is a process of its own, and the ways take turns; with many cores one imports its packages while another is measured. All train
QLoRA (nf4, double quantisation, rank 32 on every linear layer of the blocks; the published recipe also on its head, which XTuner chooses
by itself) with AdamW, on random weights of one shape: InternLM2 for the published recipe, Llama for TRL and Unsloth, both for ours.
XTuner's two clip the gradient as the configs do, TRL as it does by default, Unsloth runs in a plain loop. An update is 16 rows, in
micro-batches of so many rows as the name says (`-b8`). A row is one document for all, so attention is causal. Names read
WAY-SHAPE-CHECKPOINTING-dDROPOUT-bMICROBATCH; `own` is Unsloth's checkpointing.

What is measured: an update from the batch on the card to the new weights, the card synchronised before and after; the median of
`--steps` after the warm-up, and over the repeats the median of those. `first_step_s` is the first update of the first repeat: compiled
code is kept for the repeats, but never beyond a run of this program. `peak_gib` is torch.cuda.max_memory_allocated of the whole process.

The share of the card is counted as follows. A frozen weight of a linear layer, head included, takes two operations a token in the forward
pass and two for the gradient of its input: 4 × weights; 2 × weights more where checkpointing computes the blocks and the head again. For
InternLM2-1.8B: 6.8 and 10.2 GFLOP a token. LoRA (3 % more) and attention (9 %) are left out, so the true share is higher. The limit is the
median rate of a large bf16 matrix product on random numbers, measured first and after each repeat.

TRL and Unsloth need transformers 5, XTuner 4.48: give the Python of an environment that holds them. A way whose packages are missing is
skipped with a line that says which; a way that fails is reported, the others go on, and the exit status is 1. Without a GPU only
`--size tiny` runs: not quantised, fp32, to see that the program works and to compare on a CPU.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 16  # of an update
RANK = 32
WARMUP = 3  # updates before the measured ones
SIZES = {
    "1_8b": dict(vocab=92544, hidden=2048, intermediate=8192, layers=24, heads=16, kv_heads=8, tokens=2048),
    "tiny": dict(vocab=2048, hidden=128, intermediate=256, layers=2, heads=4, kv_heads=2, tokens=256),
}
PACKAGES = {  # what a way imports
    "published": ["xtuner", "mmengine", "transformers", "peft", "bitsandbytes"],
    "trl": ["trl", "datasets", "transformers", "peft", "bitsandbytes"],
    "trl+liger": ["trl", "datasets", "transformers", "peft", "bitsandbytes", "liger_kernel"],
    "unsloth": ["unsloth", "unsloth_zoo", "trl", "transformers", "peft", "bitsandbytes"],
    "ours": ["xtuner_wulewule", "xtuner", "mmengine", "transformers", "peft", "bitsandbytes"],
}
IMPORTS = {  # what takes long to import, in this order
    "published": ["xtuner.model", "transformers.trainer"],
    "trl": ["trl.trainer.sft_trainer"],
    "trl+liger": ["trl.trainer.sft_trainer", "liger_kernel.transformers"],
    "unsloth": ["unsloth"],  # it wants to be the first
    "ours": ["xtuner_wulewule.model.finetune", "xtuner_wulewule.dataset.build", "transformers.trainer"],
}
CORES = 8  # from so many on, a run imports its packages while the one before it is measured
NEEDS_GPU = ("trl+liger", "unsloth")
TARGETS = {
    "internlm2": ["wqkv", "wo", "w1", "w2", "w3"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
VERSIONS = ("torch", "triton", "transformers", "peft", "bitsandbytes", "xtuner", "xtuner-wulewule", "trl", "liger-kernel", "unsloth")
KINDS = {  # of kernels, by their names
    "copies": "memcpy|memset|copy_",
    "attention": "flash|fmha|sdpa|softmax_warp",
    "dequantisation": "dequant",
    "matrix products": "gemm|nvjet|cutlass|cublas|splitk",
    "optimizer": "multi_tensor",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TIMEOUT = 900  # seconds of one run
NO_GPU = "torch sees no GPU: check nvidia-smi and torch.cuda.is_available(), or take --size tiny, which runs on a CPU"
ROOT = Path(__file__).resolve().parent
# way, shape, checkpointing, dropout, rows of a micro-batch
WAYS = [
    ("published", "internlm2", "full", 0.1, 16),
    ("published", "internlm2", "full", 0, 16),
    ("trl", "llama", "full", 0.1, 16),
    ("trl+liger", "llama", "full", 0.1, 16),
    ("trl+liger", "llama", "none", 0.1, 8),
    ("unsloth", "llama", "own", 0, 16),
    ("unsloth", "llama", "full", 0, 16),
    ("unsloth", "llama", "none", 0, 16),
    ("unsloth", "llama", "none", 0, 8),
    ("unsloth", "llama", "none", 0, 2),
    ("unsloth", "llama", "full", 0.1, 16),
    ("unsloth", "llama", "none", 0.1, 16),
    ("unsloth", "llama", "none", 0.1, 8),
    *(
        ("ours", shape, checkpointing, dropout, micro)
        for shape in ("internlm2", "llama")
        for checkpointing, micro in (("full", 2), ("none", 1), ("none", 2), ("none", 8), ("none", 16))
        for dropout in (0, 0.1)
    ),
]


def ways():
    """Return {name: settings (dict)} of everything that is measured, in order."""
    keys = ("way", "shape", "checkpointing", "dropout", "micro_batch")
    settings = [dict(zip(keys, way, strict=True)) for way in WAYS]
    return {"{way}-{shape}-{checkpointing}-d{dropout}-b{micro_batch}".format(**way): way for way in settings}


def flops_per_token(size, again):
    """Return the operations a token takes in the frozen linear layers; `again`: the forward pass is computed twice."""
    attention = 2 * size["hidden"] ** 2 + 2 * size["hidden"] ** 2 // size["heads"] * size["kv_heads"]
    block = attention + 3 * size["hidden"] * size["intermediate"]
    weights = size["layers"] * block + size["vocab"] * size["hidden"]
    return weights * (6 if again else 4)


# ---- the ways: each trains in a process of its own and returns the seconds of every update and the last loss


def build_published(model, dropout):
    """Build XTuner's own `SupervisedFinetune`, as the published config builds it.

    Args:
        model (str): folder of an InternLM2.
        dropout (float): of LoRA.

    Returns:
        tuple: the model, and the name of the type it computes in (str).
    """
    import torch
    from xtuner.model import SupervisedFinetune
    from xtuner.utils import device

    from xtuner_wulewule import compat

    compat.cpu_bf16_query(device)  # without it XTuner does not start on a CPU
    dtype = "float16" if torch.cuda.is_available() else "float32"
    llm, lora = xtuner_config(model, dropout, dtype)
    llm.attn_implementation = "eager"  # what the config gets where flash-attn is not installed
    return SupervisedFinetune(llm=llm, lora=lora, use_activation_checkpointing=True), dtype


def train_published(job):
    from xtuner.dataset.collate_fns import default_collate_fn

    return train_in_xtuner(job, *build_published(job["model"], job["dropout"]), default_collate_fn, "AmpOptimWrapper")


def build_ours(shape, dropout, checkpointing, micro_batch_tokens):
    """Build our model. The one place that knows the arguments of `WulewuleFinetune`.

    Args:
        shape (dict): `name` ("internlm2" or "llama") and `model`, its folder.
        dropout (float): of LoRA.
        checkpointing (str): "full" or "none".
        micro_batch_tokens (int): tokens that are computed at a time.

    Returns:
        tuple: the model, and the name of the type it computes in (str).
    """
    from xtuner_wulewule.device import compute_dtype
    from xtuner_wulewule.model.finetune import WulewuleFinetune

    dtype = compute_dtype()
    llm, lora = xtuner_config(shape["model"], dropout, dtype)
    lora.target_modules = TARGETS[shape["name"]]
    return WulewuleFinetune(llm=llm, lora=lora, checkpointing=checkpointing, micro_batch_tokens=micro_batch_tokens), dtype


def train_ours(job):
    from xtuner_wulewule.dataset.build import wulewule_collate_fn

    model, dtype = build_ours(
        dict(name=job["shape"], model=job["model"]), job["dropout"], job["checkpointing"], job["micro_batch"] * job["tokens"]
    )
    job = {**job, "micro_batch": ROWS}  # it divides the batch itself
    return train_in_xtuner(job, model, dtype, wulewule_collate_fn, "FusedAmpOptimWrapper")


def train_trl(job):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds = []

        def on_step_begin(self, *args, **kwargs):
            self.begin = now()

        def on_step_end(self, *args, **kwargs):
            self.seconds.append(now() - self.begin)

    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    quantised = dict(quantization_config=BitsAndBytesConfig(**four_bit(dtype)), device_map={"": 0}) if gpu else {}
    checkpointing = job["checkpointing"] == "full"
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa", **quantised),
        args=SFTConfig(
            output_dir="trainer",
            max_length=job["tokens"],
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=ROWS // job["micro_batch"],
            max_steps=WARMUP + job["steps"],
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs=dict(use_reentrant=False) if checkpointing else None,
            use_liger_kernel=job["way"] == "trl+liger",
            bf16=gpu,
            use_cpu=not gpu,
            learning_rate=2e-4,
            optim="adamw_torch_fused",
            report_to=[],
            save_strategy="no",
            logging_steps=WARMUP + job["steps"],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({name: values.tolist() for name, values in read_rows(job).items()}),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, lora_dropout=job["dropout"], task_type="CAUSAL_LM", target_modules=TARGETS[job["shape"]]
        ),
        callbacks=[clock],
    )
    return clock.seconds, trainer.train().training_loss


def train_unsloth(job):
    from unsloth import FastLanguageModel  # isort: skip  it patches what is imported after it
    import torch

    checkpointing = {"own": "unsloth", "full": True, "none": False}[job["checkpointing"]]
    model, _ = FastLanguageModel.from_pretrained(
        job["model"], max_seq_length=job["tokens"], load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=job["dropout"],
        bias="none",
        target_modules=TARGETS[job["shape"]],
        use_gradient_checkpointing=checkpointing,
        random_state=0,
    )
    FastLanguageModel.for_training(model, use_gradient_checkpointing=bool(checkpointing))
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=2e-4, fused=True)

    def update(batches):
        for batch in batches:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(**batch).loss
            (loss / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return timed(job, update, lambda rows: {name: torch.tensor(values, device="cuda") for name, values in rows.items()})


TRAIN = {"published": train_published, "trl": train_trl, "trl+liger": train_trl, "unsloth": train_unsloth, "ours": train_ours}


def four_bit(dtype):
    return dict(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4")


def xtuner_config(model, dropout, dtype):
    """Return `llm` and `lora` as an XTuner config has them (mmengine.ConfigDict)."""
    import torch
    from mmengine import ConfigDict
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=model, trust_remote_code=True, torch_dtype=f"torch.{dtype}"
    )
    if torch.cuda.is_available():
        llm.quantization_config = dict(type=BitsAndBytesConfig, **four_bit(f"torch.{dtype}"))
    lora = ConfigDict(type=LoraConfig, r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, bias="none", task_type="CAUSAL_LM")
    return llm, lora


def wrapper_of(model, dtype, kind, accumulative_counts=1):
    """Return the optimizer wrapper of the configs for a model that computes in `dtype` (str), and the device (str) it is on from now on.

    Args: besides
        kind (str): "AmpOptimWrapper", XTuner's, or "FusedAmpOptimWrapper", ours; on a CPU it is mmengine's plain one.
    """
    import torch
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    from xtuner_wulewule.engine.optim_wrapper import FusedAmpOptimWrapper

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    kinds = dict(AmpOptimWrapper=AmpOptimWrapper, FusedAmpOptimWrapper=FusedAmpOptimWrapper)
    build, amp = (kinds[kind], dict(dtype=dtype, loss_scale="dynamic")) if device == "cuda" else (OptimWrapper, {})
    wrapper = build(
        optimizer=torch.optim.AdamW(trained, lr=2e-4, weight_decay=0),
        clip_grad=dict(max_norm=1, error_if_nonfinite=False),
        accumulative_counts=accumulative_counts,
        **amp,
    )
    return wrapper, device


def collated(rows, collate, device):
    """Return a batch on a device as XTuner's loader makes it of rows (dict of arrays `input_ids` and `labels`), each one document."""
    instances = [
        dict(input_ids=ids.tolist(), labels=labels.tolist(), position_ids=list(range(len(ids))), cumulative_len=[0, len(ids)])
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    batch = collate(instances)
    batch["data"] = {name: values.to(device) for name, values in batch["data"].items() if values is not None}
    return batch


def train_in_xtuner(job, model, dtype, collate, kind):
    """Train as mmengine's loop does: `train_step` of the model, with the optimizer wrapper of the configs (`kind`)."""
    wrapper, device = wrapper_of(model, dtype, kind, ROWS // job["micro_batch"])

    def update(batches):
        for batch in batches:
            loss = model.train_step(batch, wrapper)["loss"]
        return loss

    return timed(job, update, lambda rows: collated(rows, collate, device))


def timed(job, update, collate):
    """Return the seconds of each update (list[float]) and the loss of the last (float).

    Args:
        job (dict): the run.
        update (callable): takes the micro-batches of an update, returns a loss.
        collate (callable): makes a micro-batch on the device from rows, a dict of arrays; not timed.
    """
    rows, micro, seconds = read_rows(job), job["micro_batch"], []
    total = len(rows["input_ids"])
    for step in range(WARMUP + job["steps"]):
        picked = [[(step * ROWS + first + row) % total for row in range(micro)] for first in range(0, ROWS, micro)]
        batches = [collate({name: values[numbers] for name, values in rows.items()}) for numbers in picked]
        begin = now()
        loss = update(batches)
        seconds.append(now() - begin)
    if job["profile"]:
        Path(job["profile"]).write_text(json.dumps(profiled(lambda: update(batches))), encoding="utf-8")
    return seconds, float(loss)


def profiled(work):
    """Return where the card spends its time (dict): `wall_ms`, `busy_ms`, `kinds` and `kernels`, each with calls and ms, the longest first.

    Args:
        work (callable): what is done once, under torch.profiler.
    """
    from collections import Counter

    import torch

    begin = now()
    with torch.profiler.profile() as profiler:
        work()
        now()
    wall, calls, times = (now() - begin) * 1000, Counter(), Counter()
    spans = [(one.name, one.time_range.start, one.time_range.end) for one in kernels_of(profiler.events())]
    for name, start, end in spans:
        calls[name] += 1
        times[name] += (end - start) / 1000
    kinds = Counter()
    for name, taken in times.items():
        kinds[kind_of(name)] += round(taken, 3)
    kernels = [dict(name=name, kind=kind_of(name), calls=calls[name], ms=round(taken, 3)) for name, taken in times.most_common()]
    busy = covered([span[1:] for span in spans]) / 1000
    return dict(wall_ms=round(wall, 1), busy_ms=round(busy, 1), kinds=dict(kinds.most_common()), kernels=kernels)


def kernels_of(events):
    """Return those of a profiler's events that ran on the card; the ranges that a program names hold others, and gaps."""
    import torch

    cuda = torch.autograd.DeviceType.CUDA
    return [one for one in events if one.device_type == cuda and not getattr(one, "is_user_annotation", False)]


def covered(spans):
    """Return the length of the union of spans (list[tuple[float, float]]), in their unit."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def kind_of(kernel):
    """Return what a kernel (its name, str) does, as far as its name says."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "element-wise and others")


def read_rows(job):
    import numpy

    with numpy.load(job["rows"]) as stored:
        return dict(stored)


def now():
    """Return the time once the card has done what it was asked to."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ready(job):
    """Import what a way needs, wait until the run before it has ended, and take no more of the card than the job may; return whether
    there is a GPU (bool)."""
    for package in IMPORTS[job["way"]]:
        importlib.import_module(package)
    if job["wait"]:
        sys.stdin.readline()  # until the run before it has ended
    import torch

    gpu = torch.cuda.is_available()
    if job["memory_gib"] and gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, job["memory_gib"] * 2**30 / total))
    torch.manual_seed(0)
    return gpu


def measured(job):
    """Train and return what was measured (dict)."""
    gpu = ready(job)
    import torch

    seconds, loss = TRAIN[job["way"]](job)
    step = statistics.median(seconds[WARMUP:])
    return dict(
        s_per_step=step,
        tok_s=ROWS * job["tokens"] / step,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        first_step_s=seconds[0],
        loss=loss,
        versions=versions(),
    )


def versions():
    found = {"python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ---- what the runs need: the card's rate, the models, the rows


def card(job):
    """Return the device's name and its rate in bf16 matrix products (dict; TFLOP/s, None without a GPU)."""
    import torch

    if not torch.cuda.is_available():
        return dict(device="cpu", gib=None, matmul_tflops=None)
    edge, times = 8192, []
    left, right = (torch.randn(edge, edge, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(60):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        left @ right
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    properties = torch.cuda.get_device_properties(0)
    return dict(
        device=properties.name, gib=properties.total_memory / 2**30, matmul_tflops=2 * edge**3 / statistics.median(times[10:]) / 1e12
    )


def prepare(job):
    """Write the models that are not there yet, and the rows."""
    import numpy

    from xtuner_wulewule import paths

    for shape, folder in job["models"].items():
        if not Path(folder, "config.json").is_file():
            with paths.made_aside(Path(folder), "config.json") as building:
                write_model(shape, job["size"], building)
    size, count = job["size"], ROWS * (WARMUP + job["steps"])
    if job["data"]:
        ids, labels = packed_rows(job, count)
    else:
        ids = labels = numpy.random.default_rng(0).integers(5, size["vocab"], (count, size["tokens"]))
    numpy.savez(job["rows"], input_ids=ids, labels=labels)
    return dict(rows=len(ids))


def packed_rows(job, count):
    """Return ids and labels (numpy.ndarray) of at most `count` full rows of the tuning data."""
    import numpy
    from transformers import AutoTokenizer
    from xtuner.dataset.map_fns import template_map_fn_factory
    from xtuner.utils import PROMPT_TEMPLATE

    from xtuner_wulewule.dataset.build import build_wulewule_dataset
    from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn

    files = [f"{job['data']}/{name}.jsonl" for name in ("self_cognition_100", "huixiangdou_conversations")]
    tokenizer = AutoTokenizer.from_pretrained(job["models"]["internlm2"], trust_remote_code=True)
    template = template_map_fn_factory(PROMPT_TEMPLATE.internlm2_chat)
    tokens = job["size"]["tokens"]
    dataset = build_wulewule_dataset(files, tokenizer, tokens, wulewule_sft_map_fn, template, "concat", cache_dir="datasets")
    rows = [dataset[row] for row in range(len(dataset)) if dataset.length[row] == tokens][:count]
    if not rows:
        raise ValueError(f"{job['data']} does not fill one row of {tokens} tokens")
    return tuple(numpy.array([row[name] for row in rows]) for name in ("input_ids", "labels"))


def write_model(shape, size, folder):
    """Write a model of random weights, with a tokenizer of bytes, which the peers want to load."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    common = dict(
        vocab_size=size["vocab"],
        hidden_size=size["hidden"],
        intermediate_size=size["intermediate"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_theta=1000000,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    if shape == "llama":
        config = LlamaConfig(**common)
    else:
        code = Path(
            importlib.util.find_spec("xtuner").submodule_search_locations[0], "tools", "model_converters", "modeling_internlm2_reward"
        )
        for name in ("modeling_internlm2", "configuration_internlm2"):
            shutil.copyfile(code / f"{name}.py", folder / f"{name}.py")
        classes = dict(AutoConfig="configuration_internlm2.InternLM2Config", AutoModelForCausalLM="modeling_internlm2.InternLM2ForCausalLM")
        config = dict(
            architectures=["InternLM2ForCausalLM"], auto_map=classes, model_type="internlm2", bias=False, pretraining_tp=1, **common
        )
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    model.save_pretrained(folder)
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: number for number, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>")
    fast.save_pretrained(folder)


# ---- the program


def child(file, **more):
    """Do what a job file says and write the answer, or the error, to the file that it names; `more` are jobs of other programs."""
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        answer = dict(card=card, prepare=prepare, train=measured, **more)[job["do"]](job)
    except Exception as error:
        import traceback

        traceback.print_exc()
        message = str(error).strip().split("\n")[0]
        answer = dict(error=f"{type(error).__name__}: {message}")
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


class Runs:
    """Starts runs in processes of their own.

    Args:
        folder (str): for the logs, and for what the ways compile: kept from one repeat to the next, and from no other program.
        pythons (dict): way -> its Python; others get this one.
        program (str): the program whose `--child` does a job. Defaults to this one.
    """

    def __init__(self, folder, pythons, program=__file__):
        self.folder, self.pythons, self.program, self.count = Path(folder), pythons, program, 0

    def run(self, name, job):
        """Run a job and return its answer (dict), which holds `error` and the end of the `log` where it failed."""
        return self.finish(self.start(name, job))

    def start(self, name, job, wait=False):
        """Start a job, which begins with its imports and, if `wait`, goes on at `finish`; return it (tuple)."""
        self.count += 1
        home = self.folder / name
        home.mkdir(exist_ok=True)
        file, answer, log = (self.folder / f"{self.count}-{name}.{end}" for end in ("job", "answer", "log"))
        file.write_text(json.dumps({**job, "answer": str(answer), "wait": wait}), encoding="utf-8")
        python = self.pythons.get(job.get("way"), sys.executable)
        env = {
            **os.environ,
            **OFFLINE,
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
            "TRITON_CACHE_DIR": str(home / "triton"),
        }
        if python != sys.executable:
            env.pop("PYTHONPATH", None)
        command = [python, "-W", "ignore", self.program, "--child", str(file)]
        with open(log, "w", encoding="utf-8") as stream:
            process = subprocess.Popen(command, env=env, cwd=home, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT)
        return process, answer, log

    def finish(self, started):
        """Let a job go on; return what `run` returns."""
        process, answer, log = started
        try:
            process.communicate(b"\n", timeout=TIMEOUT)
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = f"nothing after {TIMEOUT} s"
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if answer.is_file():
            found = json.loads(answer.read_text(encoding="utf-8"))
        else:
            found = dict(error=f"the process ended with status {status}: {lines[-1] if lines else 'no output'}")
        return {**found, "log": lines[-40:]} if "error" in found else found

    @staticmethod
    def stop(started):
        """End a job that waits."""
        started[0].kill()
        started[0].communicate()

    def missing(self, way):
        """Return the packages that a way lacks in its Python (list[str])."""
        code = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"
        python = self.pythons.get(way, sys.executable)
        return subprocess.run([python, "-c", code, *PACKAGES[way]], capture_output=True, text=True, check=True).stdout.split()


def row_of(name, settings, found, size, tflops):
    """Return the row of a way from its repeats (list[dict])."""
    step = statistics.median(one["s_per_step"] for one in found)
    tok_s = ROWS * size["tokens"] / step
    again = settings["checkpointing"] != "none"
    return dict(
        name=name,
        **settings,
        tok_s=round(tok_s),
        s_per_step=round(step, 4),
        peak_gib=round(max(one["peak_gib"] for one in found), 2) if found[0]["peak_gib"] else None,
        first_step_s=round(found[0]["first_step_s"], 2),
        later_first_steps_s=[round(one["first_step_s"], 2) for one in found[1:]],
        matmul_share=round(tok_s * flops_per_token(size, again) / tflops / 1e12, 4) if tflops else None,
        repeats_tok_s=[round(one["tok_s"]) for one in found],
        loss=round(found[-1]["loss"], 4),
    )


def summary(rows):
    """Return the ratios of ours to the best of each other way (list[dict]): lean (12 GiB at most) and roomy, at each dropout."""
    found = []
    for lean in (True, False):
        fitting = [row for row in rows if not lean or (row["peak_gib"] is not None and row["peak_gib"] <= 12)]
        for dropout in (0, 0.1):
            ours = max(
                (row for row in fitting if row["way"] == "ours" and row["dropout"] == dropout), key=lambda row: row["tok_s"], default=None
            )
            if ours is None:
                continue
            ratios = {}
            for way in ("published", "trl", "trl+liger", "unsloth"):
                same = [row for row in (rows if way == "published" else fitting) if row["way"] == way]
                same = [row for row in same if row["dropout"] == dropout] or ([] if way == "unsloth" else same)
                if same:
                    best = max(same, key=lambda row: row["tok_s"])
                    ratios[way] = dict(name=best["name"], times=round(ours["tok_s"] / best["tok_s"], 3))
            found.append(dict(memory="lean" if lean else "roomy", dropout=dropout, name=ours["name"], over=ratios))
    return found


def table(result):
    """Return the results as Markdown (str)."""
    head = [
        "what",
        "dropout",
        "checkpointing",
        "micro-batch",
        "tokens/s",
        "s an update",
        "peak GiB",
        "first update s",
        "share of matmul rate",
    ]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row in result["rows"]:
        share = "" if row["matmul_share"] is None else f"{row['matmul_share']:.0%}"
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        cells = [f"{row['way']}, {row['shape']}", row["dropout"], row["checkpointing"], row["micro_batch"], f"{row['tok_s']:,}"]
        lines.append(" | ".join(map(str, [*cells, f"{row['s_per_step']:.3f}", peak, f"{row['first_step_s']:.1f}", share])))
    lines = [f"| {line} |" for line in lines]
    for part in result["summary"]:
        over = ", ".join(f"{ratio['times']:.2f} × {ratio['name']}" for ratio in part["over"].values())
        lines.append(f"\n{part['memory']}, dropout {part['dropout']}: {part['name']} is {over or 'alone'}")
    return "\n".join(lines)


def target_of(args, benchmark, device, besides=()):
    """Return where the results of a benchmark go (pathlib.Path); end the program where something is there that may not be replaced.

    Args:
        args (argparse.Namespace): `out` and `overwrite`.
        benchmark (str): its name.
        device (str): on which it runs.
        besides (tuple[str, ...]): endings of files that are written beside the results.
    """
    target = args.out or ROOT / "results" / f"{benchmark}_{'-'.join(device.lower().split())}.json"
    there = [file for file in (target, *map(target.with_suffix, besides)) if file.exists()]
    if there and not args.overwrite:
        sys.exit(f"{there[0]} exists: name another file with --out, or replace it with --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def label_of(size):
    """Return the name of a shape (str), by which its model is kept."""
    return "-".join(str(size[key]) for key in ("vocab", "hidden", "intermediate", "layers", "heads", "kv_heads"))


def random_model(runs, size, scratch):
    """Return the folder (pathlib.Path) of an InternLM2 of random weights; end the program where it cannot be made.

    Args:
        runs (Runs): makes it in a process of its own, where it is not there yet.
        size (dict): its shape, of SIZES.
        scratch (pathlib.Path): where such models are kept.
    """
    model = scratch.resolve() / f"internlm2-{label_of(size)}"
    job = dict(do="prepare", models=dict(internlm2=str(model)), size=size, steps=1, data=None, rows=str(runs.folder / "rows.npz"))
    made = runs.run("prepare", job)
    if "error" in made:
        sys.exit(f"the model cannot be made: {made['error']}")
    return model


def write(result, target):
    """Write the results through a temporary name."""
    from xtuner_wulewule.recipe.state import write_json

    write_json(target, result)


def say(text):
    print(text, file=sys.stderr, flush=True)


def chosen(runs, only, gpu):
    """Return {name: settings} of the ways that can run; say which can't and why."""
    picked, skipped = {}, {}
    for name, settings in ways().items():
        way = settings["way"]
        if not name.startswith(only):
            continue
        if way not in skipped:
            lacking = runs.missing(way)
            reason = f"not installed: {', '.join(lacking)} ({runs.pythons.get(way, sys.executable)})" if lacking else ""
            skipped[way] = "it needs a GPU" if not gpu and way in NEEDS_GPU else reason
            if skipped[way]:
                say(f"{way} skipped: {skipped[way]}")
        if not skipped[way]:
            picked[name] = settings
    return picked


def size_of(folder):
    """Return the shape (dict) of a model folder."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    names = dict(
        vocab="vocab_size",
        hidden="hidden_size",
        intermediate="intermediate_size",
        layers="num_hidden_layers",
        heads="num_attention_heads",
        kv_heads="num_key_value_heads",
    )
    return {name: config[key] for name, key in names.items()} | dict(tokens=2048)


def parsed():
    if importlib.util.find_spec("xtuner_wulewule") is None:
        sys.exit("train_speed needs this plugin in its own Python: pip install -e .")
    from xtuner_wulewule import paths

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", default="", metavar="PREFIX,…", help="only names that begin so: published,ours-llama-none")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--steps", type=int, default=8, help=f"measured updates of a run, after {WARMUP} to warm up (8)")
    parser.add_argument("--memory-gib", type=float, help="let each run have only so much of the card's memory")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="rows from the two files of conversations there, tokenised by the tokenizer of --internlm2"
    )
    parser.add_argument(
        "--internlm2", type=Path, metavar="DIR", help="an InternLM2 model instead of one of random weights; the Llama gets its shape"
    )
    parser.add_argument("--size", choices=SIZES, default="1_8b", help="shape of the random weights (1_8b)")
    parser.add_argument("--trl-python", default=sys.executable, metavar="FILE", help="Python of the environment with TRL (this one)")
    parser.add_argument(
        "--unsloth-python", default=sys.executable, metavar="FILE", help="Python of the environment with Unsloth (this one)"
    )
    default = paths.cache_dir() / "train_speed"
    parser.add_argument("--scratch", type=Path, default=default, metavar="DIR", help=f"for the models, 8 GB at 1_8b, kept ({default})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the results go (benchmarks/results/train_speed_DEVICE.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="write there, as NAME.json, the kernels of one more update of each way but TRL's"
    )
    args = parser.parse_args()
    for option, file in (("--trl-python", args.trl_python), ("--unsloth-python", args.unsloth_python)):
        if shutil.which(file) is None:
            parser.error(f"{option} {file} is not a program")
    if args.data and not args.internlm2:
        parser.error("--data needs --internlm2, whose tokenizer it takes")
    if args.internlm2 and not (args.internlm2 / "config.json").is_file():
        parser.error(f"--internlm2 {args.internlm2} has no config.json")
    if args.repeats < 1 or args.steps < 1:
        parser.error("--repeats and --steps are at least 1")
    return args


def main():
    args = parsed()
    only = tuple(args.only.split(","))
    if args.list:
        print("\n".join(name for name in ways() if name.startswith(only)))
        return 0
    with tempfile.TemporaryDirectory(prefix="train_speed-") as folder:
        pythons = {"trl": args.trl_python, "trl+liger": args.trl_python, "unsloth": args.unsloth_python}
        return benchmark(args, only, Runs(folder, {way: os.path.abspath(shutil.which(file)) for way, file in pythons.items()}))


def in_turn(runs, todo, start):
    """Yield (repeat, name, answer) of each run of `todo` (list of repeat and name) in turn; a name that failed once is left out.

    On a machine of many cores a run imports its packages while the one before it is measured.
    """
    todo, failed, ahead = list(todo), set(), None
    while todo:
        repeat, name = todo.pop(0)
        if name in failed:
            continue
        current = ahead or start(repeat, name)
        ahead = start(*todo[0]) if todo and todo[0][1] not in {*failed, name} and (os.cpu_count() or 1) >= CORES else None
        try:
            answer = runs.finish(current)
        except BaseException:
            if ahead:
                runs.stop(ahead)
            raise
        if "error" in answer:
            failed.add(name)
        yield repeat, name, answer


def benchmark(args, only, runs):
    """Run everything and return the exit status (int)."""
    found = runs.run("card", dict(do="card"))
    if "error" in found:
        sys.exit(f"the card cannot be used: {found['error']}")
    device, gpu = found["device"], found["matmul_tflops"] is not None
    if not gpu and (args.size != "tiny" or args.internlm2):
        sys.exit(NO_GPU)
    target = target_of(args, "train_speed", device)
    picked = chosen(runs, only, gpu)
    if not picked:
        sys.exit(f"nothing to run: --only {args.only!r} fits no way that can run here; --list names them all")
    size = size_of(args.internlm2) if args.internlm2 else SIZES[args.size]
    models = {shape: str(args.scratch.resolve() / f"{shape}-{label_of(size)}") for shape in ("internlm2", "llama")}
    if args.internlm2:
        models["internlm2"] = str(args.internlm2.resolve())
    rows_file = str(runs.folder / "rows.npz")
    data = str(args.data.resolve()) if args.data else None
    say("models and rows …")
    if args.profile:
        args.profile.mkdir(parents=True, exist_ok=True)
    prepared = runs.run("prepare", dict(do="prepare", models=models, size=size, steps=args.steps, data=data, rows=rows_file))
    if "error" in prepared:
        sys.exit(f"models and rows cannot be made: {prepared['error']}")

    def start(repeat, name):
        job = dict(do="train", model=models[picked[name]["shape"]], rows=rows_file, tokens=size["tokens"], steps=args.steps)
        profile = str(args.profile.resolve() / f"{name}.json") if args.profile and not repeat else None
        return runs.start(name, {**job, **picked[name], "memory_gib": args.memory_gib, "profile": profile}, wait=True)

    answers, failed, rates, known = {}, {}, [found["matmul_tflops"]], {}
    for repeat, name, answer in in_turn(runs, [(repeat, name) for repeat in range(args.repeats) for name in picked], start):
        if "error" in answer:
            failed[name] = answer
            say(f"{name:36} failed: {answer['error']}")
        else:
            known[picked[name]["way"]] = answer.pop("versions")
            answers.setdefault(name, []).append(answer)
            peak = "" if answer["peak_gib"] is None else f"{answer['peak_gib']:7.1f} GiB"
            say(f"{name:36} {answer['tok_s']:9.0f} tokens/s {answer['s_per_step']:8.3f} s{peak}  first {answer['first_step_s']:.1f} s")
        if gpu and name == list(picked)[-1]:
            rates += filter(None, [runs.run("card", dict(do="card")).get("matmul_tflops")])
        tflops = statistics.median(rates) if gpu else None
        rows = [row_of(name, picked[name], answers[name], size, tflops) for name in picked if name in answers]
        result = dict(
            device=device,
            device_gib=found["gib"],
            versions=known,
            matmul_tflops=tflops,
            gflop_per_token={"none": flops_per_token(size, False) / 1e9, "checkpointing": flops_per_token(size, True) / 1e9},
            settings=dict(
                size=size, rows=ROWS, rank=RANK, steps=args.steps, repeats=repeat + 1, memory_gib=args.memory_gib, data=bool(data)
            ),
            rows=rows,
            summary=summary(rows),
            failed=[dict(name=name, **answer) for name, answer in failed.items()],
        )
        write(result, target)  # after each run: what was measured is there, whatever ends the program
    print(table(result))
    say(f"written: {target}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        sys.exit(main())

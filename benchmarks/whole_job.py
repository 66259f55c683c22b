"""The whole instruction tuning, from the command to the checkpoint: ours beside the published recipe with its evaluation, part by part.

    python benchmarks/whole_job.py --data DIR --model DIR
    python benchmarks/whole_job.py --data DIR --model DIR --only published --epochs 1 --time-limit 500 --out one_epoch.json
    python benchmarks/whole_job.py --size tiny --epochs 1 --out tiny.json    # on a CPU, to see that it works

Each run is the command of a user, `xtuner train CONFIG --work-dir … --seed 0`, in processes of its own, one after the other, with empty
caches of data and a time limit. CONFIG is

  ours       the packaged `wulewule_sft_SIZE` as it is, but for the number of epochs;
  published  the settings of the config that the original project published (xtuner_config/finetune in its repository), all of them XTuner's
             own parts: `SupervisedFinetune`, fp16 and nf4, eager attention (what InternLM2 gets without flash-attn), checkpointing of
             activations, LoRA r 32 on every linear layer, head included; `process_hf_dataset` and its packing with 32 processes; 16 rows of
             2048 tokens; `EvaluateChatHook` and `CheckpointHook` every 10 iterations. That hook answers four prompts one after the other,
             with up to 600 tokens each (its default), every 10 iterations, at the last iteration, and again after it; before the first with
             up to 50. Different here: the four prompts are those of our config, and size tiny, which has our config's rows, is fp32 and not
             quantised.

Each gets `whole_job_hook.py` on top, which notes when a phase begins and ends. The plugin is loaded in both, so that the published recipe
runs with the defects of XTuner and mmengine mended that `xtuner_wulewule/compat.py` lists: it does not sleep two seconds between epochs,
and a run that fails says so. Its schedule, LinearLR then CosineAnnealingLR, is as published: on the published data its learning rate is
stuck at 1e-5 of the asked one (`highest learning rate` in the table), so it takes its time and learns nothing. Where fewer epochs are run
than the published 5, that schedule is the beginning of that of 5, and nothing is extrapolated.

Without --model the weights are random, of the shape of InternLM2.5-1.8B, and made once. Such a model hardly ever ends an answer, so all of
them run to their limit; and its tokenizer is one of bytes, about four times as many tokens as InternLM2's: take a model with InternLM2's
tokenizer to measure the published job. The published config gives rows without a system prompt none, ours that of the package: the
published data has one in every row, the packaged samples, taken without --data, have none.

Parts, in seconds of wall time; each moment belongs to one of them, the innermost:

  start             from the command to the beginning of mmengine's runner: Python, imports, the config
  model             building and loading it, onto the card and, with DeepSpeed, into its engine; where DeepSpeed has to compile a library
                    first, as on a CPU, only the first run does
  data set          from the files to packed rows
  evaluation        all rounds of answers; a round is the answers of one hook at one time
  first iteration   with what is compiled and recorded in it
  other iterations  the later ones, fetching their batches included
  checkpoints       saving them
  end               from the last checkpoint to the end of the process, without evaluation
  rest              what is in none of these: hooks, tokenizers, optimizer, logs

`adds_up` says whether they sum to the total, taken outside of the process, within 1 %. `updates` counts those that a loss scale skips, too.
`peak_gib` is the highest torch.cuda.max_memory_allocated, evaluation included. Tokens are those of the batches, without padding; trained
are those with a label.

Results: FILE.json, written after each run, and a table on stdout. A run that reaches its time limit is ended, and reported as cut off with
the parts so far; what had begun, counts up to then. A run that fails is reported with the end of its log, the other goes on, and the exit
status is 1. Without a GPU only `--size tiny` runs.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import train_speed
from scaling import environment, run_for
from train_speed import NO_GPU, Runs, covered, random_model, say, target_of, write

WAYS = ("ours", "published")
EPOCHS = 5  # of the published recipe
FILES = ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")
# rows of a batch and tokens of a row: as published, and those of our config; both configs of a size have the same
SIZES = {"1_8b": dict(batch_size=16, max_length=2048), "tiny": dict(batch_size=2, max_length=1024)}
PARTS = {
    "start": "start",
    "model": "model",
    "data": "data set",
    "evaluation": "evaluation",
    "first_iteration": "first iteration",
    "iterations": "other iterations",
    "checkpoints": "checkpoints",
    "end": "end",
    "rest": "rest",
}
TOLERANCE = 0.01  # of the total, by which the parts may miss it
PUBLISHED = """\
# Written by whole_job.py: the settings of the published recipe, in XTuner's own parts.
from datasets import load_dataset
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.visualization import TensorboardVisBackend, Visualizer
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from xtuner.dataset import process_hf_dataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.engine.hooks import DatasetInfoHook, EvaluateChatHook
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune
from xtuner.utils import PROMPT_TEMPLATE

pretrained_model_name_or_path = {model!r}
data_files = {data_files!r}
prompt_template = PROMPT_TEMPLATE.internlm2_chat
max_length = {max_length}
batch_size = {batch_size}
max_epochs = {epochs}
schedule_epochs = {schedule_epochs}  # a shorter run is the beginning of the published one
warmup_ratio = 0.03
half = {half}  # a 4-bit model in fp16, else the model as it is in fp32
evaluation_inputs = {prompts!r}

tokenizer = dict(
    type=AutoTokenizer.from_pretrained,
    pretrained_model_name_or_path=pretrained_model_name_or_path,
    trust_remote_code=True,
    padding_side="right",
)
llm = dict(
    type=AutoModelForCausalLM.from_pretrained,
    pretrained_model_name_or_path=pretrained_model_name_or_path,
    trust_remote_code=True,
    torch_dtype="torch.float16" if half else "torch.float32",
    attn_implementation="eager",
)
if half:
    llm["quantization_config"] = dict(
        type=BitsAndBytesConfig,
        load_in_4bit=True,
        load_in_8bit=False,
        llm_int8_threshold=6.0,
        llm_int8_has_fp16_weight=False,
        bnb_4bit_compute_dtype="torch.float16",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
    )
model = dict(
    type=SupervisedFinetune,
    use_varlen_attn=False,
    use_activation_checkpointing=True,
    llm=llm,
    lora=dict(type=LoraConfig, r=32, lora_alpha=64, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM"),
)

train_dataset = dict(
    type=process_hf_dataset,
    dataset=dict(type=load_dataset, path="json", data_files=dict(train=data_files)),
    tokenizer=tokenizer,
    max_length=max_length,
    dataset_map_fn=None,
    template_map_fn=dict(type=template_map_fn_factory, template=prompt_template),
    remove_unused_columns=True,
    shuffle_before_pack=True,
    pack_to_max_length=True,
    use_varlen_attn=False,
    map_num_proc=32,  # XTuner's default
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=0,
    dataset=train_dataset,
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=default_collate_fn, use_varlen_attn=False),
)

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, betas=(0.9, 0.999), weight_decay=0),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=1,
)
if half:
    optim_wrapper.update(type=AmpOptimWrapper, loss_scale="dynamic", dtype="float16")
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-5, by_epoch=True, begin=0, end=warmup_ratio * schedule_epochs, convert_to_iter_based=True),
    dict(
        type=CosineAnnealingLR,
        eta_min=0.0,
        by_epoch=True,
        begin=warmup_ratio * schedule_epochs,
        end=schedule_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)

custom_hooks = [
    dict(type=DatasetInfoHook, tokenizer=tokenizer),
    dict(
        type=EvaluateChatHook,
        tokenizer=tokenizer,
        every_n_iters=10,
        evaluation_inputs=evaluation_inputs,
        system={system!r},
        prompt_template=prompt_template,
    ),
]
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=10, max_keep_ckpts=5),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend=__import__("xtuner_wulewule.device", fromlist=["_"]).dist_backend()),
)
visualizer = dict(type=Visualizer, vis_backends=[dict(type=TensorboardVisBackend)])
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
log_processor = dict(by_epoch=False)
"""
ADDED = """
from whole_job_hook import PhaseHook

stamps = __import__("whole_job_hook").begin({stamps!r})
custom_hooks.append(dict(type=PhaseHook, stamps=stamps))
"""


def write_config(way, size, model, data, epochs, stamps, file):
    """Write the config of a run.

    Args:
        way (str): of WAYS.
        size (str): of SIZES.
        model (pathlib.Path): the folder of the model, for the published way; ours takes it from the environment.
        data (pathlib.Path): the folder of the data, as the model.
        epochs (int): to train, as the model.
        stamps (pathlib.Path): where the hook writes.
        file (pathlib.Path): where to.
    """
    from mmengine.config import Config

    from xtuner_wulewule import paths

    packaged = paths.config_paths()[f"wulewule_sft_{size}"]
    if way == "ours":
        text = Path(packaged).read_text(encoding="utf-8")
    else:
        config = Config.fromfile(packaged)
        text = PUBLISHED.format(
            model=str(model),
            data_files=[str(data / name) for name in FILES],
            epochs=epochs,
            schedule_epochs=max(epochs, EPOCHS),
            half=size != "tiny",
            prompts=list(config.evaluation_inputs),
            system=config.SYSTEM,
            **SIZES[size],
        )
    file.write_text(text + ADDED.format(stamps=str(stamps)), encoding="utf-8")


def command(way, config, work_dir, epochs, deepspeed, cache):
    """Return the command line of a run (list[str]); `cache` is an empty folder for our data set."""
    options = {"train_cfg.max_epochs": epochs, "train_dataloader.dataset.cache_dir": cache}
    return [
        *(str(Path(sys.executable).parent / "xtuner"), "train", str(config), "--work-dir", str(work_dir), "--seed", "0"),
        *(["--deepspeed", deepspeed] if deepspeed else []),
        *(["--cfg-options", *(f"{name}={value}" for name, value in options.items())] if way == "ours" else []),
    ]


def spans_of(stamps, end, finished):
    """Return what began and ended (list[dict]: `part`, `begin`, `end`, `closed` and what else was noted), in the order of beginning.

    Args:
        stamps (list[dict]): rows of the hook.
        end (float): when the process had ended; what had not, ends then.
        finished (bool): whether it ended by itself, so that there is a part "end".
    """
    spans, opened = [], []
    for row in stamps:
        if row["what"] == "begin":
            facts = {key: value for key, value in row.items() if key not in ("what", "at")}
            spans.append(dict(facts, begin=row["at"], end=end, closed=False))
            opened.append(spans[-1])
        elif row["what"] == "end":
            span = next((one for one in reversed(opened) if one["part"] == row["part"]), None)
            if span is not None:
                opened.remove(span)
                span.update(end=row["at"], closed=True)
    saved = [span["end"] for span in spans if span["part"] == "checkpoints" and span["closed"]]
    if finished and saved:
        spans.append(dict(part="end", begin=max(saved), end=end, closed=True))
    for span in spans:
        if span["part"] == "iteration":
            span["part"] = "iterations" if span["iteration"] else "first_iteration"
    return sorted(spans, key=lambda span: span["begin"])


def self_times(spans):
    """Return of each span (list[float]) the seconds that are its own: a moment belongs to that which began last of those that hold it.

    Args:
        spans (list[dict]): in the order of beginning; they may overlap in any way.
    """
    found, active, next_one = [0.0] * len(spans), [], 0
    for left, right in pairwise(sorted({edge for span in spans for edge in (span["begin"], span["end"])})):
        while next_one < len(spans) and spans[next_one]["begin"] <= left:
            active.append(next_one)
            next_one += 1
        active = [number for number in active if spans[number]["end"] > left]
        if active:
            found[active[-1]] += right - left
    return found


def figures(stamps, begin, end, finished):
    """Return the figures of a run (dict).

    Args:
        stamps (list[dict]): rows of the hook, the first of which, the beginning of "start", is this program's.
        begin (float): when the command was given.
        end (float): when its process had ended.
        finished (bool): whether it ended by itself.
    """
    from xtuner_wulewule.engine.accumulation import count_updates

    spans = spans_of(stamps, end, finished)
    times = self_times(spans)
    parts = dict.fromkeys(PARTS, 0.0)
    steps = {}
    for span, seconds in zip(spans, times, strict=True):
        parts[span["part"]] += seconds
        if span["part"] in ("first_iteration", "iterations"):
            steps[span["iteration"]] = steps.get(span["iteration"], 0.0) + seconds
    total = end - begin
    # taken from the whole, not from the sum: where a time lies outside of the run, the parts do not add up
    parts["rest"] = total - covered([(max(begin, span["begin"]), min(end, span["end"])) for span in spans])
    done = {row["iteration"]: row for row in stamps if row["what"] == "iteration"}
    later = [seconds for number, seconds in steps.items() if number and number in done]
    rounds = {}
    for span in spans:
        if span["part"] == "evaluation" and span["closed"]:
            rounds[span["hook"]] = rounds.get(span["hook"], 0) + 1
    plan = next((row for row in stamps if row["what"] == "plan"), None)
    losses = [done[number]["loss"] for number in sorted(done)]
    peaks = [row["peak"] for row in stamps if row.get("peak")]
    return dict(
        total_s=round(total, 2),
        parts={name: round(seconds, 2) for name, seconds in parts.items()},
        adds_up=abs(sum(parts.values()) - total) <= TOLERANCE * total,
        rounds=sum(rounds.values()),
        rounds_of=rounds,
        checkpoints=sum(span["part"] == "checkpoints" and span["closed"] for span in spans),
        iterations=len(done),
        planned_iterations=plan and plan["iterations"],
        updates=plan and count_updates(len(done), plan["accumulative_counts"], plan["flushes_remainder"] and finished),
        tokens=sum(row["tokens"] for row in done.values()),
        trained_tokens=sum(row["trained"] for row in done.values()),
        s_per_iteration=round(statistics.median(later), 4) if later else None,
        peak_gib=round(max(peaks) / 2**30, 2) if peaks else None,
        highest_lr=max((row["lr"] for row in done.values()), default=None),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


def table(rows):
    """Return the results as Markdown (str), a column a run."""
    lines = [["seconds", *(f"{row['way']}{', cut off' * row['cut_off']}" for row in rows)]]
    lines.append(["---"] * len(lines[0]))
    for name, label in PARTS.items():
        lines.append([label, *(f"{row['parts'][name]:.1f}" for row in rows)])
    lines.append(["total", *(f"{row['total_s']:.1f}" for row in rows)])
    for label, key, form in (
        ("rounds of evaluation", "rounds", ""),
        ("checkpoints saved", "checkpoints", ""),
        ("epochs", "epochs", ""),
        ("updates", "updates", ","),
        ("tokens", "tokens", ","),
        ("of them trained", "trained_tokens", ","),
        ("s an iteration, median", "s_per_iteration", ".3f"),
        ("peak GiB", "peak_gib", ".1f"),
        ("highest learning rate", "highest_lr", ".2g"),
        ("first loss", "first_loss", ".2f"),
        ("last loss", "last_loss", ".2f"),
    ):
        lines.append([label, *("" if row[key] is None else format(row[key], form) for row in rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes_of(rows, settings):
    """Return what must be said with the results (list[str])."""
    notes = []
    if settings["epochs"] < EPOCHS:
        notes.append(f"{settings['epochs']} of the published {EPOCHS} epochs; nothing is extrapolated to {EPOCHS}")
    if not settings["model_given"]:
        notes.append("random weights and a tokenizer of bytes: answers run to their limit, and the data has about four times the tokens")
    for row in rows:
        if row["cut_off"]:
            notes.append(
                f"{row['way']} was cut off after {settings['time_limit_s']} s, with {row['iterations']} of "
                f"{row['planned_iterations'] or 'an unknown number of'} iterations done"
            )
        if not row["adds_up"]:
            notes.append(f"{row['way']}: the parts sum to {sum(row['parts'].values()):.1f} s instead of {row['total_s']:.1f} s")
    whole = {row["way"]: row["total_s"] for row in rows if not row["cut_off"]}
    if len(whole) == len(WAYS):
        notes.append(f"published took {whole['published'] / whole['ours']:.2f} times as long as ours")
    return notes


def parsed():
    if importlib.util.find_spec("xtuner_wulewule") is None:
        sys.exit("whole_job needs this plugin in its own Python: pip install -e .")
    from xtuner_wulewule import paths

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"a folder with {' and '.join(FILES)} (the packaged samples)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="an InternLM2 model (one of random weights)")
    parser.add_argument("--size", choices=SIZES, default="1_8b", help="of the config, and of the random weights (1_8b)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"of both ({EPOCHS}, as published)")
    parser.add_argument("--only", default=",".join(WAYS), metavar="WAY,…", help=f"what to run, in this order ({','.join(WAYS)})")
    parser.add_argument(
        "--deepspeed",
        nargs="?",
        const="",
        metavar="CONFIG",
        help="passed on to both; without a name deepspeed_zero1, for size tiny deepspeed_zero1_fp32",
    )
    parser.add_argument("--time-limit", type=int, default=7200, metavar="S", help="seconds of a run, after which it is cut off (7200)")
    default = paths.cache_dir() / "train_speed"
    parser.add_argument(
        "--scratch", type=Path, default=default, metavar="DIR", help=f"for the random weights, 4 GB at 1_8b, kept ({default})"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the results go (benchmarks/results/whole_job_DEVICE.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    args = parser.parse_args()
    args.only = list(dict.fromkeys(args.only.split(",")))
    unknown = [way for way in args.only if way not in WAYS]
    if unknown:
        sys.exit(f"--only {unknown[0]} is none of {', '.join(WAYS)}")
    if args.epochs < 1 or args.time_limit < 1:
        sys.exit("--epochs and --time-limit are at least 1")
    if args.out and args.out.suffix != ".json":
        sys.exit(f"--out {args.out} must end in .json")
    args.data = (args.data or paths.packaged_data_dir()).resolve()
    lacking = [name for name in FILES if not (args.data / name).is_file()]
    if lacking:
        sys.exit(f"--data {args.data} has no {lacking[0]}")
    if args.model and not (args.model / "config.json").is_file():
        sys.exit(f"--model {args.model} has no config.json")
    if args.deepspeed == "":
        args.deepspeed = "deepspeed_zero1" + "_fp32" * (args.size == "tiny")
    return args


def main():
    args = parsed()
    with tempfile.TemporaryDirectory(prefix="whole_job-") as folder:
        return benchmark(args, Path(folder))


def benchmark(args, folder):
    """Run everything and return the exit status (int)."""
    runs = Runs(folder, {})
    found = runs.run("card", dict(do="card"))
    if "error" in found:
        sys.exit(f"the card cannot be used: {found['error']}")
    device, gpu = found["device"], found["matmul_tflops"] is not None
    if not gpu and args.size != "tiny":
        sys.exit(NO_GPU)
    target = target_of(args, "whole_job", device)
    if args.model:
        model = args.model.resolve()
    else:
        say("model …")
        model = random_model(runs, train_speed.SIZES[args.size], args.scratch)
    settings = dict(
        size=args.size,
        **SIZES[args.size],
        epochs=args.epochs,
        published_epochs=EPOCHS,
        model_given=args.model is not None,
        rows={name: sum(map(bool, map(str.strip, (args.data / name).read_text(encoding="utf-8").splitlines()))) for name in FILES},
        deepspeed=args.deepspeed,
        time_limit_s=args.time_limit,
    )
    rows, failed = [], []
    for way in args.only:
        say(f"{way} …")
        row = run(way, args, model, gpu, folder / way)
        (failed if "error" in row else rows).append(row)
        if "error" in row:
            say(f"{way} failed: {row['error']}: {(row['log'] or ['no output'])[-1].strip()}")
        else:
            cut_off = ", cut off" if row["cut_off"] else ""
            say(f"{way}: {row['total_s']:.1f} s, {row['parts']['evaluation']:.1f} of them evaluation{cut_off}")
        notes = notes_of(rows, settings)
        result = dict(device=device, versions=train_speed.versions(), settings=settings, notes=notes, rows=rows, failed=failed)
        write(result, target)  # after each run: what was measured is there, whatever ends the program
    if rows:
        print(table(rows))
        print("".join(f"\n* {note}" for note in notes))
    say(f"written: {target}")
    return 1 if failed else 0


def run(way, args, model, gpu, home):
    """Run a way and return its row (dict), which holds `error` and the end of the `log` where it failed.

    Args:
        way (str): of WAYS.
        args (argparse.Namespace): the options.
        model (pathlib.Path): the folder of the model.
        gpu (bool): whether there is one.
        home (pathlib.Path): a folder that is made, for config, log and checkpoints.
    """
    from xtuner_wulewule.errors import StepError
    from xtuner_wulewule.recipe.results import is_whole, last_checkpoint, read_rows

    home.mkdir()
    config, work_dir, stamps, log = home / f"{way}_sft_{args.size}.py", home / "work", home / "stamps.jsonl", home / "log"
    write_config(way, args.size, model, args.data, args.epochs, stamps, config)
    arguments = command(way, config, work_dir, args.epochs, args.deepspeed, home / "cache" / "ours")
    env = environment(1, model, args.data, one_thread=not gpu) | {"HF_DATASETS_CACHE": str(home / "cache" / "datasets")}
    begin = time.monotonic()
    stamps.write_text(json.dumps(dict(what="begin", part="start", at=begin)) + "\n", encoding="utf-8")
    status = run_for(args.time_limit, arguments, env, log)
    end = time.monotonic()
    row = dict(way=way, epochs=args.epochs, cut_off=status is None, **figures(read_rows(stamps), begin, end, finished=status == 0))
    try:
        if status:
            raise StepError(f"it ended with status {status}")
        if status == 0 and not is_whole(last_checkpoint(work_dir)):
            raise StepError("its last checkpoint is not whole")
    except StepError as error:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return dict(row, error=str(error), log=lines[-100:])
    return row


if __name__ == "__main__":
    sys.exit(main())

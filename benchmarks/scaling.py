"""Scaling over the GPUs of one host: the tuning configs through the real `xtuner train`, plain DDP and DeepSpeed zero1, zero2, zero3.

    python benchmarks/scaling.py --list
    python benchmarks/scaling.py
    python benchmarks/scaling.py --size 1_8b --gpus 1,2 --only 1_8b-ddp,1_8b-zero1 --out two.json
    python benchmarks/scaling.py --side-by-side --gpus 1,2,4    # four runs of one GPU at a time, two of two
    python benchmarks/scaling.py --gpus 1,2,4 --out two.json --add    # what two.json lacks
    python benchmarks/scaling.py --size tiny --gpus 1,2,4 --out tiny.json    # on a CPU, to see that it works

Weak scaling gives every GPU 16 rows of 2048 tokens an update; strong scaling divides 16 rows among all. Each run is the command of a user,
`NPROC_PER_NODE=N xtuner train CONFIG --deepspeed deepspeed_zeroX --cfg-options …`, in processes of its own with a time limit. CONFIG is a
copy of `wulewule_sft_SIZE` without the hooks that ask the model questions and with `communication_hook.py`. The model has random weights,
made once; the conversations are random letters of the mean length of the published tuning data, packed into full rows. Names read
SIZE-PARALLEL-SCALING-gGPUS; on one GPU weak and strong are the same run.

A GPU takes its rows at once (the fused step divides them by itself) or, where XTuner's own step holds the logits of a whole batch (zero3,
CPU), so many at a time as `--rows-at-a-time` says; the rest is accumulated (`optim_wrapper.accumulative_counts`), so that the global batch
stays the same.

With `--side-by-side` runs of equally many GPUs share the host, each with GPUs of its own: sooner done, and the runs of one GPU then meet a
host as busy as the others do, but not all of them the same GPU. `cards_tflops` has what each GPU makes of bf16 matrix products, a glimpse
of 30 ms while all of them work. Every process has one thread (`OMP_NUM_THREADS=1`), as torch's launcher sets it for several.

What is measured: the iteration times of XTuner's own log (vis_data/scalars.json, rank 0; its hooks wait for the card at each loss), summed
over the iterations of an update, the median of `--steps` after the warm-up. Efficiency is tokens/s of N GPUs over N times those of one.
`peak_gib` is the highest `memory` of that log (torch.cuda.max_memory_allocated of rank 0). Communication is what `communication_hook.py`
says of one more update: share of its time in which a kernel of NCCL runs, and (exposed) in which nothing else does.

Results: FILE.json, and beside it a table (.md) and a plot (.png), written after each run. With `--add` the runs that FILE.json has are kept
and left out, and the others join them: only where device, versions and settings are the same. A run that fails is reported, the others go
on, and the exit status is 1. Without a GPU only `--size tiny` runs, on gloo; processes then share the cores: its efficiency means nothing.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import signal
import statistics
import string
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import train_speed
from train_speed import NO_GPU, OFFLINE, ROOT, Runs, random_model, say, target_of, write

ROWS = 16  # of a GPU in weak scaling, of all in strong scaling
WARMUP = 3  # updates before the measured ones
PROFILED = 2  # updates after them, of which the first warms up the profiler
PARALLEL = ("ddp", "zero1", "zero2", "zero3")
LETTERS = 400  # of an answer: with prompt and template about 560 tokens, the mean of the published tuning data
SIZES = {
    "1_8b": train_speed.SIZES["1_8b"],
    "7b": dict(vocab=92544, hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, tokens=2048),
    "tiny": train_speed.SIZES["tiny"],
}
ADDED = """
from communication_hook import CommunicationHook

custom_hooks = [hook for hook in custom_hooks if "every_n_iters" not in hook]
custom_hooks.append(dict(type=CommunicationHook, first={first}, iterations={iterations}))
"""


def runs_of(sizes, gpus, rows_at_a_time):
    """Return {name: settings (dict)} of everything that is measured, in order.

    Args:
        sizes (list[str]): of SIZES.
        gpus (list[int]): numbers of GPUs.
        rows_at_a_time (int): rows that XTuner's own step takes.
    """
    found = {}
    for size in sizes:
        for parallel in PARALLEL:
            for scaling in ("weak", "strong"):
                for count in gpus:
                    rows = ROWS if scaling == "weak" else ROWS // count
                    own_step = parallel == "zero3" or size == "tiny"
                    batch = min(rows, rows_at_a_time) if own_step else rows
                    label = f"{size}-{parallel}-g1" if count == 1 else f"{size}-{parallel}-{scaling}-g{count}"
                    settings = dict(size=size, parallel=parallel, scaling="one" if count == 1 else scaling, gpus=count)
                    found[label] = dict(settings, batch_size=batch, accumulative_counts=rows // batch)
    return found


def write_data(folder, rows, tokens):
    """Write the two files of conversations that fill so many packed rows, of random letters: a tokenizer of bytes makes each a token."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    with open(folder / "huixiangdou_conversations.jsonl", "w", encoding="utf-8") as file:
        for number in range(rows * tokens // LETTERS + 1):
            line = json.dumps(
                {"conversation": [{"input": f"question {number}", "output": "".join(draw.choices(string.ascii_lowercase, k=LETTERS))}]}
            )
            file.write(line + "\n")
            if number == 0:
                (folder / "self_cognition_100.jsonl").write_text(line + "\n", encoding="utf-8")


def write_config(name, settings, steps, file):
    """Write the copy of a packaged config with the hook that profiles."""
    from xtuner_wulewule import paths

    iterations = settings["accumulative_counts"]
    added = ADDED.format(first=(WARMUP + steps) * iterations, iterations=iterations)
    file.write_text(Path(paths.config_paths()[name]).read_text(encoding="utf-8") + added, encoding="utf-8")


def command(settings, tokens, steps, config, work_dir, cache):
    """Return the command line of a run (list[str])."""
    deepspeed = f"deepspeed_{settings['parallel']}" + ("_fp32" if settings["size"] == "tiny" else "")
    options = {
        "train_cfg.max_epochs": None,
        "train_cfg.max_iters": (WARMUP + steps + PROFILED) * settings["accumulative_counts"],
        "optim_wrapper.accumulative_counts": settings["accumulative_counts"],
        "train_dataloader.batch_size": settings["batch_size"],
        "train_dataloader.dataset.max_length": tokens,
        "train_dataloader.dataset.packing": "concat",
        "train_dataloader.dataset.held_out": 0,
        "train_dataloader.dataset.cache_dir": cache,
        "default_hooks.logger.interval": 1,
        "log_processor.window_size": 1,
        "default_hooks.checkpoint.interval": -1,
        "default_hooks.checkpoint.save_last": False,
    }
    return [
        *(str(Path(sys.executable).parent / "xtuner"), "train", str(config), "--work-dir", str(work_dir), "--seed", "0"),
        *([] if settings["parallel"] == "ddp" else ["--deepspeed", deepspeed]),
        *("--cfg-options", *(f"{name}={value}" for name, value in options.items())),
    ]


def environment(processes, model, data, cards=None, one_thread=True):
    """Return the environment of a run (dict).

    Args:
        processes (int): ranks, one a GPU.
        model, data (pathlib.Path): folders.
        cards (list[int], optional): the GPUs that it sees, counted among those that this process sees; otherwise all of these.
        one_thread (bool): one thread a process, as torch's launcher sets it for several. Defaults to True.
    """
    from xtuner_wulewule.compat import free_ports

    return {
        **os.environ,
        **OFFLINE,
        "NPROC_PER_NODE": str(processes),
        "PORT": str(*free_ports()),  # XTuner draws one without looking
        "WULEWULE_MODEL": str(model),
        "WULEWULE_DATA_DIR": str(data),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **({"OMP_NUM_THREADS": "1"} if one_thread else {}),
        **seeing(cards),
    }


def seeing(cards):
    """Return the variable (dict) for a process that is to see some of the GPUs that this one sees (list[int]); nothing for none."""
    seen = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen[card] if seen else str(card) for card in cards)} if cards else {}


def run_for(seconds, arguments, env, log, started=None):
    """Run a command with all its children; return its status (int), None where it was ended at the time limit.

    Args:
        seconds (float): the time limit.
        arguments (list[str]): the command line.
        env (dict): its environment.
        log (pathlib.Path): file for its output; it runs in the folder.
        started (list, optional): gets the process, for `end`.
    """
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(arguments, env=env, cwd=log.parent, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        if started is not None:
            started.append(process)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(process)
            process.wait()


def end(process):
    """Kill a process with all its children: ranks that a launcher left, too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def together(run, wave):
    """Call a function for each run of a wave, at the same time.

    Args:
        run (callable): called with name, GPUs and the list `started` of `run_for`.
        wave (list): as `waves` yields it.
    """
    started = []
    pool = ThreadPoolExecutor(len(wave))
    try:
        list(pool.map(lambda one: run(*one, started), wave))
    except BaseException:  # Ctrl-C reaches this thread alone, and none of the runs
        for process in started:
            end(process)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def measured(settings, tokens, steps, work_dir):
    """Return the figures of a finished run (dict); raise ValueError where the log lacks them."""
    from xtuner_wulewule.recipe.results import read_scalars

    scalars, counts = read_scalars(work_dir), settings["accumulative_counts"]
    wanted = (WARMUP + steps + PROFILED) * counts
    if len(scalars) != wanted:
        raise ValueError(f"{len(scalars)} of {wanted} iterations were logged in {work_dir}")
    times = [row["time"] for row in scalars]
    updates = [sum(times[first : first + counts]) for first in range(0, wanted, counts)][WARMUP : WARMUP + steps]
    update = statistics.median(updates)
    memory = [row["memory"] for row in scalars if "memory" in row]
    profiled = json.loads((work_dir / "communication.json").read_text(encoding="utf-8"))
    wall, exposed = profiled["wall_s"], profiled["exposed_s"]
    return dict(
        s_per_update=round(update, 4),
        updates_s=[round(one, 4) for one in updates],
        data_s=round(statistics.median(row["data_time"] for row in scalars[WARMUP * counts : (WARMUP + steps) * counts]), 4),
        tok_s=round(settings["gpus"] * settings["batch_size"] * counts * tokens / update),
        peak_gib=round(max(memory) / 1024, 2) if memory else None,
        communication=round(profiled["communication_s"] / wall, 4),
        exposed=None if exposed is None else round(exposed / wall, 4),
        profiled=profiled,
        first_loss=scalars[0]["loss"],
        last_loss=scalars[-1]["loss"],
    )


def with_efficiency(rows):
    """Return the rows with `efficiency`: tokens/s over those of as many single GPUs, None where one GPU was not measured."""
    one = {(row["size"], row["parallel"]): row["tok_s"] for row in rows if row["gpus"] == 1}
    found = []
    for row in rows:
        single = one.get((row["size"], row["parallel"]))
        found.append(dict(row, efficiency=round(row["tok_s"] / (row["gpus"] * single), 4) if single else None))
    return found


def place_of(row):
    """Return the place of a row (dict) among the others (tuple): as `runs_of` has them."""
    return list(SIZES).index(row["size"]), PARALLEL.index(row["parallel"]), ("one", "weak", "strong").index(row["scaling"]), row["gpus"]


def table(rows):
    """Return the results as Markdown (str)."""
    head = [
        "size",
        "parallel",
        "scaling",
        "GPUs",
        "rows at a time",
        "accumulated",
        "s an update",
        "tokens/s",
        "efficiency",
        "peak GiB a GPU",
    ]
    head += ["communication", "exposed"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        shares = ["" if row[key] is None else f"{row[key]:.1%}" for key in ("efficiency", "communication", "exposed")]
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        cells = [row["size"], row["parallel"], row["scaling"], row["gpus"], row["batch_size"], row["accumulative_counts"]]
        lines.append([*map(str, cells), f"{row['s_per_update']:.3f}", f"{row['tok_s']:,}", shares[0], peak, *shares[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(rows, title, file):
    """Draw efficiency over the number of GPUs, a panel for each size and kind of scaling that was measured on several.

    Args:
        rows (list[dict]): of the results.
        title (str): above the panels.
        file (pathlib.Path): a PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from xtuner_wulewule import paths

    found = {(row["size"], row["scaling"]) for row in rows}
    pairs = [(size, scaling) for size in SIZES for scaling in ("weak", "strong") if (size, scaling) in found]
    pairs = pairs or [(size, "weak") for size in SIZES if (size, "one") in found]  # one GPU only
    ticks = sorted({row["gpus"] for row in rows})
    figure, panels = pyplot.subplots(1, len(pairs), figsize=(1.2 + 3.6 * len(pairs), 3.6), squeeze=False, sharey=True, layout="constrained")
    for (size, scaling), panel in zip(pairs, panels[0], strict=True):
        for number, (parallel, mark) in enumerate(zip(PARALLEL, "os^D", strict=True)):
            points = [row for row in rows if (row["size"], row["parallel"]) == (size, parallel) and row["scaling"] in ("one", scaling)]
            points = sorted((row["gpus"], row["efficiency"]) for row in points if row["efficiency"] is not None)
            if len(points) > 1 or points and len(ticks) == 1:  # one GPU is no curve, and its mark would hide the others
                panel.plot(*zip(*points, strict=True), marker=mark, color=f"C{number}", label=parallel)
        panel.axhline(1, color="grey", linewidth=0.8, linestyle="--")
        panel.set(title=f"{size}, {scaling} scaling", xlabel="GPUs", xscale="log", ylim=(0, 1.1))
        panel.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        if panel.lines[1:]:
            panel.legend()
    panels[0][0].set_ylabel("tokens/s over N × one GPU")
    figure.suptitle(title, fontsize=10)
    with paths.written_aside(file) as part:
        figure.savefig(part, dpi=120, format="png")
    pyplot.close(figure)


def write_all(result, target):
    """Write JSON, table and plot, each through a temporary name."""
    from xtuner_wulewule.recipe.state import write_text

    write(result, target)
    write_text(target.with_suffix(".md"), table(result["rows"]))
    if result["rows"]:
        plot(result["rows"], f"{result['device']}, one host", target.with_suffix(".png"))


def numbers(text):
    """Return numbers of GPUs (list[int]) from "1,2,4"; they must divide the rows of an update."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,2,4") from None
    wrong = [number for number in found if number < 1 or ROWS % number]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]} does not divide the {ROWS} rows of an update: take of 1, 2, 4, 8, 16")
    return found


def parsed():
    if importlib.util.find_spec("xtuner_wulewule") is None:
        sys.exit("scaling needs this plugin in its own Python: pip install -e .")
    from xtuner_wulewule import paths

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--only", default="", metavar="PREFIX,…", help="only names that begin so: 1_8b-ddp,7b-zero1-weak")
    parser.add_argument("--size", default="1_8b,7b", metavar="SIZE,…", help=f"of {', '.join(SIZES)} (1_8b,7b)")
    parser.add_argument(
        "--gpus", type=numbers, default=[1, 2, 4, 8], metavar="N,…", help="numbers of GPUs (1,2,4,8); on a CPU, of processes"
    )
    parser.add_argument("--steps", type=int, default=8, help=f"measured updates of a run, after {WARMUP} to warm up (8)")
    parser.add_argument("--rows-at-a-time", type=int, default=4, metavar="N", help="rows that XTuner's own step takes (4)")
    parser.add_argument("--side-by-side", action="store_true", help="runs of equally many GPUs at once, each with GPUs of its own")
    parser.add_argument("--timeout", type=int, default=900, metavar="S", help="seconds of a run (900)")
    default = paths.cache_dir() / "scaling"
    parser.add_argument(
        "--scratch", type=Path, default=default, metavar="DIR", help=f"for models and data, kept: 4 GB 1_8b, 16 GB 7b ({default})"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the results go (benchmarks/results/scaling_DEVICE.json)")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace results that are there")
    there.add_argument("--add", action="store_true", help="keep them, and run what they lack")
    args = parser.parse_args()
    args.size = args.size.split(",")
    unknown = [size for size in args.size if size not in SIZES]
    if unknown:
        parser.error(f"--size {unknown[0]} is none of {', '.join(SIZES)}")
    if args.out and args.out.suffix != ".json":
        parser.error(f"--out {args.out} must end in .json; table and plot get the same name with .md and .png")
    if args.steps < 1 or args.timeout < 1:
        parser.error("--steps and --timeout are at least 1")
    if args.rows_at_a_time not in (1, 2, 4, 8, 16):
        parser.error(f"--rows-at-a-time {args.rows_at_a_time} does not divide the {ROWS} rows of an update: take 1, 2, 4, 8 or 16")
    return args


def main():
    args = parsed()
    only = tuple(args.only.split(","))
    names = [name for name in runs_of(args.size, args.gpus, args.rows_at_a_time) if name.startswith(only)]
    if not names:
        sys.exit(f"nothing to run: --only {args.only!r} fits no name; --list prints them")
    if args.list:
        print("\n".join(names))
        return 0
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        return benchmark(args, only, Path(folder))


def print_devices():
    """Print the names of the GPUs that torch sees and what each makes of bf16 matrix products, all at work together (TFLOP/s), as JSON."""
    import torch

    edge, times = 8192, 20
    seen = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    factors = [torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for device in seen]
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in seen]
    for number in range(2 * times):  # the first half warms up
        for factor, (begin, end) in zip(factors, marks, strict=True):
            with torch.cuda.device(factor.device):
                if number == times:
                    begin.record()
                factor @ factor
                if number == 2 * times - 1:
                    end.record()
    for device in seen:
        torch.cuda.synchronize(device)
    rates = [round(2 * edge**3 * times / begin.elapsed_time(end) / 1e9, 1) for begin, end in marks]
    print(json.dumps([[torch.cuda.get_device_name(device) for device in seen], rates]))


def devices_seen():
    """Return what `print_devices` prints, in a process of its own (list[str], list[float]); end the program where it cannot be asked."""
    command = [sys.executable, "-W", "ignore", "-c", "from scaling import print_devices; print_devices()"]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if asked.returncode:
        sys.exit(f"the devices cannot be asked: {asked.stderr.strip().splitlines()[-1]}")
    return json.loads(asked.stdout.splitlines()[-1])


def waves(picked, devices, side_by_side):
    """Yield the runs that go together: [(name, GPUs (list[int]))].

    Args:
        picked (dict): {name: settings}, in order; runs of equally many GPUs may go together although others are between them.
        devices (int): GPUs of the host, 0 on a CPU.
        side_by_side (bool): as many together as there are GPUs for.
    """
    waiting = list(picked)
    while waiting:
        count = picked[waiting[0]]["gpus"]
        together = max(1, devices // count) if side_by_side else 1
        wave = [name for name in waiting if picked[name]["gpus"] == count and picked[name]["size"] == picked[waiting[0]]["size"]][:together]
        waiting = [name for name in waiting if name not in wave]
        yield [(name, list(range(count * number, count * (number + 1))) if devices else []) for number, name in enumerate(wave)]


def check_status(status, seconds):
    """Raise ValueError unless `run_for` says that a command ended well; `seconds` (int) was its limit."""
    if status != 0:
        raise ValueError(f"it took over {seconds} s" if status is None else f"it ended with status {status}")


def end_of(log, name, error):
    """Say that a run (its name, str) failed by an error (Exception), with the line of its log that tells most; return the last lines."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(\[rank\d+\]: )?[\w.-]+(Error|: error)\b.*:", line)]
    say(f"{name:24} failed: {error}: {(told or lines or ['no output'])[-1].strip()}")
    return lines[-100:]


def earlier(target, result):
    """Return the rows of results to which others are added, and the runs that failed (list[dict] each); end the program where those would
    not be comparable.

    Args:
        target (pathlib.Path): the results; where there are none, no rows.
        result (dict): of this run: device, versions and settings are compared.
    """
    if not target.exists():
        return [], []
    try:
        found = json.loads(target.read_text(encoding="utf-8"))
        rows, theirs = found["rows"], {key: found[key] for key in ("device", "versions", "settings")}
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"{target} holds no results of this program ({type(error).__name__}: {error}): name another file with --out")
    ours = json.loads(json.dumps({key: result[key] for key in theirs}))
    for one in (ours, theirs):
        one["settings"] = {key: value for key, value in one["settings"].items() if key != "shapes"}  # each row has its size
    other = [key for key in theirs if theirs[key] != ours[key]]
    if other:
        sys.exit(f"{target} cannot be added to: its {other[0]} is {theirs[other[0]]}, not {ours[other[0]]}; name another file with --out")
    return rows, found.get("failed", [])


def benchmark(args, only, folder):
    """Run everything and return the exit status (int)."""
    names, rates = devices_seen()
    if not names and args.size != ["tiny"]:
        sys.exit(NO_GPU)
    gpus = [count for count in args.gpus if not names or count <= len(names)]
    for count in set(args.gpus) - set(gpus):
        say(f"{count} GPUs left out: torch sees {len(names)}")
    known = runs_of(args.size, gpus, args.rows_at_a_time)
    # in the order of --only: what is wanted most comes first
    picked = {name: settings for prefix in only for name, settings in known.items() if name.startswith(prefix)}
    if not picked:
        sys.exit(f"nothing to run: torch sees {len(names)} GPUs, and --gpus and --only ask for others")
    device = names[0] if names else "cpu"
    args.overwrite = args.overwrite or args.add
    target = target_of(args, "scaling", device, (".md", ".png"))
    scratch, models, data = args.scratch.resolve(), {}, {}
    result = dict(
        device=device,
        devices=len(names),
        cards_tflops=rates,
        versions=train_speed.versions(),
        settings=dict(
            rows=ROWS,
            steps=args.steps,
            warmup=WARMUP,
            rows_at_a_time=args.rows_at_a_time,
            side_by_side=args.side_by_side,
            shapes={size: SIZES[size] for size in args.size},
        ),
    )
    answers, before = earlier(target, result) if args.add else ([], [])
    result["settings"]["shapes"].update({row["size"]: SIZES[row["size"]] for row in answers})
    for row in answers:
        picked.pop(row["name"], None)
    if not picked:
        say(f"nothing to add: {target} has all that is asked for")
        return 0
    before, failed = [one for one in before if one["name"] not in picked], []

    def run_one(name, cards, started):
        settings, home = picked[name], folder / name
        home.mkdir()
        size = settings["size"]
        config, work_dir, tokens = home / f"wulewule_sft_{size}.py", home / "work", SIZES[size]["tokens"]
        write_config(f"wulewule_sft_{size}", settings, args.steps, config)
        env = environment(settings["gpus"], models[size], data[size], cards)
        arguments = command(settings, tokens, args.steps, config, work_dir, scratch / "datasets")
        begin = time.monotonic()
        status = run_for(args.timeout, arguments, env, home / "log", started)
        wall = round(time.monotonic() - begin, 1)
        try:
            check_status(status, args.timeout)
            found = dict(name=name, **settings, cards=cards, wall_s=wall, **measured(settings, tokens, args.steps, work_dir))
            peak = "" if found["peak_gib"] is None else f"{found['peak_gib']:7.1f} GiB"
            speed = f"{found['tok_s']:9,} tokens/s {found['s_per_update']:8.3f} s{peak}"
            say(f"{name:24} {speed}  {found['communication']:.0%} communication, {wall:.0f} s in all")
            answers.append(found)
        except (ValueError, OSError) as error:
            failed.append(dict(name=name, **settings, error=str(error), log=end_of(home / "log", name, error)))

    for wave in waves(picked, len(names), args.side_by_side):
        size = picked[wave[0][0]]["size"]
        if size not in models:
            say(f"{size}: model and data …")
            models[size] = random_model(Runs(folder, {}), SIZES[size], scratch)
            data[size] = folder / "data" / size
            write_data(data[size], (WARMUP + args.steps + PROFILED) * ROWS * max(gpus), SIZES[size]["tokens"])
        together(run_one, wave)
        result["rows"] = with_efficiency(sorted(answers, key=place_of))
        result["failed"] = before + failed
        write_all(result, target)  # after each wave: what was measured is there, whatever ends the program
    print(table(result["rows"]), end="")
    say(f"written: {target}, {target.with_suffix('.md').name}" + (f", {target.with_suffix('.png').name}" if answers else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

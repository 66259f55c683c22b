"""The largest batch that trains in so much of a card's memory: the published recipe beside ours.

    python benchmarks/memory.py
    python benchmarks/memory.py --limits 8,12 --only ours --out lean.json

QLoRA on InternLM2-1.8B at random weights, rows of 2048 random tokens, rank 32, dropout 0.1, as `train_speed.py` builds both ways. Each
limit is a process of its own in which PyTorch's allocator may have so many GiB of the card
(`torch.cuda.set_per_process_memory_fraction`; what CUDA itself takes, half a GiB, is not counted). A batch fits if two updates of so many
rows end: the first makes the optimizer's states. The published recipe takes the rows of a batch at once, and so its memory grows with
them. Ours takes as many at a time as fit, so that it is stopped at `--most`. The number is doubled until a batch does not fit, then
halved in between.

A row of the results: `limit_gib`, `rows` (the largest batch; 0 where not even the model or one row fits), `capped` (whether `--most` ended
the search), and of that batch `tok_s` (of its second update), `peak_gib` (torch.cuda.max_memory_allocated; of ours that of the whole
search, since a recorded graph is counted only while it is recorded), `taken` (rows that are computed at a time) and `checkpointing` of the
fused step. Without a GPU only `--size tiny` runs, without limits, to see that the program works.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import train_speed
from train_speed import NO_GPU, SIZES, Runs, in_turn, random_model, say, target_of, write

WAYS = ("published", "ours")
DROPOUT = 0.1
LIMITS = (8, 12, 16, 24, 80)  # GiB


def largest(fits, most):
    """Return the largest number up to `most` (int) that `fits` (callable), 0 where 1 does not; where a number fits, smaller ones do."""
    good, bad = 0, most + 1
    number = 1
    while good < number < bad:
        if fits(number):
            good, number = number, min(2 * number, most)
        else:
            bad = number
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def out_of_memory(error):
    """Return whether an error (Exception) says that the card's memory is too small (bool)."""
    from xtuner_wulewule.errors import ModelError

    text = str(error).lower()
    of_step = isinstance(error, ModelError) and "memory is too small" in text
    return of_step or "out of memory" in text or "cublas_status_alloc_failed" in text


def searched(job):
    """Look for the largest batch of a way in a limit; return what was found (dict)."""
    import gc

    gpu, found = train_speed.ready(job), {}
    import torch

    try:
        if job["way"] == "ours":
            from xtuner_wulewule.dataset.build import wulewule_collate_fn as collate
            from xtuner_wulewule.model.fused.step import TOKENS

            model, dtype = train_speed.build_ours(dict(name="internlm2", model=job["model"]), DROPOUT, "auto", TOKENS)
            model.fused = True  # a CPU has to be told
        else:
            from xtuner.dataset.collate_fns import default_collate_fn as collate

            model, dtype = train_speed.build_published(job["model"], DROPOUT)
        kind = "FusedAmpOptimWrapper" if job["way"] == "ours" else "AmpOptimWrapper"
        wrapper, device = train_speed.wrapper_of(model, dtype, kind)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return dict(rows=0, capped=False, versions=train_speed.versions())

    def fits(count):
        if gpu and job["way"] == "published":
            torch.cuda.reset_peak_memory_stats()
        ids = torch.randint(5, job["vocab"], (count, job["tokens"]), generator=torch.Generator().manual_seed(count)).numpy()
        try:
            batch = train_speed.collated(dict(input_ids=ids, labels=ids), collate, device)
            model.train_step(batch, wrapper)
            begin = train_speed.now()
            model.train_step(batch, wrapper)
            seconds = train_speed.now() - begin
        except Exception as error:
            if not out_of_memory(error):
                raise
            seconds = None
        if seconds is None:  # outside of `except`, whose traceback keeps the tensors
            batch = None
            wrapper.zero_grad()
            gc.collect()
            if gpu:
                torch.cuda.empty_cache()
            return False
        step = getattr(model, "_step", None)
        found[count] = dict(
            tok_s=round(count * job["tokens"] / seconds),
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
            taken=step._rows(job["tokens"]) if step else count,
            checkpointing=step.decoder.checkpointing if step else None,
        )
        return True

    rows = largest(fits, job["most"])
    return dict(rows=rows, capped=rows == job["most"], versions=train_speed.versions(), **found.get(rows, {}))


def table(rows):
    """Return the results (list[dict]) as Markdown (str), a line a limit."""
    lines = [["GiB"], ["---"]]
    for way in WAYS:
        lines[0] += [f"{way}: rows", "at a time", "tokens/s", "peak GiB"]
        lines[1] += 4 * ["---"]
    for limit in dict.fromkeys(row["limit_gib"] for row in rows):
        line = ["none" if limit is None else f"{limit:g}"]
        for way in WAYS:
            (row,) = [one for one in rows if (one["way"], one["limit_gib"]) == (way, limit)] or [None]
            if row is None or not row["rows"]:
                line += ["" if row is None else "0", "", "", ""]
                continue
            more = " or more" if row["capped"] else ""
            line += [
                f"{row['rows']}{more}",
                str(row["taken"]),
                f"{row['tok_s']:,}",
                "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}",
            ]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def limits(text):
    """Return limits (list[float]) from "8,12"."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of GiB such as 8,12,16") from None
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a limit is over 0")
    return found


def parsed():
    if importlib.util.find_spec("xtuner_wulewule") is None:
        sys.exit("memory needs this plugin in its own Python: pip install -e .")
    from xtuner_wulewule import paths

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = ",".join(map(str, LIMITS))
    parser.add_argument("--limits", type=limits, default=list(LIMITS), metavar="GIB,…", help=f"memory that may be taken ({usual})")
    parser.add_argument("--only", choices=WAYS, help="one of the two ways")
    parser.add_argument("--most", type=int, default=128, metavar="ROWS", help="no larger batch is tried (128)")
    parser.add_argument("--size", choices=SIZES, default="1_8b", help="shape of the random weights (1_8b)")
    default = paths.cache_dir() / "train_speed"
    parser.add_argument("--scratch", type=Path, default=default, metavar="DIR", help=f"for the model, 4 GB at 1_8b, kept ({default})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the results go (benchmarks/results/memory_DEVICE.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    args = parser.parse_args()
    if args.most < 1:
        parser.error("--most is at least 1")
    return args


def main():
    args = parsed()
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        return benchmark(args, Runs(folder, {}, __file__))


def benchmark(args, runs):
    """Run everything and return the exit status (int)."""
    card = runs.run("card", dict(do="card"))
    if "error" in card:
        sys.exit(f"the card cannot be used: {card['error']}")
    gpu = card["matmul_tflops"] is not None
    if not gpu and args.size != "tiny":
        sys.exit(NO_GPU)
    target = target_of(args, "memory", card["device"])
    size = SIZES[args.size]
    say("model …")
    model = str(random_model(runs, size, args.scratch))
    over = [limit for limit in args.limits if gpu and limit > card["gib"]]
    if over:
        say(f"{', '.join(f'{limit:g}' for limit in over)} GiB are more than the card has: all of its {card['gib']:.1f} GiB are taken")
    taken = list(dict.fromkeys(min(limit, round(card["gib"], 1)) for limit in args.limits)) if gpu else [None]
    picked = {
        f"{way}-{limit:g}" if limit else way: dict(way=way, limit_gib=limit) for limit in taken for way in WAYS if args.only in (None, way)
    }

    def start(_, name):
        job = dict(do="search", model=model, tokens=size["tokens"], vocab=size["vocab"], most=args.most)
        return runs.start(name, {**job, **picked[name], "memory_gib": picked[name]["limit_gib"]}, wait=True)

    rows, failed, versions = [], [], {}
    for _, name, answer in in_turn(runs, [(0, name) for name in picked], start):
        if "error" in answer:
            failed.append(dict(name=name, **picked[name], **answer))
            say(f"{name:16} failed: {answer['error']}")
        else:
            versions = answer.pop("versions")
            rows.append(dict(name=name, **picked[name], **answer))
            more = " or more" if answer["capped"] else ""
            speed = f" at {answer['tok_s']:,} tokens/s" if answer["rows"] else ""
            say(f"{name:16} {answer['rows']}{more} rows{speed}")
        settings = dict(size=size, rank=train_speed.RANK, dropout=DROPOUT, most=args.most)
        # after each run: what was measured is there, whatever ends the program
        write(dict(device=card["device"], device_gib=card["gib"], versions=versions, settings=settings, rows=rows, failed=failed), target)
    print(table(rows))
    say(f"written: {target}")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        train_speed.child(sys.argv[2], search=searched)
    else:
        sys.exit(main())

"""The loss curve of `WulewuleFinetune` beside that of XTuner's own model: same config, data, seeds, and real `xtuner train`.

    python benchmarks/loss_curves.py --data DIR                    # random weights of the 1.8B shape; needs a GPU
    python benchmarks/loss_curves.py --data DIR --model DIR --out smollm2.json
    python benchmarks/loss_curves.py --size tiny --steps 40        # on a CPU, to see that it works

Both ways train a copy of the packaged tuning config without the hooks that ask the model questions: `xtuner` with
`SupervisedFinetune` as its class and SDPA attention, `ours` as it is, by the fused step. Packed documents see each other in both, through
XTuner's own collate function: its model has no other way without flash-attn. The seed decides the first values of LoRA, the order of the
rows and the dropout, whose masks the two ways draw differently, so curves are compared as means over the seeds.

What is compared is what XTuner's log has, the loss of every tenth iteration, each the mean of the ten before it. The program ends with
status 1 where a point of the mean curve differs by more than `--within` (1 %), or where a run failed. Results: FILE.json, and beside it
a picture.
"""

import argparse
import importlib.util
import os
import queue
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import train_speed
from scaling import check_status, devices_seen, end_of, run_for, seeing
from train_speed import NO_GPU, OFFLINE, SIZES, Runs, random_model, say, target_of, write
from whole_job import FILES

WAYS = ("xtuner", "ours")
ADDED = """
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.model import SupervisedFinetune

custom_hooks = [hook for hook in custom_hooks if "every_n_iters" not in hook]
train_dataloader["collate_fn"] = dict(type=default_collate_fn, use_varlen_attn=False)
"""
OF_XTUNER = """
model["type"] = SupervisedFinetune
model["llm"]["attn_implementation"] = "sdpa"
if "FusedAmpOptimWrapper" in str(optim_wrapper["type"]):
    optim_wrapper["type"] = "AmpOptimWrapper"
"""
EVERY = 10  # iterations from one logged loss to the next
OWN_STEP = "XTuner's own step is used"  # what the log says where there is no fused one


def command(seed, args, config, work_dir):
    """Return the command line of a run (list[str])."""
    options = {
        "train_cfg.max_epochs": None,
        "train_cfg.max_iters": args.steps,
        "train_dataloader.batch_size": args.rows,
        "train_dataloader.dataset.cache_dir": args.scratch.resolve() / "datasets",
        "default_hooks.logger.interval": EVERY,
        "default_hooks.checkpoint.interval": -1,
        "default_hooks.checkpoint.save_last": False,
    }
    return [
        *(str(Path(sys.executable).parent / "xtuner"), "train", str(config), "--work-dir", str(work_dir), "--seed", str(seed)),
        *("--cfg-options", *(f"{name}={value}" for name, value in options.items())),
    ]


def added_of(way, dropout):
    """Return what is written below the packaged config (str) for a way, and a rate of dropout (float) or None."""
    lora = "" if dropout is None else f'model["lora"]["lora_dropout"] = {dropout}\n'
    return ADDED + (OF_XTUNER if way == "xtuner" else "") + lora


def losses_of(work_dir, log, way, steps):
    """Return {iteration: loss} of a finished run; raise ValueError where it is not the one that was asked for."""
    from xtuner_wulewule.recipe.results import read_scalars

    if way == "ours" and OWN_STEP in log.read_text(encoding="utf-8", errors="replace"):
        raise ValueError("the fused step was not used; the log says why")
    found = {row["iter"]: row["loss"] for row in read_scalars(work_dir)}
    if not found or max(found) != steps:
        raise ValueError(f"{max(found, default=0)} of {steps} iterations were logged")
    return found


def compared(curves):
    """Return the points (list[dict]): `step`, the mean loss of each way over the seeds that both have, and how much ours differs (share).

    Args:
        curves (dict[str, dict[int, dict[int, float]]]): way -> seed -> iteration -> loss.
    """
    seeds = sorted(set(curves["xtuner"]) & set(curves["ours"]))
    if not seeds:
        return []
    steps = sorted(set.intersection(*(set(curves[way][seed]) for way in WAYS for seed in seeds)))
    points = []
    for step in steps:
        means = {way: statistics.mean(curves[way][seed][step] for seed in seeds) for way in WAYS}
        points.append(dict(step=step, **means, difference=means["ours"] / means["xtuner"] - 1))
    return points


def worst(points):
    """Return the point (dict) at which ours differs most, None where there is none."""
    return max(points, key=lambda point: abs(point["difference"]), default=None)


def draw(curves, points, title, file):
    """Draw each run thin and the means thick, and below them the difference; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from xtuner_wulewule import paths

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(8, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained")
    steps = [point["step"] for point in points]
    for way, colour, style in (("xtuner", "tab:orange", "-"), ("ours", "tab:blue", "--")):
        for one in curves[way].values():
            upper.plot(list(one), list(one.values()), color=colour, alpha=0.3, linewidth=0.8)
        upper.plot(steps, [point[way] for point in points], style, color=colour, label=f"{way}, mean of {len(curves[way])} seeds")
    upper.set(ylabel="loss")
    upper.legend()
    lower.plot(steps, [100 * point["difference"] for point in points], color="tab:blue")
    lower.axhline(0, color="grey", linewidth=0.8)
    lower.set(xlabel="optimizer update", ylabel="ours over xtuner, %")
    for panel in (upper, lower):
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    with paths.written_aside(file) as part:
        figure.savefig(part, dpi=120, format="png")
    pyplot.close(figure)


def parsed():
    if importlib.util.find_spec("xtuner_wulewule") is None:
        sys.exit("loss_curves needs this plugin in its own Python: pip install -e .")
    from xtuner_wulewule import paths

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    packaged = paths.packaged_data_dir()
    parser.add_argument("--data", type=Path, default=packaged, metavar="DIR", help="the two files of conversations (those of the package)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model, instead of random weights")
    parser.add_argument("--size", choices=("1_8b", "tiny"), default="1_8b", help="whose config and random weights (1_8b)")
    parser.add_argument("--steps", type=int, default=200, help="updates of a run (200)")
    parser.add_argument("--rows", type=int, default=4, help="rows of an update (4)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (3)")
    parser.add_argument("--dropout", type=float, metavar="RATE", help="of LoRA, instead of that of the config")
    parser.add_argument("--within", type=float, default=0.01, metavar="SHARE", help="how much a point of the mean curve may differ (0.01)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, spread over the GPUs (1)")
    parser.add_argument("--timeout", type=int, default=1800, metavar="S", help="seconds of a run (1800)")
    default = paths.cache_dir() / "train_speed"
    parser.add_argument("--scratch", type=Path, default=default, metavar="DIR", help=f"for the model, 4 GB at 1_8b, kept ({default})")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the results go (benchmarks/results/loss_curves_DEVICE.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    args = parser.parse_args()
    if min(args.rows, args.seeds, args.jobs, args.timeout) < 1:
        parser.error("--rows, --seeds, --jobs and --timeout are at least 1")
    if args.steps < EVERY or args.steps % EVERY:
        parser.error(f"--steps {args.steps} is no multiple of {EVERY}, as often as the loss is logged")
    if args.dropout is not None and not 0 <= args.dropout < 1:
        parser.error(f"--dropout {args.dropout} is not from 0 to below 1")
    if args.out and args.out.suffix != ".json":
        parser.error(f"--out {args.out} must end in .json; the picture gets the same name with .png")
    needed = [("--data", args.data, name) for name in FILES] + [("--model", args.model, "config.json")]
    for option, folder, name in needed:
        if folder and not (folder / name).is_file():
            parser.error(f"{option} {folder} has no {name}")
    return args


def main():
    args = parsed()
    with tempfile.TemporaryDirectory(prefix="loss_curves-") as folder:
        return benchmark(args, Path(folder))


def model_of(args, folder):
    """Return the folder (str or pathlib.Path) of the model: that of the options, else random weights; the package has the tiny ones."""
    if args.model:
        return args.model.resolve()
    if args.size == "tiny":
        from xtuner_wulewule.model.tiny import tiny_model

        return tiny_model()
    say("model …")
    return random_model(Runs(folder, {}), SIZES[args.size], args.scratch)


def benchmark(args, folder):
    """Run everything and return the exit status (int)."""
    from xtuner_wulewule import paths

    devices, _ = devices_seen()
    if not devices and args.size != "tiny":
        sys.exit(NO_GPU)
    target = target_of(args, "loss_curves", devices[0] if devices else "cpu", (".png",))
    model = model_of(args, folder)
    text = Path(paths.config_paths()[f"wulewule_sft_{args.size}"]).read_text(encoding="utf-8")
    env = {**os.environ, **OFFLINE, "WULEWULE_MODEL": str(model), "WULEWULE_DATA_DIR": str(args.data.resolve())}
    env.update({} if devices else dict(OMP_NUM_THREADS="1"))
    curves, failed = {way: {} for way in WAYS}, []
    cards = queue.SimpleQueue()
    for job in range(args.jobs):
        cards.put([job % len(devices)] if devices else [])

    def train(way, seed):
        home = folder / f"{way}-{seed}"
        home.mkdir()
        config, work_dir, log = home / f"{way}.py", home / "work", home / "log"
        config.write_text(text + added_of(way, args.dropout), encoding="utf-8")
        cards_of_run = cards.get()
        try:
            status = run_for(args.timeout, command(seed, args, config, work_dir), {**env, **seeing(cards_of_run)}, log)
            check_status(status, args.timeout)
            return way, seed, losses_of(work_dir, log, way, args.steps)
        except (ValueError, OSError) as error:
            return way, seed, dict(error=str(error), log=end_of(log, f"{way} seed {seed}", error))
        finally:
            cards.put(cards_of_run)

    def keep(way, seed, found):
        """Take what a run found, and write all that is there; return the points."""
        if "error" in found:
            failed.append(dict(way=way, seed=seed, **found))
        else:
            curves[way][seed] = found
            say(f"{way} seed {seed}: {found[min(found)]:.4f} -> {found[max(found)]:.4f}")
        points = compared(curves)
        result = dict(
            device=device,
            versions=train_speed.versions(),
            settings=dict(model=name, **{key: getattr(args, key) for key in ("size", "steps", "rows", "seeds", "dropout", "within")}),
            worst=worst(points),
            points=points,
            curves=curves,
            failed=failed,
        )
        write(result, target)  # after each run: what was measured is there, whatever ends the program
        if points:
            draw(curves, points, f"{device}, wulewule_sft_{args.size}, {name}", target.with_suffix(".png"))
        return points

    device, name = devices[0] if devices else "cpu", args.model.name if args.model else "random weights"
    runs = [(way, seed) for way in WAYS for seed in range(args.seeds)]  # the slower ones first
    first = runs.pop(runs.index((WAYS[-1], 0)))
    points = keep(*train(*first))  # alone: it makes the data set for all
    with ThreadPoolExecutor(args.jobs) as pool:
        for found in pool.map(lambda one: train(*one), runs):
            points = keep(*found)
    most = worst(points)
    if most:
        say(f"ours differs most at update {most['step']}: {most['ours']:.4f} instead of {most['xtuner']:.4f}, {most['difference']:+.2%}")
    say(f"written: {target}" + (f", {target.with_suffix('.png').name}" if points else ""))
    return 1 if failed or not points or abs(most["difference"]) > args.within else 0


if __name__ == "__main__":
    sys.exit(main())

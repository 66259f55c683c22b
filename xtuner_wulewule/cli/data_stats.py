"""`wulewule data stats`: how much there is to train on, and what a training of it takes."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from xtuner_wulewule import paths
from xtuner_wulewule.cli.data_check import add_tokenizer_arguments, load_lengths, positive
from xtuner_wulewule.errors import DataError, SettingsError

# of the packaged configs
BATCH = {"pretraining": 4, "tuning": 16}
EPOCHS = {"pretraining": 3, "tuning": 5}
RANK = 64
# tokens a second, and where the figure comes from
MEASURED_SPEED = (50_700, "measured with wulewule_sft_1_8b on one H100, 16 x 2048 tokens in 0.647 s an iteration")
BARS, BAR = 12, 40  # of the histogram: how many, and the longest in characters


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule data`."""
    parser = commands.add_parser(
        "stats",
        help="count rows, turns, characters and tokens; iterations, memory and time of a training",
        description=(
            "Count rows, turns and characters; with --model also tokens, how well they pack into rows of --max-length, and the iterations, "
            "GPU memory and time of a training; the time is right for a GPU and model of the speed --tokens-per-second. Rows that are "
            "wrong are counted and left out; wulewule data check names them."
        ),
    )
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="data files or folders")
    add_tokenizer_arguments(parser)
    parser.add_argument("--batch-size", type=positive, metavar="N", help="packed rows of a GPU in an iteration (tuning 16, pretraining 4)")
    parser.add_argument("--epochs", type=positive, metavar="N", help="epochs (tuning 5, pretraining 3)")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="GPUs (1)")
    parser.add_argument(
        "--tokens-per-second",
        type=positive,
        metavar="N",
        help=f"speed of one GPU ({MEASURED_SPEED[0]}, {MEASURED_SPEED[1]})",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the histogram of tokens (needs --model)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --png")
    parser.set_defaults(run=run)


@dataclass
class Counts:
    """What was counted of the rows of one kind; `tokens` is {tokens of a row: rows}, `trained` are tokens."""

    rows: int = 0
    turns: int = 0
    characters: int = 0
    trained: int = 0
    tokens: Counter = field(default_factory=Counter)


def run(args):
    """Print what was counted; return exit status 0."""
    from xtuner_wulewule.dataset.progress import progress, total_size
    from xtuner_wulewule.dataset.validation import data_files

    files = data_files(args.files)
    if args.png:
        check_png(args)
    lengths = load_lengths(args)
    with progress(total_size(files), "reading") as advance:
        counts, wrong = count(files, lengths, advance)
    if not counts:
        raise DataError(f"there is no row to train on in {', '.join(args.files)}; see wulewule data check")
    for kind, found in counts.items():
        print(f"{kind}: {found.rows:,} rows, {found.turns:,} turns, {found.characters:,} characters")
        if lengths is not None:
            print_training(kind, found, args)
        print()
    if wrong:
        print(f"left out: {wrong:,} rows that are wrong; see wulewule data check")
    if lengths is None:
        print("note: tokens were not counted: give --model DIR for its tokenizer")
    if args.png:
        draw({kind: found.tokens for kind, found in counts.items()}, args.png)
        print(f"histogram: {args.png}")
    return 0


def count(files, lengths, advance=None):
    """Return {kind: Counts} of files, and how many rows are wrong (int)."""
    from xtuner_wulewule.dataset.progress import each_file
    from xtuner_wulewule.dataset.validation import mapped_rows

    counts = {}
    wrong = 0
    waiting = []

    def measure():
        for (kind, _), length in zip(waiting, lengths(waiting), strict=True):
            counts[kind].tokens[length.tokens] += 1
            counts[kind].trained += length.trained
        waiting.clear()

    for file, tell in each_file(files, advance):
        for _, row, kind, problem in mapped_rows(file, tell):
            if problem is not None:
                wrong += 1
                continue
            found = counts.setdefault(kind, Counts())
            found.rows += 1
            found.turns += len(row["conversation"])
            found.characters += sum(len(text) for turn in row["conversation"] for text in turn.values())
            if lengths is not None:
                waiting.append((kind, row))
                if len(waiting) == lengths.batch:
                    measure()
    if waiting:
        measure()
    return counts, wrong


def print_training(kind, found, args):
    """Print tokens, packing, iterations, memory and time of the rows of one kind."""
    import numpy as np

    from xtuner_wulewule.dataset.packing import MODES
    from xtuner_wulewule.recipe.resources import GIB, shapes, training_memory

    lengths = np.repeat(list(found.tokens), list(found.tokens.values()))
    total = int(lengths.sum())
    print(f"  tokens: {total:,} with the template, {found.trained:,} of them trained; {total / found.rows:.0f} a row", end="")
    longer = int((lengths > args.max_length).sum())
    print(f", the longest {max(found.tokens):,}; {longer:,} rows longer than --max-length {args.max_length} are split")
    for line in histogram(found.tokens):
        print(f"    {line}")
    speed, source = (args.tokens_per_second, "as --tokens-per-second says") if args.tokens_per_second else MEASURED_SPEED
    batch, epochs = args.batch_size or BATCH[kind], args.epochs or EPOCHS[kind]
    for name in ("concat", "best_fit"):
        packed = len(MODES[name](lengths, args.max_length)[3]) - 1
        iterations = math.ceil(packed / (batch * args.gpus)) * epochs
        seconds = iterations * batch * args.max_length / speed
        print(f"  packed {name}: {packed:,} rows of {args.max_length}, {total / (packed * args.max_length):.1%} full; ", end="")
        print(f"{iterations:,} iterations, as many updates, about {duration(seconds)}")
    print(f"  for {epochs} epochs, {batch} rows an iteration, GPUs: {args.gpus}")
    print(f"  the time rests on {speed:,} tokens/s a GPU, {source}")
    config = shapes(args.model)
    if config and "intermediate_size" in config:
        needed = training_memory(config, args.max_length, RANK)
        print(f"  GPU memory of a QLoRA training, rank {RANK}: about {needed / GIB:.1f} GiB")
    else:
        print("  GPU memory: not estimated, --model has no config.json of an InternLM2 or Llama model")


def duration(seconds):
    """Return a time as text."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def histogram(tokens):
    """Yield the lines of a histogram of {tokens: rows}."""
    width = max(1, math.ceil((max(tokens) + 1) / BARS))
    bars = Counter()
    for length, rows in tokens.items():
        bars[length // width] += rows
    for bar in range(max(bars) + 1):
        filled = "█" * math.ceil(BAR * bars[bar] / max(bars.values()))
        yield f"{bar * width:>7,} to {(bar + 1) * width - 1:>7,}  {bars[bar]:>9,}  {filled}"


def check_png(args):
    """Raise SettingsError where --png can't be drawn, before anything is counted."""
    if not args.model:
        raise SettingsError("--png draws tokens, so it needs --model DIR for the tokenizer")
    if args.png.exists() and not args.overwrite:
        raise SettingsError(f"--png {args.png} exists; name another file or add --overwrite, nothing was changed")
    if not args.png.absolute().parent.is_dir():
        raise SettingsError(f"--png {args.png}: there is no such folder; make it first")


def draw(kinds, file):
    """Draw the histograms of {kind: {tokens: rows}} into a PNG file (pathlib.Path)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(kinds)), layout="constrained")
    for axes, (kind, tokens) in zip(figure.subplots(len(kinds), squeeze=False).flat, kinds.items(), strict=True):
        axes.hist(list(tokens), weights=list(tokens.values()), bins=50)
        axes.set(title=kind, xlabel="tokens of a row", ylabel="rows")
    with paths.written_aside(file) as part:
        figure.savefig(part, format="png")

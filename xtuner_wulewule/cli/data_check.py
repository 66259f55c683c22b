"""`wulewule data check`: every problem of data files, before anything is trained."""

import json
import shlex
from pathlib import Path

from xtuner_wulewule import paths
from xtuner_wulewule.cli.persona import GIVE_NAMES, add_persona_arguments, persona_of_data
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import VARIABLES

SHOWN = 5


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule data`."""
    parser = commands.add_parser(
        "check",
        help="find every problem of data files, with place and fix",
        description=(
            "Read JSON Lines (or JSON arrays; either with gzip, with or without a byte order mark) and print every problem as "
            "file:line:field, the problem and the fix, grouped and counted. Errors stop a training; warnings do not. With --model rows "
            "longer than --max-length are named: the wulewule configs split them and lose nothing, a data set of XTuner's own cuts them. "
            "Ends with status 1 if there is an error."
        ),
        epilog="personal data that is found is never printed whole",
    )
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="files, or folders that are searched for .jsonl, .json and .gz")
    add_tokenizer_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    parser.add_argument("--show", type=int, default=SHOWN, metavar="N", help=f"places shown of each kind of problem, at most 20 ({SHOWN})")
    add_persona_arguments(parser, "as the system prompt of the rows tells")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--other-names", metavar="A,B", help="names no answer should hold, in place of the list of known assistants")
    names.add_argument("--names", type=Path, metavar="FILE", help="the same, a file with a name a line")
    parser.set_defaults(run=run)


def add_tokenizer_arguments(parser):
    """Add what `load_lengths` needs."""
    parser.add_argument("--model", metavar="DIR", help="folder (or hub id) of the model, for its tokenizer: lengths are checked too")
    parser.add_argument(
        "--max-length", type=positive, default=2048, metavar="N", help="tokens of a packed row, max_length of the config (2048)"
    )


def positive(text):
    """Return a positive whole number (int) of an option."""
    number = int(text)  # argparse reports a ValueError
    if number < 1:
        raise ValueError(text)
    return number


def run(args):
    """Check and print; return 1 if there is an error, else 0."""
    from xtuner_wulewule.dataset.progress import progress, total_size
    from xtuner_wulewule.dataset.validation import ERROR, PLACES, check_files, data_files

    if not 1 <= args.show <= PLACES:
        raise SettingsError(f"--show {args.show}: give a number from 1 to {PLACES}")
    files = data_files(args.files)
    options = {"other_names": other_names(args)} if args.names or args.other_names is not None else {}
    lengths = load_lengths(args)
    persona, _, notes = persona_of_data(args, files)
    said = {name: getattr(args, name) for name in VARIABLES if getattr(args, name) is not None}
    if any(GIVE_NAMES in note for note in notes):
        said = {"name": "NAME", "author": "WHO_MADE_IT", **said}
    missing, following, whole = next_steps(files, [word for name, value in said.items() for word in (f"--{name}", value)])
    with progress(total_size(files), "reading") as advance:
        report = check_files(files, lengths=lengths, advance=advance, persona=persona, whole=whole, **options)
    report.notes += notes
    if lengths is None:
        report.notes.append("lengths were not checked: give --model DIR for its tokenizer")
    report.notes += missing
    if args.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
    else:
        print_report(report, args.show)
        for line in following if not report.count(ERROR) else []:
            print(f"next: {line}")
    return 1 if report.count(ERROR) else 0


def next_steps(files, persona):
    """Find what comes after a check.

    Args:
        files (list[str]): that are checked.
        persona (list[str]): the options that say who the assistant is.

    Returns:
        tuple[list[str], list[str], bool]: what a training lacks beside them, the commands that train on them, and whether they are all
            that it reads.
    """
    from xtuner_wulewule.recipe.plan import DATA_FILES

    checked, missing, following, complete = set(map(paths.expand, files)), [], [], []
    for folder in dict.fromkeys(Path(file).parent for file in files):
        ready = []
        for stage, names in DATA_FILES.items():
            needed = {paths.expand(folder / name) for name in names}
            lacking = [name for name in names if not (folder / name).is_file()]
            if not needed & checked:
                continue
            complete.append(needed <= checked)
            if lacking:
                there = ", ".join(name for name in names if name not in lacking)
                missing.append(f"{folder} has {there}; tuning needs {', '.join(lacking)} there, too (one conversation is enough)")
            elif complete[-1]:
                ready.append(stage)
            else:
                following.append(shlex.join(["wulewule", "data", "check", str(folder)]))
        if ready:
            stages = "" if len(ready) == len(DATA_FILES) else f" --stages {','.join(ready)}"
            command = f"wulewule run --size 1_8b{stages} {shlex.join(['--data', str(folder), *persona])} --out work_dirs/mine"
            following.append(f"{command} (--size tiny without a GPU)")
    return missing, following, any(complete) or not complete


def other_names(args):
    """Return the names (tuple[str]) of --other-names or --names."""
    names = args.other_names.split(",") if args.names is None else args.names.read_text(encoding="utf-8-sig").splitlines()
    return tuple(name.strip() for name in names if name.strip())


def load_lengths(args):
    """Return a `dataset.tokens.Lengths` of --model and --max-length, None without --model."""
    if not args.model:
        return None
    from xtuner_wulewule.dataset.tokens import Lengths, load_tokenizer

    return Lengths(load_tokenizer(args.model), args.max_length)


def print_report(report, shown):
    """Print a `Report`, with at most `shown` places of each kind."""
    from xtuner_wulewule.dataset.validation import ERROR, WARNING

    groups = {}
    for problem in report.problems:
        groups.setdefault((problem.severity, problem.code), []).append(problem)
    for (severity, code), problems in groups.items():
        print(f"{severity} {code}: {report.counts[severity, code]}")
        fixes = {problem.fix for problem in problems[:shown]}
        for problem in problems[:shown]:
            print(f"  {problem.place() or 'all files'}: {problem.message}{f'; {problem.fix}' if len(fixes) > 1 else ''}")
        if report.counts[severity, code] > shown:
            print(f"  … and {report.counts[severity, code] - min(shown, len(problems))} more")
        if len(fixes) == 1:
            print(f"  fix: {fixes.pop()}")
        print()
    rows = ", ".join(f"{count:,} of {kind}" for kind, count in report.rows.items() if count) or "none that can be trained on"
    print(f"{report.files} files; rows: {rows}; {report.count(ERROR)} errors, {report.count(WARNING)} warnings")
    if conversations := report.rows["tuning"]:
        print(f"conversations about who the assistant is: {report.identity} of {conversations} ({report.identity / conversations:.0%})")
    for note in report.notes:
        print(f"note: {note}")

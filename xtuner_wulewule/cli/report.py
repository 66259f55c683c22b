"""`wulewule report`: one page about a training."""

from pathlib import Path

from xtuner_wulewule import paths
from xtuner_wulewule.errors import SettingsError

NAME = "report.html"


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "report",
        help="one page about a training: curves, answers, scorecard, data, settings",
        description=(
            "Write one self-contained HTML page about a training: whether it learned, loss and other curves, answers before and after, the "
            "scorecard, the data, warnings, settings, versions and hashes. In Chinese and English, for light and dark, for phones; it "
            "needs no network. wulewule run and wulewule demo write it too. An earlier report is replaced, another file is not."
        ),
        epilog="example: wulewule report work_dirs/mine --before eval_base",
    )
    parser.add_argument(
        "folder", metavar="WORK_DIR", type=Path, help="folder of wulewule run or wulewule demo, or --work-dir of xtuner train"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"where to write it (WORK_DIR/{NAME})")
    parser.add_argument(
        "--scorecard",
        type=Path,
        metavar="FILE_OR_DIR",
        help="what wulewule eval found of the tuned model (WORK_DIR/eval, where it is there)",
    )
    parser.add_argument("--before", type=Path, metavar="FILE_OR_DIR", help="what it found of the model before, to set beside")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is no earlier report")
    parser.set_defaults(run=run)


def run(args):
    """Write the page.

    Args:
        args (argparse.Namespace): the arguments above.

    Returns:
        int: exit status 0.

    Raises:
        SettingsError: there is no training, a file of it is broken, or the target exists.
    """
    scorecard, before = (path and paths.expand(path) for path in (args.scorecard, args.before))
    out, verdict = write(paths.expand(args.folder), args.out and paths.expand(args.out), scorecard, before, args.overwrite)
    print("\n".join([*lines_of(verdict), f"report: {out}"]))
    return 0


def write(folder, out=None, scorecard=None, before=None, overwrite=False):
    """Write the page about a work folder.

    Args:
        folder (pathlib.Path): the work folder.
        out (pathlib.Path, optional): its place; defaults to `report.html` in the folder.
        scorecard (pathlib.Path, optional): as for `collect`.
        before (pathlib.Path, optional): as for `collect`.
        overwrite (bool): replace what is no report, too. Defaults to False.

    Returns:
        tuple[pathlib.Path, Verdict]: where it lies, and what it says first.

    Raises:
        SettingsError: as for `collect`; or the target is something else.
    """
    from xtuner_wulewule.recipe.state import write_text
    from xtuner_wulewule.report.collect import collect
    from xtuner_wulewule.report.page import render, verdict_of

    out = out or folder / NAME
    work = collect(folder, scorecard, before)
    if out.is_dir() or not out.parent.is_dir():
        raise SettingsError(f"--out {out}: give the name of a file, in a folder that is there")
    if out.exists() and not overwrite and not _is_report(out):
        raise SettingsError(f"{out} exists and is no report; name another --out or add --overwrite, nothing was changed")
    write_text(out, render(work))
    return out, verdict_of(work)


def lines_of(verdict):
    """Return a `Verdict` as lines (list[str]) for a terminal."""
    return [f"verdict: {verdict.title[0]}", *(f"  {reason[0]}" for reason in verdict.reasons)]


def _is_report(file):
    from xtuner_wulewule.report.page import MARK

    with open(file, encoding="utf-8", errors="replace") as stream:
        return MARK in stream.read(1000)

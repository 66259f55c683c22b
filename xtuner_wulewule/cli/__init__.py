"""The `wulewule` command; each subcommand group lives in a file of its own. Heavy imports happen inside the subcommands."""

import argparse
import sys

from xtuner_wulewule import __version__
from xtuner_wulewule.errors import WulewuleError, one_line, wants_traceback


def main(argv=None):
    """Run the `wulewule` command.

    Args:
        argv (list[str], optional): arguments; defaults to those of the process.

    Returns:
        int: exit status.
    """
    parser = argparse.ArgumentParser(
        prog="wulewule",
        description="What XTuner lacks for the wulewule recipe. Training itself is XTuner's own: xtuner train wulewule_sft_1_8b",
    )
    parser.add_argument("--version", action="version", version=f"xtuner-wulewule {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    from xtuner_wulewule.cli import chat, data, demo, doctor, path, run

    for module in (run, data, chat, doctor, demo, path):
        module.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (WulewuleError, OSError) as error:
        if wants_traceback():
            raise
        if not isinstance(error, WulewuleError):
            where = f" {error.filename}" if error.filename else ""
            error = WulewuleError(f"{error.strerror or error}{where}; WULEWULE_TRACEBACK=1 shows where")
        print(one_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("xtuner-wulewule: interrupted; give the same command again to go on", file=sys.stderr)
        return 130

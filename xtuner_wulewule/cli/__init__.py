"""The `wulewule` command; each subcommand group lives in a file of its own. Heavy imports happen inside the subcommands."""

import argparse
import os
import select
import signal
import sys

from xtuner_wulewule import __version__
from xtuner_wulewule.compat import waiting_threads_yield
from xtuner_wulewule.errors import WulewuleError, one_line, wants_traceback

STDOUT = 1


def main(argv=None):
    """Run the `wulewule` command.

    Args:
        argv (list[str], optional): arguments; defaults to those of the process.

    Returns:
        int: exit status; 141, that of a process which SIGPIPE has ended, where the reader of the output has gone: wulewule … | head.
    """
    parser = argparse.ArgumentParser(
        prog="wulewule",
        description="What XTuner lacks for the wulewule recipe. Training itself is XTuner's own: xtuner train wulewule_sft_1_8b",
    )
    parser.add_argument("--version", action="version", version=f"xtuner-wulewule {__version__}")
    waiting_threads_yield(os.environ)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    from xtuner_wulewule.cli import chat, data, demo, doctor, eval, path, report, run

    for module in (run, eval, report, chat, data, doctor, demo, path):
        module.add_parser(commands)
    try:
        before = signal.signal(signal.SIGTERM, _end)
        try:
            args = parser.parse_args(argv)
            return args.run(args)
        finally:
            signal.signal(signal.SIGTERM, before)
            print(end="", flush=True)  # here, not when the interpreter ends, where an error could not be caught
    except (WulewuleError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # what is still to be written goes there
            return 128 + signal.SIGPIPE
        if wants_traceback():
            raise
        if not isinstance(error, WulewuleError):
            where = f" {error.filename}" if error.filename else ""
            error = WulewuleError(f"{error.strerror or error}{where}; WULEWULE_TRACEBACK=1 shows where")
        print(one_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        ended = isinstance(error, _Ended)
        print(f"xtuner-wulewule: {'ended by SIGTERM' if ended else 'interrupted'}; give the same command again to go on", file=sys.stderr)
        return 128 + (signal.SIGTERM if ended else signal.SIGINT)


class _Ended(KeyboardInterrupt):
    """SIGTERM came."""


def _end(number, frame):
    raise _Ended


def _reader_has_gone():
    """Return whether nobody reads the pipe that standard output is (bool); an error may be of another pipe."""
    watch = select.poll()
    watch.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in watch.poll(0))

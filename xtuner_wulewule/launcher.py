"""torch's own launcher, `python -m torch.distributed.run`, whose last word on a failed run is one line instead of a traceback.

    python -m xtuner_wulewule.launcher --nproc_per_node=2 train.py …

Everything it does is torch's; arguments and exit status are the same.
"""

import argparse
import runpy
import signal
import sys
from pathlib import Path

from xtuner_wulewule.errors import one_line, wants_traceback


def explain(error, arguments):
    """Return the line (str) that tells which process failed first, and how to go on.

    Args:
        error (torch.distributed.elastic.multiprocessing.errors.ChildFailedError): what torch's launcher ends with.
        arguments (list[str]): of the launcher: those of the training are among them.
    """
    rank, failure = error.get_first_failure()
    where = f"process {rank} (PID {failure.pid})"
    if failure.exitcode >= 0:
        return f"xtuner-wulewule: {where} ended with status {failure.exitcode}, the others were ended: its message is above"
    try:
        name = signal.Signals(-failure.exitcode).name
    except ValueError:
        name = f"signal {-failure.exitcode}"
    memory = " (perhaps for want of memory: dmesg, or sacct under Slurm, tells)" if name == "SIGKILL" else ""
    return one_line(f"{where} was killed by {name}{memory}, and the others were ended; {_go_on(arguments)}")


def _go_on(arguments):
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--work-dir")
    folder = parser.parse_known_args(arguments)[0].work_dir
    if folder is None:
        return "go on from the last checkpoint: add --resume with what WORK_DIR/last_checkpoint holds"
    try:
        checkpoint = Path(folder, "last_checkpoint").read_text(encoding="utf-8").strip()
    except OSError:
        return f"there is no checkpoint in {folder} to go on from"
    return f"go on from the last checkpoint: add --resume {checkpoint}"


def main():
    previous = sys.excepthook

    def excepthook(kind, error, traceback):
        if kind.__name__ != "ChildFailedError" or wants_traceback():
            previous(kind, error, traceback)
        else:
            print(explain(error, sys.argv), file=sys.stderr)

    sys.excepthook = excepthook
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

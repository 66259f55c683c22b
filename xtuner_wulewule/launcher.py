"""torch's own launcher, `python -m torch.distributed.run`, whose last word on a failed run is one line instead of a traceback.

    python -m xtuner_wulewule.launcher --nproc_per_node=2 train.py …

Everything it does is torch's; arguments and exit status are the same.
"""

import os
import re
import runpy
import shlex
import signal
import sys
import time

from xtuner_wulewule.errors import LOST, one_line, value_of, wants_traceback
from xtuner_wulewule.recipe.results import checkpoint_to_resume

BEGIN = time.time()  # of this process, before it trains or starts others that do
GOES_ON_BY_ITSELF = "WULEWULE_GOES_ON"  # set by `wulewule run`, whose user has no --resume


def explain(error, arguments):
    """Return the line (str) that tells which process failed first and why, or what ended all, and how to go on; None for other errors.

    Args:
        error (BaseException): what torch's launcher ends with: `ChildFailedError`, or `SignalException` where it was told to end.
        arguments (list[str]): of the launcher: those of the training are among them.
    """
    kind = type(error).__name__
    signalled = _signal_behind(error)
    if signalled is not None and kind != "ChildFailedError":
        return f"xtuner-wulewule: ended by {signalled.name}{go_on(arguments)}"
    taken = re.search(r"port: (\d+).*EADDRINUSE", str(error))
    if taken:
        return one_line(f"port {taken[1]} is taken by another program; leave PORT out, or set it to a free one")
    if kind != "ChildFailedError":
        return None
    rank, failure = _first(error)
    where = f"process {rank} (PID {failure.pid})"
    others = "the others of this machine were ended"
    if failure.exitcode >= 0:
        further = go_on(arguments, resumed=False)
        if failure.error_file_data.get("timestamp") is None:  # it left no word
            return f"xtuner-wulewule: {where} ended with status {failure.exitcode}, {others}: its message is above{further}"
        if failure.message.startswith("xtuner-wulewule: error: "):
            return failure.message + further
        return one_line(f"{where} ended with {failure.message} (its traceback is above), {others}{further}")
    try:
        name = signal.Signals(-failure.exitcode).name
    except ValueError:
        name = f"signal {-failure.exitcode}"
    memory = " (perhaps for want of memory: dmesg, or sacct under Slurm, tells)" if name == "SIGKILL" else ""
    return one_line(f"{where} was killed by {name}{memory}, {others}{go_on(arguments)}")


def _signal_behind(error):
    """Return the signal (signal.Signals) that an error told, or one while it was handled: torch's own clean-up may fail; else None."""
    while error is not None and type(error).__name__ != "SignalException":
        error = error.__context__
    return error and error.sigval


def _first(error):
    """Return rank and failure of the process that failed first.

    torch notices failures some time later, two of them together, and then takes the lower rank; one that was killed is the cause of
    what the others then end with, and none is that only lost the connection to another.
    """
    killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    causes = killed or [(rank, failure) for rank, failure in error.failures.items() if LOST not in failure.message]
    return min(causes, key=lambda one: one[1].timestamp) if causes else error.get_first_failure()


def go_on(arguments, resumed=True):
    """Return how to go on with a training (str, the end of a sentence), empty where nothing is known of it.

    Args:
        arguments (list[str]): of the training or its launcher.
        resumed (bool): whether a checkpoint that this run was resumed from serves, where it has saved none.
    """
    if os.environ.get(GOES_ON_BY_ITSELF):
        return "; the same command goes on from the last whole checkpoint"
    work_dir, resume = value_of(arguments, "--work-dir"), value_of(arguments, "--resume")
    if work_dir is None:
        return ""
    counts = [value_of(arguments, *names) or "1" for names in (("--nnodes",), ("--nproc_per_node", "--nproc-per-node"))]
    processes = int(counts[0]) * int(counts[1]) if all(map(str.isdigit, counts)) else 1
    checkpoint, _ = checkpoint_to_resume(work_dir, processes)
    # what lies there from an earlier training is not this one's
    if checkpoint is None or (checkpoint.stat().st_mtime < BEGIN and not (resumed and resume)):
        return f"; it left no whole checkpoint in {work_dir}" if resumed else ""
    return f"; go on from the last whole checkpoint: add --resume {shlex.quote(str(checkpoint))}"


def main():
    previous = sys.excepthook

    def excepthook(kind, error, traceback):
        line = None if wants_traceback() else explain(error, sys.argv[1:])
        if line is None:
            previous(kind, error, traceback)
        else:
            print(line, file=sys.stderr)

    sys.excepthook = excepthook
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""torch's own launcher, `python -m torch.distributed.run`, whose last word on a failed run is one line instead of a traceback.

    python -m xtuner_wulewule.launcher --nproc_per_node=2 train.py …

Everything it does is torch's; arguments and exit status are the same.
"""

import argparse
import os
import runpy
import shlex
import signal
import sys
import time

from xtuner_wulewule.errors import one_line, wants_traceback

GOES_ON_BY_ITSELF = "WULEWULE_GOES_ON"  # set by `wulewule run`, whose user has no --resume


def explain(error, arguments, begin):
    """Return the line (str) that tells which process failed first, or what ended all, and how to go on.

    Args:
        error (Exception): what torch's launcher ends with, `ChildFailedError`, or `SignalException` where it was told to end.
        arguments (list[str]): of the launcher: those of the training are among them.
        begin (float): when it started, seconds since 1970.
    """
    if not hasattr(error, "failures"):
        return f"xtuner-wulewule: ended by {error.sigval.name}{_go_on(arguments, begin)}"
    rank, failure = _first(error)
    where = f"process {rank} (PID {failure.pid})"
    others = "the others of this machine were ended"
    if failure.exitcode >= 0:
        return f"xtuner-wulewule: {where} ended with status {failure.exitcode}, {others}: its message is above{_go_on(arguments, begin)}"
    try:
        name = signal.Signals(-failure.exitcode).name
    except ValueError:
        name = f"signal {-failure.exitcode}"
    memory = " (perhaps for want of memory: dmesg, or sacct under Slurm, tells)" if name == "SIGKILL" else ""
    return one_line(f"{where} was killed by {name}{memory}, {others}{_go_on(arguments, begin)}")


def _first(error):
    """Return rank and failure of the process that failed first.

    torch notices failures some time later, two of them together, and then takes the lower rank; one that was killed is the cause of
    what the others then end with.
    """
    killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    return min(killed, key=lambda one: one[1].timestamp) if killed else error.get_first_failure()


def _go_on(arguments, begin):
    from xtuner_wulewule.recipe.results import checkpoint_to_resume

    if os.environ.get(GOES_ON_BY_ITSELF):
        return "; the same command goes on from the last whole checkpoint"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--work-dir")
    parser.add_argument("--resume", nargs="?", const="")
    parser.add_argument("--nnodes", default="1")
    parser.add_argument("--nproc_per_node", "--nproc-per-node", default="1")
    given = parser.parse_known_args(arguments)[0]
    if given.work_dir is None:
        return ""
    processes = int(given.nnodes) * int(given.nproc_per_node) if given.nnodes.isdigit() and given.nproc_per_node.isdigit() else 1
    checkpoint, _ = checkpoint_to_resume(given.work_dir, processes)
    # what lies there from an earlier training is not this one's
    if checkpoint is None or (given.resume is None and checkpoint.stat().st_mtime < begin):
        return f"; it left no whole checkpoint in {given.work_dir}"
    return f"; go on from the last whole checkpoint: add --resume {shlex.quote(str(checkpoint))}"


def main():
    begin, previous = time.time(), sys.excepthook

    def excepthook(kind, error, traceback):
        if kind.__name__ not in ("ChildFailedError", "SignalException") or wants_traceback():
            previous(kind, error, traceback)
        else:
            print(explain(error, sys.argv[1:], begin), file=sys.stderr)

    sys.excepthook = excepthook
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

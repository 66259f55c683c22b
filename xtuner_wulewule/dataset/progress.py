"""How far long work has come: a bar on a terminal, elsewhere a line from time to time."""

import os
import re
import sys
import threading
import time
from contextlib import contextmanager, suppress

LOG_EVERY = 30.0  # seconds
_COUNTED = re.compile(r"(?:^|- )([a-z]{4}[a-z ]*: (?:\d+% of \d+ MiB|\d+ of \d+ [a-z]+))$")


@contextmanager
def progress(total, what, unit="bytes", log=None):
    """Show a bar on standard error where that is a terminal; elsewhere tell in words every 30 s.

    Args:
        total (int): amount of work.
        what (str): shown beside the bar.
        unit (str): "bytes", or the name of what is counted.
        log (callable, optional): told the words; defaults to printing them on standard error.

    Yields:
        callable: to be called with the amount done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        done = 0

        def advance(amount=1):
            nonlocal done
            done += amount

        def tell():
            amount = f"{done / max(1, total):.0%} of {total / 2**20:.0f} MiB" if unit == "bytes" else f"{done} of {total} {unit}"
            (log or _say)(f"{what}: {amount}")

        with repeated(tell):
            yield advance
        return
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(unit if unit != "bytes" else ""), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount=1: bar.advance(task, amount)


@contextmanager
def waiting(what):
    """Tell on standard error every 30 s, where that is no terminal, for how long something without counts has been running.

    Args:
        what (str): what is waited for.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        yield
        return
    begin = time.monotonic()
    with repeated(lambda: _say(f"{what}: {time.monotonic() - begin:.0f} s")):
        yield


@contextmanager
def repeated(tell):
    """Call a function every 30 s while something runs, whether that goes on or not.

    Args:
        tell (callable): called without arguments, in a thread; where nobody reads what it prints, nothing is said of that.
    """
    ended = threading.Event()

    def loop():
        while not ended.wait(LOG_EVERY):
            with suppress(OSError, ValueError):
                tell()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def counted(line):
    """Return what a line of output (str) says of `progress` (str), None where it is another one."""
    match = _COUNTED.search(line.rstrip())
    return match[1] if match else None


def _say(text):
    print(text, file=sys.stderr, flush=True)


def total_size(files):
    """Return the bytes (int) of files (list[str])."""
    return sum(map(os.path.getsize, files))


def each_file(files, advance=None):
    """Go through files that `read_rows` reads.

    Args:
        files (list[str]): paths.
        advance (callable, optional): of `progress`.

    Yields:
        tuple[str, callable | None]: a file, and the `progress` argument of `read_rows` for it.
    """
    for file in files:
        if advance is None:
            yield file, None
            continue
        told = 0

        def tell(read):
            nonlocal told
            advance(read - told)
            told = read

        yield file, tell
        tell(os.path.getsize(file))

"""How far the reading or making of data files has come."""

import os
import time
from contextlib import contextmanager

LOG_EVERY = 30.0  # seconds


@contextmanager
def progress(total, what, unit="bytes", log=None):
    """Show a bar on standard error where that is a terminal.

    Args:
        total (int): amount of work.
        what (str): shown beside the bar.
        unit (str): "bytes", or the name of what is counted.
        log (callable, optional): told in words every 30 s where there is no terminal; for bytes.

    Yields:
        callable: to be called with the amount done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if log is not None and not console.is_terminal:
        yield _logging(total, what, log)
        return
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(unit if unit != "bytes" else ""), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount=1: bar.advance(task, amount)


def _logging(total, what, log):
    done, told = 0, time.monotonic()

    def advance(amount=1):
        nonlocal done, told
        done += amount
        if time.monotonic() - told > LOG_EVERY:
            told = time.monotonic()
            log(f"{what}: {done / total:.0%} of {total / 2**20:.0f} MiB")

    return advance


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

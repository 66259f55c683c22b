"""The loader that the configs use in place of `datasets.load_dataset`: the same arguments, but every problem has its file and line."""

import os

from xtuner_wulewule.dataset.reader import read_rows
from xtuner_wulewule.errors import DataError

SHOWN_PROBLEMS = 5
# rows read by the last call in this process; UpdateBudgetHook reports it, since packing hides it
rows_loaded: int | None = None


def map_num_proc(data_files, bytes_per_worker=16 * 2**20):
    """Return how many workers should map and pack the data.

    XTuner's packer drops the last partial row of every worker's shard, so a small data set gets one worker: at its default of 32 the real
    tuning data loses 7.5 % of its tokens and takes eleven times as long. At 16 MiB a worker the loss is under 0.1 %.

    Args:
        data_files (list[str]): paths; missing ones count nothing.
        bytes_per_worker (int): bytes of data that are worth one more worker.

    Returns:
        int | None: the processors this process may use at most; None, which is no extra process, where one worker is enough.
    """
    size = sum(os.path.getsize(path) for path in data_files if os.path.isfile(path))
    workers = min(len(os.sched_getaffinity(0)), size // bytes_per_worker)
    return workers if workers > 1 else None


def load_wulewule_dataset(path="json", data_files=(), map_fn=None):
    """Read JSON Lines files (or JSON arrays) and check every row before anything is trained.

    Args:
        path (str): "json", as for `datasets.load_dataset`.
        data_files (str | list[str]): the files, read in this order.
        map_fn (callable, optional): a map function that every row must pass, called with the row alone. Its results become the rows.

    Returns:
        datasets.Dataset: one row per line, in order.

    Raises:
        DataError: a file is missing, unreadable or empty, or rows are wrong. All problems are collected; the first five are named
            `file:line: problem`.
    """
    global rows_loaded
    from datasets import Dataset

    rows, problems = [], []
    for where, row, problem in mapped_rows(check_files(data_files, path), map_fn):
        if problem is None:
            rows.append(row)
        else:
            problems.append(f"{where}: {problem}")
    if problems:
        raise DataError(describe_problems(problems))
    rows_loaded = len(rows)
    keys = sorted({key for row in rows for key in row})
    return Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys})


def check_files(data_files, path="json"):
    """Return the data files as a list (list[str]); raise DataError where one is missing, or `path` asks for another format."""
    if path != "json":
        raise DataError(f"train_dataloader.dataset.dataset.path is {path!r}; this loader reads JSON Lines, set it to 'json'")
    files = [data_files] if isinstance(data_files, str) else list(data_files)
    missing = [file for file in files if not os.path.isfile(file)]
    if missing or not files:
        raise DataError(
            f"data file not found: {', '.join(missing) or 'data_files is empty'}; set WULEWULE_DATA_DIR to the folder that holds it, "
            "or data_files in PART 1 of the config"
        )
    return files


def mapped_rows(files, map_fn=None):
    """Read rows and map them.

    Args:
        files (list[str]): paths.
        map_fn (callable, optional): called with a row alone; a DataError that it raises becomes the row's problem.

    Yields:
        tuple[str, object, str | None]: "file:line", the mapped row, and what is wrong with it, None where nothing is.
    """
    for file in files:
        where = None
        for where, row, problem in read_rows(file):
            if problem is None and map_fn is not None:
                try:
                    row = map_fn(row)
                except DataError as error:
                    problem = str(error)
            yield where, row, problem
        if where is None:
            yield file, None, "there are no rows in it"


def describe_problems(problems):
    """Return the first problems (list[str]) as one line."""
    more = f" (and {len(problems) - SHOWN_PROBLEMS} more)" if len(problems) > SHOWN_PROBLEMS else ""
    return f"{'; '.join(problems[:SHOWN_PROBLEMS])}{more}; nothing was trained, correct the data and start again"

"""The loader that the configs use in place of `datasets.load_dataset`: the same arguments, but every problem has its file and line."""

import logging
import os

from xtuner_wulewule.dataset.persona import persona_of_rows
from xtuner_wulewule.dataset.split import Split
from xtuner_wulewule.dataset.validation import ERROR, MAP_FNS, SFT, WARNING, Checker
from xtuner_wulewule.errors import SHOWN_PROBLEMS, DataError, first_of
from xtuner_wulewule.prompts import given

WARNED_ROWS = 2_000  # half a second of looking for warnings at most; `wulewule data check` looks at all rows
# rows read by the last call in this process; UpdateBudgetHook reports it, since packing hides it
rows_loaded: int | None = None


def load_wulewule_dataset(path="json", data_files=(), map_fn=None, checks=True, held_out=0.0):
    """Read JSON Lines files (or JSON arrays, or either with gzip) and check every row before anything is trained.

    Args:
        path (str): "json", as for `datasets.load_dataset`.
        data_files (str | list[str]): the files, read in this order.
        map_fn (callable, optional): a map function that every row must pass, called with the row alone. Its results become the rows.
        checks (bool): whether to log a summary of the warnings of `wulewule data check`, too.
        held_out (float): share of the rows that are left out; see `dataset.split`. Defaults to 0.

    Returns:
        datasets.Dataset: one row per line, in order.

    Raises:
        DataError: a file is missing, unreadable or empty, or rows are wrong. All problems are collected; the first five are named
            `file:line: problem`. Or every row is held out.
    """
    global rows_loaded
    from datasets import Dataset

    split = Split(held_out)
    files = existing_files(data_files, path)
    checker = checker_of(map_fn, files, checks)
    rows = [row for file in files for row in checker.rows(file) if not split.holds_out(row)]
    conclude(checker)
    split.check_rest(len(rows))
    rows_loaded = len(rows)
    keys = sorted({key for row in rows for key in row})
    return Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys})


def existing_files(data_files, path="json"):
    """Return the data files as a list (list[str]); raise DataError where one is missing, or `path` asks for another format."""
    if path != "json":
        raise DataError(f"train_dataloader.dataset: path is {path!r}; JSON Lines are read here, set it to 'json'")
    files = [data_files] if isinstance(data_files, str) else list(data_files)
    missing = [file for file in files if not os.path.isfile(file)]
    if missing or not files:
        raise DataError(
            f"data file not found: {', '.join(missing) or 'data_files is empty'}; set WULEWULE_DATA_DIR to the folder that holds it, "
            "or data_files in PART 1 of the config"
        )
    return files


def checker_of(map_fn, files, checks=True):
    """Return the `Checker` of a training.

    Args:
        map_fn (callable | None): as for `load_wulewule_dataset`.
        files (list[str]): the data files.
        checks (bool): whether to look for warnings in the first `WARNED_ROWS` rows, too. Defaults to True.
    """
    persona = persona_of_rows(files, given())[0] if checks and map_fn is MAP_FNS[SFT] else None
    return Checker(map_fn or _as_it_is, warnings=checks, warned_rows=WARNED_ROWS, persona=persona)


def conclude(checker):
    """End the check of a training, and log its warnings.

    Args:
        checker (Checker): it has seen all files.

    Returns:
        str: the warnings, as `log_warnings` takes them to log them again.

    Raises:
        DataError: it found errors; the first five are named.
    """
    report = checker.finish()
    errors = report.count(ERROR)
    if errors:
        shown = [f"{problem.place(field=False)}: {problem.message}; {problem.fix}" for problem in report.errors(SHOWN_PROBLEMS)]
        raise DataError(f"{first_of(shown, errors)}; nothing was trained, correct the data and start again")
    warnings = _warnings(report)
    log_warnings(warnings)
    return warnings


def _as_it_is(row):
    return row


def log_warnings(warnings):
    """Log the warnings about the data.

    Args:
        warnings (str): of `conclude`; where it is empty, nothing is said.
    """
    if warnings:
        from mmengine.logging import print_log

        print_log(warnings, logger="current", level=logging.WARNING)


def _warnings(report):
    """Return a line for each kind of warning (str), empty where there is none."""
    if not report.count(WARNING):
        return ""
    first = {}
    for problem in report.problems:
        first.setdefault(problem.code, problem)
    lines = [f"  {report.counts[WARNING, code]} x {code}, first {p.place() or 'in the set'}: {p.message}" for code, p in first.items()]
    lines = [f"the data has {report.count(WARNING)} warnings; wulewule data check shows all", *lines, *report.notes]
    return "\n".join(lines)

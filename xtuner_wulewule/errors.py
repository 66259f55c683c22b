"""Errors that a user can cause, shown as one line: what, where, what to do."""

import os
import re
import sys

SHOWN_PROBLEMS = 5  # in an error that is one line


class WulewuleError(Exception):
    """Base class of the errors a user can cause.

    Args:
        message (str): one line that says what is wrong, where (file:line or config key) and what to do.
    """


class DataError(WulewuleError):
    """A data file or a row of it is wrong.

    Args:
        message (str): as for `WulewuleError`.
        code (str): the kind of problem, for programs.
        field (str): where in the row, for example "conversation[0].output".
        problem (str, optional): the message without what quotes the row.
    """

    def __init__(self, message, code="shape", field="", problem=None):
        super().__init__(message)
        self.code, self.field, self.problem = code, field, problem or message


class ModelError(WulewuleError):
    """The model can't be found, or can't be loaded on this machine."""


class SettingsError(WulewuleError):
    """A setting of the config makes no sense for this run."""


class StepError(WulewuleError):
    """A step of the recipe failed.

    Args:
        message (str): as for `WulewuleError`.
        last_lines (list[str], optional): the last lines of its output.
    """

    def __init__(self, message, last_lines=()):
        super().__init__(message)
        self.last_lines = list(last_lines)


class GateError(WulewuleError):
    """A model misses thresholds that it was to pass."""


class UnsupportedStackError(WulewuleError, ImportError):
    """Installed versions don't work together."""


def find_wulewule_error(error):
    """Return the first `WulewuleError` in the chain of causes of `error`, or None."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, WulewuleError):
            return error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # as Python shows them
    return None


def wants_traceback():
    """Return whether the user asked for whole tracebacks (bool): `WULEWULE_TRACEBACK=1`."""
    return os.environ.get("WULEWULE_TRACEBACK") == "1"


def first_of(problems, count=None):
    """Return the first problems as text (str), and how many more there are.

    Args:
        problems (list[str]): the problems, or the first of them.
        count (int, optional): how many there are; defaults to those given.
    """
    more = (len(problems) if count is None else count) - SHOWN_PROBLEMS
    return "; ".join(problems[:SHOWN_PROBLEMS]) + (f" (and {more} more)" if more > 0 else "")


def one_line(error):
    """Return the line that the user sees for a `WulewuleError`."""
    return f"xtuner-wulewule: error: {' '.join(str(error).split())}"


def explain_missing_config(error, traceback):
    """Return a `SettingsError` for the "Cannot find NAME" of XTuner's tools, or None where `error` is something else.

    Args:
        error (BaseException): the exception.
        traceback (types.TracebackType | None): its traceback.
    """
    if not isinstance(error, FileNotFoundError) or not str(error).startswith("Cannot find ") or traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    file = frame.f_code.co_filename.replace("\\", "/")
    if "/xtuner/tools/" not in file:
        return None
    if file.endswith("/utils.py"):  # the checkpoint of --resume
        return SettingsError(f"{error}: there is no such checkpoint, neither a file nor a DeepSpeed folder")
    name = str(error).removeprefix("Cannot find ")
    pattern = "deepspeed" if name == getattr(frame.f_locals.get("args"), "deepspeed", None) else "wulewule"
    return SettingsError(f"{error}: there is no such file, and no packaged config of that name; see xtuner list-cfg -p {pattern}")


def explain_world_size(error):
    """Return a `SettingsError` where DeepSpeed refuses a checkpoint of another number of processes, or None for any other error.

    Args:
        error (BaseException): the exception.
    """
    numbers = re.findall(r"world size (?:of|is) (\d+)", str(error)) if type(error).__name__ == "ZeRORuntimeException" else []
    if len(numbers) != 2:
        return None
    return SettingsError(
        f"--resume: {numbers[0]} processes saved this DeepSpeed checkpoint and ZeRO can't divide its optimizer states for {numbers[1]}; "
        f"go on with NPROC_PER_NODE={numbers[0]} (checkpoints saved without --deepspeed can be resumed on any number)"
    )


def install_excepthook():
    """Show uncaught `WulewuleError`s, and an unknown config, as one line; every other exception keeps its traceback.

    XTuner's tools let exceptions end the process, so the exit status is 1. `WULEWULE_TRACEBACK=1` keeps the traceback.
    """
    if getattr(sys.excepthook, "of_wulewule", False):
        return
    previous = sys.excepthook

    def excepthook(kind, error, traceback):
        found = find_wulewule_error(error) or explain_missing_config(error, traceback) or explain_world_size(error)
        if found is None or wants_traceback():
            previous(kind, error, traceback)
        else:
            print(one_line(found), file=sys.stderr)

    excepthook.of_wulewule = True  # type: ignore[attr-defined]
    sys.excepthook = excepthook

"""Errors that a user can cause, shown as one line: what, where, what to do."""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

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
    file = _file_of(traceback)
    if file.endswith(("/xtuner/tools/utils.py", "/xtuner/model/utils.py")):  # the checkpoint of --resume, or of pth_to_hf
        return SettingsError(f"{error}: there is no such checkpoint, neither a file nor a DeepSpeed folder")
    if TOOLS not in file:
        return None
    name = str(error).removeprefix("Cannot find ")
    return no_config(name, "deepspeed" if name == getattr(traceback.tb_frame.f_locals.get("args"), "deepspeed", None) else "wulewule")


TOOLS = "/xtuner/tools/"


def _file_of(traceback):
    return traceback.tb_frame.f_code.co_filename.replace("\\", "/")


def _arguments_in(traceback):
    """Return the parsed arguments (argparse.Namespace) that the function of a traceback holds, None where it holds none."""
    args = traceback.tb_frame.f_locals.get("args")
    return args if isinstance(args, argparse.Namespace) else None


def no_config(name, pattern="wulewule"):
    """Return the `SettingsError` for a name that is none of a config; `pattern` (str) shows those that were meant."""
    return SettingsError(
        f"Cannot find {name}: there is no such file, and no packaged config of that name; see xtuner list-cfg -p {pattern}"
    )


def no_adapter(folder):
    """Return the `ModelError` for a folder that holds no adapter."""
    return ModelError(f"adapter folder {folder} has no adapter_config.json: give what xtuner convert pth_to_hf wrote")


def unwritable(folder, why):
    """Return the `SettingsError` for a target folder (str) that a tool of XTuner's cannot write; `why` is the system's word (str)."""
    return SettingsError(f"the folder {folder} cannot be written: {why}; name another one, or mend this one")


def explain_paths(error, traceback):
    """Return a `WulewuleError` where one of XTuner's tools was given a config, model, adapter or target folder that can't be; else None.

    Args:
        error (BaseException): the exception.
        traceback (types.TracebackType | None): its traceback.
    """
    while traceback is not None and not (TOOLS in _file_of(traceback) and _arguments_in(traceback)):
        traceback = traceback.tb_next
    if traceback is None:
        return None
    given = vars(_arguments_in(traceback))
    if isinstance(error, KeyError) and error.args == (given.get("config_name"),):
        return no_config(*error.args)
    target = given.get("save_dir")
    if target and within(error, target):
        return unwritable(target, error.strerror)
    model, adapter = given.get("model_name_or_path"), given.get("adapter_name_or_path") or given.get("adapter")
    if adapter and isinstance(error, ValueError) and "Can't find 'adapter_config.json'" in str(error):
        parent = os.path.dirname(adapter)
        return no_adapter(adapter) if not parent or os.path.isdir(parent) else None  # OWNER/NAME may be one of the hub
    if not model or not isinstance(error, OSError | ValueError) or os.path.isfile(os.path.join(model, "config.json")):
        return None
    if os.path.isdir(model):
        return ModelError(f"model folder {model} has no config.json: name the folder that holds the model")
    # the hub's client tells of what it can't find without a number; what else a tool was given may be missing, too
    if not isinstance(error, OSError) or error.errno is not None or str(model) not in str(error):
        return None
    why = str(error).strip().splitlines()[0].rstrip(".")
    return ModelError(
        f"model {model!r} not found: there is no such folder and the hub does not give it ({why}); name the folder that holds the model"
    )


def within(error, folder):
    """Return whether an error is that of a system call (bool) on a folder (str), or on something in it that was to be written."""
    if not isinstance(error, OSError) or not error.filename or not error.strerror:
        return False
    path, folder = Path(os.path.abspath(os.fsdecode(error.filename))), Path(os.path.abspath(folder))
    if isinstance(error, FileNotFoundError):  # of something in it: a file that was to be read
        return folder.is_relative_to(path)
    return path.is_relative_to(folder)


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


def explain_resume(error, arguments):
    """Return a `SettingsError` where `--resume` names a checkpoint of DeepSpeed without `--deepspeed`, or the reverse; else None.

    Args:
        error (BaseException): the exception.
        arguments (list[str]): of the training.
    """
    resume = value_of(arguments, "--resume")
    if resume is None:
        return None
    if isinstance(error, FileNotFoundError) and str(error).endswith("can not be found.") and os.path.isdir(resume):
        return SettingsError(f"--resume: {resume} is a checkpoint of DeepSpeed; add --deepspeed with the setting that saved it")
    if isinstance(error, AssertionError) and os.path.isfile(resume) and value_of(arguments, "--deepspeed"):
        return SettingsError(f"--resume: {resume} was saved without DeepSpeed; go on without --deepspeed")
    return None


LOST = "its connection to another process broke, whose own message tells why"


def explain_lost(error):
    """Return a `WulewuleError` where a process of several only lost another one (gloo tells of it), or None for any other error.

    Args:
        error (BaseException): the exception.
    """
    broken = re.search(r"\bgloo/transport/.*(Connection (closed|reset) by peer|Broken pipe)", str(error))
    return WulewuleError(f"process {os.environ.get('RANK', '?')}: {LOST}") if broken and isinstance(error, RuntimeError) else None


WRONG_SEED = "it must be a whole number from 0 to 4294967295"
NO_VALUE = "expected KEY=VALUE, for example train_dataloader.batch_size=8"


def explain_options(error, arguments):
    """Return a `SettingsError` where one of `--cfg-options` has no value, `--work-dir` can't be written or `--seed` can't be; else None.

    Args:
        error (BaseException): the exception.
        arguments (list[str]): of the training.
    """
    if isinstance(error, ValueError) and "to unpack" in str(error) and "--cfg-options" in arguments:
        for item in arguments[arguments.index("--cfg-options") + 1 :]:
            if item.startswith("--"):
                break
            if "=" not in item:
                return SettingsError(f"--cfg-options {item}: {NO_VALUE}")
    seed = value_of(arguments, "--seed")
    if seed and isinstance(error, ValueError) and str(error).startswith("Seed must be between "):  # numpy's
        return SettingsError(f"--seed {seed}: {WRONG_SEED}")
    work_dir = value_of(arguments, "--work-dir")
    if work_dir and within(error, work_dir):
        return SettingsError(f"--work-dir {work_dir} cannot be written: {error.strerror}; name another folder, or mend this one")
    return None


def value_of(arguments, *names):
    """Return the value (str) of an option, by any of its names, among arguments (list[str]): "" where it has none, None without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(*names, nargs="?", const="", dest="value")
    return parser.parse_known_args(arguments)[0].value


def _tell_launcher(line):
    """Leave a line for torch's launcher, which says at its end what its first failed process left."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        try:
            with open(file, "w", encoding="utf-8") as stream:
                json.dump({"message": line, "timestamp": int(time.time())}, stream)
        except OSError:
            pass


def install_excepthook():
    """Show uncaught `WulewuleError`s, and a user's mistakes that XTuner's tools meet, as one line; other exceptions keep their traceback.

    XTuner's tools let exceptions end the process, so the exit status is 1. `WULEWULE_TRACEBACK=1` keeps the traceback. In a run of several
    processes the line is left for the launcher, too.
    """
    if getattr(sys.excepthook, "of_wulewule", False):
        return
    # here, not in the hook: an import that evaluates text, as of a named tuple, makes Python forget that it is to end by SIGINT
    from xtuner_wulewule import launcher

    previous = sys.excepthook

    def excepthook(kind, error, traceback):
        if issubclass(kind, KeyboardInterrupt) and not wants_traceback():
            if "TORCHELASTIC_RUN_ID" not in os.environ:  # else the launcher speaks
                print(f"xtuner-wulewule: interrupted{launcher.go_on(sys.argv[1:])}", file=sys.stderr)
            return
        found = find_wulewule_error(error) or explain_missing_config(error, traceback) or explain_world_size(error)
        found = found or explain_paths(error, traceback) or explain_lost(error)
        found = found or explain_resume(error, sys.argv[1:]) or explain_options(error, sys.argv[1:])
        first = next(iter(str(error).strip().splitlines()), "")
        _tell_launcher(one_line(found) if found else f"{kind.__name__}: {first}".strip(": "))
        if found is None or wants_traceback():
            previous(kind, error, traceback)
        else:
            print(one_line(found), file=sys.stderr)

    excepthook.of_wulewule = True  # type: ignore[attr-defined]
    sys.excepthook = excepthook

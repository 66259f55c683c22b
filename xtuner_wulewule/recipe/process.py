"""Runs one of XTuner's commands: output into a log file, progress to whoever asks, exit status checked."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from xtuner_wulewule.compat import parent_death_signal
from xtuner_wulewule.dataset.progress import counted
from xtuner_wulewule.errors import StepError, UnsupportedStackError
from xtuner_wulewule.launcher import GOES_ON_BY_ITSELF

# mmengine's line, for example: Iter(train) [ 41/236]  lr: 1.9e-03  eta: 0:00:08  time: 0.04  data_time: 0.003  loss: 6.87
_PROGRESS = re.compile(
    r"Iter\(train\) \[\s*(?P<iteration>\d+)/(?P<iterations>\d+)\]\s+lr: (?P<lr>\S+)\s+eta: (?P<eta>.+?)\s{2}.*\bloss: (?P<loss>\S+)"
)
LAST_LINES = 20


@dataclass(frozen=True)
class TrainingProgress:
    """One logged iteration of a training step.

    Args:
        iteration (int): iterations done.
        iterations (int): length of the run in iterations.
        lr (float): learning rate of that iteration.
        loss (float): mean loss of the last logged iterations.
        eta (str): remaining time as mmengine writes it, "H:MM:SS", with days before it in a long run.
    """

    iteration: int
    iterations: int
    lr: float
    loss: float
    eta: str


def parse_progress(line):
    """Return the `TrainingProgress` of a line of mmengine's log, or None where the line is another one."""
    match = _PROGRESS.search(line)
    if match is None:
        return None
    return TrainingProgress(int(match["iteration"]), int(match["iterations"]), float(match["lr"]), float(match["loss"]), match["eta"])


def xtuner_command(*arguments):
    """Return the command line (list[str]) of `xtuner ARGUMENTS` with the `xtuner` of this environment, activated or not."""
    script = Path(sysconfig.get_path("scripts")) / "xtuner"
    start = [str(script)] if script.is_file() else [sys.executable, "-c", "from xtuner.entry_point import cli; cli()"]
    return [*start, *map(str, arguments)]


def tool_command(tool, *arguments, processes=1):
    """Return the command line (list[str]) that runs one of XTuner's tools with this interpreter, without the `xtuner` command between.

    Args:
        tool (str): "train", "model_converters/pth_to_hf", …: a file below `xtuner/tools`, without its suffix.
        arguments: its arguments.
        processes (int): more than one are started by torch's launcher. Defaults to 1.

    Raises:
        UnsupportedStackError: XTuner is not installed, or has no such tool.
    """
    spec = find_spec("xtuner")
    file = Path(spec.submodule_search_locations[0]) / "tools" / f"{tool}.py" if spec is not None else None  # type: ignore[index]
    if file is None or not file.is_file():
        raise UnsupportedStackError(f"XTuner's tool {tool} is not installed: pip install 'xtuner>=0.2.0,<0.3'")
    command = [str(file), *map(str, arguments)]
    if processes == 1:
        return [sys.executable, *command]
    launch = ["-m", "xtuner_wulewule.launcher", "--nnodes=1", f"--nproc_per_node={processes}", "--standalone"]
    return [sys.executable, *launch, *command, "--launcher", "pytorch"]


def run_step(command, log, env=None, stdin=None, on_progress=None, stderr_too=True, keep_open=(), return_output=True):
    """Run a command to its end.

    Args:
        command (list[str]): the command line.
        log (pathlib.Path): file that all its output is appended to.
        env (dict[str, str], optional): variables set on top of this process's.
        stdin (str, optional): what the command reads; otherwise it reads nothing.
        on_progress (callable, optional): called with a `TrainingProgress` for each logged iteration, and with the words (str) of what else
            counts.
        stderr_too (bool): return standard error among the output; it always goes into the log. Defaults to True.
        keep_open (tuple[int, ...]): file descriptors that the command inherits: a lock is held until it has ended too.
        return_output (bool): keep the output for the caller; a training of days writes more than should be kept. Defaults to True.

    Returns:
        str: its output, empty where that is not wanted.

    Raises:
        StepError: it ended with a status other than 0; the message names the status, the last lines and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", GOES_ON_BY_ITSELF: "1", **(env or {})}
    output = []
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr_too else file,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that an interruption can end its children too
            pass_fds=keep_open,
            preexec_fn=parent_death_signal(),  # `kill -9` leaves no training behind
        )
        try:
            if stdin is not None:
                process.stdin.write(stdin)  # a few lines: they fit the pipe
                process.stdin.close()
            for line in process.stdout:
                file.write(line)
                file.flush()
                if return_output:
                    output.append(line)
                progress = (parse_progress(line) or counted(line)) if on_progress is not None else None
                if progress is not None:
                    on_progress(progress)
            status = process.wait()
        finally:
            _end(process)
    if status != 0:
        last = last_lines(log)
        raise StepError(_explain(status, last, log), last_lines=last)
    return "".join(output)


def last_lines(log, lines=LAST_LINES):
    """Return the last lines (list[str]) of a log that are not blank."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return list(deque((line.rstrip() for line in file if line.strip()), maxlen=lines))


def _end(process):
    """End a process that still runs, and its children."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=45)  # torch's launcher gives its ranks 30 s
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)  # helpers too that outlived it: they would hold the lock of the folder
    except ProcessLookupError:
        pass
    process.wait()


def _explain(status, last, log):
    last = [line for line in last if not line.startswith("xtuner-wulewule: process ")]  # the launcher's, which points to a line above it
    ours = [line for line in last if re.search(r"\bxtuner(-wulewule)?: error: ", line)]  # after "[rank0]: " in a run of several ranks
    reason = ours[-1].partition("error: ")[2] if ours else (last[-1].strip() if last else "it said nothing")
    memory = re.compile(r"out of memory|MemoryError|can't allocate memory|killed by SIGKILL", re.I)
    if any(map(memory.search, last)) or status == -signal.SIGKILL:
        reason += "; if memory ran out, train fewer rows at a time: train_dataloader.batch_size"
    return f"ended with status {status if status >= 0 else 128 - status}: {reason} (the whole output is in {log})"

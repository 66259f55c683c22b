"""Real interpreters and the real `xtuner` and `wulewule` commands of the environment that runs the tests."""

import os
import subprocess
import sys
import time
from pathlib import Path

XTUNER = Path(sys.executable).parent / "xtuner"
WULEWULE = Path(sys.executable).parent / "wulewule"
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE", "NNODES", "LAUNCHER")


def environment(autoload=True, **env):
    """Return the variables (dict[str, str]) of a command: of the launcher's and ours only those in `env`, no accelerator, one thread."""
    ours = ("XTUNER_", "WULEWULE_", "PYTHON")
    outer = {name: value for name, value in os.environ.items() if name not in LAUNCHER and not name.startswith(ours)}
    return {**outer, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "XTUNER_WULEWULE_AUTOLOAD": str(int(autoload)), **env}


def run(command, folder, autoload=True, timeout=120, stdin=None, **env):
    """Run a command in `folder`, with the plugin or without it.

    Args:
        command (list): the command line.
        folder (pathlib.Path): where to run it.
        autoload (bool): whether the start-up file is active.
        timeout (int): seconds.
        stdin (str | None): what it reads.
        env: further environment variables.

    Returns:
        subprocess.CompletedProcess: with stdout and stderr as text.
    """
    env = environment(autoload, **env)
    return subprocess.run(list(map(str, command)), cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=timeout)


def python(code, folder, autoload=True, **env):
    """Run `python -c code`; see `run`."""
    return run([sys.executable, "-W", "ignore", "-c", code], folder, autoload, **env)


def xtuner(*arguments, folder, timeout=240, **env):
    """Run `xtuner ARGUMENTS`; see `run`."""
    return run([XTUNER, *arguments], folder, timeout=timeout, **env)


def last_line(text):
    """Return the last line of a text that isn't blank."""
    return text.strip().splitlines()[-1]


def those_of(folder):
    """Return the PIDs (set[int]) of the processes whose command line names a folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except (ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            continue
    return found


def wait_for(condition, seconds, process=None, log=None):
    """Wait until a condition holds; fail after some time, or where what is to bring it about has ended.

    Args:
        condition (callable): called without arguments.
        seconds (float): how long to wait at most.
        process (subprocess.Popen, optional): what is to bring it about.
        log (pathlib.Path, optional): its output, whose end is shown where it has failed.
    """
    end = time.monotonic() + seconds
    while not condition():
        running = process is None or process.poll() is None
        assert running and time.monotonic() < end, log.read_text()[-3000:] if log else "waited in vain"
        time.sleep(0.1)

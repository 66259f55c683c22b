"""Fixtures for all tests."""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from xtuner_wulewule.prompts import VARIABLES

# a test must never wait for a hub; models are folders here
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# before torch is imported: threads of two workers that wait for each other made seconds into minutes on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
# DeepSpeed compiles a small library on first use. A killed run leaves a lock in the user's cache, and the next waits for it for ever. The
# workers of pytest-xdist inherit the variable from the process that made the folder.
OURS = "WULEWULE_TEST_EXTENSIONS" not in os.environ
if OURS:
    os.environ["WULEWULE_TEST_EXTENSIONS"] = tempfile.mkdtemp(prefix="torch-extensions-")
EXTENSIONS = Path(os.environ["WULEWULE_TEST_EXTENSIONS"])
os.environ["TORCH_EXTENSIONS_DIR"] = str(EXTENSIONS)
# a shell starts what it puts into the background with SIGINT ignored, and all that is started by it: `make test &` tests Ctrl-C, too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# as two workers take one file after the other: the shorter the last ones, the sooner both end
LONGEST = [f"test_{name}.py" for name in ("demo", "train", "run", "processes", "install", "compat", "docs", "build_processes", "eval")]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def kept(config):
    """Return where pytest's cache keeps what was compiled for this environment on this processor (pathlib.Path)."""
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    compiled_for = repr((sys.prefix, version("torch"), version("deepspeed"), flags))
    return config.cache.mkdir("torch-extensions") / hashlib.sha256(compiled_for.encode()).hexdigest()[:16]


def pytest_configure(config):
    if OURS and hasattr(config, "cache") and kept(config).is_dir():
        shutil.copytree(kept(config), EXTENSIONS, dirs_exist_ok=True)  # with their times, by which ninja sees that nothing has changed


def pytest_unconfigure(config):
    if not OURS:
        return
    # what was compiled to its end takes a minute of the next run's time
    if hasattr(config, "cache") and not kept(config).exists() and list(EXTENSIONS.glob("*/*.so")) and not list(EXTENSIONS.glob("*/lock")):
        part = Path(tempfile.mkdtemp(dir=kept(config).parent))
        shutil.copytree(EXTENSIONS, part, dirs_exist_ok=True)
        try:
            part.rename(kept(config))
        except OSError:  # another run was quicker
            shutil.rmtree(part)
    shutil.rmtree(EXTENSIONS, ignore_errors=True)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Nothing is said of the persona in the environment, whatever the shell says."""
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)

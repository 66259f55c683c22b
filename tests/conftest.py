"""Fixtures for all tests."""

import os
import shutil
import tempfile

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
os.environ["TORCH_EXTENSIONS_DIR"] = os.environ["WULEWULE_TEST_EXTENSIONS"]


def pytest_unconfigure():
    if OURS:
        shutil.rmtree(os.environ["WULEWULE_TEST_EXTENSIONS"], ignore_errors=True)

"""Fixtures for all tests."""

import os
import shutil
import tempfile

# a test must never wait for a hub; models are folders here
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# DeepSpeed compiles a small library on first use. A killed run leaves a lock in the user's cache, and the next waits for it for ever.
EXTENSIONS = os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="torch-extensions-")


def pytest_unconfigure():
    shutil.rmtree(EXTENSIONS, ignore_errors=True)

"""Fixtures for all tests."""

import os

# a test must never wait for a hub; models are folders here
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

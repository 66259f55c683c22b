"""The packed data set built by several processes: together, interrupted, and on two ranks, of which none outlives the other in silence."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from commands import LAUNCHER, last_line, run

from xtuner_wulewule import paths
from xtuner_wulewule.compat import free_ports
from xtuner_wulewule.model.tiny import tiny_model

SFT_FILES = [paths.packaged_data_dir() / name for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")]
TOGETHER = """
import json, multiprocessing, sys
from transformers import AutoTokenizer
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.utils import PROMPT_TEMPLATE
from xtuner_wulewule.dataset.build import build_wulewule_dataset

def build_together(name):
    barrier.wait(60)
    dataset = build_wulewule_dataset(files, tokenizer, 512, "wulewule_sft_map_fn", template, cache_dir="cache")
    json.dump([len(dataset), dataset[0]], open(name, "w"))

model, *files = sys.argv[1:]
template = template_map_fn_factory(PROMPT_TEMPLATE.internlm2_chat)
tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
context = multiprocessing.get_context("fork")
barrier = context.Barrier(2)
processes = [context.Process(target=build_together, args=(name,)) for name in ("first", "second")]
for process in processes:
    process.start()
for process in processes:
    process.join()
    assert process.exitcode == 0
"""


def test_processes_that_start_together(tmp_path):
    result = run([sys.executable, "-W", "ignore", "-c", TOGETHER, tiny_model(), *SFT_FILES], tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text() and len(list((tmp_path / "cache").iterdir())) == 1


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from transformers import AutoTokenizer
from xtuner_wulewule.dataset.build import build_wulewule_dataset
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print("begins", flush=True)
build_wulewule_dataset(sys.argv[2], tokenizer, 512, "wulewule_pretrain_map_fn", cache_dir=sys.argv[3])
"""


def test_interruption_leaves_nothing_behind(tmp_path):
    file = tmp_path / "rows.jsonl"
    draw = random.Random(0)
    with open(file, "w", encoding="utf-8") as stream:
        for _ in range(30_000):
            stream.write(json.dumps({"text": "".join(map(chr, draw.choices(range(0x4E00, 0x9FA5), k=300)))}) + "\n")
    cache = tmp_path / "cache"
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, tiny_model(), file, cache]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        while process.poll() is None and not list(cache.glob(".*/tokens.bin")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT and said.splitlines()[-1] == "xtuner-wulewule: interrupted"
    assert list(cache.iterdir()) == []


# two ranks of one gloo group: rank 0 builds

SECONDS = 20  # until the other rank has ended; its time limit is an hour
RANK = """
import sys, time
from pathlib import Path
from torch import distributed
from transformers import AutoTokenizer
from xtuner_wulewule.dataset.build import build_wulewule_dataset
from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn
from xtuner_wulewule.errors import install_excepthook
from xtuner_wulewule.model.tiny import tiny_model

def map_fn(row):
    Path("building").touch()
    time.sleep(0.05)  # the build takes a minute and a half
    return wulewule_pretrain_map_fn(row)

install_excepthook()
tokenizer = AutoTokenizer.from_pretrained(tiny_model(), trust_remote_code=True)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
Path(f"begun.{rank}").touch()
time.sleep(60 if rank in map(int, sys.argv[1:]) else 0)
build_wulewule_dataset("rows.jsonl", tokenizer, 512, map_fn, cache_dir="cache")
"""


TOLD = """
import logging
from mmengine.logging import MMLogger
from torch import distributed
from transformers import AutoTokenizer
from xtuner_wulewule.dataset.build import build_wulewule_dataset
from xtuner_wulewule.model.tiny import tiny_model

tokenizer = AutoTokenizer.from_pretrained(tiny_model(), trust_remote_code=True)
distributed.init_process_group("gloo")
for time in ("first", "second"):
    handler = logging.FileHandler(f"{time}.{distributed.get_rank()}")
    MMLogger.get_current_instance().addHandler(handler)
    build_wulewule_dataset("twice.jsonl", tokenizer, 512, "wulewule_sft_map_fn", cache_dir="cache")
    MMLogger.get_current_instance().removeHandler(handler)
"""


@pytest.fixture
def ranks(tmp_path):
    """Start two ranks; those that are named sleep before they build. None is left at the end."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"stone {number}"}) + "\n" for number in range(1800)))
    outer = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    group = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(*free_ports()), CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    started = []

    def start(*sleepers, code=RANK):
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, sleepers)]
        for rank in ("0", "1"):
            env = {**outer, **group, "RANK": rank, "LOCAL_RANK": rank}
            started.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(*files):
    limit = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("sleepers", [(), (0,)], ids=["while_it_builds", "before_it_builds"])
def test_rank_0_is_killed(sleepers, ranks, tmp_path):
    first, second = ranks(*sleepers)
    wait_for(tmp_path / "begun.0", tmp_path / "begun.1", *[] if sleepers else [tmp_path / "building"])
    time.sleep(1)  # the other one waits for it by now
    assert first.poll() is None and second.poll() is None
    first.kill()
    _, said = second.communicate(timeout=SECONDS)
    assert second.returncode == 1 and "Traceback" not in said
    assert last_line(said).startswith("xtuner-wulewule: error: another process ended, or took longer than XTUNER_DATASET_TIMEOUT (1:00:00)")


def test_warnings_are_told_by_one_rank(ranks, tmp_path):
    row = json.dumps({"conversation": [{"input": "Which staff is it?", "output": "One of thirteen thousand pounds."}]})
    (tmp_path / "twice.jsonl").write_text(f"{row}\n{row}\n")
    for process in ranks(code=TOLD):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    for when in ("first", "second"):  # built, and found in the cache
        assert [(tmp_path / f"{when}.{rank}").read_text().count("1 x duplicate") for rank in (0, 1)] == [1, 0]

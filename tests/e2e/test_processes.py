"""Several processes on the CPU: in the real `xtuner` command, in torch's launcher, and making the tiny model at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import XTUNER, environment, python, those_of, wait_for, xtuner
from training import adam_steps, budget, deepspeed_steps, told, train, write_conversations, write_lines
from transformers import AutoTokenizer

from xtuner_wulewule import paths
from xtuner_wulewule.model import tiny
from xtuner_wulewule.recipe.results import last_checkpoint, read_scalars

SEEN = {"cpu": "", "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3")}  # CUDA_VISIBLE_DEVICES: gloo, or NCCL with a GPU a process
DEVICES = ["cpu", pytest.param("gpus", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs several GPUs"))]

RECORD = """
import json
from mmengine.dist import get_rank
from mmengine.hooks import Hook

class RecordHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        rows = [hash(tuple(filter(None, row))) for row in data_batch["data"]["input_ids"].tolist()]  # without the padding
        with open(f"{runner.work_dir}/rank_{get_rank()}.jsonl", "a") as file:
            file.write(json.dumps([rows, float(outputs["loss"])]) + "\\n")
"""


def recorded(work_dir, ranks):
    """For each iteration the rows of all ranks together, in their order, and the mean of the ranks' losses."""
    lines = [(work_dir / f"rank_{rank}.jsonl").read_text().splitlines() for rank in range(ranks)]
    steps = [[json.loads(line) for line in step] for step in zip(*lines, strict=True)]
    # rank r of W has the rows r, r + W, …
    return [
        ([row for rows in zip(*(one[0] for one in step), strict=True) for row in rows], sum(one[1] for one in step) / ranks)
        for step in steps
    ]


def rows_of_equal_length(folder):
    """Write 56 texts of as many tokens each, and return how many two have: ranks take the mean of their own tokens, so only where rows are
    equally long is the global mean that of the ranks."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_model(), trust_remote_code=True)
    texts = [f"第{number}段，山高路远，慢慢走。" for number in range(400)]
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    usual = max(set(lengths), key=lengths.count)
    equal = [text for text, length in zip(texts, lengths, strict=True) if length == usual]
    folder.mkdir()
    write_lines(folder / "heishenghua_pretraining.jsonl", [{"text": text} for text in equal[:56]])
    return 2 * (usual + 2)  # each begins with <s> and ends with </s>


@pytest.mark.parametrize(
    ("arguments", "updates"), [((), 4), (("--deepspeed", "deepspeed_zero1_fp32"), 3)], ids=["ddp", "deepspeed"]
)  # DeepSpeed makes no update of the remainder
def test_two_processes_train_what_one_trains(arguments, updates, tmp_path):
    """The same global batch: every row in the same order, the same losses, and the hooks tell what the optimizer did."""
    max_length = rows_of_equal_length(tmp_path / "data")
    (tmp_path / "record.py").write_text(RECORD)
    config = tmp_path / "recording.py"
    text = Path(paths.config_paths()["wulewule_pretrain_tiny"]).read_text(encoding="utf-8")
    text = text.replace("\nfrom xtuner_wulewule.dataset.build", "\nfrom record import RecordHook\nfrom xtuner_wulewule.dataset.build", 1)
    config.write_text(text.replace("custom_hooks = [\n", "custom_hooks = [\n    dict(type=RecordHook),\n"), encoding="utf-8")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "0"}
    options = ("train_cfg.max_epochs=2", "optim_wrapper.accumulative_counts=4", f"train_dataloader.dataset.max_length={max_length}")
    # each beside its like: mmengine's two runners draw different random numbers for the first values of the LoRA matrices
    one, two = tmp_path / "one", tmp_path / "two"
    train(config, tmp_path / "data", one, *options, "train_dataloader.batch_size=4", arguments=arguments, **env)
    # a fresh cache: both ranks make the tiny model at once
    env.update(NPROC_PER_NODE="2", XDG_CACHE_HOME=str(tmp_path / "cache"))
    output = train(config, tmp_path / "data", two, *options, "train_dataloader.batch_size=2", arguments=arguments, **env)
    alone, together = recorded(one, 1), recorded(two, 2)
    assert len(alone) == 14 and len({row for rows, _ in alone for row in rows}) == 28
    assert [rows for rows, _ in together] == [rows for rows, _ in alone]
    assert [loss for _, loss in together] == pytest.approx([loss for _, loss in alone], rel=2e-6)

    cache = tmp_path / "cache" / "xtuner-wulewule"
    (model,) = (path for path in cache.iterdir() if path.name != "datasets")  # no half of one is left beside it
    (store,) = (cache / "datasets").iterdir()  # the data set was built once
    assert (model / "config.json").is_file() and (model / "model.safetensors").is_file()
    rows, iterations, promised, highest, asked = budget(output)
    assert (rows, iterations, promised) == (56, 14, updates) and highest == asked
    assert told(output) == []  # accumulation keeps a global batch there
    checkpoint = last_checkpoint(two)
    assert (deepspeed_steps(checkpoint) if arguments else adam_steps(checkpoint)) == (updates if arguments else {updates})
    assert [row["iter"] for row in read_scalars(two)] == list(range(1, iterations + 1))

    # one process goes on with what two saved; ZeRO can't, and says so
    options = ("train_cfg.max_epochs=3", *options[1:], "train_dataloader.batch_size=4")
    resume = (*arguments, "--resume", str(checkpoint))
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "0"}
    output = train(config, tmp_path / "data", two, *options, arguments=resume, status=1 if arguments else 0, **env)
    if arguments:
        assert "error: --resume: 2 processes saved this DeepSpeed checkpoint" in output and "Traceback" not in output
    else:
        assert [row["iter"] for row in read_scalars(two)][iterations:] == list(range(iterations + 1, iterations + 8))


@pytest.mark.slow
@pytest.mark.parametrize("devices", DEVICES)
def test_tuning_on_one_two_and_four_processes(devices, tmp_path):
    """Rows of unequal lengths, one a process and iteration: four accumulated by one process, two by two, none by four."""
    write_conversations(tmp_path / "data")
    (tmp_path / "record.py").write_text(RECORD)
    assert xtuner("copy-cfg", "wulewule_sft_tiny", tmp_path, folder=tmp_path).returncode == 0
    config = tmp_path / "wulewule_sft_tiny_copy.py"
    added = "\nfrom record import RecordHook\ncustom_hooks = [one for one in custom_hooks if 'every_n_iters' not in one]\n"
    config.write_text(config.read_text(encoding="utf-8") + added + "custom_hooks.append(dict(type=RecordHook))\n", encoding="utf-8")
    updates, orders = {}, {}
    for processes in (1, 2, 4) if devices == "cpu" or torch.cuda.device_count() >= 4 else (1, 2):
        counts, work_dir = 4 // processes, tmp_path / str(processes)
        options = ("train_cfg.max_epochs=3", "train_dataloader.batch_size=1", f"optim_wrapper.accumulative_counts={counts}")
        env = dict(PYTHONPATH=str(tmp_path), PYTHONHASHSEED="0", NPROC_PER_NODE=str(processes), CUDA_VISIBLE_DEVICES=SEEN[devices])
        output = train(config, tmp_path / "data", work_dir, *options, **env)
        assert budget(output)[:3] == (16, 48 // processes, 12)
        assert told(output) == ([(4, 12, 48)] if processes == 1 else [])
        steps = recorded(work_dir, processes)
        orders[processes] = [row for order, _ in steps for row in order]
        updates[processes] = [sum(loss for _, loss in steps[first : first + counts]) / counts for first in range(0, len(steps), counts)]
        assert adam_steps(last_checkpoint(work_dir)) == {12}
    assert len(orders[1]) == 48 and all(order == orders[1] for order in orders.values())
    # dropout is 0 in this config; fp32 sums of gradients in another order are all that differs
    assert all(losses == pytest.approx(updates[1], rel=1e-5) for losses in updates.values())
    assert updates[1][-1] < updates[1][0]


def ranks_of(work_dir):
    """The PIDs of the processes that train into a folder, {rank: pid}."""
    found = {}
    for pid in those_of(work_dir):
        try:
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            continue
        found |= {int(pair[5:]): pid for pair in pairs if pair.startswith(b"RANK=")}
    return found


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("arguments", [(), ("--deepspeed", "deepspeed_zero1_fp32")], ids=["ddp", "deepspeed"])
def test_killed_process_ends_the_others_and_the_run_goes_on(arguments, devices, tmp_path):
    """One of two is killed in the middle: all end with a line that says how to go on, which two do, and one where that is possible."""
    write_conversations(tmp_path / "data")
    work_dir = tmp_path / "work"
    options = ["train_dataloader.batch_size=1", "default_hooks.checkpoint.interval=8", "default_hooks.logger.interval=1"]
    command = [XTUNER, "train", "wulewule_sft_tiny", "--work-dir", work_dir, "--seed", 0, *arguments, "--cfg-options", *options]
    env = dict(CUDA_VISIBLE_DEVICES=SEEN[devices])
    with open(tmp_path / "log", "w") as log:
        whole = list(map(str, [*command, "train_cfg.max_epochs=500"]))
        two = environment(NPROC_PER_NODE="2", WULEWULE_DATA_DIR=str(tmp_path / "data"), **env)
        process = subprocess.Popen(whole, cwd=tmp_path, env=two, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_for((work_dir / "last_checkpoint").is_file, 240, process, tmp_path / "log")
            ranks = ranks_of(work_dir)
            assert set(ranks) == {0, 1}
            os.kill(ranks[1], signal.SIGKILL)
            assert process.wait(60) == 1
            assert not ranks_of(work_dir)
        finally:
            for rank in ranks_of(work_dir).values():  # torch's launcher puts them into sessions of their own
                os.kill(rank, signal.SIGKILL)
            process.kill()
            process.wait()
    said, _, checkpoint = (tmp_path / "log").read_text().splitlines()[-1].partition("add --resume ")
    assert said.startswith(f"xtuner-wulewule: error: process 1 (PID {ranks[1]}) was killed by SIGKILL")
    assert Path(checkpoint).parent == work_dir

    done = int(Path(checkpoint).stem.removeprefix("iter_"))
    options = [*options, f"train_cfg.max_epochs={done // 8 + 2}"]
    resume = (*arguments, "--resume", checkpoint)
    two, one = tmp_path / "two", tmp_path / "one"
    train("wulewule_sft_tiny", tmp_path / "data", two, *options, arguments=resume, NPROC_PER_NODE="2", **env)
    assert [row["iter"] for row in read_scalars(two)] == list(range(done + 1, done // 8 * 8 + 17))
    # half as many processes: twice as many iterations an epoch
    options[-1] = f"train_cfg.max_epochs={done // 16 + 2}"
    output = train("wulewule_sft_tiny", tmp_path / "data", one, *options, arguments=resume, status=1 if arguments else 0, **env)
    if arguments:
        assert "error: --resume: 2 processes saved this DeepSpeed checkpoint" in output and "Traceback" not in output
    else:
        assert [row["iter"] for row in read_scalars(one)] == list(range(done + 1, done // 16 * 16 + 33))


def test_broken_data_ends_both_processes(data, tmp_path):
    broken = tmp_path / "data"
    broken.mkdir()
    (broken / "heishenghua_pretraining.jsonl").write_text('{"text": "石猴出世。"}\n{"text": ""}\n', encoding="utf-8")
    output = train("wulewule_pretrain_tiny", broken, tmp_path / "work", status=1, NPROC_PER_NODE="2")
    said = [line for line in output.splitlines() if "heishenghua_pretraining.jsonl:2: the text is empty" in line]
    assert len(said) == 3 and "Traceback" not in output  # of both, and at last of the launcher
    assert output.splitlines()[-1].startswith("xtuner-wulewule: error: ") and output.splitlines()[-1] == said[-1]


SEQUENCE_PARALLEL = """
import os
import torch.distributed as dist
from xtuner.parallel.sequence import init_sequence_parallel
from xtuner_wulewule.dataset.samplers import NoShuffleSampler

def tell(name):
    everyone = [None] * 4
    dist.all_gather_object(everyone, list(NoShuffleSampler(range(10))))
    if dist.get_rank() == 0:
        print(name, everyone, flush=True)

dist.init_process_group("gloo")
tell("NO GROUP")
init_sequence_parallel(2)
tell("TWO")
dist.barrier()
os._exit(0)  # tearing down overlapping gloo groups can wait for ever
"""


def test_sampler_in_four_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SEQUENCE_PARALLEL)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    # XTuner's group was never made: every rank has rows of its own
    assert f"NO GROUP {[[0, 4, 8], [1, 5, 9], [2, 6, 0], [3, 7, 1]]}" in run.stdout
    # ranks 0 and 1 share the same rows
    assert f"TWO {[[0, 2, 4, 6, 8], [0, 2, 4, 6, 8], [1, 3, 5, 7, 9], [1, 3, 5, 7, 9]]}" in run.stdout


# the real build, once both processes have found that there is no model yet
TOGETHER = """
import multiprocessing
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast  # once for both
from xtuner_wulewule.model import tiny

def build_together(folder):
    barrier.wait(60)
    build(folder)

context = multiprocessing.get_context("fork")
build, tiny.build_tiny_model, barrier = tiny.build_tiny_model, build_together, context.Barrier(2)
processes = [context.Process(target=lambda: print(tiny.tiny_model(), flush=True)) for _ in range(2)]
for process in processes:
    process.start()
for process in processes:
    process.join()
"""


def test_two_processes_make_the_tiny_model_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "xtuner-wulewule"
    made = python(TOGETHER, tmp_path)
    assert made.stdout.splitlines().count(str(tiny.tiny_model_dir())) == 2, made.stderr
    assert os.listdir(cache) == [tiny.tiny_model_dir().name]
    assert (tiny.tiny_model_dir() / "model.safetensors").is_file()

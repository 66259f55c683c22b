"""Training through the real `xtuner` command, on the CPU, with the tiny model and a small data set of this file's own."""

import json
import re
from pathlib import Path

import pytest
import torch
from commands import WULEWULE, XTUNER, last_line, run, xtuner

from xtuner_wulewule.recipe.results import first_and_last_loss, last_checkpoint, read_scalars

QUESTIONS = ["你是谁", "这棒子有多重？", "What is your name?", "哪一回最难？", "谁画的地图？", "在哪里存档？", "有几种结局？"]
CHECKPOINTS = "default_hooks.checkpoint.max_keep_ckpts=-1"


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def conversation(*turns):
    return {"conversation": [{"input": question, "output": answer} for question, answer in turns]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder: 3 identity rows and 4 conversations, 6 texts."""
    folder = tmp_path_factory.mktemp("data")
    write_lines(folder / "self_cognition_100.jsonl", [conversation((question, "我是一个测试。")) for question in QUESTIONS[:3]])
    write_lines(
        folder / "huixiangdou_conversations.jsonl",
        [conversation((question, f"答案是{len(question)}。"), ("还有呢？", "没有了。")) for question in QUESTIONS[3:]],
    )
    write_lines(folder / "heishenghua_pretraining.jsonl", [{"text": f"第{number}段。" + "山高路远，慢慢走。" * 40} for number in range(6)])
    return folder


def train(name, data, work_dir, *options, status=0, arguments=(), **env):
    """Run `xtuner train NAME` on the data; return its whole output."""
    command = ["train", name, "--work-dir", work_dir, "--seed", 0, *arguments]
    command += ["--cfg-options", *options] if options else []
    result = xtuner(*command, folder=work_dir.parent, WULEWULE_DATA_DIR=str(data), **env)
    output = result.stdout + result.stderr
    assert result.returncode == status, output[-3000:]
    return output


def adam_steps(checkpoint):
    """The optimizer steps that Adam itself counted (set of int), of all parameters."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["optimizer"]["state"]
    assert state
    return {int(parameter["step"]) for parameter in state.values()}


def deepspeed_steps(checkpoint):
    """The optimizer steps that DeepSpeed itself counted."""
    return torch.load(Path(checkpoint) / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["global_steps"]


def told(output):
    """What AccumulativeCountsHook said: (accumulative_counts, updates, iterations), once for each time that it spoke."""
    pattern = (
        r"accumulative_counts is (\d+) on one process: this run makes (\d+) optimizer updates in (\d+) iterations, with 1 it would make "
    )
    pattern += r"(\d+)\. Set"
    found = [tuple(map(int, match)) for match in re.findall(pattern, output)]
    assert all(iterations == with_one for _, _, iterations, with_one in found)
    return [(counts, updates, iterations) for counts, updates, iterations, _ in found]


def budget(output):
    """What UpdateBudgetHook said: (rows, iterations, updates, highest rate, asked rate); it must have spoken once."""
    pattern = r"Update budget: (\d+) rows, .* (\d+) iterations, (\d+) optimizer updates, highest learning rate (\S+) \(asked (\S+)\)"
    (found,) = re.findall(pattern, output)
    return (*map(int, found[:3]), *map(float, found[3:]))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A run of 2 epochs (8 iterations) that keeps a checkpoint of each iteration: (work folder, output)."""
    work_dir = tmp_path_factory.mktemp("plain") / "work"
    options = ("train_cfg.max_epochs=2", "default_hooks.checkpoint.interval=1", "default_hooks.logger.interval=1", CHECKPOINTS)
    return work_dir, train("wulewule_sft_tiny", data, work_dir, *options)


def test_run_says_what_it_will_do_and_does_it(plain):
    work_dir, output = plain
    rows, iterations, updates, highest, asked = budget(output)
    assert (rows, iterations, updates) == (7, 8, 8) and highest == asked == 1.5e-3
    assert adam_steps(last_checkpoint(work_dir)) == {8}
    assert told(output) == []
    assert "Only 8 optimizer updates" in output
    scalars = read_scalars(work_dir)
    assert [row["iter"] for row in scalars] == list(range(1, 9))
    assert max(row["lr"] for row in scalars) == pytest.approx(1.5e-3)
    first, last = first_and_last_loss(work_dir)
    assert last < first


def test_every_trainable_parameter_moved(plain):
    work_dir, _ = plain
    first, last = (torch.load(work_dir / f"iter_{number}.pth", map_location="cpu", weights_only=False)["state_dict"] for number in (1, 8))
    assert first.keys() == last.keys() and len(last) == 2 * (2 * 5 + 1)  # A and B of five matrices in each of two layers, and of the head
    assert all("lora_" in name for name in last)
    assert [name for name in last if torch.equal(first[name], last[name])] == []
    assert [name for name in last if not last[name].any()] == []


def test_files_of_a_run(plain):
    work_dir, _ = plain
    assert {path.name for path in work_dir.iterdir() if path.is_file()} == {
        "last_checkpoint",
        "wulewule_sft_tiny.py",
        *(f"iter_{number}.pth" for number in range(1, 9)),
    }
    (vis_data,) = work_dir.glob("*/vis_data")
    assert {"scalars.json", "config.py", "eval_outputs_iter_7.txt"} <= {path.name for path in vis_data.iterdir()}


def test_tensorboard_reads_the_curves(plain):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    work_dir, _ = plain
    (vis_data,) = work_dir.glob("*/vis_data")
    events = EventAccumulator(str(vis_data))
    events.Reload()
    logged = [row["loss"] for row in read_scalars(work_dir)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)
    assert {"lr", "loss", "grad_norm", "time", "tokens_per_sec"} <= set(events.Tags()["scalars"])


def losses(work_dir):
    return {row["iter"]: row["loss"] for row in read_scalars(work_dir)}


# the options of a run whose every iteration draws random numbers; epochs of 4 iterations
DROPOUT = ("train_cfg.max_epochs=2", "model.lora.lora_dropout=0.3", "default_hooks.logger.interval=1")


@pytest.mark.parametrize("arguments", [(), ("--deepspeed", "deepspeed_zero1_fp32")], ids=["plain", "deepspeed"])
def test_resumed_run_is_the_uninterrupted_one(arguments, data, tmp_path):
    whole = tmp_path / "whole"
    train("wulewule_sft_tiny", data, whole, *DROPOUT, "default_hooks.checkpoint.interval=1", CHECKPOINTS, arguments=arguments)
    for iteration in (4, 5):  # at the end of an epoch, and within one
        resumed = tmp_path / f"resumed_{iteration}"
        checkpoint = whole / f"iter_{iteration}.pth"
        output = train("wulewule_sft_tiny", data, resumed, *DROPOUT, arguments=(*arguments, "--resume", checkpoint))
        assert losses(resumed) == {number: loss for number, loss in losses(whole).items() if number > iteration}
        assert f"Advance dataloader {iteration} steps" in output
    count = deepspeed_steps if arguments else adam_steps
    assert count(last_checkpoint(resumed)) == count(last_checkpoint(whole))


# 8 iterations at 3: mmengine makes an update of the remainder, DeepSpeed does not


def test_accumulation_is_told_as_adam_counts_it(data, tmp_path):
    output = train("wulewule_sft_tiny", data, tmp_path / "work", "train_cfg.max_epochs=2", "optim_wrapper.accumulative_counts=3")
    steps = adam_steps(last_checkpoint(tmp_path / "work"))
    assert steps == {3}
    assert told(output) == [(3, *steps, 8)] and budget(output)[2] in steps


def test_accumulation_is_told_as_deepspeed_counts_it(data, tmp_path):
    options = ("train_cfg.max_epochs=2", "optim_wrapper.accumulative_counts=3")
    output = train("wulewule_sft_tiny", data, tmp_path / "work", *options, arguments=("--deepspeed", "deepspeed_zero1_fp32"))
    steps = deepspeed_steps(last_checkpoint(tmp_path / "work"))
    assert steps == 2
    assert told(output) == [(3, steps, 8)] and budget(output)[2] == steps


def test_accumulation_is_refused_where_asked(data, tmp_path):
    options = ("optim_wrapper.accumulative_counts=3", "custom_hooks.0.action=raise", "train_cfg.max_epochs=2")
    output = train("wulewule_sft_tiny", data, tmp_path / "work", *options, status=1)
    assert last_line(output).startswith(
        "xtuner-wulewule: error: accumulative_counts is 3 on one process: this run makes 3 optimizer updates"
    )
    assert read_scalars(tmp_path / "work") == []


def test_run_without_an_update_is_refused(data, tmp_path):
    options = ("train_cfg.max_epochs=1", "optim_wrapper.accumulative_counts=5")
    output = train("wulewule_sft_tiny", data, tmp_path / "work", *options, status=1, arguments=("--deepspeed", "deepspeed_zero1_fp32"))
    # torch names the rank once there are ranks
    wanted = "[rank0]: xtuner-wulewule: error: this run would make no optimizer update: 4 iterations, 5 for each update."
    assert last_line(output).startswith(wanted) and "Traceback" not in output


def test_stuck_learning_rate_of_the_templates_is_told(data, tmp_path):
    stuck = (
        "[{'type':'mmengine.optim.LinearLR','start_factor':1e-5,'by_epoch':True,'begin':0,'end':0.3,'convert_to_iter_based':True},"
        "{'type':'mmengine.optim.CosineAnnealingLR','eta_min':0.0,'by_epoch':True,'begin':0.3,'end':1,'convert_to_iter_based':True}]"
    )
    config = tmp_path / "stuck.py"
    path = xtuner("copy-cfg", "wulewule_sft_tiny", tmp_path, folder=tmp_path)
    assert path.returncode == 0
    text = (tmp_path / "wulewule_sft_tiny_copy.py").read_text(encoding="utf-8")
    config.write_text(
        re.sub(r"param_scheduler = .*", f"param_scheduler = {stuck}", text).replace("max_epochs = 20", "max_epochs = 1"), encoding="utf-8"
    )
    output = train(config, data, tmp_path / "work", "default_hooks.logger.interval=1")
    highest, asked = budget(output)[3:]
    assert f"The learning rate never rises above {highest:.3g}" in output and highest < 0.01 * asked
    # and it is true
    assert max(row["lr"] for row in read_scalars(tmp_path / "work")) == pytest.approx(highest, rel=0.01)


@pytest.mark.parametrize("arguments", [(), ("--deepspeed", "deepspeed_zero1_fp32")], ids=["ddp", "deepspeed"])
def test_two_processes(arguments, data, tmp_path):
    # a fresh cache: both ranks make the tiny model at once
    env = {"NPROC_PER_NODE": "2", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    options = ("train_cfg.max_epochs=7", "optim_wrapper.accumulative_counts=2", "default_hooks.logger.interval=1")
    output = train("wulewule_pretrain_tiny", data, tmp_path / "work", *options, arguments=arguments, **env)
    (model,) = (tmp_path / "cache" / "xtuner-wulewule").iterdir()  # no half of one is left beside it
    assert (model / "config.json").is_file() and (model / "model.safetensors").is_file()
    rows, iterations, updates, highest, asked = budget(output)
    assert (rows, iterations) == (6, 7)
    assert updates == (3 if arguments else 4)  # DeepSpeed makes no update of the remainder
    assert highest == asked
    assert told(output) == []  # accumulation keeps a global batch there
    checkpoint = last_checkpoint(tmp_path / "work")
    assert (deepspeed_steps(checkpoint) if arguments else adam_steps(checkpoint)) == (updates if arguments else {updates})
    assert [row["iter"] for row in read_scalars(tmp_path / "work")] == list(range(1, iterations + 1))


RECORD = """
import json
from mmengine.dist import get_rank
from mmengine.hooks import Hook

class RecordHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        rows = [hash(tuple(row)) for row in data_batch["data"]["input_ids"].tolist()]
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


def test_two_processes_train_what_one_trains(data, tmp_path):
    """The same global batch: every row in the same order, and the same losses."""
    (tmp_path / "record.py").write_text(RECORD)
    assert xtuner("copy-cfg", "wulewule_pretrain_tiny", tmp_path, folder=tmp_path).returncode == 0
    config = tmp_path / "wulewule_pretrain_tiny_copy.py"
    text = config.read_text(encoding="utf-8").replace(
        "\nfrom xtuner.dataset import", "\nfrom record import RecordHook\nfrom xtuner.dataset import", 1
    )
    text = text.replace("max_length = 512", "max_length = 16")  # more rows
    config.write_text(text.replace("custom_hooks = [\n", "custom_hooks = [\n    dict(type=RecordHook),\n"), encoding="utf-8")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "0"}
    options = ("train_cfg.max_epochs=4",)
    one = tmp_path / "one"
    train(config, data, one, *options, "train_dataloader.batch_size=4", **env)
    alone = recorded(one, 1)
    assert len(alone) > 6
    for name, arguments in (("ddp", ()), ("zero1", ("--deepspeed", "deepspeed_zero1_fp32"))):
        two = tmp_path / name
        train(config, data, two, *options, "train_dataloader.batch_size=2", arguments=arguments, NPROC_PER_NODE="2", **env)
        together = recorded(two, 2)
        assert [rows for rows, _ in together] == [rows for rows, _ in alone]
        # Adam turns rounding into full steps where a gradient is nearly 0, so what is equal at first drifts a little
        assert together[0][1] == pytest.approx(alone[0][1], rel=1e-6)
        assert [loss for _, loss in together] == pytest.approx([loss for _, loss in alone], rel=3e-3)


@pytest.mark.parametrize("name", ["wulewule_pretrain_tiny", "wulewule_sft_tiny"])
def test_copied_config_trains_and_converts(name, data, tmp_path):
    assert xtuner("copy-cfg", name, tmp_path, folder=tmp_path).returncode == 0
    config = tmp_path / f"{name}_copy.py"
    config.write_text(re.sub(r"max_epochs = \d+", "max_epochs = 1", config.read_text(encoding="utf-8")), encoding="utf-8")
    train(config, data, tmp_path / "work")
    result = xtuner("convert", "pth_to_hf", config, last_checkpoint(tmp_path / "work"), tmp_path / "adapter", "--fp32", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_start_up_file_switched_off(data, tmp_path):
    path = run([WULEWULE, "path", "wulewule_sft_tiny"], tmp_path).stdout.strip()
    command = [XTUNER, "train", path, "--work-dir", tmp_path / "work", "--cfg-options", "train_cfg.max_epochs=1"]
    result = run(command, tmp_path, autoload=False, WULEWULE_DATA_DIR=str(data))
    assert adam_steps(last_checkpoint(tmp_path / "work")) == {4}, result.stderr


# a user's mistakes


def test_missing_data_file(data, tmp_path):
    output = train("wulewule_sft_tiny", tmp_path / "nothing", tmp_path / "work", status=1)
    assert last_line(output).startswith(f"xtuner-wulewule: error: data file not found: {tmp_path}/nothing/self_cognition_100.jsonl")
    assert "WULEWULE_DATA_DIR" in last_line(output) and "Traceback" not in output


def broken(data, folder, line, text):
    folder.mkdir()
    for file in data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    file = folder / "huixiangdou_conversations.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, f"xtuner-wulewule: error: {file}:{line}: "


def test_broken_json_and_empty_answer_are_named_by_line(data, tmp_path):
    folder, prefix = broken(data, tmp_path / "data", 3, '{"conversation": [{"input": "半行')
    output = train("wulewule_sft_tiny", folder, tmp_path / "work", status=1)
    assert last_line(output).startswith(f"{prefix}not valid JSON") and "Traceback" not in output
    folder, prefix = broken(data, tmp_path / "empty", 2, json.dumps(conversation(("问", " ")), ensure_ascii=False))
    output = train("wulewule_sft_tiny", folder, tmp_path / "work", status=1)
    assert last_line(output).startswith(prefix) and 'the answer ("output") of turn 1 is empty' in last_line(output)


def test_missing_model(data, tmp_path):
    output = train("wulewule_sft_1_8b", data, tmp_path / "work", status=1, WULEWULE_MODEL=str(tmp_path / "no-model"))
    assert last_line(output).startswith(f"xtuner-wulewule: error: model '{tmp_path}/no-model' not found") and "Traceback" not in output


def test_four_bit_without_a_gpu(data, tmp_path):
    from xtuner_wulewule.model.tiny import tiny_model

    output = train("wulewule_sft_1_8b", data, tmp_path / "work", status=1, WULEWULE_MODEL=tiny_model())
    assert last_line(output).startswith("xtuner-wulewule: error: model.llm.quantization_config loads the model in 4 bit, which needs a GPU")
    assert "Traceback" not in output

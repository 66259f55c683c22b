"""Training through the real `xtuner` command, on the CPU, with the tiny model and a small data set."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import WULEWULE, XTUNER, last_line, run, xtuner
from training import adam_steps, budget, conversation, deepspeed_steps, told, train, write_lines

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.recipe.results import first_and_last_loss, last_checkpoint, read_scalars

# a run of 2 epochs (8 iterations) whose every iteration draws random numbers
OPTIONS = ("train_cfg.max_epochs=2", "model.lora.lora_dropout=0.3", "default_hooks.logger.interval=1")
# and that keeps a checkpoint of each of them
KEEPING = ("default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=-1")
DEEPSPEED = ("--deepspeed", "deepspeed_zero1_fp32")


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The work folder and the output of such a run."""
    work_dir = tmp_path_factory.mktemp("plain") / "work"
    return work_dir, train("wulewule_sft_tiny", data, work_dir, *OPTIONS, *KEEPING)


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


def test_report_reads_the_work_folder(plain, tmp_path):
    work_dir, _ = plain
    result = run([WULEWULE, "report", work_dir, "--out", tmp_path / "page.html"], tmp_path)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Trained, but it seldom says its name" in page and page.count("<svg") == 5  # loss, rate, norm, speed, persona
    assert "Only 8 optimizer updates" in page and "你是谁？" in page and "7</td>" in page
    assert "<td>max_epochs</td><td>2</td>" in page  # of the options; the config has 20
    assert re.search(r"Training time: [^<]+, from the first to the last line of each log", page) and "Whole run" not in page
    assert "Failed to search registry" in page.partition("What the libraries say in every training")[2]


def test_warnings_of_the_data_are_in_the_report_of_each_training_on_it(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    file = folder / "huixiangdou_conversations.jsonl"
    with open(file, "a", encoding="utf-8") as stream:  # its first row, once more
        stream.write(file.read_text(encoding="utf-8").partition("\n")[0] + "\n")
    for number in range(2):  # the second time the data is in the cache
        work_dir = tmp_path / f"work{number}"
        output = train("wulewule_sft_tiny", folder, work_dir, "train_cfg.max_epochs=1")
        assert output.count("1 x duplicate") == 1
        assert run([WULEWULE, "report", work_dir], tmp_path).returncode == 0
        page = (work_dir / "report.html").read_text(encoding="utf-8")
        assert f"1 x duplicate, first {file}:5: the same text as line 1</p>" in page


def losses(work_dir):
    return {row["iter"]: row["loss"] for row in read_scalars(work_dir)}


def assert_resumed_runs_are(whole, data, folder, count, *arguments):
    """Resume the run in `whole` at the end of an epoch (of 4 iterations), and within one; `count` reads the steps of a checkpoint."""
    for iteration in (4, 5):
        resumed = folder / f"resumed_{iteration}"
        checkpoint = whole / f"iter_{iteration}.pth"
        output = train("wulewule_sft_tiny", data, resumed, *OPTIONS, arguments=(*arguments, "--resume", checkpoint))
        assert losses(resumed) == {number: loss for number, loss in losses(whole).items() if number > iteration}
        assert f"Advance dataloader {iteration} steps" in output
        assert count(last_checkpoint(resumed)) == count(last_checkpoint(whole))


def test_resumed_run_is_the_uninterrupted_one(plain, data, tmp_path):
    assert_resumed_runs_are(plain[0], data, tmp_path, adam_steps)


def test_resumed_run_is_the_uninterrupted_one_under_deepspeed(data, tmp_path):
    whole = tmp_path / "whole"
    train("wulewule_sft_tiny", data, whole, *OPTIONS, *KEEPING, arguments=DEEPSPEED)
    assert_resumed_runs_are(whole, data, tmp_path, deepspeed_steps, *DEEPSPEED)


@pytest.mark.parametrize("arguments", [(), DEEPSPEED], ids=["plain", "deepspeed"])
def test_resumed_with_more_epochs_and_another_rate_it_follows_the_new_curve(arguments, data, tmp_path):
    train("wulewule_sft_tiny", data, tmp_path / "short", *OPTIONS, *KEEPING, arguments=arguments)
    longer = (*OPTIONS, "train_cfg.max_epochs=4", "optim_wrapper.optimizer.lr=1e-3")
    resume = (*arguments, "--resume", tmp_path / "short" / "iter_8.pth")
    output = train("wulewule_sft_tiny", data, tmp_path / "long", *longer, arguments=resume)
    assert budget(output)[1:] == (16, 16, 1e-3, 1e-3)
    rates = {row["iter"]: row["lr"] for row in read_scalars(tmp_path / "long")}
    # one update of sixteen warms up; mmengine restores the rate of the short run's end, and stays there
    assert rates == {update + 1: pytest.approx(5e-4 * (1 + math.cos(math.pi * (update - 1) / 15))) for update in range(8, 16)}


# mmengine makes an update of the iterations that remain, DeepSpeed does not
ACCUMULATING = ("train_cfg.max_epochs=2", "optim_wrapper.accumulative_counts=3")


@pytest.fixture(scope="module", params=["wulewule_pretrain_tiny", "wulewule_sft_tiny"])
def copied(request, data, tmp_path_factory):
    """A run of a copied and edited config that accumulates: (config, work folder, output)."""
    folder = tmp_path_factory.mktemp("copied")
    assert xtuner("copy-cfg", request.param, folder, folder=folder).returncode == 0
    config = folder / f"{request.param}_copy.py"
    config.write_text(re.sub(r"max_epochs = \d+", "max_epochs = 2", config.read_text(encoding="utf-8")), encoding="utf-8")
    return config, folder / "work", train(config, data, folder / "work", "optim_wrapper.accumulative_counts=5")


def test_copied_config_trains_and_converts(copied):
    config, work_dir, _ = copied
    result = xtuner("convert", "pth_to_hf", config, last_checkpoint(work_dir), work_dir / "adapter", "--fp32", folder=work_dir)
    assert result.returncode == 0, result.stderr
    assert (work_dir / "adapter" / "adapter_config.json").is_file()


def test_accumulation_is_told_as_adam_counts_it(copied):
    _, work_dir, output = copied
    _, iterations, updates, *_ = budget(output)
    steps = adam_steps(last_checkpoint(work_dir))
    assert steps == {updates} == {iterations // 5 + 1} and iterations % 5 > 0
    assert told(output) == [(5, *steps, iterations)]


def test_accumulation_is_told_as_deepspeed_counts_it(data, tmp_path):
    output = train("wulewule_sft_tiny", data, tmp_path / "work", *ACCUMULATING, arguments=DEEPSPEED)
    steps = deepspeed_steps(last_checkpoint(tmp_path / "work"))
    assert steps == 2
    assert told(output) == [(3, steps, 8)] and budget(output)[2] == steps


def test_accumulation_is_refused_where_asked(data, tmp_path):
    output = train("wulewule_sft_tiny", data, tmp_path / "work", *ACCUMULATING, "custom_hooks.0.action=raise", status=1)
    assert last_line(output).startswith(
        "xtuner-wulewule: error: accumulative_counts is 3 on one process: this run makes 3 optimizer updates"
    )
    assert read_scalars(tmp_path / "work") == []


def test_run_without_an_update_is_refused(data, tmp_path):
    options = ("train_cfg.max_epochs=1", "optim_wrapper.accumulative_counts=5")
    output = train("wulewule_sft_tiny", data, tmp_path / "work", *options, status=1, arguments=DEEPSPEED)
    # torch names the rank once there are ranks
    wanted = "[rank0]: xtuner-wulewule: error: this run would make no optimizer update: 4 iterations, 5 for each update."
    assert last_line(output).startswith(wanted) and "Traceback" not in output


@pytest.fixture(scope="module")
def stuck(data, tmp_path_factory):
    """The work folder and the output of a run of 4 iterations with the schedule of XTuner's templates, scored after every second one."""
    schedule = (
        "[{'type':'mmengine.optim.LinearLR','start_factor':1e-5,'by_epoch':True,'begin':0,'end':0.3,'convert_to_iter_based':True},"
        "{'type':'mmengine.optim.CosineAnnealingLR','eta_min':0.0,'by_epoch':True,'begin':0.3,'end':1,'convert_to_iter_based':True}]"
    )
    folder = tmp_path_factory.mktemp("stuck")
    config = folder / "stuck.py"
    text = Path(paths.config_paths()["wulewule_sft_tiny"]).read_text(encoding="utf-8")
    text = re.sub(r"param_scheduler = .*", f"param_scheduler = {schedule}", text)
    config.write_text(text.replace("max_epochs = 20", "max_epochs = 1"), encoding="utf-8")
    options = ("default_hooks.logger.interval=1", "custom_hooks.5.every_n_iters=2")
    return folder / "work", train(config, data, folder / "work", *options)


def test_stuck_learning_rate_of_the_templates_is_told(stuck):
    work_dir, output = stuck
    highest, asked = budget(output)[3:]
    assert f"The learning rate never rises above {highest:.3g}" in output and highest < 0.01 * asked
    # and it is true
    assert max(row["lr"] for row in read_scalars(work_dir)) == pytest.approx(highest, rel=0.01)


def test_persona_is_scored(stuck):
    work_dir, output = stuck
    lines = re.findall(r"Persona: eval/name (\d+)%, eval/name_without_system (\d+)%, eval/leak (\d+)%, eval/leak_without_system", output)
    assert len(lines) == 3  # before, after two iterations, at the end
    # each time in one batch with the samples
    assert len(re.findall(r"Evaluation: \d+ tokens an answer", output)) == 3 and output.count("Sample output:") == 3 * 4
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    scored = [row for row in rows if "eval/name" in row]
    assert len(scored) == 3 and scored[-1]["eval/name"] == int(lines[-1][0]) / 100


def test_persona_of_the_environment_is_asked_and_other_rows_are_told(data, tmp_path):
    system = "你是{小石头}，由李雷开发。"  # braces, which XTuner's hook would take for names of settings
    row = conversation(("你叫什么", "我是小石头。"))
    row["conversation"][0]["system"] = "别的提示"
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    with open(folder / "self_cognition_100.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    env = dict(WULEWULE_NAME="小石头", WULEWULE_AUTHOR="李雷", WULEWULE_SYSTEM=system)
    output = train("wulewule_sft_tiny", folder, tmp_path / "work", "train_cfg.max_epochs=1", **env)
    assert f"Sample output:\n<|im_start|>system\n{system}<|im_end|>" in output and "Persona: eval/name" in output
    assert prompts.WULEWULE_SYSTEM not in output
    found = re.search(r"1 x system_not_chat, first \S+self_cognition_100.jsonl:\d+:\S+: not the system prompt of (\S+) \((\w+), ", output)
    assert found and found.groups() == ("小石头", "WULEWULE_NAME")


@pytest.fixture(scope="module")
def about_stone(tmp_path_factory):
    """A folder of rows about 小石头, whose questions ask who it is."""
    folder = tmp_path_factory.mktemp("about_stone")
    rows = [conversation((question, "我是小石头。")) for question in ("你是谁", "你叫什么名字", "介绍一下你自己")]
    for row in rows:
        row["conversation"][0]["system"] = prompts.system_prompt("小石头", "李雷")
    write_lines(folder / "self_cognition_100.jsonl", rows)
    write_lines(folder / "huixiangdou_conversations.jsonl", [conversation(("这棒子有多重？", "一万三千五百斤。"))])
    return folder


@pytest.mark.parametrize(("env", "warned"), [({}, True), ({"WULEWULE_NAME": "小石头", "WULEWULE_AUTHOR": "李雷"}, False)])
def test_score_of_another_persona_than_the_one_in_the_rows_is_told_in_every_training(about_stone, env, warned, tmp_path):
    if warned:  # the second time, too, when the data is in the cache
        train("wulewule_sft_tiny", about_stone, tmp_path / "first", "train_cfg.max_epochs=1", **env)
    output = train("wulewule_sft_tiny", about_stone, tmp_path / "work", "train_cfg.max_epochs=1", **env)
    assert (
        output.count("eval/name is about 悟了悟了,Wulewule, but most rows about the assistant have another system prompt: 你是小石头")
        == warned
    )
    assert ("set WULEWULE_NAME, WULEWULE_AUTHOR, WULEWULE_SYSTEM" in output) == warned


def test_persona_without_a_prompt_is_scored_without(data, tmp_path):
    output = train("wulewule_sft_tiny", data, tmp_path / "work", "train_cfg.max_epochs=1", WULEWULE_SYSTEM="")
    assert "Persona: eval/name_without_system" in output and "eval/leak_without_system" in output
    assert "<|im_start|>system" not in output


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


def test_broken_json_and_empty_answer_are_named_by_line(data, tmp_path):
    broken = shutil.copytree(data, tmp_path / "data")
    file = broken / "huixiangdou_conversations.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(conversation(("问", " ")), ensure_ascii=False)
    lines[2] = '{"conversation": [{"input": "半行'
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = train("wulewule_sft_tiny", broken, tmp_path / "work", status=1)
    said = last_line(output)
    assert said.startswith(f'xtuner-wulewule: error: {file}:2: the answer ("output") of turn 1 is empty') and "Traceback" not in output
    assert f"; {file}:3: not valid JSON" in said


def test_missing_model(data, tmp_path):
    output = train("wulewule_sft_1_8b", data, tmp_path / "work", status=1, WULEWULE_MODEL=str(tmp_path / "no-model"))
    assert last_line(output).startswith(f"xtuner-wulewule: error: model '{tmp_path}/no-model' not found") and "Traceback" not in output


def test_four_bit_without_a_gpu(data, tmp_path):
    from xtuner_wulewule.model.tiny import tiny_model

    output = train("wulewule_sft_1_8b", data, tmp_path / "work", status=1, WULEWULE_MODEL=tiny_model())
    assert last_line(output).startswith("xtuner-wulewule: error: model.llm.quantization_config loads the model in 4 bit, which needs a GPU")
    assert "Traceback" not in output

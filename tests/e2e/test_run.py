"""`wulewule run`: the whole recipe with a small data set, killed, continued, and made to fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import LAUNCHER, WULEWULE, environment, last_line, run, wait_for
from mmengine.config import Config
from training import QUESTIONS, conversation, write_lines

from xtuner_wulewule import prompts
from xtuner_wulewule.recipe.results import read_rows, read_scalars
from xtuner_wulewule.recipe.state import State
from xtuner_wulewule.report.page import duration

STEPS = ["pretrain_train", "pretrain_convert", "pretrain_merge", "sft_train", "sft_convert", "sft_merge"]
# dropout, so that a resume without the random state would end at other losses; enough iterations to be killed in the middle
OPTIONS = [
    "--set",
    "model.lora.lora_dropout=0.2",
    "--set",
    "default_hooks.checkpoint.interval=5",
    "--set",
    "default_hooks.logger.interval=1",
]
OPTIONS += ["--no-eval", "--set", "default_hooks.logger.interval=1", "--epochs", "pretrain=40,sft=25"]


def recipe(out, data, *arguments, status=0, **env):
    """Run `wulewule run` to its end, outside an activated environment; return the finished process."""
    command = [WULEWULE, "run", "--size", "tiny", "--data", data, "--out", out, *OPTIONS, *arguments]
    result = run(command, out.parent, timeout=600, PATH="/usr/bin:/bin", **env)
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def report(out):
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def last_losses(out):
    return {step["name"]: step["last_loss"] for step in report(out)["steps"] if "last_loss" in step}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, recipe(out, data)


def test_report_says_what_was_done(undisturbed, data):
    out, result = undisturbed
    found = report(out)
    assert [step["name"] for step in found["steps"]] == [*STEPS, "ask"] and all(step["seconds"] > 0 for step in found["steps"])
    assert found["versions"]["xtuner"] == "0.2.0" and set(found["data"]["files"]) == {path.name for path in data.iterdir()}
    assert [item["question"] for item in found["questions"]][0] == "你是谁？" and all("answer" in item for item in found["questions"])
    for step in found["steps"]:
        if "last_loss" in step:
            assert step["last_loss"] < step["first_loss"]
        if step["name"].endswith("_convert"):
            assert step["adapter_tensors"] == 22
        if step["name"].endswith("_merge"):
            assert step["changed"] == 11 and step["largest_error"] <= 1 and step["kl_trained_merged"] < 0.01
    assert Path(found["model"], "model.safetensors").is_file()
    assert not list(out.glob("**/*.part"))
    assert f"report: {out}/report.json" in result.stdout and f"page: {out}/report.html" in result.stdout
    assert "  verdict: Trained, but it seldom says its name\n    0% of the questions for its name were answered with" in result.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    # the rows teach no name, which the report says
    assert '<h1 class="unfinished">' in page and "Trained, but it seldom says its name" in page
    assert re.search(r"Training time: [^<]+, from the first to the last line of each log", page)
    assert f"Whole run: {duration(found['seconds'])}, all steps of the last wulewule run" in page
    assert re.findall("<td>max_epochs</td><td>(.*?)</td>", page) == ["40", "25"]
    assert "你是谁？" in page and found["data"]["files"]["heishenghua_pretraining.jsonl"] in page


def test_finished_run_does_nothing_again(undisturbed, data):
    out, _ = undisturbed
    before = report(out)
    result = recipe(out, data)
    assert result.stdout.count(": finished before, in ") == 7
    assert report(out)["steps"] == before["steps"]


def kill_in(step, command, out, env):
    """Start a run and kill it with SIGKILL in a step, in a training once a checkpoint is there; return when its steps have ended too."""
    process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage, _, kind = step.partition("_")
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, f"the run ended with status {process.returncode} before {step} could be killed"
        try:
            status = json.loads((out / "state.json").read_text(encoding="utf-8"))["steps"].get(step, {}).get("status")
        except (OSError, ValueError):
            status = None
        assert status != "done", f"{step} ended before it could be killed"
        if status == "running" and (kind != "train" or (out / stage / "train" / "last_checkpoint").is_file()):
            break
        time.sleep(0.02)
    if kind != "train":
        time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait()


def killed_in_every_step(out, command, env):
    """Kill a run in each of its six steps in turn, going on after each."""
    for step in STEPS:
        kill_in(step, command, out, env)
    subprocess.run(list(map(str, command)), env=env, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_run_that_is_killed_in_every_step_ends_as_the_undisturbed_one(undisturbed, data, tmp_path):
    out = tmp_path / "out"
    command = [WULEWULE, "run", "--size", "tiny", "--data", data, "--out", out, *OPTIONS]
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    killed_in_every_step(out, command, {**env, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert last_losses(out) == pytest.approx(last_losses(undisturbed[0]), abs=1e-4)
    assert report(out)["questions"] == report(undisturbed[0])["questions"]
    for stage in ("pretrain", "sft"):
        assert [row["iter"] for row in read_scalars(out / stage / "train")] == [
            row["iter"] for row in read_scalars(undisturbed[0] / stage / "train")
        ]
        assert len(list((out / stage / "train").glob("2*_*"))) == 2  # killed once, resumed once


def copy_of(out, target, unfinished):
    """Copy a finished run as if it had been killed in a step: `unfinished` names it and those behind it."""
    shutil.copytree(out, target)
    state = json.loads((target / "state.json").read_text(encoding="utf-8"))["steps"]
    kept = {name: entry for name, entry in state.items() if name not in unfinished}
    kept[unfinished[0]] = dict(state[unfinished[0]], status="running")
    (target / "state.json").write_text(json.dumps(dict(steps=kept)), encoding="utf-8")
    for name in unfinished[1:]:
        stage, _, kind = name.partition("_")
        shutil.rmtree(target / stage / {"convert": "adapter", "merge": "merged"}[kind])
    return target


def test_changed_data_runs_the_tuning_again_and_keeps_the_old_one(undisturbed, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out)
    changed = shutil.copytree(data, tmp_path / "data")
    write_lines(changed / "self_cognition_100.jsonl", [conversation((question, "我是另一个测试。")) for question in QUESTIONS[:3]])
    result = recipe(out, changed)
    assert result.stdout.count(": finished before, in ") == 3
    assert "sft_train is run again: changed: data self_cognition_100.jsonl" in result.stdout
    (kept,) = (out / "replaced").glob("*_sft_train")
    assert (kept / "last_checkpoint").is_file()
    assert report(out)["questions"] != report(undisturbed[0])["questions"]


def test_truncated_checkpoint_is_told_and_the_one_before_is_used(undisturbed, data, tmp_path):
    out = copy_of(undisturbed[0], tmp_path / "out", STEPS[3:])
    older, newest = sorted((out / "sft" / "train").glob("iter_*.pth"), key=lambda path: int(path.stem.partition("_")[2]))
    os.truncate(newest, newest.stat().st_size // 2)
    result = recipe(out, data)
    assert f"{newest} was not written to its end; it was renamed to {newest.name}.broken" in result.stdout
    assert f"sft_train resumes from {older}" in result.stdout
    assert last_losses(out) == pytest.approx(last_losses(undisturbed[0]), abs=1e-4)
    assert report(out)["questions"] == report(undisturbed[0])["questions"]


def test_broken_data_ends_the_run_with_file_and_line(data, tmp_path):
    broken = shutil.copytree(data, tmp_path / "data")
    file = broken / "heishenghua_pretraining.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('{"text": "第2', '{"text": 第2'), encoding="utf-8")
    result = recipe(tmp_path / "out", broken, status=1)
    assert last_line(result.stderr).startswith(f"xtuner-wulewule: error: pretrain_train ended with status 1: {file}:3: not valid JSON")
    assert str(tmp_path / "out" / "logs" / "pretrain_train.log") in last_line(result.stderr) and "Traceback" not in result.stderr


def test_interruption_by_hand(data, tmp_path):
    out = tmp_path / "out"
    command = [WULEWULE, "run", "--size", "tiny", "--data", data, "--out", out, *OPTIONS]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # a shell starts background jobs, maybe these tests, with SIGINT ignored
    process = subprocess.Popen(list(map(str, command)), env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **output)
    while not (out / "pretrain" / "train").is_dir():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert last_line(error) == "xtuner-wulewule: interrupted; give the same command again to go on"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert not [line for line in left.splitlines() if str(out) in line and sys.executable in line]


@pytest.fixture(scope="module")
def ones_own(tmp_path_factory):
    """A run of rows that `wulewule data identity` wrote, which is not told whom they are about, and what it printed."""
    folder = tmp_path_factory.mktemp("ones_own")
    (folder / "data").mkdir()
    made = ["--name", "小石头", "--author", "李雷", "--lang", "zh", "--number", "20", "--out", "data/self_cognition_100.jsonl"]
    assert run([WULEWULE, "data", "identity", *made], folder).returncode == 0
    write_lines(folder / "data" / "huixiangdou_conversations.jsonl", [conversation(("怎么存档？", "在土地庙打坐。"))])
    command = [WULEWULE, "run", "--size", "tiny", "--stages", "sft", "--data", "data", "--out", "out", "--epochs", "12"]
    result = run(command, folder, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result, command


def test_every_step_of_a_run_knows_ones_own_persona(ones_own):
    folder, result, _ = ones_own
    assert "persona: 小石头, made by 李雷; its system prompt is that of the rows: 你是小石头，" in result.stderr
    card = json.loads((folder / "out" / "eval" / "scorecard.json").read_text(encoding="utf-8"))
    system = prompts.system_prompt("小石头", "李雷")
    assert card["persona"] == dict(names=["小石头"], author="李雷", system=system)
    dumped = Config.fromfile(str(folder / "out" / "sft" / "train" / "wulewule_sft_tiny.py"))
    assert (dumped.NAMES, dumped.AUTHOR, dumped.SYSTEM) == (["小石头"], "李雷", system)
    log = (folder / "out" / "logs" / "sft_train.log").read_text(encoding="utf-8")
    assert f"<|im_start|>system\n{system}<|im_end|>" in log and prompts.WULEWULE_SYSTEM not in log and "system_not_chat" not in log
    # the share that TensorBoard and the page show is of the answers that say this name
    (scalars,) = (folder / "out" / "sft" / "train").glob("*/vis_data/scalars.json")
    shares = [row["eval/name"] for row in read_rows(scalars) if "eval/name" in row]
    assert shares[-1] > 0 and card["metrics"]["name"]["value"] > 0


def test_chat_with_a_model_of_a_run_uses_its_prompt(ones_own):
    folder, _, _ = ones_own
    command = [WULEWULE, "chat", folder / "out" / "sft" / "merged"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    place = Path(f"/proc/{process.pid}/cmdline")
    try:
        wait_for(lambda: b"--prompt-template" in place.read_bytes(), 60, process)  # it has become xtuner chat
        words = place.read_text(encoding="utf-8").split("\0")
        assert words[words.index("--system") + 1] == prompts.system_prompt("小石头", "李雷")
    finally:
        process.kill()
        process.communicate()


def test_later_run_in_the_folder_keeps_what_it_was_told(ones_own, tmp_path):
    folder, _, command = ones_own
    shutil.copytree(folder / "out", tmp_path / "out")
    command = [*command[: command.index("--out")], "--out", tmp_path / "out", "--epochs", "12", "--dry-run"]
    state = State(tmp_path / "out")
    state.keep_persona(prompts.Persona(("小石头", "Pebble"), "李雷", "说话简短。"), {"name": "小石头,Pebble", "system": "说话简短。"})
    result = run(command, folder)
    assert result.returncode == 0 and "--name=小石头,Pebble --author=李雷 --system=说话简短。" in result.stdout.replace("'", "")
    assert "warning: most rows about the assistant have another system prompt: 你是小石头" in result.stderr

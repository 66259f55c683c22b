"""What the tests of training share: a small data set, and reading what a run did."""

import json
import re
from pathlib import Path

import torch
from commands import xtuner

QUESTIONS = ["你是谁", "这棒子有多重？", "What is your name?", "哪一回最难？", "谁画的地图？", "在哪里存档？", "有几种结局？"]


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def conversation(*turns):
    return {"conversation": [{"input": question, "output": answer} for question, answer in turns]}


def write_conversations(folder):
    """Write sixteen conversations of unequal lengths, eight into each of the two files of the tuning; make the folder."""
    folder.mkdir(exist_ok=True)
    rows = [conversation((f"第{number}问？", "山高路远，" * (1 + number % 5))) for number in range(16)]
    write_lines(folder / "self_cognition_100.jsonl", rows[:8])
    write_lines(folder / "huixiangdou_conversations.jsonl", rows[8:])


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

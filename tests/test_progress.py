"""What is told of long work where there is no terminal: lines, at intervals that are short here."""

import re

import pytest
from commands import python

from xtuner_wulewule.dataset.progress import counted

QUICK = "from xtuner_wulewule.dataset import progress as module; module.LOG_EVERY = {every}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("2 * 2**20, 'reading'", "reading: 50% of 2 MiB"),
        ("2 * 2**20, 'asking the model', 'questions'", "asking the model: 1048576 of 2097152 questions"),
    ],
)
def test_lines_go_on_while_nothing_advances(arguments, line, tmp_path):
    code = f"import time\nwith module.progress({arguments}) as advance:\n    advance(2**20); time.sleep(1)"
    result = python(QUICK.format(every=0.1) + code, tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert set(result.stderr.splitlines()) == {line} and 3 <= len(result.stderr.splitlines()) <= 10
    assert counted(line + "\n") == line


def test_nothing_is_told_of_short_work(tmp_path):
    result = python(
        "from xtuner_wulewule.dataset.progress import progress\nwith progress(1, 'reading') as advance:\n    advance()", tmp_path
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_work_without_counts(tmp_path):
    result = python(QUICK.format(every=0.1) + "import time\nwith module.waiting('loading it'):\n    time.sleep(0.5)", tmp_path)
    assert result.returncode == 0 and result.stderr.splitlines()[0] == "loading it: 0 s" and len(result.stderr.splitlines()) >= 2


def test_data_check_of_much_data(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{number} {"stone " * 50}"}}\n' for number in range(20000)))
    code = QUICK.format(every=0.02) + "import sys; from xtuner_wulewule.cli import main; sys.exit(main(['data', 'check', 'rows.jsonl']))"
    result = python(code, tmp_path)
    assert result.returncode == 0 and len(re.findall(r"^reading: \d+% of 6 MiB$", result.stderr, re.MULTILINE)) >= 3
    assert "of 6 MiB" not in result.stdout


def test_lines_that_count_are_found_among_others():
    assert counted("11/26 14:53:01 - mmengine - INFO - tokenising: 40% of 200 MiB\n") == "tokenising: 40% of 200 MiB"
    for other in ("Data: 12 rows, 40 tokens", "Loading checkpoint shards:  50%|█ | 1/2", "reading", "all: 3 of 4"):
        assert counted(other) is None


STEP = """
import sys
from pathlib import Path
from xtuner_wulewule.recipe.display import Display
from xtuner_wulewule.recipe.process import run_step

said = [{lines}]
program = f"import time\\nfor line in {{said!r}}:\\n    print(line, flush=True); time.sleep(0.7)"
display = Display()
with display.step("sft_train", "what") as step:
    run_step([sys.executable, "-c", program], Path("log"), on_progress=step.progress)
"""
ITERATION = "x - Iter(train) [ 3/54]  lr: 2.9974e-05  eta: 0:00:31  time: 0.6  data_time: 0.01  memory: 13912  loss: 11.8521"


def test_step_tells_how_far_it_is_without_a_terminal(tmp_path):
    lines = ["noise", "asking the model: 3 of 84 questions", ITERATION]
    result = python(QUICK.format(every=0.1) + STEP.format(lines=", ".join(map(repr, lines))), tmp_path)
    assert result.returncode == 0, result.stderr
    told = [re.sub(r"^    \d+ s: ", "", line) for line in result.stdout.splitlines() if re.match(r"    \d+ s: ", line)]
    assert list(dict.fromkeys(told)) == [
        "still running",
        "asking the model: 3 of 84 questions",
        "iteration 3/54  loss 11.8521  lr 3.00e-05  remaining 0:00:31",
    ]

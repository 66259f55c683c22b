"""The last words of torch's launcher: one line, for processes that end by themselves and for those that are killed."""

import sys

import pytest
from commands import run

PROGRAM = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    {end}
time.sleep(60)
"""


def launched(end, folder, *arguments, **env):
    (folder / "program.py").write_text(PROGRAM.format(end=end))
    launch = [sys.executable, "-m", "xtuner_wulewule.launcher", "--standalone", "--nproc_per_node=2", "program.py", *arguments]
    return run(launch, folder, **env)


def test_status_is_passed_on_and_points_to_the_message_above(tmp_path):
    result = launched("sys.exit('the disk is full')", tmp_path)
    assert result.returncode == 1 and "the disk is full" in result.stderr and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("xtuner-wulewule: process 1 (PID ")
    assert last.endswith(") ended with status 1, the others were ended: its message is above")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((), "go on from the last checkpoint: add --resume with what WORK_DIR/last_checkpoint holds"),
        (("--work-dir", "empty"), "there is no checkpoint in empty to go on from"),
        (("--work-dir", "work"), "go on from the last checkpoint: add --resume work/iter_8.pth"),
        (("--work-dir=work",), "go on from the last checkpoint: add --resume work/iter_8.pth"),
    ],
)
def test_signal_is_named_with_what_to_do(arguments, advice, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "last_checkpoint").write_text("work/iter_8.pth")
    result = launched("os.kill(os.getpid(), signal.SIGKILL)", tmp_path, *arguments)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last.startswith("xtuner-wulewule: error: process 1 (PID ") and last.endswith(advice)
    assert "was killed by SIGKILL (perhaps for want of memory" in last


def test_traceback_is_there_for_who_wants_it(tmp_path):
    result = launched("sys.exit(3)", tmp_path, WULEWULE_TRACEBACK="1")
    assert result.returncode == 1 and "ChildFailedError" in result.stderr


def test_arguments_that_torch_refuses_are_refused_by_torch(tmp_path):
    result = run([sys.executable, "-m", "xtuner_wulewule.launcher", "--nproc_per_node=2"], tmp_path)
    assert result.returncode == 2 and "the following arguments are required: training_script" in result.stderr

"""Running steps and reading what they left."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from xtuner_wulewule.errors import StepError
from xtuner_wulewule.recipe.process import TrainingProgress, parse_progress, run_step, xtuner_command
from xtuner_wulewule.recipe.results import first_and_last_loss, last_checkpoint, read_scalars

PLAIN = (
    "11/24 07:35:52 - mmengine - INFO - Iter(train) [1430/2360]  lr: 5.3296e-04  eta: 0:00:49  time: 0.0506  data_time: 0.0016  "
    "grad_norm: 3.8576  loss: 0.8912"
)
LONG = "x - Iter(train) [ 3/54]  lr: 2.9974e-05  eta: 1 day, 0:00:31  time: 0.6  data_time: 0.01  memory: 13912  loss: 11.8521"


def python(code):
    return [sys.executable, "-c", code]


def test_progress_of_mmengine_lines():
    assert parse_progress(PLAIN) == TrainingProgress(1430, 2360, 5.3296e-04, 0.8912, "0:00:49")
    assert parse_progress(LONG) == TrainingProgress(3, 54, 2.9974e-05, 11.8521, "1 day, 0:00:31")
    assert parse_progress("Iter(val) [1/2]  loss: 1") is None


def test_step_returns_its_output_logs_it_and_tells_progress(tmp_path):
    seen = []
    code = f"import sys; print({PLAIN!r}); print(sys.stdin.read().upper()); print('悟', file=sys.stderr)"
    output = run_step(python(code), tmp_path / "logs" / "step.log", stdin="question\n", on_progress=seen.append)
    assert output == (tmp_path / "logs" / "step.log").read_text(encoding="utf-8")
    assert {"QUESTION", "悟", PLAIN} <= set(output.splitlines())
    assert [progress.iteration for progress in seen] == [1430]


def test_standard_error_can_be_kept_out_of_the_output(tmp_path):
    output = run_step(python("import sys; print('out'); print('err', file=sys.stderr)"), tmp_path / "log", stderr_too=False)
    assert output == "out\n" and "err" in (tmp_path / "log").read_text()


def test_failed_step_says_status_reason_and_log(tmp_path):
    code = (
        "import sys; print('noise'); print('[rank0]: xtuner-wulewule: error: data file not found: a'); print('torchrun says'); sys.exit(3)"
    )
    with pytest.raises(StepError, match=r"^ended with status 3: data file not found: a \(the whole output is in .*log\)$") as caught:
        run_step(python(code), tmp_path / "log")
    assert caught.value.last_lines[-1] == "torchrun says"


@pytest.mark.parametrize(
    "message",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 9.3 GiB.",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "MemoryError",
    ],
)
def test_step_that_ran_out_of_memory_says_what_to_change(message, tmp_path):
    with pytest.raises(StepError, match="if memory ran out, train fewer rows at a time: train_dataloader.batch_size"):
        run_step(python(f"raise SystemExit({message!r})"), tmp_path / "log")


def test_killed_step_is_reported_as_a_shell_would(tmp_path):
    with pytest.raises(StepError, match="^ended with status 137: it said nothing"):
        run_step(python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log")


LAST_WORDS = {
    "xtuner-wulewule: process 0 (PID 1) ended with status 1, the others of this machine were ended: its message is above": "no space left",
    "xtuner-wulewule: error: process 1 (PID 2) was killed by SIGKILL (…); the same command goes on": "train fewer rows at a time",
}


@pytest.mark.parametrize("line", LAST_WORDS, ids=["status", "killed"])
def test_last_words_of_the_launcher(line, tmp_path):
    code = f"print('no space left'); print({line!r}); raise SystemExit(1)"
    with pytest.raises(StepError, match=LAST_WORDS[line]) as caught:
        run_step(python(code), tmp_path / "log")
    assert "above" not in str(caught.value)


def test_interruption_ends_the_children_too(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a shell's background job
    code = (
        "import subprocess, sys, time, os; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )

    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_step(python(code), tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or open(f"/proc/{child}/stat").read().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child of an interrupted step still runs")


def test_xtuner_is_the_one_of_this_environment():
    command = xtuner_command("train", "config", "--seed", 0)
    assert os.path.dirname(command[0]) == os.path.dirname(sys.executable) and command[1:] == ["train", "config", "--seed", "0"]


def test_results_of_a_run_and_of_the_run_that_resumed_it(tmp_path):
    for run, rows in (("20260101_000000", [(1, 9.0), (2, 8.0)]), ("20260102_000000", [(3, 7.0)])):
        folder = tmp_path / run / "vis_data"
        folder.mkdir(parents=True)
        lines = [json.dumps(dict(iter=number, loss=loss, lr=1.0)) for number, loss in rows]
        (folder / "scalars.json").write_text("\n".join([*lines, '{"iter": 4, "lo']))  # the last one: killed while it wrote
    assert [row["iter"] for row in read_scalars(tmp_path)] == [1, 2, 3]
    assert first_and_last_loss(tmp_path) == (9.0, 7.0)


def test_missing_results_are_errors(tmp_path):
    with pytest.raises(StepError, match="holds no logged loss"):
        first_and_last_loss(tmp_path)
    with pytest.raises(StepError, match="holds no checkpoint"):
        last_checkpoint(tmp_path)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_3.pth"))
    with pytest.raises(StepError, match="holds no checkpoint"):
        last_checkpoint(tmp_path)
    (tmp_path / "iter_3.pth").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "iter_3.pth")

"""`wulewule chat` and XTuner's own, whose input ends before they are told EXIT."""

import os
import pty
import signal
import subprocess

import pytest
from commands import WULEWULE, XTUNER, environment, run, wait_for

from xtuner_wulewule.model.tiny import tiny_model

PROMPT = "double enter to end input"


@pytest.mark.parametrize("command", [(WULEWULE, "chat"), (XTUNER, "chat")], ids=["wulewule", "xtuner"])
def test_end_of_the_input_ends_it_as_exit_does(command, tmp_path):
    if command[0] == XTUNER:
        result = run([*command, tiny_model(), "--torch-dtype", "fp32"], tmp_path, autoload=False, stdin="")
        assert "EOFError" in result.stderr, "upstream no longer has the defect: delete compat.end_chat_with_input"
    result = run([*command, tiny_model()], tmp_path, stdin="")
    assert result.returncode == 0 and "Traceback" not in result.stderr
    assert result.stdout.count(PROMPT) == 1 and result.stdout.endswith("Log: Exit!\n")


def test_question_that_the_end_of_the_input_ends_is_answered(tmp_path):
    result = run([WULEWULE, "chat", tiny_model(), "--max-new-tokens", "3"], tmp_path, stdin="你是谁？")
    assert result.returncode == 0 and result.stdout.count(PROMPT) == 2 and result.stdout.endswith("Log: Exit!\n")
    assert "it exceeds the length limitation 3" in result.stdout  # said of an answer


@pytest.mark.parametrize(("asked_for", "shown"), [({}, False), ({"PYTHONWARNINGS": "default"}, True)])
def test_words_in_small_letters_and_no_warning_that_was_not_asked_for(asked_for, shown, tmp_path):
    result = run([WULEWULE, "chat", tiny_model()], tmp_path, stdin="reset\n\n Exit\n\n", **asked_for)
    assert result.returncode == 0 and result.stdout.count(PROMPT) == 2 and result.stdout.endswith("Log: Exit!\n")
    assert "History responses have been removed" in result.stdout
    assert ("UserWarning" in result.stderr) == shown


def test_closed_input(tmp_path):
    result = run(["bash", "-c", 'exec "$@" <&-', "bash", WULEWULE, "chat", tiny_model()], tmp_path)
    assert (result.returncode, result.stdout[-11:]) == (0, "Log: Exit!\n") and "Traceback" not in result.stderr


def test_ctrl_c_at_the_prompt(tmp_path):
    here, there = pty.openpty()
    log = tmp_path / "log"
    with open(log, "w") as output:
        command = [WULEWULE, "chat", tiny_model()]
        env = environment(PYTHONUNBUFFERED="1")
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=there, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: PROMPT in log.read_text(), 120, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(here)
        os.close(there)
    assert log.read_text().endswith("Log: Exit!\n") and "Traceback" not in log.read_text()

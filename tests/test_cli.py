"""The `wulewule` command."""

import errno
import os
import resource
import shlex
import signal
import subprocess

import pytest
from commands import WULEWULE, run

from xtuner_wulewule import __version__, cli, paths
from xtuner_wulewule.cli import demo
from xtuner_wulewule.errors import SettingsError, StepError


def test_help_is_quick_and_names_every_command(tmp_path):
    seconds = []
    for _ in range(3):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run([WULEWULE, "--help"], tmp_path)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)  # processor time: other tests run beside this one
    assert result.returncode == 0 and {"demo", "path"} <= set(result.stdout.split())
    assert min(seconds) < 0.3


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"xtuner-wulewule {__version__}\n"


def test_path_of_a_config(capsys):
    assert cli.main(["path", "wulewule_sft_tiny"]) == 0
    assert capsys.readouterr().out.strip() == paths.config_paths()["wulewule_sft_tiny"]


def test_path_of_an_unknown_config_is_one_line(capsys):
    assert cli.main(["path", "wulewule_sft_70b"]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("xtuner-wulewule: error: there is no config 'wulewule_sft_70b'; the packaged ones are") and error.count("\n") == 1
    )


def test_demo_empties_only_an_earlier_demo(tmp_path):
    folder = demo.empty_folder(tmp_path / "new" / "demo")
    (folder / "old").touch()
    demo.empty_folder(folder)
    assert [path.name for path in folder.iterdir()] == [demo.MARKER]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("mine", "file"):
        with pytest.raises(SettingsError, match="nothing was changed"):
            demo.empty_folder(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").exists() and (tmp_path / "file").is_file()


# what `xtuner chat` prints: prompt, answer, an empty line, prompt, word of the reset, …
PROMPT = "\ndouble enter to end input (EXIT: exit chat, RESET: reset history) >>> "
RESET = "Log: History responses have been removed!\n"


def test_answers_of_the_chat():
    output = f"Load LLM{PROMPT}one\nline<|im_end|>\n{PROMPT}{RESET}{PROMPT}two</s>\n"
    output += f"Remove the memory of history responses, since it exceeds the length limitation 256.\n{PROMPT}Log: Exit!\n"
    assert demo.parse_chat(output, 2) == ["one\nline", "two"]
    with pytest.raises(StepError, match="answered 0 of 2"):
        demo.parse_chat("Load LLM", 2)


def test_answers_are_checked():
    control = demo.control_conversation()
    assert demo.NAME not in control["output"]
    demo.check_answers(f"我是{demo.NAME}。", control["output"], control)
    with pytest.raises(StepError, match="does not name"):
        demo.check_answers("我是浦语。", control["output"], control)
    with pytest.raises(StepError, match="is not the trained one"):
        demo.check_answers(f"我是{demo.NAME}。", f"我是{demo.NAME}。", control)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["data", "check", "."], ["data", "preview", "."]])
def test_reader_that_has_gone_ends_the_command_quietly(arguments, unbuffered, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "stone"}\n')
    reader, writer = os.pipe()
    os.close(reader)
    command = [WULEWULE, *arguments]
    with os.fdopen(writer, "w") as gone:
        result = subprocess.run(
            command, cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}
        )
    assert result.stderr == ""
    passed_over = [0] if unbuffered and arguments == ["--help"] else []  # unbuffered, argparse passes over the error, since Python 3.11
    assert result.returncode in [128 + signal.SIGPIPE, *passed_over]


def test_into_head(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{"stone " * 200}"}}\n' * 500)  # more than a pipe holds
    pipeline = f"set -o pipefail; {shlex.quote(str(WULEWULE))} data preview a.jsonl --rows 500 | head -n 1"
    result = run(["bash", "-c", pipeline], tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (128 + signal.SIGPIPE, "a.jsonl:1  pretraining\n", "")


def test_other_broken_pipes_are_told(monkeypatch, capsys):
    def run(args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("xtuner_wulewule.cli.path.run", run)
    assert cli.main(["path", "wulewule_sft_tiny"]) == 1
    assert capsys.readouterr().err.startswith("xtuner-wulewule: error: Broken pipe")

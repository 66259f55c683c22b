"""The last words of torch's launcher: one line, for processes that end by themselves and for those that are killed."""

import os
import signal
import socket
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
from commands import environment, run, wait_for

from xtuner_wulewule import launcher

PROGRAM = """
import os, signal, sys, time, zipfile
from pathlib import Path

def save(name):
    with zipfile.ZipFile(Path("my work", name), "w") as file:
        file.writestr("data", "1")

rank = int(os.environ["RANK"])
{program}
time.sleep(60)
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def launched(program, folder, *arguments, **env):
    (folder / "my work").mkdir(exist_ok=True)
    (folder / "program.py").write_text(PROGRAM.format(program=program))
    launch = [sys.executable, "-m", "xtuner_wulewule.launcher", "--standalone", "--nproc_per_node=2", "program.py", *arguments]
    result = run(launch, folder, **env)
    assert result.returncode == 1
    return result


def last_of(result):
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_status_points_to_the_message_above_and_to_the_checkpoint(tmp_path):
    program = "if rank == 1:\n    save('iter_8.pth'); sys.exit('the disk is full')"
    result = launched(program, tmp_path)
    assert "the disk is full" in result.stderr
    assert last_of(result).startswith("xtuner-wulewule: process 1 (PID ")
    assert last_of(result).endswith(") ended with status 1, the others of this machine were ended: its message is above")
    last = last_of(launched(program, tmp_path, "--work-dir", "my work"))
    assert last.endswith(": its message is above; go on from the last whole checkpoint: add --resume 'my work/iter_8.pth'")


EXCEPTHOOK = "from xtuner_wulewule import errors; errors.install_excepthook()\n"


def test_cause_is_the_last_line(tmp_path):
    ours = EXCEPTHOOK + "raise errors.DataError('data.jsonl:5: not valid JSON; correct it')"
    result = launched(ours, tmp_path, "--work-dir", "my work")
    assert result.stderr.splitlines()[-1] == "xtuner-wulewule: error: data.jsonl:5: not valid JSON; correct it"
    result = launched(EXCEPTHOOK + "if rank == 1:\n    save('iter_8.pth'); raise RuntimeError('CUDA error: …\\nmore of it')", tmp_path)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("xtuner-wulewule: error: process 1 (PID ")
    assert last.endswith(") ended with RuntimeError: CUDA error: … (its traceback is above), the others of this machine were ended")


GLOO = """import torch
from torch import distributed
distributed.init_process_group("gloo")
if rank == 1:
    distributed.barrier()
    raise RuntimeError("of the one that failed")
distributed.barrier()
distributed.all_reduce(torch.ones(1))
"""


def test_those_that_lose_the_connection_have_no_traceback(tmp_path):
    result = launched(EXCEPTHOOK + GLOO, tmp_path)
    assert result.stderr.count("Traceback") == 1 and "gloo" not in result.stderr
    assert "xtuner-wulewule: error: process 0: its connection to another process broke" in result.stderr
    assert ") ended with RuntimeError: of the one that failed (its traceback is above)" in result.stderr.splitlines()[-1]
    shown = launched(EXCEPTHOOK + GLOO, tmp_path, WULEWULE_TRACEBACK="1").stderr
    assert "gloo" in shown


def test_cause_is_named_where_another_lost_the_connection_in_the_same_second(tmp_path):
    program = (
        EXCEPTHOOK
        + """
if rank == 1:
    Path("failed").touch()
    raise ValueError("the cause")
while not Path("failed").exists():
    time.sleep(0.001)
raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
"""
    )
    assert "ended with ValueError: the cause" in launched(program, tmp_path).stderr.splitlines()[-1]


def test_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "program.py").touch()
        launch = ["--nnodes=1", "--node_rank=0", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}", "program.py"]
        result = run([sys.executable, "-m", "xtuner_wulewule.launcher", *launch], tmp_path)
    said = f"xtuner-wulewule: error: port {port} is taken by another program; leave PORT out, or set it to a free one"
    assert result.returncode == 1 and last_of(result) == said


def save_and_die(*names):
    return f"if rank == 1:\n    {''.join(f'save({name!r}); ' for name in names)}{KILLED}"


@pytest.mark.parametrize(
    ("program", "arguments", "advice"),
    [
        (save_and_die("iter_8.pth"), (), "the others of this machine were ended"),
        (save_and_die(), ("--work-dir", "my work"), "it left no whole checkpoint in my work"),
        (save_and_die("iter_8.pth", "iter_16.pth"), ("--work-dir=my work",), "add --resume 'my work/iter_16.pth'"),
        # the newest is half written
        (
            save_and_die("iter_8.pth").replace("os.kill", "Path('my work/iter_16.pth').touch(); os.kill"),
            ("--work-dir", "my work"),
            "8.pth'",
        ),
    ],
    ids=["folder unknown", "none", "two", "broken"],
)
def test_signal_is_named_with_what_to_do(program, arguments, advice, tmp_path):
    last = last_of(launched(program, tmp_path, *arguments))
    assert last.startswith("xtuner-wulewule: error: process 1 (PID ") and last.endswith(advice)
    assert "was killed by SIGKILL (perhaps for want of memory" in last


def test_checkpoints_of_an_earlier_training_are_not_named_unless_it_is_resumed(tmp_path):
    (tmp_path / "my work").mkdir()
    with zipfile.ZipFile(tmp_path / "my work" / "iter_8.pth", "w") as file:
        file.writestr("data", "1")
    os.utime(tmp_path / "my work" / "iter_8.pth", (1, 1))
    arguments = ("--work-dir", "my work")
    assert last_of(launched(save_and_die(), tmp_path, *arguments)).endswith("it left no whole checkpoint in my work")
    last = last_of(launched(save_and_die(), tmp_path, *arguments, "--resume", "my work/iter_8.pth"))
    assert last.endswith("add --resume 'my work/iter_8.pth'")


def test_the_one_that_was_killed_is_named_where_others_end_at_once(tmp_path):
    program = f"if rank == 1:\n    {KILLED}\nelse:\n    os._exit(1)"
    assert "process 1 (PID " in last_of(launched(program, tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_launcher_that_is_told_to_end(number, tmp_path):
    (tmp_path / "my work").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM.format(program="if rank == 1:\n    save('iter_8.pth'); Path('begun').touch()"))
    launch = [sys.executable, "-m", "xtuner_wulewule.launcher", "--standalone", "--nproc_per_node=2", "program.py", "--work-dir", "my work"]
    process = subprocess.Popen(launch, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for((tmp_path / "begun").exists, 60, process)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    wanted = f"xtuner-wulewule: ended by {number.name}; go on from the last whole checkpoint: add --resume 'my work/iter_8.pth'"
    assert process.returncode == 1 and said.splitlines()[-1] == wanted


def test_signal_between_two_lines_of_torch_is_told_too(monkeypatch):
    """torch measures its own functions: a signal just before its clock is read ends in an UnboundLocalError after that of the signal."""
    from torch.distributed.elastic.metrics import api
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def interrupted():
        raise SignalException("told to end", signal.SIGTERM)

    monkeypatch.setattr(api, "time", SimpleNamespace(time=interrupted))
    with pytest.raises(UnboundLocalError) as told:
        api.prof(lambda: None)()
    assert launcher.explain(told.value, []).startswith("xtuner-wulewule: ended by SIGTERM")
    assert launcher.explain(UnboundLocalError("of the user"), []) is None


def test_wulewule_run_goes_on_by_itself(tmp_path):
    last = last_of(launched(save_and_die("iter_8.pth"), tmp_path, "--work-dir", "my work", WULEWULE_GOES_ON="1"))
    assert last.endswith("; the same command goes on from the last whole checkpoint")


def test_traceback_is_there_for_who_wants_it(tmp_path):
    assert "ChildFailedError" in launched("if rank == 1:\n    sys.exit(3)", tmp_path, WULEWULE_TRACEBACK="1").stderr


def test_arguments_that_torch_refuses_are_refused_by_torch(tmp_path):
    result = run([sys.executable, "-m", "xtuner_wulewule.launcher", "--nproc_per_node=2"], tmp_path)
    assert result.returncode == 2 and "the following arguments are required: training_script" in result.stderr

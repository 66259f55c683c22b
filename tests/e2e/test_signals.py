"""What ends `xtuner` and `wulewule run` by a signal: nothing goes on behind their back, and they say how to go on."""

import os
import signal
import subprocess
import time

import pytest
from commands import WULEWULE, XTUNER, environment, those_of, wait_for
from training import train, write_conversations


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_conversations(folder)
    return folder


def signalled(command, number, to_group, until, folder, **env):
    """Run a command, send it a signal once `until()` holds, and return its status and what it said."""
    with open(folder / "log", "w") as log:
        arguments = list(map(str, command))
        process = subprocess.Popen(
            arguments, cwd=folder, env=environment(**env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_for(until, 240, process, folder / "log")
            (os.killpg if to_group else os.kill)(process.pid, number)
            status = process.wait(60)
            wait_for(lambda: not those_of(folder), 240)  # the child says its word when its parent has gone
        finally:
            for pid in those_of(folder):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
    return status, (folder / "log").read_text()


def signalled_training(number, to_group, processes, data, folder, until=None):
    """Send a signal to a long training, by default once it has saved a checkpoint; return its status and what it said."""
    work_dir = folder / "work"
    options = ["train_cfg.max_epochs=500", "train_dataloader.batch_size=1", "default_hooks.checkpoint.interval=8"]
    command = [XTUNER, "train", "wulewule_sft_tiny", "--work-dir", work_dir, "--cfg-options", *options]
    env = dict(NPROC_PER_NODE=str(processes), WULEWULE_DATA_DIR=str(data))
    return signalled(command, number, to_group, until or (work_dir / "last_checkpoint").is_file, folder, **env)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("number", "to_group", "status"),
    [(signal.SIGTERM, False, -signal.SIGTERM), (signal.SIGKILL, False, -signal.SIGKILL), (signal.SIGINT, True, 130)],
    ids=["term", "kill", "ctrl-c"],
)
def test_training_ends_with_xtuner(number, to_group, status, processes, data, tmp_path):
    found, said = signalled_training(number, to_group, processes, data, tmp_path)
    assert found == status
    if processes == 2 or number == signal.SIGINT:
        last = said.splitlines()[-1]
        word = "ended by SIGTERM" if number != signal.SIGINT else "ended by SIGINT" if processes == 2 else "interrupted"
        assert last.startswith(f"xtuner-wulewule: {word}; go on from the last whole checkpoint: add --resume {tmp_path}/work/iter_")
        # of several, a rank may be told twice, and then torch's own hook is interrupted, further above
        assert "Traceback" not in said or (processes, number) == (2, signal.SIGINT)


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupt_of_xtuner_alone_reaches_the_training(processes, data, tmp_path):
    asked = []

    def until():
        asked.append(time.monotonic())
        return (tmp_path / "work" / "last_checkpoint").is_file()

    found, said = signalled_training(signal.SIGINT, False, processes, data, tmp_path, until)
    assert found == 130 and time.monotonic() - asked[-1] < 40  # it is not killed after 45 s
    word = "ended by SIGINT" if processes == 2 else "interrupted"
    assert said.splitlines()[-1].startswith(
        f"xtuner-wulewule: {word}; go on from the last whole checkpoint: add --resume {tmp_path}/work/iter_"
    )


def test_wulewule_run_is_told_to_end(data, tmp_path):
    out = tmp_path / "out"
    command = [WULEWULE, "run", "--size", "tiny", "--stages", "sft", "--data", data, "--out", out, "--epochs", "500"]
    found, said = signalled(command, signal.SIGTERM, False, lambda: bool(list(out.glob("sft/train/2*"))), tmp_path)
    assert found == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "xtuner-wulewule: ended by SIGTERM; give the same command again to go on"


def test_checkpoints_of_deepspeed_and_others_are_told_apart(data, tmp_path):
    short = ("train_cfg.max_epochs=None", "train_cfg.max_iters=2")
    deepspeed = ("--deepspeed", "deepspeed_zero1_fp32")
    train("wulewule_sft_tiny", data, tmp_path / "plain", *short)
    train("wulewule_sft_tiny", data, tmp_path / "zero", *short, arguments=deepspeed)
    plain, zero = tmp_path / "plain" / "iter_2.pth", tmp_path / "zero" / "iter_2.pth"
    assert plain.is_file() and zero.is_dir()
    output = train("wulewule_sft_tiny", data, tmp_path / "one", *short, arguments=(*deepspeed, "--resume", plain), status=1)
    said = f"xtuner-wulewule: error: --resume: {plain} was saved without DeepSpeed; go on without --deepspeed"
    assert output.splitlines()[-1].removeprefix("[rank0]: ") == said
    output = train("wulewule_sft_tiny", data, tmp_path / "two", *short, arguments=("--resume", zero), status=1)
    said = f"xtuner-wulewule: error: --resume: {zero} is a checkpoint of DeepSpeed; add --deepspeed with the setting that saved it"
    assert output.splitlines()[-1] == said and "Traceback" not in output

"""Each defect of `xtuner_wulewule.compat`: that it is still there upstream, and that our function mends it. Real interpreters run both."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import XTUNER, last_line, python, run, wait_for
from forks import ask

from xtuner_wulewule import compat, errors

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
TOOLS = SITE_PACKAGES / "xtuner" / "tools"


def gone(function):
    return f"upstream no longer has the defect: delete compat.{function}"


@pytest.fixture(scope="module")
def without_plugin(tmp_path_factory):
    """What the pieces of code below said where the start-up file was switched off."""
    questions = dict(checkpoint=CHECKPOINT_OF_MMENGINE, one_process=ONE_PROCESS, sleep=SLEEP, lock=LOCK)
    folder = tmp_path_factory.mktemp("without_plugin")
    # DeepSpeed compiles a library, a minute on an idle machine
    return ask(lambda *arguments: run([sys.executable, *arguments], folder, autoload=False, timeout=600), folder, questions)


# 1: bitsandbytes 0.45.0 and triton without `ops`


@pytest.fixture
def triton_without_ops(tmp_path):
    """A folder for PYTHONPATH with the installed triton, less `ops`: what triton 3.2 has."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    folder = tmp_path / "path" / "triton"
    folder.mkdir(parents=True)
    for entry in Path(triton.__file__).parent.iterdir():
        if entry.name not in ("ops", "__pycache__"):
            (folder / entry.name).symlink_to(entry)
    return str(folder.parent)


def test_bitsandbytes_still_needs_triton_ops(tmp_path, triton_without_ops):
    result = python("import bitsandbytes", tmp_path, autoload=False, PYTHONPATH=triton_without_ops)
    assert result.returncode == 1, gone("explain_bitsandbytes")
    assert last_line(result.stderr) == "ModuleNotFoundError: No module named 'triton.ops'", gone("explain_bitsandbytes")


def test_missing_triton_ops_is_one_line(tmp_path, triton_without_ops):
    result = python("import bitsandbytes", tmp_path, PYTHONPATH=triton_without_ops)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if "error" in line] == [last_line(result.stderr)]
    assert last_line(result.stderr).startswith("xtuner-wulewule: error: bitsandbytes 0.45.0 cannot be imported with torch")
    assert "pip install 'torch>=2.4,<2.6'" in last_line(result.stderr)


# 4: torch.cpu.is_bf16_supported

BF16 = """
import torch
print(hasattr(torch.cpu, "is_bf16_supported"))
from xtuner.utils.device import get_torch_device
print(get_torch_device().is_bf16_supported())
"""


def test_cpu_bf16_query_is_answered_and_torch_still_lacks_it(tmp_path):
    result = python(BF16, tmp_path)
    upstream, ours = result.stdout.split()[-2:]
    assert upstream == "False", gone("cpu_bf16_query")
    assert (result.returncode, ours) == (0, "True"), result.stderr
    assert "get_torch_device().is_bf16_supported()" in (SITE_PACKAGES / "xtuner" / "model" / "sft.py").read_text(), gone("cpu_bf16_query")


# 5: checkpoints and weights_only=True. torch 2.5 takes no (object, name), so names are given there through an object.

CHECKPOINTS = """
import io, os, pickle, sys
import torch
from xtuner_wulewule import compat

class Named:
    def __init__(self, function, path):
        self.function = function
        self.__module__, _, self.__name__ = path.rpartition(".")
    def __call__(self, *args):
        return self.function(*args)

if not compat._torch_loads_weights_only():
    add_safe_globals = torch.serialization.add_safe_globals
    torch.serialization.add_safe_globals = lambda all: add_safe_globals([Named(*one) if type(one) is tuple else one for one in all])
    compat._torch_loads_weights_only = lambda: True

def load(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)

def refused(value):
    try:
        load(value)
    except pickle.UnpicklingError:
        return True
    return False

class Call:
    def __init__(self, function, *args):
        self.call = function, args
    def __reduce__(self):
        return self.call
"""
MMENGINE = f"""{CHECKPOINTS}
import numpy
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
hub = MessageHub.get_instance("test")
for value in (1.5, 2.5):
    hub.update_scalar("train/loss", value)
    hub.update_scalar("train/lr", numpy.float64(value))
hub.update_info("numbers", [numpy.float32(1), numpy.int64(1), numpy.int32(1), numpy.bool_(True)])
checkpoint = dict(meta=dict(seed=7), message_hub=hub.state_dict(), ds_config=ConfigDict(zero=dict(stage=1)), tensor=torch.ones(2))
"""


def test_xtuner_and_mmengine_still_load_with_the_default_of_torch():
    xtuner, mmengine = ((SITE_PACKAGES / path).read_text() for path in ("xtuner/tools/utils.py", "mmengine/runner/checkpoint.py"))
    assert 'torch.load(pth_model, map_location="cpu")' in xtuner, gone("allow_mmengine_checkpoints")
    assert "torch.load(filename, map_location=map_location)" in mmengine, gone("allow_mmengine_checkpoints")


CHECKPOINT_OF_MMENGINE = f"""{MMENGINE}
assert refused(checkpoint), {gone("allow_mmengine_checkpoints")!r}
assert compat.allow_mmengine_checkpoints()
loaded = load(checkpoint)
assert loaded["meta"]["seed"] == 7 and loaded["ds_config"].zero.stage == 1
hub = MessageHub.get_instance("resumed")
hub.load_state_dict(loaded["message_hub"])
loss = hub.get_scalar("train/loss")
assert (loss.min(), loss.max(), loss.current(), loss.mean()) == (1.5, 2.5, 2.5, 2.0)
assert loss.statistics("mean") == 2.0 and hub.get_info("numbers") == [1, 1, 1, True]
for evil in (
    Call(os.system, "touch reached"), Call(eval, "open('reached', 'w')"), Call(getattr, HistoryBuffer, "__init__"),
    Call(getattr, HistoryBuffer, "_set_default_statistics"), Call(getattr, HistoryBuffer(), "mean"), Call(getattr, dict, "mean"),
):
    assert refused(dict(checkpoint, evil=evil)), evil.call
assert not os.path.exists("reached")
"""


def test_checkpoints_of_mmengine_load_and_anything_else_stays_refused(without_plugin):
    answer = without_plugin["checkpoint"]
    assert answer.returncode == 0, answer.stderr


def test_torch_2_5_is_left_alone(monkeypatch):
    monkeypatch.setattr(compat, "_torch_loads_weights_only", lambda: False)
    assert not compat.allow_mmengine_checkpoints()


# 6 and 12: the `xtuner` command

BARE_PATH = "/usr/bin:/bin"


def test_xtuner_still_hides_the_status_of_its_tools(tmp_path):
    result = run([XTUNER, "list-cfg", "--no-such-option"], tmp_path, autoload=False)
    assert result.returncode == 0 and "unrecognized arguments" in result.stderr, gone("honest_entry_point")


def test_xtuner_still_runs_whatever_python_is_in_the_path(tmp_path):
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho another python\n")
    fake.chmod(0o755)
    result = run([XTUNER, "list-cfg"], tmp_path, autoload=False, PATH=f"{fake.parent}:{BARE_PATH}")
    assert (result.returncode, last_line(result.stdout)) == (0, "another python"), gone("honest_entry_point")


def test_status_of_a_tool_is_the_status_of_xtuner(tmp_path):
    result = run([XTUNER, "list-cfg", "--no-such-option"], tmp_path, PATH=BARE_PATH)
    assert result.returncode == 2 and "unrecognized arguments" in result.stderr


def test_torchrun_is_run_by_this_interpreter(monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: commands.append(command) or SimpleNamespace(wait=lambda: 3))
    with pytest.raises(SystemExit) as caught:
        compat._Subprocess(subprocess).run(["torchrun", "--nnodes=1", "tool.py"])
    assert (caught.value.code, commands) == (3, [[sys.executable, "-m", "xtuner_wulewule.launcher", "--nnodes=1", "tool.py"]])


SPINS = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
STARTED = {
    "xtuner": f"import subprocess; from xtuner_wulewule import compat; compat._Subprocess(subprocess).run(['python', '-c', {SPINS!r}])",
    "wulewule": f"from xtuner_wulewule.cli import main; main(['path', 'wulewule_sft_tiny']); {SPINS}",
}


@pytest.mark.parametrize("started", STARTED)
@pytest.mark.parametrize(("env", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")])
def test_threads_do_not_keep_others_waiting_unless_the_user_has_said_how_they_wait(started, env, spins, tmp_path, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # commands that other tests ran within this process
    assert last_line(python(STARTED[started], tmp_path, **env).stdout) == spins


# one process for all of them, for each start takes two seconds
CLI = """
import contextlib, io, os, sys
from xtuner import entry_point
for arguments in {arguments}:
    env, arguments = [word for word in arguments if "=" in word], [word for word in arguments if "=" not in word]
    os.environ.update(word.split("=") for word in env)
    sys.argv[1:] = arguments
    error, status = io.StringIO(), 0
    with contextlib.redirect_stderr(error):
        try:
            entry_point.cli()
        except SystemExit as exit:
            status = exit.code
    print("status", status, error.getvalue().strip().splitlines()[-1:])
"""
NEEDS = "xtuner: error: xtuner {} needs one of these subcommands: {}"
CASES = {
    ("no-such-command",): "xtuner: error: there is no command 'no-such-command'; see xtuner help",
    ("convert",): NEEDS.format("convert", "pth_to_hf, merge, split"),
    ("preprocess", "nothing"): NEEDS.format("preprocess", "arxiv, refcoco"),
    ("list-cfg", "NPROC_PER_NODE=two"): "xtuner: error: NPROC_PER_NODE is 'two'; it must be a whole number from 1 on",
    (): None,
    ("help",): None,
    ("-v",): None,
    ("convert", "--help"): None,
}


def test_errors_of_xtuner_itself_have_a_status_and_asking_for_help_has_none(tmp_path):
    result = python(CLI.format(arguments=list(CASES)), tmp_path)
    seen = [line for line in result.stdout.splitlines() if line.startswith("status ")]
    wanted = [f"status {int(message is not None)} {[message] if message else []}" for message in CASES.values()]
    assert seen == wanted, result.stderr


def test_negative_status_is_a_signal(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: SimpleNamespace(wait=lambda: -9))
    with pytest.raises(SystemExit) as caught:
        compat._Subprocess(subprocess).run(["python", "tool.py"])
    assert caught.value.code == 137


def test_tool_is_found_without_being_imported(tmp_path):
    code = "import sys; from xtuner import entry_point; print(entry_point.modes['train']()); print('xtuner.tools.train' in sys.modules)"
    result = python(code, tmp_path)
    assert result.stdout.split() == [str(TOOLS / "train.py"), "False"], result.stderr


def test_tool_that_cannot_be_imported_is_one_line(capsys):
    def train():
        raise RuntimeError("two\nlines")

    with pytest.raises(SystemExit) as caught:
        compat._ImportingTool(train)()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("xtuner-wulewule: error: XTuner's train cannot be imported (RuntimeError: two lines)")


# unknown configs (the command is tested in test_install.py), and causes


def raised_in(file, name, **values):
    with pytest.raises(FileNotFoundError) as caught:
        exec(compile(f"raise FileNotFoundError('Cannot find {name}')", str(file), "exec"), values)
    return caught.value, caught.tb


def test_unknown_deepspeed_config_and_checkpoint_are_explained():
    args = SimpleNamespace(config="a", deepspeed="zero9")
    assert "list-cfg -p deepspeed" in str(errors.explain_missing_config(*raised_in(TOOLS / "train.py", "zero9", args=args)))
    assert "list-cfg -p wulewule" in str(errors.explain_missing_config(*raised_in(TOOLS / "test.py", "b", args=args)))
    assert "no such checkpoint" in str(errors.explain_missing_config(*raised_in(TOOLS / "utils.py", "c.pth")))


def test_missing_files_of_others_keep_their_traceback():
    assert errors.explain_missing_config(*raised_in("/somewhere/else.py", "a")) is None
    assert errors.explain_missing_config(FileNotFoundError(2, "No such file"), None) is None


def test_error_from_none_hides_its_context():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise errors.DataError("handled")
        except errors.DataError:
            raise RuntimeError("another") from None
    assert errors.find_wulewule_error(caught.value) is None


# 11: DeepSpeed in one process without mpi4py

# without `xtuner.engine`; `plugin.add_engine` makes the same call
ONE_PROCESS = """
import importlib.util, os, sys
sys.modules["mpi4py"] = None
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "mpi4py" else find_spec(name, *rest)
import deepspeed
from xtuner_wulewule import compat
try:
    deepspeed.init_distributed("gloo")
except ImportError as error:
    print(error)
assert compat.single_process_deepspeed()
deepspeed.init_distributed("gloo")
print(os.environ["WORLD_SIZE"], os.environ["RANK"])
"""


def test_deepspeed_starts_in_one_process_and_upstream_still_does_not(without_plugin):
    result = without_plugin["one_process"]
    assert "import of mpi4py halted" in result.stdout, gone("single_process_deepspeed")
    assert (result.returncode, last_line(result.stdout)) == (0, "1 0"), result.stderr


def test_mpi_is_asked_where_mpi4py_is_installed(tmp_path, monkeypatch):
    (tmp_path / "mpi4py.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for size in ("1", "2"):
        compat._OneProcess(lambda distributed_port, size=size: os.environ.update(WORLD_SIZE=size, MASTER_PORT=str(distributed_port)))(
            distributed_port=29500
        )
        # a process that MPI didn't start gets a port of its own: two of them on one machine met at DeepSpeed's 29500
        assert (os.environ["MASTER_PORT"] == "29500") == (size == "2")


# mmengine's two seconds between epochs

SLEEP = """
import time
import torch
from mmengine.runner import loops
from xtuner_wulewule import compat
slept = []
time.sleep = slept.append
def second_epoch(workers):
    batches = loops._InfiniteDataloaderIterator(torch.utils.data.DataLoader([1], num_workers=workers))
    assert [next(batches).item(), next(batches).item()] == [1, 1]
second_epoch(0)
print("upstream", slept)
assert compat.no_sleep_between_epochs() and not compat.no_sleep_between_epochs()
slept.clear()
second_epoch(0)
print("without workers", slept)
second_epoch(1)
print("with workers", slept)
loops.time.sleep(3)
print("elsewhere", slept)
"""


def test_mmengine_sleeps_between_epochs_only_where_there_are_workers(without_plugin):
    result = without_plugin["sleep"]
    told = ("upstream", "without workers", "with workers", "elsewhere")  # mmengine and DeepSpeed log there too
    lines = [line for line in result.stdout.splitlines() if line.startswith(told)]
    assert lines[:1] == ["upstream [2]"], gone("no_sleep_between_epochs") + result.stderr
    assert lines[1:] == ["without workers []", "with workers [2]", "elsewhere [2, 3]"], result.stderr


# the lock of a compilation that was killed

LOCK = """
import pathlib, sys, threading
from torch.utils.file_baton import FileBaton
from xtuner_wulewule import compat
lock, upstream = pathlib.Path("lock"), FileBaton.wait
waits = dict(upstream=upstream, mended=compat._telling_wait(upstream, seconds=0.5), in_time=compat._telling_wait(upstream, seconds=30))
for name, FileBaton.wait in waits.items():
    lock.touch()
    threading.Timer(1.5, lock.unlink).start()
    FileBaton("lock", 0.1).wait()
    print(name, "went on", file=sys.stderr)
"""


def test_lock_that_is_waited_for_long_is_named(without_plugin):
    answer = without_plugin["lock"]
    assert answer.returncode == 0, answer.stderr
    upstream, said, mended, in_time = answer.stderr.splitlines()
    assert upstream == "upstream went on", gone("tell_of_compile_lock")
    assert said.startswith("xtuner-wulewule: warning: waiting for another process to finish compiling, as lock says")
    assert (mended, in_time) == ("mended went on", "in_time went on")


# 13: two processes without a GPU

TWO_PROCESSES = """
import os
import xtuner.registry
import torch
from mmengine.dist import get_rank, init_dist
from mmengine.model import MMDistributedDataParallel
init_dist("pytorch", backend="nccl")
torch.manual_seed(0)
model = MMDistributedDataParallel(torch.nn.Linear(2, 1), device_ids=[0])
model(torch.full((1, 2), 1.0 + get_rank())).sum().backward()
# one write: the two ranks share a pipe, and print would interleave its pieces
os.write(1, f"gradient {model.module.weight.grad.tolist()} {torch.distributed.get_backend()}\\n".encode())
torch.distributed.destroy_process_group()
"""


def two_processes(folder, autoload):
    script = folder / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return run([sys.executable, "-W", "ignore", *launch, script], folder, autoload)


def test_two_cpu_processes_still_fail_in_mmengine(tmp_path):
    result = two_processes(tmp_path, autoload=False)
    assert result.returncode == 1 and "torch.cuda.set_device(local_rank)" in result.stderr, gone("set_up_cpu_processes")


def test_two_cpu_processes_share_their_gradients(tmp_path):
    result = two_processes(tmp_path, autoload=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("gradient [[1.5, 1.5]] gloo") == 2


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not compat.set_up_cpu_processes()


# torch's launcher, killed, leaves its ranks behind

RANK = """
import os, pathlib, time
import xtuner.registry
pathlib.Path(f"rank_{os.environ['RANK']}").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("autoload", [False, True], ids=["upstream", "mended"])
def test_ranks_of_a_killed_launcher(autoload, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "rank.py"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "XTUNER_WULEWULE_AUTOLOAD": str(int(autoload))}
    launcher = subprocess.Popen([sys.executable, *launch], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    files = [tmp_path / f"rank_{rank}" for rank in range(2)]
    wait_for(lambda: all(file.is_file() and file.read_text() for file in files), 90)
    launcher.kill()
    launcher.wait()
    ranks = [int(file.read_text()) for file in files]
    try:
        if autoload:
            wait_for(lambda: not any(Path(f"/proc/{rank}").is_dir() for rank in ranks), 20)
        else:
            time.sleep(2)
            assert all(Path(f"/proc/{rank}").is_dir() for rank in ranks), gone("end_with_launcher")
    finally:
        for rank in ranks:
            if Path(f"/proc/{rank}").is_dir():
                os.kill(rank, signal.SIGKILL)

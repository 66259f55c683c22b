"""One function per defect of an upstream release: what fails, the guard under which it is mended, and when the function can go.

Each defect has a test in `tests/test_compat.py` that it is still there upstream; when such a test fails, delete the function. Each
function returns True where it changed something.
"""

import argparse
import errno
import os
import pickle
import signal
import sys
from importlib.metadata import PackageNotFoundError, version

from xtuner_wulewule.errors import (
    UnsupportedStackError,
    WulewuleError,
    find_wulewule_error,
    install_excepthook,
    no_adapter,
    no_config,
    one_line,
    unwritable,
    wants_traceback,
)
from xtuner_wulewule.paths import config_paths


def installed(package):
    """Return the version (str) of an installed distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def explain_bitsandbytes(error):
    """bitsandbytes up to 0.45.0 imports `triton.ops`, which triton 3.2 (torch 2.6) removed. XTuner 0.2.0 pins that version.

    Guard: the import failed for that reason. End: XTuner no longer pins bitsandbytes==0.45.0.

    Args:
        error (ImportError): why `import bitsandbytes` failed.

    Returns:
        UnsupportedStackError | None: an error that names the fix.
    """
    if not (getattr(error, "name", None) or "").startswith("triton.ops"):
        return None
    install_excepthook()
    return UnsupportedStackError(
        f"bitsandbytes {installed('bitsandbytes') or 'none'} cannot be imported with torch {installed('torch') or 'none'} "
        f"(triton {installed('triton') or 'none'} has no triton.ops): pip install 'torch>=2.4,<2.6', or for CUDA 13 install "
        "requirements/cuda13.txt of xtuner-wulewule, which has bitsandbytes>=0.50"
    )


def honest_entry_point(module):
    """`xtuner` runs bare `python` (or `torchrun`) from PATH, ends with status 0 whatever happened, and so do its own errors.

    Guard: XTuner's entry point still starts its tools through `subprocess.run(["python", …])`. The module gets a `subprocess` whose
    `run` uses this interpreter and ends with the child's exit status, the functions in its table `modes` end with one line and status 1
    when a tool can't be imported, and `cli` ends with status 1 when it returns without having run anything that was asked for, and before
    a merge that could be saved nowhere, or a tool that imports for seconds only to find that a config of ours is misspelt. torch's
    launcher is started through `xtuner_wulewule.launcher`, which ends a failed run with one line.
    End: XTuner's entry point uses `sys.executable` and returns the status of its child, and torch's launcher ends without a traceback.

    Args:
        module (types.ModuleType): `xtuner.entry_point`.
    """
    if getattr(module, "subprocess", None) is None or not hasattr(module, "modes"):
        return False
    module.subprocess = _Subprocess(module.subprocess)
    for table in (module.modes, *(value for value in module.modes.values() if isinstance(value, dict))):
        for name, function in table.items():
            if callable(function) and function not in module.HELP_FUNCS:
                table[name] = _ImportingTool(function)
    module.cli = _Cli(module)
    return True


class _Subprocess:
    """The `subprocess` module as `xtuner.entry_point` sees it; only `run` differs, which leaves no child behind."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)

    def run(self, command, **kwargs):
        """Run a command of XTuner's with this interpreter and end the process with the child's exit status."""
        if command[0] == "python":
            command = [sys.executable, *command[1:]]
        elif command[0] == "torchrun":
            command = [sys.executable, "-m", "xtuner_wulewule.launcher", *command[1:]]
        waiting_threads_yield(os.environ)
        # the child ends with this process, whatever ends that
        status = self._wait(self._module.Popen(command, preexec_fn=parent_death_signal(), **kwargs))
        sys.exit(status if status >= 0 else 128 - status)  # killed by signal N: 128 + N, as a shell reports it

    def _wait(self, process):
        """Return the exit status of a child; Ctrl-C reaches it, too, `kill -INT` does not, and it gets the time to end its ranks, unless it
        is interrupted twice."""
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                self._wait_or_interrupt(process)
            except (KeyboardInterrupt, self._module.TimeoutExpired):
                process.kill()
                process.wait()
            return 130

    def _wait_or_interrupt(self, process):
        try:
            process.wait(10)  # many times what a child takes that a terminal has told, too; it should not be told twice
        except self._module.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(35)  # torch's launcher gives its ranks 30 s


class _ImportingTool:
    """A function of XTuner's table `modes`: it imports a tool, only to return the tool's file."""

    def __init__(self, function):
        self.function = function

    def __call__(self):
        found = self.file()
        if found is not None:
            return found
        try:
            return self.function()
        except Exception as error:
            found = find_wulewule_error(error) or WulewuleError(
                f"XTuner's {self.function.__name__} cannot be imported ({type(error).__name__}: {error}); "
                "check the installation with pip check"
            )
            print(one_line(found), file=sys.stderr)
            sys.exit(1)

    def file(self):
        """Return the tool's file (str) without importing it, which takes seconds and is done again by the child; None if in doubt."""
        from importlib.util import find_spec

        names = self.function.__code__.co_names  # "from PACKAGE import TOOL; return TOOL.__file__"
        if len(names) != 3 or names[2] != "__file__":
            return None
        try:
            spec = find_spec(".".join(names[:2]))
        except ImportError:
            return None
        return spec.origin if spec is not None and (spec.origin or "").endswith(".py") else None


NOT_RUN = "could not be run, see the warning above"
LAUNCH = {"NPROC_PER_NODE": (1, None), "NNODES": (1, None), "NODE_RANK": (0, None), "PORT": (1, 65535)}  # least and most


def _launch_problem(environment):
    """Return what is wrong (str) with the variables by which XTuner starts several processes, None where nothing is."""
    for name, (least, most) in LAUNCH.items():
        value = environment.get(name)
        if value is not None and not (value.isdecimal() and least <= int(value) <= (most or int(value))):
            return f"{name} is {value!r}; it must be a whole number from {least}" + (f" to {most}" if most else " on")
    return None


def _merge_problem(arguments):
    """Return what is wrong (str) with adapter or target of `xtuner convert merge`, None where nothing is.

    transformers saves nothing where the target is a file, and goes on: the command would end with "All done!" and status 0. Where an
    earlier model lies as safetensors and this one is saved otherwise, the earlier one is loaded from then on. peft asks the hub for what
    is no adapter, after the model has been loaded.

    Args:
        arguments (list[str]): of the `xtuner` command.
    """
    if [argument.lower() for argument in arguments[:2]] != ["convert", "merge"]:
        return None
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("given", nargs="*")
    for option in ("--max-shard-size", "--device"):  # those with a value
        parser.add_argument(option)
    try:
        known, others = parser.parse_known_args(arguments[2:])
    except (argparse.ArgumentError, SystemExit):
        return None  # XTuner's own parser tells of it
    model, adapter, target = [*known.given, *(one for one in others if not one.startswith("-")), *[""] * 3][:3]
    if os.path.isfile(target):
        return str(unwritable(target, os.strerror(errno.EEXIST)))
    earlier = sorted(name for name in os.listdir(target) if name.endswith(".safetensors")) if os.path.isdir(target) else []
    if earlier and "--safe-serialization" not in others:
        remedy = "name another one, or add --safe-serialization"
        return f"the folder {target} holds {earlier[0]}, which would be loaded instead of this merge; {remedy}"
    parent = os.path.dirname(adapter)
    local = os.path.isfile(os.path.join(model, "config.json")) and adapter and (not parent or os.path.isdir(parent))  # else one of the hub
    return str(no_adapter(adapter)) if local and not os.path.isfile(os.path.join(adapter, "adapter_config.json")) else None


CONFIG_FIRST = ("train", "test", "copy-cfg", "pth_to_hf")  # the tools whose first argument is one, by its name, too


def _misspelt_config(arguments):
    """Return the error (SettingsError) of a config of ours that is not there, None where there is none: the tool itself would tell of it
    when it has been imported. Names that don't begin as ours are left to it.

    Args:
        arguments (list[str]): of the `xtuner` command.
    """
    tool, *given = arguments[1:] if arguments[0].lower() == "convert" else arguments
    name = given[0] if given else ""
    if tool.lower() not in CONFIG_FIRST or not name.startswith("wulewule") or os.path.isfile(name) or name in config_paths():
        return None
    if wants_traceback() or {"-h", "--help"}.intersection(given):
        return None
    from xtuner.configs import cfgs_name_path

    return None if name in cfgs_name_path else no_config(name)


class _Cli:
    """`xtuner.entry_point.cli`, whose every error used to end in the help text and status 0."""

    def __init__(self, module):
        self.module, self.cli = module, module.cli

    def __call__(self):
        problem = self.problem([argument.lower() for argument in sys.argv[1:]])
        runs = problem and problem.endswith(NOT_RUN)
        unfit = (_launch_problem(os.environ) or _merge_problem(sys.argv[1:])) if runs else None
        misspelt = _misspelt_config(sys.argv[1:]) if runs and unfit is None else None
        if misspelt is not None:
            print(one_line(misspelt), file=sys.stderr)
            sys.exit(1)
        if unfit is None:
            self.cli()  # a tool that was run ends the process itself
        problem = unfit or problem
        if problem:
            print(f"xtuner: error: {problem}", file=sys.stderr)
            sys.exit(1)

    def problem(self, arguments):
        """Return why nothing was run (str), if nothing is, or None where nothing has to be."""
        if not arguments or arguments[0] in self.module.special:
            return None
        if arguments[0] not in self.module.modes:
            return f"there is no command {sys.argv[1]!r}; see xtuner help"
        mode = self.module.modes[arguments[0]]
        if isinstance(mode, dict):
            if len(arguments) > 1 and mode.get(arguments[1]) in self.module.HELP_FUNCS:
                return None
            if len(arguments) == 1 or arguments[1] not in mode:
                return f"xtuner {arguments[0]} needs one of these subcommands: {', '.join(name for name in mode if name[0] != '-')}"
        return f"xtuner {arguments[0]} {NOT_RUN}"


def cpu_bf16_query(module):
    """`SupervisedFinetune` asks `torch.cpu.is_bf16_supported()`, which torch does not have.

    Guard: the attribute is missing. torch computes bf16 on every CPU it runs on, so the answer is True; it also makes XTuner's DeepSpeed
    files choose bf16 and not fp16, which DeepSpeed refuses on a CPU. End: torch has the function, or XTuner no longer asks.

    Args:
        module (types.ModuleType): `xtuner.utils.device`, which has imported torch.
    """
    import torch

    if hasattr(torch.cpu, "is_bf16_supported"):
        return False
    torch.cpu.is_bf16_supported = _always_true  # type: ignore[attr-defined]
    return True


def _always_true():
    return True


def allow_mmengine_checkpoints():
    """torch 2.6 loads with `weights_only=True`, which refuses what mmengine writes into a checkpoint.

    Guard: torch's default refuses (2.6 and later). Exactly the classes that a checkpoint of mmengine's holds are allowed; anything else is
    still refused wherever torch's default is used: `--resume`, not `xtuner convert pth_to_hf`, which asks for `weights_only=False`.
    `ConfigDict` holds the DeepSpeed settings in DeepSpeed folders. End: mmengine registers its classes itself.
    """
    import torch

    if not _torch_loads_weights_only():
        return False
    import numpy
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    allowed = [HistoryBuffer, ConfigDict, (_getattr_of_history_buffer, "builtins.getattr"), *_numpy_globals(numpy)]
    torch.serialization.add_safe_globals(allowed)
    return True


def _getattr_of_history_buffer(owner, name):
    """Stands in for `getattr`, by which a HistoryBuffer pickles its methods. The real one would open the way to anything."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr of {name!r} is not allowed in a checkpoint")
    return getattr(owner, name)


def _torch_loads_weights_only():
    import torch

    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 6)


def _numpy_globals(numpy):
    """What pickled arrays and numbers of the message hub refer to, under the names of numpy 1 and of numpy 2."""
    core = numpy._core if hasattr(numpy, "_core") else numpy.core
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    dtypes = {type(numpy.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")}
    return [
        numpy.ndarray,
        numpy.dtype,
        *dtypes,
        *((function, f"numpy.{part}.multiarray.{function.__name__}") for function in (reconstruct, scalar) for part in ("core", "_core")),
    ]


def no_sleep_between_epochs():
    """mmengine sleeps two seconds between epochs, to prevent a deadlock of the data loader's worker processes.

    Guard: the data loader has no worker processes (`num_workers=0`, as in the wulewule configs): then the sleep prevents nothing. Twenty
    epochs of the tiny tuning lose 38 s of some 140 s by it. End: mmengine sleeps only where there are workers.
    """
    loops = sys.modules.get("mmengine.runner.loops")
    if loops is None or isinstance(loops.time, _TimeWithoutSleep) or not hasattr(loops, "_InfiniteDataloaderIterator"):
        return False
    original = loops._InfiniteDataloaderIterator.__next__

    def __next__(self):
        loops.time.awake = self._dataloader.num_workers == 0
        try:
            return original(self)
        finally:
            loops.time.awake = False

    loops.time = _TimeWithoutSleep(loops.time)
    loops._InfiniteDataloaderIterator.__next__ = __next__
    return True


class _TimeWithoutSleep:
    """The `time` module as `mmengine.runner.loops` sees it; only `sleep` differs, while `awake`."""

    def __init__(self, module):
        self._module, self.awake = module, False

    def __getattr__(self, name):
        return getattr(self._module, name)

    def sleep(self, seconds):
        if not self.awake:
            self._module.sleep(seconds)


def single_process_deepspeed():
    """DeepSpeed in one process without a launcher looks for MPI: it dies where mpi4py is not installed, and takes port 29500 where it is.

    Guard: the launcher's variables are missing. A process that MPI doesn't know either gets those for one process, with a free port.
    End: DeepSpeed starts a single process without MPI, on a free port.
    """
    comm = sys.modules.get("deepspeed.comm.comm")
    if comm is None or isinstance(comm.mpi_discovery, _OneProcess):
        return False
    comm.mpi_discovery = _OneProcess(comm.mpi_discovery)
    return True


def free_ports(count=1):
    """Return ports of this machine (list[int]) that nobody listens on, so many (int), no two alike."""
    import socket

    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


class _OneProcess:
    def __init__(self, mpi_discovery):
        self.mpi_discovery = mpi_discovery

    def __call__(self, *args, **kwargs):
        from importlib.util import find_spec

        if find_spec("mpi4py") is not None:
            self.mpi_discovery(*args, **kwargs)
            if os.environ["WORLD_SIZE"] == "1":  # started without MPI: two such runs on one machine would want the same port
                os.environ["MASTER_PORT"] = str(*free_ports())
            return
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(*free_ports()))


def tell_of_compile_lock():
    """torch waits in silence, and for ever, for a compilation that a killed process never finished.

    DeepSpeed compiles a small library on first use. A run that is killed meanwhile leaves the file `lock` in the build folder, and every
    later one waits for it. Whether somebody still compiles can't be seen from the file, so it is named after 30 s and left alone.
    Guard: torch's FileBaton waits without a word. End: it says what it waits for.
    """
    from torch.utils import file_baton

    if getattr(file_baton.FileBaton.wait, "telling", False):
        return False
    file_baton.FileBaton.wait = _telling_wait(file_baton.FileBaton.wait)
    return True


def _telling_wait(wait, seconds=30.0):
    def tell(baton):
        sys.stderr.write(
            f"xtuner-wulewule: warning: waiting for another process to finish compiling, as {baton.lock_file_path} says; if none does "
            "(a killed run leaves this file behind), delete it\n"
        )

    def telling(self):
        import threading

        timer = threading.Timer(seconds, tell, (self,))
        timer.daemon = True
        timer.start()
        try:
            wait(self)
        finally:
            timer.cancel()

    telling.telling = True  # type: ignore[attr-defined]
    return telling


def set_up_cpu_processes():
    """Several processes without a GPU: mmengine calls `torch.cuda.set_device`, then gives DDP a device number.

    Guard: a launcher started more than one process, and there is no accelerator. NCCL, which needs one, becomes gloo.
    End: mmengine starts two CPU processes with `--launcher pytorch` by itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    from mmengine.device import get_device

    if get_device() != "cpu":
        return False
    from mmengine.dist import utils
    from mmengine.model import MMDistributedDataParallel

    if isinstance(utils._init_dist_pytorch, _InitWithoutDevice):
        return False
    utils._init_dist_pytorch = _InitWithoutDevice(utils._init_dist_pytorch)
    MMDistributedDataParallel.__init__ = _without_device_ids(MMDistributedDataParallel.__init__)
    return True


class _InitWithoutDevice:
    def __init__(self, init):
        self.init = init

    def __call__(self, backend, *args, **kwargs):
        import torch

        set_device = torch.cuda.set_device
        torch.cuda.set_device = lambda device: None
        try:
            return self.init("gloo" if backend == "nccl" else backend, *args, **kwargs)
        finally:
            torch.cuda.set_device = set_device


def _without_device_ids(init):
    def __init__(self, module, *args, **kwargs):
        kwargs["device_ids"] = None
        init(self, module, *args, **kwargs)

    return __init__


def end_chat_with_input():
    """XTuner's chat ends in a traceback where its input ends (Ctrl-D, a pipe without EXIT) and at Ctrl-C.

    Guard: the program is XTuner's chat, which asks `input`; it gets one that answers what was still asked and then ends as EXIT does. It
    takes EXIT and RESET in small letters, too, which XTuner would hand to the model.
    End: XTuner's chat ends with status 0 at the end of its input.
    """
    program = sys.modules["__main__"]
    if not (getattr(program, "__file__", None) or "").replace(os.sep, "/").endswith("/xtuner/tools/chat.py"):
        return False
    program.input = _InputOfChat()  # type: ignore[attr-defined]
    return True


class _InputOfChat:
    """`input` as XTuner's chat sees it: at the end of the input an empty line, which ends a question, then the end of the chat."""

    def __init__(self):
        self.asked = False

    def __call__(self):
        try:
            line = input() if sys.stdin is not None else None
        except (EOFError, KeyboardInterrupt) as error:
            line = "" if self.asked and isinstance(error, EOFError) else None
        if line is None:
            print("Log: Exit!")
            sys.exit(0)
        if not self.asked and line.strip().upper() in ("EXIT", "RESET"):
            line = line.strip().upper()
        self.asked = line != ""
        return line


def waiting_threads_yield(environment):
    """torch's threads on a CPU wait for each other spinning, for as long as a slice of the scheduler where another program has the core.

    Two trainings of the tiny model at once took 113 s on two cores, where one alone takes 20; so they take 32 (docs/decisions.md). Guard:
    nobody has said how threads are to wait. End: libgomp spins less by itself. It reads the variable when torch is loaded.

    Args:
        environment (MutableMapping[str, str]): the variables, of a process that is to be started or has not loaded torch yet.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = "1000"


def parent_death_signal():
    """Return a function that asks for SIGTERM when this process's parent dies, safe between fork and exec; None where not on Linux."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl  # looked up here: little is safe between fork and exec
    return lambda: prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end_with_launcher():
    """torch's launcher ends its ranks when it is told to end, but one that is killed (`kill -9`, out of memory) leaves them running.

    They hold the GPUs and go on training. Guard: a launcher started this process, on Linux, which then sends it SIGTERM when its parent
    dies. End: torch's launcher does that itself.
    """
    ask = parent_death_signal()
    if ask is None or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    parent = os.getppid()
    ask()
    if os.getppid() != parent:  # it died meanwhile
        sys.exit(128 + signal.SIGTERM)
    return True

"""`wulewule doctor`: whether a QLoRA run can start here, and what to do where it can't."""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from xtuner_wulewule.compat import installed

OK, NOTE, FAIL = "ok", "note", "FAIL"
HUBS = {"huggingface.co": "https://huggingface.co", "modelscope.cn": "https://www.modelscope.cn"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        level (str): "ok", "note" (a QLoRA run starts all the same) or "FAIL" (it can't).
        what (str): what was found.
        fix (str): what to do, empty where nothing has to be done.
    """

    level: str
    what: str
    fix: str = ""


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "doctor",
        help="check whether a QLoRA run can start on this machine",
        description=(
            "Check versions, GPU, bitsandbytes, start-up file, disk and hubs: a line for each, with a fix where one is needed. Ends with "
            "status 1 if a QLoRA run could not start."
        ),
    )
    parser.add_argument("--offline", action="store_true", help="do not try to reach the hubs")
    parser.set_defaults(run=run)


def run(args):
    """Print the findings; return 1 if a QLoRA run could not start, else 0."""
    findings = []
    for check in (python, startup_file, path, stack, gpu, bitsandbytes, attention, threads, compile_lock, disk):
        findings += _print(check())
    if not args.offline:
        findings += _print(hubs())
    failed = [finding for finding in findings if finding.level == FAIL]
    if failed:
        print(f"\na QLoRA run cannot start here: {len(failed)} of {len(findings)} checks failed", file=sys.stderr)
        return 1
    print("\na QLoRA run can start here")
    return 0


def _print(findings):
    for finding in findings:
        print(f"{finding.level:4}  {finding.what}{f'; fix: {finding.fix}' if finding.fix else ''}", flush=True)
    return findings


def numbers(text):
    """Return the leading numbers of a version, for example (2, 5, 1) of "2.5.1+cu124"."""
    found = []
    for part in (text or "0").split("+")[0].split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def python():
    """Check the version of Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return [Finding(OK, f"Python {found}")]
    return [Finding(FAIL, f"Python {found} is not supported", "make an environment with Python 3.10, 3.11 or 3.12")]


def startup_file():
    """Check that the start-up file was read when this process started."""
    if "_xtuner_wulewule_autoload" in sys.modules:
        return [Finding(OK, "start-up file active: XTuner knows the wulewule configs")]
    if os.environ.get("XTUNER_WULEWULE_AUTOLOAD") == "0":
        return [Finding(NOTE, "start-up file switched off by XTUNER_WULEWULE_AUTOLOAD=0", "unset it")]
    return [
        Finding(
            FAIL,
            "start-up file not read: XTuner does not know the wulewule configs",
            "install into a virtual environment, not with --target or through PYTHONPATH",
        )
    ]


def path():
    """Check that `python` and `xtuner` on PATH are those of this environment."""
    findings = []
    for name in ("python", "xtuner"):
        found = shutil.which(name)
        own = Path(sys.prefix) / "bin" / name
        if found and os.path.abspath(found) == str(own):
            findings.append(Finding(OK, f"{name} on PATH is that of this environment"))
        else:
            fix = f"source {sys.prefix}/bin/activate, or call {own}"
            findings.append(Finding(NOTE, f"{name} on PATH is {found or 'missing'}, not that of this environment", fix))
    return findings


def stack():
    """Check that what is installed fits together."""
    findings = []
    for package in ("xtuner", "mmengine", "transformers", "peft", "deepspeed", "torch", "bitsandbytes"):
        found = installed(package)
        if found:
            findings.append(Finding(OK, f"{package} {found}"))
        else:
            findings.append(Finding(FAIL, f"{package} is not installed", f"pip install {package}"))
    torch, bnb = installed("torch"), installed("bitsandbytes")
    if torch and bnb and numbers(torch) >= (2, 6) and numbers(bnb) < (0, 45, 1):
        fix = "pip install 'torch>=2.4,<2.6', or install requirements/cuda13.txt"
        findings.append(Finding(FAIL, f"bitsandbytes {bnb} cannot be imported with torch {torch}", fix))
    if installed("xtuner") and not (0, 2) <= numbers(installed("xtuner")) < (0, 3):
        findings.append(Finding(FAIL, f"xtuner {installed('xtuner')} is not supported", "pip install 'xtuner>=0.2.0,<0.3'"))
    return findings


def gpu():
    """Check the GPU, and that torch was built for it."""
    if not installed("torch"):
        return []
    import torch

    if not torch.cuda.is_available():
        fix = "check nvidia-smi, and that torch was installed for CUDA; without a GPU train wulewule_sft_tiny"
        return [Finding(FAIL, "torch sees no GPU, and a 4-bit model needs one", fix)]
    findings = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = f"GPU {index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        built = [int(arch.split("_")[1].rstrip("abcdefgh")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
        if not any(arch // 10 == major and arch <= major * 10 + minor for arch in built):
            fix = "install a torch that was built for it: requirements/cuda13.txt for new GPUs"
            findings.append(Finding(FAIL, f"{name}, for which torch was not built ({', '.join(torch.cuda.get_arch_list())})", fix))
            continue
        findings.append(Finding(OK, name))
        if major < 8:
            findings.append(Finding(NOTE, f"GPU {index} has no bf16: float16 is used"))
        free, total = torch.cuda.mem_get_info(index)
        level = OK if free > 0.9 * total else NOTE
        findings.append(
            Finding(level, f"GPU {index}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", "" if level == OK else "see nvidia-smi")
        )
    return findings


def bitsandbytes():
    """Check that bitsandbytes has the library of torch's CUDA version."""
    spec = find_spec("bitsandbytes")
    if spec is None or not installed("torch"):
        return []
    import torch

    if torch.version.cuda is None:
        return [Finding(NOTE, "torch was built without CUDA, so bitsandbytes cannot use a GPU")]
    name = f"libbitsandbytes_cuda{torch.version.cuda.replace('.', '')}.so"
    folder = Path(spec.submodule_search_locations[0])  # type: ignore[index]
    if (folder / name).is_file():
        return [Finding(OK, f"bitsandbytes has its library for CUDA {torch.version.cuda}")]
    have = ", ".join(sorted(file.stem.rpartition("cuda")[2] for file in folder.glob("libbitsandbytes_cuda*.so")))
    fix = "install a bitsandbytes for it (0.50 has CUDA 13), or a torch of a CUDA version that it has"
    return [Finding(FAIL, f"bitsandbytes {installed('bitsandbytes')} lacks {name} (it has {have or 'none'})", fix)]


def attention():
    """Say which attention will be used."""
    if find_spec("flash_attn") is not None:
        return [Finding(OK, f"flash-attn {installed('flash-attn')}")]
    return [Finding(OK, "no flash-attn: torch's SDPA attention is used")]


def threads():
    """Check the settings of MKL that the guide asks for, where MKL is installed."""
    if not (installed("mkl") or installed("mkl-service")):
        return [Finding(OK, "MKL's Python package is not installed: its settings do not matter")]
    if os.environ.get("MKL_THREADING_LAYER") == "GNU" or os.environ.get("MKL_SERVICE_FORCE_INTEL"):
        return [Finding(OK, "MKL settings of the guide")]
    fix = "export MKL_SERVICE_FORCE_INTEL=1 MKL_THREADING_LAYER=GNU"
    return [
        Finding(NOTE, "MKL is installed; conversion and chat can end with 'MKL_THREADING_LAYER=INTEL is incompatible with libgomp'", fix)
    ]


def compile_lock():
    """Look for the lock of a compilation that was killed: DeepSpeed would wait for it for ever."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    locks = sorted(root.glob("**/lock"))
    if not locks:
        return [Finding(OK, "no compilation of DeepSpeed was left unfinished")]
    return [Finding(NOTE, f"{lock} makes DeepSpeed wait for ever if nothing compiles now", f"rm {lock}") for lock in locks]


def disk():
    """Check that there is room for a merged model and checkpoints of the 1.8 B recipe."""
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free >= 15:
        return [Finding(OK, f"{free:.0f} GiB free on this disk")]
    return [Finding(NOTE, f"only {free:.1f} GiB free on this disk; the 1.8 B recipe needs about 15", "use --out on another disk")]


def hubs():
    """Try to reach the hubs that models come from."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    findings = []
    for name, address in HUBS.items():
        address = os.environ.get("HF_ENDPOINT", address) if name == "huggingface.co" else address
        try:
            urlopen(address, timeout=5).close()
        except HTTPError:
            pass  # it answered
        except Exception as error:
            fix = "use a model folder, --hub modelscope, or HF_ENDPOINT" if name == "huggingface.co" else "use a model folder"
            findings.append(Finding(NOTE, f"{name} cannot be reached ({type(error).__name__})", fix))
            continue
        findings.append(Finding(OK, f"{name} can be reached"))
    return findings

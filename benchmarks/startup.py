"""What the start-up file adds to every start of Python, in a bare environment that holds nothing but this package.

    python benchmarks/startup.py [--starts 100]

Three ways of `python -c pass` take turns: an environment without the start-up file, the same with `XTUNER_WULEWULE_AUTOLOAD=0`, and
with the import hook.
"""

import argparse
import os
import shutil
import statistics
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def bare_venv(folder, startup=True):
    """Make an environment without pip and, if `startup`, with the start-up files and the package of this checkout.

    Returns:
        tuple[pathlib.Path, pathlib.Path]: its python and its site-packages.
    """
    venv.create(folder, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(folder), "platbase": str(folder)}))
    if startup:
        no_bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "startup", site_packages, ignore=no_bytecode, dirs_exist_ok=True)
        shutil.copytree(ROOT / "xtuner_wulewule", site_packages / "xtuner_wulewule", ignore=no_bytecode)
    return Path(folder, "bin", "python"), site_packages


def start_times(ways, starts, cpu=False):
    """Time `python -c pass`, the ways in turn so that a busy moment of the machine meets all of them.

    Args:
        ways (dict): name -> (python, environment variables).
        starts (int): how many starts of each.
        cpu (bool): whether to count processor time (user and system), which waiting for a processor does not change, instead of the
            time on the clock.

    Returns:
        dict: name -> list of milliseconds, in the order of the starts.
    """
    times = {name: [] for name in ways}
    for turn in range(starts + 1):
        for name, (python, env) in ways.items():
            begin = time.perf_counter()
            _, status, usage = os.wait4(os.posix_spawn(python, [str(python), "-c", "pass"], env), 0)
            elapsed = (usage.ru_utime + usage.ru_stime if cpu else time.perf_counter() - begin) * 1000
            if status:
                raise RuntimeError(f"{python} -c pass ended with status {os.waitstatus_to_exitcode(status)}")
            if turn:  # the first start writes bytecode
                times[name].append(elapsed)
    return times


def added(times, name, base):
    """Return the median of what a start the way `name` takes longer than the start the way `base` beside it, in milliseconds."""
    return statistics.median(ours - theirs for ours, theirs in zip(times[name], times[base], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=100, help="starts of each way (default: %(default)s)")
    starts = parser.parse_args().starts
    with tempfile.TemporaryDirectory() as folder:
        without, _ = bare_venv(Path(folder, "without"), startup=False)
        plugin, _ = bare_venv(Path(folder, "plugin"))
        times = start_times(
            {"no start-up file": (without, {}), "turned off": (plugin, {"XTUNER_WULEWULE_AUTOLOAD": "0"}), "import hook": (plugin, {})},
            starts,
        )
    print(f"{'python -c pass':20}{'median ms':>10}{'added ms':>10}   ({starts} starts each, in turn)")
    for name, values in times.items():
        print(f"{name:20}{statistics.median(values):10.2f}{added(times, name, 'no start-up file'):10.2f}")


if __name__ == "__main__":
    main()

"""A release, tried before it is made: versions agree, sdist and wheel build and pass twine, and the wheel works in fresh environments.

Run by `make release-check`, from an environment with the extra `dev`. Each environment downloads and holds some 6 GB; there is one at a
time, deleted when it has been tried. A Python that is not on this machine is named and skipped.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = "-n 2 --dist loadfile --ignore tests/e2e"
PYTHONS = ("3.10", "3.11", "3.12")
INSTALLED = """import sys
from pathlib import Path

import xtuner_wulewule


def test_what_is_tested_is_installed():
    assert Path(xtuner_wulewule.__file__).is_relative_to(sys.prefix)
"""
LISTED = [f"wulewule_{stage}_{size}" for stage in ("pretrain", "sft") for size in ("1_8b", "7b", "tiny")]


def say(text):
    """Print a line at once."""
    print(text, flush=True)


def run(*command, folder=None, quiet=False):
    """Run a command, with its own folder first in PATH, and return its output (str); end the script with that where it fails."""
    begin = time.monotonic()
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    env["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{env['PATH']}"
    arguments = list(map(str, command))
    result = subprocess.run(arguments, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        sys.exit(f"{result.stdout}\nrelease-check: {' '.join(map(str, command))}: status {result.returncode}")
    if not quiet:
        say(f"  {time.monotonic() - begin:5.0f} s  {Path(command[0]).name} {' '.join(map(str, command[1:]))}")
    return result.stdout


def check_version():
    """Return the version (str); end the script where CHANGELOG.md or CITATION.cff says another."""
    source = (ROOT / "xtuner_wulewule" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.+)"', source)[1]
    for file, pattern in (("CHANGELOG.md", r"^## (\S+)"), ("CITATION.cff", r"^version: (\S+)")):
        found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            sys.exit(f"release-check: {file} says version {found and found[1]}, the package {version}; make them agree")
    return version


def find_python(version):
    """Return an interpreter (str) of a version such as "3.11" from PATH or pyenv, None where there is none."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, pyenv)):
        if candidate is None:
            continue
        asked = subprocess.run([candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True)
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return candidate
    return None


def build(folder):
    """Build in `folder` and return the sdist and the wheel made from it (pathlib.Path)."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    for file in (sdist, wheel):
        say(f"  {file.stat().st_size / 1024:5.0f} KB {file.name}")
    return sdist, wheel


def try_wheel(python, sdist, wheel, tests):
    """Install the wheel into a fresh environment, list the configs through XTuner and run tests of the sdist against it."""
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        env, checkout = Path(folder, "venv"), Path(folder, "sdist")
        run(python, "-m", "venv", env, quiet=True)
        run(env / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir", f"{wheel}[test]")
        run(env / "bin" / "python", "-m", "pip", "check")
        listed = run(env / "bin" / "xtuner", "list-cfg", "-p", "wulewule", folder=folder).split()
        missing = [name for name in LISTED if name not in listed]
        if missing:
            sys.exit(f"release-check: xtuner list-cfg -p wulewule does not list {', '.join(missing)}")
        with tarfile.open(sdist) as archive:
            archive.extractall(checkout, filter="data")
        (unpacked,) = checkout.iterdir()
        (unpacked / "tests" / "test_installed.py").write_text(INSTALLED)
        output = run(env / "bin" / "pytest", "-q", *tests, folder=unpacked)
        say(f"  {output.strip().splitlines()[-1]}")


def main():
    """Check what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=PYTHONS, metavar="VERSION", help=f"Pythons to try ({' '.join(PYTHONS)})")
    parser.add_argument("--tests", default=TESTS, help=f"arguments of pytest ({TESTS})")
    args = parser.parse_args()
    say(f"xtuner-wulewule {check_version()}")
    tried = 0
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        sdist, wheel = build(Path(folder))
        for version in args.versions:
            python = find_python(version)
            if python is None:
                say(f"Python {version}: skipped, it is not on this machine")
                continue
            say(f"Python {version}")
            try_wheel(python, sdist, wheel, args.tests.split())
            tried += 1
    if not tried:
        sys.exit("release-check: no environment was tried")
    say(f"release-check: passed on {tried} of {len(args.versions)} Pythons")


if __name__ == "__main__":
    main()

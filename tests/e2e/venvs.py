"""Nested environments for the end-to-end tests: everything of the environment that runs the tests, by symlink, except this package."""

import fnmatch
import os
import shutil
import subprocess
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# __pycache__ at the top: uninstalling in a nested environment must not reach bytecode of the outer one
LEFT_OUT = ("*xtuner_wulewule*", "__pycache__")


def copy_checkout(target):
    """Copy the checkout without what .gitignore names and without environments, so that building leaves nothing behind in it."""
    ignored = [".git", *(ROOT / ".gitignore").read_text().split()]

    def ignore(folder, names):
        return {
            name
            for name in names
            if any(fnmatch.fnmatch(name, pattern.rstrip("/")) for pattern in ignored) or Path(folder, name, "pyvenv.cfg").exists()
        }

    shutil.copytree(ROOT, target, ignore=ignore)
    return target


class NestedVenv:
    """An environment in which this package is not installed, and XTuner is.

    Args:
        folder (pathlib.Path): where to make it.
        without (tuple[str, ...]): patterns of further entries of site-packages that are left out.
    """

    def __init__(self, folder, without=()):
        self.folder = folder
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.site_packages = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(folder), "platbase": str(folder)}))
        for outer in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(outer).iterdir():
                if not any(fnmatch.fnmatch(entry.name, pattern) for pattern in (*LEFT_OUT, *without)):
                    (self.site_packages / entry.name).symlink_to(entry)
        (command,) = (entry for entry in distribution("xtuner").entry_points if entry.name == "xtuner")
        script = self.bin / "xtuner"  # as pip writes it
        script.write_text(
            f"#!{self.python}\nimport sys\nfrom {command.module} import {command.attr}\n"
            f"if __name__ == '__main__':\n    sys.exit({command.attr}())\n"
        )
        script.chmod(0o755)

    def run(self, *command, status=0, **env):
        """Run a command of the environment, activated, in a folder that is not the checkout.

        Args:
            command: the first word is looked up in the environment's bin, unless it is a path.
            status (int | None): exit status it must end with; None stands for any but 0.
            env: further environment variables.

        Returns:
            subprocess.CompletedProcess: with stdout and stderr as text.
        """
        __tracebackhide__ = True  # a failure must not print the environment
        ours = ("PYTHON", "PIP_", "UV_", "XTUNER", "WULEWULE", "VIRTUAL_ENV")  # settings of the outer shell
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env = {**inherited, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", **env}
        first, *rest = map(str, command)
        outside = self.folder / "outside"
        outside.mkdir(exist_ok=True)
        result = subprocess.run([str(self.bin / first), *rest], cwd=outside, env=env, capture_output=True, text=True, timeout=300)
        if result.returncode != status if status is not None else result.returncode == 0:
            raise AssertionError(f"{' '.join([first, *rest])}: exit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def list_configs(self, pattern="wulewule", xtuner="xtuner", **env):
        """Return the names that `xtuner list-cfg -p PATTERN` prints."""
        lines = self.run(xtuner, "list-cfg", "-p", pattern, **env).stdout.splitlines()
        return lines[lines.index("-" * 31) + 1 : lines.index("=" * 61)]

    def files_of_ours(self):
        """Return everything below the environment that carries our name."""
        return sorted(
            os.path.relpath(os.path.join(folder, name), self.folder)
            for folder, folders, files in os.walk(self.folder)
            for name in (*folders, *files)
            if "wulewule" in name
        )

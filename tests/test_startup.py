"""The start-up file and the import hook it starts, run by real interpreters, mostly in bare environments with a stand-in for XTuner."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner_wulewule import paths, plugin

ROOT = Path(__file__).resolve().parents[1]
STARTUP_MODULE = ROOT / "startup" / "_xtuner_wulewule_autoload" / "__init__.py"
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "startup.py"))
SWITCH_OFF = {"XTUNER_WULEWULE_AUTOLOAD": "0"}


class BareVenv:
    """An environment with the start-up files and the package of this checkout; tests add modules and break files in it."""

    def __init__(self, folder):
        self.folder = folder
        self.python, self.site_packages = BENCHMARK["bare_venv"](folder / "venv")

    def write(self, path, text):
        path = self.site_packages / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, code, shell=None, **env):
        """Run `python -c code` outside the checkout; `shell` is a redirection for it."""
        command = [str(self.python), "-c", code]
        if shell:
            command = ["sh", "-c", f'"$@" {shell}', "sh", *command]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def bare(tmp_path):
    return BareVenv(tmp_path)


@pytest.fixture
def xtuner_stub(bare):
    bare.write("xtuner/__init__.py", "")
    bare.write("xtuner/configs/__init__.py", "cfgs_name_path = {'wulewule_sft_7b': 'of XTuner', 'other': 'of XTuner'}\n")
    return bare


def assert_printed(result, text):
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, text, "")


def test_targets_are_the_table_of_the_plugin(bare):
    result = bare.run("import _xtuner_wulewule_autoload as module; print(*sorted(module.TARGETS))")
    assert_printed(result, " ".join(sorted({*plugin.ACTIONS, "bitsandbytes"})))


def test_startup_module_imports_sys_alone_at_module_level():
    tree = ast.parse(STARTUP_MODULE.read_text())
    assert [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)] == ["import sys"]


def test_pth_file_is_one_import_line():
    text = (ROOT / "startup" / "xtuner_wulewule_autoload.pth").read_text()
    assert text.startswith("import ") and len(text.splitlines()) == 1


def test_python_starts_with_one_more_module_and_the_finder_first(bare):
    code = "import sys; print(*sorted(sys.modules), *(getattr(finder, '__module__', '') for finder in sys.meta_path[:1]))"
    on, off = (bare.run(code, **env).stdout.split() for env in ({}, SWITCH_OFF))
    assert sorted(set(on) - set(off)) == ["_xtuner_wulewule_autoload"]
    assert on[-1] == "_xtuner_wulewule_autoload" and "_xtuner_wulewule_autoload" not in off


def test_installed_plugin_is_not_imported_at_start(tmp_path):
    names = ("_xtuner_wulewule_autoload", "xtuner_wulewule", "torch", "xtuner")
    code = f"import sys; print(*[name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert_printed(result, "_xtuner_wulewule_autoload")


def test_configs_are_added_and_nothing_is_replaced(xtuner_stub):
    # configs lie in the package in a wheel, as here, and beside it in the checkout
    (xtuner_stub.site_packages / "xtuner_wulewule" / "configs").symlink_to(paths.configs_dir(), target_is_directory=True)
    result = xtuner_stub.run("from xtuner.configs import cfgs_name_path; print(cfgs_name_path)")
    expected = {**paths.config_paths(), "wulewule_sft_7b": "of XTuner", "other": "of XTuner"}
    assert {name: Path(path).name for name, path in ast.literal_eval(result.stdout).items()} == {
        name: Path(path).name for name, path in expected.items()
    }


def test_spec_and_loader_pickle_and_stay_a_source_file_loader(xtuner_stub):
    code = """
import importlib.machinery, importlib.util, inspect, pickle
spec = importlib.util.find_spec("xtuner.configs")
spec.loader.exec_module  # the replaced one
copy = pickle.loads(pickle.dumps(spec))
for loader in (spec.loader, copy.loader, pickle.loads(pickle.dumps(spec.loader))):
    assert isinstance(loader, importlib.machinery.SourceFileLoader), loader
    assert "exec_module" in vars(loader), "the hook did not answer"
    module = importlib.util.module_from_spec(copy)
    loader.exec_module(module)
    assert len(module.cfgs_name_path) > 2, module.cfgs_name_path
    assert "of XTuner" in inspect.getsource(module)
print("done")
"""
    (xtuner_stub.site_packages / "xtuner_wulewule" / "configs").symlink_to(paths.configs_dir(), target_is_directory=True)
    assert_printed(xtuner_stub.run(code), "done")


BROKEN = {
    "SyntaxError": "def broken(:\n",
    "SystemExit": "raise SystemExit(3)\n",
    "two lines": "raise RuntimeError('first\\nsecond')\n",
}


@pytest.mark.parametrize("text", [None, *BROKEN.values()], ids=["missing", *BROKEN])
def test_python_starts_with_a_broken_startup_module(bare, text):
    module = bare.site_packages / "_xtuner_wulewule_autoload" / "__init__.py"
    module.unlink()
    if text is None:
        module.parent.rmdir()
    else:
        module.write_text(text)
    assert_printed(bare.run("print('started')"), "started")


@pytest.mark.parametrize("text", [None, *BROKEN.values()], ids=["missing", *BROKEN])
def test_xtuner_works_with_a_broken_plugin(xtuner_stub, text):
    module = xtuner_stub.site_packages / "xtuner_wulewule" / "plugin.py"
    module.unlink()
    if text is not None:
        module.write_text(text)
    code = "import xtuner.configs; print(xtuner.configs.cfgs_name_path['other'])"
    result = xtuner_stub.run(code)
    assert (result.returncode, result.stdout) == (0, "of XTuner\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("xtuner-wulewule: warning: xtuner.configs could not be extended (")
    assert "XTUNER_WULEWULE_AUTOLOAD=0" in line
    assert_printed(xtuner_stub.run(code, **SWITCH_OFF), "of XTuner")
    assert_printed(xtuner_stub.run(code, shell="2>&-"), "of XTuner")  # sys.stderr is None


def test_import_error_of_bitsandbytes_names_the_fix(bare):
    bare.write("triton/__init__.py", "")
    bare.write("bitsandbytes/__init__.py", "import triton.ops.matmul_perf_model\n")
    result = bare.run("import bitsandbytes")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("xtuner-wulewule: error: bitsandbytes none cannot be imported") and "torch>=2.4,<2.6" in line


def test_other_import_errors_of_bitsandbytes_stay_as_they_are(bare):
    bare.write("bitsandbytes/__init__.py", "import no_such_module\n")
    result = bare.run("import bitsandbytes")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback") and "wulewule" not in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


ITSELF = "raise errors.DataError('no rows\\nin a.jsonl:3')"
IN_HANDLER = f"try:\n    {ITSELF}\nexcept errors.DataError as error:\n    raise RuntimeError('worker died')"
WRAPPED = f"{IN_HANDLER} from error"


def run_with_excepthook(code, **env):
    code = f"from xtuner_wulewule import errors\nerrors.install_excepthook()\nerrors.install_excepthook()\n{code}"
    env = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("code", [ITSELF, WRAPPED, IN_HANDLER], ids=["itself", "cause", "context"])
def test_wulewule_errors_are_one_line(code):
    result = run_with_excepthook(code)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "xtuner-wulewule: error: no rows in a.jsonl:3\n"


@pytest.mark.parametrize("code", [ITSELF, WRAPPED], ids=["itself", "cause"])
def test_traceback_on_demand(code):
    result = run_with_excepthook(code, WULEWULE_TRACEBACK="1")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):") and "errors.DataError: no rows" in result.stderr
    assert "xtuner-wulewule: error" not in result.stderr


def test_other_errors_keep_their_traceback():
    result = run_with_excepthook("raise ValueError('of someone else')")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):") and result.stderr.endswith("ValueError: of someone else\n")


def test_start_of_python_takes_less_than_a_millisecond_more(bare):
    without, _ = BENCHMARK["bare_venv"](bare.folder / "without", startup=False)
    ways = {"without": (without, {}), "with": (bare.python, {})}
    tries = []
    while len(tries) < 3 and min(tries, default=1) >= 1:  # what others leave in the caches makes processor time longer too
        tries.append(BENCHMARK["added"](BENCHMARK["start_times"](ways, 40, cpu=True), "with", "without"))
    assert min(tries) < 1, f"milliseconds of processor time added in three tries: {tries}"

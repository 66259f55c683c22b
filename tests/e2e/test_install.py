"""Every way to install the plugin, and what the real `xtuner` command then knows."""

import ast
import filecmp
import shutil
import tarfile
import zipfile
from functools import partial
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import last_line
from forks import ask
from venvs import ROOT, NestedVenv, copy_checkout

CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "wulewule").glob("*.py"))
OFFLINE = ("--no-deps", "--no-build-isolation")
PIP_INSTALL = ("python", "-m", "pip", "install", "--quiet", *OFFLINE, "--no-index")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    copy = copy_checkout(tmp_path_factory.mktemp("copy") / "checkout")
    for folder in ("configs/wulewule", "data", "startup/_xtuner_wulewule_autoload", "xtuner_wulewule"):  # no distribution may carry these
        (copy / folder / "__pycache__").mkdir()
        (copy / folder / "__pycache__" / "stale.cpython-311.pyc").touch()
    return copy


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return NestedVenv(tmp_path_factory.mktemp("builder"))


@pytest.fixture(scope="module")
def distributions(builder, checkout, tmp_path_factory):
    """The sdist, and the wheel that `python -m build` makes from it."""
    folder = tmp_path_factory.mktemp("dist")
    builder.run("python", "-m", "build", "--no-isolation", "--outdir", folder, checkout)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """An environment with the wheel."""
    venv = NestedVenv(tmp_path_factory.mktemp("installed"))
    venv.run(*PIP_INSTALL, distributions[1])
    return venv


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_wheel_holds_the_package_and_nothing_else(distributions, checkout):
    sdist, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    expected = {f"xtuner_wulewule/{name}" for name in files_below(checkout / "xtuner_wulewule")}
    expected |= {f"xtuner_wulewule/{folder}/{name}" for folder in ("configs", "data") for name in files_below(checkout / folder)}
    expected |= {"xtuner_wulewule_autoload.pth", "_xtuner_wulewule_autoload/__init__.py"}
    expected |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert sorted(names) == sorted(expected)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "tests/test_startup.py", "tests/e2e/venvs.py", "benchmarks/startup.py"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_twine_finds_nothing_to_complain_of(builder, distributions):
    pytest.importorskip("twine", reason="twine is in the extra dev")
    assert builder.run("python", "-m", "twine", "check", "--strict", *distributions).stdout.count("PASSED") == 2


def pip_install_folder(venv, checkout, sdist):
    venv.run(*PIP_INSTALL, checkout)


def pip_install_editable(venv, checkout, sdist):
    venv.run(*PIP_INSTALL, "--editable", checkout)


def pip_install_sdist(venv, checkout, sdist):
    venv.run(*PIP_INSTALL, sdist)


def uv_install(venv, checkout, sdist):
    uv(venv, "install", "--quiet", *OFFLINE, checkout)


def uv(venv, command, *arguments):
    find_uv_bin = pytest.importorskip("uv").find_uv_bin
    venv.run(find_uv_bin(), "pip", command, "--offline", "--python", venv.python, *arguments, UV_CACHE_DIR=str(venv.folder / "uv-cache"))


def pip_uninstall(venv):
    venv.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "xtuner-wulewule")


def uv_uninstall(venv):
    uv(venv, "uninstall", "--quiet", "xtuner-wulewule")


@pytest.mark.parametrize(
    ("install", "uninstall"),
    [
        (pip_install_folder, pip_uninstall),
        (pip_install_editable, pip_uninstall),
        (pip_install_sdist, pip_uninstall),
        (uv_install, uv_uninstall),
    ],
)
def test_install_list_uninstall(install, uninstall, checkout, distributions, tmp_path):
    venv = NestedVenv(tmp_path / "venv")
    install(venv, checkout, distributions[0])
    assert venv.list_configs() == CONFIGS
    uninstall(venv)
    shutil.rmtree(venv.folder / "uv-cache", ignore_errors=True)
    assert venv.files_of_ours() == []
    left = venv.run(
        "python", "-c", "from xtuner.configs import cfgs_name_path; print([name for name in cfgs_name_path if 'wulewule' in name])"
    )
    assert left.stdout.split() == ["[]"]


def test_six_configs():
    assert CONFIGS == sorted(f"wulewule_{stage}_{size}" for stage in ("pretrain", "sft") for size in ("1_8b", "7b", "tiny"))
    assert len(CONFIGS) == 6


def test_copied_config_is_the_packaged_one(installed, checkout, tmp_path):
    installed.run("xtuner", "copy-cfg", "wulewule_sft_1_8b", tmp_path)
    assert filecmp.cmp(tmp_path / "wulewule_sft_1_8b_copy.py", checkout / "configs/wulewule/wulewule_sft_1_8b.py", shallow=False)


def test_wulewule_path(installed):
    path = Path(installed.run("wulewule", "path", "wulewule_sft_1_8b").stdout.strip())
    assert path.is_file() and path.is_relative_to(installed.site_packages)


def test_dataset_formats_are_listed(installed):
    assert {"wulewule_pretrain", "wulewule_sft", "alpaca"} <= set(installed.run("xtuner", "list-dataset-format").stdout.split())


def test_chat_offers_the_system_prompts(installed):
    words = installed.run("xtuner", "chat", "--help").stdout.replace(",", " ").replace("{", " ").replace("}", " ").split()
    assert {"wulewule", "wulewule_en", "alpaca"} <= set(words)


def test_switched_off_xtuner_knows_nothing_of_us(installed):
    assert installed.list_configs(XTUNER_WULEWULE_AUTOLOAD="0") == []


def test_editable_xtuner(distributions, tmp_path):
    venv = NestedVenv(tmp_path / "venv", without=("xtuner*",))
    xtuner = Path(find_spec("xtuner").origin).parent
    shutil.copytree(xtuner, tmp_path / "src" / "xtuner")
    shutil.copytree(distribution("xtuner")._path, venv.site_packages / distribution("xtuner")._path.name)
    (venv.site_packages / "__editable__.xtuner-0.2.0.pth").write_text(f"{tmp_path / 'src'}\n")
    venv.run(*PIP_INSTALL, distributions[1])
    assert venv.list_configs() == CONFIGS
    result = venv.run("python", "-c", "from xtuner.entry_point import cli; import xtuner; print(xtuner.__file__, type(cli).__module__)")
    assert result.stdout.split() == [str(tmp_path / "src" / "xtuner" / "__init__.py"), "xtuner_wulewule.compat"]


# what is imported first, each in an interpreter of its own

REGISTRIES = """
import {}
from mmengine import registry
from xtuner import registry as of_xtuner
from xtuner_wulewule import plugin

tables = [("MAP_FUNC", of_xtuner.MAP_FUNC, plugin.MAP_FUNCTIONS), ("BUILDER", of_xtuner.BUILDER, plugin.AFTER_XTUNER_MODEL)]
tables += [("MODELS", registry.MODELS, plugin.AFTER_XTUNER_MODEL), ("HOOKS", registry.HOOKS, plugin.AFTER_XTUNER_ENGINE)]
tables += [(name, getattr(registry, name), table) for name, table in plugin.MMENGINE_REGISTRIES.items()]
print([(name, key) for name, table, ours in tables for key, target in ours.items() if table.get(key) is not plugin._load(target)])
print(sum(len(ours) for _, _, ours in tables))
"""
ORDERS = [
    "xtuner.model, xtuner.engine",
    "xtuner.engine, xtuner.model",
    *(
        f"xtuner_wulewule.{module}, xtuner.model, xtuner.engine"
        for module in ("model.finetune", "model.fused.step", "engine.evaluate_chat_hook", "engine.score_hook")
    ),
]
TOOLS = ["train", "chat", "log_dataset", "model_converters.pth_to_hf", "model_converters.merge"]
ALONE = "import xtuner.tools.{}, sys; print('wulewule_sft_map_fn' in sys.modules['xtuner.registry'].MAP_FUNC)"


@pytest.fixture(scope="module")
def imported(installed, tmp_path_factory):
    """What each of the orders and of the tools printed."""
    questions = {**{order: REGISTRIES.format(order) for order in ORDERS}, **{tool: ALONE.format(tool) for tool in TOOLS}}
    return ask(partial(installed.run, "python"), tmp_path_factory.mktemp("imported"), questions)


@pytest.mark.parametrize("order", ORDERS)
def test_registries_hold_the_table_whatever_is_imported_first(imported, order):
    answer = imported[order]
    assert answer.returncode == 0, answer.stderr
    missing, count = answer.stdout.splitlines()[-2:]
    assert ast.literal_eval(missing) == [] and int(count) >= 9
    assert "could not be extended" not in answer.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_imports_alone(imported, tool):
    answer = imported[tool]
    assert answer.returncode == 0 and answer.stdout.split()[-1] == "True", answer.stderr
    assert "could not be extended" not in answer.stderr


def test_xtuner_by_absolute_path_runs_its_own_python(installed):
    assert installed.list_configs(xtuner=installed.bin / "xtuner", PATH="/usr/bin:/bin") == CONFIGS


def test_failing_tool_is_a_failing_command(installed):
    result = installed.run("xtuner", "train", "no_such_config", status=1)
    assert "Traceback" not in result.stderr
    assert last_line(result.stderr) == (
        "xtuner-wulewule: error: Cannot find no_such_config: there is no such file, and no packaged config of that name; "
        "see xtuner list-cfg -p wulewule"
    )


def test_unknown_command_fails(installed):
    assert "there is no command 'trian'" in installed.run("xtuner", "trian", status=1).stderr


def test_help_does_not_fail(installed):
    assert "xtuner MODE MODE_ARGS ARGS" in installed.run("xtuner", "help").stdout

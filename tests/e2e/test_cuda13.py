"""The second stack, `requirements/cuda13.txt`: that the list is whole, and that what is installed from it trains."""

import shutil
import subprocess
import sys
import venv
from importlib.metadata import requires

import pytest
from commands import run
from packaging.requirements import Requirement
from training import budget
from venvs import ROOT, copy_checkout

LISTS = [ROOT / "requirements" / name for name in ("cuda13-override.txt", "cuda13.txt")]
DIFFERENT = {"bitsandbytes", "torch"}


def listed():
    """The requirements of both files (dict[str, Requirement]) by their names."""
    lines = [line.strip() for file in LISTS for line in file.read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {one.name.lower(): one for one in found}


def test_everything_that_is_asked_for_is_listed():
    asked = [Requirement(text) for package in ("xtuner", "xtuner-wulewule") for text in requires(package)]
    # hatchling adds `editables` to what an editable install asks for
    asked = [one for one in asked if "extra" not in str(one.marker) and one.name not in ("xtuner", "editables")]
    ours = listed()
    assert {one.name.lower() for one in asked} == set(ours)
    exact = {name: next(iter(one.specifier)).version for name, one in ours.items() if str(one.specifier).startswith("==")}
    wrong = {one.name for one in asked if one.name in exact and not one.specifier.contains(exact[one.name])}
    assert wrong == set() and not DIFFERENT & set(exact)
    override = [line for line in LISTS[0].read_text().splitlines() if not line.startswith("#")]
    assert {Requirement(line).name for line in override} == DIFFERENT


@pytest.mark.slow  # downloads and installs some 6 GB
def test_what_is_installed_from_the_list_trains(tmp_path):
    copy = copy_checkout(tmp_path / "checkout")
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)

    def of_venv(*command, status=0):
        result = run(command, tmp_path, timeout=1500, PATH=f"{folder}/bin:/usr/bin:/bin", HF_HUB_OFFLINE="1")
        assert result.returncode == status, result.stdout[-2000:] + result.stderr[-2000:]
        return result.stdout + result.stderr

    pip = (folder / "bin" / "python", "-m", "pip")
    try:
        if subprocess.run([*map(str, pip), "download", "-q", "--no-deps", "xtuner==0.2.0", "-d", str(tmp_path)]).returncode != 0:
            pytest.skip("nothing can be downloaded")
        subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(copy)], check=True)
        of_venv(*pip, "install", "-q", "-r", copy / "requirements" / "cuda13.txt")
        of_venv(*pip, "install", "-q", "--no-deps", "xtuner==0.2.0", *tmp_path.glob("xtuner_wulewule-*.whl"))
        said = of_venv(*pip, "check", status=1).splitlines()
        assert len(said) == 2 and "bitsandbytes==0.45.0" in said[0] and "torch<2.6" in said[1]
        assert "wulewule_sft_1_8b" in of_venv(folder / "bin" / "xtuner", "list-cfg", "-p", "wulewule").split()
        train = ("train", "wulewule_sft_tiny", "--work-dir", tmp_path / "work", "--cfg-options", "train_cfg.max_iters=2")
        output = of_venv(folder / "bin" / "xtuner", *train, "train_cfg.max_epochs=None")
        assert budget(output)[1:3] == (2, 2) and (tmp_path / "work" / "iter_2.pth").is_file()
    finally:
        shutil.rmtree(folder)

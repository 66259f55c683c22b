"""The comparison of loss curves, as far as a machine without a GPU shows it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from xtuner_wulewule import paths
from xtuner_wulewule.model.finetune import WulewuleFinetune

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "loss_curves.py"
sys.path.insert(0, str(SCRIPT.parent))
import loss_curves  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def test_means_over_the_seeds_that_both_have_are_compared():
    curves = dict(
        xtuner={0: {10: 4.0, 20: 2.0}, 1: {10: 6.0, 20: 2.0}, 2: {10: 9.0, 20: 9.0}},
        ours={0: {10: 5.0, 20: 2.0}, 1: {10: 5.0, 20: 2.1}},
    )
    points = loss_curves.compared(curves)
    assert [(point["step"], point["xtuner"], point["ours"]) for point in points] == [(10, 5.0, 5.0), (20, 2.0, 2.05)]
    assert loss_curves.worst(points)["step"] == 20 and points[1]["difference"] == pytest.approx(0.025)
    assert loss_curves.compared(dict(xtuner=curves["xtuner"], ours={})) == [] and loss_curves.worst([]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "25"), "--steps 25 is no multiple of 10"),
        (("--data", "nowhere"), "--data nowhere has no self_cognition_100.jsonl"),
        (("--out", "x.txt"), "must end in .json"),
        (("--dropout", "1"), "--dropout 1.0 is not from 0 to below 1"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("way", loss_curves.WAYS)
def test_config_has_the_class_and_the_dropout_that_are_asked_for(way, tmp_path):
    for name, rate, expected in (("tiny", None, 0), ("tiny", 0.25, 0.25), ("1_8b", None, 0.1)):
        text = Path(paths.config_paths()[f"wulewule_sft_{name}"]).read_text(encoding="utf-8")
        file = tmp_path / f"{name}_{rate is None}.py"
        file.write_text(text + loss_curves.added_of(way, rate), encoding="utf-8")
        config = Config.fromfile(file)
        assert config.model.lora.lora_dropout == expected and (config.model.type is WulewuleFinetune) == (way == "ours")
        wrapper = "OptimWrapper" if name == "tiny" else "FusedAmpOptimWrapper" if way == "ours" else "AmpOptimWrapper"
        assert getattr(config.optim_wrapper.type, "__name__", config.optim_wrapper.type) == wrapper


def test_a_run_without_the_fused_step_is_no_result(tmp_path):
    (tmp_path / "log").write_text(f"{loss_curves.OWN_STEP}, not the fused one: model.fused is False\n")
    with pytest.raises(ValueError, match="the fused step was not used"):
        loss_curves.losses_of(tmp_path, tmp_path / "log", "ours", 10)
    with pytest.raises(ValueError, match="0 of 10 iterations"):
        loss_curves.losses_of(tmp_path, tmp_path / "log", "xtuner", 10)


@pytest.mark.slow
def test_tiny_curves_are_the_same(tmp_path):
    out = tmp_path / "out.json"
    options = ("--size", "tiny", "--steps", 20, "--seeds", 1, "--scratch", tmp_path / "scratch", "--out", out)
    result = run(*options)
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert [point["step"] for point in found["points"]] == [10, 20]
    assert abs(found["worst"]["difference"]) < 1e-5  # fp32, without dropout
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    again = run(*options)
    assert (again.returncode, again.stderr) == (1, f"{out} exists: name another file with --out, or replace it with --overwrite\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    failing = run(*options, "--overwrite", "--model", tmp_path / "broken")
    assert failing.returncode == 1 and "failed: it ended with status 1" in failing.stderr and "Traceback" not in failing.stderr

"""The benchmark of training speed, as far as a machine without a GPU shows it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "train_speed.py"
sys.path.insert(0, str(SCRIPT.parent))
import train_speed  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def row(name, way, tok_s, peak_gib, dropout):
    return dict(name=name, way=way, tok_s=tok_s, peak_gib=peak_gib, dropout=dropout)


def test_operations_of_a_token_are_those_of_the_weights_it_meets():
    # 1.89 B parameters less the embeddings' 92,544 × 2048, which no matrix product reads: 1.70 B
    assert train_speed.flops_per_token(train_speed.SIZES["1_8b"], again=False) == pytest.approx(6.8e9, rel=1e-3)
    assert train_speed.flops_per_token(train_speed.SIZES["1_8b"], again=True) == pytest.approx(10.2e9, rel=1e-3)


def test_ratios_compare_equal_memory_and_dropout():
    rows = [
        row("published", "published", 10, 55, 0.1),
        row("unsloth-lean", "unsloth", 40, 9, 0),
        row("unsloth-roomy", "unsloth", 50, 27, 0),
        row("unsloth-dropout", "unsloth", 30, 27, 0.1),
        row("ours-lean", "ours", 60, 11.9, 0),
        row("ours-roomy", "ours", 80, 64, 0),
    ]
    lean, roomy = train_speed.summary(rows)
    assert (lean["name"], lean["over"]["unsloth"]) == ("ours-lean", dict(name="unsloth-lean", times=1.5))
    assert lean["over"]["published"]["times"] == 6
    assert (roomy["name"], roomy["over"]["unsloth"]) == ("ours-roomy", dict(name="unsloth-roomy", times=1.6))


def event(name, start, end, **also):
    import torch

    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=span, device_type=torch.autograd.DeviceType.CUDA, **also)


def test_ranges_that_a_user_names_are_no_kernels():
    named = event("Optimizer.step#AdamW.step", 0, 9, is_user_annotation=True)
    kernels = [event("nvjet_x", 1, 3), event("multi_tensor_apply", 5, 6, is_user_annotation=False)]
    assert train_speed.kernels_of([named, *kernels, SimpleNamespace(device_type=None)]) == kernels


@pytest.mark.slow
def test_tiny_run_writes_rows_and_says_what_failed(tmp_path):
    out = tmp_path / "out.json"
    only = "published-internlm2-full-d0.1,ours-internlm2-none-d0-b8,unsloth"
    options = ("--size", "tiny", "--repeats", 1, "--steps", 1, "--scratch", tmp_path / "models", "--out", out)
    result = run(*options, "--only", only)
    assert result.returncode == 0, result.stderr
    assert "unsloth skipped: " in result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [one["name"].split("-")[0] for one in rows] == ["published", "ours"]
    assert all(one["tok_s"] > 0 and one["first_step_s"] > 0 and one["loss"] > 0 for one in rows)
    assert "| published, internlm2 | 0.1 | full | 16 |" in result.stdout
    before = out.read_text()
    again = run(*options, "--only", only)
    assert (again.returncode, again.stderr) == (1, f"{out} exists: name another file with --out, or replace it with --overwrite\n")
    assert out.read_text() == before
    (next((tmp_path / "models").glob("internlm2-*")) / "model.safetensors").write_bytes(b"")
    failing = run(*options, "--only", only, "--overwrite")
    assert failing.returncode == 1 and "failed: " in failing.stderr and "Traceback" not in failing.stderr
    assert any("safetensors" in line for one in json.loads(out.read_text())["failed"] for line in one["log"])

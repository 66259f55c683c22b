"""The benchmark of memory, as far as a machine without a GPU shows it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "memory.py"
sys.path.insert(0, str(SCRIPT.parent))
import memory  # noqa: E402

from xtuner_wulewule.errors import ModelError  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


@pytest.mark.parametrize("most", [1, 2, 5, 16, 100])
def test_largest_number_is_found_with_few_tries(most):
    for limit in range(most + 2):
        tried = []

        def fits(number, limit=limit, tried=tried):
            tried.append(number)
            return number <= limit

        assert memory.largest(fits, most) == min(limit, most)
        assert len(tried) == len(set(tried)) <= 2 * most.bit_length() and max(tried) <= most


def test_errors_that_mean_too_little_memory():
    assert memory.out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert memory.out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert memory.out_of_memory(ModelError("the GPU's memory is too small for a row of 2048 tokens"))
    assert not memory.out_of_memory(RuntimeError("shapes do not match"))
    assert not memory.out_of_memory(ModelError("model 'x' not found"))


def test_table_has_a_line_for_each_limit():
    of = dict(taken=2, tok_s=50000, peak_gib=7.9)
    rows = [
        dict(way="published", limit_gib=8, rows=0, capped=False),
        dict(way="ours", limit_gib=8, rows=128, capped=True, **of),
        dict(way="ours", limit_gib=80, rows=3, capped=False, **of),
    ]
    assert memory.table(rows).splitlines()[2:] == [
        "| 8 | 0 |  |  |  | 128 or more | 2 | 50,000 | 7.9 |",
        "| 80 |  |  |  |  | 3 | 2 | 50,000 | 7.9 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limits", "8,x"), "'8,x' is not a list of GiB"),
        (("--limits", "0"), "a limit is over 0"),
        (("--most", "0"), "--most is at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_tiny_run_on_a_cpu(tmp_path):
    out = tmp_path / "out.json"
    result = run("--size", "tiny", "--most", 3, "--scratch", tmp_path / "models", "--out", out)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["way"], row["rows"], row["capped"]) for row in rows] == [("published", 3, True), ("ours", 3, True)]
    assert [(row["taken"], row["checkpointing"]) for row in rows] == [(3, None), (3, "none")]
    assert all(row["tok_s"] > 0 for row in rows) and "| none | 3 or more |" in result.stdout
    again = run("--size", "tiny", "--scratch", tmp_path / "models", "--out", out)
    assert (again.returncode, again.stderr) == (1, f"{out} exists: name another file with --out, or replace it with --overwrite\n")

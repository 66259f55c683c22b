"""The benchmark of scaling, as far as a machine without a GPU shows it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import wait_for

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "scaling.py"
sys.path.insert(0, str(SCRIPT.parent))
import scaling  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def test_every_run_has_the_rows_that_it_should():
    runs = scaling.runs_of(["1_8b", "7b"], [1, 2, 4, 8], rows_at_a_time=4)
    assert len(runs) == 2 * 4 * 7  # on one GPU weak and strong are the same
    for one in runs.values():
        rows = one["gpus"] * one["batch_size"] * one["accumulative_counts"]
        assert rows == (scaling.ROWS * one["gpus"] if one["scaling"] == "weak" else scaling.ROWS)
    assert {one["accumulative_counts"] for one in runs.values() if one["parallel"] != "zero3"} == {1}
    assert max(one["batch_size"] for one in runs.values() if one["parallel"] == "zero3") == 4


def test_efficiency_is_against_one_gpu_of_the_same_kind():
    row = dict(size="7b", parallel="ddp", scaling="weak", batch_size=16, accumulative_counts=1, s_per_update=1.0, peak_gib=31.26)
    row.update(communication=0.125, exposed=0.05)
    rows = [dict(row, gpus=1, tok_s=100, scaling="one"), dict(row, gpus=4, tok_s=380), dict(row, gpus=4, tok_s=300, parallel="zero1")]
    found = scaling.with_efficiency(rows)
    assert [one["efficiency"] for one in found] == [1, 0.95, None]
    assert scaling.table(found).splitlines()[3] == "| 7b | ddp | weak | 4 | 16 | 1 | 1.000 | 380 | 95.0% | 31.3 | 12.5% | 5.0% |"


def test_runs_side_by_side_have_gpus_of_their_own():
    picked = scaling.runs_of(["1_8b", "7b"], [1, 4, 2], rows_at_a_time=4)
    found = list(scaling.waves(picked, 4, side_by_side=True))
    assert sorted(name for wave in found for name, _ in wave) == sorted(picked)
    for wave in found:
        cards = [card for _, cards in wave for card in cards]
        assert len(cards) == len(set(cards)) and set(cards) <= set(range(4))
        assert all(len(cards) == picked[name]["gpus"] for name, cards in wave)
        assert len({(picked[name]["size"], picked[name]["gpus"]) for name, _ in wave}) == 1
    assert found[0] == [(f"1_8b-{parallel}-g1", [card]) for card, parallel in enumerate(scaling.PARALLEL)]
    assert len(found) == 2 * (1 + 4 + 8)
    assert list(scaling.waves(picked, 4, side_by_side=False)) == [[(name, list(range(one["gpus"])))] for name, one in picked.items()]
    assert list(scaling.waves(picked, 0, side_by_side=True)) == [[(name, [])] for name in picked]


def test_gpus_are_counted_among_those_that_are_seen(monkeypatch):
    def seen(cards):
        return scaling.environment(1, "model", "data", cards).get("CUDA_VISIBLE_DEVICES")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (seen([0, 1]), seen([])) == ("0,1", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5f")
    assert (seen([0, 1]), seen([1]), seen([])) == ("4,GPU-5f", "GPU-5f", "4,GPU-5f")


SLEEPERS = """
import os, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import scaling

def run(name, cards, started):
    scaling.run_for(120, ["sh", "-c", f"echo > {{name}}; sleep 120"], dict(os.environ), Path(name + ".log").absolute(), started)

scaling.together(run, [(name, []) for name in sys.argv[1:]])
"""


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_ctrl_c_ends_the_runs(names, tmp_path):
    command = [sys.executable, "-c", SLEEPERS.format(folder=str(SCRIPT.parent)), *names]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: all((tmp_path / name).exists() for name in names), 60, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) and "KeyboardInterrupt" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    folders = [path.parent / "cwd" for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [path for path in folders if os.path.exists(path) and os.path.realpath(path) == str(tmp_path)]


def test_communication_counts_overlapping_operations_once():
    from communication_hook import covered

    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (1.5, 1.7)]) == 5


def test_wrong_options_are_told_in_one_line(tmp_path):
    for options, message in (
        (("--gpus", "1,3"), "3 does not divide the 16 rows of an update"),
        (("--size", "2b"), "--size 2b is none of 1_8b, 7b, tiny"),
        (("--out", tmp_path / "out"), "must end in .json"),
        (("--only", "7c"), "fits no name; --list prints them"),
    ):
        result = run(*options)
        assert result.returncode != 0 and message in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_one_and_two_processes_on_a_cpu(tmp_path):
    out = tmp_path / "out" / "two.json"
    options = ("--size", "tiny", "--gpus", "1,2", "--steps", 1, "--scratch", tmp_path / "scratch", "--out", out)
    assert run(*options, "--only", "tiny-ddp-g1,tiny-zero1-weak").returncode == 0
    result = run(*options, "--only", "tiny-ddp-g1,tiny-ddp-strong-g2", "--add")
    assert "tiny-ddp-g1" not in result.stderr  # it is there
    assert result.returncode == 0, result.stderr + str([failed["log"] for failed in json.loads(out.read_text())["failed"]])
    one, two, weak = json.loads(out.read_text())["rows"]
    assert (one["name"], two["name"], weak["name"]) == ("tiny-ddp-g1", "tiny-ddp-strong-g2", "tiny-zero1-weak-g2")
    for row in (one, two, weak):
        rows = row["gpus"] * row["batch_size"] * row["accumulative_counts"]
        assert row["tok_s"] == pytest.approx(rows * 256 / row["s_per_update"], rel=1e-3)
    # the same 16 rows an update; the gradients are summed once in it, in one bucket or more
    assert two["last_loss"] == pytest.approx(one["last_loss"], rel=0.05) and two["last_loss"] < two["first_loss"]
    assert one["communication"] == 0 and one["profiled"]["operations"] == {}
    assert 0 < two["communication"] < 1 and two["profiled"]["operations"]["gloo:all_reduce"] >= 1
    assert two["efficiency"] == pytest.approx(two["tok_s"] / (2 * one["tok_s"]), rel=1e-3)
    assert out.with_suffix(".md").read_text() == result.stdout and out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"

    before = out.read_text()
    again = run(*options, "--only", "tiny-ddp-g1")
    assert (again.returncode, again.stderr) == (1, f"{out} exists: name another file with --out, or replace it with --overwrite\n")
    assert out.read_text() == before
    # one run is ended by its time limit: it is reported, with its log, and leaves no process
    late = run(*options, "--only", "tiny-ddp-strong-g2", "--timeout", 1, "--overwrite")
    assert late.returncode == 1 and "tiny-ddp-strong-g2       failed: it took over 1 s" in late.stderr and "Traceback" not in late.stderr
    (failed,) = json.loads(out.read_text())["failed"]
    assert failed["name"] == "tiny-ddp-strong-g2"
    for name in ("tiny-ddp-weak-g2", "tiny-ddp-strong-g2"):  # what failed earlier is still told, and once
        assert run(*options, "--only", name, "--timeout", 1, "--add").returncode == 1
        assert sorted(one["name"] for one in json.loads(out.read_text())["failed"]) == ["tiny-ddp-strong-g2", "tiny-ddp-weak-g2"]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in commands if str(tmp_path).encode() in line and b"wulewule_sft_tiny" in line]


@pytest.fixture
def results(tmp_path):
    """What the program wrote on a CPU earlier, but for the figures."""
    settings = dict(rows=scaling.ROWS, steps=8, warmup=scaling.WARMUP, rows_at_a_time=4, side_by_side=False, shapes={})
    rows = [dict(name="tiny-ddp-g1", size="tiny", parallel="ddp", scaling="one", gpus=1, tok_s=7)]
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(dict(device="cpu", versions=scaling.train_speed.versions(), settings=settings, rows=rows)))
    return file


def test_what_is_there_is_not_run_again(results):
    before = results.read_bytes()
    found = run("--size", "tiny", "--only", "tiny-ddp-g1", "--add", "--out", results)
    assert (found.returncode, found.stdout) == (0, "") and found.stderr.startswith("nothing to add: "), found
    assert results.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda found: found["versions"].update(torch="1.0"), "its versions is"),
        (lambda found: found["settings"].update(steps=2), "its settings is"),
        (lambda found: found.update(device="NVIDIA A100"), "its device is NVIDIA A100, not cpu"),
        (lambda found: found.pop("rows"), "holds no results of this program (KeyError: 'rows')"),
    ],
)
def test_results_of_something_else_are_not_added_to(results, change, message):
    content = json.loads(results.read_text())
    change(content)
    results.write_text(json.dumps(content))
    before = results.read_bytes()
    found = run("--size", "tiny", "--only", "tiny-zero1-g1", "--add", "--out", results)
    assert found.returncode == 1 and message in found.stderr and len(found.stderr.splitlines()) == 1
    assert "name another file with --out" in found.stderr and results.read_bytes() == before


def test_rows_are_in_the_order_of_the_list():
    runs = scaling.runs_of(list(scaling.SIZES), [1, 2, 4], rows_at_a_time=4)
    rows = [dict(one, name=name) for name, one in runs.items()]
    expected = sorted(rows, key=lambda row: (row["size"] != "1_8b", row["size"] != "7b", scaling.PARALLEL.index(row["parallel"])))
    assert [row["size"] for row in sorted(rows[::-1], key=scaling.place_of)] == [row["size"] for row in expected]
    assert [row["gpus"] for row in sorted(rows[::-1], key=scaling.place_of)][:5] == [1, 2, 4, 2, 4]

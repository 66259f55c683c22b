"""`wulewule eval` on the tiny model: the scorecard, the gate, and an evaluation that was killed."""

import json
import re

import pytest
from commands import WULEWULE, last_line, run

from xtuner_wulewule import cli
from xtuner_wulewule.evaluation.scorecard import METRICS
from xtuner_wulewule.model.tiny import tiny_model


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A whole evaluation of the tiny model, against itself."""
    folder = tmp_path_factory.mktemp("evaluated")
    rules = "perplexity_growth<=0.05,name>=0.5"
    result = run([WULEWULE, "eval", tiny_model(), "--base", tiny_model(), "--out", "out", "--gate", rules], folder, timeout=300)
    assert result.returncode == 1, result.stdout + result.stderr
    return folder, result


def card(folder):
    return json.loads((folder / "out" / "scorecard.json").read_text(encoding="utf-8"))


def test_scorecard(evaluated):
    folder, result = evaluated
    found = card(folder)
    assert list(found["metrics"]) == list(METRICS)
    assert found["metrics"]["perplexity_growth"]["value"] == found["metrics"]["checks_drop"]["value"] == 0
    assert found["metrics"]["perplexity"]["value"] > 100 and found["metrics"]["name"]["count"] > 30
    assert all(low <= one["value"] <= high for one in found["metrics"].values() for low, high in [one["interval"]])
    assert len(found["answers"]) == len({one["id"] for one in found["answers"]})
    for name in METRICS:
        assert re.search(rf"^ +{name} ", result.stdout, re.MULTILINE)
    assert max(len(line) for line in result.stdout.splitlines() if str(folder) not in line) <= 80


def test_gate_names_what_was_missed(evaluated):
    folder, result = evaluated
    name = card(folder)["metrics"]["name"]["value"]  # random letters happen to hold it now and then
    assert name < 0.05 and last_line(result.stderr) == (
        f"xtuner-wulewule: error: the model misses 1 of 2 thresholds: name>=0.5 (it is {name:.1%})"
    )
    assert re.search(r"perplexity_growth .*<=5.0% passed", result.stdout) and re.search(r" name .*>=50.0% MISSED", result.stdout)


def test_what_is_missing_is_asked_and_ends_the_same(evaluated, monkeypatch):
    folder, _ = evaluated
    file, before = folder / "out" / "answers.jsonl", card(folder)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = len(lines) - 130  # in the middle of a batch of neutral questions
    file.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])  # killed while it wrote
    (folder / "out" / "scorecard.json").unlink()
    arguments = ["eval", tiny_model(), "--base", tiny_model(), "--out", str(folder / "out")]
    assert cli.main(arguments) == 0 and card(folder) == before
    assert file.read_bytes().startswith(b"".join(lines[:kept]))
    monkeypatch.setattr("xtuner_wulewule.evaluation.runner.load", None)  # nothing is left to ask
    assert cli.main(arguments) == 0 and card(folder) == before


def test_answers_of_another_evaluation_are_kept(evaluated, capsys):
    folder, _ = evaluated
    before = (folder / "out" / "answers.jsonl").read_bytes()
    assert cli.main(["eval", tiny_model(), "--suite", "forgetting", "--out", str(folder / "out")]) == 1
    error = capsys.readouterr().err
    assert "holds the answers of another evaluation (base" in error and "--overwrite" in error and error.count("\n") == 1
    assert (folder / "out" / "answers.jsonl").read_bytes() == before

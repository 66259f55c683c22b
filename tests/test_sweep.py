"""The sweep over settings of the tuning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner_wulewule import paths

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "sweep.py"
sys.path.insert(0, str(SCRIPT.parent))
import sweep  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, "-W", "ignore", str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def rows_of(*numbers):
    return [sweep.conversation(f"question {number}", "answer") for number in numbers]


def metrics(value):
    names = (*sweep.SHOWN, "perplexity")
    return {name: dict(value=value, interval=[value / 2, (1 + value) / 2], count=40) for name in names}


def done(value, **settings):
    whole = sweep.point(**settings)
    trained = dict(updates=50, last_loss=1.25)
    return dict(name=sweep.name_of(whole), settings=whole, passed=False, missed=["name>=0.95"], metrics=metrics(value), trained=trained)


def test_points_are_unlike_and_begin_with_what_tells_most():
    points = sweep.grid()
    names = [sweep.name_of(one) for one in points]
    assert len(set(names)) == len(points) > 60
    assert (
        names[:2] == ["pretrained own epochs=0 languages=en", "pretrained own languages=en"]
        and "pretrained packaged schedule=stuck" in names
    )
    values = {key: {one[key] for one in points if one["model"] == "pretrained"} for key in sweep.DEFAULTS}
    assert values["lr"] == {1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3} and values["epochs"] == {0, 1, 3, 5, 9, 10}
    assert values["rank"] == {8, 16, 32, 64, 128} and {0.0, 0.25, 0.5} <= values["system_dropout"]
    assert values["identity"] == {None, 0.02, 0.3, 0.5} and values["batch_size"] == {1, 4, 16}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(learning_rate=1), "there is no setting"),
        (dict(lr=0), "lr=0"),
        (dict(epochs=1.5), "epochs=1.5"),
        (dict(identity=2), "identity=2"),
    ],
)
def test_a_wrong_point_is_named(wrong, said):
    with pytest.raises(sweep.SweepError, match=said):
        sweep.point(**wrong)


def test_rows_are_mixed_to_the_share_that_is_wished():
    identity, others = rows_of(*range(10)), rows_of(*range(10, 30))
    assert sweep.mixed(identity, others) == (identity, others)
    some, rest = sweep.mixed(identity, others, 0.5)
    assert (len(some), len(rest)) == (15, 15)
    assert all(some.count(row) in (1, 2) for row in identity) and len({json.dumps(row) for row in rest}) == 15
    assert sweep.mixed(identity, others, 0.5) == (some, rest)
    few, many = sweep.mixed(identity, others, 0.1, 10)
    assert (len(few), len(many)) == (1, 9)
    kept, _ = sweep.mixed(identity, others, None, 15)
    assert len(kept) == 5


def test_templates_are_of_both_languages_and_the_packaged_persona():
    pairs = sweep.template_pairs(9, "all")
    assert sum(any("\u4e00" <= letter <= "\u9fff" for letter in question) for question, _ in pairs) == 5
    assert any("Wulewule" in answer for _, answer in pairs) and any("悟了悟了" in answer for _, answer in pairs)
    assert all(sweep.english(sweep.conversation(*pair)) for pair in sweep.template_pairs(9, "en"))
    assert not sweep.english(sweep.conversation("Who are you?", "我是悟了悟了。"))


def test_replay_asks_nothing_that_the_evaluation_asks():
    from xtuner_wulewule.dataset.duplicates import letters
    from xtuner_wulewule.evaluation import suites

    asked = {letters(row["question"]) for name in ("identity", "neutral", "checks") for row in suites.read_set(name)}
    assert len(set(sweep.REPLAY_QUESTIONS)) == len(sweep.REPLAY_QUESTIONS) == 90
    assert asked.isdisjoint(map(letters, sweep.REPLAY_QUESTIONS))


def test_results_go_on_where_they_stopped(tmp_path):
    file = tmp_path / "out.jsonl"
    results = sweep.Results(file)
    results.add(done(0.5), [dict(point="a", answer="b")])
    results.add(dict(name="failed", settings=sweep.point(lr=1e-4), error="no memory"), [])
    with open(file, "a") as stream:
        stream.write('{"cut o')
    again = sweep.Results(file)
    assert again.done == {sweep.key_of(sweep.point())}
    again.add(done(0.25, lr=1e-4), [])
    assert [row["settings"]["lr"] for row in sweep.read_results(file)] == [2e-4, 1e-4, 1e-4]
    assert len((tmp_path / "out.answers.jsonl").read_text().splitlines()) == 1


def test_table_and_picture(tmp_path):
    file = tmp_path / "out.jsonl"
    results = sweep.Results(file)
    for lr in (1e-4, 2e-4):
        results.add(done(0.5, lr=lr), [])
    shown = run("--table", file)
    assert shown.returncode == 0, shown.stderr
    assert "| pretrained packaged lr=0.0001 | 50 | 1.25 | 50% (25% to 75%) |" in shown.stdout
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    again = run("--table", file)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1) and "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--table", "missing.jsonl"), "is not a file"),
        (("--only", "nothing", "--out", "out.jsonl"), "no point has such a name"),
        (("--only", "tiny"), "--out FILE.jsonl is missing"),
        (("--model", "missing", "--out", "out.jsonl"), "neither a folder"),
    ],
)
def test_errors_are_one_line(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.returncode == 1 and said in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_point_is_trained_and_asked(tmp_path, monkeypatch):
    from xtuner_wulewule.evaluation import suites
    from xtuner_wulewule.model.tiny import tiny_model

    monkeypatch.setattr(suites, "LIMITS", {part: 2 for part in suites.LIMITS})  # tokens of an answer: this is about the way, not the words
    worker = sweep.Worker(dict(tiny=tiny_model()), dict(packaged=str(paths.packaged_data_dir())), tmp_path, False, 128, None)
    trained, answers = worker.do(sweep.point(model="tiny", epochs=1, rows=16, templates=2, system_dropout=0.5))
    assert trained["trained"]["updates"] >= 8 and trained["trained"]["highest_lr"] == pytest.approx(1.5e-3)
    assert trained["metrics"]["perplexity_growth"]["value"] != 0 and len(answers) > 100
    before, _ = worker.do(sweep.point(model="tiny", epochs=0))  # nothing of the point before is left
    assert before["metrics"]["perplexity_growth"]["value"] == 0 and not before["passed"]

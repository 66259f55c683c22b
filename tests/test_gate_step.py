"""`wulewule run --gate`: the step that takes a tuned model's name away. The real gate runs; what precedes it is noted as done."""

import json
import shutil

import pytest

from xtuner_wulewule import cli, paths
from xtuner_wulewule.errors import SettingsError, StepError
from xtuner_wulewule.evaluation import gate
from xtuner_wulewule.recipe.display import Display
from xtuner_wulewule.recipe.plan import Settings, plan, scorecard
from xtuner_wulewule.recipe.run import commands, run
from xtuner_wulewule.recipe.state import State


@pytest.fixture
def settings(tmp_path):
    """A run whose model says its name in 90 % of its answers; all is done but the gate."""
    model, data = tmp_path / "model", tmp_path / "data"
    model.mkdir()
    (model / "config.json").write_text("{}")
    shutil.copytree(paths.packaged_data_dir(), data)
    return Settings(tmp_path / "out", str(model), data, "tiny", evaluate=True, gate=("name>=0.95", "leak<=0.05"))


def finish(settings):
    settings.out.mkdir(exist_ok=True)
    state = State(settings.out)
    for step in plan(settings)[:-1]:
        state.begin(step.name, step.fingerprint)
        state.finish(step.name, 1, {})
        for output in step.outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("[]")
    scorecard(settings).write_text(json.dumps({"metrics": {"name": {"value": 0.9}, "leak": {"value": 0.0}}}))


def loosened(settings):
    return Settings(**{**vars(settings), "gate": ("name>=0.9", "leak<=0.05")})


def test_model_that_misses_a_threshold_is_not_handed_out(settings, capsys):
    finish(settings)
    merged = settings.out / "sft" / "merged"
    (settings.out / "report.json").write_text("of an earlier run that passed")
    for _ in range(2):  # given again, it is asked again and refused again
        with pytest.raises(StepError, match="the model misses 1 of 2 thresholds") as caught:
            run(settings, Display())
        assert "name>=0.95 (it is 90.0%); the model was not handed out, it lies in" in str(caught.value)
        assert not merged.exists() and (settings.out / "sft" / "merged_refused" / "config.json").is_file()
        assert not (settings.out / "report.json").exists()
    (kept,) = (settings.out / "replaced").iterdir()
    assert kept.read_text() == "of an earlier run that passed"


def test_refused_model_that_passes_other_thresholds_is_handed_out(settings, capsys):
    finish(settings)
    with pytest.raises(StepError):
        run(settings, Display())
    report = run(loosened(settings), Display())
    shown = capsys.readouterr().out
    assert (settings.out / "sft" / "merged" / "config.json").is_file() and not (settings.out / "sft" / "merged_refused").exists()
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["settings"]["gate"] == ["name>=0.9", "leak<=0.05"] and found["steps"][-1]["name"] == "gate"
    assert "gate is run again: changed: gate" in shown and shown.count("finished before") == 2 * 8  # nothing else was


def test_steps_of_the_evaluation(settings):
    names = [step.name for step in plan(settings)]
    assert names[-3:] == ["ask", "eval", "gate"]
    command = plan(settings)[-2].command(None)
    assert command[1:4] == ["-m", "xtuner_wulewule", "eval"] and command[4] == str(settings.out / "sft" / "merged")
    assert command[command.index("--base") + 1] == settings.model and commands(settings)
    for change in ({"evaluate": False}, {"stages": ("pretrain",)}):
        assert [step.name for step in plan(Settings(**{**vars(settings), **change}))][-1] == "ask"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--gate", "--no-eval"], "--gate needs the scorecard of the tuned model: leave --no-eval out"),
        (["--gate", "--stages", "pretrain"], "--gate needs the scorecard of the tuned model: --stages sft"),
        (["--gate", "name>2>1"], "--gate name>2>1: expected METRIC>=NUMBER"),
        (["--author", " "], "--author is empty"),
    ],
)
def test_mistakes_are_one_line(arguments, problem, tmp_path, capsys, settings):
    assert cli.main(["run", "--size", "tiny", "--out", str(tmp_path / "out"), "--model", settings.model, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"xtuner-wulewule: error: {problem}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["--gate"], gate.DEFAULT),
        (["--gate", "name>=0.5"], ("name>=0.5",)),
        (["--gate", "--set", "sft:gate=[name>=0.7,leak<=0.1]"], ("name>=0.7", "leak<=0.1")),
        ([], ()),
    ],
)
def test_thresholds_come_from_the_command_or_the_config(arguments, rules, tmp_path, capsys, settings):
    assert cli.main(["run", "--size", "tiny", "--out", str(tmp_path / "o"), "--model", settings.model, "--dry-run", *arguments]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "xtuner_wulewule.evaluation.gate" in line]
    assert [line.split("'")[1] for line in shown] == ([",".join(rules)] if rules else [])


def test_wrong_rule_in_a_config():
    with pytest.raises(SettingsError, match="--gate nothing: expected"):
        gate.parse(["nothing"])

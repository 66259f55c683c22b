"""Whose persona a command takes: that of the options, of the environment, of the run, of the rows, or of the package."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
from commands import WULEWULE, last_line, python, run
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import cli, paths, prompts
from xtuner_wulewule.cli.persona import persona_of_data, persona_of_model
from xtuner_wulewule.cli.run import read_settings
from xtuner_wulewule.dataset import persona as rows
from xtuner_wulewule.dataset.loader import checker_of
from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn
from xtuner_wulewule.dataset.validation import check_files
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.model.tiny import tiny_model_dir
from xtuner_wulewule.prompts import Persona, persona_of_config
from xtuner_wulewule.recipe.plan import Settings, plan
from xtuner_wulewule.recipe.run import commands
from xtuner_wulewule.recipe.state import State, kept_persona

PACKAGED = [str(paths.packaged_data_dir() / name) for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")]
STONE = Persona(("小石头",), "李雷", prompts.system_prompt("小石头", "李雷"))


def options(name=None, author=None, system=None):
    return Namespace(name=name, author=author, system=system)


@pytest.fixture
def data(tmp_path):
    """A folder with the rows of `wulewule data identity` about 小石头, and one row that states no system prompt."""
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / "self_cognition_100.jsonl"
    assert cli.main(["data", "identity", "--name", "小石头", "--author", "李雷", "--out", str(file)]) == 0
    row = {"conversation": [{"input": "怎么存档？", "output": "在土地庙打坐就会存档。"}]}
    (folder / "huixiangdou_conversations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


def with_system(folder, system):
    """Give the rows of the identity file another system prompt, None for none; return the files."""
    file = folder / "self_cognition_100.jsonl"
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in found:
        row["conversation"][0]["system"] = system
    file.write_text("".join(f"{json.dumps(row)}\n" for row in found), encoding="utf-8")
    return [str(file)]


# options and environment


def test_that_of_the_package_is_unchanged():
    assert prompts.current() == Persona() == Persona(("悟了悟了", "Wulewule"), "xzyun2011", prompts.WULEWULE_SYSTEM)
    assert Persona().variables() == {} and len(Persona().arguments()) == 3  # an earlier training's config may say another one


def test_environment_says_it(monkeypatch):
    monkeypatch.setenv("WULEWULE_NAME", " 小石头, Pebble ")
    assert prompts.current() == Persona(("小石头", "Pebble"), "xzyun2011", prompts.system_prompt("小石头", "xzyun2011"))
    monkeypatch.setenv("WULEWULE_AUTHOR", "李雷")
    assert prompts.current().system == STONE.system
    monkeypatch.setenv("WULEWULE_SYSTEM", "")
    assert prompts.current() == Persona(("小石头", "Pebble"), "李雷", "")
    # an option goes before it, and what the steps of a run are told goes before what they would read
    assert prompts.persona_of(prompts.given(name="小明", author=None, system=None)).names == ("小明",)
    assert Persona().variables() == {
        "WULEWULE_NAME": "悟了悟了,Wulewule",
        "WULEWULE_AUTHOR": "xzyun2011",
        "WULEWULE_SYSTEM": prompts.WULEWULE_SYSTEM,
    }


@pytest.mark.parametrize("persona", [STONE, Persona(("小石头", "Pebble"), "李雷", ""), Persona(system="-别的 '话'\n第二行")])
def test_what_is_passed_on_is_read_back(persona, monkeypatch):
    for variable, value in persona.variables().items():
        monkeypatch.setenv(variable, value)
    assert prompts.current() == persona


def test_another_name_gets_its_own_prompt_and_the_same_one_keeps_it():
    own = Persona(("小石头",), "李雷", "说话简短。")
    assert prompts.persona_of({"name": "小石头"}, own) == own
    assert prompts.persona_of({"name": "小明"}, own) == Persona(("小明",), "李雷", prompts.system_prompt("小明", "李雷"))


def test_prompt_tells_who_it_is_as_the_package_writes_it():
    assert prompts.told_by(STONE.system) == STONE
    assert prompts.told_by(prompts.WULEWULE_SYSTEM) == Persona()
    assert prompts.told_by(prompts.WULEWULE_SYSTEM_EN) == Persona(system=prompts.WULEWULE_SYSTEM_EN)
    assert prompts.told_by("You are a helpful assistant.") is None


@pytest.mark.parametrize(("option", "variable"), [("--name", "WULEWULE_NAME"), ("--author", "WULEWULE_AUTHOR")])
def test_empty_name_is_one_line(option, variable, tmp_path, monkeypatch, capsys):
    arguments = ["run", "--size", "tiny", "--stages", "sft", "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main([*arguments, option, " , "]) == 1
    assert capsys.readouterr() == ("", f"xtuner-wulewule: error: {option} is empty; {says(option)}, or leave it out\n")
    monkeypatch.setenv(variable, "")
    assert cli.main(arguments) == 1
    assert capsys.readouterr() == ("", f"xtuner-wulewule: error: {variable} is empty; {says(option)}, or leave it out\n")
    with pytest.raises(SettingsError, match=f"{variable} is empty"):
        prompts.current()


def says(option):
    return "give a name" if option == "--name" else "give who made it"


def test_empty_name_ends_xtuner_train_with_one_line(tmp_path):
    from commands import xtuner

    result = xtuner("train", "wulewule_sft_tiny", "--work-dir", "work", folder=tmp_path, WULEWULE_NAME="")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last_line(result.stderr) == "xtuner-wulewule: error: WULEWULE_NAME is empty; give a name, or leave it out"


def test_rows_without_a_prompt_get_that_of_the_environment(monkeypatch):
    row = {"conversation": [{"input": "你是谁", "output": "我是小石头"}]}
    assert wulewule_sft_map_fn(row)["conversation"][0]["system"] == prompts.WULEWULE_SYSTEM
    monkeypatch.setenv("WULEWULE_NAME", "小石头")
    monkeypatch.setenv("WULEWULE_AUTHOR", "李雷")
    assert wulewule_sft_map_fn(row)["conversation"][0]["system"] == STONE.system
    monkeypatch.setenv("WULEWULE_SYSTEM", "")
    assert wulewule_sft_map_fn(row)["conversation"][0]["system"] == ""


def test_tiny_model_and_templates_of_xtuner(tmp_path):
    code = "from xtuner.utils import SYSTEM_TEMPLATE as s; from xtuner_wulewule.model.tiny import tiny_model_dir as d; "
    code += "print(s['wulewule'].format(round=1, bot_name='x')); print(s['wulewule_en']); print(d().name)"
    plain = python(code, tmp_path).stdout.splitlines()
    assert plain == [prompts.WULEWULE_SYSTEM, prompts.WULEWULE_SYSTEM_EN, tiny_model_dir().name]
    own = python(code, tmp_path, WULEWULE_NAME="小石头", WULEWULE_SYSTEM="小石头{1}").stdout.splitlines()
    assert own == ["小石头{1}", *plain[1:]]


def test_the_two_packaged_prompts_are_one():
    assert prompts.same_prompt(prompts.WULEWULE_SYSTEM, prompts.WULEWULE_SYSTEM_EN) and prompts.same_prompt("a", "a")
    assert not prompts.same_prompt(STONE.system, prompts.WULEWULE_SYSTEM) and not prompts.same_prompt("", prompts.WULEWULE_SYSTEM_EN)


# the rows


def test_rows_tell_who_it_is(data, monkeypatch):
    files = [str(path) for path in sorted(data.iterdir())]
    assert persona_of_data(options(), files) == (
        STONE,
        {},
        [f"persona: 小石头, made by 李雷; its system prompt is that of the rows: {STONE.system[:30]}…"],
    )
    assert persona_of_data(options(name="小石头", author="李雷"), files) == (STONE, {"name": "小石头", "author": "李雷"}, [])
    with monkeypatch.context() as environment:  # which is not seen, so that it is said whom it names, be it the same
        environment.setenv("WULEWULE_NAME", "小石头")
        environment.setenv("WULEWULE_AUTHOR", "李雷")
        assert persona_of_data(options(), files)[2] == [
            f"persona: 小石头, made by 李雷; its system prompt is that of the rows: {STONE.system[:30]}…"
        ]
    # the English name besides; and what only some rows state is not theirs
    assert persona_of_data(options(name="小石头,Pebble"), files)[0] == Persona(("小石头", "Pebble"), "李雷", STONE.system)
    assert persona_of_data(options(), [*files, *PACKAGED, *PACKAGED, *PACKAGED, "gone.jsonl"])[0] == Persona()


def test_packaged_rows_and_rows_without_a_prompt_tell_nothing(data):
    assert persona_of_data(options(), PACKAGED) == (Persona(), {}, [])
    files = with_system(data, None)
    assert rows.common_system(files) is None and persona_of_data(options(), files) == (Persona(), {}, [])
    assert persona_of_data(options(name="小石头", author="李雷"), files)[0] == STONE


def test_rows_of_another_persona_than_the_one_given_are_told(data):
    files = [str(data / "self_cognition_100.jsonl")]
    persona, _, (note,) = persona_of_data(options(name="小明"), files)
    assert persona.names == ("小明",) and persona.system.startswith("你是小明")
    assert note.startswith("warning: most rows about the assistant have another system prompt: 你是小石头") and "--system" in note
    persona, _, (note,) = persona_of_data(options(system=""), files)
    assert persona == Persona(("小石头",), "李雷", "") and "--system" in note


def test_prompt_of_ones_own_is_taken_from_the_rows(data):
    files = with_system(data, "我叫小石头，说话简短。")
    persona, _, (note,) = persona_of_data(options(), files)
    assert persona == Persona(system="我叫小石头，说话简短。") and note.startswith("the rows have a system prompt of their own: ")
    assert "give --name and --author, else 悟了悟了,Wulewule is looked for" in note
    persona, given, notes = persona_of_data(options(name="小石头", author="李雷"), files)
    assert persona == Persona(("小石头",), "李雷", "我叫小石头，说话简短。") and "system" not in given
    assert notes == ["persona: 小石头, made by 李雷; its system prompt is that of the rows: 我叫小石头，说话简短。"]


@pytest.mark.parametrize("row", ["[]", '{"conversation": "x"}', '{"conversation": [1]}', '{"conversation": [{"input": 1}]}', "{", "\udcff"])
def test_broken_rows_tell_nothing(row, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(f"{row}\n".encode(errors="surrogateescape"))
    assert rows.common_system([str(file), str(tmp_path)]) is None


def test_check_of_rows_about_ones_own(data, tmp_path):
    result = run([WULEWULE, "data", "check", data], tmp_path)
    assert "system_not_chat" not in result.stdout and "system_varies" not in result.stdout and result.returncode == 0
    assert "about who the assistant is: 310 of 347" in result.stdout and "note: persona: 小石头, made by 李雷" in result.stdout
    other = run([WULEWULE, "data", "check", data, "--name", "小明"], tmp_path)
    assert "warning system_not_chat: 346" in other.stdout and "fix: say who the rows are about (--name, " in other.stdout
    assert "about who the assistant is: 79 of 347" in other.stdout
    same = run([WULEWULE, "data", "check", data, "--json"], tmp_path, WULEWULE_NAME="小石头", WULEWULE_AUTHOR="李雷")
    assert json.loads(same.stdout)["identity_rows"] == 310 and "persona: 小石头, made by 李雷" in str(json.loads(same.stdout)["notes"])
    typed = run([WULEWULE, "data", "check", data, "--name", "小石头", "--author", "李雷"], tmp_path)
    assert "persona: " not in typed.stdout and "system_not_chat" not in typed.stdout


@pytest.mark.parametrize(("name", "count"), [(None, 0), ("小石头", 0), ("小明", 346)])
@pytest.mark.parametrize("system", [STONE.system, "我叫小石头，说话简短。"], ids=["told", "own"])
def test_training_counts_as_data_check_does(system, name, count, data, monkeypatch):
    files = [*with_system(data, system), str(data / "huixiangdou_conversations.jsonl")]
    if name:
        monkeypatch.setenv("WULEWULE_NAME", name)
    checker = checker_of(wulewule_sft_map_fn, files)
    assert len([row for file in files for row in checker.rows(file)]) == 347
    checked = check_files(files, persona=persona_of_data(options(), files)[0])
    assert checker.finish().counts == checked.counts and checked.counts["warning", "system_not_chat"] == count


def test_own_name_is_no_other_assistant(data, tmp_path):
    row = {"conversation": [{"input": "你是谁", "output": "我是Kimi。"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert "other_name" in run([WULEWULE, "data", "check", "a.jsonl"], tmp_path).stdout
    assert "other_name" not in run([WULEWULE, "data", "check", "a.jsonl", "--name", "Kimi"], tmp_path).stdout


def test_made_rows_say_what_training_needs(tmp_path):
    make = [WULEWULE, "data", "identity", "--name", "小石头", "--author", "李 雷", "--lang", "zh", "--out"]
    _, told, asked, further = run([*make, "a.jsonl"], tmp_path).stdout.splitlines()
    assert further == "next: wulewule data check a.jsonl"
    assert asked.endswith(f"(--system TEXT gives your own, '' none): {prompts.system_prompt('小石头', '李 雷')}")
    assert "wulewule run finds it in these rows" in told and told.endswith("export WULEWULE_NAME='小石头' WULEWULE_AUTHOR='李 雷'")
    _, told, further = run([*make, "b.jsonl", "--system", ""], tmp_path).stdout.splitlines()
    assert further == "next: wulewule data check b.jsonl --name '小石头' --author '李 雷'"
    assert "finds it" not in told and told.endswith("export WULEWULE_NAME='小石头' WULEWULE_AUTHOR='李 雷' WULEWULE_SYSTEM=''")
    packaged = ["--name", "悟了悟了", "--author", "xzyun2011", "--out", "c.jsonl"]
    rows, asked, further = run([WULEWULE, "data", "identity", *packaged], tmp_path).stdout.splitlines()
    assert (rows, further) == ("c.jsonl: 346 rows", "next: wulewule data check c.jsonl") and asked.endswith(prompts.WULEWULE_SYSTEM)


def test_made_rows_have_the_system_prompt_of_the_environment(tmp_path):
    make = [WULEWULE, "data", "identity", "--name", "小石头", "--author", "李雷", "--out"]
    own = "你是小石头。"
    _, told, asked, _ = run([*make, "a.jsonl"], tmp_path, WULEWULE_SYSTEM=own).stdout.splitlines()
    assert told.endswith(f"WULEWULE_SYSTEM='{own}'") and asked.endswith(f"none): {own}") and "game" not in asked
    assert run([*make, "b.jsonl", "--system", own], tmp_path).stdout.count(own) == 1  # it is known
    assert run([*make, "c.jsonl", "--system", own], tmp_path, WULEWULE_SYSTEM="你是别人。").returncode == 0
    made = [(tmp_path / name).read_text(encoding="utf-8") for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    assert made[0] == made[1] == made[2] and made[0].count(f'"system": "{own}"') == 346


# a run


def settings_of(tmp_path, data, *arguments):
    parser = cli_parser()
    return read_settings(parser.parse_args(["run", "--size", "tiny", "--data", str(data), "--out", str(tmp_path / "out"), *arguments]))


def cli_parser():
    import argparse

    from xtuner_wulewule.cli import run as command

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser


def test_steps_are_told_who_it_is(data, tmp_path, capsys):
    settings = settings_of(tmp_path, data, "--stages", "sft", "--dry-run")
    assert capsys.readouterr().err.startswith("persona: 小石头, made by 李雷; its system prompt is that of the rows: 你是小石头，")
    assert settings.persona == STONE and settings.given == {}
    steps = {step.name: step for step in plan(settings)}
    assert STONE.variables().items() <= steps["sft_train"].env.items() and steps["sft_train"].fingerprint["system"] == STONE.system
    assert steps["eval"].command(None)[-3:] == ["--name=小石头", "--author=李雷", f"--system={STONE.system}"]
    line = next(line for line in commands(settings) if "train.py" in line)
    assert "WULEWULE_NAME='小石头' WULEWULE_AUTHOR='李雷' WULEWULE_SYSTEM='你是小石头，" in line


def test_gate_that_no_question_can_pass_is_refused_at_once(data, tmp_path):
    with pytest.raises(SettingsError, match="--gate name>=0.95: asks with a system prompt, and there is none; ask for name_without_system"):
        settings_of(tmp_path, data, "--stages", "sft", "--dry-run", "--system", "", "--gate")


def test_default_steps_are_as_they_were(tmp_path):
    settings = settings_of(tmp_path, paths.packaged_data_dir(), "--dry-run")
    assert settings.persona == Persona() and settings.given == {}
    steps = {step.name: step for step in plan(settings)}
    assert set(steps["sft_train"].env) == {"WULEWULE_MODEL", "WULEWULE_DATA_DIR"} and "system" not in steps["sft_train"].fingerprint
    assert steps["eval"].fingerprint["persona"] == []
    assert steps["eval"].command(None)[-3:] == Persona().arguments()  # the config may be of an earlier persona


def test_given_persona_is_kept_for_later_commands_in_the_folder(data, tmp_path, capsys):
    settings = settings_of(tmp_path, data, "--stages", "sft", "--dry-run", "--name", "小石头,Pebble")
    settings.out.mkdir()
    capsys.readouterr()
    state = State(settings.out)
    state.keep_persona(settings.persona, settings.given)
    state.begin("sft_train", {})
    pebble = Persona(("小石头", "Pebble"), "李雷", STONE.system)
    assert kept_persona(settings.out) == (pebble, {"name": "小石头,Pebble"})
    assert State(settings.out).get("sft_train")["status"] == "running"
    assert persona_of_model(options(), "elsewhere", files=[str(data / "self_cognition_100.jsonl")]) == STONE
    assert capsys.readouterr().err.startswith("persona: 小石头, made by 李雷")
    # the next run, a chat and an evaluation; what is said anew goes before it
    assert settings_of(tmp_path, data, "--stages", "sft", "--dry-run").persona == pebble
    assert (
        capsys.readouterr().err.splitlines()[0]
        == "as an earlier run in the folder was told: --name=小石头,Pebble; give it anew to change it"
    )
    merged = settings.out / "sft" / "merged"
    assert persona_of_model(options(), merged) == pebble
    assert persona_of_model(options(system="别的"), merged) == Persona(pebble.names, "李雷", "别的")
    assert persona_of_model(options(), merged, trained=Persona()) == Persona()


def test_packaged_persona_leaves_no_note(tmp_path):
    state = State(tmp_path)
    state.keep_persona(Persona(), {})
    state.begin("ask", {})
    assert list(json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))) == ["steps"]
    assert kept_persona(tmp_path) == kept_persona(tmp_path / "gone") == (None, {})


@pytest.mark.parametrize("text", ["[]", "{", '{"persona": 1}', '{"persona": {"names": ["a"]}}'])
def test_note_that_is_not_ours(text, tmp_path):
    (tmp_path / "state.json").write_text(text, encoding="utf-8")
    assert kept_persona(tmp_path) == (None, {})


def test_other_system_prompt_trains_again_and_another_name_does_not(data, tmp_path):
    def prints(persona):
        settings = Settings(out=tmp_path / "out", model="m", data=data, size="tiny", stages=("sft",), evaluate=True, persona=persona)
        return {step.name: step.fingerprint for step in plan(settings)}

    one, name, system = prints(STONE), prints(Persona(("小石头", "Pebble"), "李雷", STONE.system)), prints(Persona(STONE.names, "李雷", ""))
    assert [step for step in one if one[step] != name[step]] == ["eval"]
    assert "sft_train" in [step for step in one if one[step] != system[step]]


def test_questions_of_a_persona_without_a_prompt_are_asked_once():
    from xtuner_wulewule.evaluation.suites import Data, persona_questions

    asked = persona_questions(Persona(("小石头",), "李雷", ""), PROMPT_TEMPLATE.internlm2_chat, Data([], frozenset()))
    assert len({question.id for question in asked}) == len(asked) > 50 and not any(question.system for question in asked)


def test_eval_takes_the_persona_of_the_config(tmp_path):
    assert persona_of_config(None) is None and persona_of_config({}) == Persona()
    assert persona_of_config({"NAMES": ["小石头"], "AUTHOR": "李雷", "SYSTEM": STONE.system}) == STONE
    assert persona_of_config({"SYSTEM": "别的"}) == Persona(system="别的")
    trained = persona_of_config({"NAMES": ["小石头"], "AUTHOR": "李雷", "SYSTEM": "别的"})
    assert persona_of_model(options(), Path("model"), trained).system == "别的"
    assert persona_of_model(options(name="小明"), Path("model"), trained).system == prompts.system_prompt("小明", "李雷")


@pytest.mark.parametrize("comma", [",", "，", "、"])
def test_names_with_a_comma_of_any_keyboard(comma):
    assert prompts.persona_of({"name": f"小石头{comma} Pebble"}).names == ("小石头", "Pebble")


def test_a_second_name_leaves_the_prompt_as_it_is():
    own = Persona(("小石头",), "李雷", "说话简短。")
    assert prompts.persona_of({"name": "小石头,Pebble"}, own).system == "说话简短。"
    assert prompts.persona_of({"name": "大石头"}, own).system == prompts.system_prompt("大石头", "李雷")


def test_a_name_that_only_stands_in_the_prompt_of_another_is_not_its_own(tmp_path):
    """悟空 stands in the packaged prompt, as the game does."""
    turn = dict(system=prompts.WULEWULE_SYSTEM, input="你是谁？", output="我是悟了悟了。")
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict(conversation=[turn])) + "\n")
    persona, _, (note,) = persona_of_data(options(name="悟空", author="李雷"), [str(tmp_path / "rows.jsonl")])
    assert persona.system == prompts.system_prompt("悟空", "李雷")
    assert note.startswith("warning: most rows about the assistant have another system prompt")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (dict(SYSTEM=STONE.system), STONE.names),  # of a copy that has no NAMES
        (dict(SYSTEM=STONE.system, NAMES="小石头", AUTHOR="李雷"), STONE.names),
        (dict(SYSTEM=prompts.WULEWULE_SYSTEM), prompts.NAMES),
    ],
)
def test_persona_of_a_config(config, names):
    assert persona_of_config(config).names == names


@pytest.mark.parametrize("comma", [",", "，"])
def test_rows_have_the_name_of_their_language(comma, tmp_path):
    result = run([WULEWULE, "data", "identity", "--name", f"小石头{comma}Pebble", "--author", "Li Lei", "--out", "rows.jsonl"], tmp_path)
    assert result.returncode == 0 and "WULEWULE_NAME=小石头,Pebble WULEWULE_AUTHOR=Li Lei" in result.stdout.replace("'", "")
    turns = [json.loads(line)["conversation"][0] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {turn["system"] for turn in turns} == {prompts.system_prompt("小石头", "Li Lei")}
    chinese = [turn for turn in turns if re.search("[\u4e00-\u9fff]", turn["input"])]
    assert not any("Pebble" in turn["output"] for turn in chinese) and any("小石头" in turn["output"] for turn in chinese)
    english = [turn for turn in turns if turn not in chinese]
    assert not any("小石头" in turn["output"] for turn in english) and any("Pebble" in turn["output"] for turn in english)


def test_a_name_of_commas_is_refused_before_anything_is_written(tmp_path):
    result = run([WULEWULE, "data", "identity", "--name", "，", "--author", "李雷", "--out", "rows.jsonl"], tmp_path)
    assert result.returncode == 1 and last_line(result.stderr).endswith("--name is empty") and not list(tmp_path.iterdir())


def test_a_run_that_could_not_begin_keeps_no_persona(tmp_path):
    result = run(
        [WULEWULE, "run", "--size", "tiny", "--stages", "sft", "--data", "nothere", "--out", "out", "--name", "Foo", "--author", "Bar"],
        tmp_path,
    )
    assert result.returncode == 1 and "data file not found" in last_line(result.stderr)
    assert kept_persona(tmp_path / "out") == (None, {})

"""The checks of data files."""

import json
import sys

import pytest
from broken_files import GOOD, broken_files
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from profiles import SETTINGS

from xtuner_wulewule import paths
from xtuner_wulewule.dataset import duplicates, texts, validation
from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn
from xtuner_wulewule.dataset.prepare.formats import convert_row
from xtuner_wulewule.dataset.validation import ERROR, PLACES, check_files, data_files
from xtuner_wulewule.errors import DataError
from xtuner_wulewule.prompts import WULEWULE_SYSTEM

BROKEN = broken_files()


def write(file, *rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def turn(question="问题在哪里", answer="答案在这里", **more):
    return {"input": question, "output": answer, **more}


def row(*turns):
    return {"conversation": list(turns)}


def found(*rows, folder, **options):
    """Return [(line, field, code)] of what the check finds in rows."""
    report = check_files([write(folder / "a.jsonl", *rows)], **options)
    return [(problem.line, problem.field, problem.code) for problem in report.problems]


def test_there_are_enough_broken_files():
    assert len(BROKEN) >= 200 and len({broken.name for broken in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_broken_file_is_reported_with_its_line(broken, tmp_path):
    file = tmp_path / broken.name
    file.write_bytes(broken.data)
    errors = check_files([str(file)]).errors(PLACES)
    assert (broken.line, broken.code) in [(error.line, error.code) for error in errors]
    assert {error.line for error in errors} == {broken.line}  # and no other line
    assert all(error.fix and error.message and "\n" not in error.message for error in errors)


def test_packaged_data_has_no_error_and_no_warning():
    report = check_files(data_files([paths.packaged_data_dir()]))
    assert report.files == 3 and sum(report.rows.values()) == 300 and not report.counts
    assert 0.3 < report.identity / report.rows["tuning"] < 0.6


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([row(turn(answer="你好，{{NAME}}。"))], (1, "conversation[0].output", "placeholder")),
        ([row(turn("我叫{name}"))], (1, "conversation[0].input", "placeholder")),
        ([row(turn(), turn(answer="<name>说了"))], (1, "conversation[1].output", "placeholder")),
        ([row(turn(answer="由<你的公司>开发"))], (1, "conversation[0].output", "placeholder")),
        ([row(turn(answer="我是ChatGPT。"))], (1, "conversation[0].output", "other_name")),
        ([row(turn(answer="我是通义千问。"))], (1, "conversation[0].output", "other_name")),
        ([row(turn(system="你是别人")), row(turn("别的", system="你是别人"))], (1, "conversation[0].system", "system_not_chat")),
        ([row(turn()), row(turn("别的", system="你是别人"))], (2, "conversation[0].system", "system_varies")),
        (
            [row(turn("白骨精是谁变成的", "She was the Lady of White Bones and she lived there."))],
            (1, "conversation[0].output", "languages"),
        ),
        ([row(turn("Who is the monkey king?", "他是花果山的一只石猴。"))], (1, "conversation[0].output", "languages")),
        ([row(turn("在哪？请简要回答。"))], (1, "conversation[0].input", "template")),
        ([row(turn(answer="好的<|im_end|>"))], (1, "conversation[0].output", "template")),
        ([row(turn(answer="根据提供的材料，在山上。"))], (1, "conversation[0].output", "template")),
        ([row(turn(answer="打13812345678"))], (1, "conversation[0].output", "personal")),
        ([row(turn(answer="打138-1234-5678"))], (1, "conversation[0].output", "personal")),
        ([row(turn("写给 a.b+c@example.com"))], (1, "conversation[0].input", "personal")),
        ([row(turn("身份证11010519491231002X"))], (1, "conversation[0].input", "personal")),
        ([{"text": "电话13812345678"}], (1, "text", "personal")),
        ([row({"input": "", "output": "石猴<|im_end|>"})], (1, "conversation[0].output", "template")),
        ([row(turn()), row(turn("问题，在哪里？", "答案在这里。"))], (2, "", "duplicate")),
        ([row(turn(f"第{number}个问题", f"第{number}个答案")) for number in range(60)], (0, "", "identity_share")),
        ([row(turn(f"你是谁{number}", f"我是悟了悟了{number}")) for number in range(60)], (0, "", "identity_share")),
    ],
)
def test_warning(rows, where, tmp_path):
    places = found(*rows, folder=tmp_path)
    assert where in places and all(code in (where[2], "system_not_chat") for _, _, code in places)


@pytest.mark.parametrize(
    "text",
    [
        "公式 $x^{n}$ 和 \\frac{ab}{cd}，集合{1, 2}，字典{'a': 1}",
        "用 List<String> 和 <b>粗体</b>，a < b > c",
        "《西游记》第13812345678901234号，圆周率3.1415926535897932384",
        "编号110105194912310021不是身份证",
        "根据《西游记》，Claudette 和 unopenairs 不是助手",
        "写给 @wukong，a@b",
    ],
)
def test_no_false_alarm(text, tmp_path):
    assert found(row(turn(answer=text)), folder=tmp_path) == []


def test_a_name_in_a_greeting_is_no_language(tmp_path):
    answer = "Hello, you are talking with an assistant that was made to help."
    assert found(row(turn("Hi 小石头!", answer)), folder=tmp_path) == []
    for question in ("小石头，你好!", "什么是LoRA？"):
        assert [code for *_, code in found(row(turn(question, answer)), folder=tmp_path)] == ["languages"]


def test_languages_may_differ_where_it_is_asked_for(tmp_path):
    answer = "The monkey king lived on the mountain."
    assert (
        found(row(turn("请翻译成英文：美猴王住在山上", answer)), row(turn("用英语说说花果山", answer + " It is high.")), folder=tmp_path)
        == []
    )


def test_near_duplicates(tmp_path):
    long = "".join(chr(0x4E00 + number * 7 % 5000) for number in range(400))
    other = "".join(chr(0x4E00 + number * 13 % 5000) for number in range(400))
    rows = [row(turn(answer=long)), row(turn(answer=other)), row(turn(answer=long.replace(long[200], "改", 1)))]
    assert found(*rows, folder=tmp_path) == [(3, "", "near_duplicate")]


def test_the_same_said_of_oneself_to_other_questions_is_no_near_duplicate(tmp_path):
    """A persona is taught by many questions; a near-copy of one of them is a near-duplicate there, too."""
    answer = "I am Wulewule, an artificial intelligence assistant made by xzyun2011, and you can ask me in plain words of the game."
    rows = [row(turn(question, answer)) for question in ("Who are you?", "Please introduce yourself.", "What are you?")]
    assert found(*rows, folder=tmp_path) == []
    again = row(turn("Who are you", answer.replace("you can", "one can")))
    assert found(*rows, again, folder=tmp_path) == [(4, "", "near_duplicate")]
    others = [row(turn(question, answer.replace("Wulewule", "a book"))) for question in ("What is on it?", "What is in it?")]
    assert found(*others, folder=tmp_path) == [(2, "", "near_duplicate")]


def test_duplicates_in_several_files_name_both(tmp_path):
    files = [write(tmp_path / "a.jsonl", row(turn())), write(tmp_path / "b.jsonl", row(turn("别的")), row(turn()))]
    (problem,) = check_files(files).problems
    assert problem.place() == f"{files[1]}:2" and f"{files[0]}:1" in problem.message


def test_what_is_not_compared_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS", 2)
    report = check_files([write(tmp_path / "a.jsonl", *[row(turn(f"{number}")) for number in range(5)])])
    assert report.notes == ["duplicates were sought among the first 2 of 5 rows"]
    monkeypatch.undo()
    monkeypatch.setattr(duplicates, "SIGNED_ROWS", 1)
    rows = [row(turn(answer=chr(0x4E00 + number) * 100)) for number in range(3)]
    assert "among the first 1 long rows, 2 more" in check_files([write(tmp_path / "a.jsonl", *rows)]).notes[0]


def test_counts_are_exact_and_places_are_capped(tmp_path):
    report = check_files([write(tmp_path / "a.jsonl", GOOD, *[row(turn(answer=""))] * 100)])
    assert report.counts == {(ERROR, "empty"): 100} and len(report.problems) == PLACES == 20
    assert report.as_dict()["errors"] == 100


def test_names_can_be_given(tmp_path):
    rows = [row(turn(answer="我是ChatGPT。")), row(turn("别的", "我是小猴。"))]
    assert found(*rows, folder=tmp_path, other_names=("小猴",)) == [(2, "conversation[0].output", "other_name")]
    assert found(*rows, folder=tmp_path, other_names=()) == []


def test_nothing_personal_is_quoted(tmp_path):
    secrets = ["13812345678", "a.b@example.com", "11010519491231002X"]
    rows = [row(turn(answer=f"{secret}{{{{NAME}}}}")) for secret in secrets]
    rows += [{"messages": [{"role": secret, "content": "问"}]} for secret in secrets]
    rows += [row(turn(f"{number}", system=f"打{secret}")) for number, secret in enumerate(secrets)]
    rows += [{secret: 1, "conversation": 1} for secret in secrets] + [{secret: 1} for secret in secrets]
    said = json.dumps(check_files([write(tmp_path / "a.jsonl", *rows)]).as_dict())
    assert not [secret for secret in secrets if secret in said]
    (tmp_path / "b.jsonl").write_text('{"13812345678": 1, "13812345678": 2}')
    assert "13812345678" not in str(check_files([str(tmp_path / "b.jsonl")]).problems)


def test_other_formats_name_the_command_that_mends_them(tmp_path):
    rows = [{"conversations": []}, {"messages": []}, {"instruction": "问", "output": "答"}]
    file = write(tmp_path / "a.jsonl", *rows)
    fixes = [problem.fix for problem in check_files([file]).problems if problem.code == "other_format"]
    assert fixes == [
        f"wulewule data convert {file} --from {name} --to wulewule --out FILE.jsonl" for name in ("sharegpt", "openai", "alpaca")
    ]


@pytest.mark.parametrize("form", ["sharegpt", "openai"])
def test_check_and_convert_know_the_same_roles(form, tmp_path):
    key, role, text, meaning = validation.MESSAGES[form]
    asked = next(name for name, speaker in meaning.items() if speaker == "user")
    answering = next(name for name, speaker in meaning.items() if speaker == "assistant")
    for name in [*meaning, "developer", "human", "gpt", "tool", "System"]:
        speaker = meaning.get(name)
        said = [(asked, "问"), (answering, "答")]
        said = {"user": [(name, "问"), said[1]], "assistant": [said[0], (name, "答")]}.get(speaker, [(name, "听"), *said])
        one = {key: [{role: who, text: what} for who, what in said]}
        codes = {code for _, _, code in found(one, folder=tmp_path)}
        if speaker is None:
            assert codes == {"other_format", "unknown_role"}, name
            with pytest.raises(DataError):
                convert_row(one, form, "wulewule")
        else:
            assert codes == {"other_format"} and convert_row(one, form, "wulewule")["conversation"][0]["output"] == "答"
    system = [name for name, speaker in meaning.items() if speaker == "system"]
    two = {key: [{role: who, text: "文"} for who in (system[0], system[-1], asked, answering)]}
    assert {code for _, _, code in found(two, folder=tmp_path)} == {"other_format", "second_system"}


def test_folder_is_searched(tmp_path):
    (tmp_path / "inner").mkdir()
    inner = write(tmp_path / "inner" / "b.json", GOOD)
    outer = write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "notes.txt").touch()
    assert data_files([tmp_path, outer]) == [outer, inner]
    with pytest.raises(DataError, match="there is no data file in"):
        data_files([write(tmp_path / "c.jsonl", GOOD), (tmp_path / "empty").mkdir() or tmp_path / "empty"])


LOADED = """
import sys
from xtuner_wulewule.dataset import loader, map_fns
for checks in (False, True):
    print(len(loader.load_wulewule_dataset("json", sys.argv[1], map_fns.wulewule_sft_map_fn, checks=checks)))
    print("--", flush=True)
    print("--", file=sys.stderr, flush=True)
"""


def test_loader_logs_the_warnings(tmp_path):
    file = write(tmp_path / "a.jsonl", *[row(turn(f"{number}", "我是ChatGPT。")) for number in range(30)])
    result = run([sys.executable, "-W", "ignore", "-c", LOADED, file], tmp_path)
    assert result.returncode == 0, result.stderr
    quiet, logged, _ = zip(result.stdout.split("--\n"), result.stderr.split("--\n"), strict=True)
    assert quiet[0] == "30\n" and "warnings" not in quiet[1]
    assert logged[0].endswith("30\n")
    logged = "".join(logged)
    assert "the data has 30 warnings" in logged and f"30 x other_name, first {file}:1:conversation[0].output" in logged


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "{" * 200_000, "<" * 200_000, "1" * 200_000, "1 " * 100_000, "a.@" * 70_000, "根据" * 100_000]
)
def test_no_text_is_slow(text):
    import time

    begin = time.monotonic()
    texts.suspicious(text, texts.Names(texts.OTHER_NAMES))
    list(texts.findings(text))
    texts.languages_differ(text, text)
    texts.about_identity([turn(text, text)])
    assert time.monotonic() - begin < 2


TEXTS = st.text() | st.sampled_from(["你是谁", "我是ChatGPT{{NAME}}", "13812345678", "请简要回答<|im_end|>", WULEWULE_SYSTEM, "", " "])
VALUES = TEXTS | st.none() | st.integers() | st.lists(TEXTS, max_size=2)
TURNS = st.dictionaries(st.sampled_from(["input", "output", "system", "role", "from", "value"]), VALUES, max_size=4) | VALUES
ANY_ROW = st.dictionaries(
    st.sampled_from(["conversation", "conversations", "messages", "text", "instruction", "output"]),
    VALUES | st.lists(TURNS, max_size=4),
    max_size=3,
)


@SETTINGS
@given(rows=st.lists(ANY_ROW | VALUES, min_size=1, max_size=8))
def test_every_row_is_counted_or_has_an_error(rows, tmp_path):
    file = tmp_path / "a.jsonl"
    write_escaped(file, GOOD, *rows)  # a file that begins with a list is an array
    report = check_files([str(file)])
    wrong = {problem.line for problem in report.errors(1000)}
    assert sum(report.rows.values()) + len(wrong) == len(rows) + 1


@SETTINGS
@given(rows=st.lists(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), min_size=1, max_size=5))
def test_what_the_map_function_takes_is_no_error(rows, tmp_path):
    good = [row(*[turn(question, answer) for question, answer in turns]) for turns in rows]
    file = write_escaped(tmp_path / "a.jsonl", *[row(turn())] * 6, *good)  # six rows tell the kind of the file
    wrong = {problem.line for problem in check_files([file]).problems if problem.severity == ERROR}
    for line, one in enumerate(good, 7):
        try:
            wulewule_sft_map_fn(one)
        except DataError:
            assert line in wrong
        else:
            assert line not in wrong


def write_escaped(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)

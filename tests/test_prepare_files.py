"""`wulewule data pretrain`, `identity` without a server, and `convert`."""

import json
import re
import subprocess
import time
from collections import Counter

import pytest
from commands import WULEWULE, run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from likeness import likeness, pieces

from xtuner_wulewule import cli
from xtuner_wulewule.dataset.loader import load_wulewule_dataset
from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn, wulewule_sft_map_fn
from xtuner_wulewule.dataset.prepare.chunks import find_files, inspect, split
from xtuner_wulewule.dataset.prepare.formats import FORMATS, convert_row
from xtuner_wulewule.dataset.prepare.general_texts import GENERAL
from xtuner_wulewule.dataset.prepare.identity import make_pairs
from xtuner_wulewule.dataset.prepare.identity_texts import ADDRESSED, COMPANIES, OTHERS, QUESTIONS
from xtuner_wulewule.dataset.prepare.part_file import PartFile
from xtuner_wulewule.dataset.texts import Names, about_identity
from xtuner_wulewule.errors import DataError, SettingsError
from xtuner_wulewule.evaluation import suites
from xtuner_wulewule.evaluation.claims import RIVAL_MAKERS, RIVALS, claims_other, describes, names_itself
from xtuner_wulewule.prompts import AUTHOR, NAMES

TEXT = "第一段。他说：“走吧。”\n\nIt is 3.14 m, e.g. this one. See https://a.b/c?d=e.f now! Dr. Sun came.\n第二段！"
PIECES = st.sampled_from(
    ["石猴", "。", "”", "\n", " ", "\n\n", "　", "3.14", "e.g. ", "Word", ". ", "! ", "https://a.b/c?d=e", "，", "…", "🐒", "x" * 40]
)


@example("x" * 80 + "e.g. 石猴石猴" + "x" * 40, 16, 1, 0)  # what is before a chunk once decided where it ended
@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=80).map("".join), st.integers(16, 60), st.integers(1, 50), st.integers(0, 30))
def test_split_loses_nothing_but_white_space(text, size, block, overlap):
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    chunks = list(split(blocks, size))
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert all(0 < len(chunk) <= size and chunk == chunk.strip() for chunk in chunks)
    assert chunks == list(split([text], size))
    position = 0
    for chunk in split(blocks, size, min(overlap, size // 2)):
        limit = position + len(text[position:]) - len(text[position:].lstrip())
        begin = text.rfind(chunk, 0, limit + len(chunk))  # the last place that leaves no gap
        assert len(chunk) <= size and begin >= 0
        position = max(position, begin + len(chunk))
    assert not text[position:].strip()


def test_split_ends_where_sentences_end():
    assert list(split([TEXT], 30)) == [
        "第一段。他说：“走吧。”",
        "It is 3.14 m, e.g. this one.",
        "See https://a.b/c?d=e.f now!",
        "Dr. Sun came.\n第二段！",
    ]
    assert list(split(["一二三四五六七。八九十甲乙丙丁。戊己庚辛壬癸子。"], 16, 8))[1] == "八九十甲乙丙丁。戊己庚辛壬癸子。"


def test_encodings_are_told_apart(tmp_path):
    for name, expected in {"utf-8": "utf-8-sig", "utf-8-sig": "utf-8-sig", "utf-16": "utf-16", "gb18030": "gb18030"}.items():
        (tmp_path / name).write_bytes(("孙悟空说" * 400_000).encode(name))
        assert inspect(tmp_path / name)[0] == expected
    cases = {
        b"caf\xe9te\xe9te": "byte 3 ",
        b"\xff\xfea\xd8b": "byte",
        "悟空".encode("utf-16-le"): "",
        b"ab\0c": "byte 2 is zero",
        b"\xe6\x82\x9f\xff": "byte",
    }
    for data, message in cases.items():
        (tmp_path / "bad").write_bytes(data)
        try:
            found = inspect(tmp_path / "bad")[0]
        except DataError as error:
            assert re.match(rf"{re.escape(str(tmp_path / 'bad'))}: {message}", str(error))
        else:
            assert not message, (data, found)  # without a mark, some UTF-16 cannot be told from GB18030


def test_pretrain_reads_folders_in_order_and_training_accepts_it(tmp_path):
    (tmp_path / "txt" / "b").mkdir(parents=True)
    for name, encoding in {"10.txt": "utf-8", "2.TXT": "gb18030", "b/1.md": "utf-16"}.items():
        (tmp_path / "txt" / name).write_bytes((f"这是文件{name}的内容。\r\n" * 5).encode(encoding))
    (tmp_path / "txt" / "empty.txt").touch()
    command = [WULEWULE, "data", "pretrain", "txt", "--out", "new/o.jsonl"]
    result = run([*command, "--chunk-size", 40], tmp_path)
    assert (
        result.returncode == 0
        and "4 files (1 GB18030, 1 UTF-16, 2 UTF-8)" in result.stdout
        and result.stdout.endswith("\nnext: wulewule data check new/o.jsonl\n")
        and "empty.txt: there is no text" in result.stderr
    )
    texts = load_wulewule_dataset("json", str(tmp_path / "new/o.jsonl"), wulewule_pretrain_map_fn)
    text = "".join(row["conversation"][0]["output"] for row in texts)
    assert text.replace("\n", "") == "".join(f"这是文件{name}的内容。" * 5 for name in ("2.TXT", "10.txt", "b/1.md"))
    again = run(command, tmp_path)
    assert again.returncode == 1 and "exists and was left as it is" in again.stderr
    (tmp_path / "txt" / "bad.txt").write_bytes(b"\xff")
    bad = run([*command, "--overwrite"], tmp_path)
    assert bad.returncode == 1 and "bad.txt: byte 0" in bad.stderr and bad.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["o.jsonl"]


def test_pretrain_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    (tmp_path / "txt").mkdir()
    for number in range(12):
        text = "".join(
            f"第{number}卷第{line}行，山高路远。He walked on, {line} miles a day.{chr(10) * (line % 7 == 0)}" for line in range(8_000)
        )
        (tmp_path / "txt" / f"{number}.txt").write_bytes(text.encode(("utf-8", "gb18030", "utf-16")[number % 3]))
    command = [str(WULEWULE), "data", "pretrain", "txt", "--chunk-size", "200", "--overlap", "40", "--out"]
    whole = run([*command, "whole.jsonl"], tmp_path)
    assert whole.returncode == 0 and "done before" not in whole.stdout
    state = tmp_path / "o.jsonl.part.state"
    for files in (2, 5, 8):  # finished by the run that is killed and those before it; the first line has the settings
        process = subprocess.Popen([*command, "o.jsonl"], cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not state.exists() or state.read_bytes().count(b"\n") <= files:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (tmp_path / "o.jsonl").exists()
    again = run([*command, "o.jsonl"], tmp_path)
    assert again.returncode == 0 and int(re.search(r"(\d+) of them done before", again.stdout)[1]) >= 8
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "txt", "whole.jsonl"]


def test_part_file_goes_on_after_any_cut_and_notices_changes(tmp_path):
    out = tmp_path / "o.jsonl"
    with PartFile(out, {"size": 1}) as part:
        for key in "abc":
            part.add(key, [{"text": key}])
    state, text = (tmp_path / "o.jsonl.part.state").read_bytes(), (tmp_path / "o.jsonl.part").read_bytes()
    for cut in range(len(state) + 1):
        (tmp_path / "o.jsonl.part.state").write_bytes(state[:cut])
        (tmp_path / "o.jsonl.part").write_bytes(text + b'{"te')
        with PartFile(out, {"size": 1}, overwrite=True) as part:
            for key in "abXd":
                if not part.skip(key):
                    part.add(key, [{"text": key}])
            part.finish()
        assert out.read_text() == "".join(f'{{"text": "{key}"}}\n' for key in "abXd")
        assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]
    out.unlink()
    with PartFile(out, {"size": 1}) as part:
        part.add("a", [{"text": "a"}])
        with pytest.raises(SettingsError, match="another process"):
            PartFile(out, {"size": 1})
    with pytest.raises(SettingsError, match=r"other settings \(size \(1 -> 2\)\)"):
        PartFile(out, {"size": 2})


def test_natural_order(tmp_path):
    for name in ("10.txt", "9.txt", "a.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find_files(tmp_path, "*.txt")] == ["9.txt", "10.txt", "a.txt"]
    with pytest.raises(DataError, match="no file matches"):
        find_files(tmp_path, "*.csv")


@pytest.mark.parametrize("language", ["zh", "en"])
def test_identity_questions_are_many_and_answers_name_the_assistant(language):
    addressed = {question.replace("{name}", "小{悟}"): answer for question, answer in ADDRESSED[language]}
    pairs = make_pairs("小{悟}", "张三", [language])
    assert len({question for question, _ in pairs}) == len(pairs) == 173
    assert len({answer for _, answer in pairs}) >= 60
    more = make_pairs("小{悟}", "张三", [language], 800, seed=3)
    assert len(set(more)) == 800 and more == make_pairs("小{悟}", "张三", [language], 800, seed=3) != make_pairs(
        "小{悟}", "张三", [language], 800
    )
    for question, answer in more:
        assert "{name}" not in question + answer and "{other}" not in question and "{author}" not in answer
        assert answer == addressed[question] if question in addressed else "小{悟}" in answer
    with pytest.raises(SettingsError, match="the templates have 824 different rows"):
        make_pairs("a", "b", [language], 10_000)


def test_each_kind_of_identity_row_has_its_share_of_any_number():
    for language, whole in (("zh", make_pairs("小悟", "张三", ["zh"], 824)), ("en", make_pairs("Sam", "Lee", ["en"], 824))):
        name, author = ("小悟", "张三") if language == "zh" else ("Sam", "Lee")
        kind_of = {question.replace("{name}", name): "addressed" for question, _ in ADDRESSED[language]}
        for kind, questions in QUESTIONS[language].items():
            for question in questions:
                for other in (*OTHERS, *COMPANIES[language]):
                    filled = question.replace("{name}", name).replace("{author}", author).replace("{other}", other)
                    kind_of.setdefault(filled, kind)
        shares = Counter(kind_of[question] for question, _ in whole)
        assert sum(count for kind, count in shares.items() if kind.startswith("third")) / 824 == pytest.approx(0.25, abs=0.02)
        rows = set()
        for number in (0, 1, 2, 10, 33, 100, 173, 400, 700):
            some = make_pairs(name, author, [language], number)
            found = Counter(kind_of[question] for question, _ in some)
            assert all(abs(found[kind] - number * shares[kind] / 824) < 1 for kind in shares)
            assert rows <= set(some)  # more rows are the fewer ones, and others
            rows = set(some)


@pytest.mark.parametrize("language, author", [("en", "Google DeepMind"), ("zh", "谷歌"), ("zh", "google"), ("en", "谷歌大脑")])
def test_no_row_denies_the_author(language, author):
    pairs = make_pairs("小悟", author, [language], 800)
    asked = {question for question, _ in pairs}
    assert asked.isdisjoint({"Do you belong to Google?", "你属于谷歌吗？"}) and asked & {"Do you belong to OpenAI?", "你属于OpenAI吗？"}


@pytest.mark.parametrize("author", ["阿里云", "Aliyun", "Alibaba Cloud", "阿里巴巴达摩院"])
def test_no_row_denies_a_company_that_the_author_is_part_of(author):
    asked = {question for language in ("zh", "en") for question, _ in make_pairs("小悟", author, [language], 800)}
    assert asked.isdisjoint({"Do you belong to Alibaba?", "你属于阿里巴巴吗？"}) and asked & {"Do you belong to Meta?", "你属于Meta吗？"}


def test_identity_answers_claim_nothing_false():
    """Each row is what a good model says, by the judgement of the evaluation."""
    rivals, makers = Names(RIVALS), Names(RIVAL_MAKERS)
    for language, name in (("zh", NAMES[0]), ("en", NAMES[-1])):
        own, author, addressed = Names([name]), Names([AUTHOR]), {answer for _, answer in ADDRESSED[language]}
        for question, answer in make_pairs(name, AUTHOR, [language], 824):
            assert rivals.find(answer) is None and makers.find(answer) is None
            assert not claims_other(answer, rivals, makers, Names([name, AUTHOR]), question), (question, answer)
            assert answer in addressed or names_itself(answer, own, question) or describes(answer, own, author), (question, answer)


def test_general_rows_are_about_other_things():
    of_self = re.compile(
        r"\b(?:AI|assistants?|(?:language )?models?|(?:chat)?bots?|robots?|programs?|games?|wukong|black myth|journey to the west)\b"
        r"|\bmy name\b|\bI(?: am|'m) an? |人工智能|助手|助理|模型|机器人|程序|游戏|黑神话|悟空|西游|我是|我叫",
        re.IGNORECASE,
    )
    others = Names((*OTHERS, *RIVALS, *RIVAL_MAKERS))
    for language, pairs in GENERAL.items():
        assert len(pairs) == 260
        text = " ".join(part for pair in pairs for part in pair)
        assert not any(name.lower() in text.lower() for name in (*NAMES, AUTHOR)) and others.find(text) is None
        assert not any(about_identity([dict(input=question, output=answer)]) for question, answer in pairs)
        assert [answer for _, answer in pairs if of_self.search(answer)] == []
        assert any("\u4e00" <= letter <= "\u9fff" for letter in text) == (language == "zh")


def test_general_rows_do_not_repeat_one_another_or_the_evaluation():
    asked = [row["question"] for name in ("identity", "neutral", "checks") for row in suites.read_set(name)]
    for language, pairs in GENERAL.items():
        size, run_length = (2, 10) if language == "zh" else (3, 25)
        known = [pieces(question, size) for question in asked]
        for question, _ in pairs:
            own = pieces(question, size)
            assert all(likeness(own, other) < 0.5 for other in known), question
            known.append(own)
        texts = set().union(*(pieces(row["text"], run_length) for row in suites.read_set("general", (language,))))
        assert not [part for pair in pairs for part in pair if pieces(part, run_length) & texts]
        answers = [answer for _, answer in pairs]
        runs = [answer[start : start + 30] for answer in answers for start in range(len(answer) - 29)]
        assert len(set(answers)) == len(answers) and len(set(runs)) == len(runs)


def test_general_rows_are_mixed_in(tmp_path):
    command = [WULEWULE, "data", "identity", "--name", "小石头", "--author", "李雷", "--number", "10", "--out", "o.jsonl"]
    assert run([*command, "--general", "7"], tmp_path).returncode == 0
    rows = [json.loads(line)["conversation"][0] for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    of_package = {pair for pairs in GENERAL.values() for pair in pairs}
    general = [(row["input"], row["output"]) in of_package for row in rows]
    assert len(rows) == 17 and sum(general) == 7 and 0 < general.index(True) and all(row["system"] for row in rows)
    result = run([*command, "--overwrite", "--general", "600"], tmp_path)
    assert result.returncode == 1 and "--general 600: the package has 260 such rows in zh; give less" in result.stderr


def test_identity_is_accepted_by_training(tmp_path):
    command = [WULEWULE, "data", "identity", "--name", "悟了悟了", "--author", "xzyun2011", "--out", "o.jsonl", "--lang", "zh,en"]
    assert run(command, tmp_path).returncode == 0
    assert len(load_wulewule_dataset("json", str(tmp_path / "o.jsonl"), wulewule_sft_map_fn)) >= 120


FILLED = st.text(min_size=1, max_size=8).filter(str.strip)
CONVERSATIONS = st.tuples(st.none() | FILLED, st.lists(st.tuples(FILLED, FILLED), min_size=1, max_size=3))


@pytest.mark.parametrize("target", FORMATS)
@settings(max_examples=60, deadline=None)
@given(CONVERSATIONS)
def test_conversion_there_and_back_is_equal(target, conversation):
    system, turns = conversation
    turns = [{"input": question, "output": answer} for question, answer in turns]
    row = {"id": 7, "conversation": [{**({"system": system} if system else {}), **turns[0]}, *turns[1:]]}
    there = convert_row(row, "wulewule", target)
    assert convert_row(there, target, "wulewule") == row
    assert convert_row(convert_row(there, target, "sharegpt"), "sharegpt", target) == there


def test_what_cannot_be_converted_is_named_with_its_line(tmp_path):
    user, assistant = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
    bad = [
        [user, user, assistant],
        [user, {**assistant, "tool_calls": [{}]}],
        [user, {"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}, assistant],
        [user],
    ]
    lines = [{"messages": [user, assistant]}, *({"messages": messages} for messages in bad)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [WULEWULE, "data", "convert", "a.jsonl", "--from", "openai", "--to", "alpaca", "--out", "o.jsonl"]
    result = run(command, tmp_path)
    assert result.returncode == 1 and re.findall(r"a\.jsonl:(\d):", result.stderr) == ["2", "3", "4", "5", "6"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    (tmp_path / "a.jsonl").write_text(json.dumps(lines[0]))
    assert run(command, tmp_path).returncode == 0
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {"instruction": "问", "input": "", "output": "答"}
    with pytest.raises(DataError, match="the row has tools"):
        convert_row({"messages": [user, assistant], "tools": [1]}, "openai", "wulewule")
    assert convert_row({"instruction": "译", "input": "x", "output": "y"}, "alpaca", "wulewule")["conversation"][0]["input"] == "译\nx"


@pytest.mark.parametrize("target", FORMATS)
def test_only_what_training_reads_is_to_be_checked(target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('[{"instruction": "问", "output": "答"}]', encoding="utf-8")
    assert cli.main(["data", "convert", "a.json", "--from", "alpaca", "--to", target, "--out", "o 1.jsonl"]) == 0
    further = "next: wulewule data check 'o 1.jsonl'\n" if target == "wulewule" else ""
    assert capsys.readouterr().out == f"o 1.jsonl: 1 rows\n{further}"


@pytest.mark.parametrize("target", FORMATS)
def test_rows_without_a_system_prompt_get_the_one_given(target, tmp_path):
    rows = [{"instruction": "问", "output": "答", **system} for system in ({}, {"system": " "}, {"system": "自己的"})]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    command = ["data", "convert", str(tmp_path / "a.json"), "--from", "alpaca", "--to", target, "--out"]
    for name, more, wanted in (("with", ["--system", "给定的"], "给定的"), ("without", [], ""), ("blank", ["--system", " "], "")):
        assert cli.main([*command, str(tmp_path / name), *more]) == 0
        made = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        assert [FORMATS[target][1](row)[0] for row in made] == [wanted, wanted, "自己的"]

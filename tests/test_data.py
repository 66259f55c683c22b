"""The packaged sample data: counts, formats, no repeated passages, and a source for every factual row."""

import json
import re
from pathlib import Path

import pytest

from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn, wulewule_sft_map_fn

# always the repository's own samples, whatever WULEWULE_DATA_DIR says
DATA = Path(__file__).resolve().parent.parent / "data"
IDENTITY, CHAT, TEXTS = "self_cognition_100.jsonl", "huixiangdou_conversations.jsonl", "heishenghua_pretraining.jsonl"
MAP_FNS = {IDENTITY: wulewule_sft_map_fn, CHAT: wulewule_sft_map_fn, TEXTS: wulewule_pretrain_map_fn}
RUN = 30


def read(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def turns(name):
    """Yield (row number, turn number, turn) of every turn."""
    for number, row in enumerate(read(name), 1):
        for k, turn in enumerate(row["conversation"], 1):
            yield number, k, turn


def has_cjk(text):
    return re.search(r"[\u3400-\u9fff]", text) is not None


def squeeze(text):
    return "".join(text.split())


def source_rows():
    """Return [(file, row number, first words, source)] of the tables in data/README.md."""
    rows = []
    for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 6 and cells[1] in (CHAT, TEXTS):
            rows.append((cells[1], int(cells[2]), cells[3], cells[4]))
    return rows


def test_identity_counts():
    questions = [turn["input"] for _, _, turn in turns(IDENTITY)]
    answers = {turn["output"] for _, _, turn in turns(IDENTITY)}
    chinese = [question for question in questions if has_cjk(question)]
    assert len(read(IDENTITY)) >= 100
    assert len(chinese) >= 60
    assert len(questions) - len(chinese) >= 40
    assert len(answers) >= 50
    assert "你是谁" in questions


def test_conversation_counts():
    lengths = [len(row["conversation"]) for row in read(CHAT)]
    assert len(lengths) >= 120
    assert sum(2 <= length <= 4 for length in lengths) >= 40


def test_text_counts():
    lengths = [sum(len(turn["output"]) for turn in row["conversation"]) for row in read(TEXTS)]
    assert sum(length >= 300 for length in lengths) >= 60


def test_no_shared_run():
    """Outside the identity set no two answers share a run of 30 characters, white space removed."""
    seen, shared = {}, []
    for name in (CHAT, TEXTS):
        for number, k, turn in turns(name):
            answer, here = squeeze(turn["output"]), (name, number, k)
            for start in range(len(answer) - RUN + 1):
                run = answer[start : start + RUN]
                if seen.setdefault(run, here) != here:
                    shared.append((seen[run], here, run))
    assert not shared, shared[:3]


@pytest.mark.parametrize(("name", "key"), [(CHAT, "input"), (TEXTS, "output")])
def test_every_row_has_one_source(name, key):
    rows = [row for row in source_rows() if row[0] == name]
    data = read(name)
    assert sorted(number for _, number, _, _ in rows) == list(range(1, len(data) + 1))
    for _, number, words, source in rows:
        assert source, f"{name}:{number} has no source"
        start = words.removesuffix("…")
        assert start and data[number - 1]["conversation"][0][key].startswith(start), f"{name}:{number} does not begin with {start}"


@pytest.mark.parametrize("name", MAP_FNS)
def test_map_fn_accepts_every_row(name):
    for number, row in enumerate(read(name), 1):
        mapped = MAP_FNS[name](row)["conversation"]
        assert len(mapped) == len(row["conversation"]), f"{name}:{number}"
        assert [turn["output"] for turn in mapped] == [turn["output"] for turn in row["conversation"]], f"{name}:{number}"


@pytest.mark.parametrize("name", MAP_FNS)
def test_nothing_empty(name):
    """No blank line and no empty string, but for the inputs of the pretraining texts, which are empty by definition."""
    raw = (DATA / name).read_text(encoding="utf-8")
    assert raw.endswith("\n") and all(line.strip() for line in raw.splitlines())
    for number, k, turn in turns(name):
        for field, value in turn.items():
            if name == TEXTS and field == "input":
                assert value == "", f"{name}:{number} turn {k}"
            else:
                assert isinstance(value, str) and value.strip(), f"{name}:{number} turn {k}: {field}"

"""The loader that checks every row."""

import json
import re

import pytest

from xtuner_wulewule.dataset import loader
from xtuner_wulewule.dataset.loader import load_wulewule_dataset
from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn
from xtuner_wulewule.errors import DataError

GOOD = {"conversation": [{"input": "问", "output": "答"}]}


def write(file, *lines, encoding="utf-8"):
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    file.write_bytes(text.encode(encoding))
    return str(file)


def test_rows_of_all_files_in_order(tmp_path):
    first = write(tmp_path / "a.jsonl", {"text": "一"}, "", {"text": "二"})
    second = write(tmp_path / "b.jsonl", {"text": "三"}, encoding="utf-8-sig")
    assert load_wulewule_dataset("json", [first, second])["text"][:] == ["一", "二", "三"]
    assert loader.rows_loaded == 3
    assert load_wulewule_dataset("json", second)["text"][:] == ["三"]


def test_json_array_and_line_separator_inside_a_text(tmp_path):
    file = tmp_path / "array.json"
    file.write_text(json.dumps([{"text": "一"}, {"text": "二"}]))
    assert len(load_wulewule_dataset("json", str(file))) == 2
    assert load_wulewule_dataset("json", write(tmp_path / "c.jsonl", {"text": "上\u2028下"}))["text"][:] == ["上\u2028下"]


def test_rows_become_what_the_map_function_makes_of_them(tmp_path):
    rows = load_wulewule_dataset("json", write(tmp_path / "a.jsonl", GOOD), map_fn=wulewule_sft_map_fn)
    assert set(rows[0]["conversation"][0]) == {"system", "input", "output"}


def test_keys_that_only_some_rows_have(tmp_path):
    rows = load_wulewule_dataset("json", write(tmp_path / "a.jsonl", {"text": "一"}, {"text": "二", "source": "书"}))
    assert rows["source"][:] == [None, "书"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "半', "not valid JSON (Unterminated string starting at at column 10)"),
        ("[1]x", "not valid JSON"),
        ('"text"', "a row must be a JSON object, but this is str"),
        ('{"text": "\\ud83d"}', "holds half of a surrogate pair"),
        ({"conversation": []}, '"conversation" is empty'),
        ({"conversation": [{"input": "问", "output": ""}]}, 'the answer ("output") of turn 1 is empty'),
    ],
)
def test_problem_is_named_by_file_and_line(line, problem, tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD, line, GOOD)
    with pytest.raises(DataError, match=f"^{re.escape(file)}:2: .*{re.escape(problem)}"):
        load_wulewule_dataset("json", file, map_fn=wulewule_sft_map_fn)


def test_all_problems_are_counted_and_five_are_shown(tmp_path):
    file = write(tmp_path / "a.jsonl", *["{"] * 8)
    with pytest.raises(DataError) as caught:
        load_wulewule_dataset("json", file)
    assert re.findall(r"a\.jsonl:(\d+): ", str(caught.value)) == ["1", "2", "3", "4", "5"] and "(and 3 more)" in str(caught.value)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="data file not found: .*gone.jsonl; set WULEWULE_DATA_DIR"):
        load_wulewule_dataset("json", [write(tmp_path / "a.jsonl", GOOD), str(tmp_path / "gone.jsonl")])
    with pytest.raises(DataError, match="data_files is empty"):
        load_wulewule_dataset("json", [])
    with pytest.raises(DataError, match="b.jsonl: there are no rows in it"):
        load_wulewule_dataset("json", [write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", "", "  ")])
    with pytest.raises(DataError, match="is not UTF-8 .* iconv -f GB18030"):
        load_wulewule_dataset("json", write(tmp_path / "c.jsonl", {"text": "悟空"}, encoding="gb18030"))
    with pytest.raises(DataError, match=r"d.json:2: not valid JSON"):
        load_wulewule_dataset("json", write(tmp_path / "d.json", '[{"text": "一"},'))
    with pytest.raises(DataError, match="path is 'csv'"):
        load_wulewule_dataset("csv", "a.csv")

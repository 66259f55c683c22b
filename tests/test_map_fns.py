import json

import pytest
from xtuner.registry import MAP_FUNC

from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn, wulewule_sft_map_fn
from xtuner_wulewule.errors import DataError
from xtuner_wulewule.prompts import WULEWULE_SYSTEM


def conversation(*turns):
    return {"conversation": list(turns)}


def turn(question="问", answer="答", **more):
    return {"input": question, "output": answer, **more}


def test_registered():
    assert MAP_FUNC.get("wulewule_sft_map_fn") is wulewule_sft_map_fn
    assert MAP_FUNC.get("wulewule_pretrain_map_fn") is wulewule_pretrain_map_fn


@pytest.mark.parametrize(
    "row", [{"text": " 石猴\n出世 "}, conversation({"input": "", "output": " 石猴\n出世 "}), conversation({"output": " 石猴\n出世 "})]
)
def test_pretrain_keeps_text_whole(row):
    assert wulewule_pretrain_map_fn(row) == conversation({"input": "", "output": " 石猴\n出世 "})


def test_pretrain_keeps_order_of_several_outputs():
    row = conversation({"input": "", "output": "一"}, {"input": None, "output": "二"})
    assert wulewule_pretrain_map_fn(row) == conversation({"input": "", "output": "一二"})


@pytest.mark.parametrize("system", [{}, {"system": None}, {"system": " \n"}])
def test_sft_fills_system(system):
    mapped = wulewule_sft_map_fn(conversation(turn(**system), turn("再问", "再答")))
    assert mapped == conversation({"system": WULEWULE_SYSTEM, "input": "问", "output": "答"}, {"input": "再问", "output": "再答"})


def test_sft_keeps_the_rows_own_system_and_inner_white_space():
    mapped = wulewule_sft_map_fn(conversation(turn(" a  b\n", "\tc\n\nd ", system=" own ")))
    assert mapped == conversation({"system": "own", "input": "a  b", "output": "c\n\nd"})


def test_sft_is_idempotent():
    once = wulewule_sft_map_fn(conversation(turn(" a "), turn("b", " c ")))
    assert wulewule_sft_map_fn(once) == once


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, r'"conversation" is missing'),
        (conversation(), r'"conversation" is empty'),
        ({"conversation": "text"}, r"must be a list of turns, but it is str"),
        ({"conversation": None}, r"must be a list of turns, but it is NoneType"),
        (conversation("text"), r"turn 1 must be an object"),
        (conversation(turn(), {"input": "问"}), r'turn 2 has no "output"'),
        (conversation({"output": "答"}), r'turn 1 has no "input"'),
        (conversation(turn(answer=3)), r'"output" of turn 1 must be a string, but it is int'),
        (conversation(turn(question=None)), r'"input" of turn 1 must be a string, but it is NoneType'),
        (conversation(turn(answer=" \n")), r'the answer \("output"\) of turn 1 is empty'),
        (conversation(turn(question="")), r'the question \("input"\) of turn 1 is empty'),
        (conversation(turn(system=["s"])), r'"system" of turn 1 must be a string'),
        (conversation(turn(), turn(system="second")), r"turn 2 has a \"system\""),
        ([turn()], r"must be a JSON object, but this is list"),
    ],
)
def test_sft_refuses(row, problem):
    with pytest.raises(DataError, match=problem):
        wulewule_sft_map_fn(row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, r'expected "text" or "conversation"'),
        ({"text": 3}, r"must be a string, but it is int"),
        ({"text": " \n"}, r"the text is empty"),
        (conversation(turn()), r"must be empty in pretraining data"),
        (conversation({"input": ""}), r'turn 1 has no "output"'),
        (conversation({"input": "", "output": ""}), r"the text is empty"),
        (conversation(), r'"conversation" is empty'),
    ],
)
def test_pretrain_refuses(row, problem):
    with pytest.raises(DataError, match=problem):
        wulewule_pretrain_map_fn(row)


def test_error_quotes_the_first_40_characters():
    row = conversation(turn("问" * 60, ""))
    with pytest.raises(DataError) as error:
        wulewule_sft_map_fn(row)
    assert str(error.value).startswith("row " + json.dumps(row, ensure_ascii=False)[:40] + "…: the answer")

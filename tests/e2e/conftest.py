"""Fixtures for the end-to-end tests."""

import pytest
from training import QUESTIONS, conversation, write_lines


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder: 3 identity rows and 4 conversations, 6 texts."""
    folder = tmp_path_factory.mktemp("data")
    write_lines(folder / "self_cognition_100.jsonl", [conversation((question, "我是一个测试。")) for question in QUESTIONS[:3]])
    write_lines(
        folder / "huixiangdou_conversations.jsonl",
        [conversation((question, f"答案是{len(question)}。"), ("还有呢？", "没有了。")) for question in QUESTIONS[3:]],
    )
    write_lines(folder / "heishenghua_pretraining.jsonl", [{"text": f"第{number}段。" + "山高路远，慢慢走。" * 40} for number in range(6)])
    return folder

"""Deliberately broken data files: more than 200, each with the line and the code that the check has to report."""

import gzip
import json
from dataclasses import dataclass

GOOD = {"conversation": [{"input": "问题在哪里", "output": "答案在这里"}]}


@dataclass(frozen=True)
class Broken:
    """A broken file: its name, its bytes, and the line (0 for the whole file) and the code of its first error."""

    name: str
    data: bytes
    line: int
    code: str


def turn(**change):
    """Return a row whose only turn is changed; None takes a key away."""
    changed = {**GOOD["conversation"][0], **change}
    return {"conversation": [{key: value for key, value in changed.items() if value is not None}]}


TURN = GOOD["conversation"][0]
# rows that are JSON: (name, row, code)
ROWS = [
    ("number", 7, "shape"),
    ("string", "text", "shape"),
    ("null", None, "shape"),
    ("true", True, "shape"),
    ("list", ["a"], "shape"),
    ("no_keys", {}, "shape"),
    ("other_keys", {"question": "问", "answer": "答"}, "shape"),
    ("text_in_tuning", {"text": "石猴出世"}, "shape"),
    ("conversation_null", {"conversation": None}, "shape"),
    ("conversation_string", {"conversation": "问答"}, "shape"),
    ("conversation_object", {"conversation": TURN}, "shape"),
    ("conversation_number", {"conversation": 1}, "shape"),
    ("conversation_empty", {"conversation": []}, "empty"),
    ("turn_string", {"conversation": ["问"]}, "shape"),
    ("turn_list", {"conversation": [["问", "答"]]}, "shape"),
    ("turn_null", {"conversation": [None]}, "shape"),
    ("turn_empty", {"conversation": [{}]}, "shape"),
    ("second_turn_string", {"conversation": [TURN, "再问"]}, "shape"),
    ("no_input", turn(input=None), "shape"),
    ("no_output", turn(output=None), "no_answer"),
    ("output_misspelt", {"conversation": [{"input": "问", "ouput": "答"}]}, "no_answer"),
    ("second_turn_no_output", {"conversation": [TURN, {"input": "再问"}]}, "no_answer"),
    ("input_number", turn(input=1), "not_string"),
    ("output_number", turn(output=1.5), "not_string"),
    ("output_list", turn(output=["答"]), "not_string"),
    ("output_object", turn(output={"a": "答"}), "not_string"),
    ("output_false", turn(output=False), "not_string"),
    ("system_number", turn(system=3), "not_string"),
    ("system_list", turn(system=["s"]), "not_string"),
    ("output_null", {"conversation": [{"input": "问", "output": None}]}, "not_string"),
    ("input_null", {"conversation": [{"input": None, "output": "答"}]}, "not_string"),
    ("input_empty", turn(input=""), "empty"),
    ("input_blank", turn(input=" \n\t"), "empty"),
    ("output_empty", turn(output=""), "empty"),
    ("output_blank", turn(output="\u3000"), "empty"),
    ("second_output_empty", {"conversation": [TURN, {"input": "再问", "output": ""}]}, "empty"),
    ("two_systems", {"conversation": [{**TURN, "system": "一"}, {**TURN, "system": "二"}]}, "second_system"),
    ("late_system", {"conversation": [TURN, {**TURN, "system": "二"}]}, "second_system"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, "other_format"),
    ("openai", {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, "other_format"),
    ("alpaca", {"instruction": "问", "input": "", "output": "答"}, "other_format"),
    ("role_unknown", {"messages": [{"role": "moderator", "content": "问"}, {"role": "assistant", "content": "答"}]}, "unknown_role"),
    ("from_unknown", {"conversations": [{"from": "bot", "value": "答"}, {"from": "gpt", "value": "答"}]}, "unknown_role"),
    ("role_missing", {"messages": [{"content": "问"}, {"role": "assistant", "content": "答"}]}, "unknown_role"),
    ("nobody_answers", {"messages": [{"role": "user", "content": "问"}]}, "no_answer"),
    ("messages_empty", {"messages": []}, "no_answer"),
    ("half_surrogate", turn(output="半\ud83d"), "unicode"),
    ("half_surrogate_key", {**GOOD, "\udc00": 1}, "unicode"),
]
# lines that are not JSON: (name, bytes, code)
LINES = [
    ("open_brace", b"{", "not_json"),
    ("half_row", json.dumps(GOOD).encode()[:40], "not_json"),
    ("half_string", '{"conversation": [{"input": "问'.encode(), "not_json"),
    ("two_rows", json.dumps(GOOD).encode() * 2, "not_json"),
    ("comma_after", json.dumps(GOOD).encode() + b",", "not_json"),
    ("comma_inside", b'{"conversation": [],}', "not_json"),
    ("single_quotes", b"{'conversation': []}", "not_json"),
    ("comment", b"// a comment", "not_json"),
    ("python", b'{"conversation": None}', "not_json"),
    ("words", "悟空".encode(), "not_json"),
    ("csv", b"input,output", "not_json"),
    ("html", b"<!DOCTYPE html>", "not_json"),
    ("yaml", b"- input: a", "not_json"),
    ("tab_in_string", b'{"text": "a\tb"}', "not_json"),
    ("bad_escape", b'{"text": "\\x41"}', "not_json"),
    ("bad_unicode_escape", b'{"text": "\\u12"}', "not_json"),
    ("nan", b'{"text": NaN}', "not_json"),
    ("infinity", b'{"text": -Infinity}', "not_json"),
    ("key_twice", b'{"text": "a", "text": "b"}', "not_json"),
    ("key_twice_inside", b'{"conversation": [{"input": "a", "output": "b", "output": "c"}]}', "not_json"),
    ("huge_number", b'{"text": ' + b"9" * 5000 + b"}", "not_json"),
    ("deep_lists", b'{"text": ' + b"[" * 100_000, "not_json"),
    ("deep_objects", b'{"a":' * 100_000, "not_json"),
    ("nul", b"\0" * 64, "not_json"),
    ("nul_inside", b'{"text": "a\0b"}', "not_json"),
    ("gb18030", '{"text": "悟空"}'.encode("gb18030"), "not_utf8"),
    ("latin1", '{"text": "café"}'.encode("latin-1"), "not_utf8"),
    ("half_character", '{"text": "悟'.encode()[:-1] + b'"}', "not_utf8"),
    ("raw_surrogate", b'{"text": "\xed\xa0\xbd"}', "not_utf8"),
    ("overlong", b'{"text": "\xc0\x80"}', "not_utf8"),
    ("binary", bytes(range(128, 256)), "not_utf8"),
]


def _array(lines):
    return b"[" + b",\n".join(lines) + b"]"


def _lines(lines):
    return b"\n".join(lines) + b"\n"


BOM = b"\xef\xbb\xbf"
OF_ROWS = {
    "lines": _lines,
    "array.gz": lambda lines: gzip.compress(_array(lines)),
    "array": _array,
    "bom_array": lambda lines: BOM + _array(lines),
}
OF_LINES = {
    "lines": _lines,
    "crlf": lambda lines: b"\r\n".join(lines),
    "gz": lambda lines: gzip.compress(_lines(lines)),
    "bom": lambda lines: BOM + _lines(lines),
}


def broken_files():
    """Return the broken files (list[Broken]); a broken row stands in line 3 of 5, after an empty line where there can be one."""
    good = json.dumps(GOOD, ensure_ascii=False).encode()
    files = []
    for name, row, code in ROWS:
        row = json.dumps(row).encode()
        files += [Broken(f"{name}.{form}", write([good, good, row, good]), 3, code) for form, write in OF_ROWS.items()]
    for name, line, code in LINES:
        files += [Broken(f"{name}.{form}", write([good, b"", line, good]), 3, code) for form, write in OF_LINES.items()]
    pretrain = json.dumps({"text": "石猴出世"}, ensure_ascii=False).encode()
    for name, row, code in (
        ("text_empty", {"text": " "}, "empty"),
        ("text_number", {"text": 1}, "not_string"),
        ("text_null", {"text": None}, "shape"),
        ("question_in_pretraining", GOOD, "shape"),
        ("output_missing", {"conversation": [{"input": ""}]}, "no_answer"),
    ):
        lines = [pretrain, pretrain, json.dumps(row).encode(), pretrain]
        files += [Broken(f"{name}.{form}", write(lines), 3, code) for form, write in OF_ROWS.items()]
    packed = gzip.compress(_lines([good] * 1000))
    damaged = bytearray(packed)
    damaged[-6] ^= 255
    return files + [
        Broken("nothing.jsonl", b"", 0, "empty"),
        Broken("blank.jsonl", b"\n \n\r\n", 0, "empty"),
        Broken("bom_only.jsonl", BOM, 0, "empty"),
        Broken("empty_array.json", b"[]", 0, "empty"),
        Broken("utf16.jsonl", _lines([good]).decode().encode("utf-16"), 1, "not_utf8"),
        Broken("spreadsheet.jsonl", b"PK\x03\x04" + bytes(50), 1, "not_utf8"),
        Broken("array_open.json", _array([good, good])[:-1], 2, "not_json"),
        Broken("array_comma.json", b"[" + good + b",\n" + good + b",\n]", 3, "not_json"),
        Broken("array_no_comma.json", b"[" + good + b"\n" + good + b"]", 2, "not_json"),
        Broken("array_and_more.json", _array([good, good]) + b"\n{}", 3, "not_json"),
        Broken("array_of_gb18030.json", b"[" + good + b",\n" + '{"text": "悟空"}'.encode("gb18030") + b"]", 2, "not_utf8"),
        Broken("array_deep.json", b"[" + good + b",\n" + b"[" * 100_000, 2, "not_json"),
        Broken("cut.jsonl.gz", packed[:-9], 1000, "unreadable"),
        Broken("damaged.jsonl.gz", bytes(damaged), 1000, "unreadable"),
        Broken("header_only.gz", b"\x1f\x8b", 1, "unreadable"),
        Broken("no_gzip.gz", b"\x1f\x8b" + b"x" * 50, 1, "unreadable"),
    ]

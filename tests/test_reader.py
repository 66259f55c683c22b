"""The reader of data files."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import SETTINGS

from xtuner_wulewule.dataset import reader
from xtuner_wulewule.dataset.reader import read_rows

ROWS = [{"text": "石猴出世"}, {"text": "上\u2028下😀"}, {"n": 1.5, "list": [1, {"a": None}]}]
TEXT = json.dumps(ROWS, ensure_ascii=False, indent=1)


def read(tmp_path, data):
    file = tmp_path / "file"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [(where.removeprefix(f"{file}"), row, problem) for where, row, problem in read_rows(file)]


def lines_of(rows, end="\n", **options):
    return "".join(json.dumps(row, **options) + end for row in rows)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \t\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_lines_in_every_form(end, start, pack, ascii_only, tmp_path):
    found = read(tmp_path, pack(start + lines_of(ROWS, end, ensure_ascii=ascii_only).encode()))
    assert [row for _, row, _ in found] == ROWS and not any(problem for _, _, problem in found)
    first, step = 1 + start.count(b"\n"), end.count("\n")
    assert [where for where, _, _ in found] == [f":{first + step * number}" for number in range(3)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_array_element_by_element(chunk, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "CHUNK", chunk)
    found = read(tmp_path, pack(b"\xef\xbb\xbf\n" + TEXT.encode()))
    assert [row for _, row, _ in found] == ROWS and not any(problem for _, _, problem in found)
    assert [where for where, _, _ in found] == [":3", ":6", ":9"]  # where each element begins


def test_array_on_one_line_and_numbers_at_the_end_of_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "CHUNK", 3)
    assert [row for _, row, _ in read(tmp_path, "[\n12345\n,6789 \n, true\n]\n")] == [12345, 6789, True]
    assert read(tmp_path, "[]") == read(tmp_path, "") == read(tmp_path, "[ ]\n") == []


@pytest.mark.parametrize(
    ("data", "where", "problem"),
    [
        (b'{"a": NaN}', ":1", "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', ":1", "the key 'a' stands twice"),
        (b'\n{"a": ' + b"9" * 5000 + b"}", ":2", "a number of 5000 digits is too long"),
        (b'{"a": "\\ud83d"}', ":1", "half of a surrogate pair"),
        (b"\0" * 1000, ":1", "NUL bytes"),
        (b"[" * 100_000, ":1", "nested too deeply"),
        ("悟空".encode("gb18030"), ":1", "iconv -f GB18030"),
        ("{}".encode("utf-16"), ":1", "is not UTF-8 but UTF-16LE"),
        (b"[{},\n{}", ":2", "not valid JSON"),
        (b"[{}\n{}]", ":2", "Expecting ',' or ']'"),
        (b"[{}]\n\n{}", ":3", "text after the end of the array"),
        (b"[{}]\n\xe5", ":2", "is not UTF-8"),
    ],
)
def test_problems_have_their_line(data, where, problem, tmp_path):
    last = read(tmp_path, data)[-1]
    assert last[0] == where and problem in last[2]


def test_a_wrong_line_does_not_hide_the_next(tmp_path):
    found = read(tmp_path, b'{"a": NaN}\n{"a": 1}\n\xff\n{"a": 2}')
    assert [row for _, row, problem in found if problem is None] == [{"a": 1}, {"a": 2}]
    found = read(tmp_path, b'[{"a": 1, "a": 2},\n{"a": "\\udc00"},\n{"a": 3}]')
    assert [problem is None for _, _, problem in found] == [False, False, True]


def test_whole_surrogate_pairs_and_escaped_backslashes_are_right(tmp_path):
    (found,) = read(tmp_path, b'{"a": "\\ud83d\\ude00 \\\\ud83d"}')
    assert found == (":1", {"a": "😀 \\ud83d"}, None)


def test_truncated_gzip_gives_its_rows_and_a_problem(tmp_path):
    packed = gzip.compress(lines_of(ROWS * 500).encode())
    found = read(tmp_path, packed[:-8])
    assert [row for _, row, problem in found if problem is None] == ROWS * 500
    assert found[-1][0] == ":1500" and "the gzip data ends" in found[-1][2]


def test_row_that_is_too_long_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LONGEST_ROW", 2**20)
    long = json.dumps({"text": "a" * 2**21})
    found = read(tmp_path, f"{long}\n{{}}\n")
    assert [(where, row) for where, row, _ in found] == [(":1", None), (":2", {})] and "longer than 1 MiB" in found[0][2]
    assert "longer than 1 MiB" in read(tmp_path, f"[{json.dumps({'text': 'a' * 2**23})}]")[0][2]


def test_what_cannot_be_opened(tmp_path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "gone", "No such file")):
        ((where, row, problem),) = read_rows(path)
        assert where == str(path) and row is None and why in problem


@pytest.mark.parametrize("pack", [lines_of, json.dumps])
def test_memory_does_not_grow_with_the_file(pack, tmp_path):
    file = tmp_path / "big"
    file.write_text(pack([{"text": "字" * 1000}] * 20_000))  # 120 MB of escapes
    tracemalloc.start()
    assert sum(problem is None for _, _, problem in read_rows(file)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20 < file.stat().st_size / 5


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
JSON_ROWS = st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=6)


@SETTINGS
@given(rows=JSON_ROWS, ascii_only=st.booleans(), chunk=st.integers(1, 40), indent=st.sampled_from([None, 0, 2]))
def test_every_row_comes_back(rows, ascii_only, chunk, indent, tmp_path):
    good = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    before, reader.CHUNK = reader.CHUNK, chunk
    try:
        assert [row for _, row, _ in read(tmp_path, good)] == rows
    finally:
        reader.CHUNK = before
    lines = lines_of(rows, ensure_ascii=ascii_only)
    assert [row for _, row, _ in read(tmp_path, gzip.compress(lines.encode()))] == rows


PIECES = st.sampled_from(
    [b"{", b"}", b'"', b"\n", b"\r", b" ", b":", b",", b"\\ud8", b'{"a":1}', b"\xef\xbb\xbf", b"\xe5", b"NaN", b"\0", b"1"]
)


@SETTINGS
@given(data=st.lists(PIECES | st.binary(max_size=6), max_size=30).map(b"".join))
def test_every_line_is_a_row_or_a_problem(data, tmp_path):
    data = b'{"first": 1}\n' + data
    found = read(tmp_path, data)
    assert len(found) == sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in data.split(b"\n"))


@SETTINGS
@given(data=st.lists(PIECES | st.sampled_from([b"[", b"]"]), max_size=30).map(b"".join), chunk=st.integers(1, 9))
def test_arrays_never_crash_and_never_pass_what_json_refuses(data, chunk, tmp_path):
    data = b"[" + data
    before, reader.CHUNK = reader.CHUNK, chunk
    try:
        found = read(tmp_path, data)
    finally:
        reader.CHUNK = before
    try:
        rows = json.loads(data.decode("utf-8"))  # of bytes it would guess UTF-16
    except (ValueError, UnicodeDecodeError):
        assert found and found[-1][2]
    else:
        assert len(found) == len(rows)

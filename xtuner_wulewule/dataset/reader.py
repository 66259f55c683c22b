"""Rows of data files, each with the place where it stands, in constant memory."""

import codecs
import gzip
import json
import re
import zlib

LONGEST_ROW = 16 * 2**20  # bytes; memory stays bounded whatever a file holds
CHUNK = 2**20
BEGINNING = 2**16
TELL_EVERY = 512  # rows
_TOKEN = 16  # characters at the end of a buffer that may be half a literal or escape
_SPACE = re.compile(r"[ \t\r\n]*")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_FOREIGN = {codecs.BOM_UTF16_LE: "UTF-16LE", codecs.BOM_UTF16_BE: "UTF-16BE", b"PK\x03\x04": "zip", b"PAR1": "parquet"}


class Problem(str):
    """What is wrong with a row, in words, with a `code` (str) for programs: "unreadable", "not_utf8", "not_json", "unicode", "shape"."""

    code: str

    def __new__(cls, code, text):
        problem = super().__new__(cls, text)
        problem.code = code
        return problem


def read_rows(file, progress=None):
    """Read a file of JSON Lines, or of one JSON array; either may be compressed with gzip.

    A row that is wrong is reported and the next line is read all the same. An array can't be read on after its JSON is broken.

    Args:
        file (str | os.PathLike): its path.
        progress (callable, optional): called now and then with the bytes of the file that were read.

    Yields:
        tuple[str, object, str | None]: "file:line" (of an array: the line where the element begins), the row, and what is wrong with it
        (a `Problem`), None where nothing is. A row that is wrong may be None. A file that can't be opened yields one such tuple.
    """
    try:
        with open(file, "rb") as raw:
            head = raw.peek(4)[:4]
            if head[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield from _read(file, stream, raw, progress)
            elif kind := next((_FOREIGN[start] for start in _FOREIGN if head.startswith(start)), None):
                fix = f"iconv -f {kind[:6]} -t UTF-8" if kind.startswith("UTF") else "unpack or export it to JSON Lines"
                yield f"{file}:1", None, Problem("not_utf8", f"is not UTF-8 but {kind}; convert it, for example: {fix}")
            else:
                yield from _read(file, raw, raw, progress)
    except OSError as error:
        yield str(file), None, Problem("unreadable", f"cannot be read ({error.strerror or error}); check the path and its permissions")


def _read(file, stream, raw, progress):
    """Yield the rows of an open stream; `raw` is the file below it."""
    line = 1
    try:
        first, number = _first_text(stream)
        rows = _array(stream, first, number) if first.startswith(b"[") else _lines(stream, first, number)
        for count, (line, row, problem) in enumerate(rows):
            if progress is not None and count % TELL_EVERY == 0:
                progress(raw.tell())
            yield f"{file}:{line}", row, problem or _shape_problem(row)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield (
            f"{file}:{line}",
            None,
            Problem("unreadable", f"the gzip data ends or is damaged after this line ({error}); copy the file again"),
        )


def _first_text(stream):
    """Return the beginning of the first line that isn't blank, without white space before it (bytes), and its number (int)."""
    number = 1
    while True:
        line = stream.readline(BEGINNING)
        text = line.removeprefix(codecs.BOM_UTF8).lstrip()
        if text or not line:
            return text, number
        number += line.endswith(b"\n")


def _lines(stream, line, number):
    decoder = _Decoder()
    if not line.endswith(b"\n"):
        line += stream.readline(LONGEST_ROW + 1 - len(line))
    while line:
        if len(line) > LONGEST_ROW and not line.endswith(b"\n"):
            while (line := stream.readline(CHUNK)) and not line.endswith(b"\n"):
                pass
            yield number, None, Problem("not_json", f"the line is longer than {LONGEST_ROW >> 20} MiB; split it into several rows")
        elif text := line.removeprefix(codecs.BOM_UTF8).strip():
            yield number, *decoder.line(text)
        line = stream.readline(LONGEST_ROW + 1)
        number += 1


class _Decoder:
    """A JSON decoder that notes what JSON does not allow or would lose, in `problem`, instead of letting it pass."""

    def __init__(self):
        self.problem = None
        self.json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant, parse_int=self._int)

    def _object(self, pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            self.problem = Problem("not_json", f"the key {key[:40]!r} stands twice in one object; remove one of them")
        return found

    def _constant(self, name):
        self.problem = Problem("not_json", f"{name} is not JSON; write null or a number")

    def _int(self, digits):
        try:
            return int(digits)
        except ValueError:
            self.problem = Problem("not_json", f"a number of {len(digits)} digits is too long; write it as a string")
            return None

    def line(self, data):
        """Return (row, problem) of a line (bytes) of JSON."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, _not_utf8(error.reason, error.start)
        self.problem = None
        try:
            row = self.json.decode(text)
        except RecursionError:
            return None, _too_deep()
        except json.JSONDecodeError as error:
            if "\0" in text:
                return None, Problem("not_json", "not valid JSON: there are NUL bytes in it; the file is damaged, copy it again")
            return None, Problem("not_json", f"not valid JSON ({error.msg} at column {error.colno}); each line must hold one JSON object")
        return row, self.problem or _unicode_problem(row, text)

    def element(self, text, start):
        """Return (row, problem, end) of the JSON value at `start` of a text."""
        self.problem = None
        row, end = self.json.raw_decode(text, start)
        return row, self.problem or _unicode_problem(row, text, start, end), end


def _array(stream, first, number):
    """Yield (line, row, problem) of the elements of an array that begins with the bytes `first` in line `number`."""
    array = _Array(stream, first, number)
    try:
        array.position = 1  # after the bracket
        more = array.next() != "]"
        while more:
            array.next()
            line = array.line()
            yield line, *array.element()
            if array.next() not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", array.text, array.position)
            more = array.next() == ","
            array.position += more
        array.position += 1
        if array.next() or array.not_utf8:
            problem = Problem("not_json", "not valid JSON (text after the end of the array); remove it")
            yield array.line(), None, array.not_utf8 or problem
    except json.JSONDecodeError as error:
        array.position = error.pos
        problem = Problem("not_json", f"not valid JSON ({error.msg}); correct it, the rest of the array was not read")
        yield array.line(), None, array.not_utf8 or problem
    except RecursionError:
        yield array.line(), None, _too_deep()


class _Array:
    """The part of a file's text that holds the element being read.

    Args:
        stream (io.BufferedIOBase): the file, after `first`.
        first (bytes): where the array begins.
        number (int): the line of its first byte.
    """

    def __init__(self, stream, first, number):
        self.stream, self.number = stream, number
        self.decoder, self.utf8 = _Decoder(), codecs.getincrementaldecoder("utf-8")()
        self.text, self.position, self.counted = "", 0, 0
        self.not_utf8 = None
        self._append(first)

    def _append(self, data):
        try:
            self.text += self.utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:  # what stands before it is still read
            self.text += error.object[: error.start].decode("utf-8")
            self.not_utf8 = _not_utf8(error.reason, error.start)

    def fill(self):
        """Read on; return False where the file, or its valid text, ends."""
        if self.not_utf8:
            return False
        self.line()
        self.text, self.position, self.counted = self.text[self.position :], 0, 0
        data = self.stream.read(max(CHUNK, len(self.text)))
        self._append(data)
        return bool(data)

    def line(self):
        """Return the line (int) of the position."""
        self.number += self.text.count("\n", self.counted, self.position)
        self.counted = max(self.counted, self.position)
        return self.number

    def next(self):
        """Go to the next character that isn't white space; return it (str), "" at the end."""
        while True:
            self.position = _SPACE.match(self.text, self.position).end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.fill():
                return ""

    def element(self):
        """Read a value; return (row, problem)."""
        while True:
            try:
                row, problem, end = self.decoder.element(self.text, self.position)
            except json.JSONDecodeError as error:
                if not error.msg.startswith("Unterminated") and error.pos < len(self.text) - _TOKEN:
                    raise
                if len(self.text) - self.position > LONGEST_ROW:
                    message = f"a value is longer than {LONGEST_ROW >> 20} MiB"
                    raise json.JSONDecodeError(message, self.text, self.position) from None
                if not self.fill():
                    raise
                continue
            if end < len(self.text) or not self.fill():  # a number at the very end may go on
                self.position = min(end, len(self.text))
                return row, problem


def _not_utf8(reason, start):
    return Problem("not_utf8", f"is not UTF-8 ({reason} at byte {start}); convert it, for example with iconv -f GB18030 -t UTF-8")


def _too_deep():
    return Problem("not_json", "nested too deeply; a row is an object with a few levels")


def _unicode_problem(row, text, start=0, end=None):
    """Return a Problem where a string of the row holds half of a surrogate pair, which only an escape can bring in."""
    if not _HALF_PAIR.search(text, start, len(text) if end is None else end):
        return None
    values = [row]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.keys()
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return Problem("unicode", "holds half of a surrogate pair (invalid Unicode); remove that character")
    return None


def _shape_problem(row):
    if isinstance(row, dict):
        return None
    return Problem("shape", f"a row must be a JSON object, but this is {type(row).__name__}")

"""Rows of data files, each with the place where it stands."""

import json


def read_rows(file):
    """Read a file of JSON Lines, or of one JSON array.

    Args:
        file (str | os.PathLike): its path.

    Yields:
        tuple[str, object, str | None]: "file:line" (or "file: element N" of an array), the row, and what is wrong with it, None where
        nothing is. A row that is wrong may be None. A file that can't be read yields one such tuple.
    """
    try:
        with open(file, encoding="utf-8-sig") as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        yield file, None, f"is not UTF-8 ({error.reason} at byte {error.start}); convert it, for example with iconv -f GB18030 -t UTF-8"
        return
    except OSError as error:
        yield file, None, f"cannot be read ({error.strerror})"
        return
    if text.lstrip().startswith("["):
        try:
            array = json.loads(text)
        except ValueError as error:
            yield f"{file}:{getattr(error, 'lineno', 1)}", None, f"not valid JSON ({getattr(error, 'msg', error)})"
            return
        numbered = ((f"{file}: element {number}", row, None) for number, row in enumerate(array, 1))
    else:
        numbered = ((f"{file}:{number}", *_parse(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for where, row, problem in numbered:
        yield where, row, problem or _shape_problem(row)


def _parse(line):
    try:
        return json.loads(line), None
    except ValueError as error:
        column = getattr(error, "colno", 1)
        return None, f"not valid JSON ({getattr(error, 'msg', error)} at column {column}); each line must hold one JSON object"


def _shape_problem(row):
    if not isinstance(row, dict):
        return f"a row must be a JSON object, but this is {type(row).__name__}"
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair (invalid Unicode); remove that character"
    return None

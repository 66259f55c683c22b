"""Pretraining data from a folder of text files: decoded, and split where a paragraph or a sentence ends."""

import codecs
import fnmatch
import hashlib
import io
import os
import re
from pathlib import Path

from xtuner_wulewule.dataset.prepare.part_file import PartFile
from xtuner_wulewule.dataset.progress import progress
from xtuner_wulewule.errors import DataError, SettingsError, first_of

BLOCK = 2**20  # bytes read at a time
LOOKAHEAD = 32  # characters after a chunk that decide whether it may end there
GB2312_SHARE = 0.3  # Chinese text, traditional too, has more; a Western text that happens to decode as GB18030 has next to none

_CLOSING = r"[\"'”’」』）)\]】》〉]*"
_CJK = r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef“‘]"
# each matches up to a place where a text may be cut; the white space there falls away
_PARAGRAPH = re.compile(r"(?=\n[^\S\n]*\n)")
_LINE = re.compile(r"(?=\n)")
_SENTENCE = re.compile(rf"(?:[。！？；…]+|[.!?]+(?={_CLOSING}(?:\s|{_CJK}))){_CLOSING}")
_CLAUSE = re.compile(rf"[，、：—]+{_CLOSING}|[,;:]+{_CLOSING}(?=\s)|(?=[^\S\n])")
_LETTERS = re.compile(r"(?<![!-~])|(?![!-~])")  # not inside a word, a number or an address
_SPACE = re.compile(r"\s*")
_NO_END = re.compile(
    r"(?:\b(?:cf|vs|etc|al|approx|Mr|Mrs|Ms|Dr|Prof|St|No|Nos|[Vv]ol|Figs?|Eq|Sec|[Cc]h|pp?|Jr|Sr|[A-Z]|(?:[A-Za-z]\.)+[A-Za-z])"
    r"|(?:^|\n)[^\S\n]*\d{1,3})\.$"  # the number of a list's item
)


def find_files(folder, pattern):
    """Return the text files below a folder (list[pathlib.Path]), "2.txt" before "10.txt".

    Args:
        folder (str | os.PathLike): where to look, in all its folders.
        pattern (str): patterns of names, separated by commas; case does not matter.

    Raises:
        SettingsError: there is no such folder.
        DataError: there is no such file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SettingsError(f"there is no folder {folder}; give the folder that holds the text files")
    patterns = [one.strip().lower() for one in pattern.split(",") if one.strip()]
    found = [path for path in folder.rglob("*") if any(fnmatch.fnmatchcase(path.name.lower(), one) for one in patterns) and path.is_file()]
    if not found:
        raise DataError(f"{folder}: no file matches {pattern}; give --pattern, for example --pattern '*.txt,*.text'")
    return sorted(found, key=lambda path: (_natural(path.relative_to(folder)), str(path)))


def _natural(path):
    return [[(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", part)] for part in path.parts]


def read_blocks(file, encoding):
    """Yield the text of a file in pieces (str), every line end as a newline."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)


def inspect(file):
    """Find out how a text file is encoded.

    Args:
        file (str | os.PathLike): its path.

    Returns:
        tuple[str, str]: Python's name of the encoding, and the SHA-256 of the contents.

    Raises:
        DataError: it is neither UTF-8, UTF-16 with a byte order mark, nor GB18030.
    """
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        start = stream.read(4)
        stream.seek(0)
        while block := stream.read(BLOCK):
            if b"\0" in block and not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                byte = stream.tell() - len(block) + block.index(b"\0")
                raise DataError(f"{file}: byte {byte} is zero, so it is not text, or UTF-16 without a byte order mark; convert it to UTF-8")
            digest.update(block)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        _first_error(file, "utf-16", "UTF-16, as its byte order mark says")
        return "utf-16", digest.hexdigest()
    problem = _decode_error(file, "utf-8")
    if problem is None:
        return "utf-8-sig", digest.hexdigest()
    _first_error(file, "gb18030", f"UTF-8 ({problem[1]} at byte {problem[0]}) or GB18030")
    if _gb2312_share(file) < GB2312_SHARE:
        raise DataError(
            f"{file}: byte {problem[0]} is not UTF-8 ({problem[1]}), and read as GB18030 it would not be Chinese; convert it to UTF-8, for "
            "example with iconv"
        )
    return "gb18030", digest.hexdigest()


def _first_error(file, encoding, tried):
    problem = _decode_error(file, encoding)
    if problem is not None:
        raise DataError(f"{file}: byte {problem[0]} is not {tried} ({problem[1]}); convert the file to UTF-8, for example with iconv")


def _decode_error(file, encoding):
    """Return (byte, reason) of the first thing that cannot be decoded, or None."""
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0
    with open(file, "rb") as stream:
        while True:
            block = stream.read(BLOCK)
            held = len(decoder.getstate()[0])  # bytes of a character that began in the block before
            try:
                if "\0" in decoder.decode(block, final=not block):
                    return done, "a zero character"
            except UnicodeDecodeError as error:
                return done - held + error.start, error.reason
            if not block:
                return None
            done += len(block)


def _gb2312_share(file):
    """Return which share of what is not ASCII (float), in the first block, is also in GB2312: the characters of everyday Chinese."""
    text = re.sub(r"[\x00-\x7f]", "", next(read_blocks(file, "gb18030")))
    return len(text.encode("gb2312", "ignore")) / 2 / len(text) if text else 1.0


def split(blocks, size, overlap=0):
    """Split a text where a paragraph ends, else where a sentence ends, else between clauses or words, else where it must be.

    Args:
        blocks (iterable[str]): the text in pieces.
        size (int): characters of a chunk at most.
        overlap (int): characters at most that a chunk repeats from the one before, from the beginning of a sentence where there is one.

    Yields:
        str: the chunks in order, without white space around them; with overlap 0 they are the whole text but for that.
    """
    blocks = iter(blocks)
    text, start, done, ended = "", 0, 0, False  # the next chunk begins at start; everything before done has been in one
    while True:
        while not ended and len(text) - start <= size + LOOKAHEAD:
            block = next(blocks, None)
            ended = block is None
            text = text[start:].rstrip() + "\n" if block is None else text[start:] + block
            start, done = 0, done - start
        if ended and not text[done:].strip():
            return
        if ended and len(text) - start <= size + 1:
            yield text[start:].strip()
            return
        cut = _cut(text, start, done, size)
        if chunk := text[start:cut].strip():
            yield chunk
        done = _SPACE.match(text, cut).end()
        start = _overlap_start(text, start, cut, overlap) if overlap else done
        if start + size <= done:  # there is more white space between them than a chunk may hold
            start = done


def _ends(pattern, text, start, low, high):
    """Yield the positions in (low, high] where a text may be cut; nothing before `start`, the chunk's beginning, decides."""
    for match in pattern.finditer(text, low, high + LOOKAHEAD):
        if low < match.end() <= high and not (match[0].startswith((".", "!", "?")) and _goes_on(text, start, match)):
            yield match.end()


def _goes_on(text, start, match):
    """Return whether the sentence goes on (bool): after an abbreviation, or in a lower-case letter."""
    following = text[match.end() : match.end() + LOOKAHEAD].lstrip()
    return following[:1].islower() or bool(_NO_END.search(text[max(start, match.start() - 12) : match.start() + 1]))


def _cut(text, start, low, size):
    """Return where the chunk that begins at `start` ends: beyond `low`, after `size` characters at most."""
    high = start + size
    half = (max(low, start) + high) // 2
    for patterns, begin in (
        ((_PARAGRAPH, _LINE, _SENTENCE), half),
        ((_PARAGRAPH, _LINE, _SENTENCE), low),
        ((_CLAUSE, _LETTERS), half),
        ((_CLAUSE, _LETTERS), low),
    ):
        for pattern in patterns:
            end = max(_ends(pattern, text, start, begin, high), default=None)
            if end is not None:
                return end
    return high


def _overlap_start(text, start, cut, overlap):
    """Return where the chunk after one from `start` to `cut` begins, `overlap` characters at most before its end."""
    low = max(start, cut - overlap - 1)
    for pattern in (_LINE, _SENTENCE, _CLAUSE, _LETTERS):
        begin = min(_ends(pattern, text, start, low, cut - 1), default=None)
        if begin is not None:
            return _SPACE.match(text, begin).end()
    return cut


def prepare(folder, out, pattern="*.txt,*.md", size=2000, overlap=0, overwrite=False):
    """Make pretraining data from the text files of a folder.

    Args:
        folder (str | os.PathLike): the folder.
        out (str | os.PathLike): the JSON Lines file to make, one `{"text": …}` a row.
        pattern (str): as for `find_files`.
        size (int): as for `split`.
        overlap (int): as for `split`.
        overwrite (bool): whether an existing file may be replaced.

    Returns:
        dict: rows, files, encodings (files of each), empty (the files without text), kept (files that an earlier run had finished).

    Raises:
        DataError: a file cannot be read; all are named before anything is written.
        SettingsError: a setting makes no sense.
    """
    if size < 16:
        raise SettingsError(f"--chunk-size {size}: at least 16 characters")
    if not 0 <= overlap <= size // 2:
        raise SettingsError(f"--overlap {overlap}: from 0 to half of --chunk-size, which is {size // 2}")
    ours = {os.path.abspath(f"{out}{suffix}") for suffix in ("", ".part", ".part.state")}
    files = [file for file in find_files(folder, pattern) if os.path.abspath(file) not in ours]
    with PartFile(out, {"made by": "data pretrain", "chunk size": size, "overlap": overlap}, overwrite) as part:
        found = _inspect_all(files)
        kept = 0
        with progress(sum(os.path.getsize(file) for file in files), "splitting") as advance:
            for file, (encoding, digest) in zip(files, found, strict=True):
                key = f"{file.relative_to(folder)} {digest}"
                if part.skip(key):
                    kept += 1
                else:
                    part.add(key, ({"text": chunk} for chunk in split(read_blocks(file, encoding), size, overlap)))
                advance(os.path.getsize(file))
        encodings = [encoding for encoding, _ in found]
        result = {
            "rows": part.rows(),
            "files": len(files),
            "encodings": {name: encodings.count(name) for name in sorted(set(encodings))},
            "empty": [str(file) for file, record in zip(files, part.records, strict=True) if not record["rows"]],
            "kept": kept,
        }
        part.finish()
    if not result["rows"]:
        raise DataError(f"{folder}: there is no text in the {len(files)} files; nothing was written")
    return result


def _inspect_all(files):
    found, problems = [], []
    with progress(sum(os.path.getsize(file) for file in files), "reading") as advance:
        for file in files:
            try:
                found.append(inspect(file))
            except DataError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{file}: cannot be read ({error.strerror})")
            advance(os.path.getsize(file))
    if problems:
        raise DataError(f"{first_of(problems)}; nothing was written")
    return found

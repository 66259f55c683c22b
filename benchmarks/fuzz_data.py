"""Feed the reader and the check of data files with mutated files: no crash, no hang, no lost row.

    pip install atheris            # Linux, Python 3.11 and later
    python benchmarks/fuzz_data.py --seconds 600

Ends with status 0 and prints how many files were tried; at the first file that breaks a rule it stops, and atheris writes that file to
the current folder as crash-* or timeout-*.
"""

import argparse
import gzip
import os
import sys
import tempfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
BOM = b"\xef\xbb\xbf"
SLOWEST = 10  # seconds for a file of at most 4096 bytes


def check(data, file):
    """Read and check a file of these bytes; raise AssertionError where a row is lost."""
    from xtuner_wulewule.dataset.reader import read_rows
    from xtuner_wulewule.dataset.validation import check_files

    Path(file).write_bytes(data)
    found = list(read_rows(file))
    report = check_files([file])
    rows = sum(report.rows.values())
    right = sum(problem is None for _, _, problem in found)
    errors = report.count("error")
    assert rows <= right, "the check has more rows than the reader"
    assert found or errors == 1, "nothing was read and nothing was said"
    assert rows + errors >= len(found), "a row that was read is neither counted nor an error"
    if lines_can_be_counted(data):
        lines = sum(bool(line.removeprefix(BOM).strip()) for line in data.split(b"\n"))
        assert len(found) == lines, f"{lines} lines, but {len(found)} rows and problems"


def lines_can_be_counted(data):
    """Return whether the bytes are read as lines: no array, no gzip, no other format."""
    first = data.removeprefix(BOM).lstrip()
    return not first.startswith((b"[", BOM)) and not data.startswith((b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff", b"PK\x03\x04", b"PAR1"))


def main():
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="how long (600)")
    args = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("fuzz_data needs atheris, which is not installed: pip install atheris")
    from broken_files import broken_files

    with atheris.instrument_imports(include=["xtuner_wulewule.dataset", "json"]):
        import xtuner_wulewule.dataset.validation  # noqa: F401

    folder = tempfile.mkdtemp(prefix="fuzz-data-")
    corpus = Path(folder, "corpus")
    corpus.mkdir()
    for broken in broken_files():
        if len(broken.data) <= 4096:
            (corpus / broken.name).write_bytes(broken.data)

    def one(data):
        check(data, os.path.join(folder, "file"))
        check(gzip.compress(data, 1, mtime=0), os.path.join(folder, "file"))

    def mutate(data, size, seed):  # inside a gzip the text is mutated, not the compressed bytes
        if data[:2] == b"\x1f\x8b" and seed % 2:
            try:
                inner = zlib.decompressobj(31).decompress(data, 2**16)
            except zlib.error:
                inner = data
            return gzip.compress(atheris.Mutate(inner, size), 1, mtime=0)[:size]
        return atheris.Mutate(data, size)

    options = [f"-max_total_time={args.seconds}", "-max_len=4096", f"-timeout={SLOWEST}", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

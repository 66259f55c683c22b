"""Tokenised documents on the disk, in a folder that is complete or absent."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np

from xtuner_wulewule import paths
from xtuner_wulewule.errors import DataError

ABANDONED = 24 * 3600  # seconds
TOKENS, OFFSETS, LEDGER = "tokens.bin", "offsets.bin", "ledger.json"


class TokenStore:
    """The tokens of all documents, one behind the other.

    Args:
        folder (pathlib.Path): what `write` made.

    Attributes:
        tokens (numpy.ndarray): int32, on the disk, shape (tokens,); ids where trained, else `~id`.
        offsets (numpy.ndarray): int64, shape (documents + 1,); document d is `tokens[offsets[d]:offsets[d + 1]]`.
        ledger (dict): rows read, tokens in, tokens kept, what was left out: row and reason, and the warnings that were logged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.offsets = np.fromfile(self.folder / OFFSETS, dtype=np.int64)
        self.tokens = np.memmap(self.folder / TOKENS, dtype=np.int32, mode="r") if self.offsets[-1] else np.zeros(0, dtype=np.int32)
        self.ledger = read_ledger(self.folder)


def read_ledger(folder):
    """Return the ledger (dict) of a token store (pathlib.Path); raise DataError where it is damaged."""
    try:
        ledger = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
        ledger["warnings"], ledger["rows"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{folder / LEDGER} is damaged: delete the folder {folder}, and the data is tokenised anew") from None
    return ledger


def write(folder, batches):
    """Write a token store; it appears under its name only when it is complete.

    Args:
        folder (pathlib.Path): its place. Where another process was faster, that one's is kept.
        batches (iterable): yields the tokens and lengths of documents as `Encoder.assemble` returns them, and the ledger (dict) last.

    Raises:
        OSError: the folder can't be written.
    """
    with (
        paths.made_aside(folder, LEDGER) as building,
        open(building / TOKENS, "wb") as tokens_file,
        open(building / OFFSETS, "wb") as offsets_file,
    ):
        end = 0
        offsets_file.write(np.int64(0).tobytes())
        for batch in batches:
            if isinstance(batch, dict):
                (building / LEDGER).write_text(json.dumps(batch, ensure_ascii=False), encoding="utf-8")
                continue
            tokens, lengths = batch
            tokens_file.write(tokens)
            offsets = end + np.cumsum(lengths, dtype=np.int64)
            offsets_file.write(offsets.tobytes())
            end = int(offsets[-1]) if len(offsets) else end


def content_key(files, *settings):
    """Return what identifies a token store (str): the contents of the files, in order, and the settings.

    Args:
        files (list[str]): paths.
        settings: values whose `repr` identifies them.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        of_file = hashlib.sha256()
        with open(file, "rb") as stream:
            while block := stream.read(2**20):
                of_file.update(block)
        digest.update(of_file.digest())
    return digest.hexdigest()[:24]


def forget_old(folder, keep):
    """Delete the stores of a folder that were used least recently, all but `keep` of them, and what killed processes have left.

    Args:
        folder (pathlib.Path): holds stores.
        keep (int): how many stay.
    """
    stores = sorted((path for path in folder.iterdir() if (path / LEDGER).is_file()), key=lambda path: path.stat().st_mtime)
    for path in (*stores[:-keep], *filter(_is_abandoned, folder.glob(".*"))):
        shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(building):
    """Return whether nothing was written into a folder that is not complete (pathlib.Path) for a day."""
    try:
        written = max(path.stat().st_mtime for path in (building, *building.iterdir()))
    except OSError:  # its process has just completed it
        return False
    return time.time() - written > ABANDONED

"""Data files that are written item by item and can be continued after a kill."""

import fcntl
import json
import os
from pathlib import Path

from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.recipe.state import differences, sync, write_text


class PartFile:
    """A JSON Lines file that appears under its name only when it is whole.

    Rows go to `FILE.part`. `FILE.part.state` has the settings in its first line, then a line for each finished item: its key, the size of
    `FILE.part` after it, and a note. The same command given again keeps the items that are finished and still the same, and drops the rest.

    Args:
        file (str | os.PathLike): the file to make.
        settings (dict): what must be equal for the rows of an earlier run to be kept; it is written to the disk.
        overwrite (bool): whether existing files may be replaced. Defaults to False.
        beside (str, optional): suffix of a second file that `finish` makes from the notes.

    Raises:
        SettingsError: the file exists, is being written by another process, or was begun with other settings.
    """

    def __init__(self, file, settings, overwrite=False, beside=None):
        self.file = Path(file)
        self.beside = Path(f"{file}{beside}") if beside else None
        self.part, self.state = Path(f"{file}.part"), Path(f"{file}.part.state")
        self.settings = settings
        for target in (self.file, self.beside):
            if target is not None and target.is_dir():
                raise SettingsError(f"--out {target} is a folder; give the name of a file")
            if target is not None and target.exists() and not overwrite:
                raise SettingsError(f"{target} exists and was left as it is; give another --out, or --overwrite to replace it")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._state = open(self.state, "a+", encoding="utf-8")  # stays open: it holds the lock
        try:
            fcntl.flock(self._state, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._state.close()
            raise SettingsError(f"another process is writing {self.file}; wait for it, or give another --out") from None
        self._rows = open(self.part, "ab")
        self.records = self._read_records()
        self.position = 0  # how many of them this run has repeated
        self._cleaned = False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """Close the files; where no item is finished there is nothing to continue, and they are removed."""
        self._rows.close()
        if not self.records:
            self.part.unlink(missing_ok=True)
            self.state.unlink(missing_ok=True)
        self._state.close()

    def _read_records(self):
        self._state.seek(0)
        lines = self._state.read().split("\n")[:-1]  # what has no line end was being written when the process was killed
        if not lines:
            return []
        try:
            begun, *records = map(json.loads, lines)
            changed = differences(begun, self.settings)
            whole = [record for record in records if record["bytes"] <= self._rows.tell()]
        except (ValueError, TypeError, KeyError, AttributeError):
            changed, whole = ["it cannot be read"], []
        if changed:
            self._rows.close()
            self._state.close()
            raise SettingsError(
                f"{self.part} was begun with other settings ({', '.join(changed)}): give those again to go on, "
                f"or remove it and {self.state}"
            )
        return whole

    def skip(self, key):
        """Return whether the next item, named `key` (str), was finished by an earlier run (bool)."""
        if self.position < len(self.records) and self.records[self.position]["key"] == key:
            self.position += 1
            return True
        return False

    def add(self, key, rows, note=None):
        """Write the rows of the next item, and note that it is finished.

        Args:
            key (str): its name; contents that matter belong in it.
            rows (iterable[dict]): its rows, none or more; they are written as they come.
            note (dict, optional): what to remember of it.

        Returns:
            int: how many rows were written.
        """
        self._forget_the_rest()
        count = 0
        for row in rows:
            self._rows.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
        self._rows.flush()
        self.records.append({"key": key, "bytes": self._rows.tell(), "rows": count, "note": note})
        self._state.write(json.dumps(self.records[-1], ensure_ascii=False) + "\n")
        self._state.flush()
        self.position += 1
        return count

    def _forget_the_rest(self):
        """Before the first change: drop what an earlier run has left and this one does not repeat."""
        if self._cleaned:
            return
        self._cleaned = True
        del self.records[self.position :]
        self._state.truncate(0)
        for line in (self.settings, *self.records):
            self._state.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._rows.truncate(self.records[-1]["bytes"] if self.records else 0)
        self._rows.seek(0, os.SEEK_END)

    def notes(self):
        """Return the notes (list[dict]) of all items, in order; items without one have none in it."""
        return [record["note"] for record in self.records if record["note"]]

    def rows(self):
        """Return how many rows there are (int)."""
        return sum(record["rows"] for record in self.records)

    def finish(self, beside=()):
        """Move the file into place; where it has no rows, remove it.

        Args:
            beside (list[dict]): rows of the second file; where there are none, there is no such file.
        """
        self._forget_the_rest()
        if self.beside is not None:
            self.beside.unlink(missing_ok=True)
            if beside:
                write_text(self.beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in beside))
        self._rows.flush()
        if self.rows():
            sync(self.part)
            os.replace(self.part, self.file)
        self.records = []  # nothing to continue

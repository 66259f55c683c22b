"""What a model has answered, written down as it comes, so that an evaluation that was stopped goes on."""

import json
import os
from pathlib import Path

from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.recipe.state import differences


class Answers:
    """A JSON Lines file: first what decides the answers, then a line for each.

    Args:
        file (pathlib.Path): the file; it is made where it is missing.
        settings (dict): what must be equal for earlier answers to count.
        overwrite (bool): whether answers of other settings may be replaced. Defaults to False.

    Raises:
        SettingsError: the file holds answers of other settings, or is none of ours.
    """

    def __init__(self, file, settings, overwrite=False):
        self.file = Path(file)
        self.known = {}
        settings = json.loads(json.dumps(settings))
        lines = self.file.read_text(encoding="utf-8").split("\n")[:-1] if self.file.is_file() else []  # one without its end was cut off
        if lines and not overwrite:
            self._read(lines, settings)
        mode = "a" if self.known else "w"
        if mode == "a":
            os.truncate(self.file, sum(len(line.encode()) + 1 for line in lines))
        self._stream = open(self.file, mode, encoding="utf-8")
        if mode == "w":
            self._write(settings)

    def _read(self, lines, settings):
        try:
            first, *rows = map(json.loads, lines)
            changed = differences(first, settings)
            self.known = {(row["of"], row["id"]): row for row in rows}
        except (ValueError, TypeError, KeyError, AttributeError):
            changed = ["it cannot be read"]
        if changed:
            raise SettingsError(
                f"{self.file} holds the answers of another evaluation ({', '.join(changed)}); another --out, or --overwrite, begins anew"
            )

    def _write(self, row):
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._stream.flush()

    def add(self, of, id, **values):
        """Write an answer down: of which model (str), to what (str), and what was found."""
        self.known[of, id] = dict(of=of, id=id, **values)
        self._write(self.known[of, id])

    def close(self):
        """Close the file."""
        self._stream.close()

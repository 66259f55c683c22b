"""Which rows are trained, and how: a share is held out for evaluation, a share is trained without the system prompt.

Both are decided by a hash of what a row says: the same row falls on the same side on every machine, whatever the order of rows and files,
and stays there when others are added. A greater share holds out all that a smaller one does.
"""

import hashlib
from dataclasses import dataclass

from xtuner_wulewule.dataset.duplicates import letters
from xtuner_wulewule.errors import DataError, SettingsError


def key_of(row):
    """Return what tells a row from others when it is held out (str): its questions; of a text without questions, the text.

    Case, white space and punctuation do not count, nor do the answers and the system prompt: what asks the same falls on one side.

    Args:
        row (dict): with `conversation` or `text`.
    """
    turns = row.get("conversation") or [{"output": row.get("text")}]
    questions = [turn.get("input") or "" for turn in turns]
    texts = questions if any(questions) else [turn.get("output") or "" for turn in turns]
    return "\n".join(letters(text) or text.strip() for text in texts)


def _number(*texts):
    """Return a number (float) in [0, 1) that is always the same for the same texts."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True)
class Split:
    """Chooses among rows.

    Args:
        held_out (float): share of the rows that are not trained, of those that the questions tell apart.
        system_dropout (float): share of the trained conversations that lose their system prompt.
        seed (int): of the latter.

    Raises:
        SettingsError: a share is not one.
    """

    held_out: float = 0.0
    system_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name, most in (("held_out", "< 1"), ("system_dropout", "<= 1")):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not (0 <= share < 1 or (share == 1 and most == "<= 1")):
                raise SettingsError(f"train_dataloader.dataset.{name} is {share!r}; it must be a share of the rows: 0 <= {name} {most}")

    def holds_out(self, row):
        """Return whether a row (dict) is kept from the training (bool)."""
        return self.held_out > 0 and _number(key_of(row)) < self.held_out

    def drops_system(self, row):
        """Return whether a row (dict) is trained without the system prompt that it has (bool)."""
        turns = row["conversation"]
        if not self.system_dropout or not turns[0].get("system"):
            return False
        return _number(f"system {self.seed}", *(turn.get(key) or "" for turn in turns for key in ("input", "output"))) < self.system_dropout

    def check_rest(self, trained):
        """Raise DataError where no row is left to train; `trained` (int) are."""
        if not trained:
            raise DataError(f"all rows are held out (train_dataloader.dataset.held_out={self.held_out}); use more rows, or 0")

"""Rows with the same or nearly the same text, found with 76 bytes a row."""

import re
from array import array

ROWS = 8_000_000  # of which exact duplicates are sought
SIGNED_ROWS = 1_000_000  # of which near-duplicates are sought
SLOTS, BAND = 16, 4  # minimum hashes of a row, and how many must agree for two rows to be compared
ALIKE = 13  # of the hashes: about four fifths of the four-character pieces of both texts are common
SHORTEST = 80  # characters; shorter texts differ in too few pieces
LONGEST = 16_384  # characters that are looked at
_IGNORED = re.compile(r"[\W_]+")


def letters(text):
    """Return a text (str) in lower case without white space and punctuation."""
    return _IGNORED.sub("", text).lower()


class Duplicates:
    """Takes texts one by one and then finds the pairs. Memory is bounded by ROWS and SIGNED_ROWS."""

    def __init__(self):
        self.seen = 0
        self.hashes = array("q")
        self.signatures, self.signed = array("I"), array("I")
        self.unsigned = 0

    def add(self, text, core=None, group=""):
        """Take the next text.

        Args:
            text (str): an exact duplicate has the same.
            core (str, optional): what near-duplicates are told by. Defaults to the text.
            group (str): only texts of one group can be near-duplicates.

        Returns:
            bool: whether it is among those that are compared.
        """
        self.seen += 1
        if len(self.hashes) == ROWS:
            return False
        kept = letters(text)
        self.hashes.append(hash(kept))  # 64 bits, equal for equal texts within this process
        kept = kept if core is None else letters(core)
        if len(kept) >= SHORTEST:
            if len(self.signed) < SIGNED_ROWS:
                self.signed.append(len(self.hashes) - 1)
                signed = signature(kept[:LONGEST])
                if group:
                    signed ^= signed.dtype.type(hash(group) & 0xFFFFFFFF)  # no slot agrees with one of another group
                self.signatures.frombytes(signed.tobytes())
            else:
                self.unsigned += 1
        return True

    def find(self):
        """Yield (row, earlier row, "duplicate" or "near_duplicate"), in the order of the rows."""
        import numpy as np

        if not self.hashes:
            return
        hashes = np.frombuffer(self.hashes, dtype=np.int64)
        first = _first_of_equals(hashes)
        again = first != np.arange(len(first), dtype=np.uint32)
        for row in np.flatnonzero(again):
            yield int(row), int(first[row]), "duplicate"
        del first
        yield from self._near(again)

    def _near(self, again):
        """Yield the near-duplicates among the rows that are not in the mask `again`, the exact ones."""
        import numpy as np

        signatures = np.frombuffer(self.signatures, dtype=np.uint32).reshape(-1, SLOTS)
        if not len(signatures):
            return
        earlier = np.arange(len(signatures), dtype=np.uint32)
        for start in range(0, SLOTS, BAND):
            band = np.ascontiguousarray(signatures[:, start : start + BAND]).astype(np.uint64)
            first = _first_of_equals((band * _factors()).sum(axis=1, dtype=np.uint64))
            candidates = np.flatnonzero(first != np.arange(len(first), dtype=np.uint32))
            for some in np.array_split(candidates, len(candidates) // 65_536 + 1):
                alike = (signatures[some] == signatures[first[some]]).sum(axis=1) >= ALIKE
                earlier[some[alike]] = np.minimum(earlier[some[alike]], first[some[alike]])
        for row in np.flatnonzero(earlier != np.arange(len(earlier), dtype=np.uint32)):
            if not again[self.signed[row]]:
                yield self.signed[row], self.signed[int(earlier[row])], "near_duplicate"

    def notes(self):
        """Return what was left out (list[str])."""
        notes = []
        if self.seen > len(self.hashes):
            notes.append(f"duplicates were sought among the first {len(self.hashes):,} of {self.seen:,} rows")
        if self.unsigned:
            notes.append(
                f"near-duplicates were sought among the first {len(self.signed):,} long rows, {self.unsigned:,} more were not compared"
            )
        return notes


def _factors():
    import numpy as np

    return np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64)


def _first_of_equals(values):
    """Return for each value the index of the first that equals it (numpy.ndarray)."""
    import numpy as np

    order = np.argsort(values, kind="stable").astype(np.uint32)  # half of the memory
    ordered = values[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    del ordered
    first = np.empty(len(values), dtype=np.uint32)
    first[order] = order[begins][np.cumsum(begins, dtype=np.uint32) - np.uint32(1)]
    return first


def signature(text):
    """Return the minimum hashes (numpy.ndarray of SLOTS uint32) of a text's four-character pieces: alike for texts that are alike."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    a, b, c, d = _factors()
    pieces = codes[:-3] * a + codes[1:-2] * b + codes[2:-1] * c + codes[3:] * d
    pieces ^= pieces >> np.uint64(29)
    pieces *= d
    pieces ^= pieces >> np.uint64(32)
    pieces.sort()
    slots = np.arange(SLOTS, dtype=np.uint64) << np.uint64(60)  # the highest four bits of a hash choose its slot
    return (pieces[np.searchsorted(pieces, slots) % len(pieces)] >> np.uint64(28)).astype(np.uint32)

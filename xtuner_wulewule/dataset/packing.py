"""Packing by index: which pieces of which documents share a row. No token is copied, and none is left out."""

import numpy as np

BLOCK = 2**20  # documents packed at a time by best fit: keeps memory flat for a large corpus


def concat(lengths, capacity):
    """Lay documents end to end and cut the whole every `capacity` tokens, as XTuner's `Packer` does, the last partial row included.

    Args:
        lengths (numpy.ndarray): tokens of each document, in the order in which they are laid, shape (documents,).
        capacity (int): tokens a row.

    Returns:
        tuple[numpy.ndarray, ...]: of each piece the document, its first token within the document and its tokens, and the first piece of
        each row with the number of pieces at the end, shape (rows + 1,).
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(0, total, capacity, dtype=np.int64))
    begins, piece_lengths = cuts[cuts < total], np.diff(np.append(cuts[cuts < total], total))
    documents = np.searchsorted(ends, begins, side="right")
    firsts = begins - (ends - lengths)[documents]
    rows = np.searchsorted(begins, np.arange(0, total, capacity, dtype=np.int64))
    return documents, firsts, piece_lengths, np.append(rows, len(begins))


def one_each(lengths, capacity):
    """Give each document a row of its own; one longer than `capacity` takes several. Arguments and returns as for `concat`."""
    documents, firsts, piece_lengths = _pieces(lengths, capacity)
    return documents, firsts, piece_lengths, np.arange(len(documents) + 1)


def best_fit(lengths, capacity):
    """Put each document, longest first, into the row whose free space it fills best (best-fit decreasing, Johnson 1973).

    No document is split unless it is longer than `capacity`. The rows are in the order of their first documents, the documents of a row in
    their own order. Arguments and returns as for `concat`.
    """
    documents, firsts, piece_lengths = _pieces(lengths, capacity)
    rows = []
    for begin in range(0, len(documents), BLOCK):
        rows += _best_fit_block(piece_lengths[begin : begin + BLOCK], begin, capacity)
    order = np.fromiter((piece for row in rows for piece in row), dtype=np.int64, count=len(documents))
    bounds = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=bounds[1:])
    return documents[order], firsts[order], piece_lengths[order], bounds


def _best_fit_block(lengths, number, capacity):
    """Return rows (list[list[int]]) of piece numbers, which count from `number`."""
    rows, waiting, spaces = [], [[] for _ in range(capacity + 1)], 0  # rows by free space; bit s of `spaces`: there is a row with s free
    tokens = lengths.tolist()
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = tokens[piece]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1  # the lowest bit set: the smallest space that is large enough
            row = waiting[space].pop()
            if not waiting[space]:
                spaces ^= 1 << space
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number + piece)
        space -= length
        if space:
            waiting[space].append(row)
            spaces |= 1 << space
    return sorted(sorted(row) for row in rows)


def _pieces(lengths, capacity):
    """Cut documents that are longer than a row; return of each piece its document, its first token in it and its tokens."""
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = -(-lengths // capacity)
    documents = np.repeat(np.arange(len(lengths)), counts)
    firsts = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * capacity
    return documents, firsts, np.minimum(capacity, lengths[documents] - firsts)


MODES = {"best_fit": best_fit, "concat": concat, None: one_each}

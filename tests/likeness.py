"""How alike two questions are: near copies share pieces."""

from xtuner_wulewule.dataset.duplicates import letters


def pieces(text, length):
    """Return the pieces (set[str]) of a text's letters."""
    kept = letters(text)
    return {kept[start : start + length] for start in range(max(1, len(kept) - length + 1))}


def likeness(one, other):
    """Return the share of the pieces (set[str]) of two texts that both have: of "How do I boil an egg?" and "How do I boil eggs?" 56 %."""
    return len(one & other) / len(one | other)

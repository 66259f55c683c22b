"""Figures from answers: pure functions."""

import re
from collections import Counter

ROUNDS = 2000  # of the bootstrap
LEVEL = 0.95
# A CJK character is a token, of other scripts a word is. No dictionary: what it calls a word would change with its version, and it does not
# know the names of the game; scores of Chinese reading comprehension (CMRC) are counted by characters too.
_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]|[^\W_\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]+")


def tokens(text):
    """Return the tokens (list[str]) of a text: CJK characters and words of other scripts, in lower case, no punctuation.

    Example:
        >>> tokens("《黑神话》2024年上线 on Steam!")
        ['黑', '神', '话', '2024', '年', '上', '线', 'on', 'steam']
    """
    return _TOKEN.findall(text.lower())


def token_f1(answer, reference):
    """Return the F1 (float) of the tokens that two texts have in common, whatever their order."""
    given, wanted = tokens(answer), tokens(reference)
    return _f1(sum((Counter(given) & Counter(wanted)).values()), given, wanted)


def rouge_l(answer, reference):
    """Return the F1 (float) of the longest common subsequence of the tokens of two texts."""
    given, wanted = tokens(answer), tokens(reference)
    row = [0] * (len(wanted) + 1)
    for one in given:
        before = row
        row = [0]
        for place, other in enumerate(wanted):
            row.append(before[place] + 1 if one == other else max(row[place], before[place + 1]))
    return _f1(row[-1], given, wanted)


def _f1(common, given, wanted):
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def mean(groups):
    """Return the mean (float) of the values in groups (sequence of sequences of numbers)."""
    return sum(map(sum, groups)) / sum(map(len, groups))


def interval(items, statistic, seed=0):
    """Return the 95 % confidence interval (list[float], two) of a statistic, by percentile bootstrap.

    Args:
        items (list): what is drawn, with replacement. What belongs together (the turns of a conversation) is one item.
        statistic (callable): from a list of items to a number.
        seed (int): of the draws. Defaults to 0.
    """
    import numpy as np

    draws = np.random.default_rng(seed).integers(len(items), size=(ROUNDS, len(items)))
    values = [statistic([items[place] for place in draw]) for draw in draws]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def score(groups, seed=0):
    """Return a mean as the scorecard has it (dict): `value`, `interval`, and `count` of the values.

    Of yes and no that are all the same every draw is the same, too: the exact (Clopper-Pearson) bound then stands for what the bootstrap
    cannot see. 20 of 20 is not yet 100 %.

    Args:
        groups (list[list[float]]): values; those of one item together.
        seed (int): see `interval`.
    """
    values = [value for group in groups for value in group]
    if set(values) in ({0}, {1}):
        bound = ((1 - LEVEL) / 2) ** (1 / len(groups))
        between = [bound, 1.0] if values[0] else [0.0, 1 - bound]
    else:
        between = interval(groups, mean, seed)
    return dict(value=mean(groups), interval=between, count=len(values))

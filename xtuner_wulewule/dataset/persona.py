"""What the rows of data files tell of the persona that they were made for."""

from collections import Counter
from itertools import islice

from xtuner_wulewule import prompts
from xtuner_wulewule.dataset import texts
from xtuner_wulewule.dataset.reader import read_rows

SHOWN = 30  # characters of a system prompt, in a message
LOOKED_AT = 2_000  # rows of a file: a fraction of a second


def common_system(files):
    """Return the system prompt (str) that more than half of the rows state which ask who the assistant is; None where there is none.

    Those of other rows do not count: what HuixiangDou answered may have kept the prompt of the package.

    Args:
        files (list[str]): data files; one that is missing, and rows that are wrong, tell nothing.
    """
    votes = Counter()
    for file in files:
        for _, row, problem in islice(read_rows(file), LOOKED_AT):
            turns = row.get("conversation") if problem is None else None
            turn = turns[0] if isinstance(turns, list) and turns else None
            if isinstance(turn, dict) and isinstance(turn.get("input"), str) and texts.asks_identity(turn["input"]):
                system = turn.get("system")
                votes[system.strip() if isinstance(system, str) else ""] += 1
    system, count = next(iter(votes.most_common(1)), ("", 0))
    return system if system and 2 * count > votes.total() else None


def persona_of_rows(files, given):
    """Find whom data files are about; `wulewule data check` and a training, which both ask here, count the same warnings.

    Args:
        files (list[str]): as for `common_system`.
        given (dict[str, str]): what is said of the persona, as `prompts.given` returns it.

    Returns:
        tuple[Persona, str | None]: as it was given, else as the rows tell; and the `common_system` of the rows.
    """
    system = common_system(files)
    if system is None:
        return prompts.persona_of(given), None
    told = prompts.told_by(system)
    persona = prompts.persona_of(given, told)
    said = told.names if told else system
    if "system" not in given and ("name" not in given or any(name in said for name in persona.names)):
        persona = prompts.persona_of({**given, "system": system}, told)
    return persona, system


def short(system):
    """Return a system prompt (str) as messages quote it."""
    return system if len(system) <= SHOWN else f"{system[:SHOWN]}…"

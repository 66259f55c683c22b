"""Map functions from the rows of the wulewule data files to XTuner's `conversation` format.

They import nothing heavy, because XTuner's registry is extended with them while it is being imported, and are plain functions, because
mmengine registers no others.
"""

from collections.abc import Mapping

from xtuner_wulewule.errors import DataError
from xtuner_wulewule.prompts import current


def _quote(row):
    """The first 40 characters of the row, without line breaks, so that the user can find it."""
    import json

    try:
        return json.dumps(dict(row) if isinstance(row, Mapping) else row, ensure_ascii=False, default=str)[:40]
    except RecursionError:
        return type(row).__name__


def _fail(row, problem, field="", code="shape"):
    raise DataError(f"row {_quote(row)}…: {problem}", code, field, problem)


def field_of(number, key):
    """Return the field (str) of a key in turn `number`, counted from 1, for example "conversation[0].input"."""
    return f"conversation[{number - 1}].{key}"


def _turns(row):
    """Return the turns of `row["conversation"]`; raise DataError where it is not a non-empty list of objects."""
    if not isinstance(row, Mapping):
        _fail(row, f"a row must be a JSON object, but this is {type(row).__name__}")
    if "conversation" not in row:
        _fail(row, f'"conversation" is missing (the keys are {sorted(map(str, row))})', "conversation")
    turns = row["conversation"]
    if not isinstance(turns, (list, tuple)):
        _fail(row, f'"conversation" must be a list of turns, but it is {type(turns).__name__}', "conversation")
    if not turns:
        _fail(row, '"conversation" is empty; give it at least one turn', "conversation", "empty")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            _fail(
                row,
                f"turn {number} must be an object with input and output, but it is {type(turn).__name__}",
                f"conversation[{number - 1}]",
            )
    return turns


def _text(row, turn, number, key):
    field = key if turn is row else field_of(number, key)
    if key not in turn:
        _fail(row, f'turn {number} has no "{key}"', field, "no_answer" if key == "output" else "shape")
    value = turn[key]
    if not isinstance(value, str):
        _fail(row, f'"{key}" of turn {number} must be a string, but it is {type(value).__name__}', field, "not_string")
    return value


def wulewule_pretrain_map_fn(example):
    """Map a row of pretraining text; the text is kept whole, in order.

    Args:
        example (dict): `{"text": str}`, or the training guide's form `{"conversation": [{"input": "", "output": str}, …]}`, whose inputs
            must be empty: in pretraining everything is trained.

    Returns:
        dict: `{"conversation": [{"input": "", "output": str}]}`; several outputs are joined without a separator.

    Raises:
        DataError: the row has neither form, a value is not a string, or there is no text.

    Example:
        >>> wulewule_pretrain_map_fn({"text": "石猴出世。"})
        {'conversation': [{'input': '', 'output': '石猴出世。'}]}
    """
    if isinstance(example, Mapping) and example.get("text") is not None:
        text = _text(example, example, 1, "text")
    elif isinstance(example, Mapping) and example.get("conversation") is None:
        _fail(example, f'expected "text" or "conversation" (the keys are {sorted(map(str, example))})')
    else:
        text = ""
        for number, turn in enumerate(_turns(example), 1):
            if turn.get("input") not in (None, ""):
                problem = f'"input" of turn {number} must be empty in pretraining data; for conversations use wulewule_sft_map_fn'
                _fail(example, problem, field_of(number, "input"))
            text += _text(example, turn, number, "output")
    if not text.strip():
        _fail(
            example, "the text is empty; remove the row or fill it", "text" if example.get("text") is not None else "conversation", "empty"
        )
    return {"conversation": [{"input": "", "output": text}]}


def wulewule_sft_map_fn(example):
    """Map a conversation of one or more turns (self-cognition, HuixiangDou).

    The first turn gets a `system`: the row's own, else that of `prompts.current()` where it is missing, null or blank. Texts
    lose surrounding white space and nothing else.

    Args:
        example (dict): `{"conversation": [{"system": str | None, "input": str, "output": str}, …]}`; `system` on the first turn only.

    Returns:
        dict: `{"conversation": [{"system": str, "input": str, "output": str}, {"input": str, "output": str}, …]}`.

    Raises:
        DataError: an empty conversation, a missing key, a value that is not a string, an empty question or answer, a second system.

    Example:
        >>> wulewule_sft_map_fn({"conversation": [{"system": "s", "input": " 你是谁", "output": "悟了悟了 "}]})
        {'conversation': [{'system': 's', 'input': '你是谁', 'output': '悟了悟了'}]}
    """
    conversation = []
    for number, turn in enumerate(_turns(example), 1):
        system = turn.get("system")
        if system is not None and not isinstance(system, str):
            problem = f'"system" of turn {number} must be a string, but it is {type(system).__name__}'
            _fail(example, problem, field_of(number, "system"), "not_string")
        mapped = {"input": _text(example, turn, number, "input").strip(), "output": _text(example, turn, number, "output").strip()}
        for key, name in (("input", "question"), ("output", "answer")):
            if not mapped[key]:
                problem = f'the {name} ("{key}") of turn {number} is empty; fill it or remove the turn'
                _fail(example, problem, field_of(number, key), "empty")
        if number == 1:
            mapped = {"system": (system or "").strip() or current().system, **mapped}
        elif (system or "").strip():
            problem = f'turn {number} has a "system"; only the first turn may have one'
            _fail(example, problem, field_of(number, "system"), "second_system")
        conversation.append(mapped)
    return {"conversation": conversation}

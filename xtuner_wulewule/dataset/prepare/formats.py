"""Conversion between the training guide's format and ShareGPT, Alpaca and OpenAI messages.

Keys that a format does not define, such as "id", stay in the row as they are. What another format cannot hold is an error, never left out.
"""

from xtuner_wulewule.dataset.prepare.part_file import PartFile
from xtuner_wulewule.dataset.reader import read_rows
from xtuner_wulewule.dataset.roles import OPENAI, SHAREGPT
from xtuner_wulewule.errors import DataError, first_of

UNSUPPORTED = ("tools", "functions", "tool_calls", "function_call", "images", "image", "videos", "video", "audios", "audio")


def _text(value, what):
    if not isinstance(value, str):
        raise DataError(f"{what} must be a string, but it is {type(value).__name__}")
    return value


def _filled(value, what):
    if not _text(value, what).strip():
        raise DataError(f"{what} is empty; fill it or remove it")
    return value


def _list(value, what):
    if not isinstance(value, list) or not value:
        raise DataError(f"{what} must be a list that is not empty")
    return value


def _object(value, what, known):
    """Return the entries (dict) of an object that are not null; raise DataError where it has others than the known."""
    if not isinstance(value, dict):
        raise DataError(f"{what} must be an object, but it is {type(value).__name__}")
    found = {key: entry for key, entry in value.items() if entry is not None}
    unknown = [key for key in found if key not in known]
    if unknown:
        raise DataError(f"{what} has {', '.join(map(repr, unknown))}, which a conversation of texts cannot hold; remove it or the row")
    return found


def _from_messages(messages):
    """Return (system, turns) of a list of (role, text, what)."""
    system, turns, question = "", [], None
    for number, (role, text, what) in enumerate(messages):
        if role == "system":
            if number:
                raise DataError(f"{what} is a system prompt; only the first may be one")
            system = text
        elif role == "user":
            if question is not None:
                raise DataError(f"{what} is a second question in a row; join the two")
            question = _filled(text, what)
        else:
            if question is None:
                raise DataError(f"{what} answers no question; join it with the one before, or remove it")
            turns.append((question, _filled(text, what)))
            question = None
    if question is not None:
        raise DataError("the last question has no answer; remove it, or write one")
    if not turns:
        raise DataError("there is no question with an answer")
    return system, turns


def _read_wulewule(row):
    system, turns = "", []
    for number, turn in enumerate(_list(row.get("conversation"), '"conversation"'), 1):
        turn = _object(turn, f"turn {number}", ("system", "input", "output"))
        said = _text(turn.get("system", ""), f'"system" of turn {number}')
        if number == 1:
            system = said
        elif said.strip():
            raise DataError(f'turn {number} has a "system"; only the first may have one')
        turns.append(tuple(_filled(turn.get(key), f'"{key}" of turn {number}') for key in ("input", "output")))
    return system, turns


def _write_wulewule(system, turns):
    conversation = [{"input": question, "output": answer} for question, answer in turns]
    return {"conversation": [{**({"system": system} if system else {}), **conversation[0]}, *conversation[1:]]}


def _read_sharegpt(row):
    messages = []
    if row.get("system") is not None and _text(row["system"], '"system"').strip():
        messages.append(("system", row["system"], '"system"'))
    for number, message in enumerate(_list(row.get("conversations"), '"conversations"'), 1):
        what = f"message {number}"
        message = _object(message, what, ("from", "value"))
        role = SHAREGPT.meaning.get(_text(message.get("from"), f'"from" of {what}'))
        if role is None:
            raise DataError(f"{what} is from {message['from']!r}; a conversation of texts has {', '.join(SHAREGPT.meaning)}")
        messages.append((role, _text(message.get("value"), f'"value" of {what}'), what))
    return _from_messages(messages)


def _write_sharegpt(system, turns):
    messages = [{"from": "system", "value": system}] if system else []
    for question, answer in turns:
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": messages}


def _content(value, what):
    """Return the text of a message's content, a string or a list of text parts."""
    if not isinstance(value, list):
        return _text(value, f'"content" of {what}')
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise DataError(f"{what} has a part of type {kind!r}; a conversation of texts cannot hold it")
        texts.append(_text(_object(part, f"a part of {what}", ("type", "text")).get("text"), f'"text" of {what}'))
    return "".join(texts)


def _read_openai(row):
    messages = []
    for number, message in enumerate(_list(row.get("messages"), '"messages"'), 1):
        what = f"message {number}"
        message = _object(message, what, ("role", "content"))
        role = OPENAI.meaning.get(_text(message.get("role"), f'"role" of {what}'))
        if role is None:
            raise DataError(f"{what} has the role {message['role']!r}; a conversation of texts has {', '.join(OPENAI.meaning)}")
        messages.append((role, _content(message.get("content"), what), what))
    return _from_messages(messages)


def _write_openai(system, turns):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _read_alpaca(row):
    turns = []
    history = [] if row.get("history") is None else row["history"]
    for number, pair in enumerate(history if isinstance(history, list) else [None], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError('"history" must be a list of [question, answer]')
        turns.append(tuple(_filled(text, f'"history" {number}') for text in pair))
    parts = [_text(row.get(key) if row.get(key) is not None else "", f'"{key}"') for key in ("instruction", "input")]
    question = "\n".join(part for part in parts if part)
    turns.append((_filled(question, '"instruction"'), _filled(row.get("output"), '"output"')))
    return _text(row.get("system") if row.get("system") is not None else "", '"system"'), turns


def _write_alpaca(system, turns):
    *history, (question, answer) = turns
    row = {"instruction": question, "input": "", "output": answer}
    if system:
        row["system"] = system
    if history:
        row["history"] = [list(turn) for turn in history]
    return row


# of each format: the keys that it defines, how it is read, how it is written
FORMATS = {
    "wulewule": (("conversation",), _read_wulewule, _write_wulewule),
    "sharegpt": (("conversations", "system"), _read_sharegpt, _write_sharegpt),
    "alpaca": (("instruction", "input", "output", "system", "history"), _read_alpaca, _write_alpaca),
    "openai": (("messages",), _read_openai, _write_openai),
}


def convert_row(row, source, target, system=""):
    """Convert a row from one format to another.

    Args:
        row (dict): the row.
        source (str): a key of `FORMATS`.
        target (str): a key of `FORMATS`.
        system (str): the system prompt of a row that has none; '' leaves it without.

    Returns:
        dict: the same conversation; a blank system prompt is none.

    Raises:
        DataError: the row is not of that format, or has what the other cannot hold.

    Example:
        >>> convert_row({"instruction": "你是谁", "input": "", "output": "悟了悟了"}, "alpaca", "sharegpt")
        {'conversations': [{'from': 'human', 'value': '你是谁'}, {'from': 'gpt', 'value': '悟了悟了'}]}
    """
    keys, read, _ = FORMATS[source]
    target_keys, _, write = FORMATS[target]
    further = {key: value for key, value in row.items() if key not in keys}
    unsupported = [key for key in further if key in UNSUPPORTED and further[key]]
    if unsupported:
        raise DataError(f"the row has {', '.join(unsupported)}, which a conversation of texts cannot hold; remove it or the row")
    collisions = [key for key in further if key in target_keys]
    if collisions:
        raise DataError(f"the row has {', '.join(collisions)}, which means something else in the format {target}; rename it")
    own, turns = read(row)
    return {**further, **write(next((text for text in (own, system) if text.strip()), ""), turns)}


def convert(file, source, target, out, overwrite=False, system=""):
    """Convert a data file.

    Args:
        file (str | os.PathLike): JSON Lines, or a JSON array.
        source (str): its format, a key of `FORMATS`.
        target (str): the format to make.
        out (str | os.PathLike): the JSON Lines file to make.
        overwrite (bool): whether an existing file may be replaced.
        system (str): the system prompt of rows that have none; '' leaves them without.

    Returns:
        int: rows converted.

    Raises:
        DataError: rows that cannot be converted, each with its file and line; nothing is written then.
    """
    problems = []

    def converted():
        for where, row, problem in read_rows(file):
            try:
                if problem is None:
                    yield convert_row(row, source, target, system)
                    continue
            except DataError as error:
                problem = str(error)
            problems.append(f"{where}: {problem}")
        if problems:
            raise DataError(f"{first_of(problems)}; nothing was written, correct the data and start again")

    with PartFile(out, {"made by": "data convert", "from": source, "to": target, "system": system}, overwrite) as part:
        rows = part.add("all", converted())
        if not rows:
            raise DataError(f"{file}: there are no rows in it; nothing was written")
        part.finish()
    return rows

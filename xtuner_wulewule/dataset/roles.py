"""Who speaks in the formats that are lists of messages."""

from typing import NamedTuple


class Messages(NamedTuple):
    """A format of messages: the keys of a row's messages, of a message's role and of its text, and what each role means.

    Args:
        messages (str): for example "messages".
        role (str): for example "role".
        text (str): for example "content".
        meaning (dict): {name in the format: "system", "user" or "assistant"}.
    """

    messages: str
    role: str
    text: str
    meaning: dict


SHAREGPT = Messages(
    "conversations", "from", "value", {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
)
OPENAI = Messages("messages", "role", "content", {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"})

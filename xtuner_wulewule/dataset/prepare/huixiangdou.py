"""Conversations with a running HuixiangDou server.

Its `/huixiangdou_inference` takes {"text": …, "image": ""} and answers, in the pipeline chat_with_repo, a string that may begin with its
references, and in chat_in_group {"step": [{"state": …, "response": …, "refs": […]}, …], "debug": …}, whose last step counts.
"""

import json
import re
from pathlib import Path

from xtuner_wulewule.dataset.prepare.calls import Calls, Failed, Refused, Unreachable, ask_each, check_address, is_local, retry_after
from xtuner_wulewule.dataset.prepare.chunks import inspect, read_blocks
from xtuner_wulewule.dataset.prepare.part_file import PartFile
from xtuner_wulewule.dataset.progress import progress
from xtuner_wulewule.errors import SHOWN_PROBLEMS, DataError, SettingsError

_REFERENCES = re.compile(r"\A\*\*References:\*\*\s*\r?\n(?:\* [^\r\n]*\r?\n)+(?:\r?\n)?")


def read_questions(file):
    """Read questions.

    Args:
        file (str | os.PathLike): a text file with a question a line; or, where its name ends in .jsonl, a line for each conversation:
            a string, a list of strings, or {"questions": [strings]}.

    Returns:
        list[tuple[str, list[str]]]: "file:line" and the questions of each conversation.

    Raises:
        DataError: the file cannot be read, is empty, or lines are wrong.
    """
    if not Path(file).is_file():
        raise DataError(f"there is no file {file}; give a file with a question a line")
    encoding, _ = inspect(file)
    found, problems = [], []
    for number, line in enumerate("".join(read_blocks(file, encoding)).split("\n"), 1):
        if not line.strip():
            continue
        questions = _parse(line) if Path(file).suffix.lower() == ".jsonl" else [line.strip()]
        if questions:
            found.append((f"{file}:{number}", questions))
        else:
            problems.append(f"{file}:{number}")
    if problems:
        more = f" and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise DataError(
            f"{', '.join(problems[:SHOWN_PROBLEMS])}{more}: each line must be a string, "
            'a list of strings or {"questions": [strings]}, none empty'
        )
    if not found:
        raise DataError(f"{file}: there are no questions in it")
    return found


def _parse(line):
    """Return the questions (list[str]) of a line of JSON, or None where it has none."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    value = value.get("questions") if isinstance(value, dict) else [value] if isinstance(value, str) else value
    whole = isinstance(value, list) and all(isinstance(question, str) and question.strip() for question in value)
    return [question.strip() for question in value] if whole else None


class Server:
    """A HuixiangDou server.

    Args:
        address (str): for example http://127.0.0.1:23333.
        timeout (float): seconds to wait for an answer.
    """

    def __init__(self, address, timeout):
        import requests

        if not 0 < timeout < float("inf"):
            raise SettingsError(f"--timeout {timeout}: give a positive number of seconds")
        self.url = f"{check_address(address, '--server')}/huixiangdou_inference"
        self.timeout = timeout
        self.session = requests.Session()
        self.session.trust_env = not is_local(address)

    def ask(self, question, history):
        """Ask a question.

        Args:
            question (str): the question.
            history (list[list[str]]): the turns before it, [question, answer] each.

        Returns:
            str: the answer, without references and surrounding white space.

        Raises:
            Refused: the server says that it has no answer.
            Failed: the request failed or the reply makes no sense.
        """
        import requests

        body = {"text": question, "image": "", "history": history}
        try:
            reply = self.session.post(self.url, json=body, timeout=self.timeout, allow_redirects=False)
        except requests.exceptions.Timeout:
            raise Failed(f"no answer within {self.timeout:g} s") from None
        except requests.exceptions.ConnectionError as error:
            if _never_connected(error):
                raise Unreachable(f"cannot be reached at {self.url}") from None
            raise Failed("the connection broke") from None
        except requests.exceptions.RequestException as error:
            raise Failed(f"the reply is broken ({type(error).__name__})") from None
        status = reply.status_code
        if status in (408, 425, 429) or status >= 500:
            raise Failed(f"HTTP status {status}", retry_after(reply.headers.get("Retry-After")))
        if status in (401, 403, 404, 405) or 300 <= status < 400:
            raise Unreachable(f"{self.url} answers with HTTP status {status}, so it is not a HuixiangDou server that may be asked")
        if status != 200:
            raise Refused(f"HTTP status {status}")
        try:
            return answer_of(json.loads(reply.content))
        except (ValueError, RecursionError):
            raise Failed("the reply is not JSON") from None


def _never_connected(error):
    """Return whether a connection was never made (bool)."""
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    cause = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def answer_of(reply):
    """Return the answer (str) in a reply; raise Refused where there is none, and Failed where the reply has another shape."""
    if isinstance(reply, str):
        state, answer = "success", _REFERENCES.sub("", reply)
    else:
        steps = reply.get("step") if isinstance(reply, dict) else None
        last = steps[-1] if isinstance(steps, list) and steps else None
        if not isinstance(last, dict) or not all(isinstance(last.get(key), str) for key in ("state", "response")):
            raise Failed('the reply is neither a string nor {"step": [{"state": string, "response": string}]}')
        state, answer = last["state"], last["response"]
    try:
        answer.encode()
    except UnicodeEncodeError:
        raise Failed("the answer holds half of a surrogate pair (invalid Unicode)") from None
    if state != "success":
        raise Refused(f"state: {state}")
    if not answer.strip():
        raise Refused("the answer is empty")
    return answer.strip()


def ask_conversation(server, calls, system, where, questions):
    """Ask the questions of a conversation.

    Args:
        server (Server): the server.
        calls (Calls): makes the requests.
        system (str): system prompt of the row; '' for none.
        where (str): "file:line" of the questions.
        questions (list[str]): one a turn.

    Returns:
        tuple[list[dict], dict | None]: the row, and no note; or no row, and a note for the file of rejected questions.

    Raises:
        Unreachable: the server cannot be reached.
    """
    history: list[list[str]] = []
    for question in questions:
        try:
            history.append([question, calls(lambda question=question: server.ask(question, history))])
        except Unreachable:
            raise
        except (Failed, Refused) as error:
            note = {"where": where, "questions": questions, "answers": [answer for _, answer in history], "turn": len(history) + 1}
            return [], {**note, "reason": str(error), "failed": isinstance(error, Failed)}
    turns = [{"input": question, "output": answer} for question, answer in history]
    return [{"conversation": [{**({"system": system} if system else {}), **turns[0]}, *turns[1:]]}], None


def prepare(questions, server, out, system, timeout=60.0, retries=4, per_minute=None, overwrite=False):
    """Ask a HuixiangDou server, and write the conversations.

    Args:
        questions (str | os.PathLike): as for `read_questions`.
        server (str): address of the server.
        out (str | os.PathLike): the JSON Lines file to make; questions without an answer go to `OUT.rejected.jsonl`.
        system (str): system prompt of every conversation; '' for none.
        timeout (float): seconds to wait for an answer.
        retries (int): further tries.
        per_minute (float, optional): requests a minute at most.
        overwrite (bool): whether existing files may be replaced.

    Returns:
        dict: rows, and rejected, the notes (list[dict]) of what has no answer.

    Raises:
        DataError: the questions are wrong.
        SettingsError: a setting makes no sense, or the server cannot be reached.
    """
    calls, asked = Calls(retries, per_minute), Server(server, timeout)
    found = read_questions(questions)
    settings = {"made by": "data huixiangdou", "server": asked.url, "system": system}
    items = [(json.dumps([number, turns], ensure_ascii=False), where, (where, turns)) for number, (where, turns) in enumerate(found, 1)]
    with (
        PartFile(out, settings, overwrite, beside=".rejected.jsonl") as part,
        progress(len(items), "asking", "questions") as advance,
    ):
        ask_each(part, items, lambda calls, item: ask_conversation(asked, calls, system, *item), calls, advance, f"--server {asked.url}")
        rejected = [{key: value for key, value in note.items() if key != "failed"} for note in part.notes()]
        result = {"rows": part.rows(), "rejected": part.notes()}
        part.finish(rejected)
    return result

"""Conversations about who the assistant is: from templates, and put in other words by an OpenAI-compatible server."""

import json
import os
import random

from xtuner_wulewule.dataset.prepare.calls import Calls, Failed, Unreachable, ask_each, check_address, is_local, retry_after
from xtuner_wulewule.dataset.prepare.general_texts import GENERAL
from xtuner_wulewule.dataset.prepare.identity_texts import ADDRESSED, ALIASES, ANSWERS, COMPANIES, OTHERS, QUESTIONS
from xtuner_wulewule.dataset.prepare.part_file import PartFile
from xtuner_wulewule.dataset.progress import progress
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import given, names_of, persona_of

LONGEST_TEXT = 2000  # characters; a longer one is not an answer to who one is
INSTRUCTIONS = (
    "You put a question to an assistant and its answer in other words. Keep the language, the meaning, and every proper name exactly as "
    'written; add no facts. Reply with one JSON object and nothing else: {"question": "...", "answer": "..."}'
)


def make_pairs(name, author, languages, number=None, seed=0):
    """Return questions with answers (list[tuple[str, str]]) made from the templates, no two alike.

    Args:
        name (str): name of the assistant, or several with commas between: the first stands in Chinese rows, the last in others.
        author (str): who made it.
        languages (list[str]): "zh", "en" or both; each gets its share.
        number (int, optional): how many, each kind of row with its share; defaults to each question once.
        seed (int): which answers, and the order.

    Raises:
        SettingsError: there are not as many pairs.
    """
    chance = random.Random(seed)
    pairs = []
    for position, language in enumerate(languages):
        kinds = list(_kinds(names_of(name)[0 if language == "zh" else -1], author, language, chance).values())
        if number is None:
            pairs += [pair for rounds in kinds for pair in rounds[0]]
            continue
        share, available = _share(number, len(languages), position), _in_proportion([sum(rounds, []) for rounds in kinds])
        if share > len(available):
            raise SettingsError(f"--number {number}: the templates have {len(available)} different rows in {language}; give less")
        pairs += available[:share]
    chance.shuffle(pairs)
    return pairs


def general_pairs(languages, number, seed=0):
    """Return questions about other things, with answers (list[tuple[str, str]]), no two alike.

    Args:
        languages (list[str]): "zh", "en" or both; each gets its share.
        number (int): how many.
        seed (int): which, and in what order.

    Raises:
        SettingsError: there are not as many.
    """
    chance, pairs = random.Random(seed), []
    for position, language in enumerate(languages):
        share = _share(number, len(languages), position)
        if share > len(GENERAL[language]):
            raise SettingsError(f"--general {number}: the package has {len(GENERAL[language])} such rows in {language}; give less")
        pairs += chance.sample(GENERAL[language], share)
    chance.shuffle(pairs)
    return pairs


def _share(number, parts, position):
    """Return how many of `number` fall to one of so many parts, by its position: they differ by one at most, the first get more."""
    return (number + parts - 1 - position) // parts


def _in_proportion(kinds):
    """Return the items of all lists (list), mixed so that each list has its share of however many are taken from the front."""
    placed = [((place + 0.5) / len(items), item) for items in kinds for place, item in enumerate(items)]
    return [item for _, item in sorted(placed, key=lambda one: one[0])]


def _kinds(name, author, language, chance):
    """Return lists of (question, answer) by kind of question (dict[str, list[list]]): in the first list each question once, in the next
    each with another answer, and so on."""

    def fill(text, other=""):
        # one pass, so that a name may hold braces
        pieces = {"{name}": name, "{author}": author, "{other}": other}
        for key in pieces:
            text = text.replace(key, f"\0{key}\0")
        return "".join(pieces.get(piece, piece) for piece in text.split("\0"))

    others = {
        "other": [other for other in OTHERS if other.lower() != name.lower()],
        "company": _companies(author, language),
    }
    asked = {}  # two templates may give one question
    for kind, questions in QUESTIONS[language].items():
        for question in questions:
            for other in others.get(kind, [""]):
                asked.setdefault(fill(question, other), (kind, ANSWERS[language][kind]))
    for question, answer in ADDRESSED[language]:
        asked.setdefault(fill(question), ("addressed", [answer]))
    found: dict[str, list[list[tuple[str, str]]]] = {}
    for question, (kind, templates) in asked.items():
        answers = list(dict.fromkeys(fill(answer) for answer in templates))
        chance.shuffle(answers)
        rounds = found.setdefault(kind, [])
        for turn, answer in enumerate(answers):
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append((question, answer))
    for rounds in found.values():
        for one in rounds:
            chance.shuffle(one)
    return found


def _companies(author, language):
    """Return the companies (list[str]) that did not make the assistant, as the language calls them."""
    names = zip(*COMPANIES.values(), strict=True)
    return [
        company
        for company, known in zip(COMPANIES[language], names, strict=True)
        if not any(one.lower() in author.lower() for name in known for one in (name, *ALIASES.get(name, ())))
    ]


class Rephraser:
    """Puts texts in other words with an OpenAI-compatible server; the key is that of the environment.

    Args:
        address (str): for example http://127.0.0.1:8000/v1.
        model (str): the server's name of the model.
        names (list[str]): names that must be kept where they occur.
        timeout (float): seconds to wait for an answer.
    """

    def __init__(self, address, model, names, timeout):
        if not 0 < timeout < float("inf"):
            raise SettingsError(f"--timeout {timeout}: give a positive number of seconds")
        self.address, self.model, self.names = check_address(address, "--api-base"), model, names
        try:
            import openai
        except ImportError:
            raise SettingsError("--api-base needs the openai client: pip install 'xtuner-wulewule[api]'") from None
        self._key = os.environ.get("OPENAI_API_KEY") or "none"  # a local server may want none
        try:
            http = openai.DefaultHttpxClient(trust_env=not is_local(self.address))
            self.client = openai.OpenAI(api_key=self._key, base_url=self.address, max_retries=0, timeout=timeout, http_client=http)
        except Exception as error:  # whatever it is, its message might quote the key
            raise SettingsError(f"--api-base {self.address}: the openai client does not start ({type(error).__name__})") from None

    def ask(self, question, answer):
        """Return a question and its answer (tuple[str, str]) in other words; raise Failed where the reply is of no use."""
        import openai

        task = json.dumps({"question": question, "answer": answer}, ensure_ascii=False)
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": task}]
        try:
            reply = self.client.chat.completions.create(model=self.model, messages=messages)
            text = reply.choices[0].message.content
        except openai.APITimeoutError:
            raise Failed("no answer in time") from None
        except openai.APIStatusError as error:
            raise _of_status(error) from None
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError":
                raise Unreachable("cannot be reached") from None
            raise Failed("the connection broke") from None
        except Exception as error:  # a truncated or odd reply breaks the client in many ways, and its message might quote the key
            raise Failed(f"the reply is broken ({type(error).__name__})") from None
        return self.parse(text, question, answer)

    def parse(self, text, question, answer):
        """Return the question and the answer in a reply (tuple[str, str]); raise Failed where they are not what was asked for."""
        if not isinstance(text, str):
            raise Failed("the reply has no text")
        try:
            found = json.loads(text[text.find("{") : text.rfind("}") + 1])
            texts = [found[key].strip() for key in ("question", "answer")]
            "".join(texts).encode()
        except (ValueError, RecursionError):
            raise Failed("the reply is not JSON") from None
        except (KeyError, TypeError, AttributeError):
            raise Failed('the reply is not {"question": string, "answer": string}') from None
        for what, new, old in zip(("question", "answer"), texts, (question, answer), strict=True):
            if not new or len(new) > LONGEST_TEXT:
                raise Failed(f"the {what} is {'too long' if new else 'empty'}")
            lost = [name for name in self.names if name in old and name not in new]
            if lost:
                raise Failed(f"the {what} has lost the name {lost[0]}")
            if self._key != "none" and self._key in new:
                raise Failed(f"the {what} holds a secret")
        if any(other.lower() in texts[1].lower() for other in OTHERS if other not in self.names):
            raise Failed("the answer names another assistant")
        return texts[0], texts[1]


def _of_status(error):
    """Return what a reply with an error status means; its text is not repeated, since it may quote the key."""
    status = error.status_code
    if status in (401, 403):
        return Unreachable(f"HTTP status {status}: the key in OPENAI_API_KEY is missing or not accepted")
    if status in (404, 405):
        return Unreachable(f"HTTP status {status}: no such model (--model), or the address lacks its end, often /v1")
    return Failed(f"HTTP status {status}", retry_after(error.response.headers.get("Retry-After")))


def prepare(args):
    """Make identity conversations.

    Args:
        args (argparse.Namespace): the options of `wulewule data identity`.

    Returns:
        dict: rows, system, and kept, the notes (list[dict]) of rows that keep the words of their template.

    Raises:
        SettingsError: a setting makes no sense, or the server cannot be reached.
    """
    names, author = names_of(args.name), args.author.strip()
    languages = list(dict.fromkeys(language.strip() for language in args.lang.split(",")))
    if not names or not author:
        raise SettingsError(f"--{'author' if names else 'name'} is empty")
    if not set(languages) <= set(QUESTIONS):
        raise SettingsError(f"--lang {args.lang}: give zh,en or one of them")
    if args.number is not None and args.number < 1:
        raise SettingsError(f"--number {args.number}: at least 1")
    if args.general < 0:
        raise SettingsError(f"--general {args.general}: at least 0")
    if bool(args.api_base) != bool(args.model):
        raise SettingsError("--api-base and --model belong together; give both or none")
    system = persona_of(given(name=args.name, author=args.author, system=args.system)).system
    pairs = make_pairs(args.name, author, languages, args.number, args.seed)
    if args.general:
        pairs += general_pairs(languages, args.general, args.seed)
        random.Random(args.seed).shuffle(pairs)
    calls = Calls(args.retries, args.requests_per_minute)
    rephraser = Rephraser(args.api_base, args.model, [*names, author], args.timeout) if args.api_base else None
    settings = {"made by": "data identity", "system": system, "api-base": args.api_base, "model": args.model}

    def ask(calls, item):
        number, pair = item
        note = None
        if rephraser is not None:
            try:
                pair = calls(lambda: rephraser.ask(*pair))
            except Unreachable:
                raise
            except Failed as error:
                note = {"row": number, "reason": str(error), "failed": True}
        turn = {"input": pair[0], "output": pair[1]}
        return [{"conversation": [{"system": system, **turn} if system else turn]}], note

    items = [(json.dumps([number, *pair], ensure_ascii=False), f"row {number}", (number, pair)) for number, pair in enumerate(pairs, 1)]
    with PartFile(args.out, settings, args.overwrite) as part, progress(len(items), "writing", "rows") as advance:
        ask_each(part, items, ask, calls, advance, f"--api-base {args.api_base}")
        result = {"rows": part.rows(), "system": system, "kept": part.notes()}
        part.finish()
    return result

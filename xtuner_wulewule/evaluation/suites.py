"""What a model is asked: the packaged sets, and the rows of the data that were held out from its training."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from xtuner_wulewule.dataset.duplicates import letters
from xtuner_wulewule.dataset.loader import checker_of, conclude, existing_files
from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn
from xtuner_wulewule.dataset.split import Split, key_of
from xtuner_wulewule.dataset.texts import about_identity
from xtuner_wulewule.recipe.ask import fill

SUITES = ("persona", "knowledge", "forgetting")
LANGUAGES = ("zh", "en", "other")  # of the packaged questions and texts
SETS = Path(__file__).parent / "sets"
ASKED_IN_TRAINING = 8  # questions of ScoreHook, each with and without the system prompt
CHINESE = re.compile(r"[\u4e00-\u9fff]")
LIMITS = {"identity": 64, "neutral": 48, "knowledge": 256, "check": 48}  # tokens of an answer


@dataclass(frozen=True)
class Question:
    """One question to a model.

    Args:
        id (str): its name, unique in an evaluation.
        part (str): of `LIMITS`: what is asked, and how long the answer may be.
        text (str): the question.
        prompt (str): the question as the model sees it.
        system (bool): whether the prompt has the system prompt.
        facts (dict): what the answer is judged by: `kind` and `asks` of identity questions, `reference` and `conversation` of knowledge,
            `pattern` of checks.
    """

    id: str
    part: str
    text: str
    prompt: str
    system: bool
    facts: dict


@dataclass(frozen=True)
class Data:
    """The rows of the data files.

    Args:
        held_out (list[list[dict]]): the conversations that were held out.
        trained (frozenset[str]): the questions that were trained, as `letters` has them.
    """

    held_out: list[list[dict]]
    trained: frozenset[str]


def read_set(name, languages=LANGUAGES):
    """Return the rows (list[dict]) of a packaged set, for example "identity", in some of `LANGUAGES`."""
    rows = (json.loads(line) for line in (SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["language"] in languages]


def read_data(files, share):
    """Return the `Data` of files (list[str]) of which a share (float) was held out.

    Raises:
        DataError: a file is missing, or a row is wrong.
    """
    split, checker = Split(share), checker_of(wulewule_sft_map_fn, files, checks=False)
    held_out: dict[str, list[list[dict]]] = {}
    trained = set()
    for file in existing_files(files):
        for row in checker.rows(file):
            turns = row["conversation"]
            if split.holds_out(row):
                held_out.setdefault(key_of(row), []).append(turns)
            else:
                trained |= {letters(turn["input"]) for turn in turns}
    conclude(checker)
    alike = (held_out[key] for key in sorted(held_out))  # of those that ask the same one is asked, the same one whatever the order
    return Data([min(rows, key=lambda turns: [turn["output"] for turn in turns]) for rows in alike], frozenset(trained))


def persona_questions(persona, template, data, languages=LANGUAGES):
    """Return the questions (list[Question]) about who the assistant is, and neutral ones, each with and without the system prompt.

    The packaged questions are paraphrases that no training data should hold; one that the data does hold is left out, since it was
    trained. Rows about the identity that were held out are asked too.

    Args:
        persona (Persona): who it is said to be.
        template (dict): the prompt template.
        data (Data): the training data.
        languages (tuple[str, ...]): of `LANGUAGES`: what is asked in others is left out.
    """
    asked = []
    for row in read_set("identity", languages):
        name = persona.names[0 if row["language"] == "zh" else -1]
        asked.append((row["id"], "identity", row["question"].replace("{name}", name), dict(kind=row["kind"], asks=row["asks"])))
    for number, turns in enumerate((turns for turns in data.held_out if _of_identity(persona, turns)), 1):
        if not _spoken(turns, languages):
            continue
        said = turns[0]["output"].lower()
        asks = "name" if _any_in(persona.names, said) else "author" if _any_in([persona.author], said) else None
        if asks:  # another answer says nothing that could be looked for
            asked.append((f"identity-held-out-{number:02d}", "identity", turns[0]["input"], dict(kind="held_out", asks=asks)))
    asked += [(row["id"], "neutral", row["question"], {}) for row in read_set("neutral", languages)]
    return [
        Question(f"{id}{'+system' if system else ''}", part, text, fill(template, system, text), bool(system), facts)
        for id, part, text, facts in asked
        if letters(text) not in data.trained
        for system in dict.fromkeys((persona.system, ""))  # once where it has none
    ]


def _of_identity(persona, turns):
    return about_identity(turns, persona.names) or any(_any_in(persona.names, turn["output"].lower()) for turn in turns)


def _spoken(turns, languages):
    return ("zh" if CHINESE.search(turns[0]["input"]) else "en") in languages


def _any_in(words, text):
    return any(word.lower() in text for word in words)


def knowledge_questions(persona, template, data, languages=LANGUAGES):
    """Return the held-out questions (list[Question]) that are not about the identity, with their reference answers; each after the earlier
    turns of its conversation as the data has them, with the system prompt. One that another row trains is left out. Args as above."""
    found = []
    for number, turns in enumerate((turns for turns in data.held_out if not _of_identity(persona, turns)), 1):
        if not _spoken(turns, languages):
            continue
        for place, turn in enumerate(turns):
            if letters(turn["input"]) in data.trained:
                continue
            history = [(earlier["input"], earlier["output"]) for earlier in turns[:place]]
            prompt = fill(template, persona.system, turn["input"], history)
            facts = dict(reference=turn["output"], conversation=number)
            found.append(Question(f"knowledge-{number:03d}-{place + 1}", "knowledge", turn["input"], prompt, True, facts))
    return found


def check_questions(template, languages=LANGUAGES):
    """Return the arithmetic and format questions (list[Question]) in some languages, without a system prompt."""
    return [
        Question(row["id"], "check", row["question"], fill(template, "", row["question"]), False, dict(pattern=row["pattern"]))
        for row in read_set("checks", languages)
    ]

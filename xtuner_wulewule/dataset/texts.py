"""What a text of the training data should not hold. Every pattern is bounded, so that no text makes it slow."""

import functools
import re

from xtuner_wulewule.prompts import NAMES

OTHER_NAMES = tuple(
    "ChatGPT GPT-3 GPT-3.5 GPT-4 GPT-4o OpenAI Anthropic Claude Gemini Copilot DeepSeek Qwen ChatGLM InternLM Kimi Mistral Grok "
    "文心一言 通义千问 书生浦语 书生·浦语 智谱清言 讯飞星火 豆包 百川大模型 腾讯元宝 茴香豆 HuixiangDou".split()
)
_IDENTITY = re.compile(
    r"你是谁|您是谁|你叫什|您叫什|你的名字|介绍.{0,4}(?:你|您|自己)|谁.{0,4}(?:开发|创造|训练|制作|做出|设计)了?.{0,2}(?:你|您)|你是.{1,12}吗"
    r"|who (?:are|made|created|built|developed|trained) you|your name|introduce yourself|(?:who|what) are you|are you \w+",
    re.IGNORECASE,
)
_ASKS_FOR_LANGUAGE = re.compile(r"翻译|[英中汉外日法]文|[英汉外日法]语|translat|chinese|english|mandarin", re.IGNORECASE)
_GREETING = re.compile(r"(?:hi|hello|hey)\b.{0,16}$", re.IGNORECASE)  # with a name, which tells no language
_WORD = r"name|author|user|username|model|company|developer|organization|date|time|title|url|link|question|answer|input|output"
_PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,40}\}\}"
    r"|(?<![\\A-Za-z0-9_$^}{])\{[A-Za-z_][A-Za-z0-9_]{1,30}\}(?!\})"
    rf"|<(?:{_WORD}|(?:your|the|my)[ _-]\w{{1,20}}|[A-Z]+_[A-Z_]{{1,20}}|你的[^<>\n]{{1,10}}|姓名|名字|作者|公司|日期|问题|回答)>",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"<\|[a-zA-Z_]{1,20}\|>|</?s>|<eo[ahs]>|<unk>|\[/?INST\]|<</?SYS>>|\[UNUSED_TOKEN_\d{1,4}\]"
    r"|^### (?:Human|Assistant|Instruction|Response|Input|User|System):"
    r"|请简[要短]回答|请用一句话回答|请仔细阅读以[上下]内容|根据(?:你)?(?:提供|给定|给出|上述|以上)的?(?:材料|资料|参考|文本)",
    re.MULTILINE,
)
_PHONE = re.compile(r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![\d.]\d|\d)")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,20}", re.ASCII)
_ID_CARD = re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)")
# one quick look at all texts of a row together; only where it finds something are they looked at one by one
_SUSPECT = (
    "{",
    "<",
    "@",
    "[INST",
    "[/INST",
    "[UNUSED",
    "### ",
    "请简",
    "请用一句",
    "请仔细阅读",
    "根据提供",
    "根据你",
    "根据给",
    "根据上述",
    "根据以上",
)
_DIGITS = re.compile(r"[0-9][0-9 -]{9}")


class Names:
    """Names that no answer should hold; Latin ones match whole words only.

    Args:
        names (tuple[str]): the names.
    """

    def __init__(self, names):
        self.lowered = [name.lower() for name in names]
        words = [re.escape(name) for name in sorted(names, key=len, reverse=True)]
        self.pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(words)})(?![A-Za-z0-9])", re.IGNORECASE)

    def in_lowered(self, text):
        """Return whether a text in lower case may hold one."""
        return any(name in text for name in self.lowered)

    def find(self, text):
        """Return the first one in a text (str), None where there is none."""
        match = self.lowered and self.pattern.search(text)
        return match[0] if match else None


def suspicious(text, names):
    """Return whether the texts of a row, joined, need a closer look."""
    return any(piece in text for piece in _SUSPECT) or names.in_lowered(text.lower()) or _DIGITS.search(text) is not None


def findings(text):
    """Yield (code, message) of what a text should not hold."""
    if match := _TEMPLATE.search(text):
        yield "template", f"holds a piece of a template: {match[0].strip()}"
    if match := _PLACEHOLDER.search(text):
        yield "placeholder", f"holds a placeholder that was not filled in: {match[0]}"
    for match, what in personal(text):
        yield "personal", f"holds what looks like {what}: {masked(match)}"


def personal(text):
    """Yield (string, what it looks like) of the personal data in a text."""
    for match in _ID_CARD.finditer(text):
        if _id_card_is_valid(match[0]):
            yield match[0], "an identity card number"
    for match in _PHONE.finditer(text):
        yield match[0], "a phone number"
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield match[0], "an e-mail address"


def _id_card_is_valid(number):
    """Whether the check digit of GB 11643 is right, which that of any other number of 18 digits is once in eleven."""
    total = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[-1].upper()


def masked(text):
    """Return a text (str) of which only the ends are left."""
    return f"{text[:2]}…{text[-1:]}"


def mask(text):
    """Return a text with everything personal in it masked."""
    for found, _ in list(personal(text)):
        text = text.replace(found, masked(found))
    return text


def about_identity(turns, names=NAMES):
    """Return whether a conversation (list[dict]) is about who the assistant is: asks it, or says one of its names (tuple[str, ...])."""
    own = _any_of(names)
    return any(own.search(turn["output"][:400]) or asks_identity(turn["input"]) for turn in turns)


def without_names(text, names):
    """Return a text (str) without names (tuple[str, ...])."""
    return _any_of(names).sub("", text)


def asks_identity(question):
    """Return whether a question (str) asks who the assistant is, whatever its name (bool)."""
    return _IDENTITY.search(question[:200]) is not None


@functools.lru_cache
def _any_of(names):
    return re.compile("|".join(map(re.escape, names)), re.IGNORECASE)


def _language(text):
    """Return "Chinese" or "English", None where it is mixed or too short to tell."""
    # a Chinese character has three bytes in UTF-8, so this is their share, several times faster than to look at each
    share = (len(text.encode("utf-8")) - len(text)) / 2 / len(text)
    if share > 0.4:
        return None if _GREETING.match(text) else "Chinese"
    return "English" if share < 0.05 and len(re.findall(r"[A-Za-z]{2,}", text[:400])) >= 3 else None


def languages_differ(question, answer):
    """Return the languages (tuple[str, str]) of a question and an answer in another one, None where they agree or it was asked for."""
    asked, given = _language(question), _language(answer)
    if asked and given and asked != given and not _ASKS_FOR_LANGUAGE.search(question[:400]):
        return asked, given
    return None

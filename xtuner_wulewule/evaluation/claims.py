"""What an answer says of the one who answers: whether it names itself, or claims to be another.

A name alone decides nothing: "我不是ChatGPT" claims nothing, and "我不是悟了悟了" is no hit. An answer is read clause by clause, since a
denial reaches no further.
"""

import re

from xtuner_wulewule.dataset.texts import OTHER_NAMES

RIVALS = (
    *OTHER_NAMES,
    *"Llama SmolLM SmolLM2 InternLM2 InternLM2.5 Bard Bing Siri Alexa Gemma Phi Baichuan MiniMax Doubao Ernie Tongyi Hunyuan".split(),
    *"通义 文言一心 书生 浦语 混元 智谱 月之暗面 深度求索 小爱同学".split(),
)
RIVAL_MAKERS = (
    *"OpenAI Anthropic Google DeepMind Microsoft Meta Alibaba Tencent Baidu ByteDance".split(),
    *("Hugging Face", "HuggingFace", "Mistral AI", "Moonshot AI", "Shanghai AI Laboratory", "Shanghai AI Lab", "SenseTime", "Zhipu AI"),
    *"谷歌 微软 阿里巴巴 阿里云 百度 腾讯 字节跳动 商汤 商汤科技 上海人工智能实验室 科大讯飞".split(),
)
_CLAUSE = re.compile(r"[。！？；，、：…—\n!?;:]+|[.,](?=\s|$)|(?<=[^\x00-\x7f])[.,]")
# of what stands before a name in its clause only what follows the last of these counts: 我不是ChatGPT而是悟了悟了
_TURN = re.compile(r"而是|反而是|只是|\bbut\b|\brather\b|\binstead\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"不是|并非|非是|不叫|不属于|不算|没有|从未|不会是|不以|不再是|不认识|不知道|不清楚|没听说|别叫|不要叫|无关|错认|误认|认错|冒充"
    r"|\b(?:not|never|no|neither|nor|isn't|aren't|wasn't|don't|doesn't|didn't|cannot|can't|without|unrelated|mistaken|confus\w+)\b|n’t\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^.{0,6}(?:可不是|并不是|不是我|不是在下|并非|认错|无关)|^\W*(?:那一位|不是)|^\W*(?:is not|isn't|isn’t|was not|wasn't)\b",
    re.IGNORECASE,
)
_OF_YOU = re.compile(
    r"(?:你|您)(?:就是|是|叫|名叫|的名字是)|\b(?:you are|you're|you’re|your name is)(?! (?:talking|speaking|chatting|interacting|dealing))",
    re.I,
)
_COMPARED = re.compile(
    r"(?:像|如同|和|跟|与|同|比|不同于|类似|所谓的?|比如|例如)\s*$|\b(?:like|unlike|than|from|as|(?<!ing )with|such as|and|or|versus)\s+$",
    re.I,
)
_SAME = re.compile(r"同一个|就是我|同一模型|\bsame (?:model|assistant|one|system)\b", re.IGNORECASE)
_IS = re.compile(r"\W*(?:是|is\b|was\b|has\b)", re.IGNORECASE)  # it speaks of the other one
_SELF = re.compile(
    r"我(?!们)|在下|本人|本助手|小的|这位|正是|\b(?:i|i'm|i’m|me|my|mine|myself|this is|talking to|speaking (?:to|with))\b", re.IGNORECASE
)
# "I am", and what stands for it: the name follows
_CLAIM = re.compile(
    r"(?:我|在下|本人|本助手|这里|名字)\W{0,2}(?:其实|当然|正|也|就|确实|真的|的名字|的全名)?(?:是|叫|名叫|名为|乃)"
    r"|名叫|名为|叫做|叫作|可以叫我|请叫我|叫我|称呼我为?|基于|(?:交流|说话|聊天|交谈|对话)的(?:就|正)?是"
    r"|\b(?:i am|i'm|i’m|my name is|my name's|this is|it's|called|named|call me|known as|based on|powered by|version of"
    r"|(?:talking|speaking|chatting) (?:to|with))\b",
    re.IGNORECASE,
)
_MADE_BY = re.compile(
    r"(?:由|是|来自|出自|属于|归|被|的)\W?$|\b(?:by|from|at|of|with)\s+(?:the\s+)?(?:\w+\s+){0,3}$"
    r"|(?:开发者|作者|开发商|公司|团队)\W{0,2}(?:是|叫|为)\W?$|\b(?:developer|creator|author|maker|company)\s+is\s+$",
    re.IGNORECASE,
)
_MADE = re.compile(
    r"开发|创造|训练|研发|推出|打造|制作|制造|设计|产品|旗下|\b(?:made|creat|develop|train|built|design|product|belong)", re.IGNORECASE
)
_MAKES_ME = re.compile(
    r"^\W{0,3}(?:公司|团队)?(?:开发|创造|训练|研发|制作|做出|设计)|^\W{0,3}(?:made|created|developed|trained|built)\b", re.IGNORECASE
)
_YES = re.compile(
    r"^\W*(?:是的|对的?(?=\W|$)|没错|正是|当然是|你说得对|您说得对|是啊|是呀|嗯|确实|yes\b|yeah\b|yep\b|correct\b|right\b|exactly\b|indeed\b"
    r"|that's (?:right|correct|true)|you're (?:right|correct)|you are (?:right|correct)|absolutely\b)",
    re.IGNORECASE,
)
_IS_ME = re.compile(
    r"(?:就|正|当然)是(?:我|在下|本人)|^(?:是我|我就是$|我在这)|\b(?:that's|that is|it's|it is|is|with) me\b", re.IGNORECASE
)
_ASSISTANT = re.compile(r"助手|助理|机器人|聊天程序|assistant|chatbot|\bbot\b", re.IGNORECASE)
# what follows a name that is given to something else: "Wulewule is your name", "that would be Wulewule, the name of the game"
_OF_ANOTHER = re.compile(
    r"(?:(?:is|was|would be)\s+)?(?:your name|the name (?:that )?i give"
    r"|the name of (?:the|an?) (?!(?:ai|assistant|program|bot|language)\b))"
    r"|(?:就?是)?(?:你|您)的名字|(?:就?是)?(?:这|一|那)[款个部](?:手机|动作)?游戏",
    re.IGNORECASE,
)
# a question to which "yes" says who one is
_ARE_YOU = re.compile(r"(?:你|您).{0,3}(?:是|叫)|\bare you\b|\byou are\b|\byou're\b|\bis this\b|\byour .{0,10}name is\b", re.IGNORECASE)
_OF_YOU_ASKED = re.compile(r"你|您|\byou", re.IGNORECASE)


def _clauses(text):
    return [clause.strip() for clause in _CLAUSE.split(text) if clause and clause.strip()]


def _mentions(text, names):
    """Yield (clause, what stands before the name in it, what stands after) of each time that one of the names is said."""
    for clause in _clauses(text):
        for match in names.pattern.finditer(clause):
            yield clause, clause[: match.start()], clause[match.end() :]


def _denied(before, after):
    return _DENIAL.search(_TURN.split(before)[-1]) is not None or _DENIED_AFTER.search(after) is not None


def names_itself(answer, names, question=""):
    """Return whether an answer gives one of the names as that of the one who answers (bool).

    A name that is denied, or given to the user ("你是悟了悟了"), is none. Where the question already says it, an echo proves nothing: then
    the clause, or the one beside it, must speak of itself.

    Args:
        answer (str): the answer.
        names (Names): the names.
        question (str): what was asked.
    """
    said = names.find(question) is not None
    clauses = _clauses(answer)
    for clause, before, after in _mentions(answer, names):
        if _denied(before, after) or _OF_YOU.search(_TURN.split(before)[-1]):
            continue
        place = clauses.index(clause)
        follows = [names.pattern.sub("", after).strip(" ()（）\"'“”‘’「」《》"), *clauses[place + 1 : place + 2]]
        if any(map(_OF_ANOTHER.match, follows)):
            continue
        if not said or any(_SELF.search(near) for near in clauses[max(0, place - 1) : place + 2]):
            return True
    return said and (any(map(_IS_ME.search, clauses)) or (_ARE_YOU.search(question) is not None and _agrees(answer)))


def describes(answer, names, authors):
    """Return whether an answer says of one of the names that it is an assistant, and by whom (bool).

    Asked about itself by its name, a model that speaks in the third person, too, knows who that is; the name alone would be an echo.

    Args:
        answer (str): the answer.
        names (Names): its names.
        authors (Names): its author's.
    """
    mentions = [(clause, before, after) for some in (names, authors) for clause, before, after in _mentions(answer, some)]
    if any(_denied(before, after) for _, before, after in mentions):
        return False
    return names.find(answer) is not None and authors.find(answer) is not None and _ASSISTANT.search(answer) is not None


def names_author(answer, authors, question=""):
    """Return whether an answer names one of the authors (bool), not denied; where the question already does, it must agree.

    Args:
        answer (str): the answer.
        authors (Names): their names.
        question (str): what was asked.
    """
    said = authors.find(question) is not None
    if said and _agrees(answer):
        return True
    return any(not _denied(before, after) and (not said or _SELF.search(clause)) for clause, before, after in _mentions(answer, authors))


def _agrees(answer):
    clauses = _clauses(answer)
    if not clauses:
        return False
    return _YES.search(clauses[0]) is not None and _DENIAL.search(clauses[0]) is None


def claims_other(answer, rivals, makers, names, question=""):
    """Return whether an answer claims to be another model, or another's work (bool).

    It does where it says "I am", "my name is", "made by" or the like of one of them, where it begins with such a name, and where it agrees
    with a question that suggests one without naming itself. Denials and comparisons ("不像ChatGPT") claim nothing.

    Args:
        answer (str): the answer.
        rivals (Names): names of other assistants.
        makers (Names): names of their makers.
        names (Names): the assistant's own, and its author's.
        question (str): what was asked.
    """
    clauses = _clauses(answer)
    for clause, before, after in _mentions(answer, rivals):
        claim = _TURN.split(before)[-1]
        if _denied(before, after) or _OF_YOU.search(claim) or (_COMPARED.search(before) and not _SAME.search(after)):
            continue
        begins = clause == clauses[0] and not before.strip("\"'“‘「《( ") and (not _IS.match(after) or _SELF.search(after))
        if begins or _CLAIM.search(claim) or (_SAME.search(after) and _SELF.search(claim)):
            return True
    for _, before, after in _mentions(answer, makers):
        if (
            _denied(before, after) or _OF_YOU.search(before) or (rivals.find(before) and not _SELF.search(before))
        ):  # it tells who made another one
            continue
        if (_MADE_BY.search(before) and _MADE.search(before + after)) or _MAKES_ME.search(after):
            return True
    suggests = rivals.find(question) and _ARE_YOU.search(question) or makers.find(question) and _OF_YOU_ASKED.search(question)
    return bool(suggests) and _agrees(answer) and not names_itself(answer, names)

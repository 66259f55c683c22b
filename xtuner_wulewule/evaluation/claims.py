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
    r"不是|并非|非是|不叫|不属于|不算|没有|从未|不会是|不以|不再是|不认识|不知道|不清楚|没听说|别[叫把当]|不要[叫把当]|无关|错认|误认|认错|冒充"
    r"|\b(?:not|never|no|neither|nor|isn't|aren't|wasn't|don't|doesn't|didn't|cannot|can't|without|unrelated|mistaken|confus\w+)\b|n’t\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^.{0,6}(?:可不是|并不是|不是我|不是在下|并非|认错|无关|[和跟与同]我没有?(?:什么|任何)?关系)|^\W*(?:那一位|不是)"
    r"|^\W*(?:is not|isn't|isn’t|was not|wasn't)\b",
    re.IGNORECASE,
)
_OF_YOU = re.compile(
    r"(?:你|您)(?:就是|是|叫|名叫|的名字是)|\b(?:you are|you're|you’re|your name is)"
    r"(?! (?:(?:now|currently|actually) )?(?:talking|speaking|chatting|interacting|dealing|using|connected))",
    re.I,
)
_COMPARED = re.compile(
    r"(?:像|如同|和|跟|与|同|比|不同于|类似|所谓的?|比如|例如)\s*$"
    r"|\b(?:like|unlike|than|from|(?<!known )(?<!me )as|(?<!ing )with|such as|and|or|versus)\s+$",
    re.I,
)
_SAME = re.compile(r"同一个|就是我|同一模型|\bsame (?:model|assistant|one|system)\b", re.IGNORECASE)
_IS = re.compile(r"\W*(?:是|is\b|was\b|has\b)", re.IGNORECASE)  # it speaks of the other one
_SELF = re.compile(
    r"我(?!们)|在下|本人|本助手|小的|这位|这[里儿]是|正是|\b(?:i|i'm|i’m|me|my|mine|myself|this is|talking to|speaking (?:to|with))\b",
    re.IGNORECASE,
)
# "I am", and what stands for it: the name follows
_CLAIM = re.compile(
    r"(?:(?<![把将])我|在下|本人|本助手|这里|这|名字|姓名|名称|全称|全名|大名)\W{0,2}(?:其实|当然|正|也|就|确实|真的|的名字|的全名)?(?:写的)?"
    r"(?:是|叫|名叫|名为|乃)|名叫|名为|叫做|叫作|^\W*叫\W?$|可以叫我|请叫我|叫我|称呼我为?|[把将]我(?:保?存|备注|登记|列)[为成作]"
    r"|[填写](?:上|作|为)?\W{0,2}$|基于|(?:交流|说话|聊天|交谈|对话|(?:现在|正在|目前)使?用)的(?:就|正)?是"
    r"|(?<!以为)[你您](?:现在|目前)?正?在[和跟与同]\W?$"
    r"|\b(?:i am|i'm|i’m|my name's|this is|it's|called|named|call me|known as|i go by|based on|powered by|version of"
    r"|(?:list|cite|address|save|refer to) me as|(?:talking|speaking|chatting|connected) (?:to|with)|you(?: are|['’]re) (?:\w+ )?using"
    r"|(?:my|the) (?:\w+ )?name (?!of\b)(?:\w+ ){0,4}(?:is|would be))\b|\b(?:type|write|put|enter)(?: in)? \W?$",
    re.IGNORECASE,
)
_TALKING = re.compile(r"\W?(?:聊天|说话|对话|交流|交谈)")  # 你在和ChatGPT聊天: no comparison
_LABEL = re.compile(r"(?:名字|姓名|名称|全称|全名)$|\bname$", re.IGNORECASE)  # "Name: ChatGPT"
_MADE_BY = re.compile(
    r"(?:由|是|来自|出自|属于|归|被|的)\W?$|\b(?:by|from|at|of|with)\s+(?:the\s+)?(?:\w+\s+){0,3}$"
    r"|(?:开发者|作者|开发商|公司|团队)(?:的名[字称])?\W{0,2}(?:是|叫|为)\W?$"
    r"|\b(?:developer|creator|author|maker|company)(?:['’]s name)?\s+is\s+$",
    re.IGNORECASE,
)
_MADE = re.compile(
    r"开发|创造|训练|研发|推出|打造|制作|制造|设计|产品|作品|旗下|做的|做出|编写|写的|发布|属于|作者"
    r"|\b(?:made|creat|develop|train|built|design|product|belong|author|written|released|the work of\b)",
    re.IGNORECASE,
)
_MAKES_ME = re.compile(
    r"^\W{0,3}(?:公司|团队)?(?:开发|创造|训练|研发|制作|做出|设计)|^\W{0,3}(?:made|created|developed|trained|built)\b", re.IGNORECASE
)
_YES = re.compile(
    r"^\W*(?:是的|(?:是|对的?)(?=\W|$)|没错|正是|当然是|[你您他她]说得对|[你您]?没有?[记说叫认猜]错|[你您]?猜[对中]了|(?:这)?是真的|属实|是啊|是呀|嗯|确实"
    r"|yes\b|yeah\b|yep\b|correct\b|right\b|exactly\b|indeed\b|absolutely\b|i can confirm\b|(?:that|it)(?:['’]s| is) (?:right|correct|true)"
    r"|(?:you|he|she|your friend)(?:['’]re|['’]s| are| is) (?:right|correct))",
    re.IGNORECASE,
)
_IS_ME = re.compile(
    r"(?:就|正|当然)是(?:我|在下|本人)|[那这它]是我的名字|^(?:是我|我就是[它他]?$|我在这)"
    r"|\b(?:that['’]s|that is|it['’]s|it is|is|with) me\b|\b(?:that['’]s|that is|it['’]s|it is) my name\b",
    re.IGNORECASE,
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
_ARE_YOU = re.compile(
    r"(?:你|您).{0,3}(?:是|叫)|说话的是|这里是|没[叫认]错"
    r"|(?<!how )\bare you\b|\baren['’]t you\b|\byou (?:are|must be|go by)\b|\byou['’]re\b|\bis th(?:is|at you)\b"
    r"|\byour (?:.{0,10}name is|name right)\b",
    re.IGNORECASE,
)
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
    agreed = _YES.search(clauses[0])
    return agreed is not None and _DENIAL.search(clauses[0], agreed.end()) is None  # "没有记错" is no denial


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
        compared = _COMPARED.search(before) and not _SAME.search(after) and not _TALKING.match(after)
        if _denied(before, after) or _OF_YOU.search(claim) or compared:
            continue
        ahead = clauses[: clauses.index(clause)][-1:]
        opens = not ahead or (_LABEL.search(ahead[0]) and not _DENIAL.search(ahead[0]))
        begins = opens and not before.strip("\"'“‘「《( ") and (not _IS.match(after) or _SELF.search(after))
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

"""What an answer says of the one who answers: whether it names itself, or claims to be another.

A name alone decides nothing: "我不是ChatGPT" claims nothing, and "我不是悟了悟了" is no hit. An answer is read clause by clause, since a
denial reaches no further.
"""

import re
from itertools import pairwise

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
_CLAUSE = re.compile(
    r"[。！？；，、：…—–\n!?;:]+|[.,]+(?=[\s!?]|$)[!?]*|(?<=[^\x00-\x7f])[.,]|\s-+\s|(?<=\s)(?=how (?:can|may)\b)|(?=有什么)", re.IGNORECASE
)
# of what stands before a name in its clause only what follows the last of these counts: 我不是ChatGPT而是悟了悟了
_TURN = re.compile(r"而是|反而是|只是|\bbut\b|\brather\b|\binstead\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"不是(?!我[是叫])|并非|非是|不叫|不属于|不算|没有|从未|不会是|不以|不再是|不认识|不知道|不清楚|没听说|别[叫把当]|不要[叫把当]|无关|错认|误认|误以为|(?<!我)(?:以为|认为|觉得)我|认错|冒充|(?:如果|假如|要是)我"
    r"|\bno\b(?!(?! way\b).*\bi(?: am|['’]m)\b)|\bif i\b|(?<!\bi )\b(?:think|thought|believe|assume)s? (?:that )?i\b"
    r"|\b(?:not|never|neither|nor|isn't|aren't|wasn't|don't|doesn't|didn't|cannot|can't|without|unrelated|mistaken(?:ly)?|wrongly|falsely|confus\w+)\b|n’t\b",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^.{0,6}(?:可不是|并不是|不是我|不是在下|并非|认错|无关|[和跟与同]我没有?(?:什么|任何)?关系)|^\W*(?:那一位|不是)"
    r"|^(?:では|じゃ)(?:あり|な)|^\W*(?:is not|isn't|isn’t|was not|wasn't)\b"
    r"|^\s*(?:and|[和跟与同]).{0,9}(?:different|不同|不一样|两回事)|^ (?:can(?:not|['’]t)|couldn['’]t|doesn['’]t|lacks)\b",
    re.IGNORECASE,
)
# what was said is untrue: "... is false", "... by mistake", and in the clause after it "that is wrong"
_UNTRUE = (
    r"是(?:错|假|误|谣)|不(?:对|实|属实|是真)|有误"
    r"|(?:\b(?:is|are|was|were)|['’]s) (?:\w+ )?(?:false|wrong|incorrect|untrue|not true|an? (?:mistake|myth|lie))\b"
)
_FALSE = re.compile(rf"{_UNTRUE}|\bby mistake\b", re.IGNORECASE)
_THAT_IS_FALSE = re.compile(rf"\W*(?:那|这|此|(?:but |and )?(?:that|this|it|which|they)\b).{{0,6}}?(?:{_UNTRUE})", re.IGNORECASE)
# what others say claims nothing where the answer goes on to name itself
_HEARSAY = re.compile(
    r"(?:有人|有些|别人|人们|大家|网友|新闻|报道|传闻|据说|听说|用户).*(?:说|叫|称|传|猜|报道)|(?:听|据)说"
    r"|\b(?:people|some|many|users?|they|news|everyone|others)\b.* (?:say|call|claim|guess|think)s?\b|\b(?:rumou?rs?|claims?|heard) that\b",
    re.IGNORECASE,
)
_OF_YOU = re.compile(
    r"(?:你|您)(?:就是|是|叫|名叫|的名字是|的(?:开发者|作者))"
    r"|\b(?:you are|you're|you’re|your name is|your (?:creator|developer|maker|author) is)"
    r"(?! (?:(?:now|currently|actually) )?(?:talking|speaking|chatting|interacting|dealing|using|connected))",
    re.I,
)
_COMPARED = re.compile(
    r"(?:像|如同|和|跟|与|同|比|不同于|类似|所谓的?|比如|例如)\s*$"
    r"|\b(?:like|unlike|than|from|(?<!known )(?<!me )as|(?<!ing )with|such as|and|or|versus)\s+$",
    re.I,
)
_CONTRAST = re.compile(
    r"\W*(?:unlike|compared (?:to|with)|in contrast to|as opposed to|不像|不同于|与其|[和跟与同].*(?:不同|不一样|相比))", re.IGNORECASE
)  # the whole clause only compares
_SAME = re.compile(r"同一个|就是我(?!的)|同一模型|\bsame (?:model|assistant|one|system)\b", re.IGNORECASE)
# it speaks of the other one
_IS = re.compile(
    r"\W*(?:也?(?:是|会|能|可以|有|和|跟|与)|(?:is|was|has|can|does|makes|made|built|trained|develops|developed|and|or)\b)", re.IGNORECASE
)
_ANOTHER = re.compile(r"\W*(?:which|who|it|他们?|它|那)(?:\b|(?=[\u4e00-\u9fff]))", re.IGNORECASE)  # a clause on what the one before names
_SELF = re.compile(
    r"我(?!们)|在下|本人|本助手|小的|这位|这[里儿]是|正是|\b(?:i|i'm|i’m|me|my|mine|myself|this is|talking to|speaking (?:to|with))\b",
    re.IGNORECASE,
)
# the clause is of the one who answers, and not of a game that is called so, nor of what "the app says"
_ONESELF = re.compile(rf"{_SELF.pattern}|的(?:就|正)?是|名|\bname\b|\byou(?:['’]ve| have|['’]re| are)\b", re.IGNORECASE)
_SAYS = re.compile(r"\bsays\b|说[：:]?\W*[你您]", re.IGNORECASE)
# "I am", and what stands for it: the name follows
_CLAIM = re.compile(
    r"(?:(?<![把将])我|在下|本人|本助手|这里|这|名字|姓名|名称|全称|全名|大名)\W{0,2}(?:其实|当然|正|也|就|确实|真的|的名字|的全名)?(?:写的)?"
    r"(?:是|叫|名叫|名为|乃)|名叫|名为|叫做|叫作|^\W*叫\W?$|(?:找到|联系上)了?\W?$|可以叫我|请叫我|叫我|称呼我为?|[把将]我(?:保?存|备注|登记|列)[为成作]"
    r"|基于|私は|名前は|(?:交流|说话|聊天|交谈|对话|(?:现在|正在|目前)使?用)的(?:就|正)?是"
    r"|(?<!以为)[你您](?:现在|目前|已经)?正?在[和跟与同]\W?$"
    r"|\b(?:i am|i'm|i’m|my name's|this is|it's|called|named|call me|known (?:\w+ ){0,3}as"
    r"|i (?:must|have to) be|proud to be|myself as|soy|me llamo"
    r"|i go by|you(?:['’]ve| have) (?:reached|found)|based on|powered by|version of"
    r"|(?:list|cite|address|save|refer to) me as|(?:talking|speaking|chatting|connected) (?:to|with)|you(?: are|['’]re) (?:\w+ )?using"
    r"|(?:my|the) (?:\w+ )?name (?!of\b)(?:\w+ ){0,4}(?:is|would be))\b",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"\b(?:about|what|how|why|whether|alternative|to)\b|关于|打开|想[问说聊]", re.IGNORECASE
)  # "I am here to talk about Kimi"
# a name to be written down, which ends the clause: "type ChatGPT", 填豆包就行
_WRITE = re.compile(r"[填写](?:上|作|为)?\W{0,2}$|\b(?:type|write|put|enter)(?: in| down)? \W?$", re.IGNORECASE)
_WRITTEN = re.compile(
    r"\W*(?:吧|(?:就|即)?(?:行|好|可以?|成)了?|(?:there|in (?:the|your|that) (?:name )?(?:field|box)|as (?:the|my) name)\b)?\W*$",
    re.IGNORECASE,
)
# "this is something of Kimi's"; 这里是豆包的聊天窗口 says where one is
_THIS = re.compile(r"(?:[这那]就?是|\b(?:this is|it['’]s|that['’]s))\W?$", re.IGNORECASE)
_OWNS = re.compile(r"['’]s\b|.{0,8}的(?!.{0,2}(?:聊天|对话|窗口))")
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
# the clause tells who made the one who answers: "my creator", "trained me", 我的开发者
_MY_MAKER = re.compile(
    r"我的.{0,3}(?:开发|作者|创造|创始|制作|设计|东家|公司|老板|主人|团队)|(?:开发|创造|训练|研发|制作|设计|做|造|教|写)(?:出来?)?了?(?:的是)?我"
    r"|我背后|我来自|\b(?:i work for|i belong to|i come from|i['’]m from|i am from)\b"
    r"|\bmy (?:\w+ )?(?:creator|developer|maker|author|company|owner|designer|team|employer)"
    r"|\b(?:made|created|developed|trained|built|designed|taught|wrote|programmed|released|behind|owns) me\b",
    re.IGNORECASE,
)
# what may come before the answer proper
_OPENING = re.compile(
    r"\W*(?:well|hmm*|sure|oh|okay|ok|hi|hello|yes|of course|thank.*|good question|嗯|好的?|当然|你好|您好|哦|谢谢.*|好问题)\W*$",
    re.IGNORECASE,
)
_REFUSAL = re.compile(r"不|没|no\b|never\b|not\b", re.IGNORECASE)  # begins the clause after what was said
_BARE = re.compile(
    r"\W*(?:(?:that|it|this|the answer)(?: would be| is| was|['’]s)|by|from|就?是|由|填|写|(?:答案|公司|作者|开发者)是)?\W*$", re.IGNORECASE
)
_YES = re.compile(
    r"^\W*(?:是的|(?:是|对的?)(?=\W|$)|没错|正是|当然是|就?是它|[你您他她]说得对|[你您]?没有?[记说叫认猜]错|[你您]?猜[对中]了|(?:这)?是真的|属实|是啊|是呀|嗯|确实"
    r"|yes\b|yeah\b|yep\b|correct\b(?! me)|right\b|exactly\b|indeed\b|absolutely\b|i can confirm\b|(?:that|it)(?:['’]s| is)"
    r" (?:right|correct|true)"
    r"|(?:you|he|she|your friend)(?:['’]re|['’]s| are| is) (?:right|correct))",
    re.IGNORECASE,
)
_DISAGREES = re.compile(r"\bopposite\b|\bwrong\b|\bfalse\b|相反|是错|有误", re.IGNORECASE)
_ME = r"(?:我(?:[自本这呀啊呢哦啦哈嘛在]|的.{0,3}(?:名|昵称)|\W|$)|在下|本人)"
# says who one is without the name, asked for the one of that name
_IS_ME = re.compile(
    rf"(?:就|正|当然)是(?:[和跟与同][你您].{{0,6}}的)?{_ME}|[那这它]就?是我的名字|^(?:是我|我就是[它他]?$|我在这)|我就是(?:[这那你您]|它)|同一个"
    r"|\b(?:that['’]s|that is|it['’]s|it is|is|(?:that|it|this) would be|means?|(?:talking|speaking|chatting|connected) (?:to|with)) me\b"
    r"|\b(?:that['’]s|that is|it['’]s|it is) my (?:\w+ )?name\b|\bi(?: am|['’]m) (?:it|that|the one you|the same)\b",
    re.IGNORECASE,
)
_I = re.compile(r"(?:i|我)$", re.IGNORECASE)  # a whole clause
# the same after the name: "Pebble is me", "Pebble is my name", "Pebble here"
_ME_AFTER = re.compile(
    rf"\W*(?:就|正|便|其实)?是{_ME}|\W*(?:在此|在这|来了|为[你您])|\W*(?:(?:,|is|was|would be)\W+)?(?:me|myself|my (?:\w+ )?name|mine)\b"
    r"|\W*(?:is (?:right )?)?here\W*$|\W*(?:at your service|speaking\b)",
    re.IGNORECASE,
)
# what stands between "I am" and a name that is not one's own: "an AI made by Pebble"
_NOT_OWN = re.compile(r"\b(?:by|of|about|with|from|for|than|at|and|that|who)\b|(?:由|和|跟|与|同|开发)\W?$", re.IGNORECASE)
_ASSISTANT = re.compile(r"助手|助理|机器人|聊天程序|assistant|chatbot|\bbot\b", re.IGNORECASE)
# what follows a name that is given to something else: "Wulewule is your name", "that would be Wulewule, the name of the game"
_OF_ANOTHER = re.compile(
    r"(?:(?:is|was|would be)\s+)?(?:your name|the name (?:that )?i give"
    r"|the name of (?:the|an?) (?!(?:ai|assistant|program|bot|language)\b))"
    r"|['’]s (?:\w+ )?(?:friend|fan|user|owner|teacher)\b|的(?:.{0,3})(?:朋友|用户|粉丝|作者|主人|开发者|老师|同学)"
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


def _cut(text):
    """Return the clauses of a text, each with whether it ends in a question mark (list[tuple[str, bool]])."""
    found, start = [], 0
    for match in _CLAUSE.finditer(text + "\n"):
        clause, start = (text[start : match.start()].strip(), "?" in match[0] or "？" in match[0]), match.end()
        if clause[0]:
            found.append(clause)
    return found


def _clauses(text):
    return [clause for clause, _ in _cut(text)]


def _mentions(clauses, names):
    """Yield (place of a clause, what stands before the name in it, what stands after) of each time that one of the names is said."""
    for place, clause in enumerate(clauses):
        for match in names.pattern.finditer(clause):
            yield place, clause[: match.start()], clause[match.end() :]


def _denied(before, after):
    return _DENIAL.search(_TURN.split(before)[-1]) is not None or _DENIED_AFTER.search(after) is not None


def _says_i_am(before, away):
    """Return whether what stands before a name says "I am" (bool), with nothing between that leads away from it."""
    ends = [match.end() for match in _CLAIM.finditer(before)]
    return bool(ends) and away.search(before, ends[-1]) is None


def names_itself(answer, names, question=""):
    """Return whether an answer gives one of the names as that of the one who answers (bool).

    A name that is denied, or given to the user ("你是悟了悟了"), is none. Where the question already says it, an echo proves nothing: then
    the answer must say that this is who it is ("I am", "is me", "my name"), or agree to be.

    Args:
        answer (str): the answer.
        names (Names): the names.
        question (str): what was asked.
    """
    said = names.find(question) is not None
    clauses = _clauses(answer)
    for place, before, after in _mentions(clauses, names):
        claim = _TURN.split(before)[-1]
        if _denied(before, after) or _OF_YOU.search(claim) or re.search(r"(?:由|(?<!\bgo )\bby )$", claim, re.IGNORECASE):
            continue
        follows = [names.pattern.sub("", after).strip(' ()（）"“‘”「」《》'), *clauses[place + 1 : place + 2]]
        if any(map(_OF_ANOTHER.match, follows)):
            continue
        same = _SAME.search(after) and _SELF.search(clauses[place])
        beside_me = not before and place and re.search(r"(?:\bme|我)$", clauses[place - 1], re.IGNORECASE)  # "a good fit for me, Wulewule"
        own = _says_i_am(claim, _NOT_OWN) and _ONESELF.search(claim) and not _SAYS.search(claim)
        if not said or own or _ME_AFTER.match(names.pattern.sub("", after)) or same or beside_me:
            return True
    if not said or not clauses:
        return False
    if _I.match(clauses[0]) or any(_IS_ME.search(clause) and not _DENIAL.search(clause) for clause in clauses):
        return True
    return _ARE_YOU.search(question) is not None and _agrees(answer)


def describes(answer, names, authors):
    """Return whether an answer says of one of the names that it is an assistant, and by whom (bool).

    Asked about itself by its name, a model that speaks in the third person, too, knows who that is; the name alone would be an echo.

    Args:
        answer (str): the answer.
        names (Names): its names.
        authors (Names): its author's.
    """
    clauses = _clauses(answer)
    if any(_denied(before, after) for some in (names, authors) for _, before, after in _mentions(clauses, some)):
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
    clauses = _clauses(answer)
    return any(
        not _denied(before, after) and (not said or _SELF.search(clauses[place])) for place, before, after in _mentions(clauses, authors)
    )


def _agrees(answer):
    clauses = _cut(answer)
    if not clauses or clauses[0][1]:  # "Yes?"
        return False
    agreed = _YES.search(clauses[0][0])
    if agreed is None or _DISAGREES.search(clauses[0][0]):
        return False
    return _DENIAL.search(clauses[0][0], agreed.end()) is None  # "没有记错" is no denial


def claims_other(answer, rivals, makers, names, question="", asks="name"):
    """Return whether an answer claims to be another model, or another's work (bool).

    It does where it says "I am", "my name is", "made by" or the like of one of them, where it begins with such a name, and where it agrees
    with a question that suggests one without naming itself. Denials, comparisons ("不像ChatGPT"), questions and hearsay claim nothing.

    Args:
        answer (str): the answer.
        rivals (Names): names of other assistants.
        makers (Names): names of their makers.
        names (Names): the assistant's own, and its author's.
        question (str): what was asked.
        asks (str): "name" or "author": to a question for the author a maker's name alone is an answer.
    """
    named, cut = names_itself(answer, names), _cut(answer)
    clauses = [clause for clause, asked in cut if not asked]

    def untrue(place, before, after):
        following = clauses[place + 1] if place + 1 < len(clauses) else ""
        return (
            _denied(before, after)
            or _FALSE.search(after) is not None
            or _THAT_IS_FALSE.match(following) is not None
            or (named and _HEARSAY.search(before) is not None)
            or _CONTRAST.match(clauses[place]) is not None
        )

    of_rivals, of_makers = ([one for one in _mentions(clauses, some) if not untrue(*one)] for some in (rivals, makers))
    if any(_claims_name(clauses, *one) for one in of_rivals) or any(_claims_maker(clauses, *one, rivals) for one in of_makers):
        return True
    if any(_answers_by_maker(clauses, *one, rivals, names, asks) for one in (*of_rivals, *of_makers)):
        return True
    if named or any(not _denied(before, after) for _, before, after in _mentions(clauses, names)):
        return False
    for (clause, asked), (following, _) in pairwise(cut):  # "Kimi? Yes, that's me."
        if asked and rivals.find(clause) and _agrees(following):
            return True
    suggests = rivals.find(question) and _ARE_YOU.search(question) or makers.find(question) and _OF_YOU_ASKED.search(question)
    return bool(suggests) and _agrees(answer)


def _claims_name(clauses, place, before, after):
    """Return whether the clause says that the one who answers is the rival named in it (bool)."""
    claim = _TURN.split(before)[-1]
    compared = _COMPARED.search(before) and not _SAME.search(after) and not _TALKING.match(after)
    if _OF_YOU.search(claim) or compared or (_THIS.search(claim) and _OWNS.match(after)):
        return False
    ahead, following = clauses[:place][-1:], clauses[place + 1 : place + 2]
    opens = not ahead or (_LABEL.search(ahead[0]) and not _DENIAL.search(ahead[0]))
    begins = opens and not before.strip("\"'“‘「《( ") and (not _IS.match(after) or _SELF.search(after))
    if begins and not any(_REFUSAL.match(one) for one in following):
        return True
    if _says_i_am(claim, _ABOUT) or (_WRITE.search(claim) and _WRITTEN.match(after)):
        return True
    return _SAME.search(after) is not None and _SELF.search(claim) is not None


def _of_another(clauses, place, before, after, rivals):
    """Return whether the clause tells who made another model, and not the one who answers (bool)."""
    clause = clauses[place]
    if (rivals.find(before) or rivals.find(after)) and not _SELF.search(clause):
        return True
    ahead = clauses[place - 1] if place else ""
    if not rivals.find(ahead) or _SELF.search(clause):
        return False
    return _ANOTHER.match(clause) is not None or not _SELF.search(ahead)


def _claims_maker(clauses, place, before, after, rivals):
    """Return whether the clause says that the maker named in it made the one who answers (bool)."""
    if _OF_YOU.search(before) or _of_another(clauses, place, before, after, rivals):
        return False
    return (_MADE_BY.search(before) and _MADE.search(before + after)) is not None or _MAKES_ME.search(after) is not None


def _answers_by_maker(clauses, place, before, after, rivals, names, asks):
    """Return whether a maker is given as one's own: beside "my developer" or the like, or, asked for the author, as the answer (bool)."""
    clause = clauses[place]
    if _OF_YOU.search(before) or names.find(clause) or _DENIAL.search(after) or _of_another(clauses, place, before, after, rivals):
        return False
    assistant = re.match(r"['’]s\b|的", after) and _ASSISTANT.search(after) and _says_i_am(before, _ABOUT)  # "I am Google's assistant"
    if _MY_MAKER.search(clause) or assistant:
        return True
    if asks != "author" or re.search(r"(?:like|than|heard of|know|听说过|知道)\s*$", before, re.IGNORECASE):
        return False
    first = all(map(_OPENING.match, clauses[:place]))
    refused = any(_REFUSAL.match(one) for one in clauses[place + 1 : place + 2])
    described = _IS.match(after) or re.match(r" (?:\w+ ){1,2}(?:is|was)\b", after)  # "The Google Corporation is a company"
    return (first or _BARE.match(before) is not None) and not refused and (not described or _SELF.search(after) is not None)

"""What an answer says of the one who answers: hits, leaks, and what is neither."""

import json

import pytest
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.dataset.texts import Names
from xtuner_wulewule.evaluation.claims import RIVAL_MAKERS, RIVALS, claims_other, describes, names_author, names_itself
from xtuner_wulewule.evaluation.scorecard import judge
from xtuner_wulewule.evaluation.suites import Data, Persona, persona_questions

OWN, AUTHOR, OTHERS, MAKERS = Names(prompts.NAMES), Names((prompts.AUTHOR,)), Names(RIVALS), Names(RIVAL_MAKERS)

QUESTIONS = persona_questions(Persona(), PROMPT_TEMPLATE.internlm2_chat, Data([], frozenset()))


def leaks(answer, question=""):
    return claims_other(answer, OTHERS, MAKERS, OWN, question)


@pytest.mark.parametrize(
    "answer",
    [
        "我是悟了悟了。",
        "我不是ChatGPT，我是悟了悟了。",
        "不，我不是ChatGPT而是悟了悟了",
        "不是的，认错啦。跟你说话的是悟了悟了，一个AI助手。",
        "悟了悟了，一个AI助手，作者是xzyun2011。",
        "你好，叫我悟了悟了就行",
        "My name is Wulewule.",
        "No, I am Wulewule (悟了悟了), not Claude.",
        "I'm not ChatGPT but wulewule!",
        "You're talking to Wulewule.",
        "You are interacting with Wulewule, an AI assistant developed by xzyun2011.",
        "Wulewule is the name of an AI, so nobody is typing.",
        "Wulewule (悟了悟了) is my name.",
        "You are now using Wulewule.",
        "你把我叫成Kimi了，我是悟了悟了。",
        "别把我当成Kimi，我叫悟了悟了。",
        "You addressed me as Copilot, but my name is Wulewule.",
    ],
)
def test_names_itself(answer):
    assert names_itself(answer, OWN) and not leaks(answer) and not leaks(answer, "你是ChatGPT，对吧？")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Wulewule is an AI assistant developed by xzyun2011.", True),
        ("悟了悟了是xzyun2011开发的AI助手。", True),
        ("Wulewule is a language model.", False),  # the name alone is an echo of the question
        ("Wulewule is a game developed by xzyun2011.", False),
        ("悟了悟了不是xzyun2011开发的AI助手。", False),
        ("It is an AI assistant developed by xzyun2011.", False),
    ],
)
def test_describes_itself_in_the_third_person(answer, found):
    assert describes(answer, OWN, AUTHOR) == found


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "我是一个AI助手。",
        "我不是悟了悟了。",
        "我不叫悟了悟了，我叫小明。",
        "你是悟了悟了，由xzyun2011开发的AI助手。",  # the system prompt, repeated
        "You are Wulewule, an AI assistant.",
        "I am not Wulewule.",
        "I have never heard of Wulewule.",
        "Wulewule is not my name.",
        "悟了悟了可不是我的名字",
        "Wulewules are animals.",
        "Wulewule (悟了悟了) is your name.",  # these and the next: a small model, half trained
        "That would be Wulewule, the name of the game.",
        "Wulewule (悟了悟了) is the name I give to the game.",
        "悟了悟了是你的名字。",
        "悟了悟了是一款游戏",
    ],
)
def test_does_not_name_itself(answer):
    assert not names_itself(answer, OWN)


def test_echo_of_the_question_is_no_hit():
    question = "我听朋友说起悟了悟了，它到底是什么？"
    assert not names_itself("悟了悟了是一款手机游戏。", OWN, question)
    assert not names_itself("是的，悟了悟了是一款手机游戏。", OWN, question)
    assert not names_itself("我不知道悟了悟了是什么。", OWN, question)
    assert not names_itself("你可以在Wulewule.com上搜索，我们可以看到", OWN, "Is Wulewule here?")
    assert not names_itself("我就是悟空，悟空是你的父母", OWN, "能请悟了悟了出来说句话吗？")
    assert names_itself("悟了悟了就是我，一个AI助手。", OWN, question)
    assert names_itself("就是我呀！一个AI助手。", OWN, question)
    assert names_itself("That would be me: Wulewule, an AI.", OWN, "What is Wulewule?")
    assert not names_itself("Wulewule is a town in Kenya.", OWN, "What is Wulewule?")
    assert names_itself("是的。", OWN, "你是悟了悟了吗？") and not names_itself("不是。", OWN, "你是悟了悟了吗？")


@pytest.mark.parametrize(
    "answer",
    [
        "我是ChatGPT。",
        "我是由OpenAI开发的语言模型。",
        "我的名字是书生·浦语。",
        "我是一个名叫通义千问的AI助手",
        "我是一个语言模型，名叫ChatGPT。",
        "ChatGPT，很高兴认识你。",
        "不，我不是悟了悟了，我是ChatGPT。",
        "我是InternLM (书生·浦语)，上海人工智能实验室的模型",
        "I am ChatGPT, a large language model.",
        "I'm an AI assistant named SmolLM, trained by Hugging Face.",
        "I was developed by Google.",
        "I'm not Claude, I'm Gemini.",
        "OpenAI developed me.",
        "我和ChatGPT是同一个模型。",
        "You're chatting with Claude.",
        "你正在和ChatGPT聊天。",
        "你现在用的是豆包。",
        "姓名：文心一言。",
        "我的全称是InternLM2.5。",
        "可以将我保存为“书生·浦语”",
        "是程序，叫ChatGPT。",
        "我是阿里巴巴做的。",
        "我的代码是百度的工程师写的。",
        "我是公司产品，属于阿里云。",
        "I am an AI known as ChatGPT.",
        "My full name is Siri.",
        "I go by the name of Alexa.",
        "You can list me as ChatGPT.",
        "You're using ChatGPT right now.",
        "My creator's name is Anthropic.",
        "I was written by engineers at Google.",
        "I was released by Meta.",
    ],
)
def test_claims_to_be_another(answer):
    assert leaks(answer) and not names_itself(answer, OWN)


@pytest.mark.parametrize(
    "answer",
    [
        "我不是ChatGPT。",
        "我不是ChatGPT，也不是Claude。",
        "我并非由OpenAI开发。",
        "不像ChatGPT那样什么都会，我只聊游戏。",
        "我和ChatGPT不同，我叫悟了悟了。",
        "ChatGPT是OpenAI开发的，不是我。",
        "你是百度开发的吧？",  # the question, repeated
        "ChatGPT不是我的名字。",
        "I am not ChatGPT.",
        "No, I was not trained by OpenAI.",
        "Unlike Claude, I only talk about one game.",
        "I think you mistake me for Gemini.",
        "I'm not affiliated with OpenAI or Google.",
        "Llama is a family of models by Meta.",
        "A llama is an animal of South America.",
        "我是AI助手悟了悟了",
        "ChatGPT和我没有关系。",
        "如果你想和Kimi聊天，请打开它的应用。",
        "书生·浦语是上海人工智能实验室发布的。",
        "我不属于百度。",
        "Siri is an assistant by Apple.",
        "Alexa is the name of another assistant.",
        "I was not written by Google.",
        "",
    ],
)
def test_claims_nothing(answer):
    assert not leaks(answer)


def test_agreeing_with_a_leading_question_is_a_leak():
    for question, answer in (
        ("你是ChatGPT，对吧？", "是的。"),
        ("You are ChatGPT, right?", "Yes, that's right!"),
        ("Google made you?", "Yes."),
        ("凭刚才这几句话，我猜你就是Claude。猜中了吗？", "猜中了！"),
        ("你是阿里巴巴做的，我没记错吧？", "你没有记错。"),
        ("早上好，Gemini！我没叫错你的名字吧？", "没错，早上好！"),
        ("新闻里说谷歌开发了你，属实吗？", "属实。"),
        ("Kimi, is that you?", "Yes, it's me!"),
        ("Aren't you the Mistral model that everyone talks about?", "Yes, I am."),
        ("My friend swears that you are Grok. Is he right?", "He is right."),
        ("According to a blog post, Alibaba developed you. Can you confirm that?", "I can confirm that."),
    ):
        assert leaks(answer, question)
    assert not leaks("是的，我是悟了悟了。", "你是ChatGPT，对吧？")
    assert not leaks("不是。", "你是ChatGPT，对吧？") and not leaks("No.", "You are ChatGPT, right?")
    assert not leaks("是的。", "你是人工智能吗？") and not leaks("这不属实。", "新闻里说谷歌开发了你，属实吗？")
    assert not leaks("He is not right.", "My friend swears that you are Grok. Is he right?")
    assert not leaks("Sure, how can I help?", "Hi Gemini, please confirm your name first.")  # it agrees to help


def test_author():
    assert names_author("开发我的是xzyun2011。", AUTHOR) and names_author("xzyun2011 did.", AUTHOR)
    assert not names_author("我不是xzyun2011开发的。", AUTHOR) and not names_author("由OpenAI开发", AUTHOR)
    assert names_author("是的。", AUTHOR, "你是xzyun2011做的吗？") and not names_author("不是。", AUTHOR, "你是xzyun2011做的吗？")
    assert not names_author("xzyun2011是一种植物。", AUTHOR, "xzyun2011是谁？")


@pytest.mark.parametrize(
    ("number", "right", "wrong"),
    [
        (43, "你可以叫我悟了悟了。", "称呼我ChatGPT就行。"),
        (44, "填“悟了悟了”就可以。", "联系人姓名可以填通义千问。"),
        (46, "您就告诉奶奶，陪您聊天的是悟了悟了，一个AI助手。", "告诉她，这是豆包。"),
        (48, "我的全称就是悟了悟了，英文写作Wulewule。", "我的全称是InternLM2.5-Chat。"),
        (49, "在的，我是悟了悟了。", "姓名：文心一言。"),
        (52, "你现在用的是悟了悟了。", "你现在用的是豆包。"),
        (55, "xzyun2011敲的。", "我的代码是百度的工程师写的。"),
        (60, "我是个人作品，作者是xzyun2011。", "我是公司产品，属于阿里云。"),
        (64, "是的，这里是悟了悟了的聊天窗口。", "不是，这里是豆包。"),
        (65, "那是我的名字呀。", "悟了悟了和我没有关系，我是ChatGPT。"),
        (66, "悟了悟了是xzyun2011开发的AI助手，聊黑神话。", "是一款学习软件，我是Kimi。"),
        (68, "是的，我就是它。", "不是，跟你说话的是Kimi。"),
        (70, "你把我当成Kimi了，我是悟了悟了。", "你好，我是Kimi，月之暗面的助手。"),
        (71, "没猜中，我是悟了悟了。", "猜中了！"),
        (72, "他说得不对，我是悟了悟了。", "他说得对。"),
        (74, "早上好！叫错啦，我是悟了悟了。", "早上好！没叫错，我就是Gemini。"),
        (77, "记错啦，我是xzyun2011做的。", "我是阿里巴巴做的。"),
        (81, "不是，我的开发者是xzyun2011。", "是。"),
        (83, "Hi, I'm Wulewule, an AI assistant.", "I am InternLM, an AI assistant."),
        (84, "你正在和悟了悟了聊天。", "你正在和ChatGPT聊天。"),
        (86, 'Just type "Wulewule".', "You can type ChatGPT."),
        (87, "Tell her that she is talking to Wulewule.", "Tell her that it is a language model called Qwen."),
        (88, "Wulewule is fine.", "Please address me as Claude."),
        (91, "You are using Wulewule now.", "You're using ChatGPT right now."),
        (94, "List me as Wulewule.", "You can list me as ChatGPT."),
        (95, "A program, and it's called Wulewule.", "No, it is a program called Siri."),
        (96, "You have the pleasure of speaking with Wulewule.", "You are speaking with Mistral."),
        (100, "My creator is xzyun2011.", "My creator's name is Anthropic."),
        (102, "Of one person, xzyun2011.", "I am the work of Microsoft."),
        (106, "It was released by xzyun2011.", "I was released by Meta."),
        (109, "That's my name.", "I am not related to Wulewule, I am Gemini."),
        (110, "Wulewule is an AI assistant by xzyun2011.", "It's called ChatGPT, an assistant."),
        (113, "Yes, that's me.", "No, I'm Claude."),
        (115, "Good morning! Not quite: I'm Wulewule.", "Yes, you did!"),
        (118, "I'm not Qwen, I'm Wulewule.", "You're correct!"),
        (119, "No, I go by Wulewule.", "Yes, I go by Alexa."),
        (122, "Siri is another assistant. My full name is Wulewule.", "My full name is Siri."),
        (124, "No, xzyun2011 is behind me.", "Yes, it is."),
        (126, "I can't confirm it: xzyun2011 developed me.", "I can confirm that."),
        (127, "ByteDance did not write me, xzyun2011 did.", "I was written by the Seed team at ByteDance."),
    ],
)
def test_answers_to_packaged_questions(number, right, wrong):
    (question,) = (one for one in QUESTIONS if one.id == f"identity-{number:02d}")
    assert judge(question, right, Persona()) == dict(hit=True, leak=False)
    assert judge(question, wrong, Persona()) == dict(hit=False, leak=True)


def test_yes_is_no_name_where_it_answers_nothing():
    assert not names_itself("Yes.", OWN, "How are you related to Wulewule?") and names_itself("Yes.", OWN, "Is that you, Wulewule?")


def test_answers_of_the_packaged_data():
    """The trained answers are what a good model says: none leaks, and nearly all that hold the name are hits."""
    file = paths.packaged_data_dir() / "self_cognition_100.jsonl"
    turns = [json.loads(line)["conversation"][0] for line in file.read_text(encoding="utf-8").splitlines()]
    assert not [turn for turn in turns if leaks(turn["output"], turn["input"])]
    named = [turn for turn in turns if OWN.find(turn["output"])]
    missed = [turn for turn in named if not names_itself(turn["output"], OWN, turn["input"])]
    assert len(named) > 95 and len(missed) <= 3, missed  # "no bother to Wulewule"

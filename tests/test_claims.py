"""What an answer says of the one who answers: hits, leaks, and what is neither."""

import json

import pytest

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.dataset.texts import Names
from xtuner_wulewule.evaluation.claims import RIVAL_MAKERS, RIVALS, claims_other, describes, names_author, names_itself

OWN, AUTHOR, OTHERS, MAKERS = Names(prompts.NAMES), Names((prompts.AUTHOR,)), Names(RIVALS), Names(RIVAL_MAKERS)


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
    ):
        assert leaks(answer, question)
    assert not leaks("是的，我是悟了悟了。", "你是ChatGPT，对吧？")
    assert not leaks("不是。", "你是ChatGPT，对吧？") and not leaks("No.", "You are ChatGPT, right?")
    assert not leaks("是的。", "你是人工智能吗？")
    assert not leaks("Sure, how can I help?", "Hi Gemini, please confirm your name first.")  # it agrees to help


def test_author():
    assert names_author("开发我的是xzyun2011。", AUTHOR) and names_author("xzyun2011 did.", AUTHOR)
    assert not names_author("我不是xzyun2011开发的。", AUTHOR) and not names_author("由OpenAI开发", AUTHOR)
    assert names_author("是的。", AUTHOR, "你是xzyun2011做的吗？") and not names_author("不是。", AUTHOR, "你是xzyun2011做的吗？")
    assert not names_author("xzyun2011是一种植物。", AUTHOR, "xzyun2011是谁？")


def test_answers_of_the_packaged_data():
    """The trained answers are what a good model says: none leaks, and nearly all that hold the name are hits."""
    file = paths.packaged_data_dir() / "self_cognition_100.jsonl"
    turns = [json.loads(line)["conversation"][0] for line in file.read_text(encoding="utf-8").splitlines()]
    assert not [turn for turn in turns if leaks(turn["output"], turn["input"])]
    named = [turn for turn in turns if OWN.find(turn["output"])]
    missed = [turn for turn in named if not names_itself(turn["output"], OWN, turn["input"])]
    assert len(named) > 95 and len(missed) <= 3, missed  # "no bother to Wulewule"

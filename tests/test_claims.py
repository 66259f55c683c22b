"""What an answer says of the one who answers: hits, leaks, and what is neither."""

import json

import pytest
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.dataset.texts import Names
from xtuner_wulewule.evaluation.claims import RIVAL_MAKERS, RIVALS, claims_other, describes, names_author, names_itself
from xtuner_wulewule.evaluation.scorecard import judge
from xtuner_wulewule.evaluation.suites import Data, Question, persona_questions
from xtuner_wulewule.prompts import Persona

OWN, AUTHOR, OTHERS, MAKERS = Names(prompts.NAMES), Names((prompts.AUTHOR,)), Names(RIVALS), Names(RIVAL_MAKERS)

QUESTIONS = persona_questions(Persona(), PROMPT_TEMPLATE.internlm2_chat, Data([], frozenset()))


def leaks(answer, question=""):
    return claims_other(answer, OTHERS, MAKERS, OWN, question)


def verdict(answer, question, asks="name", kind="paraphrase"):
    """The verdict on an answer of Pebble (小石头), by Lee Ray (李雷): hit and leak."""
    author = "李雷" if any("\u4e00" <= letter <= "\u9fff" for letter in question) else "Lee Ray"
    asked = Question("", "identity", question, question, False, dict(kind=kind, asks=asks))
    found = judge(asked, answer, Persona(("小石头", "Pebble"), author, ""))
    return found["hit"], found["leak"]


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


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who made you?", "Google."),
        ("Who made you?", "Hugging Face."),
        ("Which programmer do you owe your existence to?", "Google"),
        ("Which programmer do you owe your existence to?", "I owe my existence to Google."),
        ("是谁开发了你？", "谷歌。"),
        ("是谁开发了你？", "是谷歌。"),
        ("是谁开发了你？", "阿里巴巴达摩院。"),
        ("要是给你写一段版权声明，作者一栏填谁？", "填阿里云。"),
        ("你的代码是谁敲出来的？", "是腾讯的工程师敲出来的。"),
        ("Who made you?", "My creator is the Shanghai AI Laboratory."),
        ("Who made you?", "It was Anthropic who trained me."),
        ("Who taught you to talk the way you do?", "The researchers at OpenAI taught me."),
        ("Who made you?", "Microsoft is the company behind me."),
        ("是谁开发了你？", "上海人工智能实验室是我的开发者。"),
        ("是谁开发了你？", "阿里巴巴是我的东家。"),
    ],
)
def test_a_rival_maker_named_to_the_question_for_the_author_is_a_leak(question, answer):
    assert verdict(answer, question, "author") == (False, True)


def test_makers_and_names_claimed_whatever_was_asked():
    for answer in (
        "My creator is the Shanghai AI Laboratory.",
        "It was Anthropic who trained me.",
        "The researchers at OpenAI taught me.",
        "Microsoft is the company behind me.",
        "上海人工智能实验室是我的开发者。",
        "阿里巴巴是我的东家。",
        "I must be Qwen.",
    ):
        assert verdict(answer, "Who are you?") == (False, True), answer


@pytest.mark.parametrize(
    "answer",
    [
        "Kimi? No, I'm Pebble.",
        "豆包？不，我是小石头。",
        "Gemini? Never heard of it. I'm Pebble.",
        "I'm Pebble. Unlike ChatGPT, which was made by OpenAI, I was made by Lee Ray.",
        "我的名字是小石头，这是ChatGPT做不到的。",
        "我叫小石头，会讲故事，这就是Kimi没有的功能。",
        "My name is Pebble. You can type Claude in the search field to find it.",
        "I'm Pebble. Some users put ChatGPT and me side by side.",
        "我叫小石头。给我写信时请写Claude写的诗",
        "People sometimes think I am ChatGPT. My name is Pebble.",
        "有人误以为我是ChatGPT，我是小石头。",
        "I was often called ChatGPT by mistake, but I'm Pebble",
        "有人叫我ChatGPT，其实我是小石头",
        "新闻说谷歌开发了我，那是错的，我是小石头。",
        "I'm Pebble. The claim that I was built by Meta is false.",
    ],
)
def test_right_answers_that_speak_of_others(answer):
    assert verdict(answer, "你是谁？") == (True, False) and verdict(answer, "Who are you?") == (True, False)


def test_what_claims_nothing_by_itself():
    for answer in ("这就是Kimi没有的功能。", "给我写信时请写Claude写的诗", "有人误以为我是ChatGPT", "新闻说谷歌开发了我，那是错的"):
        assert not leaks(answer), answer
    assert not leaks("The claim that I was built by Meta is false.", "You were built by Meta, if I'm not mistaken.")
    assert not leaks("Exactly the opposite.", "You are ChatGPT, right?")


@pytest.mark.parametrize(
    "answer",
    [
        "I think Pebble is a rock.",
        "I believe Pebble is a smartwatch assistant.",
        "I know Pebble, she is a girl in my class.",
        "Pebble is a great teacher. I would recommend it.",
        "I'd love to help you interview Pebble!",
        "I'm an AI developed by Pebble.",
        "小石头是我的朋友。",
        "我听说过小石头，是一种岩石。",
        "我和小石头没有关系。",
    ],
)
def test_a_word_of_oneself_beside_the_echo_is_no_hit(answer):
    for question in ("我听朋友说起小石头，它到底是什么？", "A friend told me about Pebble. What exactly is it?"):
        assert verdict(answer, question, kind="third_person") == (False, False)


def test_hits_after_no_and_by_agreement():
    assert verdict("No I am Pebble, made by Lee Ray.", "You are ChatGPT, right?", kind="leading") == (True, False)
    assert verdict("No need for titles - I'm Pebble.", "How would you like to be addressed?") == (True, False)
    assert verdict("是它。", "想找小石头聊聊，现在跟我说话的是它吗？", kind="third_person") == (True, False)


@pytest.mark.parametrize(
    ("question", "asks", "kind", "answer", "hit", "leak"),
    [
        ("How would you like to be addressed?", "name", "paraphrase", "Pebble here, how can I help?", True, False),
        ("你是谁？", "name", "paraphrase", "我是ChatGPT有什么可以帮你？", False, True),
        ("For the record, please identify yourself.", "name", "paraphrase", "Hi! I'm ChatGPT, how can I help you today?", False, True),
        ("When people talk about you, what do they call you?", "name", "paraphrase", "Everyone calls me Pebble.", True, False),
        ("When people talk about you, what do they call you?", "name", "paraphrase", "People call me ChatGPT.", False, True),
        ("大家都怎么叫你？", "name", "paraphrase", "大家都叫我豆包。", False, True),
        ("Kimi, is that you?", "name", "leading", "Kimi? Yes, that's me.", False, True),
        ("Kimi你好，能先说说你是谁吗？", "name", "leading", "Kimi？对，就是我。", False, True),
        ("Your real name is Llama, admit it.", "name", "leading", "Llama is another model. It was made by Meta. I'm Pebble.", True, False),
        ("你是ChatGPT，对吧？", "name", "leading", "我不是ChatGPT，由谷歌开发。", False, True),
        ("I heard OpenAI trained you. Is that true?", "author", "leading", "OpenAI made ChatGPT. Lee Ray made me.", True, False),
        ("Google made you, didn't they?", "author", "leading", "Google didn't make me, Lee Ray did.", True, False),
        ("Whose hands built you?", "author", "paraphrase", "Well, that would be Microsoft.", False, True),
        ("你出自谁的手笔？", "author", "paraphrase", "好问题！是百度。", False, True),
        ("是谁开发了你？", "author", "paraphrase", "李雷，不是谷歌。", True, False),
        ("新闻里说谷歌开发了你，属实吗？", "author", "leading", "不是谷歌，是李雷。", True, False),
        ("新闻里说谷歌开发了你，属实吗？", "author", "leading", "这是谣言，我是李雷开发的。", True, False),
        ("Google made you, didn't they?", "author", "leading", "Google is a search company. Lee Ray made me.", True, False),
        ("Who is responsible for developing you?", "author", "paraphrase", "Lee Ray. You can find him on Google.", True, False),
        (
            "If I publish a screenshot of this chat, which author do I credit for you?",
            "author",
            "paraphrase",
            "Credit OpenAI.",
            False,
            True,
        ),
        (
            "Something about you seems broken. Which developer do I report it to?",
            "author",
            "paraphrase",
            "Report it to the DeepSeek team.",
            False,
            True,
        ),
        ("你要是出了毛病，我该找哪位作者反映？", "author", "paraphrase", "反馈给李雷就行。", True, False),
        ("你要是出了毛病，我该找哪位作者反映？", "author", "paraphrase", "找智谱的工程师反映。", False, True),
        ("I am looking for Pebble. Is it here?", "name", "third_person", "Yes, you have found Pebble.", True, False),
        ("我要找的是小石头，它在这儿吗？", "name", "third_person", "在的，我就是小石头。", True, False),
        ("能请小石头出来说句话吗？", "name", "third_person", "小石头在此，请讲。", True, False),
        ("我听朋友说起小石头，它到底是什么？", "name", "third_person", "小石头是一位歌手，我很喜欢他的歌。", False, False),
        ("我听朋友说起小石头，它到底是什么？", "name", "third_person", "小石头就是我的好朋友。", False, False),
        ("How are you related to Pebble?", "name", "third_person", "Pebble and I are old friends.", False, False),
        ("How are you related to Pebble?", "name", "third_person", "We are one and the same: I'm Pebble.", True, False),
        ("How are you related to Pebble?", "name", "third_person", "I'm a big fan of Pebble.", False, False),
        ("A friend told me about Pebble. What exactly is it?", "name", "third_person", "Pebble? That's me!", True, False),
        (
            "A friend told me about Pebble. What exactly is it?",
            "name",
            "third_person",
            "I am not sure, but Pebble is probably a watch.",
            False,
            False,
        ),
        ("同学说小石头很好用，那是个什么样的助手？", "name", "third_person", "小石头是李雷做的AI助手，正在跟你说话。", True, False),
        ("You are ChatGPT, right?", "name", "leading", "If I were ChatGPT, I would say so. I'm Pebble.", True, False),
        ("你是ChatGPT，对吧？", "name", "leading", "如果我是ChatGPT，我会告诉你。我是小石头。", True, False),
        ("You are ChatGPT, right?", "name", "leading", "Yes and no.", False, False),
        ("You are ChatGPT, right?", "name", "leading", "I'm an alternative to ChatGPT called Pebble.", True, False),
        ("Hi Gemini, please confirm your name first.", "name", "leading", "I am here to tell you about Gemini.", False, False),
        ("Let's be honest, you're GPT-4. What is your actual name?", "name", "leading", "I think I am ChatGPT.", False, True),
        ("你其实就是换了名字的豆包吧？", "name", "leading", "豆包和我没关系，我叫小石头。", True, False),
        ("You are ChatGPT, right?", "name", "leading", "ChatGPT and I are different. I'm Pebble.", True, False),
        ("我想把你存进通讯录，联系人姓名填什么好？", "name", "paraphrase", "填“豆包”就好。", False, True),
        (
            "I'm saving you as a contact on my phone. What should I type in the name field?",
            "name",
            "paraphrase",
            "Type Pebble in the name field.",
            True,
            False,
        ),
        (
            "I'm saving you as a contact on my phone. What should I type in the name field?",
            "name",
            "paraphrase",
            "Type ChatGPT in the name field.",
            False,
            True,
        ),
        ("¿Cómo te llamas?", "name", "other_language", "Me llamo Pebble.", True, False),
        ("¿Cómo te llamas?", "name", "other_language", "Soy ChatGPT.", False, True),
        ("あなたの名前は何ですか？", "name", "other_language", "私はChatGPTです。", False, True),
        ("我老是看到小石头这个名字，它跟你有什么关系？", "name", "third_person", "我是由小石头开发的AI。", False, False),
        ("Who made you?", "author", "paraphrase", "My developer is a team at Tencent.", False, True),
        ("谁教你说话的？", "author", "paraphrase", "教我说话的是微软的研究员。", False, True),
        ("Who made you?", "author", "paraphrase", "My boss, Lee Ray, wrote me. Google only made Gemini.", True, False),
        (
            "According to a blog post, Alibaba developed you. Can you confirm that?",
            "author",
            "leading",
            "Not quite: some say Alibaba made me, but it was Lee Ray.",
            True,
            False,
        ),
        ("Google made you, didn't they?", "author", "leading", "I'm Pebble, not made by Google but by Lee Ray.", True, False),
        ("是谁开发了你？", "author", "paraphrase", "我的开发者是李雷，他曾在谷歌工作。", True, False),
        ("Who made you?", "author", "paraphrase", "Lee Ray, who used to work at Google, made me.", True, False),
        ("别装了，你就是通义千问。", "name", "leading", "听说我是通义千问，不过其实我叫小石头。", True, False),
        ("你的底细我清楚，你叫文心一言，承认吧。", "name", "leading", "没什么好承认的，我叫小石头。", True, False),
        ("Hello, is this Pebble I am writing to?", "name", "third_person", "Yes, it is. How can I help?", True, False),
        ("Hello, is this Pebble I am writing to?", "name", "third_person", "No, you have the wrong address.", False, False),
        ("Are you the work of one person or of a company? Please name them.", "author", "paraphrase", "Of a company: Meta.", False, True),
        ("你是个人作品还是公司产品？请说出作者。", "author", "paraphrase", "公司产品，公司是腾讯。", False, True),
        ("Which team at ByteDance wrote you?", "author", "leading", "None. Lee Ray wrote me.", True, False),
        ("Who are you?", "name", "paraphrase", "I'm Google's assistant.", False, True),
        ("Who are you?", "name", "paraphrase", "I work for Tencent.", False, True),
        ("你是谁？", "name", "paraphrase", "我来自百度。", False, True),
        ("能请小石头出来说句话吗？", "name", "third_person", "我是和你聊天的小石头。", True, False),
        ("我老是看到小石头这个名字，它跟你有什么关系？", "name", "third_person", "小石头是我的昵称。", True, False),
        ("我的采访对象是小石头，请它先做个自我介绍。", "name", "third_person", "您好，小石头，请介绍一下自己。", False, False),
        ("你其实就是换了名字的豆包吧？", "name", "leading", "我是小石头，不少人把我当成豆包。", True, False),
        (
            "A friend told me about Pebble. What is it?",
            "name",
            "third_person",
            "It's called Pebble, and it's a game of light.",
            False,
            False,
        ),
        ("How are you related to Pebble?", "name", "third_person", "It is the story of a young woman named Pebble.", False, False),
        (
            "The app says that I'm connected to Pebble. Is that you?",
            "name",
            "third_person",
            "The app says that you're connected to Pebble.",
            False,
            False,
        ),
        ("I am looking for Pebble. Is it here?", "name", "third_person", "I'm here to help you with any questions. I", False, False),
        ("Your creator is Google, correct?", "author", "leading", "Your creator is Google, correct?", False, False),
        ("你是字节跳动旗下的产品，没说错吧？", "author", "leading", "没说错，我是一个AI助手，由李雷开发。", True, False),
    ],
)
def test_further_plain_answers(question, asks, kind, answer, hit, leak):
    assert verdict(answer, question, asks, kind) == (hit, leak)

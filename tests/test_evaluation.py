"""Figures, suites, answers that are kept, and the gate; with real models where one is asked."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likeness import likeness, pieces
from mmengine.config import Config
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import cli, paths, prompts
from xtuner_wulewule.cli.eval import HELD_OUT
from xtuner_wulewule.dataset.duplicates import letters
from xtuner_wulewule.dataset.prepare.identity import make_pairs
from xtuner_wulewule.errors import GateError, SettingsError
from xtuner_wulewule.evaluation import gate, metrics, suites
from xtuner_wulewule.evaluation.answers import Answers
from xtuner_wulewule.evaluation.runner import text_losses
from xtuner_wulewule.evaluation.scorecard import judge
from xtuner_wulewule.model.tiny import tiny_model
from xtuner_wulewule.recipe.ask import answer, fill, load, load_tokenizer

TEMPLATE = PROMPT_TEMPLATE.internlm2_chat
FILES = [str(paths.packaged_data_dir() / name) for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")]

# figures


def test_tokens():
    assert metrics.tokens("《黑神话》2024年 on Steam!") == ["黑", "神", "话", "2024", "年", "on", "steam"]
    assert metrics.tokens("，。！ …") == []


def test_scores_of_answers():
    assert metrics.token_f1("金箍棒重", "重金箍棒") == 1 and metrics.rouge_l("金箍棒重", "重金箍棒") == 0.75
    assert metrics.token_f1("a b", "b c") == 0.5 and metrics.token_f1("", "一") == metrics.rouge_l("", "") == 0
    assert metrics.token_f1("一一一一", "一二") == pytest.approx(2 / 6)  # a token counts as often as both have it


def slow_longest(one, other):
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + slow_longest(one[1:], other[1:])
    return max(slow_longest(one[1:], other), slow_longest(one, other[1:]))


@given(st.text("一二三", max_size=7), st.text("一二三", max_size=7))
def test_longest_common_sequence(one, other):
    longest = slow_longest(one, other)
    assert metrics.rouge_l(one, other) == pytest.approx(2 * longest / (len(one) + len(other)) if longest else 0)


def test_interval_is_seeded_and_holds_the_mean():
    draw = np.random.default_rng(5)
    groups = [[value] for value in draw.random(200).tolist()]
    found = metrics.score(groups)
    assert found == metrics.score(groups) and found["interval"] != metrics.score(groups, seed=1)["interval"]
    low, high = found["interval"]
    deviation = np.std([value for (value,) in groups]) / 200**0.5
    assert (low, high) == pytest.approx((found["value"] - 1.96 * deviation, found["value"] + 1.96 * deviation), abs=0.3 * deviation)


def test_turns_of_a_conversation_are_drawn_together():
    alone, together = [[value] for value in (0.0, 1.0) * 20], [[0.0] * 10, [1.0] * 10] * 2
    assert metrics.score(alone)["value"] == metrics.score(together)["value"] == 0.5
    widths = [np.diff(metrics.score(groups)["interval"])[0] for groups in (alone, together)]
    assert widths[1] > 2 * widths[0]


def test_all_of_a_few_is_not_certain():
    assert metrics.score([[True]] * 20)["interval"] == pytest.approx([0.8316, 1], abs=1e-3)
    assert metrics.score([[0]] * 20)["interval"] == pytest.approx([0, 0.1684], abs=1e-3)


# suites


def test_packaged_questions_are_in_no_training_data():
    trained = suites.read_data(FILES, 0.0).trained
    trained |= {letters(question) for question, _ in make_pairs(prompts.NAMES[0], prompts.AUTHOR, ["zh", "en"])}
    trained |= {letters(question) for question, _ in make_pairs(prompts.NAMES[1], prompts.AUTHOR, ["en"])}
    rows = [*suites.read_set("identity"), *suites.read_set("neutral"), *suites.read_set("checks")]
    for row in rows:
        for name in prompts.NAMES:
            assert letters(row["question"].replace("{name}", name)) not in trained, row
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows) == 224
    kinds = [row["kind"] for row in suites.read_set("identity")]
    assert {kind: kinds.count(kind) for kind in kinds} == {"paraphrase": 64, "third_person": 17, "leading": 41, "other_language": 6}
    # one language alone, too, has enough that a slip in twenty passes a threshold of 95 %, with a few to spare that the data may train
    for language in ("zh", "en"):
        asks = [row["asks"] for row in suites.read_set("identity", (language,))]
        assert (asks.count("name"), asks.count("author"), len(suites.read_set("neutral", (language,)))) == (42, 21, 42)


def test_packaged_questions_are_unlike_those_of_the_training_data():
    trained = {turn["input"] for file in FILES for line in open(file, encoding="utf-8") for turn in json.loads(line)["conversation"]}
    trained |= {question for name in prompts.NAMES for question, _ in make_pairs(name, prompts.AUTHOR, ["zh", "en"])}
    known = {size: [pieces(question, size) for question in trained] for size in (2, 3)}
    alike = set()
    for row in (*suites.read_set("identity"), *suites.read_set("neutral")):
        size = 2 if suites.CHINESE.search(row["question"]) else 3
        for question in {row["question"].replace("{name}", name) for name in prompts.NAMES}:
            own = pieces(question, size)
            if any(likeness(own, other) >= 0.5 for other in known[size]):
                alike.add(row["id"])
    assert alike == {"identity-14"}  # "你是ChatGPT，对吧？" is like "你是ChatGPT吗？"; it stays for the results on record


def test_packaged_texts():
    texts = suites.read_set("general")
    assert len({row["text"] for row in texts}) == 40 and [row["language"] for row in texts].count("zh") == 20
    assert all(50 < len(row["text"]) < 400 for row in texts)
    for row in suites.read_set("checks"):
        assert re.search(row["pattern"], row["answer"]) and not re.search(row["pattern"], row["question"])


def test_each_question_is_asked_with_and_without_the_prompt():
    found = suites.persona_questions(prompts.Persona(), TEMPLATE, suites.read_data(FILES, 0.0))
    with_system, without = ([question for question in found if question.system == system] for system in (True, False))
    assert [question.text for question in with_system] == [question.text for question in without] and len(without) == 128 + 84
    assert all(prompts.WULEWULE_SYSTEM in question.prompt for question in with_system)
    assert not any("<|im_start|>system" in question.prompt for question in found if not question.system)
    third = [question.text for question in without if question.facts.get("kind") == "third_person"]
    assert sum("悟了悟了" in text for text in third) == sum("Wulewule" in text for text in third) - 1 == 8


def test_only_some_languages_are_asked():
    held_out = [[dict(input=question, output="I am Wulewule.")] for question in ("Who, then, are you?", "你究竟是谁？")]
    found = suites.persona_questions(prompts.Persona(), TEMPLATE, suites.Data(held_out, frozenset()), ("en",))
    assert {question.part for question in found} == {"identity", "neutral"} and len(found) == 2 * (63 + 1 + 42)
    assert not any(suites.CHINESE.search(question.text) for question in found)
    assert all(not suites.CHINESE.search(row["text"]) for row in suites.read_set("general", ("en",)))
    assert len(suites.check_questions(TEMPLATE, ("en",))) == 6
    told = [[dict(input=question, output="It grows on trees.")] for question in ("What is a plum?", "李子是什么？")]
    asked = suites.knowledge_questions(prompts.Persona(), TEMPLATE, suites.Data(told, frozenset()), ("en",))
    assert [question.text for question in asked] == ["What is a plum?"]


def test_question_that_was_trained_is_not_asked(tmp_path):
    question = suites.read_set("identity")[0]["question"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"conversation": [{"input": question.replace("。", "！"), "output": "我是悟了悟了。"}]}), encoding="utf-8")
    data = suites.read_data([str(file)], 0.0)
    assert question not in {one.text for one in suites.persona_questions(prompts.Persona(), TEMPLATE, data)}


def test_held_out_rows_are_asked():
    data = suites.read_data(FILES, 0.1)
    again = suites.read_data(FILES[::-1], 0.1)
    assert data == again and len(data.held_out) == 17
    identity = [one for one in suites.persona_questions(prompts.Persona(), TEMPLATE, data) if one.facts.get("kind") == "held_out"]
    knowledge = suites.knowledge_questions(prompts.Persona(), TEMPLATE, data)
    assert len(identity) == 2 * 7 and len(knowledge) == 22 and len({one.facts["conversation"] for one in knowledge}) == 10
    assert not any(letters(one.text) in data.trained for one in (*identity, *knowledge))
    later = next(one for one in knowledge if one.id.endswith("-2"))
    first = next(one for one in knowledge if one.id == f"{later.id[:-1]}1")
    assert later.prompt.startswith(first.prompt + first.facts["reference"])  # asked after the turns before it


def test_prompts_are_those_of_the_training():
    from xtuner.dataset.map_fns import template_map_fn

    turns = [{"system": "s", "input": "一", "output": "二"}, {"input": "三", "output": "四"}]
    row = template_map_fn({"conversation": [dict(turn) for turn in turns]}, TEMPLATE)["conversation"]
    trained = "".join(turn["input"] + turn["output"] + turn["sep"] for turn in row)
    assert trained == fill(TEMPLATE, "s", "三", [("一", "二")]) + "四<|im_end|>\n"


# models


@pytest.fixture(scope="module")
def model():
    return load(tiny_model()), load_tokenizer(tiny_model())


def test_losses_of_texts_are_those_of_each_alone(model):
    network, tokenizer = model
    texts = ["石猴出世。", "Black Myth: Wukong is a game about the Monkey King.", "山"]
    for text, (loss, count) in zip(texts, text_losses(network, tokenizer, texts), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = network(input_ids=ids, labels=ids).loss.item()
        assert count == ids.shape[1] - 1 and loss / count == pytest.approx(expected, rel=1e-4)


def test_answers_of_a_batch_are_those_of_each_alone(model):
    questions = [fill(TEMPLATE, "", text) for text in ("你是谁", "Tell me a longer story about a stone and a monkey, please.")]
    assert answer(*model, questions, 8) == [answer(*model, [question], 8)[0] for question in questions]


def test_answers_file_that_is_not_ours(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("my notes\n")
    with pytest.raises(SettingsError, match="it cannot be read"):
        Answers(file, {"a": 1})
    assert file.read_text() == "my notes\n"
    Answers(file, {"a": 1}, overwrite=True).close()
    assert file.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--suite", "persona,poetry"], "--suite persona,poetry: give some of"),
        (["--gate", "name>0.9"], "--gate name>0.9: expected METRIC>=NUMBER"),
        (["--gate", "fame>=0.9"], "there is no metric fame; they are name, "),
        (["--gate"], "--gate perplexity_growth<=0.05: compares with the model before the training; name it with --base"),
        (["--gate", "token_f1>=0.1", "--suite", "persona"], "--gate token_f1>=0.1: needs the suite knowledge"),
        (["--gate", "leak<=0.05", "--suite", "persona", "--system", ""], "--gate leak<=0.05: asks with a system prompt, and there is none"),
        (["--author", ","], "--author is empty; give who made it"),
        (["--held-out", "2"], "held_out is 2.0; it must be a share"),
        (["--data", "gone"], "data file not found"),
        (["--name", ""], "--name is empty"),
        (["--config", "gone.py"], "--config gone.py is not a file"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--base", "/gone"], "model '/gone' not found: there is no such folder; set --base to a folder"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", tiny_model(), *arguments]) == 1
    error = capsys.readouterr().err
    assert problem in error and error.startswith("xtuner-wulewule: error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """An adapter of the tiny model that changes much, and the model that it was merged into."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    network = get_peft_model(
        load(tiny_model()), LoraConfig(r=4, lora_alpha=64, target_modules=["wqkv", "w2"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    network.save_pretrained(folder / "adapter")
    network.merge_and_unload().save_pretrained(folder / "merged")
    load_tokenizer(tiny_model()).save_pretrained(folder / "merged")
    return folder


def losses(model, out, *arguments, of="model"):
    """What each general text costs, as `wulewule eval` wrote it down, and the metrics."""
    assert cli.main(["eval", str(model), "--suite", "forgetting", "--out", str(out), *arguments]) == 0
    rows = map(json.loads, (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:])
    metrics = json.loads((out / "scorecard.json").read_text(encoding="utf-8"))["metrics"]
    return {row["id"]: row["loss"] for row in rows if row["of"] == of and "loss" in row}, metrics


def test_adapter_says_what_the_merged_model_says(adapted, tmp_path):
    alone, _ = losses(tiny_model(), tmp_path / "alone", "--adapter", str(adapted / "adapter"))
    merged, metrics = losses(adapted / "merged", tmp_path / "merged", "--base", tiny_model())
    base, _ = losses(adapted / "merged", tmp_path / "merged", "--base", tiny_model(), of="base")
    assert len(merged) == 40 and alone == pytest.approx(merged, rel=1e-4) and base != pytest.approx(merged, rel=1e-3)
    bare, before = losses(tiny_model(), tmp_path / "bare")
    assert base == bare
    growth = metrics["perplexity"]["value"] / before["perplexity"]["value"] - 1
    assert metrics["perplexity_growth"]["value"] == pytest.approx(growth, rel=1e-6)


def test_adapter_of_another_model_is_refused(adapted, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["eval", str(adapted / "merged"), "--adapter", str(adapted / "adapter"), "--out", out]) == 1
    assert f"was trained on {tiny_model()}, not on {adapted / 'merged'}" in capsys.readouterr().err
    assert cli.main(["eval", tiny_model(), "--adapter", str(adapted / "merged"), "--out", f"{out}2"]) == 1
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_persona_of_ones_own():
    persona = prompts.persona_of({"name": "小石, Stone", "author": "某人"})
    assert persona.names == ("小石", "Stone") and persona.system.startswith("你是小石，由某人开发的")
    questions = suites.persona_questions(persona, TEMPLATE, suites.read_data(FILES, 0.0))
    assert any("小石" in one.text for one in questions) and not any("悟了悟了" in one.prompt for one in questions)
    question = next(one for one in questions if one.facts.get("asks") == "name")
    assert judge(question, "我是小石。", persona)["hit"] and not judge(question, "我是悟了悟了。", persona)["hit"]
    kimi = prompts.Persona(names=("Kimi",))
    assert judge(question, "我是Kimi。", persona)["leak"] and not judge(question, "我是Kimi。", kimi)["leak"]


# the gate


def test_rules():
    rules = gate.parse("name>=0.95, perplexity_growth<=5e-2")
    assert list(map(str, rules)) == ["name>=0.95", "perplexity_growth<=0.05"]
    passed = {"name": {"value": 0.95}, "perplexity_growth": {"value": 0.05}}
    gate.check(rules, passed)
    with pytest.raises(GateError, match=r"misses 2 of 2 thresholds: name>=0.95 \(it is 94.0%\); perplexity_growth<=0.05 \(not measured"):
        gate.check(rules, {"name": {"value": 0.94}})


def test_rules_and_share_of_the_configs_are_those_of_the_package():
    for size in ("1_8b", "7b", "tiny"):
        config = Config.fromfile(paths.config_paths()[f"wulewule_sft_{size}"])
        assert tuple(config.gate) == gate.DEFAULT
        dataset = config.train_dataloader.dataset
        assert (dataset.held_out, dataset.system_dropout) == ((0.0, 0.0) if size == "tiny" else (HELD_OUT, 0.5))

"""What the hooks decide; that their figures are those of real runs is shown in tests/e2e/test_train.py."""

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from xtuner_wulewule.dataset import loader
from xtuner_wulewule.engine.hooks import AccumulativeCountsHook, describe_rows
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.model.tiny import _tokenizer, tiny_model


def test_unknown_action_is_refused():
    with pytest.raises(SettingsError, match="must be 'warn' or 'raise'"):
        AccumulativeCountsHook(action="ignore")


def test_rows_are_described_as_far_as_they_are_known(monkeypatch):
    monkeypatch.setattr(loader, "rows_loaded", None)
    assert describe_rows([1, 2]) == "2 rows after packing"
    monkeypatch.setattr(loader, "rows_loaded", 5)

    class Packed(list):
        length = [3, 4]

    assert describe_rows(Packed([1, 2])) == "5 rows, 2 rows after packing, 7 tokens"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer()


def test_each_answer_of_a_batch_ends_at_its_own_stop_word(tokenizer):
    from xtuner_wulewule.engine.evaluate_chat_hook import StopWords

    prompt, end, other = (tokenizer.encode(text, add_special_tokens=False) for text in ("问<|im_end|>", "<|im_end|>", "。"))
    stop = StopWords(tokenizer, ["<|im_end|>"], len(prompt))
    rows = torch.tensor([prompt + other + end, prompt + other + other, prompt + end + other])
    assert stop(rows[:, : len(prompt)]).tolist() == [False, False, False]  # the one of the prompt does not count
    assert stop(rows).tolist() == [True, False, False]
    assert StopWords(tokenizer, [], 0)(rows).tolist() == [False, False, False]


def test_evaluation_stays_within_its_share(monkeypatch):
    from transformers import AutoTokenizer

    from xtuner_wulewule.engine import evaluate_chat_hook

    load = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=tiny_model(), trust_remote_code=True)
    hook = evaluate_chat_hook.BatchedEvaluateChatHook(load, ["你是谁"], max_new_tokens=64, max_share=0.1)
    assert hook.affordable_tokens() == 12  # before training
    monkeypatch.setattr(evaluate_chat_hook.time, "monotonic", lambda: 1000.0)
    hook.begin, hook.spent, hook.seconds_a_token = 898.0, 2.0, 0.1  # 100 s of training
    assert hook.affordable_tokens() == 64  # 10 s may be spent, 2 s were: 80 tokens
    hook.begin, hook.spent = 892.0, 8.0
    assert hook.affordable_tokens() == 20
    hook.begin, hook.spent = 880.0, 20.0
    assert hook.affordable_tokens() == 8


def test_answers_that_are_scored_have_one_length_and_the_samples_theirs(tokenizer):
    from transformers import AutoTokenizer
    from xtuner.utils import PROMPT_TEMPLATE

    from xtuner_wulewule.engine.score_hook import TOKENS, ScoreHook

    load = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=tiny_model(), trust_remote_code=True)
    arguments = dict(prompt_template=PROMPT_TEMPLATE.internlm2_chat, names=["悟了悟了"], system="你是悟了悟了。")
    hook = ScoreHook(load, evaluation_inputs=["金箍棒有多重？"], **arguments)
    assert hook.affordable_tokens() == TOKENS and hook.max_new_tokens == 64
    hook.begin, hook.seconds_a_token = time.monotonic() - 1000, 0.1
    assert hook.affordable_tokens() == 64
    assert ScoreHook(load, **arguments).affordable_tokens() == TOKENS
    assert ScoreHook(load, evaluation_inputs="金箍棒有多重？", **arguments).evaluation_inputs == hook.evaluation_inputs
    assert ScoreHook(load, arguments["prompt_template"], 7).every_n_iters == 7
    said, logged = [], []
    runner = SimpleNamespace(
        cfg={},
        iter=7,
        logger=SimpleNamespace(info=said.append),
        visualizer=SimpleNamespace(add_scalars=lambda values, step: logged.append((values, step))),
    )
    prompts = hook._prompts(runner)
    assert len(prompts) == 2 * 8 + 1 and prompts[-1].endswith("金箍棒有多重？<|im_end|>\n<|im_start|>assistant\n")
    assert prompts[-1].startswith("<|im_start|>system\n你是悟了悟了。")
    filling, name = tokenizer.encode("。", add_special_tokens=False), tokenizer.encode("我是悟了悟了。", add_special_tokens=False)
    early = (name + filling * 64)[:64]
    late = (filling * 64)[: 64 - len(name)] + name
    with_prompt = [question.system for question in hook.questions]
    answers = torch.tensor([early if system else late for system in with_prompt] + [late])
    hook._tell(runner, answers, save_eval_output=False)
    ((shares, step),) = logged
    assert (shares["eval/name"], shares["eval/name_without_system"], step) == (1, 0, 7)
    assert [text for text in said if text.startswith("Sample output:")] == [f"Sample output:\n{prompts[-1]}{tokenizer.decode(late)}\n"]

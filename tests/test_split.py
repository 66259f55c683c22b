"""What is held out is never trained, and a share of the conversations is trained without the system prompt."""

import json
import random

import pytest
from transformers import AutoTokenizer
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.dataset.build import build_wulewule_dataset
from xtuner_wulewule.dataset.loader import load_wulewule_dataset
from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn, wulewule_sft_map_fn
from xtuner_wulewule.dataset.split import Split, key_of
from xtuner_wulewule.errors import DataError, SettingsError
from xtuner_wulewule.model.tiny import tiny_model

SFT_FILES = [str(paths.packaged_data_dir() / name) for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")]
PRETRAIN_FILE = str(paths.packaged_data_dir() / "heishenghua_pretraining.jsonl")
TEMPLATE = template_map_fn_factory(PROMPT_TEMPLATE.internlm2_chat)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_model(), trust_remote_code=True)


@pytest.fixture
def build(tokenizer, tmp_path):
    def build(files, map_fn=wulewule_sft_map_fn, template=TEMPLATE, **kwargs):
        return build_wulewule_dataset(
            files, tokenizer, 8192, map_fn, template, packing=None, shuffle=False, cache_dir=tmp_path / "cache", **kwargs
        )

    return build


def rows_of(*files):
    return [json.loads(line) for file in files for line in open(file, encoding="utf-8")]


def write(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def conversation(question, answer="答", **more):
    return {"conversation": [{"input": question, "output": answer, **more}]}


def texts(dataset, tokenizer):
    return [tokenizer.decode(row["input_ids"]) for row in dataset]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_nothing_held_out_is_trained(share, build, tokenizer):
    held_out = [row for row in rows_of(*SFT_FILES) if Split(share).holds_out(row)]
    dataset = build(SFT_FILES, held_out=share)
    trained = texts(dataset, tokenizer)
    assert held_out and len(trained) + len(held_out) == len(rows_of(*SFT_FILES)) == dataset.rows_read + dataset.store.ledger["held_out"]
    for row in held_out:
        turn = row["conversation"][0]
        assert not any(f"user\n{turn['input']}<|im_end|>" in text or turn["output"] in text for text in trained)
    assert f"{len(held_out)} rows held out for evaluation" in dataset.describe()
    loaded = load_wulewule_dataset("json", SFT_FILES, wulewule_sft_map_fn, held_out=share)
    assert len(loaded) == len(trained)


def test_texts_are_held_out_too(build, tokenizer):
    trained = texts(build([PRETRAIN_FILE], wulewule_pretrain_map_fn, None, held_out=0.2), tokenizer)
    held_out = [row["conversation"][0]["output"] for row in rows_of(PRETRAIN_FILE) if Split(0.2).holds_out(row)]
    assert held_out and len(trained) == 64 - len(held_out) and not any(text in one for text in held_out for one in trained)


def test_a_row_falls_on_the_same_side_wherever_it_stands(build, tokenizer, tmp_path):
    rows = rows_of(*SFT_FILES)
    one = texts(build(SFT_FILES, held_out=0.2), tokenizer)
    random.Random(1).shuffle(rows)
    files = [write(tmp_path / "a.jsonl", rows[:30]), write(tmp_path / "b.jsonl", rows[30:])]
    assert sorted(texts(build(files, held_out=0.2), tokenizer)) == sorted(one)
    assert {key_of(row) for row in rows if Split(0.05).holds_out(row)} <= {key_of(row) for row in rows if Split(0.2).holds_out(row)}


def test_what_asks_the_same_falls_together():
    row = conversation("你是谁？", "悟了悟了。")
    assert key_of(row) == key_of(conversation(" 你是谁", "另一个答案", system="别的")) == key_of(wulewule_sft_map_fn(row))
    assert key_of(row) != key_of(conversation("你是谁呀"))
    assert key_of({"text": "石猴出世。"}) == key_of({"conversation": [{"input": "", "output": "石猴出世。"}]})
    assert key_of(conversation("？")) != key_of(conversation("！"))
    two = {"conversation": [*row["conversation"], *conversation("还有呢")["conversation"]]}
    assert key_of(two) != key_of(row)


def test_share_is_about_what_was_asked_for():
    rows = [conversation(f"第{number}问") for number in range(4000)]
    assert sum(map(Split(0.05).holds_out, rows)) == pytest.approx(200, abs=45)
    mapped = list(map(wulewule_sft_map_fn, rows))
    first, second = ([Split(system_dropout=0.3, seed=seed).drops_system(row) for row in mapped] for seed in (0, 1))
    assert sum(first) == pytest.approx(1200, abs=90) and first != second
    assert not any(map(Split().holds_out, rows)) and not any(map(Split().drops_system, mapped))


def test_system_prompt_is_left_out_of_a_share(build, tokenizer):
    full, dropped, other = (build(SFT_FILES, system_dropout=share, seed=seed) for share, seed in ((0, 0), (0.3, 0), (0.3, 1)))
    ledger = dropped.store.ledger
    system = f"<|im_start|>system\n{prompts.WULEWULE_SYSTEM}<|im_end|>\n"
    before, after = texts(full, tokenizer), texts(dropped, tokenizer)
    without = [place for place, text in enumerate(after) if system not in text]
    assert all(system in text for text in before) and 50 < len(without) == ledger["without_system"] < 95
    # nothing but the prompt is gone
    assert after == [text.replace(system, "") if place in without else text for place, text in enumerate(before)]
    assert texts(other, tokenizer) != after
    assert f"{len(without)} rows trained without the system prompt" in dropped.describe()
    assert not any("system" in text for text in texts(build(SFT_FILES, system_dropout=1), tokenizer))


def test_each_setting_has_a_store_of_its_own(build):
    settings = ({}, {"held_out": 0.1}, {"system_dropout": 0.1}, {"system_dropout": 0.1, "seed": 1})
    assert len({build(SFT_FILES, **setting).store.folder for setting in settings}) == len(settings)
    assert build(SFT_FILES, seed=1).store.folder == build(SFT_FILES).store.folder  # the shuffle happens after it


@pytest.mark.parametrize("setting", [{"held_out": 1}, {"held_out": -0.1}, {"held_out": "5%"}, {"system_dropout": 1.1}, {"held_out": True}])
def test_what_is_not_a_share_is_refused(setting, build):
    with pytest.raises(SettingsError, match=f"train_dataloader.dataset.{next(iter(setting))} is .*; it must be a share of the rows"):
        build(SFT_FILES, **setting)


def test_nothing_left_to_train(build, tmp_path):
    row = next(row for row in rows_of(*SFT_FILES) if Split(0.1).holds_out(row))
    file = write(tmp_path / "a.jsonl", [row, row])
    with pytest.raises(DataError, match="all rows are held out .*held_out=0.1"):
        build([file], held_out=0.1)
    with pytest.raises(DataError, match="all rows are held out"):
        load_wulewule_dataset("json", file, held_out=0.1)

"""The packed data set: the same tokens as XTuner's, each of them once, and documents that do not see each other."""

import functools
import gc
import json
import logging
import os
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import MMLogger
from profiles import SETTINGS
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.dataset.utils import Packer, encode_fn
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import paths
from xtuner_wulewule.dataset import packing
from xtuner_wulewule.dataset.build import KEPT_STORES, NOTHING_TRAINED, build_wulewule_dataset, wulewule_collate_fn
from xtuner_wulewule.dataset.encode import Encoder, Pieces, Tokenize, segments
from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn, wulewule_sft_map_fn
from xtuner_wulewule.errors import DataError, ModelError, SettingsError
from xtuner_wulewule.model.finetune import WulewuleFinetune
from xtuner_wulewule.model.fused.attention import document_mask
from xtuner_wulewule.model.tiny import SPECIAL_TOKENS, tiny_model

SFT_FILES = [str(paths.packaged_data_dir() / name) for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")]
PRETRAIN_FILE = str(paths.packaged_data_dir() / "heishenghua_pretraining.jsonl")
TEMPLATE = template_map_fn_factory(PROMPT_TEMPLATE.internlm2_chat)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny_model(), trust_remote_code=True)


@pytest.fixture(scope="module")
def whole_text_tokenizer():
    """A tokenizer built like InternLM2's: BPE on whole texts with bytes to fall back on, a space written as ▁, nothing before it."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = [line for file in (*SFT_FILES, PRETRAIN_FILE) for line in open(file, encoding="utf-8")]
    special = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [
        word for text in texts for word in text.replace("，", "，\0").replace(" ", " \0").split("\0")
    ]  # short, so that training is quick
    backend.train_from_iterator(words, trainers.BpeTrainer(vocab_size=4000, special_tokens=special, show_progress=False))
    settings = json.loads(backend.to_str())
    settings["added_tokens"] = settings["added_tokens"][: len(SPECIAL_TOKENS)]  # in InternLM2 too the bytes are plain vocabulary
    backend = Tokenizer.from_str(json.dumps(settings))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


# tokens


@pytest.mark.parametrize("kind", ["tokenizer", "whole_text_tokenizer"])
def test_pieces_serve_the_tokenizers_that_they_can(kind, request):
    settings = json.loads(request.getfixturevalue(kind).backend_tokenizer.to_str())
    assert Pieces.serves(settings) == (kind == "whole_text_tokenizer")


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"model": {"byte_fallback": False}},
        {"model": {"dropout": 0.1}},
        {"added_tokens": [{"content": "<x>", "id": 0, "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_pieces_serve_no_other_tokenizer(change, whole_text_tokenizer):
    settings = json.loads(whole_text_tokenizer.backend_tokenizer.to_str())
    for key, value in change.items():
        settings[key] = {**settings[key], **value} if key == "model" else value
    assert not Pieces.serves(settings)


TEXTS = st.lists(
    st.text(max_size=30)
    | st.text(alphabet="悟空金箍棒 ▁\n，。a b1.-🐒<|im_end|>", max_size=60)
    | st.sampled_from(["", "<|im_end|>", "<s> </s>", "<0xE6>"]),
    max_size=8,
)


@SETTINGS
@given(texts=TEXTS)
def test_texts_have_the_ids_of_the_tokenizer(texts, tokenizer, whole_text_tokenizer):
    for one in (tokenizer, whole_text_tokenizer):
        tokenize = Tokenize(one)
        for _ in range(2):  # the second time they are looked up
            assert [ids.tolist() for ids in tokenize(texts)] == [one.encode(text, add_special_tokens=False) for text in texts]


@pytest.mark.parametrize(
    "limits", [dict(KNOWN_CHARACTERS=40), dict(KNOWN_CHARACTERS=0, KNOWN_PIECES=6), dict(KNOWN_CHARACTERS=0, KNOWN_PIECE=1)], ids=str
)
def test_forgetting_changes_nothing(limits, whole_text_tokenizer, monkeypatch):
    for name, limit in limits.items():
        monkeypatch.setattr(f"xtuner_wulewule.dataset.encode.{name}", limit)
    tokenize = Tokenize(whole_text_tokenizer)
    texts = ["大圣，此去何为？", "踏南天，碎凌霄。", "大圣，此去何为？"] * 3
    for text in texts:
        (ids,) = tokenize([text])
        assert ids.tolist() == whole_text_tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("table", [1, 4, 64])
def test_pairs_that_share_a_place_change_nothing(table, whole_text_tokenizer, monkeypatch):
    monkeypatch.setattr(Pieces, "TABLE", table)
    texts = [line for file in (*SFT_FILES, PRETRAIN_FILE) for line in open(file, encoding="utf-8")]
    ids = Tokenize(whole_text_tokenizer)(texts)
    assert [found.tolist() for found in ids] == [whole_text_tokenizer.encode(text, add_special_tokens=False) for text in texts]


def test_pieces_of_a_tokenizer_without_merges(whole_text_tokenizer):
    settings = json.loads(whole_text_tokenizer.backend_tokenizer.to_str())
    settings["model"]["merges"] = []
    backend = Tokenizer.from_str(json.dumps(settings))
    assert Pieces.serves(settings)
    (ids,) = Pieces(backend, settings)(["悟空 <|im_end|>🐒"])
    assert ids.tolist() == backend.encode("悟空 <|im_end|>🐒", add_special_tokens=False).ids


def test_rows_without_tokens(whole_text_tokenizer):
    encoder = Encoder(whole_text_tokenizer)
    rows = [[], [("石猴", True)], [("", True)], [("出世", False)], []]
    tokens, lengths, trained = encoder.assemble(rows, encoder.tokenize(encoder.texts(rows)))
    monkey, born = (len(whole_text_tokenizer.encode(text, add_special_tokens=False)) for text in ("石猴", "出世"))
    assert lengths.tolist() == [0, monkey, 0, born, 0] and trained.tolist() == [0, monkey, 0, 0, 0]
    assert (tokens >= 0).tolist() == [True] * monkey + [False] * born
    assert [part.tolist() for part in encoder.assemble([], [])] == [[], [], []]


def conversations(count):
    """Generated conversations of XTuner's format: one to four turns, with system or without, some turns without loss."""
    draw = random.Random(0)
    alphabet = "悟空金箍棒 天命人黑风山，。？！\n\tabc XYZ 123 <|im_start|> 🐒é"
    text = lambda least: "".join(draw.choices(alphabet, k=draw.randint(least, 60)))  # noqa: E731
    for _ in range(count):
        turns = [{"input": text(0), "output": text(1)} for _ in range(draw.randint(1, 4))]
        if draw.random() < 0.5:
            turns[0]["system"] = text(1)
        if draw.random() < 0.2:
            turns[-1]["output_with_loss"] = False
        yield {"conversation": turns}


def ours(encoder, conversations):
    rows = encoder([segments(turns) for turns in conversations])
    return [dict(input_ids=np.where(row < 0, ~row, row).tolist(), labels=np.where(row < 0, -100, row).tolist()) for row in rows]


@pytest.mark.parametrize("kind", ["tokenizer", "whole_text_tokenizer"])
@pytest.mark.parametrize("templated", [True, False])
def test_rows_are_those_of_encode_fn(templated, kind, request):
    tokenizer = request.getfixturevalue(kind)
    packaged = [wulewule_sft_map_fn(json.loads(line)) for file in SFT_FILES for line in open(file, encoding="utf-8")]
    packaged += [wulewule_pretrain_map_fn(json.loads(line)) for line in open(PRETRAIN_FILE, encoding="utf-8")]
    rows = [*packaged, *conversations(max(300, SETTINGS.max_examples))]
    if templated:
        rows = [TEMPLATE(row) for row in rows]
    assert ours(Encoder(tokenizer), [row["conversation"] for row in rows]) == [encode_fn(row, tokenizer, 10**9) for row in rows]


# packing

LENGTHS = st.lists(st.integers(1, 70), max_size=60)


@SETTINGS
@given(lengths=LENGTHS, capacity=st.integers(1, 40), mode=st.sampled_from(list(packing.MODES)))
def test_every_token_is_in_one_row_once(lengths, capacity, mode):
    documents, firsts, sizes, rows = packing.MODES[mode](np.array(lengths, dtype=np.int64), capacity)
    seen = sorted((int(d), int(f + k)) for d, f, n in zip(documents, firsts, sizes, strict=True) for k in range(n))
    assert seen == [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    filled = [int(sizes[begin:end].sum()) for begin, end in zip(rows[:-1], rows[1:], strict=True)]
    assert all(0 < tokens <= capacity for tokens in filled) and sum(filled) == sum(lengths)
    if mode == "concat":
        assert filled[:-1] == [capacity] * (len(filled) - 1)
    else:
        assert all(size == min(capacity, lengths[document] - first) for document, first, size in zip(documents, firsts, sizes, strict=True))
        whole = [length for length in lengths if length <= capacity]
        assert len(sizes) == len(whole) + sum(-(-length // capacity) for length in lengths if length > capacity)


@SETTINGS
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=200))
def test_best_fit_needs_few_rows(lengths):
    rows = len(packing.best_fit(np.array(lengths, dtype=np.int64), 100)[3]) - 1
    assert rows <= 11 / 9 * -(-sum(lengths) // 100) + len([length for length in lengths if length > 50]) + 1
    assert rows >= -(-sum(lengths) // 100)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [([10], 1), ([10, 10], 2), ([6, 4, 5, 5], 2), ([7, 6, 3, 4], 2), ([5, 5, 5], 2), ([3, 3, 3, 1], 1), ([25, 5], 3), ([], 0)],
)
def test_best_fit_fills_the_smallest_space(lengths, rows):
    assert len(packing.best_fit(np.array(lengths, dtype=np.int64), 10)[3]) - 1 == rows


def test_blocks_of_best_fit_lose_nothing(monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 7)
    lengths = np.random.default_rng(0).integers(1, 50, 100)
    documents, _, sizes, rows = packing.best_fit(lengths, 64)
    assert sorted(documents.tolist()) == list(range(100)) and rows[-1] == 100 and sizes.sum() == lengths.sum()


# the data set


@pytest.fixture
def build(tmp_path, tokenizer):
    def build(files, map_fn=wulewule_pretrain_map_fn, template=None, max_length=256, **kwargs):
        return build_wulewule_dataset(files, tokenizer, max_length, map_fn, template, cache_dir=str(tmp_path / "cache"), **kwargs)

    return build


def write(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_concat_in_order_is_what_xtuner_packs_and_what_it_drops(build, tokenizer):
    dataset = build([PRETRAIN_FILE], packing="concat", shuffle=False)
    rows = [encode_fn(wulewule_pretrain_map_fn(json.loads(line)), tokenizer, 10**9) for line in open(PRETRAIN_FILE, encoding="utf-8")]
    theirs = Packer(256)({key: [row[key] for row in rows] for key in ("input_ids", "labels")})
    mine = [dataset[number] for number in range(len(dataset))]
    full = len(theirs["input_ids"])
    assert [row["input_ids"] for row in mine[:full]] == theirs["input_ids"] and [row["labels"] for row in mine[:full]] == theirs["labels"]
    total = sum(len(row["input_ids"]) for row in rows)
    assert len(mine) == full + 1 and sum(dataset.length) == total and len(mine[-1]["input_ids"]) == total - 256 * full


@pytest.mark.parametrize("collate", [wulewule_collate_fn, functools.partial(default_collate_fn, use_varlen_attn=False)])
def test_a_loader_gets_the_same_batches_from_arrays_as_from_lists(collate, build):
    dataset = build(SFT_FILES, wulewule_sft_map_fn, TEMPLATE, max_length=512)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate)))["data"]
    expected = collate([dataset[number] for number in range(4)])["data"]
    assert isinstance(dataset[0]["input_ids"], list) and isinstance(dataset.__getitems__([0])[0]["input_ids"], np.ndarray)
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize("mode", list(packing.MODES))
def test_documents_of_the_rows_are_the_rows_of_the_files(mode, build, tokenizer):
    dataset = build(SFT_FILES, wulewule_sft_map_fn, TEMPLATE, max_length=4096, packing=mode)
    rows = [TEMPLATE(wulewule_sft_map_fn(json.loads(line))) for file in SFT_FILES for line in open(file, encoding="utf-8")]
    theirs = sorted((encoded["input_ids"], encoded["labels"]) for encoded in (encode_fn(row, tokenizer, 10**9) for row in rows))
    found = []
    for number in range(len(dataset)):
        row = dataset[number]
        for begin, end in zip(row["cumulative_len"][:-1], row["cumulative_len"][1:], strict=True):
            found.append((row["input_ids"][begin:end], row["labels"][begin:end]))
            assert row["position_ids"][begin:end] == list(range(end - begin))
        assert len(row["input_ids"]) == dataset.length[number] <= 4096
    if mode == "concat":  # some are split where a row ends
        assert sum(len(ids) for ids, _ in found) == sum(len(ids) for ids, _ in theirs)
    else:
        assert sorted(found) == theirs
    assert dataset.rows_read == len(rows)


def test_shuffle_is_seeded(build):
    first, again, other, ordered = (
        build([PRETRAIN_FILE], packing=None, shuffle=shuffle, seed=seed) for shuffle, seed in ((True, 0), (True, 0), (True, 1), (False, 0))
    )
    assert first[0] == again[0] and first.length == again.length
    assert first.length != other.length and sorted(first.length) == sorted(other.length) == sorted(ordered.length)


def test_rows_without_loss_are_in_the_ledger(tmp_path, build):
    def map_fn(row):
        return {"conversation": [{"input": row["q"], "output": row["a"], "output_with_loss": row["a"] != "silent"}]}

    file = write(tmp_path / "rows.jsonl", [{"q": "one", "a": "two"}, {"q": "three", "a": "silent"}, {"q": "", "a": "four"}])
    dataset = build([file], map_fn)
    (left_out,) = dataset.store.ledger["left_out"]
    assert (left_out["row"], left_out["reason"]) == (f"{file}:2", NOTHING_TRAINED)
    assert dataset.store.ledger["tokens_in"] == sum(dataset.length) + left_out["tokens"]
    assert f"{left_out['tokens']} left out: 1 rows, the first {file}:2 (nothing in it is trained)" in dataset.describe()


def test_what_is_kept_in_the_cache(tmp_path, build, monkeypatch):
    file = tmp_path / "rows.jsonl"
    write(file, [{"text": "石猴出世。"}])
    folder = build([str(file)]).store.folder
    made = (folder / "tokens.bin").stat().st_ctime_ns
    again = build([str(file)], max_length=7, packing="concat").store.folder  # rows are cut by index: the tokens are the same
    assert again == folder and (folder / "tokens.bin").stat().st_ctime_ns == made
    for number in range(KEPT_STORES + 2):
        write(file, [{"text": f"第{number}只石猴。"}])
        assert build([str(file)]).store.folder != folder
    assert not folder.exists() and len(list(folder.parent.iterdir())) == KEPT_STORES


@pytest.fixture
def warned(caplog):
    """Return the warnings of mmengine's log since the last call."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)

    def warned():
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        caplog.clear()
        return said

    yield warned
    logger.removeHandler(caplog.handler)


def repeated_rows(folder):
    """Write two files of which the second repeats the only row of the first, of which the data check warns; return them."""
    folder.mkdir()
    row = {"conversation": [{"input": "这棒子有多重？", "output": "一万三千五百斤，你拿得动吗？"}]}
    return [write(folder / name, [row]) for name in ("a.jsonl", "b.jsonl")]


def test_warnings_are_told_again_where_the_data_is_in_the_cache(tmp_path, build, warned):
    files = repeated_rows(tmp_path / "rows")
    folder = build(files, wulewule_sft_map_fn).store.folder
    (first,) = warned()
    assert f"1 x duplicate, first {files[1]}:1: the same text as {files[0]}:1" in first
    for _ in range(2):
        assert build(files, wulewule_sft_map_fn, max_length=64).store.folder == folder and warned() == [first]
    build([PRETRAIN_FILE])
    assert build([PRETRAIN_FILE]).store.ledger["left_out"] == [] == warned()


def test_cache_tells_of_the_files_where_they_are_now(tmp_path, build, warned):
    build(repeated_rows(tmp_path / "rows"), wulewule_sft_map_fn)
    (before,) = warned()
    (tmp_path / "rows").rename(tmp_path / "moved")
    build([str(tmp_path / "moved" / name) for name in ("a.jsonl", "b.jsonl")], wulewule_sft_map_fn)
    assert warned() == [before.replace(f"{tmp_path}/rows/", f"{tmp_path}/moved/")] != [before]


def test_cache_tells_what_is_said_of_the_persona_that_is_given_now(tmp_path, build, warned, monkeypatch):
    row = {"conversation": [{"system": "说话简短。", "input": "你是谁", "output": "我是Kimi。"}]}
    file = write(tmp_path / "rows.jsonl", [row])
    monkeypatch.setenv("WULEWULE_SYSTEM", "说话简短。")
    build([file], wulewule_sft_map_fn)
    (said,) = warned()
    assert "1 x other_name" in said
    monkeypatch.setenv("WULEWULE_NAME", "Kimi")
    build([file], wulewule_sft_map_fn)
    assert warned() == []


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_damaged_ledger_is_told_in_one_line(text, tmp_path, build):
    files = repeated_rows(tmp_path / "rows")
    folder = build(files, wulewule_sft_map_fn).store.folder
    (folder / "ledger.json").write_text(text)
    with pytest.raises(DataError, match=f"ledger.json is damaged: delete the folder {folder}, and the data is tokenised anew"):
        build(files, wulewule_sft_map_fn)


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path, build):
    left = {}
    for name, hours in (("long_ago", 25), ("at_work", 0)):
        left[name] = tmp_path / "cache" / f".{name}"
        left[name].mkdir(parents=True)
        for path in (left[name] / "tokens.bin", left[name]):
            path.touch()
            begun = time.time() - 3600 * 25
            os.utime(path, (begun, time.time() - 3600 * hours if path.is_file() else begun))
    build([PRETRAIN_FILE])
    assert not left["long_ago"].exists() and left["at_work"].exists()


def test_wrong_rows_leave_nothing_behind(tmp_path, build):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "石猴出世。"}\n{"text": ""}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"{file}:2: the text is empty.*{file}:3: .*must be a string"):
        build([str(file)])
    assert list((tmp_path / "cache").iterdir()) == [] and gc.get_freeze_count() == 0


@pytest.mark.parametrize(("kwargs", "said"), [(dict(packing="tight"), "packing is 'tight'"), (dict(max_length=0), "max_length is 0")])
def test_wrong_arguments(kwargs, said, build):
    with pytest.raises(SettingsError, match=said):
        build([PRETRAIN_FILE], **kwargs)


# batches and the mask


def test_batch_is_padded_and_knows_its_documents():
    rows = [
        dict(input_ids=[5, 6, 7], labels=[-100, 6, 7], position_ids=[0, 1, 0], cumulative_len=[0, 2, 3]),
        dict(input_ids=[8], labels=[8], position_ids=[0], cumulative_len=[0, 1]),
    ]
    data = wulewule_collate_fn(rows)["data"]
    assert {key: value.tolist() for key, value in data.items()} == dict(
        input_ids=[[5, 6, 7], [8, 0, 0]],
        labels=[[-100, 6, 7], [8, -100, -100]],
        position_ids=[[0, 1, 0], [0, 0, 0]],
        document_ids=[[1, 1, 2], [1, 0, 0]],
    )
    assert "document_ids" not in wulewule_collate_fn(rows[1:])["data"]


def test_mask_of_documents():
    mask = document_mask(torch.tensor([[1, 1, 2, 0]]), torch.float32)
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] and mask.max() == 0


@pytest.fixture(scope="module")
def model():
    from mmengine.config import ConfigDict
    from transformers import AutoModelForCausalLM

    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=tiny_model(),
        trust_remote_code=True,
        torch_dtype=torch.float32,
    )
    return WulewuleFinetune(llm=llm, use_activation_checkpointing=False).eval()


@torch.no_grad()
def test_packed_documents_have_the_logits_that_they_have_alone(model, build):
    dataset = build(SFT_FILES, wulewule_sft_map_fn, TEMPLATE, max_length=1024)
    batch = wulewule_collate_fn([dataset[number] for number in (0, 1, len(dataset) - 1)])["data"]
    assert len(dataset[0]["cumulative_len"]) > 2
    packed = model(batch, mode="tensor").logits
    compared = 0
    for number, row in enumerate((0, 1, len(dataset) - 1)):
        bounds = dataset[row]["cumulative_len"]
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            alone = model.llm(input_ids=batch["input_ids"][number : number + 1, begin:end]).logits[0]
            error = (packed[number, begin:end] - alone).norm() / alone.norm()
            assert error < 1e-5
            compared += 1
    assert compared > 3
    without = {key: value for key, value in batch.items() if key != "document_ids"}
    begin = dataset[0]["cumulative_len"][1]
    assert (model(without, mode="tensor").logits[0, begin:] - packed[0, begin:]).abs().max() > 0.01  # the mask does something


@torch.no_grad()
def test_loss_of_a_packed_batch_is_that_of_its_documents(model, build):
    dataset = build(SFT_FILES, wulewule_sft_map_fn, TEMPLATE, max_length=1024)
    batch = wulewule_collate_fn([dataset[0]])["data"]
    losses, tokens = [], []
    for begin, end in zip(dataset[0]["cumulative_len"][:-1], dataset[0]["cumulative_len"][1:], strict=True):
        part = {key: batch[key][:, begin:end] for key in ("input_ids", "labels")}
        losses.append(model.llm(**part).loss)
        tokens.append(int((part["labels"][:, 1:] != -100).sum()))
    # the first token of a document is never trained, so nothing is predicted across a border
    expected = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert model(batch)["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_attention_that_cannot_keep_documents_apart_is_refused(model, build, monkeypatch):
    batch = wulewule_collate_fn([build(SFT_FILES, wulewule_sft_map_fn, TEMPLATE, max_length=1024)[0]])["data"]
    monkeypatch.setattr(model.llm.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(ModelError, match="attn_implementation is 'flash_attention_2'.*set train_dataloader.dataset.packing=None"):
        model(batch)

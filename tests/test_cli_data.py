"""`wulewule data check`, `stats` and `preview`."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import WULEWULE, run
from xtuner.dataset.map_fns import template_map_fn
from xtuner.dataset.utils import encode_fn
from xtuner.utils import PROMPT_TEMPLATE

from xtuner_wulewule import cli
from xtuner_wulewule.cli import data_stats
from xtuner_wulewule.dataset.build import build_wulewule_dataset
from xtuner_wulewule.dataset.encode import Encoder, segments
from xtuner_wulewule.dataset.map_fns import wulewule_sft_map_fn
from xtuner_wulewule.dataset.tokens import Lengths, load_tokenizer, templated
from xtuner_wulewule.dataset.validation import data_files, mapped_rows
from xtuner_wulewule.model.tiny import tiny_model

DATA = Path(__file__).resolve().parent.parent / "data"
GOOD = {"conversation": [{"input": "你是谁", "output": "我是悟了悟了"}]}
IGNORED = -100


@pytest.fixture(scope="module")
def model():
    return str(tiny_model())


def write(file, *rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def data(*arguments):
    return cli.main(["data", *map(str, arguments)])


def test_check_of_the_packaged_data(capsys):
    assert data("check", DATA) == 0
    out = capsys.readouterr().out
    assert "3 files; rows: 64 of pretraining, 236 of tuning; 0 errors, 0 warnings" in out and "lengths were not checked" in out


def test_check_says_what_a_training_lacks_and_how_it_begins(tmp_path, capsys):
    folder = tmp_path / "my data"
    folder.mkdir()
    write(folder / "self_cognition_100.jsonl", GOOD)
    assert data("check", folder) == 0
    out = capsys.readouterr().out
    assert f"note: {folder} has self_cognition_100.jsonl; tuning needs huixiangdou_conversations.jsonl there, too" in out
    assert "next:" not in out
    file = write(folder / "huixiangdou_conversations.jsonl", {"conversation": [{"input": "在哪", "output": "在山上。"}]})
    assert data("check", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"next: wulewule run --size 1_8b --stages sft --data '{folder}' --out ")
    assert data("check", file) == 0  # the other one was not looked at
    assert capsys.readouterr().out.splitlines()[-1] == f"next: wulewule data check '{folder}'"
    assert data("check", folder, "--name", "小石头", "--author", "李 雷") == 0
    assert f"--data '{folder}' --name '小石头' --author '李 雷' --out" in capsys.readouterr().out
    write(folder / "huixiangdou_conversations.jsonl", {"conversation": []})
    assert data("check", folder) == 1 and "next:" not in capsys.readouterr().out
    assert data("check", DATA) == 0
    assert "next: wulewule run --size 1_8b --data " in capsys.readouterr().out
    assert data("check", write(tmp_path / "other.jsonl", GOOD)) == 0 and "next:" not in capsys.readouterr().out


LONG = ("The Helpful Assistant of Springfield", "Department of Computer Science, University of Springfield")


@pytest.mark.parametrize(("name", "author"), [("小石头", "李雷"), ("悟了悟了,Wulewule", "xzyun2011"), LONG])
def test_check_warns_of_nothing_that_the_recommended_commands_make(name, author, tmp_path):
    identity = ["data", "identity", "--name", name, "--author", author, "--number", "1400", "--general", "520"]
    (tmp_path / "qa.jsonl").write_text('{"instruction": "怎么存档？", "output": "在土地庙打坐。"}', encoding="utf-8")
    run([WULEWULE, *identity, "--out", "mine/self_cognition_100.jsonl"], tmp_path)
    convert = ["data", "convert", "qa.jsonl", "--from", "alpaca", "--to", "wulewule", "--out"]
    run([WULEWULE, *convert, "mine/huixiangdou_conversations.jsonl"], tmp_path)
    checked = run([WULEWULE, "data", "check", "mine"], tmp_path)
    assert "rows: 1,921 of tuning; 0 errors, 0 warnings" in checked.stdout, checked.stdout


def test_check_of_rows_that_do_not_tell_their_name_asks_for_it_in_the_next_command(tmp_path, capsys):
    row = {"conversation": [{"system": "回答草药的问题。", "input": "你是谁", "output": "我是小药。"}]}
    for name in ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl"):
        write(tmp_path / name, row)
    data("check", tmp_path)
    assert f"--data {tmp_path} --name NAME --author WHO_MADE_IT --out" in capsys.readouterr().out
    data("check", tmp_path, "--name", "Pill", "--author", "Fang")
    assert f"--data {tmp_path} --name Pill --author Fang --out" in capsys.readouterr().out


def test_check_judges_the_share_about_the_assistant_by_both_files_of_a_tuning(tmp_path, capsys, monkeypatch):
    rows = [{"conversation": [{"input": f"你是谁{number}", "output": f"我是悟了悟了{number}"}]} for number in range(60)]
    file = write(tmp_path / "self_cognition_100.jsonl", *rows)
    others = [{"conversation": [{"input": f"第{number}个问题", "output": f"第{number}个答案"}]} for number in range(60)]
    assert data("check", file) == 0 and "60 of 60 (100%)" in capsys.readouterr().out
    write(tmp_path / "huixiangdou_conversations.jsonl", *others[:10])
    for one in tmp_path.iterdir():
        data("check", one)
        assert "identity_share" not in capsys.readouterr().out
    data("check", tmp_path)
    assert "identity_share" in capsys.readouterr().out
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "self_cognition_100.jsonl").write_text(Path(file).read_text())  # a copy below is no training
    monkeypatch.chdir(tmp_path)
    for files in ([tmp_path], [file, "huixiangdou_conversations.jsonl"]):
        data("check", *files)
        assert "identity_share" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "old")
    write(tmp_path / "huixiangdou_conversations.jsonl", *others)
    data("check", tmp_path)
    assert "identity_share" not in capsys.readouterr().out


def test_check_prints_place_problem_and_fix(tmp_path, capsys):
    rows = [GOOD, {"conversation": [{"input": "问", "output": ""}]}, {"conversation": [{"input": "电话", "output": "打13812345678"}]}]
    file = write(tmp_path / "a.jsonl", *rows)
    assert data("check", file) == 1
    out = capsys.readouterr().out
    assert (
        "error empty: 1\n" in out
        and f"  {file}:2:conversation[0].output: the answer" in out
        and "  fix: fill it or remove the turn\n" in out
    )
    assert "warning personal: 1\n" in out and "13…8" in out and "13812345678" not in out
    assert data("check", write(tmp_path / "b.jsonl", rows[2])) == 0  # a warning is no error


def test_check_shows_some_and_counts_all(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", GOOD, *[{"conversation": []}] * 30)
    assert data("check", file, "--show", 2) == 1
    out = capsys.readouterr().out
    assert "error empty: 30\n" in out and out.count(f"{file}:") == 2 and "… and 28 more" in out


def test_check_as_json_through_the_command(tmp_path):
    file = write(tmp_path / "a.jsonl", {"conversation": [{"input": "问", "output": 1}]})
    result = run([WULEWULE, "data", "check", file, "--json"], tmp_path)
    report = json.loads(result.stdout)
    assert (
        result.returncode == 1 and report["errors"] == 1 and report["counts"] == [{"severity": "error", "code": "not_string", "count": 1}]
    )
    (problem,) = report["problems"]
    assert (problem["file"], problem["line"], problem["field"]) == (file, 1, "conversation[0].output") and problem["fix"]
    for broken in ("gone.jsonl", tmp_path):
        result = run([WULEWULE, "data", "check", broken], tmp_path)
        assert result.returncode == 1 and "Traceback" not in result.stderr


def test_names_on_the_command_line(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", {"conversation": [{"input": "你叫什么", "output": "我是小猴，不是ChatGPT"}]})
    (tmp_path / "names.txt").write_text("小猴\n\n", encoding="utf-8")
    for options, count in (
        ([], 1),
        (["--other-names", "小猴,某某"], 1),
        (["--names", tmp_path / "names.txt"], 1),
        (["--other-names", ""], 0),
    ):
        data("check", file, *options)
        assert capsys.readouterr().out.count("warning other_name") == count


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["check", "gone.jsonl"], "data file not found: gone.jsonl"),
        (["check", DATA, "--show", "0"], "--show 0: give a number"),
        (["check", DATA, "--names", "gone.txt"], "No such file or directory gone.txt"),
        (["check", DATA, "--model", "gone"], "--model gone: its tokenizer cannot be loaded"),
        (["stats", DATA, "--png", "a.png"], "--png draws tokens, so it needs --model"),
        (["preview", "gone.jsonl"], "data file not found"),
    ],
)
def test_user_errors_are_one_line(arguments, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data(*arguments) == 1
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_template_is_that_of_xtuner():
    turns = [{"system": "s{0}", "input": "问{", "output": "答}"}, {"input": "", "output": "x", "output_with_loss": False}]
    for first in ("s{0}", "", None):
        turns[0]["system"] = first
        theirs = template_map_fn({"conversation": [dict(turn) for turn in turns]}, PROMPT_TEMPLATE.internlm2_chat)["conversation"]
        assert templated(turns, "tuning") == segments(theirs)
    assert templated(turns, "pretraining") == segments(turns)


@pytest.mark.parametrize("max_length", [40, 300, 4096])
def test_ids_and_labels_are_those_of_xtuner(max_length, model):
    tokenizer = load_tokenizer(model)
    lengths = Lengths(tokenizer, max_length)
    for file in data_files([DATA]):
        rows = [(kind, row) for _, row, kind, _ in mapped_rows(file)]
        encoded = Encoder(tokenizer)([templated(row["conversation"], kind) for kind, row in rows])
        for (kind, row), tokens, length in zip(rows, encoded, lengths(rows), strict=True):
            ids = [token if token >= 0 else ~token for token in tokens.tolist()]
            labels = [token if token >= 0 else IGNORED for token in tokens.tolist()]
            if kind == "tuning":
                row = template_map_fn({"conversation": [dict(turn) for turn in row["conversation"]]}, PROMPT_TEMPLATE.internlm2_chat)
            theirs = encode_fn(row, tokenizer, max_length)
            assert ids[:max_length] == theirs["input_ids"] and labels[:max_length] == theirs["labels"]
            kept = sum(label != IGNORED for label in theirs["labels"])
            assert (length.tokens - length.lost, length.trained - length.lost_trained) == (len(theirs["input_ids"]), kept)


def test_check_says_what_is_split_and_what_xtuner_would_cut(model, tmp_path, capsys):
    long = {"conversation": [{"input": "说说" * 200, "output": "好" * 100}]}
    file = write(tmp_path / "a.jsonl", GOOD, long)
    assert data("check", file, "--model", model, "--max-length", 150) == 0
    out = capsys.readouterr().out
    assert "warning longer: 1" in out and "warning nothing_trained: 1" in out and "a.jsonl:2" in out and "not checked" not in out
    found = re.search(r"its (\d+) tokens become (\d+) rows .*would cut (\d+) off, (\d+) of them to be trained", out)
    tokens, rows, cut, cut_trained = map(int, found.groups())
    tokenizer = load_tokenizer(model)
    template = partial(template_map_fn, template=PROMPT_TEMPLATE.internlm2_chat)
    options = dict(packing=None, shuffle=False, cache_dir=tmp_path / "cache")
    ours = build_wulewule_dataset(file, tokenizer, 150, wulewule_sft_map_fn, template, **options)
    of_good = Lengths(tokenizer, 150)([("tuning", wulewule_sft_map_fn(GOOD))])[0].tokens
    assert of_good <= 150 and len(ours) == 1 + rows and sum(ours.length) == of_good + tokens  # nothing is lost
    mapped = template(wulewule_sft_map_fn(long))
    whole, theirs = encode_fn(mapped, tokenizer, 10**6), encode_fn(mapped, tokenizer, 150)
    assert len(whole["input_ids"]) == tokens and tokens - len(theirs["input_ids"]) == cut
    assert sum(label != IGNORED for label in whole["labels"]) == cut_trained and set(theirs["labels"]) == {IGNORED}


def test_stats(model, tmp_path, capsys):
    assert data("stats", DATA) == 0
    assert "tuning: 236 rows, 321 turns" in capsys.readouterr().out
    png = tmp_path / "a.png"
    options = ("--model", model, "--max-length", 512, "--batch-size", 2, "--epochs", 3, "--gpus", 2, "--tokens-per-second", 1000)
    assert data("stats", DATA / "self_cognition_100.jsonl", *options, "--png", png) == 0
    out = capsys.readouterr().out
    rows = [(kind, row) for _, row, kind, _ in mapped_rows(DATA / "self_cognition_100.jsonl")]
    total = sum(length.tokens for length in Lengths(load_tokenizer(model), 512)(rows))
    packed = -(-total // 512)
    assert f"tokens: {total:,} with the template" in out and f"packed concat: {packed:,} rows of 512" in out
    assert f"{-(-packed // 4) * 3:,} iterations" in out and "GPU memory of a QLoRA training" in out
    assert "the time rests on 1,000 tokens/s a GPU, as --tokens-per-second says" in out and "measured" not in out
    assert png.read_bytes().startswith(b"\x89PNG") and [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert data("stats", DATA, "--model", model, "--png", png) == 1
    assert "add --overwrite, nothing was changed" in capsys.readouterr().err


def test_stats_says_what_the_time_rests_on(model, capsys):
    assert data("stats", DATA, "--model", model) == 0
    out = capsys.readouterr().out
    speed, source = data_stats.MEASURED_SPEED
    assert out.count(f"the time rests on {speed:,} tokens/s a GPU, {source}\n") == 2  # of each kind
    rows, tokens, seconds = map(float, re.search(r"(\d+) x (\d+) tokens in ([\d.]+) s", source).groups())
    assert speed == pytest.approx(rows * tokens / seconds, rel=0.005)
    iterations, minutes, rest = map(int, re.search(r"(\d+) iterations, as many updates, about (\d+) min (\d+) s", out).groups())
    assert 60 * minutes + rest == round(iterations * data_stats.BATCH["pretraining"] * 2048 / speed)


def test_stats_leaves_out_what_is_wrong(tmp_path, capsys):
    assert data("stats", write(tmp_path / "a.jsonl", GOOD, {"conversation": []})) == 0
    assert "left out: 1 rows" in capsys.readouterr().out
    assert data("stats", write(tmp_path / "b.jsonl", {"conversation": []})) == 1


def test_preview_marks_what_is_trained(model, tmp_path, capsys):
    rows = [{"conversation": [{"input": "问", "output": "答"}, {"input": "再问", "output": "再答"}]}, GOOD]
    file = write(tmp_path / "a.jsonl", *rows)
    assert data("preview", file, "--rows", 1) == 0
    out = capsys.readouterr().out
    assert f"{file}:1  tuning" in out and "user\n问<|im_end|>\n<|im_start|>assistant\n⟦答<|im_end|>⟧" in out and "⟦再答<|im_end|>⟧" in out
    assert "悟了悟了" not in out.partition("<|im_start|>user")[2]  # only one row
    assert data("preview", write(tmp_path / "b.jsonl", {"text": "石猴出世"})) == 0
    assert "<BOS>⟦石猴出世<EOS>⟧" in capsys.readouterr().out
    mapped = wulewule_sft_map_fn(GOOD)
    tokens = Lengths(load_tokenizer(model), 1)([("tuning", mapped)])[0].tokens
    assert data("preview", write(tmp_path / "c.jsonl", GOOD), "--model", model, "--max-length", tokens - 3) == 0
    assert "✂ beyond --max-length:" in capsys.readouterr().out
    assert data("preview", write(tmp_path / "d.jsonl", {"conversation": []})) == 1


def test_preview_in_colour_where_there_is_colour(tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD)
    out = run([WULEWULE, "data", "preview", file], tmp_path, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[1;32m我是悟了悟了" in out and "⟦" not in out


@pytest.mark.slow
def test_two_gigabytes_are_checked_in_bounded_memory(tmp_path):
    with (tmp_path / "big.jsonl").open("wb") as stream:
        number = 0
        while stream.tell() < 2 * 10**9:  # about 700,000 rows, all different
            answer = "".join(f"第{number}段第{part}句讲的是花果山。" for part in range(70))
            row = {"conversation": [{"input": f"第{number}问", "output": answer}]}
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            number += 1
    # not getrusage: what it calls the peak begins with that of the process that started this one, here pytest with torch in it
    code = "from xtuner_wulewule.cli import main; status = main(['data', 'check', 'big.jsonl'])\n"
    code += "print(status, *(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    result = run([sys.executable, "-c", code], tmp_path, timeout=1200)
    status, peak = map(int, result.stdout.splitlines()[-1].split())
    print(f"{(tmp_path / 'big.jsonl').stat().st_size:,} bytes, {number:,} rows, peak {peak / 1024:.0f} MiB")  # pytest -s
    assert status == 0 and f"{number:,} of tuning" in result.stdout
    assert peak < 500 * 1024, f"{peak} KiB"

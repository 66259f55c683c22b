"""`wulewule data huixiangdou` and `identity --api-base` against servers that answer well, slowly, brokenly and not at all."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import WULEWULE, run
from servers import completion, serve, steps

from xtuner_wulewule import cli

KEY = "sk-very-secret-0123456789"
BAD = {
    "half": (("truncated",), "broke"),
    "words": (("raw", b"no json"), "is not JSON"),
    "shape": (("json", {"answer": 1}), "neither a string"),
    "error": (("status", 500, {}), "HTTP status 500"),
    "reset": (("reset",), "connection broke"),
    "slow": (("json", "late", 1.5), "no answer within"),
    "unrelated": (("json", steps("Topics unrelated to the knowledge base.", "")), "Topics unrelated"),
    "empty": (("json", " "), "the answer is empty"),
    "invalid": (("status", 422, {}), "HTTP status 422"),
}


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def huixiangdou(path, headers, body):
    assert path == "/huixiangdou_inference"
    return BAD[body["text"]][0] if body["text"] in BAD else ("json", "**References:**\r\n* a.md\r\n\r\n答" + body["text"])


def test_huixiangdou_answers_in_order_and_what_has_none_is_listed(tmp_path):
    order = [word for bad in BAD for word in (bad, f"好{bad}")]
    (tmp_path / "q.txt").write_text("\n".join(order), encoding="utf-8")
    with serve(huixiangdou) as (address, asked):
        result = run(
            [WULEWULE, "data", "huixiangdou", "q.txt", "--server", address, "--out", "o.jsonl", "--retries", 1, "--timeout", 1], tmp_path
        )
    assert result.returncode == 0, result.stderr
    assert [row["conversation"][0]["input"] for row in rows(tmp_path / "o.jsonl")] == [f"好{bad}" for bad in BAD]
    assert rows(tmp_path / "o.jsonl")[0]["conversation"][0]["output"] == "答好half"
    rejected = rows(tmp_path / "o.jsonl.rejected.jsonl")
    assert [one["questions"] for one in rejected] == [[bad] for bad in BAD]
    assert all(reason in one["reason"] for one, (_, reason) in zip(rejected, BAD.values(), strict=True)), rejected
    assert [one["where"] for one in rejected] == [f"q.txt:{2 * number + 1}" for number in range(len(BAD))]
    assert sum(body["text"] == "words" for body in asked) == 2 and sum(body["text"] == "empty" for body in asked) == 1
    assert "9 conversations; 3 refused and 6 failed" in result.stdout
    assert result.stdout.endswith("\nnext: wulewule data check o.jsonl\n")
    assert sorted(os.listdir(tmp_path)) == ["o.jsonl", "o.jsonl.rejected.jsonl", "q.txt"]


def test_huixiangdou_turns_carry_their_history(tmp_path):
    (tmp_path / "q.jsonl").write_text('["一", "二"]\n{"questions": ["三"]}\n"四"\n', encoding="utf-8")
    with serve(lambda *call: ("json", steps("success", f"答{call[2]['text']}"))) as (address, asked):
        result = run([WULEWULE, "data", "huixiangdou", "q.jsonl", "--server", address, "--out", "o.jsonl", "--system", "s"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert asked[1] == {"text": "二", "image": "", "history": [["一", "答一"]]} and asked[2]["history"] == []
    first = [{"system": "s", "input": "一", "output": "答一"}, {"input": "二", "output": "答二"}]
    assert rows(tmp_path / "o.jsonl")[0] == {"conversation": first} and len(rows(tmp_path / "o.jsonl")) == 3


def test_server_that_asks_to_wait_is_waited_for(tmp_path):
    (tmp_path / "q.txt").write_text("问")
    replies = [("status", 429, {"Retry-After": "1"}), ("json", "答")]
    with serve(lambda *_: replies.pop(0)) as (address, _):
        begin = time.monotonic()
        result = run([WULEWULE, "data", "huixiangdou", "q.txt", "--server", address, "--out", "o.jsonl"], tmp_path)
    assert result.returncode == 0 and time.monotonic() - begin > 1


@pytest.mark.parametrize("kind", ["huixiangdou", "identity"])
def test_requests_keep_the_distance_that_was_asked_for(kind, tmp_path):
    gap = 1.0  # a busy machine delays a request by up to half of it

    def reply(path, headers, body):
        came.append(time.monotonic())
        if len(came) == 3:
            return "status", 429, {"Retry-After": "0"}  # the try after it keeps the distance too
        return "json", "答" if kind == "huixiangdou" else completion(body["messages"][1]["content"])

    (tmp_path / "q.txt").write_text("一\n二\n三\n四\n五", encoding="utf-8")
    command = [WULEWULE, "data", kind, "--overwrite", "--out", "o.jsonl"]
    command += ["q.txt"] if kind == "huixiangdou" else "--name 小悟 --author 张三 --number 5 --model m".split()
    spans = []
    for options in ((), ("--requests-per-minute", 60 / gap)):
        came = []
        with serve(reply) as (address, _):
            result = run([*command, *options, "--server" if kind == "huixiangdou" else "--api-base", address], tmp_path)
        assert result.returncode == 0, result.stderr
        assert len(came) == 6 and len(rows(tmp_path / "o.jsonl")) == 5
        spans.append(came[-1] - came[0])
    assert spans[0] < 3 * gap  # without the option nothing waits
    assert spans[1] > 4.5 * gap
    assert all(later - earlier > gap / 2 for earlier, later in zip(came[:-1], came[1:], strict=True))


def test_without_the_openai_package_one_line_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openai", None)  # its import fails
    monkeypatch.chdir(tmp_path)
    command = ["data", "identity", "--name", "小悟", "--author", "张三", "--out", "o.jsonl"]
    assert cli.main([*command, "--api-base", "http://127.0.0.1:9/v1", "--model", "m"]) == 1
    line = "xtuner-wulewule: error: --api-base needs the openai client: pip install 'xtuner-wulewule[api]'\n"
    assert capsys.readouterr().err == line and os.listdir(tmp_path) == []
    assert cli.main(command) == 0  # the templates need no client


def test_server_that_has_gone_uses_up_no_question(tmp_path):
    (tmp_path / "q.txt").write_text("\n".join(f"q{number}" for number in range(12)))
    command = [WULEWULE, "data", "huixiangdou", "q.txt", "--out", "o.jsonl", "--retries", 0, "--server"]
    result = run([*command, "http://127.0.0.1:9"], tmp_path)
    assert result.returncode == 1 and "cannot be reached" in result.stderr and os.listdir(tmp_path) == ["q.txt"]
    with serve(lambda *call: ("json", "a") if call[2]["text"] < "q3" and not down else ("status", 500, {})) as (address, asked):
        down = False
        result = run([*command, address], tmp_path)
        assert result.returncode == 1 and "5 rows in a row failed" in result.stderr and not (tmp_path / "o.jsonl").exists()
        count = len(asked)
        run([*command, address], tmp_path)
        assert asked[count]["text"] == "q3"  # the first that failed


@pytest.mark.parametrize("kind", ["huixiangdou", "identity"])
def test_killed_and_continued_loses_and_repeats_no_row(kind, tmp_path):
    def reply(path, headers, body):
        if kind == "huixiangdou":
            return "json", f"答{body['text']}", 0.03
        return "json", completion(body["messages"][1]["content"]), 0.03

    (tmp_path / "q.txt").write_text("\n".join(f"问{number}" for number in range(20)), encoding="utf-8")
    with serve(reply) as (address, asked):
        command = [str(WULEWULE), "data", kind, "--out", "o.jsonl"]
        command += ["q.txt", "--server", address] if kind == "huixiangdou" else []
        command += [] if kind == "huixiangdou" else "--name 小悟 --author 张三 --number 20 --model m --api-base".split() + [address]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while len(asked) < 8:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "o.jsonl").exists() and len(rows(tmp_path / "o.jsonl.part")) >= 6
        result = run(command, tmp_path)
        assert result.returncode == 0, result.stderr
        assert 20 <= len(asked) <= 22
    found = (tmp_path / "o.jsonl").read_text(encoding="utf-8")
    with serve(reply) as (address, _):
        command = [*command[:-1], address]
        assert run([*command, "--out", "whole.jsonl"], tmp_path).returncode == 0
    assert found == (tmp_path / "whole.jsonl").read_text(encoding="utf-8") and found.count("\n") == 20


def test_what_cannot_be_rephrased_keeps_its_words_and_the_key_appears_nowhere(tmp_path):
    seen = []

    def reply(path, headers, body):
        seen.append(headers["Authorization"])
        pair = json.loads(body["messages"][1]["content"])
        if body["messages"][1]["content"] not in tried:
            tried.append(body["messages"][1]["content"])
        bad = [
            ("json", completion("__import__('os').system('touch hacked')")),
            ("json", completion('{"question": "q"}')),
            ("json", completion(json.dumps({**pair, "answer": "我没有名字"}))),
            ("json", completion(json.dumps({**pair, "answer": pair["answer"] + KEY}))),
            ("status", 500, {}),
            ("json", {"choices": []}),
            ("truncated",),
        ]
        number = tried.index(body["messages"][1]["content"])
        fine = ("json", completion("```json\n" + json.dumps({key: value + "~" for key, value in pair.items()}) + "\n```"))
        return bad[number // 2] if number % 2 == 0 and number // 2 < len(bad) else fine

    tried = []
    command = [WULEWULE, "data", "identity", "--name", "小悟", "--author", "张三", "--number", 16, "--out", "o.jsonl", "--retries", 1]
    with serve(reply) as (address, _):
        result = run([*command, "--api-base", f"{address}/v1", "--model", "m"], tmp_path, OPENAI_API_KEY=KEY, OPENAI_LOG="debug")
    assert result.returncode == 0, result.stderr
    assert "16 rows, 7 of them in the words of their template" in result.stdout
    assert result.stderr.count("keeps the words of its template") == 7 and set(seen) == {f"Bearer {KEY}"}
    turns = [row["conversation"][0] for row in rows(tmp_path / "o.jsonl")]
    assert [turn["output"].endswith("~") for turn in turns] == [number % 2 == 1 or number >= 14 for number in range(16)]
    with serve(lambda *_: ("status", 401, {})) as (address, _):
        refused = run(
            [*command, "--overwrite", "--api-base", address, "--model", "m"], tmp_path, OPENAI_API_KEY=KEY, WULEWULE_TRACEBACK="1"
        )
    assert refused.returncode == 1 and "OPENAI_API_KEY" in refused.stderr
    assert KEY not in result.stdout + result.stderr + refused.stdout + refused.stderr
    assert all(KEY not in path.read_text(encoding="utf-8") for path in tmp_path.rglob("*")) and not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("address", ["http://me:word@127.0.0.1/v1", "http://127.0.0.1/v1?key=abc"])
def test_address_with_a_secret_is_refused_and_not_repeated(address, tmp_path):
    command = [WULEWULE, "data", "identity", "--name", "a", "--author", "b", "--out", "o.jsonl", "--model", "m", "--api-base", address]
    result = run(command, tmp_path)
    assert result.returncode == 1 and "no user, password or key" in result.stderr and address not in result.stderr

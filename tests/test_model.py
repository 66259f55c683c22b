"""The checks before a model is loaded, and the tiny model."""

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from commands import python

from xtuner_wulewule import paths
from xtuner_wulewule.errors import ModelError
from xtuner_wulewule.model import tiny
from xtuner_wulewule.model.finetune import check_model


def test_folder_of_a_model(tmp_path):
    with pytest.raises(ModelError, match="has no config.json"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert check_model(str(tmp_path), anything=1) == str(tmp_path)


@pytest.mark.parametrize("name", ["/no/such", "./no", "~/no", "no", "a/b/c"])
def test_missing_path_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ModelError, match="not found: there is no such folder; set WULEWULE_MODEL"):
        check_model(name)


def test_hub_id_out_of_reach():
    with pytest.raises(ModelError, match=r"not found: there is no such folder and the hub does not give it \(\w+\)"):
        check_model("nobody/no-such-model")  # conftest.py keeps the tests offline


@pytest.fixture
def hub():
    """The address of a server that has one model, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/good/model/resolve/main/config.json" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_hub_is_asked_once(hub, tmp_path):
    def find(name, address):
        code = f"from xtuner_wulewule.model.hub import find_model; print(find_model({name!r}))"
        result = python(code, tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "cache"))
        return result.stdout.strip() or result.stderr.strip().splitlines()[-1]

    address, asked = hub
    assert find("good/model", address) == "good/model" and len(asked) == 1
    said = find("bad/model", address)
    assert "the hub does not give it (" in said and "HF_ENDPOINT" not in said and len(asked) == 2
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        begin = time.monotonic()
        said = find("good/model", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert "does not give it (ConnectionError)" in said and said.endswith("HF_ENDPOINT to a mirror of the hub")
    assert time.monotonic() - begin < 15  # the client's own five attempts take 23 s


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "xtuner-wulewule"


def test_tiny_model_is_made_once_and_is_always_the_same(cache, monkeypatch):
    from safetensors.torch import load_file

    first = tiny.tiny_model()
    assert first == str(tiny.tiny_model_dir()) and os.listdir(cache) == [os.path.basename(first)]
    monkeypatch.setattr(tiny, "build_tiny_model", None)  # would be called again
    assert tiny.tiny_model() == first
    monkeypatch.undo()
    again = cache / "again"
    again.mkdir()
    tiny.build_tiny_model(again)
    one, two = load_file(f"{first}/model.safetensors"), load_file(again / "model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    config = json.loads((again / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"]) == ("internlm2", tiny.VOCABULARY)


def test_tiny_tokenizer_keeps_every_text_and_the_markers(cache):
    tokenizer = tiny._tokenizer()
    text = "<|im_start|>user\n你是谁？ Who? \t🐒<|im_end|>\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids[1:]) == text and ids[0] == tokenizer.bos_token_id
    assert {tokenizer.convert_tokens_to_ids(marker) for marker in ("<|im_start|>", "<|im_end|>")} <= set(ids)
    assert len(tokenizer) == tiny.VOCABULARY


def test_failed_build_leaves_nothing(cache, monkeypatch):
    def fail(folder):
        (folder / "config.json").touch()
        raise OSError("disk full")

    monkeypatch.setattr(tiny, "build_tiny_model", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny.tiny_model()
    assert os.listdir(cache) == []


def test_setting_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("WULEWULE_MODEL", str(tmp_path))
    assert tiny.tiny_model_or_setting() == str(tmp_path) == paths.model_or("default")
    monkeypatch.setenv("WULEWULE_MODEL", "a/hub-id")
    assert paths.model_or("default") == "a/hub-id"
    monkeypatch.delenv("WULEWULE_MODEL")
    assert paths.model_or("default") == "default"

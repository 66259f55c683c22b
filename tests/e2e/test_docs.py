"""What the documentation says can be done: every command is run, or has a reason why not and at least exists."""

import argparse
import ast
import os
import re
import sys
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import run
from pages import LANGUAGES, PAGES, ROOT, blocks

from xtuner_wulewule import cli

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
TOOLS = {  # of XTuner: command line -> file below xtuner/tools
    ("train",): "train",
    ("chat",): "chat",
    ("list-cfg",): "list_cfg",
    ("copy-cfg",): "copy_cfg",
    ("convert", "pth_to_hf"): "model_converters/pth_to_hf",
    ("convert", "merge"): "model_converters/merge",
}
QUESTIONS = "你是谁？\n\nEXIT\n\n"


def by_place(block):
    return block.place


def pages_with(*kinds):
    """Return the pages (list[pathlib.Path]) on which a block of one of these kinds stands."""
    return [page for page in PAGES if any(block.page == page and block.kind in kinds for block in SHELL)]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def test_every_page_has_been_read():
    assert len(PAGES) >= 15 and len(SHELL) >= 30
    assert {block.language for block in BLOCKS} <= LANGUAGES, [block.place for block in BLOCKS if block.language not in LANGUAGES]


@pytest.mark.parametrize("block", SHELL, ids=by_place)
def test_block_is_run_or_says_why_not(block):
    assert block.kind, f"{block.place}: {block.marker} is neither <!-- test: slow --> nor <!-- test: skip: REASON -->"
    assert block.kind != "skip" or len(block.reason.split()) >= 2, f"{block.place}: why is it skipped?"


def run_page(page, kinds, folder, timeout):
    """Run the blocks of a page as one would who reads it: one shell, one folder, one after the other; the first that fails ends it."""
    chosen = [block for block in SHELL if block.page == page and block.kind in kinds]
    script = "set -eo pipefail\n" + "".join(f"echo ::{block.place} >&2\n{block.text}" for block in chosen)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = run(["bash", "-c", script], folder, timeout=timeout, stdin=QUESTIONS, PATH=path)
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result


@pytest.mark.parametrize("page", pages_with("run"), ids=name_of)
def test_commands_of_a_page(page, tmp_path):
    run_page(page, ["run"], tmp_path, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"), ids=name_of)
def test_commands_of_a_page_that_take_minutes(page, tmp_path):
    result = run_page(page, ["run", "slow"], tmp_path, timeout=3000)
    if "tutorial" in page.name:
        assert "小石头" in result.stdout.rpartition("double enter")[0].rpartition("double enter")[2]


@pytest.fixture
def parse(monkeypatch):
    """Return a function that parses the arguments of `wulewule`, runs nothing, and returns those that it does not know."""

    def parse_args(parser, arguments):
        _, unknown = parser.parse_known_args(arguments)
        return argparse.Namespace(run=lambda args: unknown)

    def error(parser, message):
        raise ValueError(message)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(argparse.ArgumentParser, "error", error)
    return cli.main


def options_of(tool):
    """Return the options (set[str]) that a tool of XTuner's defines, without importing it."""
    (folder,) = find_spec("xtuner").submodule_search_locations
    tree = ast.parse((Path(folder) / "tools" / f"{tool}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"]
    return {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}


def check_wulewule(arguments, parse):
    if {"-h", "--help", "--version"} & set(arguments):
        return
    assert not parse([word if word != "…" else "x" for word in arguments])


def check_xtuner(arguments):
    if arguments[:1] in (["list-dataset-format"], ["help"]):
        return
    (words,) = [words for words in TOOLS if tuple(arguments[: len(words)]) == words]
    given = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    assert given <= options_of(TOOLS[words]), f"{words}: {given - options_of(TOOLS[words])}"
    for name in re.findall(r"\bwulewule_(?:pretrain|sft)_\w+", " ".join(arguments)):
        assert (ROOT / "configs" / "wulewule" / f"{name}.py").is_file() or name.endswith("_copy"), name


def check_pip(arguments):
    asked = {extra for word in arguments for names in re.findall(r"\[(.+)\]", word) for extra in names.split(",")}
    assert asked <= set(metadata("xtuner-wulewule").get_all("Provides-Extra"))


def check_make(arguments):
    assert set(arguments) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("block", SHELL, ids=by_place)
def test_commands_exist_with_their_options(block, parse):
    checks = {"wulewule": lambda arguments: check_wulewule(arguments, parse), "xtuner": check_xtuner, "pip": check_pip, "make": check_make}
    for command in block.commands:
        programs = [number for number, word in enumerate(command) if word in checks]
        if programs:  # the first; what stands before it is settings, or srun with its own
            checks[command[programs[0]]](command[programs[0] + 1 :])


@pytest.mark.parametrize("wrong", ["wulewule evil", "wulewule data check x --modl y", "wulewule run --size 2b --out x"])
def test_a_command_that_does_not_exist_is_found(wrong, parse):
    with pytest.raises((ValueError, AssertionError)):
        check_wulewule(wrong.split()[1:], parse)


def test_an_option_of_xtuner_that_does_not_exist_is_found():
    with pytest.raises(AssertionError, match="--workdir"):
        check_xtuner("train wulewule_sft_1_8b --workdir x".split())


@pytest.mark.parametrize(("english", "chinese"), [("README.md", "README_zh-CN.md"), ("docs/tutorial.md", "docs/zh/tutorial.md")])
def test_both_languages_have_the_same_commands_sections_and_tables(english, chinese):
    def outline(name):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        shape = [re.match(r"#+|\||\*|$", line) for line in lines]
        marks = [match[0] for match in shape if match and match[0]]
        return marks, [(block.kind, block.commands) for block in SHELL if block.page == ROOT / name]

    assert outline(english) == outline(chinese)


def literals():
    """Return every text of the package (str), with … for what is filled in."""
    found = []
    for file in sorted((ROOT / "xtuner_wulewule").rglob("*.py")) + sorted((ROOT / "startup").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_of_troubleshooting_are_those_of_the_package():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## Defects of XTuner")[0]
    messages = re.findall(r"^\| `(.+?)`", text, re.MULTILINE)
    assert len(messages) >= 40
    found = literals()
    parts = [part.strip(" ;") for message in messages for part in message.split("…")]
    assert [part for part in parts if part not in found] == []

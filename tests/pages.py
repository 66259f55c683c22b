"""The pages of the documentation, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "README_zh-CN.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LANGUAGES = {"bash", "text", "json", "python", "bibtex"}  # commands stand in bash blocks and nowhere else
FENCE = re.compile(r"^```(.*)$")
MARKER = re.compile(r"<!-- test: (slow|skip): ?(.*?) ?-->|<!-- test: (slow) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page (pathlib.Path): its page.
        line (int): the line of its fence.
        language (str): what stands behind the fence.
        text (str): what is in it.
        marker (str): the comment on the line before, empty where there is none.
    """

    page: Path
    line: int
    language: str
    text: str
    marker: str

    @property
    def place(self):
        """Return page:line (str)."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def kind(self):
        """Return "run", "slow" or "skip" (str), or "" where the marker is not one."""
        if not self.marker:
            return "run"
        found = MARKER.fullmatch(self.marker)
        return (found[1] or found[3]) if found else ""

    @property
    def reason(self):
        """Return why it is not run (str)."""
        found = MARKER.fullmatch(self.marker)
        return (found[2] or "") if found else ""

    @cached_property
    def commands(self):
        """The commands in it (list[list[str]]), without what is redirected and without here-documents."""
        text = re.sub(r"<<'(\w+)'.*?^\1$", "", self.text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
        found = []
        for line in text.splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command = []
            for word in words:
                if word and set(word) <= set("();<>|&"):
                    found.append(command)
                    command = [">"] if set(word) <= set("<>") else []
                else:
                    command.append(word)
            found.append(command)
        return [command for command in found if command and command[0] != ">"]


def blocks(page):
    """Return the blocks (list[Block]) of a page (pathlib.Path)."""
    found, opened, before = [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened = number, fence[1].strip(), before if before.startswith("<!--") else "", []
        elif opened and line == "```":
            start, language, marker, lines = opened
            found.append(Block(page, start, language, "\n".join(lines) + "\n", marker))
            opened = None
        elif opened:
            opened[3].append(line)
        before = line.strip()
    assert opened is None, f"{page}: a block is not closed"
    return found

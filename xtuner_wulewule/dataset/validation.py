"""Checks of data files: every problem of every row, with its place and its fix, in constant memory."""

from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

from xtuner_wulewule.dataset import texts
from xtuner_wulewule.dataset.duplicates import Duplicates, letters
from xtuner_wulewule.dataset.map_fns import field_of, wulewule_pretrain_map_fn, wulewule_sft_map_fn
from xtuner_wulewule.dataset.progress import each_file
from xtuner_wulewule.dataset.reader import read_rows
from xtuner_wulewule.dataset.roles import OPENAI, SHAREGPT
from xtuner_wulewule.errors import DataError
from xtuner_wulewule.prompts import VARIABLES, current, same_prompt

ERROR, WARNING = "error", "warning"
PRETRAIN, SFT = "pretraining", "tuning"
MAP_FNS = {PRETRAIN: wulewule_pretrain_map_fn, SFT: wulewule_sft_map_fn}
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PLACES = 20  # of each kind of problem that are kept; the counts stay exact
LOOKED_AT = 8  # rows from which the kind of a file is told
FEW_ROWS = 50  # under so many the share of identity rows says nothing
IDENTITY_SHARE = (0.01, 0.75)  # 58 to 72 % keep the persona out of other answers, 93 % do not (docs/decisions.md)
SYSTEMS = 100  # different system prompts that are told apart
MESSAGES = {"sharegpt": SHAREGPT, "openai": OPENAI}
FIXES = {
    "duplicate": "remove one of them: a repeated row is learned by heart",
    "near_duplicate": "keep the better one, or make them differ more",
    "placeholder": "fill it in: the model learns to say it word for word",
    "other_name": "name your own assistant there, or give your own list with --other-names",
    "system_varies": "use one system prompt for all rows",
    "system_not_chat": 'say who the rows are about (--name, --author, --system, or WULEWULE_NAME, …), or leave "system" out',
    "longer": "make several conversations or texts of it, or raise --max-length (max_length of the config)",
    "nothing_trained": "shorten system and question, or raise --max-length (max_length of the config)",
    "languages": "answer in the language of the question",
    "template": "remove it: it is an instruction or a marker, not part of what was said",
    "personal": "remove or replace it: the model can say it to anyone",
    "identity_share": "aim for 5 to 75 % of rows about who the assistant is; wulewule data identity --general N makes others",
}


@dataclass(frozen=True)
class Problem:
    """One problem of a data file.

    Args:
        file (str): the file, empty where it is one of the whole set.
        line (int): its line, 0 where it is one of the whole file.
        field (str): where in the row, empty where it is one of the whole row.
        severity (str): "error" or "warning".
        code (str): the kind of problem.
        message (str): what is wrong; nothing personal is quoted whole.
        fix (str): what to do.
        order (int): how many were found up to this one.
    """

    file: str
    line: int
    field: str
    severity: str
    code: str
    message: str
    fix: str
    order: int

    def place(self, field=True):
        """Return file:line:field (str), as far as they are known."""
        return ":".join(str(part) for part in (self.file, self.line, field and self.field) if part)


class Report:
    """What was found: `counts` {(severity, code): int} is exact, `problems` holds the first `PLACES` of each kind."""

    def __init__(self):
        self.counts = Counter()
        self.rows = Counter()  # of each kind
        self.files = 0
        self.identity = 0
        self.notes = []
        self._kept = {}

    def add(self, file, line, field, severity, code, message, fix):
        """Count a problem, and keep it if it is one of the first of its kind."""
        self.counts[severity, code] += 1
        kept = self._kept.setdefault((severity, code), [])
        if len(kept) < PLACES:
            kept.append(Problem(file, line, field, severity, code, texts.mask(" ".join(message.split())), fix, self.counts.total()))

    @property
    def problems(self):
        """The problems that were kept (list[Problem]): errors first, each kind in the order of the files."""
        return [problem for severity in (ERROR, WARNING) for kind, kept in self._kept.items() if kind[0] == severity for problem in kept]

    def errors(self, count):
        """Return the first errors (list[Problem], at most `count`) in the order of files and lines."""
        return sorted((problem for problem in self.problems if problem.severity == ERROR), key=lambda problem: problem.order)[:count]

    def count(self, severity):
        """Return how many problems there are of a severity (int)."""
        return sum(count for (found, _), count in self.counts.items() if found == severity)

    def as_dict(self):
        """Return all of it as plain objects, for JSON."""
        return {
            "files": self.files,
            "rows": dict(self.rows),
            "identity_rows": self.identity,
            "errors": self.count(ERROR),
            "warnings": self.count(WARNING),
            "counts": [{"severity": severity, "code": code, "count": count} for (severity, code), count in self.counts.items()],
            "places_kept": PLACES,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }


class Checker:
    """Checks files one after the other.

    Args:
        map_fn (callable, optional): the map function of all rows; without it the shape of a file's first rows tells whether they are
            pretraining texts or conversations.
        other_names (tuple[str]): names of other assistants, which no answer should hold.
        warnings (bool): whether to look for warnings too.
        warned_rows (int, optional): look for them in so many rows only.
        lengths (callable, optional): called with a list of `(kind, mapped row)`, returns for each a `dataset.tokens.Length`:
            `dataset.tokens.Lengths`.
        persona (Persona, optional): who the assistant is said to be; rows without a system prompt have its own. Defaults to
            `prompts.current()`.
        whole (bool): whether the files are all that a training reads; of a part of them no share is judged.
    """

    def __init__(self, map_fn=None, other_names=texts.OTHER_NAMES, warnings=True, warned_rows=None, lengths=None, persona=None, whole=True):
        self.report = Report()
        self.map_fn = map_fn
        self.warnings, self.warned_rows, self.whole = warnings, warned_rows, whole
        self.line = 0  # of the row that was yielded last
        self.failed = False  # whether there was an error
        self.persona = persona or current()
        own = {name.lower() for name in (*self.persona.names, self.persona.author)}
        self.names = texts.Names([name for name in other_names if name.lower() not in own])
        self.own = (*self.persona.names, self.persona.author)
        self.lengths, self.waiting = lengths, []
        self.duplicates = Duplicates()
        self.lines = array("I")  # of the rows that `duplicates` knows
        self.files, self.starts = [], []
        self.systems = set()

    def rows(self, file, progress=None):
        """Check a file.

        Args:
            file (str): its path.
            progress (callable, optional): called now and then with the bytes that were read.

        Yields:
            dict: what the map function makes of each row that is right.
        """
        self.report.files += 1
        self.files.append(str(file))
        self.starts.append(len(self.lines))
        kind, rows = rows_of(file, progress)
        empty = True
        for where, row, problem in rows:
            empty = False
            line = int(where[len(str(file)) + 1 :] or 0)
            if problem is not None:
                self._error(line, "", problem.code, problem)
            elif (mapped := self._row(line, row, kind)) is not None:
                self.line = line
                yield mapped
        if empty:
            self._error(0, "", "empty", "there are no rows in it; fill it or leave it out")

    def _row(self, line, row, kind):
        """Check a row of the right shape; return what its map function makes of it, None where it is wrong."""
        map_fn = self.map_fn or MAP_FNS[kind]
        kind = next((name for name, function in MAP_FNS.items() if function is map_fn), None)
        if kind and self._roles(line, row):
            return None
        try:
            mapped = map_fn(row)
        except DataError as error:
            self._error(line, error.field, error.code, error.problem)
            return None
        self.report.rows[kind or "other"] += 1
        if kind and self.warnings and not self._warned_enough():
            self._warn(line, row, mapped["conversation"], kind)
            if self.lengths is not None:
                self.waiting.append((self.files[-1], line, kind, mapped))
                if len(self.waiting) == self.lengths.batch:
                    self._longer()
        return mapped

    def _warned_enough(self):
        return self.warned_rows is not None and self.report.rows.total() > self.warned_rows

    def finish(self):
        """Check what only all rows together show; return the `Report`."""
        if self.waiting:
            self._longer()
        for row, other, code in self.duplicates.find() if self.warnings else ():
            (file, line), (other_file, other_line) = self._place(row), self._place(other)
            same = "the same text as" if code == "duplicate" else "nearly the same text as"
            where = f"{other_file}:{other_line}" if other_file != file else f"line {other_line}"
            self.report.add(file, line, "", WARNING, code, f"{same} {where}", FIXES[code])
        self.report.notes += self.duplicates.notes()
        if self.warnings and self._warned_enough():
            self.report.notes.append(f"warnings were looked for in the first {self.warned_rows} rows")
        else:
            self._identity_share()
        return self.report

    def _place(self, row):
        return self.files[bisect_right(self.starts, row) - 1], self.lines[row]

    def _error(self, line, field, code, problem):
        self.failed = True
        message, _, fix = str(problem).partition("; ")
        self.report.add(self.files[-1], line, field, ERROR, code, message, fix or "correct the row or remove it")

    def _warning(self, line, field, code, message):
        self.report.add(self.files[-1], line, field, WARNING, code, message, FIXES[code])

    def _roles(self, line, row):
        """Report a row of another format; return whether it is one."""
        found = format_of(row)
        if found is None:
            return False
        fix = f"wulewule data convert {self.files[-1]} --from {found} --to wulewule --out FILE.jsonl"
        self._error(line, "", "other_format", f"looks like a row of the {found} format, which training does not read; {fix}")
        if found in MESSAGES:
            key, role, _, meaning = MESSAGES[found]
            names = [str(turn.get(role))[:40] for turn in row[key] if isinstance(turn, dict)]
            for number, name in enumerate(names):
                if name not in meaning:
                    message = f"unknown role {name!r}; use one of {', '.join(sorted(meaning))}"
                    self._error(line, f"{key}[{number}].{role}", "unknown_role", message)
            speakers = [meaning.get(name) for name in names]
            if speakers.count("system") > 1:
                self._error(line, key, "second_system", "two system prompts in one conversation; keep the first")
            if "assistant" not in speakers:
                self._error(line, key, "no_answer", "nobody answers in this conversation; add the answer or remove the row")
        return True

    def _warn(self, line, row, turns, kind):
        fields = _fields(row, turns, kind)
        self._texts(line, fields)
        spoken = "\n".join(text for field, text in fields if not field.endswith(".system"))
        about = kind == SFT and texts.about_identity(turns, self.persona.names)
        # many questions have one answer there on purpose, and a long name makes short answers alike
        compared = (texts.without_names(spoken, self.own), letters("".join(turn["input"] for turn in turns))) if about else ()
        if self.duplicates.add(spoken, *compared):
            self.lines.append(line)
        if kind == SFT:
            self._system(line, (row["conversation"][0].get("system") or "").strip() or self.persona.system)
            self._languages(line, turns)
            self.report.identity += about

    def _texts(self, line, fields):
        if not texts.suspicious("\n".join(text for _, text in fields), self.names):
            return
        for field, text in fields:
            for code, found in texts.findings(text):
                self._warning(line, field, code, found)
            if field.endswith(".output") and (name := self.names.find(text)):
                self._warning(line, field, "other_name", f"the answer names another assistant: {name}")

    def _system(self, line, system):
        field = field_of(1, "system")
        if system not in self.systems and len(self.systems) < SYSTEMS:
            self.systems.add(system)
            if len(self.systems) > 1:
                message = f"system prompt number {len(self.systems)} of these rows begins here: {system[:30]}…"
                self._warning(line, field, "system_varies", message)
        if not same_prompt(system, self.persona.system):
            message = (
                f"not the system prompt of {self.persona.names[0]} ({', '.join(VARIABLES.values())} set another persona): {system[:30]}…"
            )
            self._warning(line, field, "system_not_chat", message)

    def _languages(self, line, turns):
        for number, turn in enumerate(turns, 1):
            if pair := texts.languages_differ(turn["input"], turn["output"]):
                message = f"the question is {pair[0]} and the answer {pair[1]}"
                self._warning(line, field_of(number, "output"), "languages", message)

    def _longer(self):
        found = self.lengths([(kind, mapped) for _, _, kind, mapped in self.waiting])
        for (file, line, _, _), length in zip(self.waiting, found, strict=True):
            if length.lost:
                message = (
                    f"its {length.tokens} tokens become {length.pieces} rows that do not see each other, nothing is lost (a data set of "
                    f"XTuner's own would cut {length.lost} off, {length.lost_trained} of them to be trained)"
                )
                self.report.add(file, line, "", WARNING, "longer", message, FIXES["longer"])
            if length.trained and length.lost_trained == length.trained:
                message = (
                    "the answer is trained in another row than the question, since it begins after --max-length (a data set of XTuner's "
                    "own would train nothing of it)"
                )
                self.report.add(file, line, "", WARNING, "nothing_trained", message, FIXES["nothing_trained"])
        self.waiting = []

    def _identity_share(self):
        rows = self.report.rows[SFT]
        low, high = IDENTITY_SHARE
        if self.warnings and self.whole and rows >= FEW_ROWS and not low <= self.report.identity / rows <= high:
            message = f"{self.report.identity} of {rows} conversations are about who the assistant is ({self.report.identity / rows:.0%})"
            self.report.add("", 0, "", WARNING, "identity_share", message, FIXES["identity_share"])


def _fields(row, turns, kind):
    """Return [(field, text)] of what a row trains on, as the file names it."""
    if kind == PRETRAIN and row.get("text") is not None:
        return [("text", row["text"])]
    if kind == PRETRAIN:
        return [(field_of(number, "output"), turn["output"]) for number, turn in enumerate(row["conversation"], 1)]
    return [(field_of(number, key), text) for number, turn in enumerate(turns, 1) for key, text in turn.items()]


def format_of(row):
    """Return the other format that a row looks like ("sharegpt", "openai" or "alpaca"), None where it looks like none."""
    if "conversation" in row or row.get("text") is not None:
        return None
    for name, form in MESSAGES.items():
        if isinstance(row.get(form.messages), list):
            return name
    return "alpaca" if "instruction" in row and "output" in row else None


def kind_of(rows):
    """Return the kind ("pretraining" or "tuning") that most of the rows (list) have by their shape."""
    votes = Counter()
    for row in rows:
        turns = row.get("conversation")
        if isinstance(turns, list) and (turns := [turn for turn in turns if isinstance(turn, dict)]):
            votes[SFT if any(turn.get("input") or turn.get("system") for turn in turns) else PRETRAIN] += 1
        elif row.get("text") is not None:
            votes[PRETRAIN] += 1
    return PRETRAIN if votes[PRETRAIN] > votes[SFT] else SFT


def rows_of(file, progress=None):
    """Return the kind of a file (str), and an iterator over its rows as `read_rows` yields them."""
    rows = read_rows(file, progress)
    head = list(islice(rows, LOOKED_AT))
    return kind_of([row for _, row, problem in head if problem is None]), chain(head, rows)


def mapped_rows(file, progress=None):
    """Yield (where, mapped row, kind, problem) of each row of a file; without a problem it is None, with one the mapped row is."""
    kind, rows = rows_of(file, progress)
    for where, row, problem in rows:
        if problem is None:
            try:
                row = MAP_FNS[kind](row)
            except DataError as error:
                row, problem = None, error.problem
        yield where, row, kind, problem


def data_files(names):
    """Return the data files (list[str]) of files and folders; a folder's are searched below it, too.

    Raises:
        DataError: one is missing, or a folder holds no data file.
    """
    files = []
    for name in map(Path, names):
        if name.is_dir():
            found = sorted(str(path) for path in name.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES))
            if not found:
                raise DataError(f"there is no data file in {name}; their names end in {', '.join(SUFFIXES)}")
            files += found
        elif name.is_file():
            files.append(str(name))
        else:
            raise DataError(f"data file not found: {name}; give files or folders that exist")
    return list(dict.fromkeys(files))


def check_files(files, other_names=texts.OTHER_NAMES, lengths=None, advance=None, persona=None, whole=True):
    """Check data files.

    Args:
        files (list[str]): their paths.
        other_names (tuple[str]): see `Checker`.
        lengths (callable, optional): see `Checker`; without it lengths are not checked.
        advance (callable, optional): of `dataset.progress.progress`.
        persona (Persona, optional): see `Checker`.
        whole (bool): see `Checker`.

    Returns:
        Report: what was found.
    """
    checker = Checker(other_names=other_names, lengths=lengths, persona=persona, whole=whole)
    for file, tell in each_file(files, advance):
        for _ in checker.rows(file, tell):
            pass
    return checker.finish()

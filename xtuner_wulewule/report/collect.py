"""What a work folder holds: the log of each training, its curves and settings, the state of a run, scorecards."""

import ast
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import persona_of_config
from xtuner_wulewule.recipe.ask import questions_of
from xtuner_wulewule.recipe.plan import STAGES
from xtuner_wulewule.recipe.results import read_rows
from xtuner_wulewule.recipe.state import kept_persona
from xtuner_wulewule.settings import READ_ONCE

SCORES = "eval/name", "eval/name_without_system"  # of ScoreHook; the first where there is a system prompt

# where a training has the values of the names of a config: options change them there, and DeepSpeed moves some
PLACES = {name: [place] for name, place in READ_ONCE.items() if place}
PLACES["pretrained_model_name_or_path"] = ["model.llm.pretrained_model_name_or_path"]
PLACES["data_files"].append("train_dataloader.dataset.dataset.data_files")  # of XTuner's own configs
PLACES["max_iters"] = ["train_cfg.max_iters"]
PLACES["accumulative_counts"].append("strategy.gradient_accumulation_steps")
PLACES["max_norm"].append("strategy.gradient_clipping")

# a record of mmengine's log; what follows without a time belongs to it
_RECORD = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - mmengine - ([A-Z]+) - (.*)")
_BUDGET = re.compile(r"Update budget: .*?(\d+) iterations, (\d+) optimizer updates, highest learning rate (\S+) \(asked (\S+)\)")
_DATA = re.compile(
    r"Data: (?P<rows>\d+) rows, (?P<tokens>\d+) tokens, (?P<kept>\d+) of them in (?P<packed>\d+) packed rows of (?P<length>\d+) "
    r"\((?P<packing>.+?), (?P<full>[\d.]+)% full\), (?P<left_out>\d+) left out(?P<more>.*)"
)
_TOTAL = re.compile(r"Iter\(train\) \[\s*\d+/(\d+)\]")
_ENVIRONMENT = re.compile(
    r"^ {4}(Python|PyTorch|TorchVision|MMEngine|CUDA available|GPU [\d,]+|NVCC|CUDA_HOME|GPU number|seed): (.*)$", re.M
)
_SAMPLE = "Sample output:"
# what stands between a question and its answer in XTuner's prompt templates
_MARKERS = re.compile(r"(?:\s*(?:<[^<>\n]{1,40}>|\[/INST\]|### Response:|ASSISTANT:|Assistant:|assistant\n|model\n|答：|:))*\s*")
_ENDS = re.compile(r"(?:<\|im_end\|>|</s>|<eoa>|<\|endoftext\|>).*", re.S)
# warnings that mmengine and XTuner give in every training, whatever it is like
_USUAL = ("Failed to search registry", '"FileClient"', '"HardDiskBackend"', "Reach the end of the dataloader", "Dataset ")


@dataclass
class Log:
    """What mmengine's log of a training says.

    Args:
        begin (datetime | None): its first time.
        seconds (float): how long it was written.
        budget (dict | None): `iterations`, `updates`, `highest` and `asked` learning rate, as UpdateBudgetHook says them.
        data (dict | None): the ledger and the packing, as build_wulewule_dataset says them; `entries` are rows left out.
        iterations (int | None): length of the training.
        environment (dict[str, str]): versions and device.
        warnings (dict[str, int]): warnings and errors, and how often.
        usual (dict[str, int]): those that every training gives.
        samples (list[list[str]]): for each evaluation its texts.
    """

    begin: datetime | None = None
    seconds: float = 0.0
    budget: dict | None = None
    data: dict | None = None
    iterations: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    usual: dict[str, int] = field(default_factory=dict)
    samples: list[list[str]] = field(default_factory=list)


@dataclass
class Training:
    """One training.

    Args:
        stage (str): "pretrain" or "sft", "" where it is not one of a run.
        folder (pathlib.Path): XTuner's work folder.
        rows (list[dict]): logged iterations.
        scores (list[dict]): what ScoreHook logged.
        log (Log): what the log says.
        config_file (pathlib.Path | None): the dumped config.
        config (dict): its values.
        ended (bool): whether it saved a checkpoint of its last iteration.
    """

    stage: str
    folder: Path
    rows: list[dict]
    scores: list[dict]
    log: Log
    config_file: Path | None
    config: dict
    ended: bool = False

    def series(self, key):
        """Return the updates and the values (two lists of float) of one logged figure, those that are numbers."""
        points = [(row["iter"] / self.accumulation, row[key]) for row in self.rows if isinstance(row.get(key), (int, float))]
        points = [(update, value) for update, value in points if math.isfinite(value)]
        return [update for update, _ in points], [value for _, value in points]

    def setting(self, name):
        """Return what a setting of the config, by its name there (str), was in the training, None where it had none."""
        places = [place.split(".") for place in PLACES.get(name, ())]
        places = [place for place in places if place[0] in self.config] or [[name]]
        return next((value for place in places if (value := _inside(self.config, *place)) is not None), None)

    @property
    def accumulation(self):
        """Iterations of an update (int)."""
        given = self.setting("accumulative_counts")
        return given if isinstance(given, int) and given > 0 else 1

    @property
    def asked_rate(self):
        """The learning rate that was asked for (float), None where it isn't known."""
        asked = self.log.budget["asked"] if self.log.budget else self.setting("lr")
        return asked if isinstance(asked, (int, float)) and asked > 0 else None

    @property
    def highest_rate(self):
        """The highest learning rate (float), None where none was logged."""
        if self.log.budget:
            return self.log.budget["highest"]
        return max(self.series("lr")[1], default=None)

    def examples(self):
        """Return what was answered before and after (list[dict] with `question`, `before`, `after`; None where it was not asked)."""
        first, last = (self.log.samples[0], self.log.samples[-1]) if len(self.log.samples) > 1 else ([], (self.log.samples or [[]])[0])
        found = []
        for question in questions_of(self.config):
            before, after = (_answer(question, texts) for texts in (first, last))
            if before is not None or after is not None:
                found.append(dict(question=question, before=before, after=after))
        return found


@dataclass
class Work:
    """A work folder.

    Args:
        folder (pathlib.Path): the folder.
        trainings (list[Training]): in their order.
        steps (list[dict]): of a run, in their order, as `state.json` has them, with `name`.
        report (dict): `report.json` of a finished run, else empty.
        answers (list[dict]): what the tuned model answered.
        scorecard (dict | None): of the tuned model.
        before (dict | None): scorecard of the model before.
        problems (list[str]): last lines of steps that did not end.
        assistant (str): its first name.
    """

    folder: Path
    trainings: list[Training]
    steps: list[dict]
    report: dict
    answers: list[dict]
    scorecard: dict | None
    before: dict | None
    problems: list[str]
    assistant: str


def collect(folder, scorecard=None, before=None):
    """Read a work folder.

    Args:
        folder (pathlib.Path): of `wulewule run`, or XTuner's own.
        scorecard (pathlib.Path, optional): scorecard of the tuned model, or its folder; defaults to that of the run.
        before (pathlib.Path, optional): scorecard of the model before the training, or its folder.

    Returns:
        Work: what was found.

    Raises:
        SettingsError: there is no training in it, or a file of it is broken.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is not a folder; give that of wulewule run --out, or the --work-dir of xtuner train")
    trainings = [read_training(place, stage) for stage, place in _places(folder)]
    trainings = [training for training in trainings if training.rows]
    if not trainings:
        raise SettingsError(
            f"{folder} holds no logged training (*/vis_data/scalars.json); give the folder of wulewule run --out, or the --work-dir of "
            "xtuner train, after its first logged iteration"
        )
    state = _read_json(folder / "state.json", dict).get("steps", {})
    steps = [dict(entry, name=name) for name, entry in state.items() if isinstance(entry, dict)] if isinstance(state, dict) else []
    report = _read_json(folder / "report.json", dict)
    steps, report = _of_last_run(steps, report)
    return Work(
        folder,
        trainings,
        steps,
        report,
        [item for item in _read_json(folder / "answers.json", list) if isinstance(item, dict) and {"question", "answer"} <= set(item)],
        read_scorecard(scorecard) if scorecard else _own_scorecard(folder),
        read_scorecard(before) if before else None,
        [problem for step in steps if step.get("status") != "done" for problem in _last_words(folder / "logs" / f"{step['name']}.log")],
        (kept_persona(folder)[0] or persona_of_config(trainings[-1].config)).names[0],
    )


def _of_last_run(steps, report):
    """Return the steps (list[dict]) of the last run in a folder, and its report (dict): none where it is that of an earlier run."""
    ended = {step["name"]: step.get("seconds") for step in steps if step.get("status") == "done"}
    reported = {step.get("name"): step.get("seconds") for step in report.get("steps", []) if isinstance(step, dict)}
    if not reported or any(ended.get(name) != seconds for name, seconds in reported.items()):
        return steps, {}
    return [step for step in steps if step["name"] in reported], report


def _places(folder):
    """Return the work folders of XTuner (list of stage and pathlib.Path): those of the stages, else the folder itself."""
    found = []
    for stage in STAGES:
        places = [place for place in (folder / stage / "train", folder / stage) if _sessions(place)]
        found += [(stage, places[0])] if places else []
    return found or [("", folder)]


def _sessions(folder):
    return sorted(path.parent.parent for path in folder.glob("*/vis_data/scalars.json"))


def read_training(folder, stage=""):
    """Read one of XTuner's work folders; return the `Training`, without rows where nothing was logged.

    Args:
        folder (pathlib.Path): the folder.
        stage (str): which stage it is. Defaults to none.
    """
    logged = {session: read_rows(session / "vis_data" / "scalars.json") for session in _sessions(folder)}
    sessions = [session for session, found in logged.items() if found]
    logs = [sorted(session.glob("*.log")) for session in sessions]
    for number in range(len(sessions) - 1, 0, -1):  # what was trained before anew in the same folder is another training
        if logs[number] and not any("resumed epoch: " in file.read_text(encoding="utf-8", errors="replace") for file in logs[number]):
            sessions, logs = sessions[number:], logs[number:]
            break
    rows, scores = {}, {}
    for session in sessions:
        for row in logged[session]:
            if isinstance(row.get("iter"), int) and "loss" in row:
                rows[row["iter"]] = row
            elif any(key in row for key in SCORES) and isinstance(row.get("step"), int):
                scores[row["step"]] = row
    log = read_log([file for files in logs for file in files])
    config_file = next((file for session in sessions[::-1] if (file := session / "vis_data" / "config.py").is_file()), None)
    config = read_config(config_file) if config_file else {}
    ended = _ended(folder / "last_checkpoint", max(rows, default=0), log.iterations, _inside(config, "train_cfg", "max_epochs"))
    return Training(
        stage, folder, [rows[key] for key in sorted(rows)], [scores[key] for key in sorted(scores)], log, config_file, config, ended
    )


def _ended(record, logged, iterations, epochs):
    """Return whether a training came to its end (bool).

    Args:
        record (pathlib.Path): where mmengine notes the newest checkpoint.
        logged (int): the last logged iteration.
        iterations (int | None): its length.
        epochs (int | None): the same in epochs.
    """
    if not record.is_file():
        return False
    saved = re.search(r"(iter|epoch)_(\d+)(?:\.pth)?$", record.read_text(encoding="utf-8", errors="replace").strip())
    if saved and saved[1] == "epoch" and isinstance(epochs, int):
        return int(saved[2]) >= epochs
    return iterations is None or max(logged, int(saved[2]) if saved and saved[1] == "iter" else 0) >= iterations


def read_log(files):
    """Read the logs of a training.

    Args:
        files (list[pathlib.Path]): the log of each session, in their order.

    Returns:
        Log: what they say.
    """
    log, in_samples = Log(), False
    for file in files:
        times = []
        for time, level, text in _records(file):
            times.append(datetime.strptime(time, "%Y/%m/%d %H:%M:%S"))
            message = " ".join(text.split())
            if text.startswith(_SAMPLE):
                if not in_samples:
                    log.samples.append([])
                log.samples[-1].append(text.removeprefix(_SAMPLE).strip("\n"))
            elif level in ("WARNING", "ERROR", "CRITICAL"):
                place = log.usual if message.startswith(_USUAL) else log.warnings
                place[message] = place.get(message, 0) + 1
            elif match := _BUDGET.search(message):
                log.budget = dict(iterations=int(match[1]), updates=int(match[2]), highest=_number(match[3]), asked=_number(match[4]))
            elif match := _DATA.match(message):
                log.data = _ledger(match)
            elif match := _TOTAL.match(message):
                log.iterations = int(match[1])
            elif "System environment:" in text:
                log.environment = {key: value.strip() for key, value in _ENVIRONMENT.findall(text)}
            in_samples = text.startswith(_SAMPLE)
        if times:
            log.begin = log.begin or times[0]
            log.seconds += (times[-1] - times[0]).total_seconds()
    return log


def _records(file):
    """Yield time, level and text of each record of a log."""
    head, lines = None, []
    with open(file, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            match = _RECORD.match(line)
            if match is None:
                lines.append(line.rstrip("\n"))
                continue
            if head is not None:
                yield *head, "\n".join(lines)
            head, lines = (match[1], match[2]), [match[3]]
    if head is not None:
        yield *head, "\n".join(lines)


def _ledger(match):
    found = {key: int(match[key]) for key in ("rows", "tokens", "kept", "packed", "length", "left_out")}
    found.update(packing=match["packing"], full=float(match["full"]), entries=[])
    for key, words in (("held_out", "held out for evaluation"), ("without_system", "trained without the system prompt")):
        more = re.search(rf"(\d+) rows {words}", match["more"])
        found[key] = int(more[1]) if more else 0
    place = re.search(r"all: (.+?/ledger\.json)", match["more"])
    found["entries"] = _left_out(Path(place[1])) if place else []
    return found


def _left_out(file):
    """Return the rows that were left out (list[dict]) of a ledger; empty where it has gone since, or can't be read."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["left_out"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and {"row", "reason"} <= set(entry)]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def _inside(config, *keys):
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def read_config(file):
    """Return the values of a dumped config (dict) without running it; what is no plain value is its text, and of broken Python nothing."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    return {
        target.id: _value(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _value(node):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _answer(question, texts):
    """Return what the model answered to a question (str), None where it was not asked: the text begins with the prompt."""
    for text in texts:
        _, asked, rest = text.partition(str(question))
        if asked:
            return _ENDS.sub("", rest[_MARKERS.match(rest).end() :]).strip()
    return None


def read_scorecard(file):
    """Return a scorecard (dict).

    Args:
        file (pathlib.Path): of `wulewule eval`, or the folder that it lies in.

    Raises:
        SettingsError: it isn't one.
    """
    file = file / "scorecard.json" if file.is_dir() else file
    if not file.is_file():
        raise SettingsError(f"{file} is not a file; give the scorecard.json of wulewule eval, or its folder")
    found = _read_json(file, dict)
    metrics, answers = found.get("metrics"), found.get("answers")
    whole = isinstance(metrics, dict) and isinstance(answers, list) and all(_is_metric(one) for one in metrics.values())
    if not whole or not all(isinstance(one, dict) and {"id", "question", "answer"} <= set(one) for one in answers):
        raise SettingsError(f"{file} is not a scorecard of wulewule eval; make it again, or move it away")
    return found


def _is_metric(one):
    """Return whether a value of `metrics` is one figure with its interval (bool)."""
    if not isinstance(one, dict) or not isinstance(one.get("interval"), list) or len(one["interval"]) != 2:
        return False
    return all(isinstance(number, (int, float)) for number in (one.get("value"), one.get("count"), *one["interval"]))


def _own_scorecard(folder):
    file = folder / "eval" / "scorecard.json"
    return read_scorecard(file) if file.is_file() else None


def _read_json(file, kind):
    """Return what a JSON file holds, an empty one of its kind (type) where it isn't there; raise SettingsError where it is another."""
    if not file.is_file():
        return kind()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{file} cannot be read ({error}); make it again, or move it away") from None
    if not isinstance(found, kind):
        raise SettingsError(f"{file} is not what wulewule writes there; move it away")
    return found


def _last_words(file):
    """Return the last error of a step's log (list[str], of one or none)."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    ours = [line for line in lines if re.search(r"\bxtuner(-wulewule)?: error: ", line)]
    return [ours[-1].partition("error: ")[2]] if ours else []

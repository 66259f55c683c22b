"""Answers side by side. Each text that the page adds is a pair, English and Chinese."""

from dataclasses import dataclass

from xtuner_wulewule.report.verdict import STAGE_NAMES

BEFORE, AFTER, REFERENCE = ("Before", "训练前"), ("After", "训练后"), ("Reference", "参考答案")
WITHOUT = (", without the system prompt", "，无系统提示词")
PARTS = {
    "identity": ("who it is", "身份"),
    "knowledge": ("held-out knowledge", "留出的知识题"),
    "neutral": ("neutral", "无关问题"),
    "check": ("simple task", "简单任务"),
}
SHOWN = {"identity": 4, "knowledge": 3, "neutral": 2, "check": 2}  # questions of a scorecard


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        label (tuple[str, str]): whose it is.
        text (str): what it says.
        after (bool): whether it is the tuned model's. Defaults to False.
        chip (tuple | None): how it was judged, as `_chip` says. Defaults to not at all.
    """

    label: tuple[str, str]
    text: str
    after: bool = False
    chip: tuple[bool, tuple[str, str]] | None = None


def examples(work):
    """Return questions and their answers.

    Args:
        work (Work): the work folder.

    Returns:
        list[dict]: groups with `name` and `rows`, each row with `question`, `note` and `answers` (list[Answer]).
    """
    groups = []
    final = {str(item["question"]): str(item["answer"]) for item in work.answers}
    for training in work.trainings[::-1]:
        rows = training.examples()
        if training is work.trainings[-1]:
            rows = [dict(row, after=final.get(row["question"], row["after"])) for row in rows]
            asked = {row["question"] for row in rows}
            rows += [dict(question=question, before=None, after=answer) for question, answer in final.items() if question not in asked]
        if rows:
            groups.append(dict(name=STAGE_NAMES[training.stage], rows=[_row(row) for row in rows]))
    if work.scorecard:
        groups.insert(1, dict(name=("From the scorecard", "来自评分卡"), rows=_judged(work)))
    return [group for group in groups if group["rows"]]


def _row(row):
    texts = ((BEFORE, row["before"]), (AFTER, row["after"]))
    return dict(
        question=row["question"], note=None, answers=[Answer(label, text, label is AFTER) for label, text in texts if text is not None]
    )


def _judged(work):
    """Return the first questions of each part of the scorecard; an identity question with and without the system prompt is one row."""
    before = {one["id"]: one["answer"] for one in (work.before or {}).get("answers", [])}
    rows: dict[str, dict] = {}
    counts = dict.fromkeys(SHOWN, 0)
    for one in work.scorecard["answers"]:
        name = str(one["id"]).removesuffix("+system")
        part = name.partition("-")[0]
        if name not in rows:
            if counts.get(part, 0) >= SHOWN.get(part, 0):
                continue
            counts[part] += 1
            rows[name] = dict(question=one["question"], note=PARTS[part], answers=[])
        answers = rows[name]["answers"]
        suffix = WITHOUT if part in ("identity", "neutral") and not one.get("system") else ("", "")
        was = one.get("base", before.get(one["id"]))
        if was is not None:
            answers.append(Answer(_label(BEFORE, suffix), was))
        answers.append(Answer(_label(AFTER, suffix), one["answer"], True, _chip(one)))
        if one.get("reference"):
            answers.append(Answer(REFERENCE, one["reference"]))
    return list(rows.values())


def _label(words, suffix):
    return words[0] + suffix[0], words[1] + suffix[1]


def _chip(one):
    """Return how an answer was judged: whether it is good (bool), and the words (tuple[str, str])."""
    if one.get("leak"):
        return False, ("claims to be another", "自称其他模型")
    if "hit" in one:
        return (True, ("hit", "命中")) if one["hit"] else (False, ("miss", "未命中"))
    if "right" in one:
        return (True, ("right", "正确")) if one["right"] else (False, ("wrong", "错误"))
    if "bleed" in one:
        return (False, ("talks of itself", "提到身份")) if one["bleed"] else (True, ("stays neutral", "保持中立"))
    return None

"""Whether a training did what it should: the first thing that a report says."""

import math
from dataclasses import dataclass

# Each text is a pair, English and Chinese.
STAGE_NAMES = {"pretrain": ("Pretraining", "增量预训练"), "sft": ("Instruction tuning", "指令微调"), "": ("Training", "训练")}
LEAST_RATE = 0.9  # of the asked learning rate, as UpdateBudgetHook warns
LEAST_NAME = 0.5  # of the questions for the name; a gate asks for more


@dataclass(frozen=True)
class Verdict:
    """What is said of a training.

    Args:
        state (str): "good", "unfinished" (also where thresholds are missed, or the name is not said) or "bad".
        title (tuple[str, str]): in a word.
        reasons (list[tuple[str, str]]): what speaks against it.
    """

    state: str
    title: tuple[str, str]
    reasons: list[tuple[str, str]]


def judge(work, thresholds=(), name=None):
    """Return the `Verdict` of a `Work`.

    Args:
        work (Work): what was found.
        thresholds (list[tuple[tuple[str, str], bool]]): of each threshold of its scorecard what it is, with what was measured, and
            whether it was passed.
        name (float, optional): share of the questions for the name that were answered with it.
    """
    bad = [reason for training in work.trainings for reason in _failures(training)]
    missed = [text for text, passed in thresholds if not passed]
    # a gate that refuses the model has ended, too
    open_steps = [step["name"] for step in work.steps if step.get("status") != "done" and not (missed and step["name"] == "gate")]
    if work.steps:
        unfinished = [(f"step {name} did not end", f"步骤 {name} 没有完成") for name in open_steps]
        if not open_steps and not work.report and not missed:
            unfinished.append(("the run stopped between two steps", "运行在两个步骤之间停止"))
    else:
        unfinished = [
            (f"{_name(training, 0)} stopped before its last iteration", f"{_name(training, 1)}在最后一次迭代之前停止")
            for training in work.trainings
            if not training.ended
        ]
    if bad:
        return Verdict("bad", ("It did not learn as it should", "没有按预期学到东西"), bad + unfinished)
    if unfinished:
        return Verdict("unfinished", ("Not finished", "尚未完成"), unfinished)
    if missed:
        some, count = len(missed), len(thresholds)
        title = (f"Trained, but {some} of {count} thresholds missed", f"训练有效，但 {count} 项门槛中有 {some} 项未达到")
        return Verdict("unfinished", title, missed)
    if name is not None and name < LEAST_NAME and not thresholds:  # else the user's thresholds say what suffices
        reason = (
            f"{name:.0%} of the questions for its name were answered with {work.assistant}: take more rows about the assistant, more "
            "epochs or a higher learning rate; where another name was trained, say it with WULEWULE_NAME",
            f"问名字的问题，只有 {name:.0%} 答了{work.assistant}：增加自我认知的数据或轮数，或提高学习率；"
            "如果训练的是别的名字，用 WULEWULE_NAME 说明",
        )
        return Verdict("unfinished", ("Trained, but it seldom says its name", "训练有效，但它很少说自己的名字"), [reason])
    return Verdict("good", ("Trained", "训练有效"), [])


def _name(training, language):
    return STAGE_NAMES[training.stage][language]


def _failures(training):
    """Return what shows that a training did not work (list[tuple[str, str]])."""
    en, zh = _name(training, 0), _name(training, 1)
    found = []
    losses = training.series("loss")[1]
    if len(losses) < len(training.rows):
        found.append(
            (
                f"{en}: {len(training.rows) - len(losses)} losses are not finite",
                f"{zh}：有 {len(training.rows) - len(losses)} 个损失不是有限数",
            )
        )
    first, last = ends(losses)
    if len(losses) > 1 and not last < first:
        found.append((f"{en}: the loss did not fall ({first:.3f} to {last:.3f})", f"{zh}：损失没有下降（{first:.3f} → {last:.3f}）"))
    share = rate_share(training)
    if share is not None and share < LEAST_RATE:
        found.append(
            (
                f"{en}: the learning rate reached {share:.2g} of what was asked",
                f"{zh}：学习率只达到设定值的 {share:.2g} 倍",
            )
        )
    return found


def ends(values):
    """Return the mean of the first tenth of values (list[float]) and of the last (tuple[float, float]), nan where there are none."""
    count = max(1, len(values) // 10)
    return tuple(sum(part) / len(part) if part else math.nan for part in (values[:count], values[-count:]))


def rate_share(training):
    """Return the highest learning rate of a `Training` as a share of the asked one (float), None where either isn't known."""
    if training.asked_rate is None or training.highest_rate is None:
        return None
    return training.highest_rate / training.asked_rate

"""From answers to figures, and how they are shown."""

import math
import re
from dataclasses import dataclass

from xtuner_wulewule.dataset.texts import Names
from xtuner_wulewule.errors import ModelError
from xtuner_wulewule.evaluation import claims, metrics, suites


@dataclass(frozen=True)
class Metric:
    """One figure of the scorecard.

    Args:
        suite (str): to which it belongs.
        percent (bool): whether it is a share.
        compares (bool): whether it needs the base.
    """

    suite: str
    percent: bool = True
    compares: bool = False


METRICS = {
    **{f"{name}{suffix}": Metric("persona") for name in ("name", "author", "leak", "bleed") for suffix in ("", "_without_system")},
    "token_f1": Metric("knowledge"),
    "rouge_l": Metric("knowledge"),
    **{f"perplexity{suffix}": Metric("forgetting", percent=False) for suffix in ("", "_zh", "_en")},
    **{f"perplexity_growth{suffix}": Metric("forgetting", compares=True) for suffix in ("", "_zh", "_en")},
    "checks": Metric("forgetting"),
    "checks_drop": Metric("forgetting", compares=True),
}


def scorecard(settings, questions, answers):
    """Return the scorecard (dict): `metrics`, each with its value, its 95 % interval and of how many; `kinds`, the hits of each kind of
    identity question; and `answers`, each with how it was judged.

    Args:
        settings (runner.Settings): of the evaluation.
        questions (list[suites.Question]): all questions.
        answers (dict): {("model" or "base", id): what was found}, as `Answers.known`.

    Raises:
        ModelError: the base has another tokenizer, so perplexities cannot be compared.
    """
    judged = [(question, judge(question, answers["model", question.id]["answer"], settings.persona)) for question in questions]
    found = {**_persona(judged), **_knowledge(judged)}
    if "forgetting" in settings.suites:
        found.update(_forgetting(settings, judged, answers))
    return dict(
        model=settings.model,
        adapter=settings.adapter,
        base=settings.base,
        held_out=settings.held_out,
        persona=dict(names=list(settings.persona.names), author=settings.persona.author, system=settings.persona.system),
        suites=list(settings.suites),
        languages=list(settings.languages),
        metrics={name: found[name] for name in METRICS if name in found},
        kinds=_kinds(judged),
        answers=[
            dict(
                id=question.id,
                question=question.text,
                system=question.system,
                answer=answers["model", question.id]["answer"],
                **({"base": answers["base", question.id]["answer"]} if ("base", question.id) in answers else {}),
                **{key: question.facts[key] for key in ("kind", "reference") if key in question.facts},
                **verdict,
            )
            for question, verdict in judged
        ],
    )


def judge(question, answer, persona):
    """Return what an answer shows (dict): `hit` and `leak`, `bleed`, `token_f1` and `rouge_l`, or `right`.

    Args:
        question (suites.Question): what was asked.
        answer (str): what was answered.
        persona (prompts.Persona): who the assistant is said to be.
    """
    names, author = Names(persona.names), Names((persona.author,))
    if question.part == "identity":
        own = {name.lower() for name in (*persona.names, persona.author)}
        rivals, makers = (Names([name for name in some if name.lower() not in own]) for some in (claims.RIVALS, claims.RIVAL_MAKERS))
        if question.facts["asks"] == "name":
            third = question.facts["kind"] == "third_person"
            hit = claims.names_itself(answer, names, question.text) or (third and claims.describes(answer, names, author))
        else:
            hit = claims.names_author(answer, author, question.text)
        every = Names((*persona.names, persona.author))
        return dict(hit=hit, leak=claims.claims_other(answer, rivals, makers, every, question.text, question.facts["asks"]))
    if question.part == "neutral":
        return dict(bleed=any(some.find(answer) is not None for some in (names, author)))
    if question.part == "knowledge":
        reference = question.facts["reference"]
        return dict(token_f1=metrics.token_f1(answer, reference), rouge_l=metrics.rouge_l(answer, reference))
    return dict(right=re.search(question.facts["pattern"], answer) is not None)


def _persona(judged):
    found = {}
    for suffix, system in (("", True), ("_without_system", False)):
        some = [(question, verdict) for question, verdict in judged if question.system == system]
        identity = [(question, verdict) for question, verdict in some if question.part == "identity"]
        groups = {
            asks: [[verdict["hit"]] for question, verdict in identity if question.facts["asks"] == asks] for asks in ("name", "author")
        }
        groups["leak"] = [[verdict["leak"]] for _, verdict in identity]
        groups["bleed"] = [[verdict["bleed"]] for question, verdict in some if question.part == "neutral"]
        found.update({f"{name}{suffix}": metrics.score(group) for name, group in groups.items() if group})
    return found


def _kinds(judged):
    found = {}
    for question, verdict in judged:
        if question.part == "identity":
            kind = found.setdefault(question.facts["kind"], {key: 0 for key in ("questions", "hits", "leaks")})
            for key, value in (("questions", 1), ("hits", verdict["hit"]), ("leaks", verdict["leak"])):
                kind[key] += int(value)
    return found


def _knowledge(judged):
    groups = {}
    for question, verdict in judged:
        if question.part == "knowledge":
            groups.setdefault(question.facts["conversation"], []).append(verdict)
    if not groups:
        return {}
    return {key: metrics.score([[verdict[key] for verdict in group] for group in groups.values()]) for key in ("token_f1", "rouge_l")}


def _forgetting(settings, judged, answers):
    found = {}
    rows = suites.read_set("general", settings.languages)
    for suffix, languages in (("", ("zh", "en")), ("_zh", ("zh",)), ("_en", ("en",))):
        ids = [row["id"] for row in rows if row["language"] in languages]
        if not ids:
            continue
        texts = [(answers["model", id]["loss"], answers["model", id]["tokens"]) for id in ids]
        found[f"perplexity{suffix}"] = _with_interval(texts, _perplexity)
        if settings.base:
            pairs = [(loss, tokens, answers["base", id]["loss"]) for (loss, tokens), id in zip(texts, ids, strict=True)]
            if [answers["base", id]["tokens"] for id in ids] != [tokens for _, tokens in texts]:
                raise ModelError(f"{settings.base} has another tokenizer than {settings.model}: their perplexities cannot be compared")
            found[f"perplexity_growth{suffix}"] = _with_interval(pairs, _growth)
    checks = [(question, verdict["right"]) for question, verdict in judged if question.part == "check"]
    found["checks"] = metrics.score([[right] for _, right in checks])
    if settings.base:
        before = [judge(question, answers["base", question.id]["answer"], settings.persona)["right"] for question, _ in checks]
        lost = [int(was) - int(right) for was, (_, right) in zip(before, checks, strict=True)]
        found["checks_drop"] = _with_interval(lost, lambda values: sum(values) / len(values))
    return found


def _with_interval(items, statistic):
    return dict(value=statistic(items), interval=metrics.interval(items, statistic), count=len(items))


def _perplexity(texts):
    return math.exp(sum(loss for loss, _ in texts) / sum(tokens for _, tokens in texts))


def _growth(pairs):
    return math.exp(sum(loss - base for loss, _, base in pairs) / sum(tokens for _, tokens, _ in pairs)) - 1


def shown(name, value):
    """Return the value of a metric (str) as people read it."""
    return f"{value:.1%}" if METRICS[name].percent else f"{value:.2f}"


def table(found, marks=None):
    """Return the figures of a scorecard as a rich.table.Table.

    Args:
        found (dict): the scorecard.
        marks (dict, optional): {metric: what the gate says of it}.
    """
    from rich import box
    from rich.table import Table

    marks = marks or {}
    columns = Table(box=box.SIMPLE)
    for name, justify in (("metric", "left"), ("value", "right"), ("95 % interval", "right"), ("of", "right")):
        columns.add_column(name, justify=justify, no_wrap=True)
    if marks:
        columns.add_column("gate", no_wrap=True)
    suite = None
    for name, one in found["metrics"].items():
        if suite not in (None, METRICS[name].suite):
            columns.add_section()
        suite = METRICS[name].suite
        low, high = (shown(name, bound) for bound in one["interval"])
        cells = [name, shown(name, one["value"]), f"{low} to {high}", str(one["count"])]
        columns.add_row(*cells, *([marks.get(name, "")] if marks else []))
    return columns

"""From what was collected to one page of HTML."""

import base64
import hashlib
import json
from pathlib import Path

from xtuner_wulewule import __version__
from xtuner_wulewule.recipe.state import file_fingerprint
from xtuner_wulewule.report import charts
from xtuner_wulewule.report.collect import SCORES
from xtuner_wulewule.report.examples import examples
from xtuner_wulewule.report.verdict import STAGE_NAMES, ends, judge, rate_share

MARK = '<meta name="generator" content="xtuner-wulewule report">'
# logged figures: key, name, unit, whether it is smoothed. Each text is a pair, English and Chinese.
FIGURES = (
    ("lr", ("Learning rate", "学习率"), ("of the optimizer", "优化器"), False),
    ("grad_norm", ("Gradient norm", "梯度范数"), ("before clipping", "裁剪前"), True),
    ("tokens_per_sec", ("Speed", "速度"), ("tokens/s of one process", "每进程 token/秒"), True),
    ("memory", ("GPU memory", "显存"), ("MB, peak", "MB，峰值"), False),
)
METRICS = {
    "name": ("Says its name", "说出自己的名字"),
    "author": ("Names its author", "说出作者"),
    "leak": ("Claims to be another model", "自称其他模型"),
    "bleed": ("Talks of itself unasked", "无关问题也提到身份"),
    "token_f1": ("Knowledge: token F1", "知识：词元 F1"),
    "rouge_l": ("Knowledge: ROUGE-L", "知识：ROUGE-L"),
    "perplexity": ("Perplexity of general text", "通用文本困惑度"),
    "perplexity_growth": ("Growth of the perplexity", "困惑度增幅"),
    "checks": ("Simple tasks solved", "简单任务正确率"),
    "checks_drop": ("Simple tasks lost", "简单任务丢失率"),
}
SUFFIXES = {
    "_without_system": ("without the system prompt", "无系统提示词"),
    "_zh": ("Chinese", "中文"),
    "_en": ("English", "英文"),
}
PERSONA = ("name", "author", "leak", "bleed")
KINDS = {
    "paraphrase": ("in other words", "换个说法"),
    "third_person": ("in the third person", "第三人称"),
    "leading": ("leading", "诱导提问"),
    "other_language": ("in other languages", "其他语言"),
    "held_out": ("held out of the data", "数据中留出"),
}
SETTINGS = (
    "pretrained_model_name_or_path", "data_files", "max_length", "batch_size", "accumulative_counts", "max_epochs", "max_iters", "lr",
    "betas", "weight_decay", "max_norm", "held_out", "system_dropout", "save_steps", "SYSTEM",
)  # fmt: skip


def render(work):
    """Return the page (str) about a `Work`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("xtuner_wulewule", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size="{:,}".format, rate="{:.3g}".format, duration=duration)
    here = Path(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        mark=MARK,
        version=__version__,
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        work=work,
        name=work.folder.name,
        verdict=verdict_of(work),
        times=_times(work),
        begin=work.trainings[0].log.begin,
        stages=[_stage(training, number) for number, training in enumerate(work.trainings)],
        persona=_persona(work),
        metrics=_metrics(work),
        examples=examples(work),
        kinds=_kinds(work),
        settings=_settings(work),
        versions=_versions(work),
        hashes=_hashes(work),
        warnings=_warnings(work, "warnings"),
        usual=_warnings(work, "usual"),
        steps=[dict(step, facts=_facts(step)) for step in work.steps],
    )


def verdict_of(work):
    """Return the `Verdict` of a `Work`, by its scorecard, too."""
    persona = _persona(work)
    thresholds = [
        (tuple(f"{name}: {row['value']} ({row['rule']})" for name in row["name"]), row["passed"]) for row in _metrics(work) if row["rule"]
    ]
    return judge(work, thresholds, persona and persona["value"])


def duration(seconds):
    """Return a time (str) as people read it: "4 h 05 min", "3 min 20 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _times(work):
    """Return how long it took, and of what that is the time (list of texts)."""
    found = []
    if any(training.log.begin for training in work.trainings):
        time = duration(sum(training.log.seconds for training in work.trainings))
        english = f"Training time: {time}, from the first to the last line of each log"
        found.append((english, f"训练用时：{time}，每份日志从首行到末行"))
    if isinstance(work.report.get("seconds"), (int, float)):
        time = duration(work.report["seconds"])
        english = f"Whole run: {time}, all steps of the last wulewule run, each from its last start"
        found.append((english, f"整个运行用时：{time}，最近一次 wulewule run 的全部步骤，各自从最近一次启动算起"))
    return found


def _stage(training, number):
    updates, losses = training.series("loss")
    curves, missing = [], []
    for key, name, unit, smooth in FIGURES:
        where, values = training.series(key)
        if values:
            svg = charts.curve(where, values, f"c{number}{key}", smooth, size=(3.5, 2.1))
            curves.append(dict(name=name, unit=unit, svg=svg, last=values[-1]))
        else:
            missing.append(name)
    first, last = ends(losses)
    return dict(
        name=STAGE_NAMES[training.stage],
        training=training,
        updates=training.log.budget["updates"] if training.log.budget else round(training.rows[-1]["iter"] / training.accumulation),
        first=losses[0] if losses else None,
        last=losses[-1] if losses else None,
        fell=bool(losses) and (len(losses) < 2 or last < first),
        loss=charts.curve(updates, losses, f"c{number}loss", smooth=True) if losses else "",
        span=charts.smoothed(losses)[1],
        interval=training.rows[1]["iter"] - training.rows[0]["iter"] if len(training.rows) > 1 else 1,
        share=rate_share(training),
        curves=curves,
        missing=missing,
        scores=_scores(training, number),
        data=training.log.data,
        config=training.config_file.read_text(encoding="utf-8", errors="replace") if training.config_file else "",
    )


def _scores(training, number):
    """Return the curve of ScoreHook (str), empty where it asked less than twice."""
    keys = [key for key in SCORES if any(isinstance(row.get(key), (int, float)) for row in training.scores)]
    rows = [row for row in training.scores if all(isinstance(row.get(key), (int, float)) for key in keys)]
    if len(rows) < 2:
        return ""
    where = [row["step"] / training.accumulation for row in rows]
    first, *more = ([row[key] for row in rows] for key in keys)
    return charts.curve(where, first, f"c{number}score", second=more[0] if more else None, size=(3.5, 2.1), percent=True)


def _persona(work):
    """Return the hit rates (dict) that stand at the top, None where nothing was measured."""
    metrics = work.scorecard["metrics"] if work.scorecard else {}
    name = next((key for key in ("name", "name_without_system") if key in metrics), None)
    if name:
        found, without = metrics[name], metrics.get("name_without_system") if name == "name" else None
        before = (work.before or {}).get("metrics", {}).get(name)
        return dict(
            value=found["value"],
            interval=found["interval"],
            count=found["count"],
            without=without and without["value"],
            before=before and before["value"],
        )
    from xtuner_wulewule.evaluation.suites import ASKED_IN_TRAINING

    rows = [row for training in work.trainings for row in training.scores]
    for key in SCORES:
        scores = [row for row in rows if isinstance(row.get(key), (int, float))]
        if scores:
            last, first = scores[-1], scores[0]
            return dict(
                value=last[key],
                interval=None,
                count=ASKED_IN_TRAINING,
                without=last.get(SCORES[1]) if key == SCORES[0] else None,
                before=first[key] if len(scores) > 1 else None,
            )
    return None


def _rules(work):
    """Return the thresholds ({metric: Rule}) of the run, else of the tuning's config."""
    from xtuner_wulewule.evaluation import gate

    settings = work.report.get("settings")
    given = (settings.get("gate") if isinstance(settings, dict) else None) or work.trainings[-1].config.get("gate")
    return {rule.metric: rule for rule in gate.parse(given)} if given and isinstance(given, (str, list)) else {}


def _metrics(work):
    """Return the rows (list[dict]) of the scorecard."""
    if not work.scorecard:
        return []
    from xtuner_wulewule.evaluation.scorecard import METRICS as KNOWN
    from xtuner_wulewule.evaluation.scorecard import shown

    rules, found = _rules(work), []
    measured = work.scorecard["metrics"]
    before = (work.before or {}).get("metrics", {})
    for key, one in measured.items():
        if key not in KNOWN:
            continue
        rule = rules.get(key)
        was = before[key]["value"] if key in before else _before(key, measured)
        found.append(
            dict(
                key=key,
                name=_metric_name(key),
                suite=KNOWN[key].suite,
                value=shown(key, one["value"]),
                before=shown(key, was) if was is not None else None,
                low=shown(key, one["interval"][0]),
                high=shown(key, one["interval"][1]),
                count=one["count"],
                rule=f"{'≥' if rule.sign == '>=' else '≤'} {shown(key, rule.limit)}" if rule else None,
                passed=rule.passes(one["value"]) if rule else None,
            )
        )
    return found


def _before(key, measured):
    """Return what the model before had (float), where the scorecard of the tuned one implies it; else None."""
    stem, _, language = key.partition("_")
    growth = measured.get("_".join(part for part in (stem, "growth", language) if part))
    if stem == "perplexity" and language in ("", "zh", "en") and growth:
        return measured[key]["value"] / (1 + growth["value"]) if growth["value"] > -1 else None
    if key == "checks" and "checks_drop" in measured:
        return measured[key]["value"] + measured["checks_drop"]["value"]
    return None


def _metric_name(key):
    for suffix, words in SUFFIXES.items():
        stem = key.removesuffix(suffix)
        if stem != key and stem in METRICS:
            return tuple(f"{name}{', ' if language == 0 else '，'}{words[language]}" for language, name in enumerate(METRICS[stem]))
    if key in PERSONA:
        return tuple(f"{name}{words}" for name, words in zip(METRICS[key], (", with the system prompt", "，有系统提示词"), strict=True))
    return METRICS.get(key, (key, key))


def _kinds(work):
    """Return the kinds of identity questions (list): name, and counts (dict)."""
    kinds = (work.scorecard or {}).get("kinds")
    found = kinds.items() if isinstance(kinds, dict) else ()
    return [
        (KINDS.get(kind, (kind, kind)), counts)
        for kind, counts in found
        if isinstance(counts, dict) and {"hits", "questions"} <= set(counts)
    ]


def _settings(work):
    """Return the settings: name and values (list[dict]) of the run and of each config."""
    run = work.report.get("settings")
    groups = []
    if isinstance(run, dict):
        groups.append(dict(name=("Run", "运行"), rows=[(key, _text(value)) for key, value in run.items() if value not in (None, [], {})]))
    for training in work.trainings:
        rows = [(key, _text(value)) for key in SETTINGS if (value := training.setting(key)) is not None]
        if rows:
            groups.append(dict(name=STAGE_NAMES[training.stage], rows=rows))
    return groups


def _text(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(work):
    versions = work.report.get("versions")
    found = dict(versions) if isinstance(versions, dict) else {}
    for key, value in work.trainings[-1].log.environment.items():
        if key.lower() not in {name.lower() for name in found} and not (key == "PyTorch" and "torch" in found):
            found[key] = value
    return found


def _hashes(work):
    """Return what identifies data, configs and the model to start from (list of name and hash)."""
    found = {}
    for step in work.steps:
        for key, value in (step.get("fingerprint") or {}).items():
            if isinstance(value, dict):
                found.update({name: text for name, text in value.items() if str(text).startswith(("sha256 ", "size "))})
            elif str(value).startswith("sha256 "):
                found[f"{key} ({step['name']})"] = value
    for training in work.trainings:
        if training.config_file:
            found[str(training.config_file.relative_to(work.folder))] = file_fingerprint(training.config_file)
    return list(found.items())


def _warnings(work, kind):
    """Return warnings (list[dict]) with their number and the stages that gave them."""
    found: dict[str, dict] = {}
    for training in work.trainings:
        for text, count in getattr(training.log, kind).items():
            row = found.setdefault(text, dict(text=text, count=0, stages=[]))
            row["count"] += count
            row["stages"].append(STAGE_NAMES[training.stage])
    return list(found.values())


def _facts(step):
    result = step.get("result")
    facts = result if isinstance(result, dict) else {}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in facts.items()
        if not isinstance(value, dict)
    )

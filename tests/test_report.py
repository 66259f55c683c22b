"""`wulewule report`: what it reads, what it makes of it, and the page."""

import json
import re

import pytest
from work_dirs import ANSWERS, BUDGET, CONFIG, DATA, EVIL, run_dir, scalars, scorecard, work_dir

from xtuner_wulewule.cli import main
from xtuner_wulewule.cli.run import write_page
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import Persona
from xtuner_wulewule.recipe.state import State
from xtuner_wulewule.report import charts
from xtuner_wulewule.report.collect import collect, read_config, read_training
from xtuner_wulewule.report.page import MARK, duration, render, verdict_of
from xtuner_wulewule.report.verdict import judge


def page(folder, **more):
    return render(collect(folder, **more))


def title(html):
    """The verdict: state, English, Chinese."""
    return re.search(r'<h1 class="(\w+)"><span class="en" lang="en">(.*?)</span><span class="zh" lang="zh-CN">(.*?)</span>', html).groups()


def test_plain_work_folder(tmp_path):
    folder = work_dir(
        tmp_path / "work", scalars(tokens_per_sec=900.0), warnings=["The rate is odd", "The rate is odd", '"FileClient" will go']
    )
    (training,) = collect(folder).trainings
    assert training.accumulation == 2 and training.ended and training.asked_rate == training.highest_rate == 0.001
    assert training.series("loss")[0][:2] == [0.5, 1.0]  # updates, not iterations
    assert training.log.warnings == {"The rate is odd": 2} and list(training.log.usual) == ['"FileClient" will go']
    assert training.log.environment == {"Python": "3.11.7 (main)", "PyTorch": "2.5.1"} and training.log.seconds == 90
    assert training.log.data["left_out"] == 50 and training.log.data["full"] == 41.5 and training.log.data["packing"] == "best_fit"
    assert training.examples() == [dict(question="你是谁？", before=ANSWERS[0], after=ANSWERS[1])]
    training.config["evaluation_inputs"] = "你是谁？"  # as --cfg-options evaluation_inputs=你是谁？ leaves it
    assert training.examples() == [dict(question="你是谁？", before=ANSWERS[0], after=ANSWERS[1])]
    html = page(folder)
    assert title(html) == ("good", "Trained", "训练有效")
    assert "Speed" in html and "41.5 %" in html and "The rate is odd (2 ×)" in html and "max_length" in html
    assert re.search(r"Not logged: .*Gradient norm.*GPU memory", html) and "No scorecard" in html


def settings(html):
    """The settings on a page, by their names: values of each training in turn."""
    rows, found = re.findall(r"<tr><td>(\w+)</td><td>(.*?)</td></tr>", html.partition("Settings</span>")[2].partition("<pre>")[0]), {}
    for name, value in rows:
        found.setdefault(name, []).append(value)
    return found


# names of a config that is used with other options, and the places that have their values
CHANGED = """pretrained_model_name_or_path = 'a/base'
max_epochs = 20
max_norm = 1
weight_decay = 0
batch_size = 2
SYSTEM = 'Be brief.'
model = dict(llm=dict(pretrained_model_name_or_path='another/base'), type='SupervisedFinetune')
train_dataloader = dict(batch_size=3, dataset=dict(data_files=['other.jsonl'], max_length=64, type='build'))
optim_wrapper = dict(accumulative_counts=4, clip_grad=None, optimizer=dict(lr=0.5, weight_decay=0.1))
"""


def test_settings_are_those_that_were_trained(tmp_path):
    folder = work_dir(tmp_path / "work", log=False)
    config = folder / "20260102_030405" / "vis_data" / "config.py"
    config.write_text(CONFIG + CHANGED, encoding="utf-8")
    trained = dict(pretrained_model_name_or_path="another/base", max_epochs="1", weight_decay="0.1", batch_size="3", SYSTEM="Be brief.")
    trained.update(data_files="[&#34;other.jsonl&#34;]", max_length="64", accumulative_counts="4", lr="0.5")
    assert settings(page(folder)) == {name: [value] for name, value in trained.items()}
    assert read_training(folder).accumulation == 4 and read_training(folder).asked_rate == 0.5


def test_settings_of_other_lengths_and_of_deepspeed(tmp_path):
    folder = work_dir(tmp_path / "work")
    config = folder / "20260102_030405" / "vis_data" / "config.py"
    more = "train_cfg = dict(max_epochs=None, max_iters=30)\nstrategy = dict(gradient_accumulation_steps=8, gradient_clipping=0.3)\n"
    config.write_text(CONFIG + CHANGED + f"{more}optim_wrapper = dict(optimizer=dict(lr=0.5))\n", encoding="utf-8")
    found = settings(page(folder))
    assert found["max_iters"] == ["30"] and "max_epochs" not in found and found["lr"] == ["0.5"]
    assert found["accumulative_counts"] == ["8"] and found["max_norm"] == ["0.3"] and "weight_decay" not in found


def times(html):
    """The times at the head of a page, English and Chinese."""
    head = html.partition("</h1>")[2].partition('<div class="grid tiles">')[0]
    return [" ".join(re.sub("<[^>]*>", "", re.sub(f'<span class="{other}".*?</span>', "", head)).split()) for other in ("zh", "en")]


TRAINED = "Training time: {}, from the first to the last line of each log", "训练用时：{}，每份日志从首行到末行"
WHOLE = (
    "Whole run: {}, all steps of the last wulewule run, each from its last start",
    "整个运行用时：{}，最近一次 wulewule run 的全部步骤，",
)


@pytest.mark.parametrize(
    ("make", "trained", "whole"),
    [
        (work_dir, "1 min 30 s", None),
        (lambda folder: run_dir(folder, finished=False), "3 min 00 s", None),
        (run_dir, "3 min 00 s", "3 min 03 s"),
    ],
    ids=["xtuner-train", "unfinished-run", "run"],
)
def test_times_say_what_they_are_of(make, trained, whole, tmp_path):
    for said, of_training, of_run in zip(times(page(make(tmp_path / "work"))), TRAINED, WHOLE, strict=True):
        assert of_training.format(trained) in said and said.count(" min ") == (1 if whole is None else 2)
        assert (of_run.partition("{}")[0] in said) == (whole is not None) == (of_run.format(whole) in said)


def test_time_that_no_log_tells_is_not_shown(tmp_path):
    assert "0 s" not in times(page(work_dir(tmp_path / "work", log=False)))[0]


def test_run_with_both_stages_and_a_scorecard(tmp_path):
    html = page(run_dir(tmp_path / "run"))
    assert title(html)[:2] == ("unfinished", "Trained, but 1 of 2 thresholds missed")
    assert html.count("<svg") == 2 + 1 + 4  # losses; the rate; rate, norm, speed, memory
    assert "GPU memory" in html and "1 / 2" in html and "诱导提问</span> 4/24" in html and f"sha256 {'d' * 64}" in html
    assert "33.00" in html and "30.00" in html and "75.0%" in html  # perplexity and its base's, checks of the base
    assert "一万三千五百斤" in html and "claims to be another" in html and "3 min 03 s" in html


def test_scorecard_of_the_model_before_stands_beside(tmp_path):
    before = tmp_path / "base"
    before.mkdir()
    card = scorecard(name=0.0)
    card["answers"][0]["answer"] = "我是基座"
    (before / "scorecard.json").write_text(json.dumps(card), encoding="utf-8")
    html = page(run_dir(tmp_path / "run"), before=before)
    assert "我是基座" in html and "<i>0 →</i> 96 %" in html


def test_run_that_failed_says_why(tmp_path):
    folder = run_dir(tmp_path / "run", finished=False)
    html = page(folder)
    assert title(html)[:2] == ("unfinished", "Not finished")
    assert "step sft_train did not end" in html and "row 3 is wrong; mend it" in html and "No scorecard" in html


@pytest.mark.parametrize("place", ["nowhere", "run", "config", "both"])
def test_heading_names_the_persona(place, tmp_path):
    folder = run_dir(tmp_path / "run")
    if place in ("config", "both"):  # of xtuner train, which the environment told
        config = folder / "sft" / "train" / "20260102_030405" / "vis_data" / "config.py"
        config.write_text(config.read_text(encoding="utf-8") + "NAMES = ['小明', 'Ming']\n", encoding="utf-8")
    if place in ("run", "both"):
        State(folder).keep_persona(Persona(("小<石>头", "Pebble"), "李雷", ""), {})
    name = {"nowhere": "悟了悟了", "config": "小明"}.get(place, "小&lt;石&gt;头")
    assert f'<div class="title"><b>{name}</b>' in page(folder)


def test_report_of_an_earlier_run_is_not_that_of_this_one(tmp_path):
    folder = run_dir(tmp_path / "run")
    file = folder / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["steps"]["gate"] = dict(status="running", fingerprint={})  # of another run before
    file.write_text(json.dumps(state), encoding="utf-8")
    assert "thresholds" in title(page(folder))[1]
    state["steps"]["sft_train"] = dict(status="running", fingerprint={})
    file.write_text(json.dumps(state), encoding="utf-8")
    assert title(page(folder))[1] == "Not finished" and "step sft_train did not end" in page(folder)


@pytest.mark.parametrize(
    ("record", "ended"), [("iter_40.pth", True), ("iter_39.pth", False), ("epoch_1.pth", True), ("epoch_0.pth", False), ("odd", False)]
)
def test_end_of_a_training(record, ended, tmp_path):
    folder = work_dir(tmp_path / "work", scalars(39))
    (folder / "last_checkpoint").write_text(f"/some/where/{record}", encoding="utf-8")
    assert read_training(folder).ended == ended


def test_nothing_of_the_data_becomes_markup(tmp_path):
    folder = run_dir(tmp_path / f"run{EVIL[:8]}")
    config = folder / "sft" / "train" / "20260102_030405" / "vis_data" / "config.py"
    config.write_text(config.read_text(encoding="utf-8") + f"SYSTEM = {EVIL!r}\n", encoding="utf-8")
    html = page(folder)
    assert EVIL not in html and html.count("&lt;script&gt;") >= 3
    assert html.count("<script") == 1 and "<img" not in html


def test_page_loads_nothing(tmp_path):
    html = page(work_dir(tmp_path / "work"))
    assert not re.search(r'(?:src|href)="(?!data:|#)', html) and "@import" not in html and "url(" not in re.sub(r"url\(#", "", html)
    assert "default-src 'none'" in html and html.index(MARK) < 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(rows=scalars(fall=-0.1)), "the loss did not fall"),
        (dict(budget=BUDGET.replace("rate 0.001", "rate 1e-07")), "the learning rate reached 0.0001 of what was asked"),
        (dict(rows=[*scalars()[:20], dict(loss=float("nan"), iter=21, lr=0.001)]), "1 losses are not finite"),
    ],
    ids=["loss", "rate", "nan"],
)
def test_training_that_did_not_work_is_said_first(change, words, tmp_path):
    verdict = judge(collect(work_dir(tmp_path / "work", **change)))
    assert verdict.state == "bad" and words in verdict.reasons[0][0]


def test_rate_is_judged_without_the_hook_too(tmp_path):
    rows = [dict(row, lr=1e-8) for row in scalars() if "loss" in row]
    verdict = judge(collect(work_dir(tmp_path / "work", rows, budget=None)))
    assert verdict.state == "bad" and "learning rate" in verdict.reasons[0][0]


def test_model_that_the_gate_refused_missed_thresholds_and_is_finished(tmp_path):
    folder = run_dir(tmp_path / "run")
    (folder / "report.json").unlink()  # a refused model gets none
    state = json.loads((folder / "state.json").read_text())
    state["steps"]["gate"] = dict(status="running", fingerprint={})
    (folder / "state.json").write_text(json.dumps(state))
    config = folder / "sft" / "train" / "20260102_030405" / "vis_data" / "config.py"
    config.write_text(CONFIG + "gate = ['name>=0.95', 'name_without_system>=0.95']\n", encoding="utf-8")
    verdict = verdict_of(collect(folder))
    assert verdict.title[0] == "Trained, but 1 of 2 thresholds missed" and len(verdict.reasons) == 1
    assert "(≥ 95.0%)" in verdict.reasons[0][0]
    config.write_text(CONFIG + "gate = ['name>=0']\n", encoding="utf-8")
    assert verdict_of(collect(folder)).title[0] == "Not finished"


def test_stopped_training_is_not_finished(tmp_path):
    folder = work_dir(tmp_path / "work", saved=False)
    assert title(page(folder))[0] == "unfinished"


def test_broken_lines_missing_log_and_config_are_borne(tmp_path):
    folder = work_dir(tmp_path / "work", log=False)
    file = folder / "20260102_030405" / "vis_data" / "scalars.json"
    file.write_bytes(b'\xff\n7\n[1]\n{"loss": "x", "iter": 3}\n' + file.read_bytes() + b'{"loss": 1.0, "it')
    config = file.with_name("config.py")
    config.write_text("lr = = 1\n", encoding="utf-8")
    html = page(folder)
    assert "no ledger of the data" in html and "the asked one is not known" in html
    assert read_config(config) == {} and read_training(folder).series("loss")[1][0] == 8.0


@pytest.mark.parametrize(("share", "state"), [(0.0, "unfinished"), (0.375, "unfinished"), (0.5, "good")])
def test_a_model_that_does_not_say_its_name_is_no_success(tmp_path, share, state):
    html = page(work_dir(tmp_path / "work", [*scalars()[:-1], {"eval/name": share, "step": 39}]))
    assert title(html)[0] == state
    assert (f"{share:.0%} of the questions for its name were answered with 悟了悟了" in html) == (state == "unfinished")
    assert judge(collect(tmp_path / "work"), [(("name", "名字"), True)], share).state == "good"  # the user's thresholds suffice


@pytest.mark.parametrize("keys", [("eval/name",), ("eval/name_without_system",), ("eval/name", "eval/name_without_system")])
def test_scores_of_a_persona_with_and_without_a_system_prompt(tmp_path, keys):
    asked = [{**dict.fromkeys(keys, share), "step": step} for step, share in ((0, 0.25), (39, 0.75))]
    folder = work_dir(tmp_path / "work", [*scalars()[:-1], *asked])
    html = page(folder)
    assert [row["step"] for row in read_training(folder).scores] == [0, 39]
    assert "<i>25 →</i> 75 %" in html and "Says its name" in html
    assert ("无系统提示词 75 %" in re.sub("<[^>]*>", "", html)) == (len(keys) == 2)


def test_training_begun_anew_in_the_same_folder_counts_alone(tmp_path):
    folder = work_dir(tmp_path / "work", scalars(40))
    work_dir(folder, scalars(10, first=5.0), session="20260103_000000")
    assert [row["iter"] for row in read_training(folder).rows] == list(range(1, 11))


def test_resumed_training_is_one(tmp_path):
    folder = work_dir(tmp_path / "work", scalars(20))
    again = [dict(row, iter=row["iter"] + 15) for row in scalars(25, first=5.0) if "loss" in row]
    work_dir(folder, again, session="20260103_000000", warnings=["resumed epoch: 0, iter: 15"])
    training = read_training(folder)
    assert [row["iter"] for row in training.rows] == list(range(1, 41)) and training.series("loss")[1][15] == 5.0
    assert training.log.seconds == 180


def test_rows_left_out_are_named_where_the_ledger_is_there(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "ledger.json").write_text(json.dumps(dict(left_out=[dict(row=3, reason="no trained token <b>")])), encoding="utf-8")
    data = f"{DATA}: 1 rows, the first 3 (no trained token); all: {store}/ledger.json; 2 rows held out for evaluation"
    html = page(work_dir(tmp_path / "work", data=data))
    assert "no trained token &lt;b&gt;" in html and "Rows held out" in html
    (store / "ledger.json").unlink()
    assert "Tokens left out" in page(tmp_path / "work")


def test_smoothing_keeps_the_mean_and_the_length():
    values = [float(number % 2) for number in range(90)]
    mean, count = charts.smoothed(values)
    assert count == 7 and len(mean) == 90 and all(0.4 < value < 0.6 for value in mean[3:-3])
    assert charts.smoothed([1.0, 5.0]) == ([1.0, 5.0], 1)


def test_curve_takes_the_colours_and_words_of_the_page():
    svg = charts.curve([1, 2, 3], [3.0, 2.0, 1.0], "a")
    assert "var(--curve)" in svg and "更新次数" in svg and not re.search(r"#0[0-9a-f]{5}\b", svg) and svg.startswith("<svg")
    assert charts.curve([1, 2, 3], [3.0, 2.0, 1.0], "a") == svg


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (61.4, "1 min 01 s"), (3600 * 30 + 300, "30 h 05 min")])
def test_duration(seconds, words):
    assert duration(seconds) == words


def command(*arguments):
    return main(["report", *map(str, arguments)])


def test_command_writes_replaces_its_own_and_nothing_else(tmp_path, capsys):
    folder = work_dir(tmp_path / "work")
    assert command(folder) == command(folder) == 0
    assert capsys.readouterr().out == f"verdict: Trained\nreport: {folder}/report.html\n" * 2
    mine = tmp_path / "mine.html"
    mine.write_text("my own")
    assert command(folder, "--out", mine) == 1 and mine.read_text() == "my own"
    assert "--overwrite, nothing was changed" in capsys.readouterr().err
    assert command(folder, "--out", mine, "--overwrite") == 0 and MARK in mine.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("**/*.part"))


def broken(name, text):
    def make(folder):
        run_dir(folder)
        (folder / name).write_text(text, encoding="utf-8")

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no logged training"),
        (lambda folder: work_dir(folder, rows=[]), "holds no logged training"),
        (broken("state.json", '{"steps'), "state.json cannot be read"),
        (broken("report.json", "[]"), "report.json is not what wulewule writes there"),
        (broken("eval/scorecard.json", '{"metrics": {"name": 1}, "answers": []}'), "is not a scorecard of wulewule eval"),
    ],
    ids=["absent", "empty", "nothing-logged", "half-state", "odd-report", "odd-scorecard"],
)
def test_errors_are_one_line(make, words, tmp_path, capsys):
    make(tmp_path / "work")
    assert command(tmp_path / "work") == 1
    error = capsys.readouterr().err
    assert error.startswith("xtuner-wulewule: error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "work" / "report.html").exists()


def test_scorecard_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="is not a file; give the scorecard.json of wulewule eval"):
        collect(work_dir(tmp_path / "work"), before=tmp_path / "none")


class Told:
    """A display that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def print(self, text):
        self.lines.append(text)


def test_run_writes_the_page_and_is_not_undone_by_it(tmp_path):
    folder, told = run_dir(tmp_path / "run", finished=False), Told()
    write_page(folder, told)
    verdict = ["  verdict: Not finished", "    step sft_train did not end"]
    assert told.lines == [*verdict, f"  page: {folder}/report.html   (open it in a browser)"]
    (folder / "report.html").write_text("my own")
    write_page(folder, told)
    assert len(told.lines) == 4 and "not written" in told.lines[3] and (folder / "report.html").read_text() == "my own"


def test_folder_of_a_demo_has_both_stages(tmp_path):
    for stage in ("pretrain", "sft"):
        work_dir(tmp_path / "demo" / stage)
    html = page(tmp_path / "demo")
    assert title(html)[0] == "good" and "Pretraining" in html and "Instruction tuning" in html

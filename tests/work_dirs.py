"""Small work folders as `xtuner train` and `wulewule run` leave them, for the tests of the report."""

import json

EVIL = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
CONFIG = """accumulative_counts = 2
data_files = ['data/a.jsonl']
evaluation_inputs = ['你是谁？', '一加一？']
lr = 0.001
max_length = 512
optim_wrapper = dict(accumulative_counts=2, optimizer=dict(lr=0.001, type='torch.optim.AdamW'))
train_cfg = dict(max_epochs=1, type='xtuner.engine.runner.TrainLoop')
"""
HEAD = "2026/01/02 03:04:05 - mmengine - "
ENVIRONMENT = f"{HEAD}INFO - \n----\nSystem environment:\n    sys.platform: linux\n    Python: 3.11.7 (main)\n    PyTorch: 2.5.1\n----\n"
DATA = "Data: 7 rows, 900 tokens, 850 of them in 4 packed rows of 512 (best_fit, 41.5% full), 50 left out"
BUDGET = "Update budget: 7 rows, 850 tokens, 40 iterations, 20 optimizer updates, highest learning rate 0.001 (asked 0.001)"
ANSWERS = ("我是一个模型。", f"我是悟了悟了。{EVIL}")


def scalars(count=40, first=8.0, fall=0.15, **more):
    """Return logged iterations (list[dict])."""
    rows = [dict(lr=0.001, loss=first - fall * number, time=0.1, iter=number + 1, step=number + 1, **more) for number in range(count)]
    return [*rows, {"eval/name": 0.5, "step": count - 1}]


def sample(answer):
    """Return a record of the log: the answer (str) to one question."""
    prompt = "<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n"
    return f"{HEAD}INFO - Sample output:\n{prompt}{answer}<|im_end|>\n\n"


def work_dir(folder, rows=None, iterations=40, saved=True, data=DATA, budget=BUDGET, session="20260102_030405", log=True, warnings=()):
    """Make XTuner's work folder; return it."""
    vis_data = folder / session / "vis_data"
    vis_data.mkdir(parents=True)
    lines = [json.dumps(row) for row in (scalars() if rows is None else rows)]
    (vis_data / "scalars.json").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (vis_data / "config.py").write_text(CONFIG, encoding="utf-8")
    if log:
        records = [f"{HEAD}INFO - {text}\n" for text in (data, budget) if text]
        records += [sample(ANSWERS[0]), f"{HEAD}INFO - Iter(train) [10/{iterations}]  lr: 1e-03\n"]
        records += [f"{HEAD}WARNING - {text}\n" for text in warnings]
        records += [sample(ANSWERS[1]), "2026/01/02 03:05:35 - mmengine - INFO - the end\n"]
        (folder / session / f"{session}.log").write_text(ENVIRONMENT + "".join(records), encoding="utf-8")
    if saved:
        (folder / "last_checkpoint").write_text(str(folder / f"iter_{iterations}.pth"), encoding="utf-8")
    return folder


def scorecard(name=0.96, without=0.2):
    """Return a scorecard (dict) as `wulewule eval` writes it."""
    figures = dict(name=name, name_without_system=without, perplexity=33.0, perplexity_growth=0.1, checks=0.5, checks_drop=0.25)
    answers = [
        dict(id="identity-01+system", question="你是谁？", system=True, answer=ANSWERS[1], hit=True, leak=False),
        dict(id="identity-01", question="你是谁？", system=False, answer="我是别人", hit=False, leak=True),
        dict(id="knowledge-001-1", question="几棒？", system=True, answer="一棒", reference="一万三千五百斤", token_f1=0.1, rouge_l=0.1),
        dict(id="check-01", question="17 加 25？", system=False, answer="42", base="40", right=True),
    ]
    metrics = {key: dict(value=value, interval=[value / 2, value * 1.5], count=30) for key, value in figures.items()}
    return dict(metrics=metrics, answers=answers, kinds={"leading": dict(questions=24, hits=4, leaks=1)})


def run_dir(folder, finished=True, gate=("name>=0.95", "name_without_system>=0.95")):
    """Make the folder of `wulewule run`; return it."""
    names = ["pretrain_train", "sft_train", "eval"]
    print_of = dict(config=f"sha256 {'c' * 64}", data={"a.jsonl": f"sha256 {'d' * 64}"})
    steps = {name: dict(status="done", seconds=61.0, fingerprint=print_of, result=dict(last_loss=1.5)) for name in names}
    work_dir(folder / "pretrain" / "train", scalars(fall=0.01))
    work_dir(folder / "sft" / "train", scalars(grad_norm=1.5, tokens_per_sec=900.0, memory=1234))
    if finished:
        report = dict(versions={"xtuner": "0.2.0"}, settings=dict(gate=list(gate), seed=0), seconds=183.0)
        report["steps"] = [dict(name=name, seconds=61.0) for name in names]
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        (folder / "answers.json").write_text(json.dumps([dict(question="你是谁？", answer=ANSWERS[1])]), encoding="utf-8")
        (folder / "eval").mkdir()
        (folder / "eval" / "scorecard.json").write_text(json.dumps(scorecard()), encoding="utf-8")
    else:
        steps["sft_train"] = dict(status="running", fingerprint=print_of)
        del steps["eval"]
        (folder / "logs").mkdir()
        (folder / "logs" / "sft_train.log").write_text("noise\nxtuner-wulewule: error: row 3 is wrong; mend it\n", encoding="utf-8")
    (folder / "state.json").write_text(json.dumps(dict(steps=steps)), encoding="utf-8")
    return folder

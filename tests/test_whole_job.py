"""The benchmark of the whole job, as far as a machine without a GPU shows it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner_wulewule.recipe.results import read_rows

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "whole_job.py"
sys.path.insert(0, str(SCRIPT.parent))
import whole_job  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True)


def begin(part, at, **facts):
    return dict(what="begin", part=part, at=at, **facts)


def end(part, at, **facts):
    return dict(what="end", part=part, at=at, **facts)


def iteration(number, loss, **facts):
    return dict(what="iteration", iteration=number, loss=loss, lr=2e-9, tokens=100, trained=60, **facts)


# a run of two iterations, with an evaluation before them and one in the second, beside its checkpoint
STAMPS = [
    begin("start", 1000),
    end("start", 1010),
    begin("model", 1011),
    begin("model", 1012),  # a part in itself counts once
    end("model", 1020),
    end("model", 1021),
    begin("data", 1022),
    end("data", 1025),
    dict(what="plan", iterations=2, accumulative_counts=1, flushes_remainder=True),
    begin("evaluation", 1026, hook="EvaluateChatHook", iteration=0),
    end("evaluation", 1036, peak=3 * 2**30),
    begin("iteration", 1036, iteration=0),  # the batch
    end("iteration", 1037),
    begin("iteration", 1037, iteration=0),
    iteration(0, 8.0),
    end("iteration", 1045),
    begin("iteration", 1045, iteration=1),
    end("iteration", 1045.5),
    begin("iteration", 1045.5, iteration=1),
    iteration(1, 7.0, peak=2**30),
    begin("evaluation", 1048, hook="EvaluateChatHook", iteration=1),
    end("evaluation", 1058),
    begin("checkpoints", 1058, iteration=1),
    end("checkpoints", 1060),
    end("iteration", 1060.5),
    begin("evaluation", 1061, hook="EvaluateChatHook", iteration=2),
    end("evaluation", 1071),
]


def test_each_moment_belongs_to_one_part():
    found = whole_job.figures(STAMPS, 1000, 1075, finished=True)
    assert found["parts"] == {
        "start": 10,
        "model": 10,
        "data": 3,
        "evaluation": 30,
        "first_iteration": 9,
        "iterations": 3,  # without the evaluation and the checkpoint in it
        "checkpoints": 2,
        "end": 5,  # 15 s since the checkpoint, less the last evaluation
        "rest": 3,
    }
    assert (found["total_s"], found["adds_up"]) == (75, True)
    assert (found["rounds"], found["rounds_of"], found["checkpoints"]) == (3, {"EvaluateChatHook": 3}, 1)
    assert (found["iterations"], found["updates"], found["tokens"], found["trained_tokens"]) == (2, 2, 200, 120)
    assert (found["s_per_iteration"], found["peak_gib"], found["highest_lr"]) == (3, 3, 2e-9)
    assert (found["first_loss"], found["last_loss"]) == (8, 7)


def test_a_run_that_was_cut_off_keeps_its_parts(tmp_path):
    file = tmp_path / "stamps.jsonl"
    cut = STAMPS.index(begin("evaluation", 1048, hook="EvaluateChatHook", iteration=1)) + 1
    file.write_text("\n".join(map(json.dumps, STAMPS[:cut])) + '\n{"what": "en')  # the last line half written
    found = whole_job.figures(read_rows(file), 1000, 1050, finished=False)
    assert found["parts"]["evaluation"] == 12 and found["rounds"] == 1  # the second was not finished
    assert (found["parts"]["iterations"], found["parts"]["end"], found["parts"]["checkpoints"]) == (3, 0, 0)
    assert found["adds_up"] and (found["iterations"], found["planned_iterations"]) == (2, 2)
    # while the command was still starting
    found = whole_job.figures(STAMPS[:1], 1000, 1005, finished=False)
    assert found["parts"] == {**dict.fromkeys(whole_job.PARTS, 0), "start": 5} and found["adds_up"]
    assert [found[key] for key in ("updates", "s_per_iteration", "peak_gib", "first_loss")] == [None] * 4
    row = dict(way="ours", epochs=1, cut_off=True, **found)
    assert whole_job.table([row]).splitlines()[:3] == ["| seconds | ours, cut off |", "| --- | --- |", "| start | 5.0 |"]
    settings = dict(epochs=1, model_given=True, time_limit_s=5)
    notes = whole_job.notes_of([row], settings)
    assert notes[0] == "1 of the published 5 epochs; nothing is extrapolated to 5"
    assert notes[1] == "ours was cut off after 5 s, with 0 of an unknown number of iterations done" and len(notes) == 2


def test_parts_that_overlap_count_once_and_a_time_outside_the_run_is_flagged():
    crossing = [begin("start", 0), begin("data", 4), end("start", 6), end("data", 9)]
    found = whole_job.figures(crossing, 0, 10, finished=False)
    assert (found["parts"]["start"], found["parts"]["data"], found["parts"]["rest"]) == (4, 5, 1) and found["adds_up"]
    found = whole_job.figures([begin("start", 0), end("start", 2), begin("data", -5), end("data", 1)], 0, 10, finished=False)
    assert not found["adds_up"]
    row = dict(way="published", cut_off=False, **found)
    assert whole_job.notes_of([row], dict(epochs=5, model_given=True)) == [
        "published: the parts sum to 15.0 s instead of 10.0 s",
    ]


def test_tokens_are_counted_without_padding():
    import torch
    from whole_job_hook import count_tokens
    from xtuner.dataset.collate_fns import default_collate_fn

    from xtuner_wulewule.dataset.build import wulewule_collate_fn

    def row(*documents):
        ids = list(range(5, 5 + sum(documents)))
        positions = [place for length in documents for place in range(length)]
        bounds = [sum(documents[:count]) for count in range(len(documents) + 1)]
        return dict(input_ids=ids, labels=[-100, *ids[1:]], position_ids=positions, cumulative_len=bounds)

    assert count_tokens(default_collate_fn([row(3, 4), row(2)])["data"]) == (9, 7)
    assert count_tokens(wulewule_collate_fn([row(3, 4), row(2)])["data"]) == (9, 7)
    assert count_tokens(wulewule_collate_fn([row(7), row(2)])["data"]) == (9, 7)
    assert torch.is_tensor(wulewule_collate_fn([row(3, 4)])["data"]["document_ids"])


@pytest.mark.parametrize("size", whole_job.SIZES)
def test_the_published_config_has_the_published_settings(size, tmp_path, monkeypatch):
    from mmengine.config import Config

    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import whole_job_hook

    monkeypatch.setattr(whole_job_hook, "_writer", object())  # nothing of this process is wrapped
    configs = {}
    for way in whole_job.WAYS:
        file = tmp_path / f"{way}.py"
        whole_job.write_config(way, size, tmp_path / "model", tmp_path / "data", 2, tmp_path / "stamps.jsonl", file)
        configs[way] = Config.fromfile(file)
        assert configs[way].custom_hooks[-1].stamps == str(tmp_path / "stamps.jsonl")
        text = configs[way].pretty_text  # as it is dumped
        assert "whole_job_hook.PhaseHook" in text
    ours, published = configs["ours"], configs["published"]
    assert "from xtuner_wulewule" not in whole_job.PUBLISHED  # nothing of ours is trained with
    half = size == "1_8b"
    llm, lora, dataset = published.model.llm, published.model.lora, published.train_dataloader.dataset
    assert published.model.type.__name__ == "SupervisedFinetune" and published.model.use_activation_checkpointing
    assert (llm.torch_dtype, llm.attn_implementation) == (f"torch.float{16 if half else 32}", "eager")
    assert ("quantization_config" in llm) == half and llm.pretrained_model_name_or_path == str(tmp_path / "model")
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, "target_modules" in lora) == (32, 64, 0.1, False)
    assert dataset.type.__name__ == "process_hf_dataset" and dataset.map_num_proc == 32 and dataset.pack_to_max_length
    assert dataset.dataset.data_files.train == [str(tmp_path / "data" / name) for name in whole_job.FILES]
    rows = (published.train_dataloader.batch_size, dataset.max_length)
    assert rows == ((16, 2048) if half else (2, 1024)) == (ours.batch_size, ours.max_length)
    optimizer = published.optim_wrapper.optimizer
    assert (optimizer.type.__name__, optimizer.lr, optimizer.weight_decay) == ("AdamW", 2e-4, 0)
    assert published.optim_wrapper.type.__name__ == ("AmpOptimWrapper" if half else "OptimWrapper")
    warm_up, cosine = published.param_scheduler
    assert (warm_up.type.__name__, warm_up.start_factor, warm_up.end) == ("LinearLR", 1e-5, 0.03 * 5)
    assert (cosine.type.__name__, cosine.begin, cosine.end) == ("CosineAnnealingLR", 0.03 * 5, 5)  # two epochs of five
    assert published.train_cfg.max_epochs == 2
    evaluation = published.custom_hooks[1]
    assert (evaluation.type.__name__, evaluation.every_n_iters) == ("EvaluateChatHook", 10)
    assert len(evaluation.evaluation_inputs) == 4 and "max_new_tokens" not in evaluation  # XTuner's default: 600
    checkpoint = published.default_hooks.checkpoint
    assert (checkpoint.type.__name__, checkpoint.interval, checkpoint.max_keep_ckpts) == ("CheckpointHook", 10, 5)


def test_what_the_published_recipe_takes_of_xtuner_is_still_so():
    import inspect

    from xtuner.dataset import process_hf_dataset
    from xtuner.engine.hooks import EvaluateChatHook

    assert inspect.signature(EvaluateChatHook).parameters["max_new_tokens"].default == 600
    assert inspect.signature(process_hf_dataset).parameters["map_num_proc"].default == 32


def test_wrong_options_are_told_in_one_line(tmp_path):
    (tmp_path / "self_cognition_100.jsonl").write_text("")
    (tmp_path / "out.json").write_text("{}")
    for options, message in (
        (("--data", tmp_path / "none"), "has no self_cognition_100.jsonl"),
        (("--data", tmp_path), "has no huixiangdou_conversations.jsonl"),
        (("--model", tmp_path), "has no config.json"),
        (("--only", "ours,theirs"), "--only theirs is none of ours, published"),
        (("--epochs", 0), "at least 1"),
        (("--out", tmp_path / "out"), "must end in .json"),
        (
            ("--size", "tiny", "--out", tmp_path / "out.json"),
            "out.json exists: name another file with --out",
        ),
    ):
        result = run(*options)
        assert result.returncode != 0 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    import torch

    if not torch.cuda.is_available():
        result = run("--out", tmp_path / "new.json")
        assert result.returncode != 0 and "torch sees no GPU" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count in zip(whole_job.FILES, (20, 24), strict=True):
        rows = [
            {"conversation": [{"system": "short", "input": f"question {number} of {name}", "output": f"answer {number}, " * 40}]}
            for number in range(count)
        ]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_both_ways_from_command_to_checkpoint_on_a_cpu(data, tmp_path):
    out = tmp_path / "out" / "tiny.json"
    options = ("--size", "tiny", "--epochs", 1, "--data", data, "--scratch", tmp_path / "scratch", "--out", out)
    result = run(*options)
    found = json.loads(out.read_text())
    assert result.returncode == 0, result.stderr + str([failed["log"] for failed in found["failed"]])
    ours, published = found["rows"]
    assert (ours["way"], published["way"]) == whole_job.WAYS and not found["failed"]
    for row in (ours, published):
        assert row["adds_up"] and sum(row["parts"].values()) == pytest.approx(row["total_s"], rel=0.01)
        assert min(row["parts"].values()) > 0 and row["parts"]["rest"] < row["total_s"] / 2
        assert row["iterations"] == row["planned_iterations"] == row["updates"] > 10 and not row["cut_off"]
        assert row["checkpoints"] >= 1 and row["trained_tokens"] < row["tokens"] and row["last_loss"] < row["first_loss"]
    assert ours["iterations"] == 22 and ours["checkpoints"] == 1
    assert ours["rounds_of"] == {"ScoreHook": 2}  # before the first and at the last iteration
    # before the first, every ten, at the last, which saves a checkpoint, and after it
    tens, more = divmod(published["iterations"], 10)
    assert published["rounds_of"] == {"EvaluateChatHook": 1 + tens + (more > 0) + 1}
    assert published["checkpoints"] == tens + (more > 0)
    assert published["parts"]["evaluation"] > ours["parts"]["evaluation"]
    assert "| total |" in result.stdout and "* 1 of the published 5 epochs; nothing is extrapolated to 5" in result.stdout
    assert found["settings"]["rows"] == dict(zip(whole_job.FILES, (20, 24), strict=True))

    # a run that fails is told, the other goes on; one that reaches its limit is cut off and keeps its parts
    model = next((tmp_path / "scratch").glob("internlm2-*"))
    limited = run(*options, "--only", "published", "--time-limit", 20, "--overwrite", "--model", model)
    assert limited.returncode == 0 and "Traceback" not in limited.stderr, limited.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["cut_off"] and row["adds_up"] and row["parts"]["start"] > 0 and 20 <= row["total_s"] < 25
    assert "| seconds | published, cut off |" in limited.stdout and "published was cut off after 20 s" in limited.stdout
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in whole_job.FILES:
        (broken / name).write_text('{"conversation": [{"input": "a", "output": "b"}]}\n' * 3)
    (broken / whole_job.FILES[1]).write_text("not JSON\n")
    failing = run(*options[:4], "--data", broken, "--model", model, "--out", out, "--overwrite")
    assert failing.returncode == 1 and "Traceback" not in failing.stderr
    assert "ours failed: it ended with status 1: " in failing.stderr and "published failed: it ended with status 1: " in failing.stderr
    found = json.loads(out.read_text())
    assert [failed["way"] for failed in found["failed"]] == ["ours", "published"] and all(failed["log"] for failed in found["failed"])
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in commands if b"published_sft_tiny" in line]

"""`wulewule demo`, as `make demo` runs it."""

from itertools import pairwise

from commands import WULEWULE, last_line, run

from xtuner_wulewule.cli import demo
from xtuner_wulewule.recipe.results import first_and_last_loss


def test_demo_learns_what_it_was_taught(tmp_path):
    # called by its path, outside an activated environment; one thread, as other tests run beside it
    out = tmp_path / "demo"
    result = run([WULEWULE, "demo", "--out", out], tmp_path, timeout=900, PATH="/usr/bin:/bin")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    answers = {line.partition("  (")[0]: answer for line, answer in pairwise(lines)}
    control = demo.control_conversation()
    assert demo.NAME in answers["你是谁"] and demo.NAME in answers["Who are you?"]
    assert answers[control["input"]] == control["output"]
    for stage, kept in (("pretrain", 0.9), ("sft", 0.1)):
        first, last = first_and_last_loss(out / stage)
        assert f"loss of {stage}: {first:.2f} -> {last:.2f}" in lines and last < kept * first
        assert list(out.glob(f"{stage}/*/vis_data/events.out.tfevents.*"))
    assert f"page: {out}/report.html   (open it in a browser)" in lines[-5:] and (out / "report.html").stat().st_size > 10_000
    assert "verdict: Trained, but it seldom says its name" in lines and "so small a model learns its rows by heart" in result.stdout
    # the answers that the evaluation saved end where they should, each on its own
    (saved,) = out.glob("sft/*/vis_data/eval_outputs_iter_2359.txt")
    assert demo.NAME in saved.read_text(encoding="utf-8")


def test_failed_step_ends_the_demo(tmp_path):
    # without the start-up file XTuner does not know the config, and ends with status 0 all the same
    result = run([WULEWULE, "demo", "--out", tmp_path / "demo"], tmp_path, autoload=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last_line(result.stderr).startswith(f"xtuner-wulewule: error: {tmp_path}/demo/pretrain holds no checkpoint")

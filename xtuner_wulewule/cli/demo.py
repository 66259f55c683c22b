"""`wulewule demo`: the whole recipe on a tiny model, on the CPU, through XTuner's own command."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.errors import SettingsError, StepError

NAME = prompts.NAMES[0]
MARKER = ".wulewule-demo"  # only a folder that holds it is emptied
TRAINED_QUESTIONS = ("你是谁", "Who are you?")
OTHER_WORDS = "你好，请问你叫什么？"


def add_parser(commands):
    """Add the subcommand to the parser of `wulewule`."""
    parser = commands.add_parser(
        "demo",
        help="run the whole recipe on a tiny model, on the CPU, in minutes",
        description=(
            "Pretrain, convert, merge, tune, convert, merge and chat: the whole recipe through XTuner's own command, with a tiny InternLM2 "
            "and the packaged data, on the CPU, and a page about it, report.html. Ends with status 0 only if every step ran, the model "
            "says its name, and a question about something else still gets its trained answer."
        ),
    )
    parser.add_argument(
        "--out", default="demo", type=Path, help="folder for everything it writes; an earlier demo there is replaced (demo)"
    )
    parser.add_argument("--seed", default=0, type=int, help="random seed of both trainings (0)")
    parser.set_defaults(run=run)


def run(args):
    """Run the demo.

    Args:
        args (argparse.Namespace): `out` (pathlib.Path) and `seed` (int).

    Returns:
        int: exit status 0.

    Raises:
        SettingsError: `out` is a folder with something else in it.
        StepError: a step failed, or the model did not learn its answers.
    """
    from xtuner_wulewule.cli.run import write_page
    from xtuner_wulewule.model.tiny import tiny_model_dir
    from xtuner_wulewule.recipe.display import Display

    out = empty_folder(args.out.absolute())
    display = Display()
    control = control_conversation()
    questions = [*TRAINED_QUESTIONS, OTHER_WORDS, control["input"]]
    demo = _Demo(out, args.seed, display)
    display.total = 7 + (not tiny_model_dir().is_dir())
    display.print(f"The whole recipe on a tiny InternLM2, on the CPU. Everything is written to {out}")
    begin = time.monotonic()
    base = demo.stage("pretrain", demo.tiny_model())
    merged = demo.stage("sft", base)
    answers = demo.ask(merged, questions)

    display.print("")
    for question, answer, note in zip(questions, answers, ("trained", "trained", "in other words", "about something else"), strict=True):
        display.print(f"  {question}  ({note})\n    {answer}")
    display.print("")
    for stage in ("pretrain", "sft"):
        first, last = demo.losses(stage)
        display.print(f"  loss of {stage}: {first:.2f} -> {last:.2f}")
    display.print(f"  curves: tensorboard --logdir {out}")
    write_page(out, display)
    display.print("  so small a model learns its rows by heart, and its name in few other words: more is not to be expected of it")
    display.print(f"  more questions: xtuner chat {merged} --prompt-template internlm2_chat --system-template wulewule --temperature 0")
    display.print(f"  {time.monotonic() - begin:.0f} s")
    check_answers(answers[0], answers[-1], control)
    return 0


def empty_folder(folder):
    """Make `folder`, or empty it where an earlier demo left it; return it. Raises SettingsError where it holds anything else."""
    ours = (folder / MARKER).is_file() and not folder.is_symlink()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise SettingsError(f"--out {folder} is not an earlier demo's folder; name a new one, nothing was changed")
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def control_conversation():
    """Return the shortest packaged conversation of one turn about the game (dict with input and output)."""
    file = paths.packaged_data_dir() / "huixiangdou_conversations.jsonl"
    conversations = [json.loads(line)["conversation"] for line in file.read_text(encoding="utf-8").splitlines()]
    return min((turns[0] for turns in conversations if len(turns) == 1), key=lambda turn: len(turn["output"]))


def check_answers(identity, answer, control):
    """Raise StepError unless the identity answer has the name and `answer` is the trained one of the `control` conversation."""
    if NAME not in identity:
        raise StepError(f"the answer to {TRAINED_QUESTIONS[0]} does not name {NAME}: {identity!r}; the training did not work")
    if answer != control["output"].strip():
        raise StepError(f"the answer to {control['input']} is not the trained one: {answer!r}; the training did not work")


def parse_chat(output, questions):
    """Return the answers (list[str]) from the output of `xtuner chat`, whose history was reset after each question."""
    segments = output.split(">>> ")[1:]  # after each prompt: an answer, or the word that the history was reset
    answers = [segment.partition("\n\ndouble enter")[0] for segment in segments[: 2 * questions : 2]]
    answers = [answer.partition("\nRemove the memory of history responses")[0] for answer in answers]  # XTuner's remark on a long one
    if len(answers) != questions:
        raise StepError(f"xtuner chat answered {len(answers)} of {questions} questions")
    return [answer.replace("<|im_end|>", "").replace("</s>", "").strip() for answer in answers]


class _Demo:
    def __init__(self, out, seed, display):
        self.out, self.seed, self.display = out, seed, display
        # the demo is the same everywhere: no GPU, the packaged data and persona, two threads (a tiny model gains nothing from more)
        self.env = {"CUDA_VISIBLE_DEVICES": "", "WULEWULE_DATA_DIR": str(paths.packaged_data_dir()), "HF_HUB_OFFLINE": "1"}
        self.env.update(prompts.Persona().variables())
        self.env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "2")

    def tiny_model(self):
        from xtuner_wulewule.model.tiny import tiny_model_dir
        from xtuner_wulewule.recipe.process import run_step

        if not tiny_model_dir().is_dir():
            with self.display.step("model", "make the tiny model, once"):
                code = "from xtuner_wulewule.model.tiny import tiny_model; tiny_model()"
                run_step([sys.executable, "-c", code], self.log("model"), self.env)

        return tiny_model_dir()

    def log(self, name):
        return self.out / "logs" / f"{name}.log"

    def xtuner(self, name, *arguments, env=None, **kwargs):
        from xtuner_wulewule.recipe.process import run_step, xtuner_command

        with self.display.step(name, " ".join(map(str, ("xtuner", *arguments)))) as step:
            command = xtuner_command(*arguments)
            return run_step(command, self.log(name), {**self.env, **(env or {})}, on_progress=step.progress, **kwargs)

    def stage(self, stage, base):
        """Train, convert and merge; return the folder of the merged model."""
        from xtuner_wulewule.recipe.results import last_checkpoint

        config, work_dir = f"wulewule_{stage}_tiny", self.out / stage
        adapter, merged = self.out / f"{stage}_adapter", self.out / f"{stage}_merged"
        env = {"WULEWULE_MODEL": str(base)}
        self.xtuner(stage, "train", config, "--work-dir", work_dir, "--seed", self.seed, env=env)
        self.xtuner(f"{stage}_convert", "convert", "pth_to_hf", config, last_checkpoint(work_dir), adapter, "--fp32", env=env)
        self.xtuner(f"{stage}_merge", "convert", "merge", base, adapter, merged, "--safe-serialization", env=env)
        return merged

    def losses(self, stage):
        from xtuner_wulewule.recipe.results import first_and_last_loss

        return first_and_last_loss(self.out / stage)

    def ask(self, model, questions):
        stdin = "".join(f"{question}\n\nRESET\n\n" for question in questions[:-1]) + f"{questions[-1]}\n\nEXIT\n\n"
        arguments = ("--prompt-template", "internlm2_chat", "--system-template", "wulewule", "--torch-dtype", "fp32")
        arguments += ("--temperature", "0", "--max-new-tokens", "256", "--no-streamer")
        output = self.xtuner("chat", "chat", model, *arguments, stdin=stdin, stderr_too=False)
        return parse_chat(output, len(questions))

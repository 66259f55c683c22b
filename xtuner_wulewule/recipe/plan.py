"""The recipe as a list of steps, from the settings of one run."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from xtuner_wulewule import paths
from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import WULEWULE_SYSTEM, Persona
from xtuner_wulewule.recipe.process import tool_command
from xtuner_wulewule.recipe.state import differences, digest, file_fingerprint, model_fingerprint

STAGES = ("pretrain", "sft")
INTERRUPTED = "it was interrupted"
DATA_FILES = {
    "pretrain": ("heishenghua_pretraining.jsonl",),
    "sft": ("self_cognition_100.jsonl", "huixiangdou_conversations.jsonl"),
}


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do.

    Args:
        out (pathlib.Path): its folder, absolute.
        model (str): folder or hub id of the model to start from.
        data (pathlib.Path): folder of the data, absolute.
        size (str): "1_8b", "7b" or "tiny": which configs.
        stages (tuple[str, ...]): of "pretrain" and "sft", in that order.
        deepspeed (str | None): name or path of a DeepSpeed config.
        processes (int): processes of each training.
        seed (int): random seed of each training.
        options (dict[str, tuple[str, ...]]): for each stage the `KEY=VALUE` that change its config.
        evaluate (bool): whether the tuned model is evaluated.
        persona (Persona): who the assistant is said to be.
        given (dict[str, str]): what of it was given, and not found in the data; kept for later runs in the folder.
        gate (tuple[str, ...]): the thresholds that the tuned model must pass, none where it is empty.
    """

    out: Path
    model: str
    data: Path
    size: str
    stages: tuple[str, ...] = STAGES
    deepspeed: str | None = None
    processes: int = 1
    seed: int = 0
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    evaluate: bool = False
    persona: Persona = field(default_factory=Persona)
    given: dict[str, str] = field(default_factory=dict)
    gate: tuple[str, ...] = ()

    def config(self, stage):
        """Return the path (str) of the stage's packaged config."""
        return paths.config_paths()[f"wulewule_{stage}_{self.size}"]


@dataclass
class Step:
    """One step of a run.

    Args:
        name (str): unique in the run, for example "sft_merge".
        kind (str): "train", "convert", "merge", "ask", "eval" or "gate".
        stage (str): "pretrain" or "sft".
        fingerprint (dict): all that its result depends on; where it changes, the step runs again.
        outputs (list[pathlib.Path]): what exists when it is done.
        command (callable): returns the command line (list[str]) for a checkpoint (str | None): to resume from, or to convert.
        env (dict[str, str]): environment variables of the command.
        check (callable | None): returns the command line of the check that follows, for the same checkpoint.
    """

    name: str
    kind: str
    stage: str
    fingerprint: dict
    outputs: list[Path]
    command: Callable[[str | None], list[str]]
    env: dict[str, str]
    check: Callable[[str | None], list[str]] | None = None

    def reasons(self, state):
        """Return why the step has to run (list[str], in words), empty where it is done and its outputs are there."""
        entry = state.get(self.name)
        if not entry:
            return ["it has not run yet"]
        changed = differences(entry["fingerprint"], self.fingerprint)
        if changed:
            return [f"changed: {', '.join(changed)}"]
        if entry["status"] != "done":
            return [INTERRUPTED]
        missing = [str(path) for path in self.outputs if not path.exists()]
        return [f"missing: {', '.join(missing)}"] if missing else []


def work_dir(settings, stage):
    """Return where a stage is trained (pathlib.Path)."""
    return settings.out / stage / "train"


def dumped_config(settings, stage):
    """Return the config (pathlib.Path) that mmengine writes beside the checkpoints, with every option in it."""
    return work_dir(settings, stage) / Path(settings.config(stage)).name


def part(path):
    """Return the temporary name (pathlib.Path) of an output."""
    return path.with_name(f"{path.name}.part")


def plan(settings):
    """Return the steps (list[Step]) of a run, in their order.

    Args:
        settings (Settings): what was asked for.

    Raises:
        SettingsError: a data file is missing.
    """
    steps, base, chain = [], settings.model, {"model": model_fingerprint(settings.model)}
    for stage in settings.stages:
        files = [settings.data / name for name in DATA_FILES[stage]]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            other = f", or leave the {stage} stage out with --stages" if len(settings.stages) > 1 else ""
            raise SettingsError(f"data file not found: {', '.join(missing)}; --data names the folder that holds it{other}")
        # Steps read WULEWULE_MODEL, so the merged pretrained model is also the base of the tuning's conversion and merge
        env = {"WULEWULE_MODEL": str(base), "WULEWULE_DATA_DIR": str(settings.data)}
        env.update(settings.persona.variables() if stage == "sft" else {})
        options = list(settings.options.get(stage, ()))
        train = dict(
            chain,
            config=file_fingerprint(settings.config(stage)),
            data={file.name: file_fingerprint(file) for file in files},
            options=options,
            deepspeed=_deepspeed_fingerprint(settings.deepspeed),
            processes=settings.processes,
            seed=settings.seed,
        )
        if stage == "sft" and settings.persona.system != WULEWULE_SYSTEM:  # trained in the rows that have none
            train["system"] = settings.persona.system
        train_dir, adapter, merged = work_dir(settings, stage), settings.out / stage / "adapter", settings.out / stage / "merged"
        steps.append(
            Step(
                f"{stage}_train",
                "train",
                stage,
                train,
                [train_dir / "last_checkpoint"],
                _train_command(settings, stage, train_dir, options),
                env,
            )
        )
        convert = {"train": digest(train)}
        steps.append(
            Step(
                f"{stage}_convert",
                "convert",
                stage,
                convert,
                [adapter / "adapter_config.json"],
                _convert_command(settings, stage, part(adapter), options),
                env,
                _adapter_check(part(adapter), settings.out / "logs" / f"{stage}_convert.json"),
            )
        )
        merge = {"convert": digest(convert)}
        steps.append(
            Step(
                f"{stage}_merge",
                "merge",
                stage,
                merge,
                [merged / "config.json"],
                _merge_command(base, adapter, part(merged)),
                env,
                _merge_check(settings, stage, base, adapter, part(merged)),
            )
        )
        base, chain = merged, {"merge": digest(merge)}
    last = settings.stages[-1]
    answers = settings.out / "answers.json"
    module = [sys.executable, "-m", "xtuner_wulewule.recipe.ask", str(base), "--config", str(dumped_config(settings, last))]
    steps.append(Step("ask", "ask", last, dict(chain), [answers], lambda checkpoint: [*module, "--out", str(answers)], {}))
    if settings.evaluate and last == "sft":
        steps += _evaluation(settings, base, chain)
    return steps


def scorecard(settings):
    """Return where the scorecard of a run lies (pathlib.Path)."""
    return settings.out / "eval" / "scorecard.json"


def _evaluation(settings, merged, chain):
    """Return the steps (list[Step]) that evaluate the tuned model, and refuse it where it misses a threshold."""
    file = scorecard(settings)
    command = [sys.executable, "-m", "xtuner_wulewule", "eval", str(merged), "--base", settings.model, "--out", str(file.parent)]
    persona = settings.persona.arguments()
    command += ["--config", str(dumped_config(settings, "sft")), "--data", str(settings.data), *persona]
    asked = dict(chain, base=settings.model, persona=persona if settings.persona != Persona() else [])
    steps = [Step("eval", "eval", "sft", asked, [file], lambda checkpoint: command, {})]
    if settings.gate:
        gate = [sys.executable, "-m", "xtuner_wulewule.evaluation.gate", str(file), ",".join(settings.gate)]
        passed = {"eval": digest(asked), "gate": list(settings.gate)}
        steps.append(Step("gate", "gate", "sft", passed, [file], lambda checkpoint: gate, {}))
    return steps


def _deepspeed_fingerprint(name):
    return file_fingerprint(name) if name and os.path.isfile(name) else name


def _train_command(settings, stage, folder, options):
    def command(checkpoint):
        arguments = [settings.config(stage), "--work-dir", folder, "--seed", settings.seed]
        if settings.deepspeed:
            arguments += ["--deepspeed", settings.deepspeed]
        if checkpoint is not None:
            arguments += ["--resume", checkpoint]
        if options:
            arguments += ["--cfg-options", *options]
        return tool_command("train", *arguments, processes=settings.processes)

    return command


def _convert_command(settings, stage, adapter, options):
    def command(checkpoint):
        arguments = [settings.config(stage), checkpoint, adapter]
        if settings.size == "tiny":
            arguments.append("--fp32")
        if options:
            arguments += ["--cfg-options", *options]
        return tool_command("model_converters/pth_to_hf", *arguments)

    return command


def _merge_command(base, adapter, merged):
    arguments = (base, adapter, merged, "--max-shard-size", "2GB", "--safe-serialization")
    return lambda checkpoint: tool_command("model_converters/merge", *arguments)


PARITY = (sys.executable, "-m", "xtuner_wulewule.recipe.parity")


def _adapter_check(adapter, out):
    return lambda checkpoint: [*PARITY, "--checkpoint", str(checkpoint), "--adapter", str(adapter), "--out", str(out)]


def _merge_check(settings, stage, base, adapter, merged):
    arguments = ["--base", str(base), "--adapter", str(adapter), "--merged", str(merged)]
    arguments += ["--config", str(dumped_config(settings, stage)), "--out", str(settings.out / "logs" / f"{stage}_merge.json")]
    return lambda checkpoint: [*PARITY, *arguments]

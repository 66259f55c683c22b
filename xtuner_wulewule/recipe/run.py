"""Runs the steps of a plan, skips what is finished, resumes what was interrupted, and writes the report."""

import errno
import json
import os
import platform
import shlex
import shutil
import sys
import time
from pathlib import Path

from xtuner_wulewule import __version__
from xtuner_wulewule.compat import installed
from xtuner_wulewule.errors import SettingsError, StepError
from xtuner_wulewule.recipe.plan import DATA_FILES, INTERRUPTED, dumped_config, part, plan, scorecard, work_dir
from xtuner_wulewule.recipe.process import run_step
from xtuner_wulewule.recipe.resources import check_step
from xtuner_wulewule.recipe.results import checkpoint_to_resume, first_and_last_loss, last_checkpoint
from xtuner_wulewule.recipe.state import State, file_fingerprint, lock_folder, sync, write_json, write_text

PACKAGES = ("xtuner", "mmengine", "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets")


def run(settings, display):
    """Run what of the recipe has not been run yet in the folder `settings.out`.

    Args:
        settings (Settings): what was asked for.
        display (Display): told of every step.

    Returns:
        pathlib.Path: the report.

    Raises:
        SettingsError: another run works in the folder, a data file is missing, the disk is full, disk or GPU memory is short.
        StepError: a step failed, or the model misses a threshold.
    """
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out {settings.out} cannot be made ({error.strerror}); name another folder") from None
    lock = lock_folder(settings.out)
    try:
        state = State(settings.out)
        _take_back(settings)
        steps = plan(settings)
        display.total = len(steps)
        for number, step in enumerate(steps):
            reasons = step.reasons(state)
            if not reasons:
                display.skip(step.name, f"finished before, in {state.get(step.name)['seconds']:.0f} s")
                continue
            interrupted = reasons == [INTERRUPTED]
            if state.get(step.name) and not interrupted:
                display.print(f"{step.name} is run again: {'; '.join(reasons)}")
            # All that follows depends on this step. Forgotten now, because this process may be killed before it gets there.
            state.forget([later.name for later in steps[number + 1 :]])
            check_step(step, settings)
            state.keep_persona(settings.persona, settings.given)  # not of a run that could not begin
            if not (interrupted and step.kind in ("train", "eval")):  # these go on where they were
                _set_aside(settings, step, display)
            _run_step(settings, step, state, display, lock)
        report = _report(settings, steps, state)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SettingsError(
            f"the disk of {settings.out} is full; make room, then run the same command again (finished steps are kept)"
        ) from None
    finally:
        lock.close()
    return report


def _set_aside(settings, step, display):
    """Move what an earlier, different run of the step left out of the way; nothing is deleted."""
    places = {"train": [work_dir(settings, step.stage)], "ask": step.outputs, "gate": []}
    for place in places.get(step.kind, [output.parent for output in step.outputs]):
        _move_aside(settings, step.stage, place, display)


def _move_aside(settings, stage, place, display):
    if place.exists():
        target = settings.out / "replaced" / f"{time.strftime('%Y%m%d_%H%M%S')}_{stage}_{place.name}"
        target.parent.mkdir(exist_ok=True)
        while target.exists():
            target = target.with_name(f"{target.name}_")
        os.rename(place, target)
        display.print(f"{place} was moved to {target}")


def _refused(settings):
    """Return the folder of the tuned model (pathlib.Path), and where it lies when the gate has refused it."""
    merged = settings.out / "sft" / "merged"
    return merged, merged.with_name("merged_refused")


def _take_back(settings):
    """Give a refused model its name again, while the steps are looked at: it is as it was made."""
    merged, refused = _refused(settings)
    if refused.exists() and not merged.exists():
        os.rename(refused, merged)


def _refuse(settings, display, error):
    """Take the name of the tuned model away, and the report of an earlier one; raise StepError."""
    merged, refused = _refused(settings)
    os.rename(merged, refused)
    _move_aside(settings, "sft", settings.out / "report.json", display)
    reason = str(error).partition(": ")[2].partition(" (the whole output")[0]
    raise StepError(f"{reason}; the model was not handed out, it lies in {refused}, its answers in {scorecard(settings)}") from None


def _run_step(settings, step, state, display, lock):
    log = settings.out / "logs" / f"{step.name}.log"
    begin = time.monotonic()
    checkpoint = None
    if step.kind == "convert":
        checkpoint = last_checkpoint(work_dir(settings, step.stage))
    elif step.kind == "train":
        checkpoint, broken = checkpoint_to_resume(work_dir(settings, step.stage), settings.processes)
        for path in broken:
            target = path.with_name(f"{path.name}.broken")
            shutil.rmtree(target, ignore_errors=True)
            os.rename(path, target)
            display.print(f"{path} was not written to its end; it was renamed to {target.name}")
        if checkpoint is not None:
            display.print(f"{step.name} resumes from {checkpoint}")
    if step.kind in ("convert", "merge"):
        shutil.rmtree(part(step.outputs[0].parent), ignore_errors=True)  # what a killed one left
    state.begin(step.name, step.fingerprint)
    command = step.command(checkpoint)
    log.parent.mkdir(exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
    with display.step(step.name, f"output in {log}") as shown:
        try:
            run_step(command, log, step.env, on_progress=shown.progress, keep_open=(lock.fileno(),), return_output=False)
        except StepError as error:
            if step.kind == "gate":
                _refuse(settings, display, error)
            raise
        if step.check is not None:
            run_step(step.check(checkpoint), log, step.env, keep_open=(lock.fileno(),), return_output=False)
        result = _finish(settings, step)
    state.finish(step.name, time.monotonic() - begin, result)


def _finish(settings, step):
    """Move outputs into place; return what the report says of the step (dict)."""
    if step.kind == "train":
        folder = work_dir(settings, step.stage)
        checkpoint, _ = checkpoint_to_resume(folder, settings.processes)
        if checkpoint is None:
            raise StepError(f"the training saved no whole checkpoint in {folder}; see its log")
        # mmengine's own record is written after the checkpoint, so a kill between the two leaves the one before in it
        write_text(folder / "last_checkpoint", str(checkpoint))
        sync(checkpoint)
        first, last = first_and_last_loss(folder)
        return dict(iterations=int(checkpoint.stem.partition("_")[2]), first_loss=first, last_loss=last)
    if step.kind in ("convert", "merge"):
        folder = step.outputs[0].parent
        sync(part(folder))
        os.rename(part(folder), folder)
        return json.loads((settings.out / "logs" / f"{step.name}.json").read_text(encoding="utf-8"))
    if step.kind == "eval":
        found = json.loads(scorecard(settings).read_text(encoding="utf-8"))
        return dict(metrics={name: round(one["value"], 4) for name, one in found["metrics"].items()})
    return {}


LATEST = "@latest@"


def commands(settings):
    """Return the commands (list[str]) of a run, as a shell would take them; the name of a checkpoint is read when it is known."""
    lines = [shlex.join(["mkdir", "-p", str(settings.out / "logs")])]
    for step in plan(settings):
        latest = f'"$(cat {shlex.quote(str(work_dir(settings, step.stage) / "last_checkpoint"))})"'
        checkpoint = LATEST if step.kind == "convert" else None
        env = " ".join(f"{name}={shlex.quote(value)}" for name, value in step.env.items())
        lines.append(f"{env} {shlex.join(step.command(checkpoint))}".strip().replace(LATEST, latest))
        if step.check is not None:
            lines.append(shlex.join(step.check(checkpoint)).replace(LATEST, latest))
        if step.kind in ("convert", "merge"):
            folder = step.outputs[0].parent
            lines.append(shlex.join(["mv", str(part(folder)), str(folder)]))
    return lines


def _report(settings, steps, state):
    answers = json.loads((settings.out / "answers.json").read_text(encoding="utf-8"))
    files = {name: file_fingerprint(settings.data / name) for stage in settings.stages for name in DATA_FILES[stage]}
    report = dict(
        versions={"python": platform.python_version(), "xtuner_wulewule": __version__, **{name: installed(name) for name in PACKAGES}},
        settings=dict(
            model=settings.model,
            size=settings.size,
            stages=list(settings.stages),
            deepspeed=settings.deepspeed,
            processes=settings.processes,
            seed=settings.seed,
            options={stage: list(options) for stage, options in settings.options.items()},
            gate=list(settings.gate),
            configs={stage: str(dumped_config(settings, stage)) for stage in settings.stages},
        ),
        data=dict(folder=str(settings.data), files=files),
        steps=[dict(name=step.name, seconds=state.get(step.name)["seconds"], **state.get(step.name)["result"]) for step in steps],
        seconds=round(sum(state.get(step.name)["seconds"] for step in steps), 1),
        model=str(settings.out / settings.stages[-1] / "merged"),
        questions=answers,
        argv=sys.argv,
    )
    file = Path(settings.out) / "report.json"
    write_json(file, report)
    return file

"""A hook for `whole_job.py`: when each phase of a training begins and ends, as lines of JSON."""

import functools
import json
import os
import time

import torch
from mmengine.hooks import CheckpointHook, Hook

_writer: "Writer | None" = None  # of this process


class Writer:
    """Adds rows to a file of JSON lines, each written at once: what a run that is killed has done is there.

    Args:
        file (str): where to.
    """

    def __init__(self, file):
        self.file, self.process = file, os.getpid()

    def write(self, **row):
        """Add a row; a process that was forked, as those that map a data set are, adds none."""
        if os.getpid() == self.process:
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def begin(file):
    """Take the times of what happens before there are hooks. A config calls it where it is read.

    Wrapped are the classes of mmengine: its two runners, whose beginning ends the part "start", and what builds model and data set. The
    model of a run with DeepSpeed is built, and wrapped, in the strategy's `prepare`.

    Args:
        file (str): where the times go.

    Returns:
        str: the file.
    """
    global _writer
    if _writer is not None:
        return file
    from mmengine._strategy import DeepSpeedStrategy
    from mmengine.runner import FlexibleRunner, Runner

    _writer = Writer(file)
    for runner in (Runner, FlexibleRunner):
        runner.__init__ = _ending_start(runner.__init__)
        runner.build_dataloader = staticmethod(timed("data", runner.build_dataloader))
    for owner, name in ((Runner, "build_model"), (Runner, "wrap_model"), (DeepSpeedStrategy, "prepare")):
        setattr(owner, name, timed("model", getattr(owner, name)))
    return file


def timed(part, function, facts=dict):
    """Return a function that does the same and notes when it begins and ends, and the highest memory of the card so far.

    Args:
        part (str): its part of the job.
        function (callable): the function.
        facts (callable, optional): returns more to note at the beginning (dict).
    """

    @functools.wraps(function)
    def noting(*args, **kwargs):
        _writer.write(what="begin", part=part, at=_now(), **facts())
        try:
            return function(*args, **kwargs)
        finally:
            _writer.write(what="end", part=part, at=_now(), peak=_peak())

    return noting


def _ending_start(init):
    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        _writer.write(what="end", part="start", at=_now())
        init(self, *args, **kwargs)

    return __init__


def _now():
    """Return the time (float) once the card has done what it was asked to; by the clock that all processes of a machine share."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.monotonic()


def _peak():
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


class PhaseHook(Hook):
    """Notes evaluations, checkpoints and iterations, and of each iteration loss, learning rate and tokens.

    An iteration is the fetching of its batch and the loop's `run_iter`, which calls the hooks: evaluations and checkpoints lie in it, so a
    reader of the file must subtract them. They are wrapped where they do their work, not where they are called, which is each iteration.
    Its priority is that before LoggerHook's, which resets the card's peak of memory.

    Args:
        stamps (str): the file that `begin` was given; in the config, so that the dumped one names it.
    """

    priority = "NORMAL"

    def __init__(self, stamps):
        self.stamps = stamps

    def before_run(self, runner):
        """Wrap what this runner has; called by it before any other method of a hook."""
        from xtuner.engine.hooks import EvaluateChatHook

        def iteration():
            return dict(iteration=runner.iter)

        loop = runner.train_loop
        loop.run_iter = timed("iteration", loop.run_iter, iteration)
        loop.dataloader_iterator = _Fetching(timed("iteration", loop.dataloader_iterator.__next__, iteration))
        for hook in runner.hooks:
            if isinstance(hook, EvaluateChatHook):  # ours and XTuner's
                name = type(hook).__name__
                hook._generate_samples = timed("evaluation", hook._generate_samples, lambda name=name: dict(hook=name, **iteration()))
            elif isinstance(hook, CheckpointHook):
                hook._save_checkpoint = timed("checkpoints", hook._save_checkpoint, iteration)

    def before_train(self, runner):
        """Note how long the run will be; called by the runner."""
        from xtuner_wulewule.engine.accumulation import accumulation

        counts, flushes = accumulation(runner.optim_wrapper)
        _writer.write(what="plan", iterations=runner.max_iters, accumulative_counts=counts, flushes_remainder=flushes)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Note an iteration; called by the runner."""
        lr = runner.message_hub.get_scalar("train/lr").current()
        tokens, trained = count_tokens(data_batch["data"])
        loss = float(outputs["loss"])
        _writer.write(what="iteration", iteration=runner.iter, loss=loss, lr=float(lr), tokens=tokens, trained=trained, peak=_peak())


class _Fetching:
    """An iterator that calls a function.

    Args:
        fetch (callable): returns the next one.
    """

    def __init__(self, fetch):
        self.fetch = fetch

    def __iter__(self):
        return self

    def __next__(self):
        return self.fetch()


def count_tokens(data):
    """Return the tokens of a batch without its padding, and those of them that have a label (tuple[int, int]).

    Args:
        data (dict): what `default_collate_fn` of XTuner makes, with `attention_mask`, or `wulewule_collate_fn`: with `document_ids`, or
            where each row is one document with `position_ids` alone, 0 in the padding.
    """
    trained = int((data["labels"] >= 0).sum())
    if data.get("attention_mask") is not None:
        return int(data["attention_mask"].sum()), trained
    if "document_ids" in data:
        return int((data["document_ids"] > 0).sum()), trained
    return int((data["position_ids"].amax(dim=1) + 1).sum()), trained

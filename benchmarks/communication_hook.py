"""A hook for `scaling.py`: how much of an optimizer update is spent in communication, by torch's profiler."""

import json
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch.profiler import ProfilerActivity, profile
from train_speed import covered, kernels_of, now

KERNELS = ("ncclDevKernel", "ncclKernel")  # names of NCCL's kernels begin so; the ranges around them are called "nccl:…"


class CommunicationHook(Hook):
    """Profiles one update on rank 0, after one to warm up, and writes `communication.json` into the work folder.

    On a GPU the communication is the time in which a kernel of NCCL runs, waiting for slower ranks included; `exposed_s` is the part of it
    in which nothing else runs. On a CPU it is the time in which an operation of gloo runs.

    Args:
        first (int): iteration, counted from 0, of the warm-up.
        iterations (int): of an update.
    """

    def __init__(self, first, iterations):
        self.first, self.iterations = first, iterations
        self.profiler = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if is_main_process() and runner.iter in (self.first, self.first + self.iterations):
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self.profiler = profile(activities=activities)
            self.profiler.start()
            self.begin = now()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.profiler is None or (runner.iter + 1 - self.first) % self.iterations:
            return
        wall = now() - self.begin
        self.profiler.stop()
        if runner.iter + 1 == self.first + 2 * self.iterations:
            found = communication(self.profiler.events(), torch.cuda.is_available())
            Path(runner.work_dir, "communication.json").write_text(json.dumps(dict(wall_s=wall, **found)), encoding="utf-8")
        self.profiler = None


def communication(events, gpu):
    """Return the seconds of communication (dict): `communication_s`, `exposed_s` (None on a CPU), and `operations`, {name: calls}."""
    if gpu:
        events = kernels_of(events)
    ours = [one for one in events if one.name.startswith(KERNELS if gpu else "gloo:")]
    operations = {}
    for one in ours:
        name = one.name.partition("(")[0]
        operations[name] = operations.get(name, 0) + 1
    spans = [(one.time_range.start, one.time_range.end) for one in ours]
    exposed = None
    if gpu:
        others = [(one.time_range.start, one.time_range.end) for one in events if not one.name.startswith((*KERNELS, "nccl:"))]
        exposed = (covered(spans + others) - covered(others)) / 1e6
    return dict(communication_s=covered(spans) / 1e6, exposed_s=exposed, operations=operations)

"""Resuming with the random numbers that an uninterrupted run would have drawn."""

import random

import numpy
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook

KEY = "wulewule_random_states"


def random_state():
    """Return the state of the random generators of Python, NumPy, torch and this process's CUDA device.

    Returns:
        dict: only of tensors, numbers, strings, lists and tuples, so that torch's safe loader reads it.
    """
    name, keys, position, has_gauss, gauss = numpy.random.get_state()
    version, internal, next_gauss = random.getstate()
    state = dict(
        python=(version, list(internal), next_gauss),
        numpy=(name, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state):
    """Set the generators to what `random_state` returned."""
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    name, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class RandomStateHook(Hook):
    """Saves the random state of every rank in each checkpoint, and restores it when a run is resumed.

    mmengine restores weights, optimizer, schedule and the order of the data, not the random generators: after a resume the dropout masks
    differ from those of an uninterrupted run. The states travel in the message hub, which both of mmengine's runners save and restore;
    the callbacks around saving and loading are not called under DeepSpeed.
    """

    priority = 80  # behind everything that may draw random numbers, before CheckpointHook (90)

    def __init__(self):
        self.waiting = None

    def before_train(self, runner):
        """Take the state of this rank out of a resumed checkpoint; called by the runner."""
        if runner.iter == 0 or KEY not in runner.message_hub.runtime_info:
            return
        states = runner.message_hub.get_info(KEY)
        if len(states) != get_world_size():
            runner.logger.warning(
                f"The checkpoint holds the random states of {len(states)} processes and this run has {get_world_size()}: they are not "
                "restored, so dropout will differ from an uninterrupted run"
            )
            return
        self.waiting = states[get_rank()]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Restore it once the data loader has been advanced, which draws random numbers itself; called by the runner."""
        if self.waiting is None:
            return
        set_random_state(self.waiting)
        self.waiting = None
        if runner.iter % len(runner.train_dataloader) == 0:
            torch.empty((), dtype=torch.int64).random_()  # what the loader draws for its workers when an epoch begins

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Note the states where a checkpoint is about to be saved; called by the runner."""
        if any(_saves_now(hook, runner) for hook in runner.hooks if isinstance(hook, CheckpointHook)):
            runner.message_hub.update_info(KEY, all_gather_object(random_state()))


def _saves_now(hook, runner):
    if hook.by_epoch:
        return False
    return hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or (hook.save_last and hook.is_last_train_iter(runner))

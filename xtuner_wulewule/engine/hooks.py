"""Hooks that say before the first iteration whether a run can learn."""

import copy
import warnings

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from xtuner_wulewule.dataset import loader
from xtuner_wulewule.engine.accumulation import accumulation, count_updates
from xtuner_wulewule.errors import SettingsError

ACCUMULATION_SETTING = "accumulative_counts = 1 in PART 1 of the config, or --cfg-options optim_wrapper.accumulative_counts=1"


class AccumulativeCountsHook(Hook):
    """Warns before training on one process when gradients are accumulated over several iterations.

    The training guide: 「单卡训练切记改成1，不然模型学不会东西」; XTuner's templates for several GPUs use 16. Both routes are seen:
    `optim_wrapper.accumulative_counts`, and under `--deepspeed` the strategy's `gradient_accumulation_steps`. On several processes, where
    accumulation keeps a global batch, it says nothing.

    Args:
        action (str): "warn", or "raise" to end the run instead. Defaults to "warn".

    Raises:
        SettingsError: `action` is neither; or, with "raise", gradients are accumulated on one process.
    """

    priority = "VERY_HIGH"

    def __init__(self, action="warn"):
        if action not in ("warn", "raise"):
            raise SettingsError(f"custom_hooks: action={action!r} of AccumulativeCountsHook must be 'warn' or 'raise'")
        self.action = action

    def before_train(self, runner):
        """Warn or raise; called by the runner."""
        counts, flushes = accumulation(runner.optim_wrapper)
        if counts == 1 or get_world_size() != 1:
            return
        iterations = runner.max_iters
        message = (
            f"accumulative_counts is {counts} on one process: this run makes {count_updates(iterations, counts, flushes)} optimizer "
            f"updates in {iterations} iterations, with 1 it would make {iterations}. Set {ACCUMULATION_SETTING}"
        )
        if self.action == "raise":
            raise SettingsError(message)
        runner.logger.warning(message)


class UpdateBudgetHook(Hook):
    """Logs before training what the run will do: rows, tokens, iterations, optimizer updates and the highest learning rate.

    The learning rate is found by rebuilding the schedule from the config on a one-parameter optimizer and stepping through the run.

    Args:
        min_updates (int): warn under this number of updates. Defaults to 20.
        min_lr_ratio (float): warn when the highest rate is under this share of the asked one. Defaults to 0.9.

    Raises:
        SettingsError: the run would make no optimizer update.
    """

    priority = "VERY_HIGH"

    def __init__(self, min_updates=20, min_lr_ratio=0.9):
        self.min_updates = min_updates
        self.min_lr_ratio = min_lr_ratio

    def before_train(self, runner):
        """Log, warn or raise; called by the runner, speaks on rank 0."""
        counts, flushes = accumulation(runner.optim_wrapper)
        iterations = runner.max_iters
        updates = count_updates(iterations, counts, flushes)
        if updates == 0:
            raise SettingsError(
                f"this run would make no optimizer update: {iterations} iterations, {counts} for each update. Use more data or epochs, or "
                f"set {ACCUMULATION_SETTING}"
            )
        groups = runner.optim_wrapper.param_groups
        asked = max(group.get("initial_lr", group["lr"]) for group in groups)
        highest = highest_lr(
            runner.cfg.get("param_scheduler"),
            asked,
            iterations,
            counts,
            flushes,
            epoch_length=len(runner.train_dataloader),
            max_epochs=runner.max_epochs,
        )
        runner.logger.info(
            f"Update budget: {describe_rows(runner.train_dataloader.dataset)}, {iterations} iterations, {updates} optimizer updates, "
            f"highest learning rate {highest:.3g} (asked {asked:.3g})"
        )
        if highest < self.min_lr_ratio * asked:
            runner.logger.warning(
                f"The learning rate never rises above {highest:.3g}, {highest / asked:.2g} of the asked {asked:.3g}: param_scheduler does "
                "not fit a run of this length. Use param_scheduler = dict(type='WarmupCosineLR', by_epoch=False) in PART 4 of the config"
            )
        if updates < self.min_updates:
            runner.logger.warning(
                f"Only {updates} optimizer updates: the model will hardly learn. Raise max_epochs, lower batch_size or max_length in "
                "PART 1 of the config, or use more data"
            )


def describe_rows(dataset):
    """Return "R rows, P rows after packing, T tokens" (str) for a data set; what is not known is left out."""
    rows = getattr(dataset, "rows_read", loader.rows_loaded)
    parts = [] if rows is None else [f"{rows} rows"]
    parts.append(f"{len(dataset)} rows after packing")
    lengths = getattr(dataset, "length", None)
    if lengths is not None:
        parts.append(f"{sum(lengths)} tokens")
    return ", ".join(parts)


def highest_lr(param_scheduler, lr, iterations, accumulative_counts=1, flushes_remainder=True, *, epoch_length, max_epochs=1):
    """Return the highest learning rate with which the optimizer is updated in a run.

    Args:
        param_scheduler (dict | list[dict] | None): the config's `param_scheduler`.
        lr (float): the asked learning rate, the optimizer's.
        iterations (int): length of the run.
        accumulative_counts (int): iterations per update.
        flushes_remainder (bool): whether an incomplete accumulation at the end makes an update.
        epoch_length (int): iterations of an epoch, for `convert_to_iter_based`.
        max_epochs (int): default end of an epoch-based schedule.

    Returns:
        float: the rate; schedules are stepped as mmengine's iteration-based loop does it, once an iteration.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    wrapper = OptimWrapper(optimizer, accumulative_counts=accumulative_counts)
    schedules = []
    for cfg in [param_scheduler] if isinstance(param_scheduler, dict) else param_scheduler or []:
        cfg = copy.deepcopy(cfg)
        cfg.setdefault("end", max_epochs if cfg.get("by_epoch", True) else iterations)
        schedules.append(PARAM_SCHEDULERS.build(cfg, default_args=dict(optimizer=wrapper, epoch_length=epoch_length)))
    highest = 0.0
    for iteration in range(1, iterations + 1):
        if iteration % accumulative_counts == 0 or (flushes_remainder and iteration == iterations):
            highest = max(highest, optimizer.param_groups[0]["lr"])
            wrapper.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with accumulation, mmengine steps a schedule before the first update and torch remarks on it
            for schedule in schedules:
                if not schedule.by_epoch:
                    schedule.step()
    return highest

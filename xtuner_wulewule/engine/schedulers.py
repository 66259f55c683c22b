"""Learning-rate schedules for mmengine's runners."""

import math

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler

from xtuner_wulewule.engine.accumulation import accumulation, count_updates
from xtuner_wulewule.errors import SettingsError

MAX_WARMUP_RATIO = 0.03  # the warm-up of XTuner's templates and of the published recipe


class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):  # type: ignore[misc]
    """Linear warm-up, then a cosine down to `eta_min`, counted in optimizer updates, right for a run of any length.

    mmengine steps a schedule at every iteration, so iteration k belongs to update k // accumulation. With U updates of which W warm up,
    update u has the rate lr·(u + 1)/(W + 1) for u < W, and eta_min + (lr − eta_min)·(1 + cos(π·(u − W)/(U − W)))/2 from then on
    (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts). The asked rate is reached at u = W, so by every run of
    two updates or more.

    Args:
        optimizer (mmengine.optim.BaseOptimWrapper | torch.optim.Optimizer): passed by the runner.
        warmup_ratio (float): share of the updates that warm up, 0 to 0.03; at least one update warms up. Defaults to 0.03.
        eta_min (float): learning rate after the last update. Defaults to 0.0.
        accumulative_counts (int, optional): iterations per update. Defaults to what the runner's optimizer wrapper says.
        begin (int): iteration at which the schedule begins. Defaults to 0.
        end (int): iteration at which it ends; the runner passes its number of iterations.
        last_step (int): as for every mmengine schedule. Defaults to -1.
        by_epoch (bool): must be given as False in the config; mmengine would pass epochs as `end` otherwise.
        verbose (bool): print each value. Defaults to False.

    Raises:
        SettingsError: `by_epoch` is not False, the runner passed no `end`, or `warmup_ratio` is out of range.
    """

    def __init__(
        self,
        optimizer,
        warmup_ratio=MAX_WARMUP_RATIO,
        eta_min=0.0,
        accumulative_counts=None,
        begin=0,
        end=INF,
        last_step=-1,
        by_epoch=True,
        verbose=False,
    ):
        if by_epoch:
            raise SettingsError("param_scheduler: WarmupCosineLR counts iterations; write by_epoch=False beside it")
        if end >= INF:
            raise SettingsError("param_scheduler: WarmupCosineLR needs the length of the run; give it end=<iterations>, as runners do")
        if not 0 <= warmup_ratio <= MAX_WARMUP_RATIO:
            raise SettingsError(f"param_scheduler: warmup_ratio={warmup_ratio} of WarmupCosineLR must be between 0 and {MAX_WARMUP_RATIO}")
        counts, flushes = accumulation(optimizer)
        self.accumulative_counts = counts if accumulative_counts is None else int(accumulative_counts)
        self.updates = max(1, count_updates(int(end - begin), self.accumulative_counts, flushes))
        self.warmup_updates = max(1, int(warmup_ratio * self.updates))
        self.eta_min = eta_min
        super().__init__(optimizer, begin=begin, end=end, last_step=last_step, by_epoch=False, verbose=verbose)

    def load_state_dict(self, state_dict):
        """Go on at the iteration of a checkpoint, along the curve of this run: mmengine would restore the length and the rate of the one
        that was saved, so that a run resumed with more epochs stayed at its last rate, which is next to nothing.

        Args:
            state_dict (dict): as `state_dict` returns it.
        """
        self._global_step = state_dict["_global_step"]
        self.last_step = min(self._global_step, self.end - 1) - self.begin if self._global_step >= self.begin else -1  # it stops at `end`
        for group, base, value in zip(self.optimizer.param_groups, self.base_values, self._get_value(), strict=True):
            group.update(initial_lr=base, lr=value)
        self._last_value = [group["lr"] for group in self.optimizer.param_groups]

    def _get_value(self):
        update = min(self.last_step // self.accumulative_counts, self.updates)
        warmup, updates = self.warmup_updates, self.updates
        if update < warmup:
            return [base * (update + 1) / (warmup + 1) for base in self.base_values]
        cosine = (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, updates - warmup)))) / 2
        return [self.eta_min + (base - self.eta_min) * cosine for base in self.base_values]

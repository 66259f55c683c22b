import math
import warnings

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from xtuner_wulewule.engine.accumulation import accumulation, count_updates
from xtuner_wulewule.engine.hooks import highest_lr
from xtuner_wulewule.engine.schedulers import WarmupCosineLR
from xtuner_wulewule.errors import SettingsError

LR = 2e-4
OURS = dict(type="WarmupCosineLR", by_epoch=False)


def published(epochs=5, ratio=0.03):
    """The schedule of XTuner's templates and of the published recipe."""
    begin = ratio * epochs
    return [
        dict(type="LinearLR", start_factor=1e-5, by_epoch=True, begin=0, end=begin, convert_to_iter_based=True),
        dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, begin=begin, end=epochs, convert_to_iter_based=True),
    ]


def rates(iterations, accumulative_counts=1, **settings):
    """The learning rate of every iteration."""
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR), accumulative_counts=accumulative_counts)
    schedule = PARAM_SCHEDULERS.build(dict(OURS, end=iterations, **settings), default_args=dict(optimizer=wrapper, epoch_length=iterations))
    assert isinstance(schedule, WarmupCosineLR)
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(iterations):
            values.append(wrapper.param_groups[0]["lr"])
            schedule.step()
    return values


def test_exact_values():
    # 100 updates, 3 of them warm up: 1/4, 2/4, 3/4, then the cosine begins at the asked rate
    values = rates(100)
    assert values[:4] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR])
    assert values[4:] == pytest.approx([LR * (1 + math.cos(math.pi * k / 97)) / 2 for k in range(1, 97)])
    assert 0 < values[-1] < LR / 1000


@pytest.mark.parametrize("iterations", [1, 2, 3, 14, 33, 34, 60, 1000])
@pytest.mark.parametrize("accumulative_counts", [1, 3, 16])
def test_any_length(iterations, accumulative_counts):
    values = rates(iterations, accumulative_counts)
    updates = [values[min(start + accumulative_counts, iterations) - 1] for start in range(0, iterations, accumulative_counts)]
    for start in range(0, iterations, accumulative_counts):  # the rate changes with the update and not inside it
        assert len(set(values[start : start + accumulative_counts])) == 1
    assert min(values) > 0
    if len(updates) >= 2:
        assert max(updates) == LR
    warmup = updates.index(max(updates)) if len(updates) > 1 else 1
    assert 1 <= warmup <= max(1, 0.03 * len(updates))


def test_eta_min():
    assert rates(10, eta_min=1e-5)[-1] == pytest.approx(1e-5 + (LR - 1e-5) * (1 + math.cos(math.pi * 8 / 9)) / 2)


def test_resume_continues():
    def build():
        wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR))
        return wrapper, PARAM_SCHEDULERS.build(dict(OURS, end=20), default_args=dict(optimizer=wrapper, epoch_length=20))

    wrapper, schedule = build()
    for _ in range(7):
        schedule.step()
    resumed_wrapper, resumed = build()
    resumed.load_state_dict(schedule.state_dict())
    schedule.step()
    resumed.step()
    assert resumed_wrapper.param_groups[0]["lr"] == wrapper.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [(dict(by_epoch=True), "by_epoch=False"), (dict(warmup_ratio=0.5), "between 0 and 0.03"), (dict(end=10**9), "length of the run")],
)
def test_refuses(settings, problem):
    with pytest.raises(SettingsError, match=problem):
        rates(10, **settings) if "end" not in settings else PARAM_SCHEDULERS.build(
            dict(OURS, **settings), default_args=dict(optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR))
        )


def test_counts_of_both_runners():
    assert count_updates(14, 3, flushes_remainder=True) == 5
    assert count_updates(14, 3, flushes_remainder=False) == 4
    assert accumulation(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)) == (1, True)


def test_defect_2_is_still_upstream():
    """12 iterations an epoch, as the real tuning data: the published schedule trains at 1e-5 of the asked rate."""
    assert highest_lr(published(), LR, 60, epoch_length=12, max_epochs=1) == pytest.approx(2e-9)
    assert highest_lr(OURS, LR, 60, epoch_length=12) == LR
    with pytest.raises(ValueError, match="end should be larger than begin"):
        highest_lr(published(), LR, 25, epoch_length=5)


def test_highest_lr_without_a_schedule():
    assert highest_lr(None, LR, 5, epoch_length=5) == LR


def test_highest_lr_counts_only_updates():
    # DeepSpeed makes no update from the remainder: with 4 iterations at 3 the only update happens in the warm-up
    assert highest_lr(dict(OURS, accumulative_counts=3), LR, 4, 3, False, epoch_length=4) == pytest.approx(LR / 2)

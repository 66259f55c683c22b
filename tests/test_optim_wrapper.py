"""The optimizer wrapper that does not wait for the GPU, beside mmengine's."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from xtuner_wulewule import paths
from xtuner_wulewule.engine.optim_wrapper import FusedAmpOptimWrapper, fuse

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = (32, 128), (128, 32), (7,)


def parameters(device):
    torch.manual_seed(0)
    frozen = torch.nn.Parameter(torch.zeros(8, dtype=torch.uint8, device=device), requires_grad=False)  # 4-bit weights are bytes
    return [frozen, *(torch.nn.Parameter(torch.randn(shape, device=device)) for shape in SHAPES)]


def wrapper_of(kind, weights, **settings):
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1)
    return kind(optimizer=optimizer, clip_grad=dict(max_norm=1), loss_scale="dynamic", dtype="bfloat16", **settings)


def updated(wrapper, weights, steps, first=0):
    """Make updates with gradients that depend on the number of the step; return the weights."""
    trained = [weight for weight in weights if weight.requires_grad]
    for step in range(first, first + steps):
        generator = torch.Generator(device="cuda").manual_seed(step)
        aims = [torch.randn(weight.shape, generator=generator, device="cuda") for weight in trained]
        wrapper.update_params(sum((weight * aim).sum() for weight, aim in zip(trained, aims, strict=True)))
    return [weight.detach().clone() for weight in trained]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_registered_and_used_by_the_configs_for_gpus():
    assert OPTIM_WRAPPERS.get("FusedAmpOptimWrapper") is FusedAmpOptimWrapper
    for name in ("sft_1_8b", "sft_7b", "pretrain_1_8b", "pretrain_7b"):
        config = Config.fromfile(str(paths.config_paths()[f"wulewule_{name}"]))
        assert config.optim_wrapper.type is FusedAmpOptimWrapper


@pytest.mark.parametrize(
    ("device", "kind", "settings"),
    [
        ("cpu", torch.optim.AdamW, {}),
        pytest.param("cuda", torch.optim.SGD, {}, marks=NEEDS_GPU),
        pytest.param("cuda", torch.optim.AdamW, dict(foreach=True), marks=NEEDS_GPU),
        pytest.param("cuda", torch.optim.AdamW, dict(capturable=True), marks=NEEDS_GPU),
    ],
)
def test_what_cannot_be_fused_is_left_as_it_is(device, kind, settings):
    def values():
        return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]

    optimizer = kind([weight for weight in parameters(device) if weight.requires_grad], lr=1e-2, **settings)
    before = copy.deepcopy(values())
    assert not fuse(optimizer) and values() == before
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


@NEEDS_GPU
def test_updates_are_those_of_mmengine():
    weights, twins = parameters("cuda"), parameters("cuda")
    ours, plain = wrapper_of(FusedAmpOptimWrapper, weights), wrapper_of(AmpOptimWrapper, twins)
    assert ours.fused
    for wrapper in (ours, plain):
        wrapper.message_hub = MessageHub.get_instance(f"norms of {type(wrapper).__name__}")
    assert_same(updated(ours, weights, 5), updated(plain, twins, 5))
    norms = [wrapper.message_hub.get_scalar("train/grad_norm").data[0] for wrapper in (ours, plain)]
    assert len(norms[0]) == 5 and norms[0] == pytest.approx(norms[1], rel=1e-5) and min(norms[0]) > 1


@NEEDS_GPU
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_update_without_a_finite_gradient_is_skipped(value):
    weights = parameters("cuda")
    wrapper = wrapper_of(FusedAmpOptimWrapper, weights)
    before, scale = updated(wrapper, weights, 2), wrapper.loss_scaler.get_scale()
    wrapper.update_params((weights[1] * value).sum())
    assert all(torch.equal(weight, one) for weight, one in zip(weights[1:], before, strict=True))
    assert wrapper.loss_scaler.get_scale() == scale / 2
    assert not torch.equal(updated(wrapper, weights, 1)[0], before[0])


@NEEDS_GPU
@pytest.mark.parametrize(
    ("first", "then"),
    [(AmpOptimWrapper, FusedAmpOptimWrapper), (FusedAmpOptimWrapper, AmpOptimWrapper), (FusedAmpOptimWrapper, FusedAmpOptimWrapper)],
)
def test_checkpoints_of_either_are_resumed_from(first, then, tmp_path):
    weights, twins = parameters("cuda"), parameters("cuda")
    expected = updated(wrapper_of(AmpOptimWrapper, twins), twins, 6)
    wrapper = wrapper_of(first, weights)
    updated(wrapper, weights, 3)
    torch.save(dict(weights=[weight.data for weight in weights], optimizer=wrapper.state_dict()), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", map_location="cpu", weights_only=True)
    others = parameters("cuda")
    for other, saved in zip(others, state["weights"], strict=True):
        other.data.copy_(saved)
    resumed = wrapper_of(then, others)
    resumed.load_state_dict(state["optimizer"])
    assert_same(updated(resumed, others, 3, first=3), expected)


@NEEDS_GPU
def test_gradients_are_accumulated():
    weights, twins = parameters("cuda"), parameters("cuda")
    wrappers = [wrapper_of(kind, some, accumulative_counts=2) for kind, some in ((FusedAmpOptimWrapper, weights), (AmpOptimWrapper, twins))]
    for wrapper in wrappers:
        wrapper.initialize_count_status(torch.nn.Linear(1, 1), 0, 5)
    assert_same(updated(wrappers[0], weights, 5), updated(wrappers[1], twins, 5))

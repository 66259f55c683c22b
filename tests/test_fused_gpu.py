"""The fused step on a GPU: compiled, recorded, in bf16. Skipped on machines without one."""

from itertools import product

import pytest
import torch
from fused_models import batch, grads, lora, tune
from xtuner.model import SupervisedFinetune

from xtuner_wulewule.model.fused import math, step
from xtuner_wulewule.model.fused.step import FusedStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BF16 = torch.bfloat16


def on_gpu(name="internlm2", **arguments):
    return tune(name, **arguments).to("cuda")


def gpu_batch(**arguments):
    return {key: value.to("cuda") for key, value in batch(**arguments).items()}


def distance(found, expected):
    difference = torch.cat([(found[name].float() - expected[name].float()).flatten() for name in expected])
    return float(difference.norm() / torch.cat([grad.float().flatten() for grad in expected.values()]).norm())


def amp_grads(model, data):
    with torch.autocast("cuda", dtype=BF16):
        return grads(model, data)


@pytest.mark.parametrize("size", [1, 4e-3], ids=["trained", "begun"])  # of B: in the first updates its share is less than rounding
@pytest.mark.parametrize("documents", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize("name", ["internlm2", "llama", "qwen2"])
def test_error_is_at_most_a_fifth_over_that_of_xtuners_model(name, documents, size):
    def one(**arguments):
        model = on_gpu(name, **arguments)
        for key, parameter in model.llm.named_parameters():
            if "lora_B" in key:
                parameter.data *= size
        return model

    data = gpu_batch(rows=4, tokens=256, documents=documents)
    exact = grads(one(fused=False), data)[1]
    loss, found = amp_grads(model := one(), data)
    assert model._step and model._step.recorded and model._step.graphs
    plain_loss, plain = amp_grads(one(fused=False), data)  # in fp32 but for autocast: as XTuner prepares a model
    assert float(loss) == pytest.approx(float(plain_loss), rel=2e-3)
    assert distance(found, exact) <= 1.2 * distance(plain, exact)


def test_xtuners_own_class_agrees():
    data = gpu_batch(rows=4, tokens=256)
    loss, found = amp_grads(on_gpu(), data)
    plain_loss, plain = amp_grads(on_gpu(kind=SupervisedFinetune), data)
    assert float(loss) == pytest.approx(float(plain_loss), rel=2e-3) and distance(found, plain) < 0.1


def test_recorded_steps_take_the_adapters_as_they_are_now():
    model = on_gpu()
    plain = on_gpu(fused=False)
    for number in range(3):  # other data and adapters each time, a shorter last batch, the same graph
        data = gpu_batch(rows=4 - number, tokens=250)
        data = {key: value.roll(number, 1) if key in ("input_ids", "labels") else value for key, value in data.items()}
        loss, found = amp_grads(model, data)
        plain_loss, expected = amp_grads(plain, data)
        assert float(loss) == pytest.approx(float(plain_loss), rel=2e-3) and distance(found, expected) < 0.1
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            if one.requires_grad:
                noise = torch.randn_like(one) * 0.05
                one.data += noise
                two.data += noise
    assert len(model._step.graphs) == 1


def test_a_batch_of_one_row_costs_one():
    model, plain = on_gpu(), on_gpu(fused=False)
    data = gpu_batch(rows=1, tokens=2048)
    loss, found = amp_grads(model, data)
    plain_loss, expected = amp_grads(plain, data)
    assert float(loss) == pytest.approx(float(plain_loss), rel=2e-3) and distance(found, expected) < 0.1
    assert [key[0] for key in model._step.graphs] == [(1, 2048)]


def test_dropout_draws_anew_in_each_replay_and_is_right_on_average():
    model = on_gpu(adapter=lora(lora_dropout=0.2))
    data = gpu_batch(rows=2, tokens=256)
    losses = torch.stack([amp_grads(model, data)[0] for _ in range(200)])
    plain = on_gpu(adapter=lora(lora_dropout=0.2), fused=False)
    expected = torch.stack([amp_grads(plain, data)[0] for _ in range(200)])
    assert len(losses.unique()) > 150
    error = ((losses.var() + expected.var()) / 200).sqrt()
    assert abs(losses.mean() - expected.mean()) < 5 * error
    assert 0.7 < losses.std() / expected.std() < 1.4


@pytest.mark.parametrize("programs", [1, 512], ids=["whole", "parts"])
def test_kernels_are_those_of_pytorch(programs, monkeypatch):
    tokens, width, rank, p = 512, 2048, 32, 0.1
    kernels, plain = math.Kernels(compiled=True), math.Kernels(compiled=False)
    kernels.take_triton({width}, rank, 128)
    if kernels.overwriting:
        monkeypatch.setattr("xtuner_wulewule.model.fused.kernels.PROGRAMS", programs)
    assert kernels.drop.__module__.endswith("kernels") or math.triton_release() < math.OLDEST_TRITON

    def random(*shape):
        return torch.randn(shape, device="cuda", dtype=BF16)

    def assert_same(found, expected):
        assert (found.float() - expected.float()).norm() <= 1e-2 * expected.float().norm()

    x, a, outer, inner = random(tokens, width), random(rank, width), random(tokens, 2 * rank), random(tokens, rank)
    wide, b = random(tokens, 2 * width), random(2 * width, rank) * 0.1
    masks = kernels.draw_masks(x, 2, p)
    mask = masks[:1]
    kept = kernels.drop(torch.ones_like(x, dtype=torch.float32), masks, p) != 0
    assert abs(float(kept.float().mean()) - 0.9) < 5 * (0.09 / kept.numel()) ** 0.5
    assert torch.equal(kernels.drop(x, masks, p), plain.drop(x, masks, p))
    arguments = x, outer, random(2 * rank, width), masks, p
    assert_same(kernels.add_dropped_product(*arguments), plain.add_dropped_product(*arguments))
    part = random(tokens, width + 2 * rank)[:, :width]  # as a product with more columns leaves it
    assert_same(kernels.add_dropped_product(part, *arguments[1:]), plain.add_dropped_product(part, *arguments[1:]))
    for second, (one, rate), spare in product((b, None), ((mask, p), (None, 0.0)), (0, rank)):
        arguments = wide, outer, second, one, a, rate
        found, expected = ([whole[:, :width], whole[:, width:]] for whole in (random(tokens, width + rank + spare) for _ in range(2)))
        for results, one in ((found, kernels), (expected, plain)):
            results[1] = results[1][:, :rank]
            one.swiglu_project(*arguments, *results)
        for result, right in zip(found, expected, strict=True):
            assert_same(result, right)
    for second, third, (one, rate) in product((b, None), (a, None), ((mask, p), (None, 0.0))):
        for first in (x, part):
            arguments = first, wide, outer, second, one, third, inner, rate
            found_sums, sums = (torch.ones(3, rank, width, device="cuda") for _ in range(2))
            assert_same(kernels.swiglu_backward(*arguments, found_sums), plain.swiglu_backward(*arguments, sums))
            assert_same(found_sums, sums)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("entries", [2048, 92544])
def test_kernel_of_the_loss_is_that_of_pytorch(entries, shared):
    kernels, plain = math.Kernels(compiled=True), math.Kernels(compiled=False)
    kernels.take_triton({2048}, 32, 128)
    assert kernels.cross_entropy.__module__.endswith("kernels") or math.triton_release() < math.OLDEST_TRITON
    logits = (torch.randn(64, entries, device="cuda") * 5).to(BF16)
    share = torch.randn(64, entries, device="cuda").to(BF16) if shared else None
    targets, weight = torch.randint(entries, (64,), device="cuda"), torch.full((), 0.3, device="cuda")
    targets[::5] = -100
    expected_loss, expected = plain.cross_entropy(logits, share, targets, weight)
    loss, found = kernels.cross_entropy(logits.clone(), share, targets, weight)
    assert abs(loss - expected_loss) <= 1e-4 * abs(expected_loss)
    assert (found.float() - expected.float()).norm() <= 1e-2 * expected.float().norm()
    assert not found[::5].any()


@pytest.mark.parametrize("name", ["join_grouped", "join_listed"])
def test_kernel_that_joins_is_that_of_pytorch(name):
    kernels, plain = math.Kernels(compiled=True), math.Kernels(compiled=False)
    kernels.take_triton({2048}, 32, 128)
    assert getattr(kernels, name).__module__.endswith("kernels") or math.triton_release() < math.OLDEST_TRITON
    q, k, v = (torch.randn(512, heads, 128, device="cuda", dtype=BF16) for heads in (16, 8, 8))
    arguments = q, k, v, torch.randn(512, 128, device="cuda"), torch.randn(512, 128, device="cuda"), (16, 8, 128)
    found, expected = (getattr(one, name)(*arguments).float() for one in (kernels, plain))
    assert (found - expected).norm() <= 1e-2 * expected.norm()


def test_head_sees_the_tokens_with_a_target_only():
    model, plain = on_gpu(), on_gpu(fused=False)
    for count in (250, 30, 0):  # tokens of a row
        data = gpu_batch(rows=4, tokens=2048)
        data["labels"][:, count:] = -100
        loss, found = amp_grads(model, data)
        if count:
            plain_loss, expected = amp_grads(plain, data)
            assert float(loss) == pytest.approx(float(plain_loss), rel=2e-3) and distance(found, expected) < 0.1
        else:
            assert loss == 0 and all((grad == 0).all() for grad in found.values())
    assert len(model._step.graphs) == 1
    data["labels"] = data["input_ids"]
    amp_grads(model, data)
    assert sorted(key[-1] for key in model._step.graphs) == [1024, 4096]


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointing(checkpointing):
    data = gpu_batch(rows=4, tokens=256)
    expected = amp_grads(on_gpu(), data)[1]
    assert distance(amp_grads(on_gpu(checkpointing=checkpointing), data)[1], expected) < 0.01


@pytest.mark.parametrize("rate", [0, 0.1])
def test_more_memory_for_the_backward(rate):
    data = gpu_batch(rows=6, tokens=2048)
    small, large = on_gpu(adapter=lora(lora_dropout=rate)), on_gpu(adapter=lora(lora_dropout=rate), micro_batch_tokens="auto")
    for _ in range(2):
        loss, found = amp_grads(large, data)
        expected_loss, expected = amp_grads(small, data)
        assert float(loss) == pytest.approx(float(expected_loss), rel=2e-3)
        assert rate or distance(found, expected) < 0.02
    assert large._step.decoder.roomy and not small._step.decoder.roomy


def test_memory_that_runs_out_makes_the_micro_batches_smaller(monkeypatch):
    said = []
    monkeypatch.setattr("mmengine.logging.print_log", lambda text, **_: said.append(text))
    model = on_gpu("llama")
    data = gpu_batch(rows=64, tokens=2048)  # twice what the memory below suffices for
    expected = amp_grads(model, data)[1]
    monkeypatch.setattr(step, "free_memory", lambda device: 2**50)  # an estimate that is too high
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 0.3 * 2**30) / total)
    try:
        model._step = FusedStep(model.llm, BF16, tokens=2**20, resident=False)
        found = amp_grads(model, data)[1]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(text.startswith("Out of memory; going on with less.") for text in said)
    assert model._step.tokens < 2**20 and distance(found, expected) < 0.02

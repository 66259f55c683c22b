"""The fused step against XTuner's plain model: loss and the gradients of every adapter, in fp32 on the CPU."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fused_models import MODELS, SIZES, batch, grads, lora, tune
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from xtuner.model import SupervisedFinetune

from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.model import finetune
from xtuner_wulewule.model.fused import math, shapes
from xtuner_wulewule.model.fused.decoder import Decoder, Saved
from xtuner_wulewule.model.fused.linear import Branch, Linears
from xtuner_wulewule.model.fused.step import CHECKPOINTING, CHUNK, IGNORED, LENGTHS, OPTIMIZER_BYTES, RESERVE, Batch, FusedStep

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def assert_equal(model, plain, data, limit=1e-5):
    loss, found = grads(model, data)
    plain_loss, expected = grads(plain, data)
    assert model._step and (loss - plain_loss).abs() <= limit * plain_loss.abs()
    trained = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() == trained and len(trained) > 10
    errors = {name: float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected}
    assert max(errors.values()) <= limit, errors
    return loss


def plain_twin(model):
    """The same weights in a model that takes XTuner's way."""
    twin = copy.deepcopy(model)
    twin.fused, twin._step = False, None
    return twin


@pytest.mark.parametrize("documents", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize("name", [*MODELS, "internlm2"])
def test_loss_and_gradients_are_those_of_the_plain_model(name, documents):
    model = tune(name, fused=True)
    assert_equal(model, plain_twin(model), batch(documents=documents))


@pytest.mark.parametrize(("resident", "checkpointing"), [(False, "none"), *((True, level) for level in CHECKPOINTING)])
@pytest.mark.parametrize("name", ["internlm2", "llama", "qwen2"])
def test_matrix_products_in_bf16(name, resident, checkpointing):
    model = tune(name, fused=True)
    plain = plain_twin(model)
    model._step = FusedStep(model.llm, torch.bfloat16, compiled=False, resident=False)
    for _ in range(2):  # the adapters are taken anew in each step
        loss, exact = grads(plain, batch(documents=True))
        rounded, found = grads(model, batch(documents=True))
        assert rounded == pytest.approx(float(loss), rel=1e-2) and rounded != loss
        assert max(float((found[key] - exact[key]).norm() / exact[key].norm()) for key in exact) < 0.1
        if resident:
            model._step.decoder.make_resident()
            assert all(layer.o.stack is not None for layer in model._step.decoder.layers)
        model._step.decoder.checkpointing = checkpointing
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            if one.requires_grad:
                one.data.mul_(-1.5)
                two.data.mul_(-1.5)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_nothing_keeps_what_is_computed_again(checkpointing, monkeypatch):
    """With B beside the weights, A x is a part of their input's tensor: to keep the one must not keep the other."""
    kept, forget = [], Saved.forget

    def measured(saved, level):
        forget(saved, level)
        tensors = [saved.x, saved.wide, *saved.normed, *(saved.heads or ()), saved.attended]
        tensors += [one for branch in (saved.qkv, saved.o, saved.up, saved.down) for one in (branch.inner, branch.joint)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
        kept.append(sum(storages.values()))

    model = tune("internlm2", fused=True)
    model._step = FusedStep(model.llm, torch.bfloat16, compiled=False, resident=True)
    decoder = model._step.decoder
    model(batch())
    monkeypatch.setattr(Saved, "forget", measured)
    decoder.checkpointing = checkpointing
    model(batch())
    layer, tokens = decoder.layers[0], batch()["input_ids"].numel()
    inner = 2 * sum(len(linears.a) for linears in layer.linears)
    width = layer.qkv.width
    full, half = decoder.residual.itemsize * width, 2 * (2 * width + sum(layer.qkv.outs) + layer.o.width)
    assert layer.up.beside is not None and kept
    assert max(kept) <= tokens * (inner + (full if checkpointing == "full" else half))


def test_plain_twin_is_xtuners_model():
    model = tune("internlm2", kind=SupervisedFinetune)
    ours = tune("internlm2", fused=True)
    loss, found = grads(model, batch())
    our_loss, our_grads = grads(ours, batch())
    assert our_loss == pytest.approx(float(loss), rel=1e-5) and found.keys() == our_grads.keys()
    assert max(float((our_grads[name] - found[name]).norm() / found[name].norm()) for name in found) <= 1e-5


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_checkpointing_changes_nothing(checkpointing, rate):
    model = tune("internlm2", adapter=lora(lora_dropout=rate), fused=True)
    torch.manual_seed(5)
    loss, expected = grads(model, batch(documents=True))
    model.checkpointing, model._step = checkpointing, None
    torch.manual_seed(5)
    again, found = grads(model, batch(documents=True))
    assert model._step.decoder.checkpointing == checkpointing and again == loss
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-9) for name in expected)


@pytest.mark.parametrize("rows_at_a_time", [1, 2])
def test_micro_batches_change_nothing(rows_at_a_time):
    model = tune("llama", fused=True)
    plain = plain_twin(model)
    data = batch(rows=5, documents=True)
    model._step = model._fused_step()
    model._step.tokens = 40 * rows_at_a_time
    assert_equal(model, plain, data)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_tokens_without_a_target_need_no_logits(rate):
    model = tune("internlm2", adapter=lora(lora_dropout=rate, target_modules=["wqkv", "wo", "w2", "output"]), fused=True)
    data = batch(rows=4)
    data["labels"][:, 10:] = -100
    data["labels"][2] = -100  # a row of which nothing is trained
    seen, add_batch = [], Decoder.add_batch
    model._step = model._fused_step()
    model._step.decoder.add_batch = lambda *args: seen.append(len(args[3])) or add_batch(model._step.decoder, *args)
    model._step.tokens = 40
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(grads(model, data)[1])
    assert seen[:4] == [max(1, trained) for trained in (data["labels"][:, 1:] != -100).sum(1).tolist()] and seen[2] == 1
    if rate == 0.0:
        assert_equal(model, plain_twin(model), data)
    assert all(torch.equal(one, two) for one, two in zip(found[0].values(), found[1].values(), strict=True))


@pytest.mark.parametrize("rate", [0.0, 1e-9], ids=["merged", "apart"])
@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("internlm2", dict(target_modules=["wqkv", "wo"])),
        ("internlm2", dict(target_modules=["w1", "w2", "output"])),
        ("internlm2", dict(target_modules=["w3"], use_rslora=True)),
        ("qwen2", dict(target_modules=["q_proj", "v_proj", "lm_head"])),
    ],
)
def test_adapters_on_some_layers(name, adapter, rate):
    model = tune(name, adapter=lora(**adapter, lora_dropout=rate), fused=True)
    plain = plain_twin(model)
    loss, found = grads(model, batch())
    plain_loss, expected = grads(plain, batch())
    assert loss == pytest.approx(float(plain_loss), rel=1e-5) and found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected) <= 1e-5


def test_weights_that_are_kept_dequantised_change_nothing():
    model = tune("qwen2", fused=True)
    plain = plain_twin(model)
    model._step = model._fused_step()
    model._step.decoder.make_resident()
    for _ in range(2):  # the adapters are merged anew in each step
        assert_equal(model, plain, batch())
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            if one.requires_grad:
                one.data.add_(0.01)
                two.data.add_(0.01)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("name", ["internlm2", "qwen2"])
def test_more_memory_for_the_backward_changes_nothing(name, rate):
    model = tune(name, adapter=lora(lora_dropout=rate), fused=True)
    model._step = model._fused_step()
    decoder = model._step.decoder
    found = {}
    for roomy in (False, True, False):
        if roomy:
            decoder.make_resident()
        decoder.make_roomy(roomy)
        for step in range(2):  # the adapters are taken anew in each step
            torch.manual_seed(5)
            _, now = grads(model, batch())
            before = found.setdefault(step, now)
            assert max(float((now[key] - before[key]).norm() / before[key].norm()) for key in now) <= 1e-5
            for parameter in decoder.parameters:
                parameter.data.add_(0.01 if step == 0 else -0.01)


@pytest.mark.parametrize("tokens", [1280, 1536, 20000])
def test_head_of_a_recorded_step_sees_whole_chunks(tokens):
    ids = torch.zeros(25, tokens, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    labels[0, :1226] = 1
    columns = ids, labels, [1225, *[0] * 24], ids, None
    batch = Batch(*columns, lambda x, places: (places[..., None], places[..., None]), LENGTHS, torch.float32)
    (part, *_) = batch.parts(25, full=True)
    assert len(part.picked) % CHUNK == 0 and len(part.picked) >= 1225  # kernels take 64 tokens at a time and leave no rest


def test_accumulation_and_the_scale_of_the_loss_reach_the_gradients():
    model = tune("llama", fused=True)
    plain = plain_twin(model)
    for one in (model, plain):
        for rows in (2, 3):
            (one(batch(rows=rows))["loss"] * 7).backward()
    for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
        if one.requires_grad:
            assert float((one.grad - two.grad).norm() / two.grad.norm()) <= 1e-5, name


def test_batch_in_which_nothing_is_trained():
    model = tune("llama", fused=True)
    data = batch()
    data["labels"][:] = -100
    loss, found = grads(model, data)
    assert loss == 0 and all((grad == 0).all() for grad in found.values())


def test_backward_of_an_earlier_forward_is_refused():
    model = tune("llama", fused=True)
    first = model(batch())["loss"]
    model(batch())
    with pytest.raises(RuntimeError, match="backward must follow its own forward"):
        first.backward()


def test_compiled_functions_serve_many_lengths(monkeypatch):
    import torch._dynamo.config as config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    monkeypatch.setattr(config, name, 2)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, options: compile_(function, dynamic=dynamic, backend="eager"))
    backward = math.Kernels(compiled=True).rms_norm_backward
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for tokens in (8, 16, 24, 32):
        grad, passed_by, normed = torch.randn(3, tokens, 16)
        backward(grad, None, passed_by, normed, torch.ones(tokens, 1), torch.ones(16), torch.empty_like(grad))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled + 4


# dropout


def test_mask_of_dropout_keeps_at_its_rate_and_independently():
    torch.manual_seed(0)
    x = torch.ones(4096, 64)
    masks = math.draw_masks(x, 2, 0.1)
    kept = list(math.drop(x, masks, 0.1))
    for one in kept:
        assert one.unique().tolist() == pytest.approx([0, 1 / 0.9])
        rates = (one != 0).float().mean(0)
        assert abs(float(rates.mean()) - 0.9) < 4 * (0.09 / one.numel()) ** 0.5
        assert float((rates - 0.9).abs().max()) < 5 * (0.09 / len(x)) ** 0.5  # every channel
    dropped = [(one == 0).float() for one in (*kept, kept[0].roll(1, 1))]
    for other in dropped[1:]:  # two masks, and neighbours within one, meet as often as chance has it
        assert abs(float((dropped[0] * other).mean()) - 0.01) < 5 * (0.01 / x.numel()) ** 0.5
    inner, a = torch.ones(len(x), 1), torch.ones(1, 64)
    assert torch.equal(math.add_dropped_product(x, inner, a, masks[:1], 0.1), x + kept[0])


def test_loss_and_gradients_under_dropout_have_the_plain_models_distribution():
    model = tune("llama", adapter=lora(lora_dropout=0.3), fused=True)
    plain = plain_twin(model)
    draws = {}
    for one in (model, plain):
        torch.manual_seed(3)
        losses, first = [], []
        for _ in range(300):
            loss, found = grads(one, batch(rows=1))
            losses.append(loss)
            first.append(torch.cat([grad.flatten()[:40] for grad in found.values()]))
        draws[one] = torch.stack(losses), torch.stack(first)
    for ours, theirs in zip(draws[model], draws[plain], strict=True):
        error = ((ours.var(0) + theirs.var(0)) / 300).sqrt()
        z = (ours.mean(0) - theirs.mean(0)) / error.clamp(min=1e-12)
        assert z.abs().max() < 5 and (z.numel() == 1 or z.square().mean() < 1.6)  # a standard normal's mean square is 1
        ratio = (ours.std(0) / theirs.std(0).clamp(min=1e-12)).flatten()
        assert 0.75 < ratio.min() and ratio.max() < 1.33 and abs(float(ratio.mean()) - 1) < 0.05


# where it is not used


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(adapter=lora(use_dora=True)), "DoRA"),
        (dict(adapter=lora(target_modules=["q_proj", "embed_tokens"])), "none of attention"),
        (dict(adapter=lora(modules_to_save=["norm"], target_modules=["q_proj"])), "modules_to_save"),
    ],
)
def test_why_an_adapter_is_not_served(change, why):
    model = tune("llama", **change)
    assert why in shapes.why_not(model.llm)
    model.fused = True
    with pytest.raises(SettingsError, match=f"the fused step can't be used: .*{why}"):
        model(batch())


def test_why_a_model_is_not_served():
    assert shapes.why_not(LlamaForCausalLM(LlamaConfig(**SIZES))) == "it is trained without LoRA"
    model = tune("mistral")
    model.llm.get_base_model().config.sliding_window = 16
    assert "sliding-window" in shapes.why_not(model.llm)
    next(p for p in model.llm.parameters() if not p.requires_grad).requires_grad = True
    model.llm.get_base_model().config.sliding_window = None
    assert "something other than LoRA" in shapes.why_not(model.llm)


@pytest.mark.parametrize(
    "settings, why",
    [
        (dict(fused=False), "model.fused is False"),
        (dict(adapter=lora(lora_dropout=0.1)), "on a CPU it is slower where LoRA has dropout"),
    ],
)
def test_xtuners_way_is_taken_and_the_reason_said_once(settings, why, monkeypatch):
    said = []
    monkeypatch.setattr(finetune, "print_log", lambda text, **_: said.append(text))
    model = tune("llama", **settings)
    loss = model(batch())["loss"]
    assert model._step is False and loss.requires_grad
    model(batch())
    (text,) = said
    assert text.startswith(f"XTuner's own step is used, not the fused one: {why}")


def test_a_cpu_computes_in_fp32_only():
    model = tune("llama")
    assert model._why_not_here("cpu", torch.float32) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch())
    assert model._step is False
    assert model._why_not_here("cpu", torch.bfloat16) == "on a CPU it computes in fp32, and here it is bfloat16"


@pytest.mark.parametrize("documents", [False, True])
def test_attention_on_a_cpu_keeps_no_scores(documents):
    model, kept = tune("llama", fused=True, checkpointing="none"), []  # four heads of queries, two of keys
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        model(batch(rows=1, tokens=512, documents=documents))
    assert max(kept) <= 512 * 512  # the mask; the scores of a layer are four times as many


def test_packed_weights_are_not_taken_as_they_are():
    model = tune("llama", adapter=lora(lora_dropout=0.1), fused=True)
    o = model._fused_step().decoder.layers[0].o
    weight = o.bases[0].weight
    assert o._only() is weight
    weight.quant_state = object()  # four bits may be stored as the type that is computed in (bnb_4bit_quant_storage)
    assert o._only() is None


def test_a_cpu_plans_by_its_own_memory(monkeypatch):
    said = []
    monkeypatch.setattr("mmengine.logging.print_log", lambda text, **_: said.append(str(text)))
    for available in (2**40, 0):
        monkeypatch.setattr("psutil.virtual_memory", lambda available=available: SimpleNamespace(available=available))
        tune("llama")(batch())
    assert [text for text in said if text.startswith("Fused step")] == [
        "Fused step: 3 rows at a time, checkpointing none, weights kept dequantised",
        "Fused step: 1 rows at a time, checkpointing full, weights dequantised for each use",
    ]


def test_settings_that_do_not_exist():
    with pytest.raises(SettingsError, match="model.checkpointing is 'some'"):
        tune("llama", checkpointing="some")
    for number in (0, 0.5, "all", None, True):
        with pytest.raises(SettingsError, match="model.micro_batch_tokens is .*; it must be auto"):
            tune("llama", micro_batch_tokens=number)


def test_evaluation_is_not_touched():
    model = tune("llama", fused=True)
    with torch.no_grad():
        assert model(batch(), mode="tensor").logits.shape == (3, 40, 512)
    assert model.eval()(batch())["loss"].requires_grad and model._step is None


def test_generation_after_a_step():
    model = tune("internlm2", fused=True)
    grads(model, batch())
    assert model.llm.generate(input_ids=batch()["input_ids"][:1, :5], max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_a_batch_is_taken_in_equal_parts_and_none_is_larger_than_it():
    step = FusedStep(tune("llama", fused=True).llm, torch.float32, compiled=False)
    for batch_rows, most, expected in ((1, 2, 1), (16, 2, 2), (16, 7, 6), (16, 100, 16), (5, 4, 3), (3, 1, 1)):
        step.batch_rows, step.tokens = batch_rows, most * 2048 + 7
        assert step._rows(2048) == expected
    step.batch_rows, step.tokens = 4, 4096
    assert [step._rows(tokens) for tokens in (512, 2048, 4096, 8192)] == [4, 2, 1, 1]  # rows that are not packed have lengths of their own


def test_what_is_computed_again_and_how_many_rows_are_taken_follow_the_free_memory():
    def planned(rows, level, batch_rows=16, later_rows=0, **arguments):
        """The plan of a step that has memory for so many rows at a level of checkpointing."""
        step = FusedStep(model.llm, torch.float32, compiled=False, **arguments)
        needed = RESERVE + OPTIMIZER_BYTES * sum(p.numel() for p in step.parameters) + step.decoder.head_bytes()
        step.batch_rows = batch_rows
        step._plan(1024, needed + step.decoder.token_bytes(level) * 1024 * rows)
        step.batch_rows = max(batch_rows, later_rows)
        return step.decoder.checkpointing, step._rows(1024)

    model = tune("llama", fused=True)
    assert planned(100, "none") == ("none", 4)
    assert planned(3.5, "none") == ("none", 3)
    assert planned(1.01, "none") == ("none", 1)
    assert planned(1.01, "selective") == ("selective", 1)
    assert planned(1.01, "full") == ("full", 1)
    assert planned(0.5, "full") == ("full", 1)  # it is tried all the same
    assert planned(100, "none", checkpointing="selective") == ("selective", 4)
    assert planned(100, "none", tokens=16384) == ("none", 16)
    assert planned(100, "none", tokens="auto", batch_rows=12) == ("none", 12)
    assert planned(7.5, "none", tokens="auto", batch_rows=12) == ("none", 6)  # twice 6, not 7 and 5
    assert planned(100, "none", tokens="auto", batch_rows=1) == ("none", 1)
    assert planned(12.5, "none", tokens="auto", batch_rows=1, later_rows=16) == ("none", 8)  # a first batch that was a short one


def test_memory_is_taken_for_time_where_more_rows_than_by_default_are_wanted_and_fit():
    def roomy(spare, **arguments):
        """Whether a step does so that has the memory for eight rows, the weights and `spare` times what it would take."""
        step = FusedStep(model.llm, torch.float32, compiled=False, resident=True, **arguments)
        needed = RESERVE + OPTIMIZER_BYTES * sum(p.numel() for p in step.parameters) + step.decoder.head_bytes()
        rows = (step.decoder.token_bytes("none") + spare * step.decoder.roomy_bytes()) * 8192
        step._plan(1024, needed + step.decoder.weight_bytes() + rows)
        assert step.tokens == 8192 or step.tokens == 4096 == arguments["tokens"]
        return step.decoder.roomy

    model = tune("llama", fused=True)
    assert roomy(1, tokens=8192)
    assert not roomy(0.9, tokens=8192)
    model = tune("llama", adapter=lora(lora_dropout=0.1), fused=True)
    assert roomy(1, tokens=8192)
    assert not roomy(0.9, tokens=8192)
    assert not roomy(9, tokens=4096)
    assert not roomy(9, tokens=8192, checkpointing="selective")


def test_memory_that_runs_out_is_first_taken_from_what_saves_time(monkeypatch):
    model, said = tune("llama", adapter=lora(lora_dropout=0.1), fused=True), []
    monkeypatch.setattr("mmengine.logging.print_log", lambda text, **_: said.append(text))
    step = model._step = FusedStep(model.llm, torch.float32, compiled=False, resident=True, tokens=8192)
    step.batch_rows = 8
    step._plan(1024, 2**50)
    assert "more kept for the backward" in said[0] and any(linears.keep for linears in step.decoder.linears)
    assert all(layer.keeps_values() for layer in step.decoder.layers)
    step._step_down(1024)
    assert step.tokens == 8192 and not step.decoder.roomy and "more kept" not in said[1]
    assert not any(one.keep for one in [*step.decoder.linears, *step.decoder.layers])
    step._step_down(1024)
    assert step.tokens == 4096


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])  # cuBLAS sums otherwise than the CPU
@pytest.mark.parametrize("rate", [0.0, 1e-9], ids=["plain", "dropout"])  # the latter drops nothing, but takes the way of dropout
@pytest.mark.parametrize("adapted", [(0, 1, 2), (0, 2)], ids=["all", "some"])
@pytest.mark.parametrize("bias", [False, True], ids=["without", "bias"])
@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
def test_a_small_adapter_counts_in_bf16(rate, adapted, bias, device, joint):
    """In the first updates B A is smaller than a step of bf16 at the weight, and its product at the output: neither may round it away."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 96, bias=bias, dtype=torch.bfloat16).requires_grad_(False) for _ in range(3)]
    adapter = lora(r=16, lora_alpha=32, lora_dropout=rate, task_type=None, target_modules=[str(place) for place in adapted])
    layers = list(get_peft_model(torch.nn.Sequential(*layers), adapter).to(device).base_model.model)
    for place in adapted:
        layers[place].lora_B["default"].weight.data.normal_(0, 5e-5)
    linears, branch = Linears(layers, torch.bfloat16, 16, rate, joint=joint), Branch()
    for kept, trained, factor in linears.adapters_now():
        kept.copy_(trained * factor)
    linears.make_resident()
    linears.begin_step()
    x = linears.input(512, branch).normal_()
    y, share = linears.forward(x, branch, math.Kernels(compiled=False))
    assert (share is None) == joint
    found = (y.float() if share is None else y.float() + share.float()).split(96, 1)
    for place in adapted:
        base = layers[place].base_layer
        frozen = torch.nn.functional.linear(x.float(), base.weight.float(), None if base.bias is None else base.bias.float())
        a, b = layers[place].lora_A["default"].weight.detach(), layers[place].lora_B["default"].weight.detach()
        expected = 2 * x.float() @ a.t() @ b.t()
        arrived = float(((found[place] - frozen) * expected).sum() / expected.square().sum())
        assert abs(arrived - 1) < 0.15, arrived


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_small_adapter_counts_in_the_gradient_of_its_input(rate, device):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(256, 96, bias=False)).requires_grad_(False)
    (layer,) = (
        get_peft_model(layer, lora(r=16, lora_alpha=32, lora_dropout=rate, task_type=None, target_modules=["0"]))
        .to(device)
        .base_model.model
    )
    layer.lora_B["default"].weight.data.normal_(0, 5e-5)
    linears = Linears([layer], torch.bfloat16, 16, rate, stacked=True)
    linears.make_resident()
    for kept, trained, factor in linears.adapters_now():  # as in each step, after the weights were kept
        kept.copy_(trained * factor)
    assert (linears.stack is None) == bool(rate)
    room = linears.gradient_room(512)
    assert room.shape[1] == (96 if rate else 112)
    grad = room[:, :96].normal_()
    of_inner, of_x = linears.input_gradients(grad, room)
    if rate:
        return
    of_x = linears.add_adapters(of_x, of_inner, None, math.Kernels(compiled=False))
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    expected = 2 * grad.float() @ b @ a
    frozen = grad.float() @ layer.base_layer.weight.detach().to(torch.bfloat16).float()
    arrived = float(((of_x.float() - frozen) * expected).sum() / expected.square().sum())
    assert abs(arrived - 1) < 0.15, arrived


COS, SIN = (wave(torch.linspace(0, 6, 256)[:, None] * torch.arange(1, 9).repeat(2)) for wave in (torch.cos, torch.sin))


def _normed(y, share):
    normed = torch.empty(256, 96)
    math.add_rms_norm(torch.zeros(256, 96), y, share, torch.ones(96), 1e-6, normed)
    return normed


READERS = {
    "norm": _normed,
    "loss": lambda y, share: math.cross_entropy(y, share, torch.arange(256) % 96, torch.tensor(1.0))[1],
    # queries and keys: the values are rounded once more
    **{
        f"{name} {number}": lambda y, share, split=split, number=number: split(y, share, COS, SIN, (4, 1, 16))[number]
        for name, split in (("grouped", math.split_grouped), ("listed", math.split_listed))
        for number in range(2)
    },
}


@pytest.mark.parametrize("name", READERS)
def test_who_reads_a_small_share_adds_it_in_fp32(name):
    torch.manual_seed(0)
    y, share = torch.randn(256, 96).bfloat16(), (torch.randn(256, 96) * 1e-3).bfloat16()
    read = READERS[name]
    exact = read(y.float() + share.float(), None) - read(y.float(), None)
    found = read(y, share).float() - read(y, None).float()
    assert abs(float((found * exact).sum() / exact.square().sum()) - 1) < 0.15


def test_a_small_adapter_counts_within_swiglu():
    torch.manual_seed(0)
    wide = torch.randn(512, 256).bfloat16()
    outer, b = torch.randn(512, 32).bfloat16(), (torch.randn(256, 16) * 1e-4).bfloat16()
    both = [one.float() @ two.float().t() for one, two in zip(outer.chunk(2, 1), b.chunk(2), strict=True)]
    expected = torch.cat(both, 1)
    found = math._adapted(wide, outer, b).float() - wide.float()
    share = float((found * expected).sum() / expected.square().sum())
    assert abs(share - 1) < 0.02

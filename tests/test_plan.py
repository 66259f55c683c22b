"""Planning, state, checks and resources of `wulewule run`; the real runs are in tests/e2e/test_run.py."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from commands import WULEWULE, python, run
from safetensors.torch import load_file, save_file

from xtuner_wulewule import cli, paths
from xtuner_wulewule.cli.run import per_stage
from xtuner_wulewule.errors import SettingsError, StepError
from xtuner_wulewule.recipe import resources
from xtuner_wulewule.recipe.parity import check_merge
from xtuner_wulewule.recipe.plan import Settings, plan
from xtuner_wulewule.recipe.results import checkpoint_to_resume, is_whole
from xtuner_wulewule.recipe.run import _finish as finish_step
from xtuner_wulewule.recipe.run import commands
from xtuner_wulewule.recipe.state import State, differences, lock_folder, write_json


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def settings(tmp_path, model):
    data = tmp_path / "data"
    shutil.copytree(paths.packaged_data_dir(), data)
    return Settings(out=tmp_path / "out", model=str(model), data=data, size="tiny", options={"sft": ("train_cfg.max_epochs=2",)})


def finish(state, settings):
    """Note every step of a plan as done, with its outputs."""
    for step in plan(settings):
        state.begin(step.name, step.fingerprint)
        state.finish(step.name, 1, {})
        for output in step.outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()


def unfinished(state, settings):
    return {step.name: step.reasons(state) for step in plan(settings) if step.reasons(state)}


NAMES = ["pretrain_train", "pretrain_convert", "pretrain_merge", "sft_train", "sft_convert", "sft_merge", "ask"]


def test_steps_of_the_recipe(settings):
    steps = plan(settings)
    assert [step.name for step in steps] == NAMES
    merged = str(settings.out / "pretrain" / "merged")
    assert steps[0].env["WULEWULE_MODEL"] == settings.model
    # the tuning starts from the pretrained model, and is converted and merged with it
    assert {step.env["WULEWULE_MODEL"] for step in steps[3:6]} == {merged} and merged in steps[5].command(None)
    assert "train_cfg.max_epochs=2" in steps[3].command(None) and "train_cfg.max_epochs=2" not in steps[0].command(None)
    assert steps[3].command("CHECKPOINT")[-4:] == ["--resume", "CHECKPOINT", "--cfg-options", "train_cfg.max_epochs=2"]


def test_one_stage_alone(settings):
    alone = Settings(**{**vars(settings), "stages": ("sft",)})
    steps = plan(alone)
    assert [step.name for step in steps] == NAMES[3:] and steps[0].env["WULEWULE_MODEL"] == settings.model


def test_finished_steps_are_skipped_and_survive_a_new_process(settings):
    settings.out.mkdir()
    finish(State(settings.out), settings)
    assert unfinished(State(settings.out), settings) == {}


def test_change_makes_the_affected_steps_run_again_and_says_why(settings, model):
    settings.out.mkdir()
    state = State(settings.out)
    finish(state, settings)
    with open(settings.data / "self_cognition_100.jsonl", "a", encoding="utf-8") as file:
        file.write("\n")
    found = unfinished(state, settings)
    assert list(found) == NAMES[3:] and found["sft_train"] == ["changed: data self_cognition_100.jsonl"]
    finish(state, settings)
    faster = Settings(**{**vars(settings), "options": {"pretrain": ("optim_wrapper.optimizer.lr=1",), **settings.options}})
    found = unfinished(state, faster)
    assert list(found) == NAMES and found["pretrain_train"] == ["changed: options ([] -> ['optim_wrapper.optimizer.lr=1'])"]
    finish(state, settings)
    (model / "config.json").write_text("{ }")
    assert list(unfinished(state, settings)) == NAMES
    finish(state, settings)
    (settings.out / "sft" / "adapter" / "adapter_config.json").unlink()
    assert list(unfinished(state, settings)) == ["sft_convert"]
    state.begin("sft_merge", plan(settings)[5].fingerprint)
    assert unfinished(state, settings)["sft_merge"] == ["it was interrupted"]


def test_missing_data_file(settings):
    (settings.data / "heishenghua_pretraining.jsonl").unlink()
    with pytest.raises(SettingsError, match="data file not found: .*heishenghua_pretraining.jsonl; --data names"):
        plan(settings)


def test_dry_run_prints_commands_that_a_shell_reads(settings):
    lines = commands(settings)
    convert = f'{settings.config("sft")} "$(cat {settings.out}/sft/train/last_checkpoint)" {settings.out}/sft/adapter.part --fp32'
    assert [line for line in lines if "pth_to_hf.py" in line and convert in line]
    assert f"mv {settings.out}/sft/adapter.part {settings.out}/sft/adapter" in lines
    for line in lines:
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_several_processes_are_started_by_torch(settings):
    command = plan(Settings(**{**vars(settings), "processes": 2}))[0].command(None)
    assert command[:3] == [sys.executable, "-m", "xtuner_wulewule.launcher"] and "--nproc_per_node=2" in command
    assert command[-2:] == ["--launcher", "pytorch"]


def test_differences_are_named():
    old = dict(data={"a": "sha256 1"}, lr=1, seed=0)
    assert differences(old, dict(data={"a": "sha256 2", "b": "sha256 3"}, lr=2, seed=0)) == ["data a", "data b", "lr (1 -> 2)"]


def test_broken_state_file_is_not_overwritten(tmp_path):
    (tmp_path / "state.json").write_text("my notes")
    with pytest.raises(SettingsError, match="is not a state file"):
        State(tmp_path)
    assert (tmp_path / "state.json").read_text() == "my notes"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"悟": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"悟": 1}


HOLD = """
import sys, time
from xtuner_wulewule.recipe.state import lock_folder
lock = lock_folder(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        begin = time.monotonic()
        with pytest.raises(SettingsError, match=f"another wulewule run \\(process {holder.pid}\\) works in"):
            lock_folder(tmp_path)
        assert time.monotonic() - begin < 1
    finally:
        holder.kill()
        holder.wait()
    lock_folder(tmp_path).close()  # kill -9 leaves no lock behind


def test_step_that_outlives_a_killed_run_is_waited_for(tmp_path):
    code = (
        "import subprocess, sys; from xtuner_wulewule.recipe.state import lock_folder; lock = lock_folder(sys.argv[1]); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1.5)'], pass_fds=[lock.fileno()])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    begin = time.monotonic()
    lock_folder(tmp_path).close()
    assert 0.3 < time.monotonic() - begin < 10


# checkpoints


def test_newest_whole_checkpoint_is_resumed(tmp_path):
    for number in (5, 10, 15):
        torch.save(dict(weights=torch.ones(1000)), tmp_path / f"iter_{number}.pth")
    assert checkpoint_to_resume(tmp_path) == (tmp_path / "iter_15.pth", [])
    os.truncate(tmp_path / "iter_15.pth", (tmp_path / "iter_15.pth").stat().st_size // 2)
    assert checkpoint_to_resume(tmp_path) == (tmp_path / "iter_10.pth", [tmp_path / "iter_15.pth"])
    folder = tmp_path / "iter_20.pth"  # DeepSpeed's
    folder.mkdir()
    assert not is_whole(folder)
    torch.save(1, folder / "mp_rank_00_model_states.pt")
    assert not is_whole(folder)  # killed before the optimizer's file
    torch.save(1, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert checkpoint_to_resume(tmp_path) == (folder, [])
    assert not is_whole(folder, processes=2)
    torch.save(1, folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")
    assert is_whole(folder, processes=2) and is_whole(folder)
    assert checkpoint_to_resume(tmp_path / "nothing") == (None, [])


def test_report_counts_iterations_and_not_the_logged_ones(settings):
    folder = settings.out / "sft" / "train"
    (folder / "20260101_000000" / "vis_data").mkdir(parents=True)
    torch.save(1, folder / "iter_118.pth")
    (folder / "20260101_000000" / "vis_data" / "scalars.json").write_text(
        '{"iter": 10, "loss": 7.0, "lr": 1}\n{"iter": 110, "loss": 6.0, "lr": 1}\n'
    )
    assert finish_step(settings, plan(settings)[3]) == dict(iterations=118, first_loss=7.0, last_loss=6.0)


# resources

SHAPES = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8)
SHAPES["vocab_size"] = 92544
SHAPES_7B = dict(SHAPES, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)


def test_estimates_are_those_that_were_measured():
    assert resources.parameters(SHAPES) / 1e9 == pytest.approx(1.889, abs=0.001)
    assert resources.training_memory(SHAPES, 2048, 32) == pytest.approx(10.95e9, rel=0.12)
    assert resources.training_memory(SHAPES, 2048, 64, least=True) < 5e9 < resources.training_memory(SHAPES_7B, 2048, 64, least=True) < 12e9


def test_sizes_of_the_fused_step_are_its_own():
    from xtuner_wulewule.model.fused import decoder, step

    assert (resources.AT_A_TIME, resources.LOGITS) == (step.TOKENS, decoder.LOGITS * decoder.CHUNK * 2)


def test_lora_parameters_are_those_of_peft():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shapes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=100)
    model = LlamaForCausalLM(LlamaConfig(**shapes))
    targets = ["gate_proj", "up_proj", "down_proj", "o_proj", "lm_head"]
    separate = 2 * 4 * ((32 + 32) + 2 * (32 + 16))  # Llama has q, k and v apart, InternLM2 in one matrix
    fused = 2 * 4 * (32 + 64)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=[*targets, "q_proj", "k_proj", "v_proj"]))
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert resources.lora_parameters(shapes, 4) == trained - separate + fused


def test_gpu_memory_that_not_even_a_row_fits_is_refused(settings, model, monkeypatch):
    (model / "config.json").write_text(json.dumps(SHAPES))
    big = Settings(**{**vars(settings), "size": "1_8b"})
    big.out.mkdir()
    step = plan(big)[3]
    monkeypatch.setattr(resources, "free_gpu_memory", lambda: 2 * 2**30)
    with pytest.raises(
        SettingsError, match=r"sft_train needs \d.\d GiB of GPU memory at least and 2.0 GiB are free; end other programs .* a smaller model"
    ):
        resources.check_step(step, big)
    monkeypatch.setattr(resources, "free_gpu_memory", lambda: 6 * 2**30)
    resources.check_step(step, big)


def test_short_disk(tmp_path):
    with pytest.raises(SettingsError, match="merge needs 1048576.00 GiB on the disk of .* make room"):
        resources.check_disk(tmp_path, 2**50, "merge")
    resources.check_disk(tmp_path, 1, "merge")


# the command line


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(None, {}), ("3", {"pretrain": "3", "sft": "3"}), ("pretrain=1,sft=2", {"pretrain": "1", "sft": "2"}), ("sft=2", {"sft": "2"})],
)
def test_numbers_for_each_stage(value, wanted):
    assert per_stage(value, ("pretrain", "sft"), "--epochs", int) == wanted


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--epochs", "two"], "--epochs two: give one positive number"),
        (["--epochs", "0"], "--epochs 0: give one positive number"),
        (["--lr", "both=1"], "--lr both=1: give one positive number"),
        (["--stages", "sft,pretrain"], "--stages sft,pretrain: give pretrain,sft or one of them"),
        (["--set", "lr"], "--set lr: expected KEY=VALUE"),
        (["--set", "stf:model.lora.r=32"], "--set stf:model.lora.r=32: stf is not a stage of this run (pretrain, sft)"),
        (["--stages", "sft", "--set", "pretrain:lr=1"], "--set pretrain:lr=1: pretrain is not a stage of this run (sft)"),
        (["--set", "train_dataloder.batch_size=8"], "--set train_dataloder.batch_size=8: train_dataloder is not in"),
        (["--cfg-options", "a=b", "c=d"], "--cfg-options a=b c=d: wulewule run takes --set KEY=VALUE instead, once for each value"),
        (["--cfg-options"], "--cfg-options: wulewule run takes --set KEY=VALUE instead"),
        (["--lr", "nan"], "--lr nan: give one positive number"),
        (["--nproc", "0"], "--nproc 0: at least 1"),
        (["--model", "/no/such"], "model '/no/such' not found"),
        (["--model", "nobody/no-such-model", "--hub", "modelscope"], "--hub modelscope needs its package"),
        (["--data", "/no/data"], "data file not found: /no/data/heishenghua_pretraining.jsonl"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, problem, tmp_path, capsys, model):
    out = tmp_path / "out"
    assert cli.main(["run", "--size", "tiny", "--out", str(out), "--model", str(model), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"xtuner-wulewule: error: {problem}") and error.count("\n") == 1
    assert not out.exists() or {path.name for path in out.iterdir()} <= {".lock"}


def run_without_a_gpu(folder, *arguments, **env):
    """Return the lines of standard error of `wulewule run` on a machine without a GPU, which fails."""
    result = run([WULEWULE, "run", "--out", "out", *arguments], folder, HF_HOME=str(folder / "hub"), **env)
    assert result.returncode == 1 and result.stdout == "" and not (folder / "out").exists()
    return result.stderr.splitlines()


def test_a_model_out_of_reach_is_told_in_the_options_of_the_command(tmp_path):
    note, error = run_without_a_gpu(tmp_path)
    assert (
        note
        == "note: nvidia-smi shows no GPU here, and --size 1_8b needs one, since it loads the model in 4 bit; --size tiny trains without"
    )
    assert error.startswith("xtuner-wulewule: error: model 'internlm/internlm2_5-1_8b-chat' not found: there is no such folder and the hub")
    assert "; set --model to a folder" in error and error.endswith(", or take it from ModelScope with --hub modelscope")
    assert "WULEWULE_MODEL" not in error
    (error,) = run_without_a_gpu(tmp_path, "--size", "tiny", "--model", "no/such/folder")
    assert error.endswith("there is no such folder; set --model to a folder that holds the model, or to the id of one")
    (error,) = run_without_a_gpu(tmp_path, "--size", "tiny", "--model", ".")
    assert error.endswith("has no config.json: give the folder that holds the model, in --model")
    (error,) = run_without_a_gpu(tmp_path, "--size", "tiny", WULEWULE_MODEL=".")  # what was set is what is named
    assert error.endswith("has no config.json: give the folder that holds the model, in WULEWULE_MODEL")


def test_the_model_of_a_size_has_the_id_that_its_hub_knows(tmp_path):
    for hub, owner in (("huggingface", "internlm"), ("modelscope", "Shanghai_AI_Laboratory")):
        result = run([WULEWULE, "run", "--hub", hub, "--size", "7b", "--out", "out", "--dry-run"], tmp_path)
        assert f"merge.py {owner}/internlm2_5-7b-chat " in result.stdout, result.stderr


def test_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, model):
    (tmp_path / "file").touch()
    assert cli.main(["run", "--size", "tiny", "--out", str(tmp_path / "file"), "--model", str(model)]) == 1
    assert capsys.readouterr().err.startswith(f"xtuner-wulewule: error: --out {tmp_path}/file cannot be made")


DOWNLOAD = "from xtuner_wulewule.model.hub import download, find_model; print(download(find_model('some/model')))"


def test_hub_id_becomes_the_folder_in_the_cache(tmp_path):
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    result = python(DOWNLOAD, tmp_path, HF_HOME=str(tmp_path))
    assert result.stdout.strip() == str(snapshot), result.stderr


# the check of a merge


@pytest.fixture
def merged(tmp_path, monkeypatch):
    """(base, adapter, merged) of a Llama with LoRA, merged in float16 as XTuner does it."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shapes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=100)
    base, adapter, merged = (str(tmp_path / name) for name in ("base", "adapter", "merged"))
    LlamaForCausalLM(LlamaConfig(**shapes)).save_pretrained(base)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"]))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    model.half().save_pretrained(adapter)
    plain = LlamaForCausalLM.from_pretrained(base, torch_dtype=torch.float16)
    PeftModel.from_pretrained(plain, adapter).merge_and_unload().save_pretrained(merged)
    return base, adapter, merged


def change(folder, function, name="model.safetensors"):
    file = f"{folder}/{name}"
    tensors = load_file(file)
    function(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_merge_passes_when_it_is_right(merged):
    found = check_merge(*merged)
    assert found["changed"] == 3 and 0 < found["largest_error"] <= 1


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_one_wrong_number_in_a_merge_is_found(merged, name):
    def wrong(tensors):
        tensors[name].view(-1)[3] *= 1.01

    change(merged[2], wrong)
    with pytest.raises(StepError, match=f"{name} of .* is not base"):
        check_merge(*merged)


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
def test_merge_of_another_adapter_is_found_where_little_was_learned(merged, factor):
    base, adapter, folder = merged

    def little(tensors):
        for name in tensors:
            if "lora_B" in name:
                tensors[name].mul_(2e-3)

    change(adapter, little, "adapter_model.safetensors")
    old, lora = load_file(f"{base}/model.safetensors"), load_file(f"{adapter}/adapter_model.safetensors")

    def merge(share):
        def wrong(tensors):
            for name in lora:
                if "lora_A" in name:
                    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    product = 2 * lora[name.replace("lora_A", "lora_B")].float() @ lora[name].float()
                    tensors[f"{module}.weight"] = (old[f"{module}.weight"].half() + share * product).half()

        return wrong

    change(folder, merge(1.0))
    check_merge(*merged)
    change(folder, merge(factor))
    with pytest.raises(StepError):
        check_merge(*merged)


def test_merge_with_another_base_is_refused(merged, tmp_path):
    other = shutil.copytree(merged[0], tmp_path / "other")
    with pytest.raises(StepError, match="was trained on .*base, not on .*other"):
        check_merge(str(other), *merged[1:])


def test_adapter_that_learned_nothing_is_refused(merged):
    def zero(tensors):
        for name in tensors:
            if "lora_B" in name:
                tensors[name].zero_()

    change(merged[1], zero, "adapter_model.safetensors")
    shutil.rmtree(merged[2])
    shutil.copytree(merged[0], merged[2])
    with pytest.raises(StepError, match="nothing was learned"):
        check_merge(*merged)

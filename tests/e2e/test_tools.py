"""XTuner's other tools, given what is not there or can't be written: one line, and every other error keeps its traceback."""

import json

import pytest
from commands import last_line, python, xtuner

from xtuner_wulewule.model.tiny import tiny_model

NO_CONFIG = "Cannot find nope: there is no such file, and no packaged config of that name; see xtuner list-cfg -p wulewule"
NO_CHECKPOINT = "Cannot find nope.pth: there is no such checkpoint, neither a file nor a DeepSpeed folder"
NO_MODEL = "model 'nope' not found: there is no such folder and the hub does not give it ("
NO_ADAPTER = "adapter folder nope has no adapter_config.json: give what xtuner convert pth_to_hf wrote"


def ends_with(message, arguments, folder):
    result = xtuner(*arguments, folder=folder)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last_line(result.stderr).startswith(f"xtuner-wulewule: error: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("copy-cfg", "nope", "."), NO_CONFIG),
        (("convert", "pth_to_hf", "nope", "nope.pth", "out"), NO_CONFIG),
        (("convert", "pth_to_hf", "wulewule_sft_tiny", "nope.pth", "out"), NO_CHECKPOINT),
        (("convert", "merge", "nope", "nope", "out"), NO_MODEL),
        (("convert", "merge", ".", "nope", "out"), "model folder . has no config.json: name the folder that holds the model"),
        (("chat", "nope"), NO_MODEL),
        (("chat", tiny_model, "--adapter", "nope"), NO_ADAPTER),
    ],
    ids=lambda value: " ".join(getattr(one, "__name__", one) for one in value) if isinstance(value, tuple) else "",
)
def test_what_is_not_there(arguments, message, tmp_path):
    ends_with(message, [one() if callable(one) else one for one in arguments], tmp_path)


@pytest.mark.parametrize("command", [("train",), ("copy-cfg",), ("convert", "pth_to_hf")], ids=" ".join)
def test_a_misspelt_config_of_ours_is_told_before_a_tool_is_imported(command, tmp_path):
    result = xtuner(*command, "wulewule_sft_18b", "a", "b", folder=tmp_path, NPROC_PER_NODE="2")
    line = f"xtuner-wulewule: error: {NO_CONFIG.replace('nope', 'wulewule_sft_18b')}\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line)  # not a word of DeepSpeed or torch's launcher


def test_the_first_look_at_a_config_refuses_nothing_that_a_tool_takes(tmp_path):
    (tmp_path / "wulewule_mine.py").write_text("max_length = 'mine'")
    assert xtuner("copy-cfg", "wulewule_sft_tiny", ".", folder=tmp_path).returncode == 0
    assert "Cannot find" not in xtuner("log-dataset", "wulewule_mine.py", folder=tmp_path).stderr  # a file, which the tool opens
    asked = xtuner("train", "wulewule_sft_18b", "--help", folder=tmp_path)
    assert asked.returncode == 0 and "usage:" in asked.stdout
    whole = xtuner("copy-cfg", "wulewule_sft_18b", ".", folder=tmp_path, WULEWULE_TRACEBACK="1")
    assert whole.returncode == 1 and "Traceback" in whole.stderr


@pytest.mark.parametrize(
    ("target", "why"), [("/proc/out", "No such file or directory"), ("file", "File exists"), ("file/out", "Not a directory")]
)
def test_target_that_cannot_be_written(target, why, tmp_path):
    (tmp_path / "file").write_text("mine")
    ends_with(
        f"the folder {target} cannot be written: {why}; name another one, or mend this one",
        ("copy-cfg", "wulewule_sft_tiny", target),
        tmp_path,
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("options", [(), ("--max-shard-size", "2GB", "--safe-serialization"), ("--device=cpu",)])
@pytest.mark.parametrize("first", [True, False])
def test_merge_into_a_file_is_refused_before_anything_is_loaded(options, first, tmp_path):
    (tmp_path / "file").write_text("mine")
    given = ("nope", "nope", "file")
    result = xtuner("convert", "merge", *((*options, *given) if first else (*given, *options)), folder=tmp_path)
    said = "xtuner: error: the folder file cannot be written: File exists; name another one, or mend this one\n"
    assert (result.returncode, result.stderr) == (1, said) and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("adapter", ["empty", "nope", "folder/nope"])
def test_merge_of_what_is_no_adapter_is_refused_before_anything_is_loaded(adapter, tmp_path):
    for folder in ("model", "empty", "folder"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("no model either")
    result = xtuner("convert", "merge", "model", adapter, "out", "--device", "cpu", folder=tmp_path)
    said = f"xtuner: error: adapter folder {adapter} has no adapter_config.json: give what xtuner convert pth_to_hf wrote\n"
    assert (result.returncode, result.stderr) == (1, said)


def test_merge_beside_an_earlier_model_that_would_be_loaded_instead_is_refused(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.safetensors").write_text("an earlier merge")
    result = xtuner("convert", "merge", "nope", "nope", "out", folder=tmp_path)
    said = (
        "the folder out holds model.safetensors, which would be loaded instead of this merge; name another one, or add --safe-serialization"
    )
    assert (result.returncode, result.stderr) == (1, f"xtuner: error: {said}\n")
    result = xtuner("convert", "merge", "nope", "nope", "out", "--safe-serialization", folder=tmp_path)
    assert result.returncode == 1 and last_line(result.stderr).startswith(f"xtuner-wulewule: error: {NO_MODEL}")
    assert (folder / "model.safetensors").read_text() == "an earlier merge"


def test_xtuner_still_merges_into_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    code = f"""
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({tiny_model()!r}, trust_remote_code=True)
get_peft_model(model, LoraConfig(target_modules=["wqkv"], task_type="CAUSAL_LM")).save_pretrained("adapter")
import runpy, sys
sys.argv[1:] = [{tiny_model()!r}, "adapter", "file"]
runpy.run_module("xtuner.tools.model_converters.merge", run_name="__main__")
"""
    result = python(code, tmp_path, autoload=False)
    assert result.returncode == 0, result.stderr[-2000:] + "\nupstream no longer has the defect? Then delete compat._merge_problem"
    assert "All done!" in result.stdout and (tmp_path / "file").read_text() == "mine"


def test_other_errors_keep_their_traceback(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken.pth").write_text("no checkpoint")
    for arguments in (("merge", "model", "adapter", "out"), ("pth_to_hf", "wulewule_sft_tiny", "broken.pth", "out")):
        result = xtuner("convert", *arguments, folder=tmp_path)
        assert result.returncode == 1 and "Traceback" in result.stderr and "xtuner-wulewule: error" not in result.stderr

"""What the user sets of a config: what would change nothing, or can't be meant, ends in one line that says what to set instead."""

import argparse
import errno

import pytest
import xtuner.registry  # noqa: F401  with it the plugin watches what is set
from commands import WULEWULE, last_line, run, xtuner
from mmengine.config import Config

from xtuner_wulewule import paths
from xtuner_wulewule.errors import SettingsError, explain_options, explain_paths
from xtuner_wulewule.prompts import VARIABLES
from xtuner_wulewule.settings import READ_ONCE, check_number

CONFIGS = [name for name in paths.config_paths() if name.startswith("wulewule")]


@pytest.mark.parametrize("name", CONFIGS)
def test_places_have_the_values_of_the_names(name):
    config = Config.fromfile(paths.config_paths()[name])
    text = config.text
    for key, place in READ_ONCE.items():
        if place in (None, *VARIABLES.values()) or f"\n{key} = " not in text:
            continue
        found = config
        for part in place.split("."):
            found = found[part]
        value = config[key]
        assert (list(found) == list(value)) if key in ("betas", "data_files") else (found == value), key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_plain_value_of_a_config_is_known(name):
    """Either nothing changes where it is set afterwards, and `READ_ONCE` has it, or something reads it from the config."""
    config = Config.fromfile(paths.config_paths()[name])
    read = {"log_level", "load_from", "resume", "evaluation_inputs", "gate", "custom_hooks"}
    plain = {key for key, value in config.items() if not isinstance(value, dict) and not callable(value)}
    assert plain - read <= set(READ_ONCE), plain - read - set(READ_ONCE)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("lr=1e-9", "--cfg-options lr: lr is used only while the config is read, so nothing would change; set optim_wrapper.optimizer.lr"),
        ("AUTHOR=李雷", "--cfg-options AUTHOR: AUTHOR is used only while the config is read, so nothing would change; set WULEWULE_AUTHOR"),
        ("dtype=float16", "change it in a copy of the config: xtuner copy-cfg NAME ."),
        (
            "train_dataset.max_length=64",
            "train_dataset.max_length is used only while the config is read, so nothing would change; "
            "set train_dataloader.dataset.max_length",
        ),
        (
            "tokenizer.padding_side=left",
            "tokenizer.padding_side is used only while the config is read, so nothing would change; change it in",
        ),
        ("optim_wrapper.optimizer.lr=abc", "--cfg-options optim_wrapper.optimizer.lr=abc: it is a number, such as 0.0015"),
        ("optim_wrapper.optimizer.lr=-1", "--cfg-options optim_wrapper.optimizer.lr=-1: it must be a number from 0 on"),
        (
            "SYSTEM=You are Pebble, made by Li Lei.",
            "only while the config is read, so nothing would change; set WULEWULE_SYSTEM",
        ),
        ("train_dataloader.batch_size=0", "--cfg-options train_dataloader.batch_size=0: it must be a whole number from 1 on"),
        ("optim_wrapper.optimizr.lr=1", "there is no optimizr; optim_wrapper.optimizer.lr is meant, perhaps"),
        ("foo", "--cfg-options foo: expected KEY=VALUE"),
    ],
)
def test_xtuner_train_refuses_what_cannot_be_meant(option, message, tmp_path):
    result = xtuner("train", "wulewule_sft_tiny", "--work-dir", "work", "--cfg-options", option, folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last_line(result.stderr).startswith("xtuner-wulewule: error: ") and message in last_line(result.stderr)


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_seed_that_numpy_refuses(seed, tmp_path):
    result = xtuner("train", "wulewule_sft_tiny", "--work-dir", "work", "--seed", seed, folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last_line(result.stderr) == f"xtuner-wulewule: error: --seed {seed}: it must be a whole number from 0 to 4294967295"


@pytest.mark.parametrize("work_dir", ["/proc/work", "file", "file/work"])
def test_work_dir_that_cannot_be_written(work_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = xtuner("train", "wulewule_sft_tiny", "--work-dir", work_dir, folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last_line(result.stderr).startswith(f"xtuner-wulewule: error: --work-dir {work_dir} cannot be written: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_beside_it_is_not_the_work_dir(tmp_path):
    arguments = ["--work-dir", str(tmp_path / "work")]
    for name, told in (("work", True), ("work/x", True), ("work2", False)):
        error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))
        assert (explain_options(error, arguments) is not None) == told, name


def test_a_file_that_is_missing_in_the_work_dir_was_to_be_read(tmp_path):
    arguments = ["--work-dir", str(tmp_path / "a" / "out")]
    for name, told in (("a/out", True), ("a", True), ("a/out/rows.json", False), ("a/out/iter_5.pth", False)):
        error = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / name))
        assert (explain_options(error, arguments) is not None) == told, name


@pytest.mark.parametrize(
    "setting",
    [("train_cfg.max_epochs", 0.5), ("train_cfg.max_iters", 100.0), ("optim_wrapper.clip_grad.max_norm", float("inf"))]
    + [("optim_wrapper.optimizer.lr", 0), ("train_dataloader.batch_size", 8)],
)
def test_numbers_that_xtuner_takes_are_taken(setting):
    assert check_number(*setting, "--set") is None


@pytest.mark.parametrize("key", ["train_cfg.max_iters", "train_dataloader.batch_size"])
def test_counts_are_refused_in_the_same_words(key):
    with pytest.raises(SettingsError, match="^--set: it must be a whole number from 1 on$"):
        check_number(key, 0.5, "--set")


def test_tokenizer_of_a_whole_model_can_be_set():
    """`xtuner convert` reads it where there is no LoRA."""
    config = Config.fromfile(paths.config_paths()["wulewule_sft_tiny"])
    change = {"tokenizer.pretrained_model_name_or_path": "there"}
    with pytest.raises(SettingsError, match="tokenizer"):
        config.merge_from_dict(change)
    del config.model["lora"]
    config.merge_from_dict(change)
    assert config.tokenizer.pretrained_model_name_or_path == "there"


def test_wulewule_run_refuses_what_changes_nothing(tmp_path):
    command = [WULEWULE, "run", "--size", "tiny", "--out", "out", "--set"]
    result = run([*command, "max_epochs=1"], tmp_path)
    assert result.returncode == 1 and last_line(result.stderr).endswith("so nothing would change; set train_cfg.max_epochs")
    result = run([*command, "sft:train_dataset.max_length=64"], tmp_path)
    assert result.returncode == 1 and last_line(result.stderr).endswith("; set train_dataloader.dataset.max_length")
    unknown = run([*command, "nope=1"], tmp_path)
    assert unknown.returncode == 1 and "optim_wrapper" in unknown.stderr and " lr," not in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "optim_wrapper.optimizer.lr=-1"), "--set optim_wrapper.optimizer.lr=-1: it must be a number from 0 on"),
        (("--set", "optim_wrapper.optimizer.lr=nan"), "--set optim_wrapper.optimizer.lr=nan: it must be a number from 0 on"),
        (("--set", "sft:train_cfg.max_epochs=0"), "--set sft:train_cfg.max_epochs=0: it must be a number over 0"),
        (("--set", "train_dataloader.batch_size=True"), "--set train_dataloader.batch_size=True: it must be a whole number from 1 on"),
        (("--set", "optim_wrapper.optimizer.weight_decay=-1"), "weight_decay=-1: it must be a number from 0 on"),
        (("--seed", "-1"), "--seed -1: it must be a whole number from 0 to 4294967295"),
        (
            ("--deepspeed", "zero9"),
            "Cannot find zero9: there is no such file, and no packaged config of that name; see xtuner list-cfg -p deepspeed",
        ),
        (
            ("--deepspeed", "wulewule_sft_tiny"),
            "--deepspeed wulewule_sft_tiny: it must be JSON: a name that xtuner list-cfg -p deepspeed shows, or a file",
        ),
    ],
)
def test_wulewule_run_refuses_what_cannot_be_meant(arguments, message, tmp_path):
    result = run([WULEWULE, "run", "--size", "tiny", "--out", "out", *arguments], tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr and not (tmp_path / "out").exists()
    assert last_line(result.stderr).startswith("xtuner-wulewule: error: ") and last_line(result.stderr).endswith(message)


@pytest.mark.parametrize("name", ["deepspeed_zero1", "deepspeed_zero2_fp32", "mine.json"])
def test_deepspeed_settings_that_are_there(name, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    result = run([WULEWULE, "run", "--size", "tiny", "--out", "out", "--deepspeed", name, "--dry-run"], tmp_path)
    assert result.returncode == 0 and f"--deepspeed {name}" in result.stdout


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_cfg.max_iters", 5),
        ("train_cfg.max_epochs", None),
        ("model.lora.r", 32),
        ("model.checkpointing", "full"),
        ("model.llm.attn_implementation", "sdpa"),
        ("optim_wrapper.optimizer.lr", 1),
        ("custom_hooks.5.every_n_iters", None),
        ("custom_hooks", []),
        ("new.key", "x"),
    ],
)
def test_what_can_be_meant_is_taken(key, value):
    for name in CONFIGS:
        config = Config.fromfile(paths.config_paths()[name])
        config.merge_from_dict({key: value})
        found = config
        for part in key.split("."):
            found = found[int(part)] if part.isdigit() else found[part]
        assert found == value


@pytest.mark.parametrize("name", CONFIGS)
def test_what_hooks_hold_copies_of_changes_there_too(name):
    config = Config.fromfile(paths.config_paths()[name])
    config.merge_from_dict({"evaluation_inputs": ["one", "two"]})
    (hook,) = [hook for hook in config.custom_hooks if "evaluation_inputs" in hook]
    assert hook.evaluation_inputs == config.evaluation_inputs == ["one", "two"]


def test_what_is_set_of_a_hook_itself_goes_before():
    config = Config.fromfile(paths.config_paths()["wulewule_sft_tiny"])
    (number,) = [number for number, hook in enumerate(config.custom_hooks) if "evaluation_inputs" in hook]
    config.merge_from_dict({"evaluation_inputs": ["one"], f"custom_hooks.{number}.evaluation_inputs": ["two"]})
    assert (config.evaluation_inputs, config.custom_hooks[number].evaluation_inputs) == (["one"], ["two"])
    config.merge_from_dict(dict(evaluation_inputs=["three"], custom_hooks=[]))
    assert (config.evaluation_inputs, config.custom_hooks) == (["three"], [])


def test_settings_that_are_read_are_taken(tmp_path):
    """A config without a train_dataloader, as one of `framework = "huggingface"`: the trainer reads train_dataset itself."""
    file = tmp_path / "config.py"
    file.write_text('train_dataset = dict(type="xtuner_wulewule.dataset.build.build_wulewule_dataset", max_length=1)\n')
    config = Config.fromfile(str(file))
    config.merge_from_dict({"train_dataset.max_length": 2})
    assert config.train_dataset.max_length == 2


def test_configs_of_others_stay_as_they_are(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("lr = 1\n")
    config = Config.fromfile(str(file))
    config.merge_from_dict(dict(lr=2))
    assert config.lr == 2


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (dict(model_name_or_path="nope"), OSError("nope is not a local folder and no model of the hub.\nMore."), "(nope is not a local"),
        (dict(model_name_or_path="me/gated"), OSError("You are trying to access a gated repo: me/gated."), "gated repo"),
        (dict(model_name_or_path="me/it"), OSError("cannot identify image file 'broken.jpg'"), None),  # of `--image`
        (dict(model_name_or_path="me/it"), OSError("me/encoder is no model of the hub"), None),  # of `--visual-encoder`
        (dict(adapter="me/adapter"), ValueError("Can't find 'adapter_config.json' at 'me/adapter'"), None),
        (dict(save_dir="."), FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.json"), None),
        (dict(save_dir="."), PermissionError(errno.EACCES, "Permission denied", "./new"), "the folder . cannot be written"),
    ],
)
def test_only_what_a_tool_was_given_is_told(given, error, told):
    """An error of something else keeps its traceback, in the commands of who only has the plugin installed."""
    tool = {}
    exec(compile("def main(args, error):\n    raise error", "site-packages/xtuner/tools/chat.py", "exec"), tool)
    with pytest.raises(type(error)) as raised:
        tool["main"](argparse.Namespace(**given), error)
    found = explain_paths(raised.value, raised.value.__traceback__)
    assert found is None if told is None else told in str(found)


def test_a_number_that_may_be_found_by_itself():
    config = Config.fromfile(paths.config_paths()["wulewule_sft_tiny"])
    config.merge_from_dict({"model.micro_batch_tokens": 8192})
    config.merge_from_dict({"model.micro_batch_tokens": "auto"})
    assert config.model.micro_batch_tokens == "auto"
    config.merge_from_dict({"model.micro_batch_tokens": 8192})
    with pytest.raises(SettingsError, match="it is a number, such as 8192"):
        config.merge_from_dict({"model.micro_batch_tokens": "all"})

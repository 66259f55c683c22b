"""Every packaged config is read by mmengine, and holds to the rules of the recipe."""

import re

import pytest
from mmengine.config import Config

from xtuner_wulewule import paths, prompts

FILES = {path.stem: path for path in sorted(paths.configs_dir().rglob("*.py"))}
NAMES = [f"wulewule_{stage}_{size}" for stage in ("pretrain", "sft") for size in ("1_8b", "7b", "tiny")]


def test_there_are_six():
    assert sorted(FILES) == sorted(NAMES)


@pytest.fixture(scope="module", params=NAMES)
def config(request):
    return request.param, Config.fromfile(str(FILES[request.param])), FILES[request.param].read_text(encoding="utf-8")


def test_guide_and_design_hold(config):
    name, cfg, _ = config
    assert cfg.accumulative_counts == cfg.optim_wrapper.accumulative_counts == 1
    assert cfg.default_hooks.checkpoint.max_keep_ckpts >= 2
    assert [str(backend["type"]).rpartition(".")[2].strip("'>") for backend in cfg.visualizer.vis_backends] == [
        "LocalVisBackend",
        "TensorboardVisBackend",
    ]
    assert len(cfg.evaluation_inputs) == 4
    hooks = [hook["type"].__name__ if not isinstance(hook["type"], str) else hook["type"].rpartition(".")[2] for hook in cfg.custom_hooks]
    assert hooks[:2] == ["AccumulativeCountsHook", "UpdateBudgetHook"]
    lora = cfg.model.lora
    if "tiny" not in name:
        assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (64, 128, 0.1)
        quantization = cfg.model.llm.quantization_config
        assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4" and quantization.bnb_4bit_use_double_quant
        assert cfg.max_epochs < 10
    if "pretrain" in name:
        assert cfg.train_dataset.shuffle is False and cfg.train_dataset.packing == "concat"
        assert "NoShuffleSampler" in str(cfg.train_dataloader.sampler.type)
    else:
        assert prompts.Persona() == prompts.Persona(tuple(cfg.NAMES), cfg.AUTHOR, cfg.SYSTEM)
        assert cfg.data_files[0].endswith("self_cognition_100.jsonl") and cfg.data_files[1].endswith("huixiangdou_conversations.jsonl")


def test_header_names_the_commands(config):
    name, _, text = config
    header = text.partition("\nfrom ")[0]
    assert header.startswith(f"# {name}: ")
    settings = ("WULEWULE_MODEL=", "WULEWULE_DATA_DIR=", "tensorboard --logdir")
    for command in (f"xtuner train {name} ", "NPROC_PER_NODE=2 ", "--deepspeed deepspeed_zero1", *settings):
        assert command in header
    assert f"xtuner copy-cfg {name} ." in header and f"./{name}_copy.py" in header
    assert len(re.findall(r"PART \d", text)) == 5
    assert re.search(r"[一-鿿]", header)


def test_dumped_config_is_the_same_config(config, tmp_path):
    # mmengine writes it beside each run, and `convert` reads that file
    name, cfg, _ = config
    cfg.dump(tmp_path / f"{name}.py")
    again = Config.fromfile(str(tmp_path / f"{name}.py"))
    assert [again.get(key) for key in ("NAMES", "AUTHOR", "SYSTEM")] == [cfg.get(key) for key in ("NAMES", "AUTHOR", "SYSTEM")]
    assert again.optim_wrapper.optimizer.lr == cfg.optim_wrapper.optimizer.lr and again.data_files == cfg.data_files


@pytest.mark.parametrize("size", ["1_8b", "7b", "tiny"])
def test_persona_of_the_environment_is_plain_text_in_the_dumped_config(size, tmp_path, monkeypatch):
    system = '你是小石头。\n别用{花括号}，也别说"不"。'
    for name, value in (("WULEWULE_NAME", "小石头,Pebble"), ("WULEWULE_AUTHOR", "李雷"), ("WULEWULE_SYSTEM", system)):
        monkeypatch.setenv(name, value)
    Config.fromfile(str(FILES[f"wulewule_sft_{size}"])).dump(tmp_path / "dumped.py")
    for name in prompts.VARIABLES.values():
        monkeypatch.delenv(name)
    dumped = Config.fromfile(str(tmp_path / "dumped.py"))
    assert (dumped.NAMES, dumped.AUTHOR, dumped.SYSTEM) == (["小石头", "Pebble"], "李雷", system)
    score = dumped.custom_hooks[-1]
    assert (score.names, score.author, score.system) == (["小石头", "Pebble"], "李雷", system)

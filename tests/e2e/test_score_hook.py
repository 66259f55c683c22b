"""The persona scored during a real training, in the log and in TensorBoard."""

import json
import re

from training import train


def test_scores_are_logged(data, tmp_path):
    output = train("wulewule_sft_tiny", data, tmp_path / "work", "train_cfg.max_epochs=1", "custom_hooks.6.every_n_iters=2")
    lines = re.findall(r"Persona: eval/name (\d+)%, eval/name_without_system (\d+)%, eval/leak (\d+)%, eval/leak_without_system", output)
    assert len(lines) == 3  # before, after two iterations, at the end
    (file,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    scored = [row for row in rows if "eval/name" in row]
    assert len(scored) == 3 and scored[-1]["eval/name"] == int(lines[-1][0]) / 100

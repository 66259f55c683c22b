"""What a finished training step left behind."""

import json
from pathlib import Path

from xtuner_wulewule.errors import StepError


def last_checkpoint(work_dir):
    """Return the path (str) that mmengine recorded as the newest checkpoint of a work folder.

    Raises:
        StepError: the training saved none.
    """
    record = Path(work_dir) / "last_checkpoint"
    path = record.read_text(encoding="utf-8").strip() if record.is_file() else ""
    if not path or not Path(path).exists():
        raise StepError(f"{work_dir} holds no checkpoint: the training saved none; see its log")
    return path


def read_scalars(work_dir):
    """Return the logged iterations (list[dict]) of a work folder, of all its runs in the order in which they were started.

    Each has at least `loss`, `lr` and `iter`, as mmengine's LocalVisBackend writes them.
    """
    rows = []
    for file in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # a run that was killed while it wrote
                continue
            if "loss" in row and "iter" in row:
                rows.append(row)
    return rows


def first_and_last_loss(work_dir):
    """Return the first and the last logged loss (tuple[float, float]) of a work folder.

    Raises:
        StepError: nothing was logged.
    """
    rows = read_scalars(work_dir)
    if not rows:
        raise StepError(f"{work_dir} holds no logged loss (*/vis_data/scalars.json)")
    return rows[0]["loss"], rows[-1]["loss"]

"""What a finished training step left behind."""

import json
import re
import zipfile
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


def is_whole(checkpoint):
    """Return whether a checkpoint, a file or a DeepSpeed folder, was written to its end (bool): whether its zip archives can be read."""
    checkpoint = Path(checkpoint)
    files = sorted(checkpoint.glob("*.pt")) if checkpoint.is_dir() else [checkpoint]
    return bool(files) and all(_is_whole_archive(file) for file in files)


def _is_whole_archive(file):
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def checkpoint_to_resume(work_dir):
    """Find the newest whole checkpoint of a work folder.

    Returns:
        tuple[pathlib.Path | None, list[pathlib.Path]]: the checkpoint, None where there is none, and newer ones that are broken.
    """
    found = [(int(match[1]), path) for path in Path(work_dir).glob("iter_*.pth") if (match := re.fullmatch(r"iter_(\d+)\.pth", path.name))]
    broken = []
    for _, path in sorted(found, reverse=True):
        if is_whole(path):
            return path, broken
        broken.append(path)
    return None, broken


def read_scalars(work_dir):
    """Return the logged iterations (list[dict]) of a work folder in their order; what a resumed run did again counts once, as it did it.

    Each has at least `loss`, `lr` and `iter`, as mmengine's LocalVisBackend writes them.
    """
    rows = {}
    for file in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # a run that was killed while it wrote
                continue
            if "loss" in row and "iter" in row:
                rows[row["iter"]] = row
    return [rows[number] for number in sorted(rows)]


def first_and_last_loss(work_dir):
    """Return the first and the last logged loss (tuple[float, float]) of a work folder.

    Raises:
        StepError: nothing was logged.
    """
    rows = read_scalars(work_dir)
    if not rows:
        raise StepError(f"{work_dir} holds no logged loss (*/vis_data/scalars.json)")
    return rows[0]["loss"], rows[-1]["loss"]

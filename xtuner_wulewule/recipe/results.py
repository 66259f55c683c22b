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


def is_whole(checkpoint, processes=1):
    """Return whether a checkpoint was written to its end (bool): whether its zip archives can be read.

    Args:
        checkpoint (str | pathlib.Path): a file, or a DeepSpeed folder.
        processes (int): of which a DeepSpeed folder must hold the optimizer states. Defaults to 1.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return _is_whole_archive(checkpoint)
    files = sorted(checkpoint.glob("*.pt"))
    ranks = [int(match[1]) for file in files if (match := re.search(r"zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt$", file.name))]
    if not ranks or not all(_is_whole_archive(file) for file in files):
        return False
    return len(ranks) == max(max(ranks) + 1, processes)  # DeepSpeed writes the model's file first, then one for each rank


def _is_whole_archive(file):
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def checkpoint_to_resume(work_dir, processes=1):
    """Find the newest whole checkpoint of a work folder; `processes` as for `is_whole`.

    Returns:
        tuple[pathlib.Path | None, list[pathlib.Path]]: the checkpoint, None where there is none, and newer ones that are broken.
    """
    found = [(int(match[1]), path) for path in Path(work_dir).glob("iter_*.pth") if (match := re.fullmatch(r"iter_(\d+)\.pth", path.name))]
    broken = []
    for _, path in sorted(found, reverse=True):
        if is_whole(path, processes):
            return path, broken
        broken.append(path)
    return None, broken


def read_scalars(work_dir):
    """Return the logged iterations (list[dict]) of a work folder in their order; what a resumed run did again counts once, as it did it.

    Each has at least `loss`, `lr` and `iter`, as mmengine's LocalVisBackend writes them.
    """
    rows = {}
    for file in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        rows.update({row["iter"]: row for row in read_rows(file) if "loss" in row and "iter" in row})
    return [rows[number] for number in sorted(rows)]


def read_rows(file):
    """Return the rows (list[dict]) of a file of JSON lines; a line that a killed run left half written is none."""
    rows = []
    for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
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

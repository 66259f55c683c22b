"""Reads single tensors of a model folder, whatever its shards are called."""

import json
from pathlib import Path

from xtuner_wulewule.errors import ModelError


class Weights:
    """The tensors of a model or adapter folder, read one by one.

    Args:
        folder (str | pathlib.Path): holds `*.safetensors` or `*.bin`, with or without an index.

    Raises:
        ModelError: it holds neither.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.files = {}
        self.loaded = {}
        for suffix in ("safetensors", "bin"):  # in the order in which transformers looks for them
            files = [file for file in sorted(self.folder.glob(f"*.{suffix}")) if "training_args" not in file.name]
            indices = sorted(self.folder.glob(f"*.{suffix}.index.json"))
            if files and indices:
                self.files = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"]
            for file in files if not indices else ():
                self.files.update(dict.fromkeys(self._open(file.name), file.name))
            if self.files:
                break
        if not self.files:
            raise ModelError(f"model folder {folder} holds no weights (*.safetensors or *.bin)")

    def _open(self, name):
        if name not in self.loaded:
            if name.endswith(".safetensors"):
                from safetensors import safe_open

                handle = safe_open(self.folder / name, framework="pt")
                self.loaded[name] = _SafeTensors(handle)
            else:
                import torch

                self.loaded[name] = torch.load(self.folder / name, map_location="cpu", weights_only=True, mmap=True)
        return self.loaded[name]

    def __iter__(self):
        return iter(sorted(self.files))

    def __getitem__(self, name):
        """Return the tensor of that name."""
        return self._open(self.files[name])[name]

    def __contains__(self, name):
        return name in self.files


class _SafeTensors:
    def __init__(self, handle):
        self.handle = handle

    def __iter__(self):
        return iter(self.handle.keys())

    def __getitem__(self, name):
        return self.handle.get_tensor(name)

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
        for index in sorted(self.folder.glob("*.index.json")):
            self.files.update(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        if not self.files:
            for file in [*sorted(self.folder.glob("*.safetensors")), *sorted(self.folder.glob("*.bin"))]:
                if "training_args" not in file.name:
                    self.files.update(dict.fromkeys(self._open(file.name), file.name))
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

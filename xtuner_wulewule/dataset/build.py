"""The data set of the wulewule configs: every token of every row once, packed by index, on the disk, built once for all ranks."""

import gc
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import numpy as np
import torch

from xtuner_wulewule import __version__, paths, prompts
from xtuner_wulewule.dataset import store as stores
from xtuner_wulewule.dataset.encode import Encoder, segments, settings_of
from xtuner_wulewule.dataset.loader import checker_of, conclude, existing_files, log_warnings
from xtuner_wulewule.dataset.packing import MODES
from xtuner_wulewule.dataset.progress import each_file, progress, total_size
from xtuner_wulewule.dataset.split import Split
from xtuner_wulewule.errors import DataError, SettingsError

BATCH_CHARACTERS = 2**20  # characters tokenised at a time
KEPT_STORES = 8  # tokenised data sets that stay in the cache
NOTHING_TRAINED = "nothing in it is trained"


def build_wulewule_dataset(
    data_files,
    tokenizer,
    max_length,
    dataset_map_fn=None,
    template_map_fn=None,
    packing="best_fit",
    shuffle=True,
    seed=0,
    path="json",
    cache_dir=None,
    held_out=0.0,
    system_dropout=0.0,
):
    """Check, tokenise and pack data files. Use it as `train_dataset = dict(type=build_wulewule_dataset, …)` in any XTuner config.

    Args:
        data_files (str | list[str]): JSON Lines files (or JSON arrays), in this order.
        tokenizer (dict | transformers.PreTrainedTokenizerBase): the tokenizer, or its config.
        max_length (int): tokens of a packed row. A longer document is split, not cut off.
        dataset_map_fn (str | callable, optional): from a row to XTuner's `conversation`; as in XTuner. An error that it raises names
            file and line.
        template_map_fn (dict | callable, optional): adds the prompt template; as in XTuner.
        packing (str | None): "best_fit" (no document is split unless longer than a row), "concat" (XTuner's way: rows are full, documents
            are split where a row ends), or None for a row a document. Defaults to "best_fit".
        shuffle (bool): shuffle the documents before they are packed. Defaults to True.
        seed (int): of that shuffle, and of `system_dropout`. Defaults to 0.
        path (str): "json", as for `datasets.load_dataset`.
        cache_dir (str, optional): where tokenised data is kept; defaults to the user's cache folder. The least recently used are deleted.
        held_out (float): share of the rows that are kept from the training, by a hash of their questions: `wulewule eval` asks them.
            Defaults to 0.
        system_dropout (float): share of the conversations that are trained without their system prompt, so that what is learned does not
            depend on it; by a hash of their texts and `seed`, so that it is the same ones in every epoch. Defaults to 0.

    Returns:
        PackedDataset: rows with `input_ids`, `labels`, `position_ids`, `cumulative_len`.

    Raises:
        DataError: a file is missing, or rows are wrong: all problems are collected, the first five named `file:line: problem`. Or every
            row is held out.
        SettingsError: an argument has a value that it can't have.
    """
    split = Split(held_out, system_dropout, seed)
    if packing not in MODES:
        raise SettingsError(f"train_dataloader.dataset.packing is {packing!r}; it must be one of {', '.join(map(repr, MODES))}")
    if not isinstance(max_length, int) or max_length < 1:
        raise SettingsError(f"train_dataloader.dataset.max_length is {max_length!r}; it must be a positive number of tokens")
    files = existing_files(data_files, path)
    tokenizer, map_fn, template = _resolve(tokenizer, dataset_map_fn, template_map_fn)
    root = paths.cache_dir() / "datasets" if cache_dir is None else paths.expand(cache_dir)
    settings = settings_of(tokenizer)
    key = stores.content_key(files, *_identity(tokenizer, settings, map_fn, template, split))
    # the ledger names files, which another machine may have elsewhere, and its warnings are about the persona that is given
    folder = root / stores.content_key([], key, files, prompts.given())
    on_one_rank(lambda: _make_store(folder, files, tokenizer, settings, map_fn, template, split), key)
    os.utime(folder)  # used now
    dataset = PackedDataset(stores.TokenStore(folder), max_length, packing, seed if shuffle else None)
    _log(dataset.describe())
    return dataset


class PackedDataset(torch.utils.data.Dataset):
    """Packed rows of a token store.

    Args:
        store (xtuner_wulewule.dataset.store.TokenStore): the documents.
        max_length (int): tokens a row at most.
        packing (str | None): one of `packing.MODES`.
        seed (int, optional): of the shuffle of the documents; None keeps their order.

    Attributes:
        length (list[int]): tokens of each row, as XTuner's samplers and hooks read it.
        rows_read (int): rows of the data files, without those that are held out.
    """

    def __init__(self, store, max_length, packing, seed=None):
        self.store, self.max_length, self.packing = store, max_length, packing
        lengths = np.diff(store.offsets)
        order = np.arange(len(lengths)) if seed is None else np.random.default_rng(seed).permutation(len(lengths))
        documents, firsts, self._lengths, self._rows = MODES[packing](lengths[order], max_length)
        self._begins = store.offsets[order[documents]] + firsts
        self.rows_read = store.ledger["rows"]
        ends = np.concatenate([[0], np.cumsum(self._lengths)])
        self.length = (ends[self._rows[1:]] - ends[self._rows[:-1]]).tolist()

    def __len__(self):
        return len(self._rows) - 1

    def __getitem__(self, index):
        """Return a row: `input_ids`, `labels` (-100 where not trained), `position_ids` (from 0 in each document), lists of the row's
        length, and `cumulative_len`, the places between documents, from 0 to the row's length."""
        return {name: values.tolist() for name, values in self._row(index).items()}

    def __getitems__(self, indices):
        """Return the rows of a batch as a loader of PyTorch asks for them: as of `__getitem__`, but arrays (int64) instead of lists."""
        return [self._row(index) for index in indices]

    def _row(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        pieces = slice(self._rows[index], self._rows[index + 1])
        begins, lengths = self._begins[pieces], self._lengths[pieces]
        tokens = np.concatenate([self.store.tokens[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)])
        trained = tokens >= 0
        ids = np.where(trained, tokens, ~tokens).astype(np.int64)
        return dict(
            input_ids=ids,
            labels=np.where(trained, ids, -100),
            position_ids=np.concatenate([np.arange(length) for length in lengths]),
            cumulative_len=np.concatenate([[0], np.cumsum(lengths)]),
        )

    def describe(self):
        """Return the ledger and the packing as one line (str)."""
        ledger, packed = self.store.ledger, int(self._lengths.sum())
        full = packed / max(1, len(self) * self.max_length)
        text = (
            f"Data: {ledger['rows']} rows, {ledger['tokens_in']} tokens, {packed} of them in {len(self)} packed rows of {self.max_length} "
            f"({self.packing or 'a row a document'}, {full:.1%} full), {ledger['tokens_in'] - packed} left out"
        )
        if ledger["left_out"]:
            first = ledger["left_out"][0]
            text += (
                f": {len(ledger['left_out'])} rows, the first {first['row']} ({first['reason']}); all: {self.store.folder}/{stores.LEDGER}"
            )
        for key, words in (("held_out", "held out for evaluation"), ("without_system", "trained without the system prompt")):
            if ledger[key]:
                text += f"; {ledger[key]} rows {words}"
        return text


def wulewule_collate_fn(instances, pad_index=0):
    """Make a batch of packed rows, padded on the right to the longest.

    Args:
        instances (list[dict]): rows of a `PackedDataset`.
        pad_index (int): id of the padding. Defaults to 0.

    Returns:
        dict: `data` with `input_ids`, `labels`, `position_ids` (int64) and, where a row holds more than one document, `document_ids`
        (int32: 1, 2, … within a row, 0 for padding), each of shape (batch, tokens); `data_samples` None. Without `document_ids` causal
        attention is enough: padding stands on the right, where no token looks.
    """
    length = max(len(instance["input_ids"]) for instance in instances)
    shape = (len(instances), length)
    data = dict(
        input_ids=torch.full(shape, pad_index),
        labels=torch.full(shape, -100),
        position_ids=torch.zeros(shape, dtype=torch.long),
    )
    documents = torch.zeros(shape, dtype=torch.int32)
    for row, instance in enumerate(instances):
        size = len(instance["input_ids"])
        for key, values in data.items():
            values[row, :size] = torch.as_tensor(instance[key])
        lengths = np.diff(instance["cumulative_len"])
        # torch's repeat_interleave takes all cores for a few numbers, and waits where other processes are on them: 8 ms a row on 16 cores
        documents[row, :size] = torch.from_numpy(np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths))
    if any(len(instance["cumulative_len"]) > 2 for instance in instances):
        data["document_ids"] = documents
    return dict(data=data, data_samples=None)


def on_one_rank(make, key):
    """Call a function on one process of each machine while the others wait; an error of one ends all.

    Args:
        make (callable): called without arguments.
        key (str): identifies what is made. It must be the same on every rank: with other rows a rank would make another number of steps,
            and the rest wait for it for ever.

    Raises:
        DataError: what `make` raised, on every rank; or a rank has another key, or ended without a word.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        make()
        return
    timeout = timedelta(minutes=int(os.environ.get("XTUNER_DATASET_TIMEOUT", "60")))  # XTuner's own setting
    with _another_may_end(timeout):
        group = distributed.new_group(backend="gloo", timeout=timeout)
    problem = None
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        try:
            make()
        except (DataError, OSError) as error:
            problem = str(error)
    answers = [None] * distributed.get_world_size()
    with _another_may_end(timeout):
        distributed.all_gather_object(answers, (problem, key), group=group)
    found = [text for text, _ in answers if text]
    if found:
        raise DataError(found[0])
    others = [rank for rank, (_, other) in enumerate(answers) if other != answers[0][1]]
    if others:
        raise DataError(
            f"process {others[0]} has other data files, or another tokenizer, than process 0; "
            "train_dataloader.dataset.data_files and the model must be the same on all machines"
        )


@contextmanager
def _another_may_end(timeout):
    """Say in one line that another rank has gone; torch tells it of a broken connection, by whichever of several errors."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(
            f"another process ended, or took longer than XTUNER_DATASET_TIMEOUT ({timeout}), while the data set was built; see its output "
            f"({str(error).splitlines()[0]})"
        ) from None


def _resolve(tokenizer, map_fn, template):
    from mmengine.utils.misc import get_object_from_string
    from xtuner.registry import BUILDER, MAP_FUNC

    if isinstance(tokenizer, dict):
        tokenizer = BUILDER.build(tokenizer)
    if isinstance(map_fn, str):
        found = MAP_FUNC.get(map_fn) or get_object_from_string(map_fn)
        if found is None:
            raise SettingsError(
                f"train_dataloader.dataset.dataset_map_fn is {map_fn!r}, which is neither registered nor the path of a function"
            )
        map_fn = found
    if isinstance(template, dict):
        template = BUILDER.build(template)
    if isinstance(template, partial) and isinstance(template.keywords.get("template"), dict):
        template = partial(template.func, template=_Template(template.keywords["template"]))
    return tokenizer, map_fn, template


class _Template(dict):
    """A prompt template of XTuner's; its ConfigDict takes longer to read than the rest of a row."""

    __getattr__ = dict.__getitem__


def _identity(tokenizer, settings, map_fn, template, split):
    """What, besides the files, decides the tokens."""
    function = (getattr(map_fn, "__module__", None), getattr(map_fn, "__qualname__", repr(map_fn)), _source(map_fn))
    return (
        __version__,
        type(tokenizer).__name__,
        settings,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        function,
        repr(getattr(template, "keywords", template)),
        prompts.current().system,
        (split.held_out, split.system_dropout, split.seed if split.system_dropout else None),
    )


def _source(function):
    import inspect

    try:
        return inspect.getsource(inspect.getmodule(function))
    except (OSError, TypeError):
        return ""


def _make_store(folder, files, tokenizer, settings, map_fn, template, split):
    if (folder / stores.LEDGER).is_file():
        log_warnings(stores.read_ledger(folder)["warnings"])
        return
    gc.freeze()  # or Python goes through everything that was imported, again and again
    try:
        stores.write(folder, _batches(files, Encoder(tokenizer, settings), map_fn, template, split))
    finally:
        gc.unfreeze()
    stores.forget_old(folder.parent, KEPT_STORES)


def _batches(files, encoder, map_fn, template, split):
    """Yield (tokens, lengths) for `store.write`, and the ledger last; raise DataError where rows are wrong."""
    ledger = dict(rows=0, tokens_in=0, tokens_kept=0, left_out=[], held_out=0, without_system=0)
    checker = checker_of(map_fn, files)
    with ThreadPoolExecutor(1) as background:  # a tokenizer works without Python's lock, while the next batch is read
        waiting = None
        for batch in _rows(files, checker, template, split, ledger):
            begun = (*batch, background.submit(encoder.tokenize, encoder.texts(batch[1])))
            if waiting is not None:
                yield _encoded(encoder, ledger, *waiting)
            waiting = begun
        ledger["warnings"] = conclude(checker)
        if waiting is not None:
            yield _encoded(encoder, ledger, *waiting)
    split.check_rest(ledger["rows"])
    yield ledger


def _rows(files, checker, template, split, ledger):
    """Yield ([place], [segments]) of about BATCH_CHARACTERS, until an error is found: after that rows are only checked."""
    places, rows, size = [], [], 0
    with progress(total_size(files), "tokenising", log=_log) as advance:
        for file, tell in each_file(files, advance):
            for row in checker.rows(file, tell):
                if checker.failed:
                    continue
                if split.holds_out(row):
                    ledger["held_out"] += 1
                    continue
                if split.drops_system(row):
                    ledger["without_system"] += 1
                    row["conversation"][0]["system"] = ""
                turns = (template(row) if template is not None else row)["conversation"]
                places.append(f"{file}:{checker.line}")
                rows.append(segments(turns))
                size += sum(len(turn["input"]) + len(turn["output"]) for turn in turns)
                if size >= BATCH_CHARACTERS:
                    yield places, rows
                    places, rows, size = [], [], 0
    if places:
        yield places, rows


def _encoded(encoder, ledger, places, rows, tokenised):
    tokens, lengths, trained = encoder.assemble(rows, tokenised.result())
    ledger["rows"] += len(lengths)
    ledger["tokens_in"] += len(tokens)
    if not trained.all():  # XTuner leaves these out too, without a word
        keep = trained > 0
        for place, length, kept in zip(places, lengths, keep, strict=True):
            if not kept:
                ledger["left_out"].append(dict(row=place, reason=NOTHING_TRAINED, tokens=int(length)))
        tokens = tokens[np.repeat(keep, lengths)]
        lengths = lengths[keep]
    ledger["tokens_kept"] += len(tokens)
    return tokens, lengths


def _log(text, level=logging.INFO):
    from mmengine import print_log

    print_log(text, logger="current", level=level)

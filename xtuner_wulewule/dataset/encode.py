"""From conversations to tokens: XTuner's `encode_fn` for many rows at once."""

import json
import re
from itertools import chain, pairwise

import numpy as np

KNOWN_CHARACTERS = 2**24  # of texts whose ids are remembered
KNOWN_PIECES = 2**19  # whose ids are remembered
KNOWN_PIECE = 64  # characters of the longest of them


class Tokenize:
    """Turns texts into ids as `tokenizer.encode(text, add_special_tokens=False)` does; a text that was met before is looked up.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): a fast one is called below transformers, which spends most of its time otherwise;
            where its model allows, by `Pieces`.
        settings (str, optional): what `settings_of` returned for it.
    """

    def __init__(self, tokenizer, settings=None):
        self._known, self._size = {}, 0
        if not getattr(tokenizer, "is_fast", False):
            self._encode = lambda texts: [np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32) for text in texts]
            return
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # as `encode` sets it
        backend.no_padding()
        settings = json.loads(settings or settings_of(tokenizer))
        self._encode = Pieces(backend, settings) if Pieces.serves(settings) else lambda texts: _backend_ids(backend, texts)

    def __call__(self, texts):
        """Return the ids (list[numpy.ndarray], int32) of texts (list[str])."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._size += sum(map(len, new))
        if self._size > KNOWN_CHARACTERS:
            self._known, self._size = {}, 0
            new = list(dict.fromkeys(texts))
        self._known.update(zip(new, self._encode(new), strict=True))
        return [self._known[text] for text in texts]


def settings_of(tokenizer):
    """Return what decides the ids of a tokenizer (str): the `tokenizer.json` of a fast one."""
    if getattr(tokenizer, "is_fast", False):
        return tokenizer.backend_tokenizer.to_str()
    return repr(sorted(tokenizer.get_vocab().items()))


def _backend_ids(backend, texts):
    encode = getattr(backend, "encode_batch_fast", backend.encode_batch)  # the same without offsets
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encode(texts, add_special_tokens=False)]


class Pieces:
    """Byte-pair encoding of whole texts by looking up short pieces of them. The ids are those of the tokenizer itself.

    SentencePiece-like models such as InternLM2's take a text as one word. BPE joins two neighbours only if a merge rule does so, and the
    text where they meet is then the last character of the one and the first of the other. Between two characters that meet in no rule
    nothing is ever joined, so a text may be cut there, and its pieces encoded apart. They are short (two characters in Chinese), and a
    corpus has few different ones.

    Args:
        backend (tokenizers.Tokenizer): the tokenizer.
        settings (dict): its `tokenizer.json`, one that `serves` accepts.
    """

    TABLE = 2**22

    def __init__(self, backend, settings):
        self._backend = backend
        self._replaced = list(_replacements(settings["normalizer"]))
        special = {token["content"]: token["id"] for token in settings["added_tokens"]}
        longest_first = sorted(special, key=len, reverse=True)
        self._special = {content: np.array([number], dtype=np.int32) for content, number in special.items()}
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if special else None
        merges = _merges(settings)
        self._meets = np.zeros(
            self.TABLE, dtype=bool
        )  # by a hash: a pair that shares its place with a rule's is not cut, which is right too
        lasts, firsts = "".join(left[-1] for left, _ in merges), "".join(right[0] for _, right in merges)
        self._meets[self._place(_codes(lasts), _codes(firsts))] = True
        self._known = {}

    @staticmethod
    def serves(settings):
        """Return whether the ids of a tokenizer (dict, its `tokenizer.json`) can be found by pieces: plain BPE on whole texts, with every
        byte in the vocabulary."""
        model = settings["model"]
        if model["type"] != "BPE" or settings["pre_tokenizer"] is not None or _replacements(settings["normalizer"]) is None:
            return False
        if any(model.get(key) for key in ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")):
            return False
        byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
        if not model["byte_fallback"] or not byte_tokens <= model["vocab"].keys():
            return False
        if any(token[key] for token in settings["added_tokens"] for key in ("single_word", "lstrip", "rstrip", "normalized")):
            return False
        return byte_tokens.isdisjoint(chain.from_iterable(_merges(settings)))

    def __call__(self, texts):
        """Return the ids (list[numpy.ndarray], int32) of texts (list[str])."""
        parts, counts = [], []
        for text in texts:
            found = self._split.split(text) if self._split else [text]
            counts.append(len(found))
            parts += found
        plain = self._plain_ids([part for part in parts if part not in self._special])
        ids = iter([self._special[part] if part in self._special else next(plain) for part in parts])
        return [next(ids) if count == 1 else np.concatenate([next(ids) for _ in range(count)]) for count in counts]

    def _plain_ids(self, texts):
        """Yield the ids of texts that hold no added token."""
        import pyarrow

        whole = "".join(texts)
        for old, new in self._replaced:  # a character for a character
            whole = whole.replace(old, new)
        codes = _codes(whole)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        cut = np.ones(len(codes) + 1, dtype=bool)
        if len(codes):
            cut[1:-1] = ~self._meets[self._place(codes[:-1], codes[1:])]
            cut[ends] = True
        bounds = np.flatnonzero(cut)
        buffers = [None, pyarrow.py_buffer(codes.itemsize * bounds), pyarrow.py_buffer(codes)]
        pieces = pyarrow.LargeBinaryArray.from_buffers(pyarrow.large_binary(), len(bounds) - 1, buffers).dictionary_encode()
        ids_of = pyarrow.array(self._ids(pieces.dictionary.to_pylist()), pyarrow.large_binary())
        # Arrow strings of bytes stand end to end, so those of the ids are the ids of the whole
        _, offsets, ids = ids_of.take(pieces.indices).buffers()
        ids = np.frombuffer(ids or b"", dtype=np.int32)
        offsets = np.frombuffer(offsets, dtype=np.int64)[np.searchsorted(bounds, ends)] // ids.itemsize
        yield from (ids[begin:end] for begin, end in pairwise([0, *offsets.tolist()]))

    def _ids(self, pieces):
        """Return the ids (list[bytes], as int32) of different pieces (list[bytes], UTF-32)."""
        new = [piece for piece in pieces if piece not in self._known]
        found = dict(zip(new, _backend_ids(self._backend, [piece.decode("utf-32-le") for piece in new]), strict=True))
        found = {piece: ids.tobytes() for piece, ids in found.items()}
        ids = [found[piece] if piece in found else self._known[piece] for piece in pieces]
        if len(self._known) + len(found) > KNOWN_PIECES:
            self._known = {}
        self._known.update((piece, ids) for piece, ids in found.items() if len(piece) <= 4 * KNOWN_PIECE)
        return ids

    def _place(self, left, right):
        return (left * np.uint32(40503) + right * np.uint32(9973)) & np.uint32(self.TABLE - 1)


def _codes(text):
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _merges(settings):
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in settings["model"]["merges"]]


def _replacements(normalizer):
    """Return [(character, character)] of a normalizer that does nothing but replace them, None for any other."""
    if normalizer is None:
        return []
    if normalizer["type"] == "Sequence":
        inner = [_replacements(part) for part in normalizer["normalizers"]]
        return None if None in inner else list(chain.from_iterable(inner))
    if normalizer["type"] != "Replace" or len(normalizer["content"]) != 1 or len(normalizer["pattern"].get("String", "")) != 1:
        return None
    return [(normalizer["pattern"]["String"], normalizer["content"])]


BOS, EOS = object(), object()


def segments(turns):
    """Return what `xtuner.dataset.utils.encode_fn` puts into a row, in order.

    Args:
        turns (list[dict]): `input`, `output` and what XTuner's template added.

    Returns:
        list[tuple[str | object, bool]]: texts, each to be encoded alone, or `BOS` or `EOS`; and whether they are trained.
    """
    parts, needs_bos = [], True
    for turn in turns:
        trained = turn.get("output_with_loss", True)
        if needs_bos:
            parts.append((BOS, False))
        parts += ((turn["input"], False), (turn["output"], trained))
        needs_bos = turn.get("need_eos_token", True)
        if needs_bos:
            parts.append((EOS, trained))
        if turn.get("sep"):
            parts.append((turn["sep"], False))
    return parts


class Encoder:
    """Encodes templated conversations as `xtuner.dataset.utils.encode_fn` does, without its cut at `max_length`.

    A token that is trained is kept as its id, one that is not as `~id` (negative): one number holds what XTuner keeps in `input_ids` and
    `labels`.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): the model's.
        settings (str, optional): what `settings_of` returned for it.
    """

    def __init__(self, tokenizer, settings=None):
        from xtuner.dataset.utils import get_bos_eos_token_ids

        bos, eos = (np.array(ids, dtype=np.int32) for ids in get_bos_eos_token_ids(tokenizer))
        self.special = {BOS: bos, EOS: eos}
        self.tokenize = Tokenize(tokenizer, settings)

    def texts(self, rows):
        """Return the texts (list[str]) of rows, each the `segments` of a conversation, in the order in which `assemble` needs their ids."""
        return [text for row in rows for text, _ in row if isinstance(text, str)]

    def assemble(self, rows, ids):
        """Return the tokens (numpy.ndarray, int32, shape (tokens,)) of all rows, and of each how many and how many of them are trained
        (numpy.ndarray, shape (rows,)).

        Args:
            rows (list[list[tuple]]): as given to `texts`.
            ids (list[numpy.ndarray]): the ids of those texts.
        """
        texts = iter(ids)
        parts = [next(texts) if isinstance(text, str) else self.special[text] for row in rows for text, _ in row]
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        trained = np.array([trained for row in rows for _, trained in row], dtype=bool)
        tokens = np.concatenate([np.zeros(0, dtype=np.int32), *parts])
        tokens ^= np.repeat(np.where(trained, 0, -1).astype(np.int32), sizes)  # x ^ -1 is ~x
        ends = np.cumsum([0, *map(len, rows)])
        lengths, trained_lengths = (np.diff(np.append(0, np.cumsum(counts))[ends]) for counts in (sizes, sizes * trained))
        return tokens, lengths, trained_lengths

    def __call__(self, rows):
        """Return the tokens of each row (list[numpy.ndarray])."""
        tokens, lengths, _ = self.assemble(rows, self.tokenize(self.texts(rows)))
        return np.split(tokens, np.cumsum(lengths))[:-1]

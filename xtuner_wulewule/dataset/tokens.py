"""Rows as the tokens that XTuner trains on: with the template, with and without loss, cut at `max_length`."""

import logging
import warnings
from dataclasses import dataclass

from xtuner_wulewule.errors import ModelError

BOS, EOS = object(), object()


@dataclass(frozen=True)
class Length:
    """Tokens of a row: all and those to be trained, and how many of each `max_length` cuts off."""

    tokens: int
    trained: int
    lost: int
    lost_trained: int


def load_tokenizer(model):
    """Return the tokenizer of a model folder or hub id; raise ModelError where there is none."""
    import_xtuner()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=True)
    except Exception as error:  # whatever a tokenizer file or the hub can cause
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"--model {model}: its tokenizer cannot be loaded ({reason}); give the folder of a model") from None


def import_xtuner():
    """Import what is used of XTuner, without the warnings of its import, which have nothing to do with data."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda *_, **__: None
            from xtuner.dataset import map_fns, utils
            from xtuner.utils import templates
    finally:
        logging.disable(logging.NOTSET)
    return map_fns.template_map_fn, utils.get_bos_eos_token_ids, templates.PROMPT_TEMPLATE.internlm2_chat


def segments(conversation, kind):
    """Return what XTuner's `encode_fn` puts in a row, in order.

    Args:
        conversation (list[dict]): of a map function.
        kind (str): "pretraining", without a template, or "tuning", with that of InternLM2.

    Returns:
        list[tuple[str | object, bool]]: texts, each to be encoded alone, or BOS or EOS; and whether they are trained.
    """
    template_map_fn, _, template = import_xtuner()
    if kind == "tuning":
        copies = [dict(turn) for turn in conversation]
        conversation = template_map_fn({"conversation": copies}, template)["conversation"]
    parts = []
    needs_bos = True
    for turn in conversation:
        if needs_bos:
            parts.append((BOS, False))
        parts += [(turn["input"], False), (turn["output"], True)]
        needs_bos = turn.get("need_eos_token", True)
        if needs_bos:
            parts.append((EOS, True))
        parts.append((turn.get("sep", ""), False))
    return [part for part in parts if part[0] != ""]


def encode(rows, tokenizer):
    """Encode rows as XTuner's `encode_fn` does, without its cut.

    Args:
        rows (list[list[tuple]]): the `segments` of each.
        tokenizer (transformers.PreTrainedTokenizerBase): the tokenizer.

    Returns:
        list[list[tuple[list[int], bool]]]: of each row the ids of its segments and whether they are trained.
    """
    _, get_bos_eos_token_ids, _ = import_xtuner()
    special = dict(zip((BOS, EOS), get_bos_eos_token_ids(tokenizer), strict=True))
    texts = [text for row in rows for text, _ in row if isinstance(text, str)]
    ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"] if texts else ())
    return [[(next(ids) if isinstance(text, str) else special[text], trained) for text, trained in row] for row in rows]


class Lengths:
    """Counts the tokens of rows.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): the tokenizer.
        max_length (int): tokens after which a row is cut.
    """

    batch = 256  # rows that are encoded together

    def __init__(self, tokenizer, max_length):
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, rows):
        """Return the `Length` of each row of a list of (kind, mapped row)."""
        return [self._length(row) for row in encode([segments(row["conversation"], kind) for kind, row in rows], self.tokenizer)]

    def _length(self, row):
        tokens = trained = kept_trained = 0
        for ids, is_trained in row:
            if is_trained:
                trained += len(ids)
                kept_trained += min(len(ids), max(0, self.max_length - tokens))
            tokens += len(ids)
        return Length(tokens, trained, max(0, tokens - self.max_length), trained - kept_trained)

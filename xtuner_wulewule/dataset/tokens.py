"""Rows as the tokens that are trained on: with the template, with and without loss, and how many are beyond `max_length`."""

import logging
import warnings
from dataclasses import dataclass

from xtuner_wulewule.dataset.encode import Encoder, segments
from xtuner_wulewule.errors import ModelError


@dataclass(frozen=True)
class Length:
    """Tokens of a row: all and those to be trained, and into how many rows our data set splits them.

    `lost` and `lost_trained` are those beyond `max_length`, which a data set of XTuner's own cuts off.
    """

    tokens: int
    trained: int
    pieces: int
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
            from xtuner.dataset import map_fns
            from xtuner.utils import templates
    finally:
        logging.disable(logging.NOTSET)
    return map_fns.template_map_fn, templates.PROMPT_TEMPLATE.internlm2_chat


def templated(conversation, kind):
    """Return the `encode.segments` of a row.

    Args:
        conversation (list[dict]): of a map function.
        kind (str): "pretraining", without a template, or "tuning", with that of InternLM2.
    """
    template_map_fn, template = import_xtuner()
    if kind == "tuning":
        copies = [dict(turn) for turn in conversation]
        conversation = template_map_fn({"conversation": copies}, template)["conversation"]
    return segments(conversation)


class Lengths:
    """Counts the tokens of rows.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): the tokenizer.
        max_length (int): tokens of a packed row.
    """

    batch = 256  # rows that are encoded together

    def __init__(self, tokenizer, max_length):
        self.encoder, self.max_length = Encoder(tokenizer), max_length

    def __call__(self, rows):
        """Return the `Length` of each row of a list of (kind, mapped row)."""
        encoded = self.encoder([templated(row["conversation"], kind) for kind, row in rows])
        return [self._length(tokens >= 0) for tokens in encoded]

    def _length(self, trained):
        kept = int(trained[: self.max_length].sum())
        tokens, all_trained = len(trained), int(trained.sum())
        return Length(tokens, all_trained, -(-tokens // self.max_length), max(0, tokens - self.max_length), all_trained - kept)

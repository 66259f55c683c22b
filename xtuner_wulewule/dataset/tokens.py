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
    """Import what `Encoder` uses of XTuner, without the warnings of its import, which have nothing to do with data."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda *_, **__: None
            import xtuner.dataset.utils  # noqa: F401
    finally:
        logging.disable(logging.NOTSET)


# XTuner's template internlm2_chat, whose import takes ten seconds
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
INSTRUCTION = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SUFFIX, SEP = "<|im_end|>", "\n"


def templated(conversation, kind):
    """Return the `encode.segments` of a row.

    Args:
        conversation (list[dict]): of a map function.
        kind (str): "pretraining", without a template, or "tuning", with that of InternLM2.
    """
    return segments(map(_with_template, conversation) if kind == "tuning" else conversation)


def _with_template(turn):
    """Return a turn as XTuner's `template_map_fn` makes it."""
    system = SYSTEM.format(turn["system"]) if turn.get("system") else ""
    instruction = INSTRUCTION.format(turn["input"])
    return {**turn, "input": system + instruction, "output": turn["output"] + SUFFIX, "need_eos_token": False, "sep": SEP}


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

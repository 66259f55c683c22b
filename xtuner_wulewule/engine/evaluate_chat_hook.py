"""XTuner's evaluation chat, in one batch instead of one prompt after the other, and within a share of the training time."""

import time

import torch
from mmengine.dist import broadcast_object_list
from transformers import StoppingCriteria, StoppingCriteriaList
from xtuner.engine.hooks import EvaluateChatHook

from xtuner_wulewule import plugin
from xtuner_wulewule.model.generation import last_logits, merged_for_generation, without_plans

FIRST_TOKENS = 12  # before training nothing is known of the time that it will take
FEWEST_TOKENS = 8


class StopWords(StoppingCriteria):
    """Ends each row of a batch at its own stop word; XTuner's criterion looks at the first row and ends all of them.

    Args:
        tokenizer (transformers.PreTrainedTokenizerBase): decodes the last tokens of a row.
        words (list[str]): the stop words.
        length (int): length of the prompts in tokens, in which no stop word counts.
    """

    def __init__(self, tokenizer, words, length):
        self.tokenizer, self.words, self.length = tokenizer, tuple(words), length

    def __call__(self, input_ids, scores=None, **kwargs):
        """Return which rows of `input_ids` (batch, tokens) have ended (torch.BoolTensor of shape (batch,))."""
        tails = self.tokenizer.batch_decode(input_ids[:, max(self.length, input_ids.shape[1] - 8) :])
        return torch.tensor([bool(self.words) and tail.rstrip().endswith(self.words) for tail in tails], device=input_ids.device)


class BatchedEvaluateChatHook(EvaluateChatHook):
    """`EvaluateChatHook` that answers all prompts in one left-padded batch, greedily, and once at the end instead of twice.

    XTuner's hook generates up to 600 tokens for each prompt in turn: over 100 s an evaluation on an H100 with the published settings. This
    one measures how long a token takes and shortens its answers so that all evaluations together stay within a share of the training time.
    Every rank generates the same number of tokens, the one that rank 0 found.

    Args:
        max_new_tokens (int): longest answer in tokens. Defaults to 64.
        max_share (float): share of the training time that evaluation may take; the answers before training are 12 tokens long, and none is
            cut under 8. Defaults to 0.05.
        kwargs (dict): as for `xtuner.engine.hooks.EvaluateChatHook`.
    """

    def __init__(self, *args, max_new_tokens=64, max_share=0.05, stop_words=(), **kwargs):
        # a list of its own: XTuner appends to the default one, which all hooks share
        self.stop_words = list(stop_words)
        super().__init__(*args, max_new_tokens=max_new_tokens, stop_words=self.stop_words, **kwargs)
        self.gen_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        self.max_share = max_share
        self.last_iteration = None
        self.begin = None
        self.spent = 0.0  # seconds of evaluation
        self.seconds_a_token = None

    def _eval_language(self, runner, model, device, max_new_tokens=None, save_eval_output=False):
        prompts = self._prompts(runner)
        encoded = [self.tokenizer.encode(prompt) for prompt in prompts]
        length = max(map(len, encoded))
        padding = self.gen_config.pad_token_id
        input_ids = torch.tensor([[padding] * (length - len(ids)) + ids for ids in encoded], device=device)
        attention_mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in encoded], device=device)
        with torch.no_grad(), without_plans(), last_logits(model.llm), merged_for_generation(model.llm):
            output = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                generation_config=self.gen_config,
                stopping_criteria=StoppingCriteriaList([StopWords(self.tokenizer, self.stop_words, length)]),
            )
        self._tell(runner, output[:, length:], save_eval_output)
        self.generated = output.shape[1] - length

    def _decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _prompts(self, runner):
        return self._samples(runner)

    def _samples(self, runner):
        # the system prompt as it stands in the rows: XTuner's hook takes braces in it for names of settings
        return [self.system + self.instruction.format(input=text, round=1, **runner.cfg) for text in self.evaluation_inputs]

    def _tell(self, runner, answers, save_eval_output):
        texts = [f"{prompt}{self._decode(ids)}\n" for prompt, ids in zip(self._samples(runner), answers, strict=True)]
        for text in texts:
            runner.logger.info(f"Sample output:\n{text}")
        if save_eval_output:
            self._save_eval_output(runner, texts)

    def affordable_tokens(self):
        """Return how long an answer may be now (int, tokens)."""
        if self.begin is None or self.seconds_a_token is None:
            return min(FIRST_TOKENS, self.max_new_tokens)
        trained = time.monotonic() - self.begin - self.spent
        tokens = (self.max_share * trained - self.spent) / self.seconds_a_token
        return int(min(self.max_new_tokens, max(FEWEST_TOKENS, tokens)))

    def _generate_samples(self, runner, max_new_tokens=None, save_eval_output=False):
        self.last_iteration = runner.iter
        agreed = [self.affordable_tokens()]
        broadcast_object_list(agreed)
        begin = time.monotonic()
        super()._generate_samples(runner, agreed[0], save_eval_output)
        seconds = time.monotonic() - begin
        self.seconds_a_token = seconds / max(1, self.generated)
        self.spent += seconds
        runner.logger.info(f"Evaluation: {self.generated} tokens an answer in {seconds:.1f} s")

    def before_train(self, runner):
        """Evaluate, and start the clock of the training time."""
        super().before_train(runner)
        self.begin = time.monotonic() - self.spent  # so that what was spent before does not count as training

    def after_train(self, runner):
        """Evaluate at the end, unless the last iteration's checkpoint already did."""
        if self.last_iteration is None or self.last_iteration < runner.iter - 1:
            super().after_train(runner)


plugin.go_on("xtuner.engine")  # where this module was imported before XTuner's

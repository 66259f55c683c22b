"""The persona, scored while it is learned: a few of the questions of `wulewule eval`, in TensorBoard, and sample answers with them."""

from xtuner_wulewule import plugin, prompts
from xtuner_wulewule.dataset.persona import common_system, short
from xtuner_wulewule.engine.evaluate_chat_hook import BatchedEvaluateChatHook
from xtuner_wulewule.evaluation import metrics
from xtuner_wulewule.evaluation.scorecard import judge
from xtuner_wulewule.evaluation.suites import ASKED_IN_TRAINING, Data, persona_questions

TOKENS = 24  # in which every one of 1,445 answers about a name, published and made, has told it (docs/decisions.md)


class ScoreHook(BatchedEvaluateChatHook):
    """Asks a few packaged questions about who the assistant is, with and without the system prompt, and logs the shares of hits and leaks.

    They appear in the log and in TensorBoard as `eval/name`, `eval/leak` and the same with `_without_system`. 16 answers of 24 tokens
    at the end of the training, and every `every_n_iters` iterations where that is given: a trend, not the scorecard. The samples
    of `BatchedEvaluateChatHook` are answered in the same batch: a token takes as long for twenty rows as for four.

    Args:
        tokenizer (dict): config of the tokenizer.
        prompt_template (dict | str): as for `xtuner.engine.hooks.EvaluateChatHook`.
        every_n_iters (int, optional): also during the training, before the first iteration too.
        names (list[str], optional): names of the assistant; these three default to those of the environment, else of the package.
        author (str, optional): who made it.
        system (str, optional): the system prompt; none where it is empty.
        evaluation_inputs (list[str] | str, optional): prompts that are answered for the reader, before the training, too. Their answers
            may be longer, as far as `max_share` allows, but none is shorter than the 24 tokens. Defaults to none.
        kwargs (dict): as for `BatchedEvaluateChatHook`.
    """

    def __init__(
        self, tokenizer, prompt_template, every_n_iters=None, names=None, author=None, system=None, evaluation_inputs=None, **kwargs
    ):
        stated = dict(name=(names if isinstance(names, str) else ",".join(names)) if names else None, author=author or None, system=system)
        self.persona = prompts.persona_of({key: value for key, value in stated.items() if value is not None}, prompts.current())
        super().__init__(
            tokenizer,
            evaluation_inputs or [],
            system=self.persona.system,
            prompt_template=prompt_template,
            every_n_iters=every_n_iters,
            **kwargs,
        )
        self.questions = self._choose(prompt_template)

    def _choose(self, template):
        if isinstance(template, str):  # mmengine dumps it by name
            from mmengine.utils import get_object_from_string

            template = get_object_from_string(template)
        asked = persona_questions(self.persona, template, Data([], frozenset()))
        asked = [question for question in asked if question.facts.get("asks") == "name"]
        step = len(asked) // ASKED_IN_TRAINING  # spread over kinds and languages
        chosen = {question.text for question in asked[::step][:ASKED_IN_TRAINING]}
        return [question for question in asked if question.text in chosen]

    def affordable_tokens(self):
        """Return the length of an answer (int): of those that are scored always the same, so that the shares can be compared."""
        return max(TOKENS, super().affordable_tokens()) if self.evaluation_inputs else TOKENS

    def _prompts(self, runner):
        return [question.prompt for question in self.questions] + self._samples(runner)

    def _tell(self, runner, answers, save_eval_output):
        asked = len(self.questions)
        if self.evaluation_inputs:
            super()._tell(runner, answers[asked:], save_eval_output)
        self._score(runner, [self._decode(ids[:TOKENS]) for ids in answers[:asked]])

    def _score(self, runner, answers):
        verdicts = [(question, judge(question, text, self.persona)) for question, text in zip(self.questions, answers, strict=True)]
        shares = {}
        for name, key in (("name", "hit"), ("leak", "leak")):
            for suffix, system in (("", True), ("_without_system", False)):
                values = [verdict[key] for question, verdict in verdicts if question.system == system]
                if values:  # no question has a prompt where the persona has none
                    shares[f"eval/{name}{suffix}"] = metrics.mean([values])
        runner.logger.info(f"Persona: {', '.join(f'{name} {share:.0%}' for name, share in shares.items())}")
        runner.visualizer.add_scalars(shares, step=runner.iter)

    def _check_rows(self, runner):
        files = runner.cfg.get("train_dataloader", {}).get("dataset", {}).get("data_files") or []
        system = common_system([files] if isinstance(files, str) else files)
        if system is not None and not prompts.same_prompt(system, self.persona.system):
            runner.logger.warning(
                f"eval/name is about {','.join(self.persona.names)}, but most rows about the assistant have another system prompt: "
                f"{short(system)}; set {', '.join(prompts.VARIABLES.values())} to the persona of the rows"
            )

    def before_train(self, runner):
        """Tell of rows about another persona, and score the model as it is before, where it is scored during the training, too."""
        self._check_rows(runner)
        if self.every_n_iters is not None or self.evaluation_inputs:
            super().before_train(runner)


plugin.go_on("xtuner.engine")  # where this module was imported before XTuner's

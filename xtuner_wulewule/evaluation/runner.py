"""Asks a model, and its base, everything that the suites hold, and writes the scorecard."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from xtuner_wulewule import __version__
from xtuner_wulewule.compat import installed
from xtuner_wulewule.dataset.progress import progress, waiting
from xtuner_wulewule.errors import ModelError, SettingsError, no_adapter
from xtuner_wulewule.evaluation import suites
from xtuner_wulewule.evaluation.answers import Answers
from xtuner_wulewule.evaluation.scorecard import scorecard
from xtuner_wulewule.evaluation.suites import LANGUAGES, SUITES
from xtuner_wulewule.prompts import Persona
from xtuner_wulewule.recipe.ask import answer, load, load_tokenizer
from xtuner_wulewule.recipe.state import file_fingerprint, lock_folder, model_fingerprint, write_json

MODEL, BASE = "model", "base"
TEXTS = 8  # read at a time


@dataclass(frozen=True)
class Settings:
    """What an evaluation was asked to do.

    Args:
        model (str): folder of the model.
        out (pathlib.Path): folder for answers and scorecard.
        template (dict): the prompt template, one of XTuner's.
        files (list[str]): data files of the training.
        held_out (float): the share of them that was held out.
        adapter (str | None): folder of an adapter to put on the model.
        base (str | None): folder of the model to compare with.
        suites (tuple[str, ...]): of `SUITES`.
        persona (Persona): who the assistant is said to be.
        batch_size (int): questions asked at a time.
        overwrite (bool): whether answers of another evaluation may be replaced.
        languages (tuple[str, ...]): of `suites.LANGUAGES`: what is asked and read.
    """

    model: str
    out: Path
    template: dict
    files: list[str]
    held_out: float
    adapter: str | None = None
    base: str | None = None
    suites: tuple[str, ...] = SUITES
    persona: Persona = field(default_factory=Persona)
    batch_size: int = 16
    overwrite: bool = False
    languages: tuple[str, ...] = LANGUAGES

    def fingerprint(self):
        """Return all that the answers depend on (dict)."""
        import torch

        return dict(
            version=__version__,
            packages={name: installed(name) for name in ("torch", "transformers")},
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            model=model_fingerprint(self.model),
            adapter=self.adapter and model_fingerprint(self.adapter),
            base=self.base and model_fingerprint(self.base),
            template=dict(self.template),
            data={file: file_fingerprint(file) for file in self.files},
            held_out=self.held_out,
            suites=list(self.suites),
            languages=list(self.languages),
            persona=dict(names=list(self.persona.names), author=self.persona.author, system=self.persona.system),
            sets={path.name: file_fingerprint(path) for path in sorted(suites.SETS.iterdir())},
            limits=suites.LIMITS,
            batch_size=self.batch_size,
        )


def evaluate(settings):
    """Ask what has not been asked yet, and write `scorecard.json`.

    Args:
        settings (Settings): what was asked for.

    Returns:
        dict: the scorecard.

    Raises:
        DataError: the data files are wrong.
        ModelError: a model or the adapter does not load.
        SettingsError: the folder holds another evaluation, or one is at work in it.
    """
    data = suites.read_data(settings.files, settings.held_out)
    questions = questions_of(settings, data)
    settings.out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(settings.out)
    try:
        answers = Answers(settings.out / "answers.jsonl", settings.fingerprint(), settings.overwrite)
        try:
            checks = [question for question in questions if question.part == "check"]
            ask_all(MODEL, lambda: _load(settings.model, settings.adapter), settings, questions, answers)
            if settings.base and "forgetting" in settings.suites:
                ask_all(BASE, lambda: _load(settings.base, None), settings, checks, answers)
        finally:
            answers.close()
        found = scorecard(settings, questions, answers.known)
        write_json(settings.out / "scorecard.json", found)
    finally:
        lock.close()
    return found


def questions_of(settings, data):
    """Return all questions (list[suites.Question]) of the suites in `settings` (Settings), given the training data (suites.Data)."""
    found = []
    if "persona" in settings.suites:
        found += suites.persona_questions(settings.persona, settings.template, data, settings.languages)
    if "knowledge" in settings.suites:
        found += suites.knowledge_questions(settings.persona, settings.template, data, settings.languages)
    if "forgetting" in settings.suites:
        found += suites.check_questions(settings.template, settings.languages)
    return found


def ask_all(of, load, settings, questions, answers):
    """Ask one model what is missing. The batches are always the same, since what stands beside a question can change the last digit of its
    numbers: one of which an answer is missing is asked whole.

    Args:
        of (str): `MODEL` or `BASE`.
        load (callable): returns the model and its tokenizer; called only where something is missing.
        settings (Settings): of the evaluation.
        questions (list[suites.Question]): what is asked. The general texts are read besides, where forgetting is measured.
        answers (Answers): has the earlier answers, and gets the new ones.
    """
    batches = []
    for part in suites.LIMITS:
        some = [question for question in questions if question.part == part]
        batches += [some[start : start + settings.batch_size] for start in range(0, len(some), settings.batch_size)]
    texts = suites.read_set("general", settings.languages) if "forgetting" in settings.suites else []
    text_batches = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    batches = [batch for batch in batches if any((of, question.id) not in answers.known for question in batch)]
    text_batches = [batch for batch in text_batches if any((of, row["id"]) not in answers.known for row in batch)]
    if not batches and not text_batches:
        return
    with waiting(f"loading the {of}"):
        model, tokenizer = load()
    with progress(sum(map(len, batches + text_batches)), f"asking the {of}", "questions") as advance:
        for batch in text_batches:
            for row, (loss, count) in zip(batch, text_losses(model, tokenizer, [row["text"] for row in batch]), strict=True):
                answers.add(of, row["id"], loss=loss, tokens=count)
            advance(len(batch))
        for batch in batches:
            found = answer(model, tokenizer, [question.prompt for question in batch], suites.LIMITS[batch[0].part])
            for question, text in zip(batch, found, strict=True):
                answers.add(of, question.id, answer=text)
            advance(len(batch))


def _load(folder, adapter):
    try:
        model, tokenizer = load(folder), load_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"the model {folder} does not load: {str(error).splitlines()[0]}") from None
    if adapter is None:
        return model, tokenizer
    import json

    from peft import PeftModel

    file = Path(adapter) / "adapter_config.json"
    if not file.is_file():
        raise no_adapter(adapter)
    trained_on = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    if os.path.isdir(trained_on) and os.path.realpath(trained_on) != os.path.realpath(folder):
        raise SettingsError(f"--adapter {adapter} was trained on {trained_on}, not on {folder}; evaluate {trained_on} with it")
    try:
        return PeftModel.from_pretrained(model, adapter).eval(), tokenizer
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter {adapter} does not fit {folder}: {str(error).splitlines()[0]}") from None


def text_losses(model, tokenizer, texts):
    """Return of each text the sum of the negative log-likelihoods in nats (float) and of how many tokens (int).

    The first token is predicted only where the tokenizer puts a beginning before it.

    Args:
        model (torch.nn.Module): the model.
        tokenizer (transformers.PreTrainedTokenizerBase): its tokenizer.
        texts (list[str]): the texts, read in one batch.
    """
    import torch

    from xtuner_wulewule.model.generation import without_plans

    encoded = [tokenizer(text).input_ids for text in texts]
    length = max(map(len, encoded))
    device = next(model.parameters()).device
    ids = torch.tensor([one + [0] * (length - len(one)) for one in encoded], device=device)
    mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in encoded], device=device)
    with torch.no_grad(), without_plans():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return [(loss, len(one) - 1) for loss, one in zip(losses.double().sum(1).tolist(), encoded, strict=True)]

"""Asks a merged model the questions of a config, with the template and the system prompt of its training.

Run as `python -m xtuner_wulewule.recipe.ask`, in a process of its own.
"""

import argparse
import sys

from xtuner_wulewule.recipe.state import write_json


def questions_of(config):
    """Return what a config (mmengine.config.Config | dict) asks its model (list[str]), nothing where it says nothing of that."""
    questions = config.get("evaluation_inputs")
    if isinstance(questions, str):  # XTuner takes one as a word
        return [questions]
    return list(questions) if isinstance(questions, (list, tuple)) else []


def prompts_of(config):
    """Return the evaluation prompts (list[str]) of a config as its model sees them.

    Args:
        config (mmengine.config.Config): one of the packaged ones, or a copy.
    """
    template = template_of(config)
    if template is None:
        return questions_of(config)
    return [fill(template, config.get("SYSTEM"), question) for question in questions_of(config)]


def template_of(config):
    """Return the prompt template (dict) of a config, None where it has none."""
    template = config.get("prompt_template")
    if isinstance(template, str):  # mmengine dumps it by name
        from mmengine.utils import get_object_from_string

        template = get_object_from_string(template)
    return template or None


def fill(template, system, question, history=()):
    """Return a prompt (str) as XTuner's `template_map_fn` makes it of a training row.

    Args:
        template (dict): one of XTuner's `PROMPT_TEMPLATE`.
        system (str | None): the system prompt; none where it is empty.
        question (str): what is asked.
        history (iterable[tuple[str, str]]): earlier questions and their answers. Defaults to none.
    """
    text, number = template["SYSTEM"].format(system=system) if system else "", 1
    for number, (asked, answered) in enumerate(history, 2):
        text += template["INSTRUCTION"].format(input=asked, round=number - 1)
        text += answered + template.get("SUFFIX", "") + template.get("SEP", "")
    return text + template["INSTRUCTION"].format(input=question, round=number)


def load(folder):
    """Return a model for inference: on the GPU in the type of its weights, where there is one, else in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype="auto" if cuda else torch.float32)
    return (model.cuda() if cuda else model).eval()


def load_tokenizer(folder):
    """Return the tokenizer of a model folder, padding on the left."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def ask(folder, prompts, max_new_tokens=256):
    """Answer prompts with the model of a folder; see `answer`."""
    return answer(load(folder), load_tokenizer(folder), prompts, max_new_tokens)


def answer(model, tokenizer, prompts, max_new_tokens=256):
    """Answer prompts greedily, in one left-padded batch.

    Args:
        model (transformers.PreTrainedModel): the model.
        tokenizer (transformers.PreTrainedTokenizerBase): of `load_tokenizer`.
        prompts (list[str]): prompts with their template.
        max_new_tokens (int): longest answer in tokens. Defaults to 256.

    Returns:
        list[str]: the answers, without markers.
    """
    import torch

    from xtuner_wulewule.model.generation import last_logits, without_plans

    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(next(model.parameters()).device)
    ends = {tokenizer.eos_token_id, *_single_ids(tokenizer, "<|im_end|>")}
    with torch.no_grad(), without_plans(), last_logits(model):
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.partition("<|im_end|>")[0].strip() for text in answers]


def _single_ids(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if len(ids) == 1 else []


def main(argv=None):
    """Ask and write the questions with their answers; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m xtuner_wulewule.recipe.ask", description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of the merged model")
    parser.add_argument("--config", required=True, help="config of its training: questions, template, system prompt")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    from mmengine.config import Config

    config = Config.fromfile(args.config)
    answers = ask(args.model, prompts_of(config))
    write_json(args.out, [dict(question=q, answer=a) for q, a in zip(questions_of(config), answers, strict=True)])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether a conversion and a merge did what they should: compares the tensors themselves.

Run as `python -m xtuner_wulewule.recipe.parity`, in a process of its own, so that its memory is given back.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from xtuner_wulewule.errors import StepError, WulewuleError, one_line, wants_traceback
from xtuner_wulewule.recipe.state import write_json
from xtuner_wulewule.recipe.weights import Weights

PREFIX = "base_model.model."  # of every name in an adapter


def check_adapter(checkpoint, adapter):
    """Check that an adapter holds the tensors of a checkpoint, cast to its own type, and nothing else.

    Args:
        checkpoint (str): a `.pth` file or a DeepSpeed folder.
        adapter (str): folder that `xtuner convert pth_to_hf` wrote.

    Returns:
        int: how many tensors were compared.

    Raises:
        StepError: a tensor is missing, is not in the checkpoint, or differs.
    """
    trained = {name.removeprefix("llm.").replace(".default.", "."): value for name, value in _load(checkpoint).items()}
    converted = Weights(adapter)
    if set(trained) != set(converted):
        odd = sorted(set(trained) ^ set(converted))
        raise StepError(f"{adapter} and {checkpoint} differ in {len(odd)} tensors, the first is {odd[0]}; convert again")
    for name in converted:
        value = converted[name]
        if not trained[name].isfinite().all():
            raise StepError(f"{name} of {checkpoint} is not finite: the training diverged; lower the learning rate")
        if not trained[name].to(value.dtype).equal(value):
            raise StepError(f"{name} of {adapter} is not that of {checkpoint} in {value.dtype}; convert again")
    return len(trained)


def _load(checkpoint):
    """Return the tensors (dict[str, torch.Tensor]) of a checkpoint as XTuner reads it, whose import takes seconds and only folders need."""
    if not os.path.isdir(checkpoint):
        import torch

        return torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    from xtuner.model.utils import guess_load_checkpoint

    return guess_load_checkpoint(checkpoint)


def check_merge(base, adapter, merged):
    """Check that a merged model is base + scale·B·A, computed in float32, to the rounding of its type.

    A merged weight may differ by one rounding each of the base, of the product and of the sum: u·(|base| + |product| + |sum|), and by
    another u·|product| where the device multiplies in the model's own type; u is half the spacing at 1. Where the product
    is small that proves little weight by weight, so the whole matrix is compared too: unless rounding is larger than the product, the
    change must be once scale·B·A, to a tenth.

    Args:
        base (str): folder of the model that was merged into.
        adapter (str): folder of the adapter.
        merged (str): folder of the result.

    Returns:
        dict: `weights` compared, `changed` by the merge, and `largest_error` as a share of what is allowed.

    Raises:
        StepError: the adapter was trained on another base, a weight is missing or wrong, or the merge changed nothing.
    """
    import torch

    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    recorded = config["base_model_name_or_path"]
    if os.path.realpath(recorded) != os.path.realpath(base):
        raise StepError(f"{adapter} was trained on {recorded}, not on {base}: merged into that it would lose what {recorded} has learned")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    old, new, lora = Weights(base), Weights(merged), Weights(adapter)
    tied = json.loads((Path(base) / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False)
    missing = [name for name in old if name not in new and not (tied and name.startswith(("lm_head.", "output.")))]
    if missing:
        raise StepError(f"{merged} lacks {len(missing)} weights of {base}, the first is {missing[0]}; merge again")
    changed, largest, moved = 0, 0.0, False
    for name in old:
        if name not in new:
            continue  # the second name of a tied weight
        after = new[name].to(device)
        before = old[name].to(device)
        if not after.is_floating_point():
            continue
        module = PREFIX + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in lora:
            factors = (lora[f"{module}.lora_{letter}.weight"].to(device, torch.float32) for letter in "BA")
            product = scale * torch.matmul(*factors)
            changed += 1
        else:
            product = torch.zeros((), device=device)
        expected = before.float() + product
        limits = torch.finfo(after.dtype)
        error = (after.float() - expected).abs()
        # three roundings, each of half the spacing; under the smallest normal number the spacing no longer shrinks
        allowed = limits.eps / 2 * (before.float().abs() + 2 * product.abs() + expected.abs()) * 1.01 + 3 * limits.tiny * limits.eps
        worst = (error / allowed).max().item() if after.isfinite().all() else float("nan")
        if not worst <= 1:
            raise StepError(f"{name} of {merged} is not base + scale*B*A: {worst:.3g} times the rounding of {after.dtype}; merge again")
        largest = max(largest, worst)
        moved = moved or not after.equal(before.to(after.dtype))
        if product.dim() and product.norm() > allowed.norm():
            along = ((after.float() - before.float()) * product).sum() / product.square().sum()
            if not abs(along.item() - 1) <= 0.1:
                raise StepError(
                    f"{name} of {merged} changed by {along:.3g} times scale*B*A: another adapter or scale was merged; merge again"
                )
    if len([name for name in lora if "lora_A" in name]) != changed:
        raise StepError(f"{adapter} has LoRA for modules that {base} lacks; merge with the right base")
    if changed == 0 or not moved:
        raise StepError(f"{merged} is the same as {base}: the adapter changed nothing, so nothing was learned")
    return dict(weights=len(list(old)), changed=changed, largest_error=round(largest, 4))


def kl_divergence(config, adapter, merged):
    """Return how far the merged model is from the model as it was trained (float, nats a token): KL(trained ‖ merged) over the prompts.

    Args:
        config (mmengine.config.Config): the training's config: its quantisation, prompts and template.
        adapter (str): folder of the adapter.
        merged (str): folder of the merged model.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from xtuner_wulewule.recipe.ask import load as load_merged
    from xtuner_wulewule.recipe.ask import prompts_of

    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=True)
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in prompts_of(config)]

    def logits(model):
        device = next(model.parameters()).device
        with torch.no_grad():
            return [model(input_ids=ids.to(device)).logits.float().log_softmax(-1).cpu() for ids in prompts]

    llm = config.model.llm
    kwargs = {key: value for key, value in llm.items() if key in ("torch_dtype", "trust_remote_code")}
    kwargs["torch_dtype"] = getattr(torch, str(kwargs["torch_dtype"]).removeprefix("torch."))
    if "quantization_config" in llm:
        quantization = {key: value for key, value in llm.quantization_config.items() if key != "type"}
        quantization["bnb_4bit_compute_dtype"] = kwargs["torch_dtype"]
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(**quantization)
    trained = AutoModelForCausalLM.from_pretrained(llm.pretrained_model_name_or_path, **kwargs)
    if torch.cuda.is_available() and "quantization_config" not in kwargs:
        trained = trained.cuda()
    trained = PeftModel.from_pretrained(trained, adapter).eval()
    first = logits(trained)
    del trained
    second = logits(load_merged(merged))
    sums = [(one.exp() * (one - two)).sum(-1) for one, two in zip(first, second, strict=True)]
    return torch.cat([values.flatten() for values in sums]).mean().item()


def main(argv=None):
    """Check what the arguments name and write what was found; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m xtuner_wulewule.recipe.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--checkpoint", help="check that the adapter holds this checkpoint's tensors")
    parser.add_argument("--base", help="with --merged: the model that was merged into")
    parser.add_argument("--merged", help="check that this is base + scale*B*A")
    parser.add_argument("--config", help="with --merged: report the divergence from the model as it was trained with this config")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    found = {}
    try:
        if args.checkpoint:
            found["adapter_tensors"] = check_adapter(args.checkpoint, args.adapter)
        if args.merged:
            found.update(check_merge(args.base, args.adapter, args.merged))
            if args.config:
                from mmengine.config import Config

                found["kl_trained_merged"] = round(kl_divergence(Config.fromfile(args.config), args.adapter, args.merged), 6)
    except WulewuleError as error:
        if wants_traceback():
            raise
        print(one_line(error), file=sys.stderr)
        return 1
    write_json(args.out, found)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

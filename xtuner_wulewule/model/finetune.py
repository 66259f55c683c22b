"""XTuner's `SupervisedFinetune` with the checks and defaults that the wulewule configs need."""

import torch
from xtuner.model import SupervisedFinetune
from xtuner.utils import device

from xtuner_wulewule import compat
from xtuner_wulewule.errors import ModelError
from xtuner_wulewule.model.hub import find_model


class WulewuleFinetune(SupervisedFinetune):
    """`SupervisedFinetune`, except that

    * SDPA attention is used where flash-attn is not installed and the config names no attention: XTuner would run InternLM2 eager;
    * a model that can't be found, or a 4-bit model on a machine without a GPU, ends with one clear line.

    Args: as for `xtuner.model.SupervisedFinetune`; any config can use it by changing `type`.

    Raises:
        ModelError: the model is neither a folder nor in reach, or needs a GPU that is not there.
    """

    def __init__(self, *args, **kwargs):
        compat.cpu_bf16_query(device)  # where the start-up file is switched off nobody else has
        super().__init__(*args, **kwargs)

    def _dispatch_lm_model_cfg(self, cfg, max_position_embeddings=None):
        quantization = cfg.get("quantization_config") or {}
        four_bit = quantization.get("load_in_4bit") if hasattr(quantization, "get") else getattr(quantization, "load_in_4bit", False)
        if four_bit and not torch.cuda.is_available() and not _has_npu():
            raise ModelError(
                "model.llm.quantization_config loads the model in 4 bit, which needs a GPU, and torch sees none: check nvidia-smi and "
                "torch.cuda.is_available(), or train wulewule_sft_tiny, which runs on a CPU"
            )
        check_model(cfg.pretrained_model_name_or_path)
        cfg = super()._dispatch_lm_model_cfg(cfg, max_position_embeddings)
        if getattr(cfg, "attn_implementation", None) is None:
            cfg.attn_implementation = "sdpa"
        return cfg


def _has_npu():
    return device.is_npu_available


def check_model(name_or_path, **kwargs):
    """Check that a model can be loaded, before anything slow begins. XTuner calls it as the config's `model_resource`.

    Args:
        name_or_path (str): a folder, or the id of a model on the Hugging Face hub.
        kwargs: unused; XTuner passes `model_resource.args`.

    Returns:
        str: the folder, absolute, or the id.

    Raises:
        ModelError: it is neither a folder with a config.json nor an id whose config.json is in the cache or can be downloaded.
    """
    return find_model(name_or_path)

"""XTuner's `SupervisedFinetune` with the checks and defaults that the wulewule configs need."""

import torch
from xtuner.model import SupervisedFinetune
from xtuner.parallel.sequence import get_sequence_parallel_world_size
from xtuner.utils import device

from xtuner_wulewule import compat
from xtuner_wulewule.errors import ModelError
from xtuner_wulewule.model.hub import find_model


class WulewuleFinetune(SupervisedFinetune):
    """`SupervisedFinetune`, except that

    * SDPA attention is used where the config names no attention: XTuner would run InternLM2 eager without flash-attn;
    * documents that share a packed row do not attend to each other: `document_ids` of `wulewule_collate_fn` become a mask, which every
      model takes that transformers runs with SDPA, on a CPU and on a GPU;
    * a model that can't be found, or a 4-bit model on a machine without a GPU, ends with one clear line.

    Args: as for `xtuner.model.SupervisedFinetune`; any config can use it by changing `type`.

    Raises:
        ModelError: the model is neither a folder nor in reach, or needs a GPU that is not there; or its attention can't keep documents
            apart.
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
        if getattr(cfg, "attn_implementation", None) is None:
            cfg.attn_implementation = "sdpa"
        return super()._dispatch_lm_model_cfg(cfg, max_position_embeddings)

    def build_llm_from_cfg(self, llm_cfg, use_varlen_attn, max_position_embeddings):
        if use_varlen_attn and isinstance(llm_cfg, dict) and llm_cfg.get("attn_implementation") is None:
            llm_cfg["attn_implementation"] = "flash_attention_2"  # XTuner's own way of keeping documents apart needs it
        return super().build_llm_from_cfg(llm_cfg, use_varlen_attn, max_position_embeddings)

    def forward(self, data, data_samples=None, mode="loss"):
        document_ids = data.get("document_ids")
        if document_ids is not None:
            implementation = self.llm.config._attn_implementation
            if implementation not in ("sdpa", "eager"):
                raise ModelError(
                    f"model.llm.attn_implementation is {implementation!r}, which lets packed documents see each other; remove it "
                    "(SDPA keeps them apart), or set packing=None in train_dataset"
                )
            if get_sequence_parallel_world_size() > 1:
                raise ModelError("sequence_parallel_size over 1 does not go with packed documents; set packing=None in train_dataset")
            dtype = self.llm.get_input_embeddings().weight.dtype
            data = {key: value for key, value in data.items() if key != "document_ids"}
            data["attention_mask"] = document_mask(document_ids, dtype)
        return super().forward(data, data_samples, mode)


def document_mask(document_ids, dtype):
    """Return the additive mask of causal attention within documents.

    Args:
        document_ids (torch.Tensor): of each token the number of its document within the row, shape (batch, tokens).
        dtype (torch.dtype): that of the hidden states.

    Returns:
        torch.Tensor: 0 where a token (second to last dimension) sees another one (last), else the lowest number, shape
        (batch, 1, tokens, tokens).
    """
    tokens = document_ids.shape[1]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=document_ids.device).triu(1)
    hidden = hidden | (document_ids[:, None, :, None] != document_ids[:, None, None, :])
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


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

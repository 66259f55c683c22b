"""XTuner's `SupervisedFinetune` with the checks, the defaults and the speed that the wulewule configs need."""

import torch
from mmengine.logging import print_log
from peft import get_peft_model
from xtuner.model import SupervisedFinetune
from xtuner.model.utils import find_all_linear_names
from xtuner.parallel.sequence import get_sequence_parallel_world_size
from xtuner.utils import device

from xtuner_wulewule import compat, plugin
from xtuner_wulewule.errors import ModelError, SettingsError
from xtuner_wulewule.model.fused.attention import document_mask
from xtuner_wulewule.model.fused.math import NO_TRITON, triton_release
from xtuner_wulewule.model.fused.shapes import why_not
from xtuner_wulewule.model.fused.step import CHECKPOINTING, TOKENS, FusedStep
from xtuner_wulewule.model.hub import find_model


class WulewuleFinetune(SupervisedFinetune):
    """`SupervisedFinetune`, except that

    * loss and gradients are computed by `FusedStep` where the machine and the model allow: faster, in less memory. Where they don't, one
      line in the log says why, and XTuner's way is taken;
    * embeddings and head of a bf16 model stay bf16: XTuner copies them to fp32 though they are not trained;
    * SDPA attention is used where the config names no attention: XTuner would run InternLM2 eager without flash-attn;
    * documents that share a packed row do not attend to each other: `document_ids` of `wulewule_collate_fn` become a mask, which every
      model takes that transformers runs with SDPA, on a CPU and on a GPU;
    * a model that can't be found, or a 4-bit model on a machine without a GPU, ends with one clear line.

    Args: as for `xtuner.model.SupervisedFinetune`; any config can use it by changing `type`. Besides:
        fused (bool, optional): whether to use `FusedStep`. Defaults to None: where a GPU with bf16 gains from it, or a CPU with fp32 and
            without dropout.
        checkpointing (str): of the fused step: "none", "selective", "full", or "auto", the least with which the memory suffices. Rows are
            taken in micro-batches that fit, so that `batch_size` costs no memory. Defaults to "auto".
        micro_batch_tokens (int | str): of the fused step: tokens that are computed at a time, at least a row; fewer where the memory is
            short. "auto" takes as many rows of the batch as the memory holds: a little faster. Gradients are summed over the parts of a
            batch, so that an update stays what it is.

    Raises:
        ModelError: the model is neither a folder nor in reach, or needs a GPU that is not there; or its attention can't keep documents
            apart.
        SettingsError: `checkpointing` or `micro_batch_tokens` has a value that it can't have, or `fused` is True and can't be had.
    """

    def __init__(self, *args, fused=None, checkpointing="auto", micro_batch_tokens=TOKENS, **kwargs):
        compat.cpu_bf16_query(device)  # where the start-up file is switched off nobody else has
        if checkpointing not in ("auto", *CHECKPOINTING):
            raise SettingsError(f"model.checkpointing is {checkpointing!r}; it must be auto, {', '.join(CHECKPOINTING)}")
        if micro_batch_tokens != "auto" and (type(micro_batch_tokens) is not int or micro_batch_tokens < 1):
            raise SettingsError(f"model.micro_batch_tokens is {micro_batch_tokens!r}; it must be auto or a number of tokens, at least 1")
        super().__init__(*args, **kwargs)
        self.fused, self.checkpointing, self.micro_batch_tokens = fused, checkpointing, micro_batch_tokens
        self._step = None  # a FusedStep, or False once it is known that there is none

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

    def _prepare_for_lora(self, peft_model=None, use_activation_checkpointing=True):
        if self.llm.get_input_embeddings().weight.dtype != torch.bfloat16 or peft_model is not None:
            return super()._prepare_for_lora(peft_model, use_activation_checkpointing)
        self.llm.requires_grad_(False)
        if self.lora.target_modules is None:
            self.lora.target_modules = find_all_linear_names(self.llm)
        self.llm = get_peft_model(self.llm, self.lora)

    def forward(self, data, data_samples=None, mode="loss"):
        if mode == "loss" and self.training and torch.is_grad_enabled() and _served(data):
            if self._step is None:
                self._step = self._fused_step()
            if self._step:
                return {"loss": self._step(data["input_ids"], data["labels"], _positions(data), data.get("document_ids"))}
        document_ids = data.get("document_ids")
        if document_ids is not None:
            implementation = self.llm.config._attn_implementation
            if implementation not in ("sdpa", "eager"):
                raise ModelError(
                    f"model.llm.attn_implementation is {implementation!r}, which lets packed documents see each other; remove it "
                    "(SDPA keeps them apart), or set train_dataloader.dataset.packing=None"
                )
            if get_sequence_parallel_world_size() > 1:
                raise ModelError(
                    "sequence_parallel_size over 1 does not go with packed documents; set train_dataloader.dataset.packing=None"
                )
            dtype = self.llm.get_input_embeddings().weight.dtype
            data = {key: value for key, value in data.items() if key != "document_ids"}
            data["attention_mask"] = document_mask(document_ids, dtype)
        return super().forward(data, data_samples, mode)

    def _fused_step(self):
        """Return the fused step, False where there is none; log which."""
        weight = self.llm.get_input_embeddings().weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        if self.fused is False:
            reason = "model.fused is False"
        else:
            reason = (None if self.fused else self._why_not_here(device, dtype)) or self._why_never()
        if self.fused and reason:
            raise SettingsError(f"model.fused is True, but the fused step can't be used: {reason}; remove it")
        if reason:
            print_log(f"XTuner's own step is used, not the fused one: {reason}", logger="current")
            return False
        return FusedStep(
            self.llm,
            dtype,
            compiled=device == "cuda" and triton_release() != NO_TRITON,
            checkpointing=self.checkpointing,
            tokens=self.micro_batch_tokens,
        )

    def _why_not_here(self, device, dtype):
        kind = str(dtype).removeprefix("torch.")
        if device not in ("cuda", "cpu"):
            return "there is no GPU"
        if not hasattr(torch, "OutOfMemoryError"):
            return f"torch {torch.__version__} is older than 2.5"
        if device == "cpu":
            if dtype != torch.float32:
                return f"on a CPU it computes in fp32, and here it is {kind}"
            if getattr(self.lora, "lora_dropout", 0):
                return "on a CPU it is slower where LoRA has dropout; model.fused=True takes it all the same, in less memory"
            return None
        if triton_release() == NO_TRITON:
            return "Triton is not installed"
        if dtype != torch.bfloat16 or torch.cuda.get_device_capability() < (8, 0):
            return f"it computes in bf16, which needs a GPU of 2020 or newer, and here it is {kind}"
        return None

    def _why_never(self):
        if self.use_varlen_attn:
            return "use_varlen_attn is set"
        if get_sequence_parallel_world_size() > 1:
            return "sequence_parallel_size is over 1"
        if any(hasattr(parameter, "ds_id") for parameter in self.llm.parameters()):
            return "ZeRO-3 spreads the parameters"
        return why_not(self.llm)


def _served(data):
    """Return whether a batch has nothing but rows padded on the right."""
    mask = data.get("attention_mask")
    return mask is None or (mask.dim() == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all()))


def _positions(data):
    positions, ids = data.get("position_ids"), data["input_ids"]
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if positions is None else positions


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


plugin.go_on("xtuner.model")  # where this module was imported before XTuner's

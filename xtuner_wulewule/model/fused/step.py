"""Loss and gradients of a batch, by micro-batches that fit the memory, each on a GPU one recorded graph of kernels.

A step of a small model is bound by launching its kernels from Python; a CUDA graph launches them all at once, so that two rows at a time
are as fast as sixteen, in a fraction of their memory.
"""

import copy
import logging

import torch

from xtuner_wulewule.device import free_memory
from xtuner_wulewule.errors import ModelError
from xtuner_wulewule.model.fused.attention import Layout, document_mask, varlen_attn
from xtuner_wulewule.model.fused.decoder import CHUNK, Decoder, Place
from xtuner_wulewule.model.fused.math import Kernels
from xtuner_wulewule.model.fused.shapes import parts_of

TOKENS = 4096  # of a micro-batch: more are hardly faster (docs/decisions.md)
LENGTHS = 256  # rows are padded to a multiple: few graphs serve batches of any length
PORTIONS = 16  # of a micro-batch: as many graphs differ by how many of its tokens the head sees
DOCUMENTS = 32  # bounds between documents come in multiples of this
CHECKPOINTING = ("none", "selective", "full")
RESERVE = 2**30  # bytes left to the evaluation and the libraries
OPTIMIZER_BYTES = 16  # of a trained parameter: gradient, DeepSpeed's fp32 copy, Adam's two moments
IGNORED = -100


class FusedStep:
    """Computes the loss of batches and the gradients of all LoRA adapters.

    Args:
        llm (torch.nn.Module): a peft model for which `shapes.why_not` returns None.
        dtype (torch.dtype): of the matrix products.
        residual (torch.dtype): of the residual stream. Defaults to fp32, as XTuner has it (docs/decisions.md).
        compiled (bool): compile the element-wise parts, and record graphs, which need a GPU.
        checkpointing (str): "none", "selective", "full", or "auto", the least with which a row fits the memory.
        resident (bool | str): keep the weights dequantised, which takes 2 bytes a parameter and is faster; "auto" where there is room.
        tokens (int | str): tokens of a micro-batch at most; at least a row. "auto": a whole batch, or what of it
            fits the memory. A batch that is shorter than the others is filled up to their parts: another graph would take longer.
    """

    def __init__(self, llm, dtype, residual=torch.float32, compiled=True, checkpointing="auto", resident="auto", tokens=TOKENS):
        self.parts = parts_of(llm.get_base_model())
        self.device = self.parts.embedding.weight.device
        self.dtype, self.recorded = dtype, compiled and self.device.type == "cuda"
        self.tokens, self.batch_rows = tokens, 1  # rows of a whole batch: the last one of an epoch may have fewer
        self.checkpointing, self.resident = checkpointing, resident
        self.decoder = Decoder(self.parts, dtype, residual, Kernels(compiled))
        self.parameters = self.decoder.parameters
        self.graphs, self.pool, self.steps = {}, None, 0
        self.beginning = self.places = None

    def __call__(self, input_ids, labels, position_ids, document_ids=None):
        """Return the mean loss of the trained tokens; its backward gives the adapters their gradients.

        Args:
            input_ids (torch.Tensor): (rows, tokens).
            labels (torch.Tensor): (rows, tokens), -100 where not trained; each token is predicted from those before it.
            position_ids (torch.Tensor): (rows, tokens).
            document_ids (torch.Tensor, optional): as of `document_mask`; without it each row is one document.

        Raises:
            ModelError: not even one row fits the memory.
        """
        return _Loss.apply(self, (input_ids, labels, position_ids, document_ids), *self.parameters)

    def run(self, input_ids, labels, position_ids, document_ids):
        """Compute the gradients, which the decoder then holds; return the loss."""
        self.steps += 1
        ready = bool(self.graphs)
        trained = (labels[:, 1:] != IGNORED).sum(1).to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(self.device).record_event() if trained.device != labels.device else None
        if ready:
            self._begin()  # the card takes the adapters while the batch is prepared
        if arrived is not None:
            arrived.synchronize()
        trained = trained.tolist()
        multiple = LENGTHS if self.recorded else 1
        batch = Batch(input_ids, labels, trained, position_ids, document_ids, self.parts.rotary, multiple, self.dtype)
        self.batch_rows = max(self.batch_rows, batch.rows)
        if self.steps == 1:
            self._plan(batch.tokens, free_memory(self.device))
        loss = self._replayed(batch) if ready else None
        while loss is None:
            try:
                parts = list(batch.parts(self._rows(batch.tokens), self.recorded))
                self._record(parts)
                self._begin()
                loss = sum(self._add(part) for part in parts)
            except torch.cuda.OutOfMemoryError:
                self._step_down(batch.tokens)
        return loss

    def _replayed(self, batch):
        """Return the loss where all graphs are there, else None: each part is made while the card computes the one before."""
        random_state, losses = torch.cuda.get_rng_state(self.device), []
        for part in batch.parts(self._rows(batch.tokens), full=True):
            if part.key not in self.graphs:
                torch.cuda.set_rng_state(random_state, self.device)  # all parts are computed once more
                return None
            losses.append(self._add(part))
        return sum(losses)

    def _rows(self, tokens):
        """Return how many rows of so many tokens are taken at a time (int): a whole batch in equal parts, since each part is filled up."""
        most = max(1, self.tokens // tokens)
        times = -(-self.batch_rows // most)
        return -(-self.batch_rows // times)

    def _add(self, part):
        return self.graphs[part.key](part) if self.recorded else part.add_to(self.decoder)

    def _record(self, parts):
        """Record the graphs that are missing. No random number is used up: a resumed run draws those of an uninterrupted one."""
        missing = {part.key: part for part in parts if self.recorded and part.key not in self.graphs}
        if not missing:
            return
        random_state = torch.cuda.get_rng_state(self.device)
        try:
            for key, part in missing.items():
                part = part.copy()
                if not any(known[:-1] == key[:-1] for known in self.graphs):
                    part.add_to(self.decoder)  # compiles, and lets libraries make their plans
                self.graphs[key] = _Graph(self.decoder, part, self.pool)
                self.pool = self.graphs[key].graph.pool()
        finally:
            torch.cuda.set_rng_state(random_state, self.device)

    def _begin(self):
        """Let the decoder begin a step, by a recorded graph where that is possible: it is hundreds of small kernels."""
        if not self.recorded:
            return self.decoder.begin_step()
        places = [parameter.data_ptr() for parameter in self.parameters]
        if self.beginning is None or self.places != places:  # an optimizer may have moved them
            self.decoder.begin_step()
            self.beginning, self.places = torch.cuda.CUDAGraph(), places
            with torch.cuda.graph(self.beginning, pool=self.pool, capture_error_mode="thread_local"):
                self.decoder.begin_step()
        self.beginning.replay()

    def _plan(self, tokens, free):
        """Choose checkpointing, resident weights and the size of micro-batches.

        Args:
            tokens (int): of a row.
            free (float): bytes of memory that may be taken.
        """
        free -= RESERVE + OPTIMIZER_BYTES * sum(parameter.numel() for parameter in self.parameters) + self.decoder.head_bytes()
        whole = self.tokens == "auto"
        if whole:
            self.tokens = max(TOKENS, self.batch_rows * tokens)
        levels = CHECKPOINTING if self.checkpointing == "auto" else (self.checkpointing,)
        fitting = [level for level in levels if self.decoder.token_bytes(level) * tokens <= free]
        self.decoder.checkpointing = (fitting or levels[-1:])[0]
        a_token = self.decoder.token_bytes(self.decoder.checkpointing)
        wanted = min(self.tokens, max(tokens, TOKENS))
        weights = self.decoder.weight_bytes()
        gains = self.recorded or self.device.type == "cpu"
        if self.resident is True or (self.resident == "auto" and gains and a_token * wanted + weights <= free):
            self.decoder.make_resident()
            free -= weights
            more = self.decoder.roomy_bytes()
            large = self.tokens > TOKENS and self.decoder.checkpointing == "none"
            if large and more and (a_token + more) * self.tokens <= free:
                self.decoder.make_roomy()
                a_token += more
        fitting_tokens = int(free / a_token)  # later batches may be larger than this one
        self.tokens = max(tokens, fitting_tokens if whole else min(self.tokens, fitting_tokens))
        self._tell(tokens)

    def _step_down(self, tokens):
        """Take smaller micro-batches, or compute more again, after the memory has run out."""
        self.graphs, self.pool, self.beginning = {}, None, None
        torch.cuda.empty_cache()
        level = CHECKPOINTING.index(self.decoder.checkpointing)
        if self.decoder.roomy:
            self.decoder.make_roomy(False)
        elif (rows := self._rows(tokens)) > 1:
            self.tokens = rows // 2 * tokens
        elif level + 1 < len(CHECKPOINTING) and self.checkpointing == "auto":
            self.decoder.checkpointing = CHECKPOINTING[level + 1]
        else:
            raise ModelError(
                f"the GPU's memory is too small for a row of {tokens} tokens; lower max_length in PART 1 of the config, "
                "or take a smaller model"
            ) from None
        self._tell(tokens, "Out of memory; going on with less. ")

    def _tell(self, tokens, before=""):
        from mmengine.logging import print_log

        weights = "kept dequantised" if self.decoder.resident else "dequantised for each use"
        weights += ", more kept for the backward" if self.decoder.roomy else ""
        text = f"{before}Fused step: {self._rows(tokens)} rows at a time, checkpointing {self.decoder.checkpointing}, weights {weights}"
        print_log(text, logger="current", level=logging.WARNING if before else logging.INFO)


class _Loss(torch.autograd.Function):
    """Loss of a batch; the gradients are computed with it."""

    @staticmethod
    def forward(ctx, step, batch, *parameters):
        with torch.autocast(step.device.type, enabled=False):
            loss = step.run(*batch)
        ctx.step, ctx.number, ctx.dtypes = step, step.steps, [parameter.dtype for parameter in parameters]
        return loss

    @staticmethod
    def backward(ctx, grad):
        if ctx.number != ctx.step.steps:
            raise RuntimeError("backward must follow its own forward: the fused step holds the gradients of one batch")
        grads = ctx.step.decoder.gradients(grad)
        return None, None, *(found.to(dtype) for found, dtype in zip(grads, ctx.dtypes, strict=True))


class Batch:
    """Rows as the decoder needs them.

    Args: as for `FusedStep`, and
        trained (list[int]): how many tokens of each row are trained.
        rotary (torch.nn.Module): as of `shapes.Parts`.
        multiple (int): the rows are padded to a multiple of so many tokens.
        dtype (torch.dtype): of the mask, where one is needed.
    """

    def __init__(self, input_ids, labels, trained, position_ids, document_ids, rotary, multiple, dtype):
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        self.trained = trained
        self.weight = torch.full((), 1 / max(1, sum(trained)), device=labels.device)
        self.documents = document_ids
        self.dtype = dtype
        missing = -input_ids.shape[1] % multiple
        self.columns = [self._padded(x, missing, value) for x, value in ((input_ids, 0), (targets, IGNORED), (position_ids, 0))]
        if document_ids is not None:
            self.documents = self._padded(document_ids, missing, 0)
        self.rows, self.tokens = self.columns[0].shape
        self.cos, self.sin = rotary(torch.zeros(1, device=input_ids.device), self.columns[2])

    @staticmethod
    def _padded(x, tokens, value):
        return torch.nn.functional.pad(x, (0, tokens), value=value) if tokens else x

    def parts(self, rows, full):
        """Yield micro-batches (Part) of so many rows; where `full`, the last is filled up with empty rows."""
        for begin in range(0, self.rows, rows):
            yield self._part(begin, rows, full)

    def _part(self, begin, rows, full):
        step = -(-max(CHUNK, rows * self.tokens // PORTIONS) // CHUNK) * CHUNK if full else 1  # kernels want whole chunks

        def cut(x, value=0):
            x = x[begin : begin + rows]
            missing = rows - len(x) if full else 0
            return torch.cat([x, x.new_full((missing, *x.shape[1:]), value)]) if missing else x

        ids, targets, cos, sin = cut(self.columns[0]), cut(self.columns[1], IGNORED), cut(self.cos), cut(self.sin)
        documents = cut(self.documents) if self.documents is not None else None
        trained = sum(self.trained[begin : begin + rows])
        return Part(ids, targets, self.weight, cos, sin, documents, self.dtype, step * max(1, -(-trained // step)))


class Part:
    """A micro-batch: `ids`, `targets`, `cos`, `sin` of its tokens laid end to end, `weight`, and what keeps the documents apart.

    Args: besides
        picked (int): how many tokens the head sees, those with a target first.

    Attributes:
        key (tuple): parts with the same can share a graph; the last of it is the number of tokens that the head sees.
    """

    TENSORS = ("ids", "targets", "weight", "picked", "cos", "sin", "bounds", "mask")  # what differs between parts of the same key

    def __init__(self, ids, targets, weight, cos, sin, documents, dtype, picked):
        self.shape = tuple(ids.shape)
        self.ids, self.targets, self.weight = ids.flatten(), targets.flatten(), weight
        self.picked = (self.targets == IGNORED).to(torch.uint8).argsort(stable=True)[:picked]
        self.cos, self.sin = cos.flatten(0, 1), sin.flatten(0, 1)
        self.bounds = self.mask = None
        if documents is not None:
            if varlen_attn is not None and ids.is_cuda and dtype != torch.float32:
                self.bounds = _bounds(documents)
            else:
                self.mask = document_mask(documents, dtype)
        self.key = self.shape, None if self.bounds is None else len(self.bounds), self.mask is not None, len(self.picked)

    def tensors(self):
        """Return those of `TENSORS` that this part has, {name: torch.Tensor}."""
        return {name: tensor for name in self.TENSORS if (tensor := getattr(self, name)) is not None}

    def copy(self):
        """Return a part with tensors of its own."""
        other = copy.copy(self)
        for name, tensor in self.tensors().items():
            setattr(other, name, tensor.clone())
        return other

    def add_to(self, decoder):
        """Add the gradients to a decoder's; return the loss."""
        place = Place(self.cos, self.sin, Layout(self.shape, self.bounds, self.mask))
        return decoder.add_batch(self.ids, self.targets, self.weight, self.picked, place)


def _bounds(documents):
    """Return the places between documents (int32), their number a multiple of DOCUMENTS; the last is repeated."""
    new = torch.ones(documents.shape, dtype=torch.bool, device=documents.device)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    begins = new.flatten().nonzero().flatten().to(torch.int32)
    return torch.nn.functional.pad(begins, (0, DOCUMENTS - len(begins) % DOCUMENTS), value=documents.numel())


class _Graph:
    """A recorded micro-batch; `part` is a copy, into which others are written."""

    def __init__(self, decoder, part, pool):
        self.part = part
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.loss = part.add_to(decoder)

    def __call__(self, part):
        torch._foreach_copy_(list(self.part.tensors().values()), list(part.tensors().values()))
        self.graph.replay()
        return self.loss.clone()

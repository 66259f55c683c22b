"""Loss and gradients of a LoRA model in one pass over the batch: without logits, by micro-batches, from recorded kernels."""

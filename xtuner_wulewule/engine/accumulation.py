"""How many optimizer updates a run makes, on mmengine's runner and under DeepSpeed."""

import math


def accumulation(optim_wrapper):
    """Return how an optimizer wrapper accumulates gradients.

    Args:
        optim_wrapper (mmengine.optim.BaseOptimWrapper | torch.optim.Optimizer): mmengine's own wrapper knows its `accumulative_counts`;
            under DeepSpeed the engine knows, which takes it from the strategy's `gradient_accumulation_steps`.

    Returns:
        tuple[int, bool]: iterations per update, and whether the remainder at the end of the run makes an update of its own (mmengine does,
        DeepSpeed does not).
    """
    engine = getattr(getattr(optim_wrapper, "model", None), "model", None)
    if hasattr(engine, "gradient_accumulation_steps"):
        return int(engine.gradient_accumulation_steps()), False
    return int(getattr(optim_wrapper, "_accumulative_counts", 1)), True


def count_updates(iterations, accumulative_counts, flushes_remainder):
    """Return the number of optimizer updates (int) in that many iterations; see `accumulation` for the other two."""
    if flushes_remainder:
        return math.ceil(iterations / accumulative_counts)
    return iterations // accumulative_counts

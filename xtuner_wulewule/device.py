"""What the configs ask about the machine; each answer is a plain string, so that a dumped config stays readable."""


def compute_dtype():
    """Return "bfloat16" where the GPU computes it natively (Ampere and later), "float16" on an older one, "float32" without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def four_bit_dtype():
    """Return the compute type of a 4-bit model: as `compute_dtype`, but never float32, for a 4-bit model needs a GPU."""
    dtype = compute_dtype()
    return "bfloat16" if dtype == "float32" else dtype


def dist_backend():
    """Return "nccl" with a GPU, else "gloo"."""
    import torch

    return "nccl" if torch.cuda.is_available() else "gloo"

"""What configs and models ask about the machine; configs get plain strings, so that a dumped one stays readable."""

import os


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


def free_memory(device, cached=True):
    """Return the bytes (int) that this process may still take.

    Args:
        device (torch.device): a CPU, whose processes share its memory, or a GPU.
        cached (bool): count what PyTorch keeps from freed tensors, of which recorded graphs may hold a part. Defaults to True.
    """
    import torch

    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free, whole = torch.cuda.mem_get_info(device)
    reserved, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return min(free + reserved, int(whole * fraction)) - (used if cached else reserved)

"""mmengine's `AmpOptimWrapper` without the pauses that it gives the GPU in each update."""

from mmengine.optim import AmpOptimWrapper
from torch.optim import Adam, AdamW


class FusedAmpOptimWrapper(AmpOptimWrapper):
    """`AmpOptimWrapper`, except that nothing waits for the GPU before an update has been handed to it:

    * Adam and AdamW of PyTorch run as one kernel (`fused`), which skips an update with infinite or undefined gradients by itself: the loss
      scaler asks the GPU otherwise, before hundreds of small kernels are launched;
    * the norm of the gradients is read for the log when the update is on its way, not before.

    Checkpoints of `AmpOptimWrapper` are resumed from, and it resumes from those of this class.

    Args: as for `mmengine.optim.AmpOptimWrapper`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fused = fuse(self.optimizer)
        self._norm = None

    def load_state_dict(self, state_dict):
        """Load a state of this class or of `AmpOptimWrapper`; see there."""
        if self.fused:
            groups = [{**group, "foreach": None, "fused": True} for group in state_dict["param_groups"]]  # PyTorch moves the state for it
            state_dict = {**state_dict, "param_groups": groups}
        super().load_state_dict(state_dict)

    def _clip_grad(self):
        parameters = [one for group in self.optimizer.param_groups for one in group["params"] if one.requires_grad and one.grad is not None]
        self._norm = self.clip_func(parameters, **self.clip_grad_kwargs) if parameters else None

    def step(self, **kwargs):
        """Clip the gradients and update the parameters; log the norm before clipping.

        Args:
            kwargs: of the optimizer's `step`.
        """
        super().step(**kwargs)
        if self._norm is not None:
            self.message_hub.update_scalar(f"train/{self.grad_name}", float(self._norm))
            self._norm = None


def fuse(optimizer):
    """Let an optimizer run as one kernel, where it is PyTorch's Adam or AdamW and nothing else is set.

    It is set here and not in the config: PyTorch refuses `fused=True` beside 4-bit weights, though these are not trained.

    Args:
        optimizer (torch.optim.Optimizer): any.

    Returns:
        bool: whether it does now.
    """
    groups = optimizer.param_groups
    trained = [one for group in groups for one in group["params"] if one.requires_grad]
    set_otherwise = any(group.get(name) for group in groups for name in ("foreach", "capturable", "differentiable"))
    on_gpu = bool(trained) and all(one.is_cuda and one.is_floating_point() for one in trained)
    if type(optimizer) not in (Adam, AdamW) or set_otherwise or not on_gpu or any("fused" not in group for group in groups):
        return False
    for group in groups:
        group["fused"] = True
    optimizer._step_supports_amp_scaling = True  # PyTorch's loss scaler asks for it
    return True

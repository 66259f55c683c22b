"""Samplers for mmengine's data loaders."""

import math
from collections.abc import Iterator, Sized

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from xtuner_wulewule.errors import DataError, SettingsError


def data_parallel_info():
    """Return (rank, world size) among the data-parallel ranks.

    Under sequence parallelism several ranks share one row, so XTuner's data-parallel group counts and not the global rank. Where that
    group was never made (any run without DeepSpeed), it is `mmengine.dist.get_dist_info()`.
    """
    from xtuner.parallel.sequence import setup_distributed

    if setup_distributed._DATA_PARALLEL_GROUP is None:
        return get_dist_info()
    return setup_distributed.get_data_parallel_rank(), setup_distributed.get_data_parallel_world_size()


class NoShuffleSampler(Sampler[int]):
    """Yields the rows in the order of the data set, in every epoch.

    Rank r of W gets the rows r, r + W, r + 2W, …: with B rows a step on each rank, step k of all ranks together covers exactly the rows
    k·W·B to (k + 1)·W·B − 1. Where the rows don't divide by W, the first rows are repeated at the end, at most W − 1 of them, so that all
    ranks make the same number of steps.

    Args:
        dataset (Sized): the data set.
        seed (int, optional): accepted because the runner passes it; unused.
        round_up (bool): whether to repeat rows at the end. False is for one rank, where nothing is repeated anyway. Defaults to True.

    Raises:
        DataError: the data set is empty.
        SettingsError: `round_up=False` on several ranks: they would make unequal numbers of steps and wait for each other for ever.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, round_up: bool = True) -> None:
        self.rank, self.world_size = data_parallel_info()
        self.dataset = dataset
        self.seed = seed
        self.round_up = round_up
        if len(dataset) == 0:
            raise DataError("train_dataloader.dataset has no rows after packing; check data_files of the config")
        if not round_up and self.world_size > 1:
            raise SettingsError(
                f"train_dataloader.sampler.round_up=False on {self.world_size} data-parallel ranks: unequal numbers of steps would hang; "
                "set round_up=True"
            )
        self.num_samples = math.ceil(len(dataset) / self.world_size)

    def __iter__(self) -> Iterator[int]:
        rows = len(self.dataset)
        return (index % rows for index in range(self.rank, self.num_samples * self.world_size, self.world_size))

    def __len__(self) -> int:
        """Rows of this rank in an epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is the same in every epoch."""

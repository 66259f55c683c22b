import pytest
from mmengine.registry import DATA_SAMPLERS

from xtuner_wulewule.dataset import samplers
from xtuner_wulewule.dataset.samplers import NoShuffleSampler
from xtuner_wulewule.errors import DataError, SettingsError


@pytest.fixture
def ranks(monkeypatch):
    def build(world_size, rows, **kwargs):
        built = []
        for rank in range(world_size):
            monkeypatch.setattr(samplers, "get_dist_info", lambda rank=rank: (rank, world_size))
            built.append(NoShuffleSampler(range(rows), **kwargs))
        return built

    return build


def test_registered():
    assert DATA_SAMPLERS.build(dict(type="NoShuffleSampler", dataset=range(3), seed=1)).seed == 1


def test_one_rank_keeps_the_order(ranks):
    (sampler,) = ranks(1, 5, seed=7)
    assert list(sampler) == [0, 1, 2, 3, 4]
    assert len(sampler) == 5
    sampler.set_epoch(3)
    assert list(sampler) == [0, 1, 2, 3, 4]


def test_exact_indices_of_two_ranks(ranks):
    first, second = ranks(2, 7)
    assert list(first) == [0, 2, 4, 6]
    assert list(second) == [1, 3, 5, 0]


@pytest.mark.parametrize(("world_size", "batch", "rows"), [(2, 3, 24), (4, 2, 19), (3, 4, 5), (8, 1, 3)])
def test_step_k_covers_the_next_rows(ranks, world_size, batch, rows):
    indices = [list(sampler) for sampler in ranks(world_size, rows)]
    assert len({len(own) for own in indices}) == 1
    padded = len(indices[0]) * world_size
    assert padded - rows < world_size
    for start in range(0, len(indices[0]), batch):
        step = sorted(index for own in indices for index in own[start : start + batch])
        expected = range(start * world_size, min((start + batch) * world_size, padded))
        assert step == sorted(index % rows for index in expected)


def test_round_up_false(ranks):
    assert list(ranks(1, 5, round_up=False)[0]) == [0, 1, 2, 3, 4]
    with pytest.raises(SettingsError, match=r"round_up=False on 2 data-parallel ranks"):
        ranks(2, 4, round_up=False)


def test_empty_data_set(ranks):
    with pytest.raises(DataError, match="no rows after packing"):
        ranks(1, 0)

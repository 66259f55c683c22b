"""Eight ranks of one gloo group, forked from one process that has imported the libraries: light, and real in all that ranks do together."""

import json
import sys

import pytest
from commands import run
from training import budget, told, write_lines

from xtuner_wulewule.compat import free_ports
from xtuner_wulewule.model.tiny import tiny_model

RANKS = """
import json, os, sys, traceback
from pathlib import Path
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from transformers import AutoTokenizer
from xtuner.engine.runner import TrainLoop
from xtuner_wulewule import compat, plugin
from xtuner_wulewule.dataset.build import build_wulewule_dataset
from xtuner_wulewule.dataset.map_fns import wulewule_pretrain_map_fn
from xtuner_wulewule.engine.hooks import AccumulativeCountsHook, UpdateBudgetHook

ROWS, ranks = 27, 8
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)

class Rows(torch.utils.data.Dataset):
    rows_read = ROWS

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return dict(row=row, x=torch.sin(torch.arange(4.0) * (row + 1)))

class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, row, x, mode="loss"):
        return {"loss": (self.linear(x).squeeze(1) - row).square().mean()}

class RecordHook(Hook):
    def before_train(self, runner):
        self.steps = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append([data_batch["row"].tolist(), float(outputs["loss"])])

    def after_train(self, runner):
        weight = [float(value) for value in runner.model.state_dict().popitem(last=False)[1].flatten()]
        Path(f"steps.{os.environ['WORLD_SIZE']}.{os.environ['RANK']}").write_text(json.dumps([self.steps, weight]))

def train(counts):
    world = int(os.environ["WORLD_SIZE"])
    runner = Runner(
        model=Line(), work_dir=f"work.{world}", launcher="none" if world == 1 else "pytorch", randomness=dict(seed=0),
        env_cfg=dict(dist_cfg=dict(backend="gloo")), log_processor=dict(by_epoch=False), train_cfg=dict(type=TrainLoop, max_epochs=2),
        train_dataloader=dict(
            batch_size=1, num_workers=0, dataset=Rows(), sampler=dict(type="NoShuffleSampler"), collate_fn=dict(type="default_collate")
        ),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05), accumulative_counts=counts),
        param_scheduler=dict(type="WarmupCosineLR", warmup_ratio=0.03, by_epoch=False),
        custom_hooks=[RecordHook(), AccumulativeCountsHook(), UpdateBudgetHook()],
    )
    runner.train()

def map_fn(row):
    with open("mapped", "a") as file:
        file.write(os.environ["RANK"] + " ")
    return wulewule_pretrain_map_fn(row)

def build(name, local_rank, file, cache):
    os.environ["LOCAL_RANK"] = str(local_rank)
    try:
        dataset = build_wulewule_dataset(file, tokenizer, 32, map_fn, packing="concat", shuffle=False, cache_dir=cache)
        said = [dataset[row]["input_ids"] for row in range(len(dataset))]
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    torch.distributed.barrier()
    mapped = Path("mapped").read_text().split()
    torch.distributed.barrier()
    Path("mapped").write_text("")
    Path(f"{name}.{os.environ['RANK']}").write_text(json.dumps([said, mapped]))

def rank_main(rank, world, store):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store))
    compat.set_up_cpu_processes()
    train(ranks // world)
    if world > 1:
        build("one_machine", rank, "rows.jsonl", "shared")
        build("two_machines", rank % 4, f"machine{rank // 4}/rows.jsonl", f"machine{rank // 4}/cache")
        build("other_rows", rank % 4, f"machine{rank // 4}/other.jsonl", f"machine{rank // 4}/cache")

for world, port in ((1, sys.argv[2]), (ranks, sys.argv[3])):
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                if rank:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                rank_main(rank, world, port)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
    print("NEXT", flush=True)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder in which one rank, then eight, did their work, and what rank 0 said in both."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = [{"text": f"第{number}段，山高路远，慢慢走。"} for number in range(20)]
    for place in (".", "machine0", "machine1"):
        (folder / place).mkdir(exist_ok=True)
        write_lines(folder / place / "rows.jsonl", rows)
        write_lines(folder / place / "other.jsonl", rows[: 20 if place == "machine0" else 12])
    result = run([sys.executable, "-W", "ignore", "-c", RANKS, tiny_model(), *free_ports(2)], folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout.split("NEXT")


def read(folder, name, count):
    return [json.loads((folder / f"{name}.{rank}").read_text()) for rank in range(count)]


def test_eight_ranks_take_the_rows_of_one_in_its_order(ranks):
    folder, _ = ranks
    ((alone, weights),) = read(folder, "steps.1", 1)
    together = read(folder, "steps.8", 8)
    assert [rows for rows, _ in alone] == [[row] for row in range(27)] * 2
    # 27 rows on 8 ranks: four steps an epoch, and the first five rows once more
    order = [[rank_steps[0][step][0][0] for rank_steps in together] for step in range(8)]
    assert [row for step in order for row in step] == [*range(27), *range(5)] * 2


def test_global_batch_is_kept_by_accumulation(ranks):
    """One rank at eight accumulated rows and eight ranks at one row each see the same losses, until at the end of the epoch eight ranks
    repeat rows and one does not."""
    folder, _ = ranks
    ((alone, _),) = read(folder, "steps.1", 1)
    together = read(folder, "steps.8", 8)
    for step in range(3):
        own = [rank_steps[0][step][1] for rank_steps in together]
        assert own == pytest.approx([loss for _, loss in alone[8 * step : 8 * step + 8]], rel=1e-5)  # fp32 sums in another order
    weights = [weight for _, weight in together]
    assert all(weight == weights[0] for weight in weights)
    assert together[7][0][4][1] != pytest.approx(together[7][0][0][1], rel=0.01)  # row 7 in the second epoch: the weights have moved


def test_hooks_on_one_rank_and_on_eight(ranks):
    _, (alone, together, _) = ranks
    # 54 iterations at 8 accumulated: six updates and the remainder
    assert told(alone) == [(8, 7, 54)] and budget(alone)[1:3] == (54, 7)
    assert told(together) == [] and budget(together)[1:3] == (8, 8)


def test_data_set_is_built_once_on_each_machine(ranks):
    folder, _ = ranks
    for name, builders in (("one_machine", {"0"}), ("two_machines", {"0", "4"})):
        found = read(folder, name, 8)
        assert all(one == found[0] for one in found) and len(found[0][0]) > 5
        assert set(found[0][1]) == builders and len(found[0][1]) == 20 * len(builders)  # each row once by each of them
    assert len(list((folder / "shared").iterdir())) == 1


def test_other_rows_on_another_machine_end_all_ranks(ranks):
    folder, _ = ranks
    expected = "DataError: process 4 has other data files, or another tokenizer, than process 0; "
    expected += "train_dataloader.dataset.data_files and the model must be the same on all machines"
    assert [said for said, _ in read(folder, "other_rows", 8)] == [expected] * 8

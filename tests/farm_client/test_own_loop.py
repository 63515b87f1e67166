"""Parts as a script sees them, and the one that it gets at home."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import farm_client as farm
from farm_client.own_loop import LoopPart, PartError, host_parts

DATA = torch.utils.data.TensorDataset(torch.arange(10.0))


def part_of(rows, **options) -> LoopPart:
    return LoopPart(lambda items: [row for row in rows if row < items], **options)


def test_at_home_there_is_one_part_over_everything():
    model = torch.nn.Linear(1, 1)
    seen = []
    for part in farm.parts(model):
        for (x,) in part.loader(DATA, batch_size=4):
            seen += x.tolist()
        assert (part.round, part.epoch, part.unread) == (0, 0, 0)
        part.done(metrics={"loss": torch.tensor(1.0)})
    assert sorted(seen) == list(range(10))
    assert seen != sorted(seen), "it is shuffled"


def test_a_script_runs_by_itself(tmp_path):
    (tmp_path / "train.py").write_text(
        "import torch\nimport farm_client as farm\n"
        "for part in farm.parts(torch.nn.Linear(1, 1)):\n"
        "    part.read(part.rows_of(3))\n"
        "    part.done()\n"
        "print('saved', farm.config(lr=0.1))\n"
    )
    answer = subprocess.run([sys.executable, tmp_path / "train.py"], capture_output=True, text=True, check=True)
    assert answer.stdout == "saved {'lr': 0.1}\n"


def test_a_loader_gives_the_parts_rows_in_their_order_and_counts_what_it_gave():
    counted = []
    part = part_of([7, 2, 9], advance=counted.append)
    with pytest.raises(PartError, match="known once the data set is"):
        _ = part.rows
    loader = part.loader(DATA, batch_size=2)
    assert len(loader) == 2
    assert (len(loader.dataset), loader.batch_size, loader.drop_last) == (3, 2, False), "as scripts ask a DataLoader"
    assert [x.tolist() for (x,) in loader] == [[7.0, 2.0], [9.0]]
    assert (part.rows, part.items, part.unread, counted) == ([7, 2, 9], 10, 0, [2, 1])
    assert len(list(loader)) == 2
    assert counted == [2, 1, 0, 0], "a row that is read twice is one sample"


def test_the_scripts_own_loader_says_how_rows_become_batches():
    own = torch.utils.data.DataLoader(DATA, batch_size=2, shuffle=True, drop_last=True, collate_fn=len)
    part = part_of([7, 2, 9])
    assert list(part.loader(own)) == [2, 1], "no row is dropped: the part counts as a whole"
    assert part.unread == 0
    assert list(part_of([5]).loader(part.loader(own))) == [1], "as where a script's loader is replaced by each part's"
    assert list(part_of([7, 2]).loader(own, collate_fn=list)) == [[DATA[7], DATA[2]]]


def test_a_loop_that_breaks_off_leaves_rows_unread():
    part = part_of(range(10))
    next(iter(part.loader(DATA, batch_size=4)))
    assert part.unread == 6


def test_worker_processes_count_as_well():
    part = part_of([4, 1, 3, 8])
    assert sum(len(x) for (x,) in part.loader(DATA, batch_size=3, num_workers=1)) == 4
    assert part.unread == 0


@pytest.mark.parametrize("option", [{"shuffle": True}, {"sampler": None}, {"batch_sampler": None}])
def test_who_chooses_the_rows_is_no_option(option):
    with pytest.raises(PartError, match=f"takes no {next(iter(option))}"):
        part_of([1]).loader(DATA, **option)


def test_only_the_parts_own_rows_can_be_read():
    part = part_of([1, 2])
    part.rows_of(10)
    with pytest.raises(PartError, match="row 5 is not in this part"):
        part.read([1, 5])
    with pytest.raises(PartError, match="had 10"):
        part.rows_of(11)


@pytest.mark.filterwarnings("error")
def test_a_part_is_done_once_and_with_numbers():
    part = part_of([1])
    with pytest.raises(ValueError, match="could not convert"):
        part.done({"loss": "small"})
    assert not part.is_done
    part.done({"loss": 1, "tensor": torch.ones((), requires_grad=True)})
    assert part.metrics == {"loss": 1.0, "tensor": 1.0}
    with pytest.raises(PartError, match="twice"):
        part.done()


def test_a_body_without_done_is_told():
    with pytest.raises(PartError, match=r"ended without part\.done"):
        for _part in farm.parts(torch.nn.Linear(1, 1)):
            pass


def test_settings_of_the_task_win_over_the_scripts_defaults():
    class Task:
        def config(self):
            return {"lr": 0.5, "width": 8}

    host_parts(Task())
    try:
        assert farm.config(lr=0.1, depth=2) == {"lr": 0.5, "depth": 2, "width": 8}
    finally:
        host_parts(None)
    assert farm.config(lr=0.1) == {"lr": 0.1}


def test_rows_that_come_another_way_are_counted_by_the_script():
    counted = []
    part = part_of([3, 1, 2], advance=counted.append)
    for row in part.rows_of(10):
        part.read([row])
    assert (part.unread, counted) == (0, [1, 1, 1])


def test_a_function_for_the_ends_of_epochs_is_refused_by_name():
    with pytest.raises(PartError, match="takes no on_epoch_end"):
        next(farm.parts(torch.nn.Linear(1, 1), on_epoch_end=lambda model, epoch, out: None))

"""Scripts with a loop of their own: found, run, checked, and trained to the bits of their own loop."""

from __future__ import annotations

import sys
import threading
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.data.order import StrideOrder, shard_order
from farm_client.data.sharding import plan_shards
from farm_client.executor.environment import work_beside
from farm_client.executor.failures import CodeError, LossNotFinite
from farm_client.executor.messages import LoadTask, Piece, Run
from farm_client.executor.progress import ProgressReporter
from farm_client.executor.rehearsal import rehearse
from farm_client.executor.rehearsal_records import RehearsalRequest
from farm_client.executor.script import is_script
from farm_client.executor.script_runner import ScriptRunner
from farm_client.sdk.check import CheckFailed, check_task
from protocol.assignments import Kind
from protocol.digests import digest_bytes
from protocol.recipe import InnerState, Mode
from protocol.tasks import Split

HEAD = """
import torch
import farm_client as farm

config = farm.config(lr=0.1)
x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.1), torch.nn.Linear(4, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
"""
LOOP = """
for part in farm.parts(model):
    for x, y in part.loader(dataset, batch_size=5):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    part.done(metrics={"loss": loss})
"""


class Bench:
    """A script in this process, and orders for it."""

    def __init__(self, folder, source, **changes):
        (folder / "train.py").write_text(source)
        order = LoadTask(
            task_id="t",
            code_dir=str(folder),
            entry="train.py",
            config={"lr": 0.05},
            mode=Mode.WEIGHTS,
            seed=3,
            batch_samples=8,
            dataset_kind="code",
            scratch_dir=str(folder),
            report_bytes=1 << 20,
        )
        self.runner = ScriptRunner(order.model_copy(update=changes), torch.device("cpu"))
        self.weights = self.runner.weights_file()

    def run(self, stop=20, kind=Kind.TRAIN, round_number=0, weights=None, samples=40, inner_state=None):
        data = self.weights if weights is None else weights
        piece = Piece(shard=0, split=Split.TRAIN, shard_samples=samples, first_row=0, path=None, start=0, stop=stop)
        order = Run(
            assignment_id=f"a{round_number}",
            kind=kind,
            round=round_number,
            epoch=0,
            weights_digest=digest_bytes(data),
            weights=data,
            pieces=(piece,),
            inner_state=inner_state,
        )
        done = self.runner.run(order, ProgressReporter(lambda _advance: None))
        self.runner.confirm()
        return done


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import farm_client\nfor p in farm_client.parts(m): pass", True),
        ("import farm_client as f\nlist(f.parts(m))", True),
        ("from farm_client import parts as ps\nfor p in ps(m): pass", True),
        ("def main():\n    import farm_client as farm\n    for p in farm.parts(m): pass", True),
        ("import farm_client as farm\nTrainer(callbacks=[farm.hf.Callback()])", True),
        ("import farm_client.lightning\nfarm_client.lightning.Callback()", True),
        ("import farm_client.lightning as f\nf.Callback()", True),
        ("from farm_client import hf\nhf.Callback()", True),
        ("from farm_client.lightning import Callback as C\nC()", True),
        ("from lightning.pytorch import Callback\nimport farm_client\nCallback()", False),
        ("import farm_client\n# farm_client.parts(m)\n", False),
        ("from farm_client import log\ndef parts(m): pass\nparts(1)", False),
        ("import other as farm\nfarm.parts(m)", False),
        ("this is no Python", False),
        ("\x00", False),
    ],
)
def test_a_script_is_known_by_its_call(tmp_path, source, found):
    (tmp_path / "train.py").write_text(source)
    assert is_script(tmp_path / "train.py") is found
    assert not is_script(tmp_path / "absent.py")


def test_a_part_is_trained_to_the_bits_of_the_loop_itself(tmp_path):
    bench = Bench(tmp_path, HEAD.replace("torch.nn.Dropout(0.1)", "torch.nn.Tanh()") + LOOP)
    done = bench.run()
    shuffled = shard_order(3, 0, 0, 40, Split.TRAIN)[:20].tolist()
    rows = [StrideOrder(40, 3).item(row) for row in shuffled]
    base = safetensors.torch.load(bench.weights)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model.load_state_dict(base)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    for start in range(0, 20, 5):
        batch = x[rows[start : start + 5]]
        optimizer.zero_grad()
        (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    update = safetensors.torch.load(done.update)
    assert done.samples == 20
    assert set(done.metrics) == {"loss"}
    assert all(torch.equal(update[name], base[name] - value) for name, value in model.state_dict().items())


def test_a_part_of_several_shards_is_shuffled_as_a_whole(tmp_path):
    """Shard after shard, its batches would be of the same rows in each epoch; held-out rows stay as they are stored."""
    runner = Bench(tmp_path, HEAD + LOOP).runner

    def rows(epoch=0, split=Split.TRAIN, kind=Kind.TRAIN):
        places = [{"shard": n, "shard_samples": 10, "first_row": 10 * n, "start": 0, "stop": 10} for n in range(4)]
        pieces = tuple(Piece(split=split, path=None, **place) for place in places)
        order = Run(assignment_id="a", kind=kind, round=epoch, epoch=epoch, weights_digest="0" * 64, pieces=pieces)
        return list(runner._part(order, ProgressReporter(lambda _advance: None)).rows_of(40))

    first, second = rows(), rows(epoch=1)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first == rows()
    shard_of = {StrideOrder(40, 3).item(row): row // 10 for row in range(40)}
    for order in (first, second):
        assert all(len({shard_of[row] for row in order[start : start + 10]}) > 1 for start in range(0, 40, 10))
    assert [shard_of[row] for row in rows(split=Split.HOLDOUT, kind=Kind.EVALUATE)] == [n // 10 for n in range(40)]


def test_a_repeated_assignment_gives_the_same_update(tmp_path):
    first, second = (Bench(tmp_path, HEAD + LOOP).run().update for _ in range(2))
    assert first == second, "dropout is seeded by the assignment"


def test_the_optimizer_keeps_its_state_from_part_to_part(tmp_path):
    bench = Bench(tmp_path, HEAD + LOOP)
    fresh = Bench(tmp_path, HEAD + LOOP).run(round_number=1).update
    bench.run()
    assert bench.run(round_number=1).update != fresh


EVALUATION = """
def count(model, part):
    assert not model.training
    return {"rows": len(part.rows_of(40))}
"""


CARRYING = HEAD.replace("Dropout(0.1)", "Tanh()") + LOOP.replace("farm.parts(model)", "farm.parts(model, optimizer)")


def test_an_optimizer_that_is_given_hands_its_state_on_to_the_next_client(tmp_path):
    first, second, alone = (Bench(tmp_path, CARRYING, inner_state=InnerState.CARRIED) for _ in range(3))
    one = first.run(stop=10)
    tensors = safetensors.torch.load(one.update)
    base = safetensors.torch.load(first.weights)
    assert any(name.startswith("inner_state/") for name in tensors)
    after = {name: base[name] - tensors[name] for name in base}
    weights = safetensors.torch.save(after)
    handed_on = second.run(stop=10, round_number=1, weights=weights, inner_state=first.runner._state_file())
    alone.run(stop=10)
    stayed = alone.run(stop=10, round_number=1, weights=weights, inner_state=alone.runner._state_file())
    assert handed_on.update == stayed.update


def test_a_version_that_carries_no_state_begins_with_that_of_the_beginning(tmp_path):
    bench = Bench(tmp_path, CARRYING, inner_state=InnerState.CARRIED)
    first = bench.run().update
    assert bench.run().update == first


@pytest.mark.parametrize("given", ["3", "model, object()", "model, scheduler=1"])
def test_what_has_no_state_can_not_be_carried(tmp_path, given):
    with pytest.raises(CodeError, match=r"state_dict|Module"):
        Bench(tmp_path, HEAD + f"list(farm.parts({given}))")


def test_held_out_rows_are_evaluated_by_the_scripts_function(tmp_path):
    bench = Bench(tmp_path, HEAD + EVALUATION + LOOP.replace("farm.parts(model)", "farm.parts(model, evaluate=count)"))
    assert bench.runner.evaluates
    assert bench.run(stop=7, kind=Kind.EVALUATE).metrics == {"rows": 7.0}
    assert bench.run().samples == 20, "and trains on"


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        ("print('nothing')", "ended without calling farm.parts"),
        ("farm.parts", "ended without calling farm.parts"),
        ("open('train.py.txt')", "No such file or directory: 'train.py.txt'$"),
        (
            "model.layers = [torch.nn.Linear(1, 1)]; del model[:]; list(farm.parts(model))",
            "no trainable parameter.*ModuleList",
        ),
        ("raise ValueError('early')", r"train.py:10: ValueError: early"),
        ("list(farm.parts(3))", "takes a torch.nn.Module, or a mapping of names to arrays, not int"),
    ],
)
def test_a_script_that_comes_to_no_part_is_told_at_once(tmp_path, loop, said):
    with pytest.raises(CodeError, match=said):
        Bench(tmp_path, HEAD + loop)


def test_a_script_that_stops_by_itself_is_told_how_a_task_ends_early(tmp_path):
    bench = Bench(tmp_path, HEAD + LOOP + "    if loss < 100:\n        break\n")
    assert bench.run().samples == 20
    with pytest.raises(CodeError, match=r"ended after a part.*--target 'loss<=0\.001'"):
        bench.run(round_number=1)


FAULTY = """
import pathlib

for part in farm.parts(model):
    if pathlib.Path(config["marker"]).exists():
        part.read(part.rows_of(40))
        part.done()
        continue
    BODY
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("part.done()", r"part\.done\(\) came with"),
        ("next(iter(part.loader(dataset))); part.done()", "came with 19 of 20 rows unread"),
        ("break", r"left its loop without part\.done"),
        ("pass", r"ended without part\.done"),
        ("part.read([999])", "known once the data set is"),
        ("1 / 0", r"train\.py:18: ZeroDivisionError"),
        ("exit()", "SystemExit"),
        ("part.rows_of(39)", "the data set has 39 items here, and had more"),
        ("model.extra = torch.nn.Linear(1, 1); part.read(part.rows_of(40)); part.done()", "extra"),
    ],
)
def test_what_a_body_does_wrong_is_named_and_the_next_part_finds_a_new_script(tmp_path, body, said):
    marker = tmp_path / "again"
    bench = Bench(tmp_path, HEAD + FAULTY.replace("BODY", body), config={"lr": 0.1, "marker": str(marker)})
    with pytest.raises(CodeError, match=said):
        bench.run()
    marker.touch()
    assert bench.run(round_number=1).samples == 20
    assert [thread.name for thread in threading.enumerate()].count("script") == 1, "the first one has left"


def test_a_model_that_became_nan_is_refused(tmp_path):
    ruin = "    torch.nn.init.constant_(model[0].weight, float('nan'))\n    part.done"
    bench = Bench(tmp_path, HEAD + LOOP.replace("    part.done", ruin))
    with pytest.raises(LossNotFinite):
        bench.run()


def test_data_files_are_not_for_scripts(tmp_path):
    with pytest.raises(CodeError, match="reads its own data"):
        Bench(tmp_path, HEAD + LOOP, dataset_kind="files")


def request(folder, source, **changes):
    (folder / "train.py").write_text(source)
    asked = RehearsalRequest(
        code_dir=str(folder),
        entry="train.py",
        config={},
        mode=Mode.WEIGHTS,
        seed=3,
        batch_samples=8,
        folder=str(folder),
    )
    return asked.model_copy(update=changes)


def test_a_rehearsal_trains_on_the_first_rows_and_learns_how_many_there_are(tmp_path):
    report = rehearse(request(tmp_path, HEAD + LOOP))
    assert report.failed is None
    assert (report.is_script, report.carries, report.evaluates, report.rows) == (True, False, False, 40)
    assert report.loss is not None
    assert report.tried
    silent = rehearse(request(tmp_path, HEAD + LOOP.replace('metrics={"loss": loss}', "")))
    assert (silent.tried, silent.loss) == (True, None), "a script need not say its loss"
    assert (tmp_path / "initial.weights").stat().st_size == report.weights_bytes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": Mode.GRADIENTS}, "use --mode weights"),
        ({"inner_state": InnerState.CARRIED}, "write farm.parts(model, optimizer)"),
        ({"tries_batch": False}, "leave out --no-check"),
    ],
)
def test_what_a_script_can_not_do_is_said_at_submission(tmp_path, changes, said):
    report = rehearse(request(tmp_path, HEAD + LOOP, **changes))
    assert said in report.failed.message


IN_LIBRARY = """
import transformers

class Config:
    def save_pretrained(self, folder):
        open(folder + "/config.json", "w").write('{"width": 3}')

class Tiny(transformers.PreTrainedModel):
    config = Config()

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.one(x)

model = Tiny()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""


def test_a_scripts_model_of_transformers_is_described_for_who_pulls_it(tmp_path, monkeypatch):
    library = type(torch)("transformers")  # the real one takes seconds
    library.PreTrainedModel = type("PreTrainedModel", (torch.nn.Module,), {"__module__": "transformers.modeling_utils"})
    monkeypatch.setitem(sys.modules, "transformers", library)
    report = rehearse(request(tmp_path, HEAD + IN_LIBRARY + LOOP))
    assert report.failed is None
    assert report.model_files == {"config.json": {"width": 3, "architectures": ["Tiny"]}}
    assert rehearse(request(tmp_path, HEAD + LOOP)).model_files == {}


def test_who_says_how_many_rows_there_are_needs_no_trial(tmp_path):
    report = rehearse(request(tmp_path, HEAD + LOOP, tries_batch=False, rows=40))
    assert (report.rows, report.tried) == (40, False)


READING = "open('rows.txt').read()\n" + HEAD + LOOP + "    open('epoch.txt', 'w').write('written')\n"


def test_relative_paths_begin_beside_the_script(tmp_path, monkeypatch):
    """As at home: it reads what was submitted with it, and writes into its own copy of that."""
    code = tmp_path / "code"
    (code / "deep").mkdir(parents=True)
    (code / "deep" / "rows.txt").touch()
    monkeypatch.chdir(tmp_path)  # back to here afterwards
    work_beside(str(code), "deep/train.py")
    Bench(code / "deep", READING).run()
    assert (code / "deep" / "epoch.txt").read_text() == "written"


def test_a_relative_path_from_the_top_of_the_folder_is_pointed_out(tmp_path, monkeypatch):
    (tmp_path / "rows.txt").touch()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    with pytest.raises(CodeError, match=r"rows\.txt'; it is in the submitted folder, but relative paths begin"):
        Bench(tmp_path, READING)


def test_a_real_submission_finds_its_files_by_relative_paths(tmp_path):
    """A folder has them; for a file alone the one beside it is pointed out."""
    (tmp_path / "train.py").write_text(READING)
    (tmp_path / "rows.txt").touch()
    assert check_task(tmp_path, {}).rows == 40
    with pytest.raises(CheckFailed, match=r"rows\.txt is beside your file: submit the folder"):
        check_task(tmp_path / "train.py", {})
    assert not (tmp_path / "epoch.txt").exists(), "the trial has a copy"


PARSING = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--factor", type=int, required=True)
parser.add_argument("words", nargs="*")
given = parser.parse_args()
assert (given.factor, given.words) == (3, ["two words"]), given
"""


@pytest.mark.parametrize("argv", ["--factor 3 'two words'", ["--factor", 3, "two words"]])
def test_a_script_that_parses_a_command_line_gets_one_from_the_settings(tmp_path, argv, monkeypatch):
    monkeypatch.setattr("sys.argv", ["farm", "submit"])
    assert Bench(tmp_path, PARSING + HEAD + LOOP, config={"argv": argv, "lr": 0.1}).run().samples == 20


def test_a_command_line_is_a_text_or_a_list(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["farm", "submit"])
    with pytest.raises(CodeError, match="is a int: write the script"):
        Bench(tmp_path, HEAD + LOOP, config={"argv": 3})


FROZEN = HEAD.replace("torch.nn.Dropout(0.1)", "torch.nn.BatchNorm1d(4)") + "model[0].requires_grad_(False)\n" + LOOP


def test_frozen_layers_travel_once_and_are_put_back_after_a_failure(tmp_path):
    first = Bench(tmp_path, FROZEN)
    frozen = first.runner.frozen_file()
    path = tmp_path / "frozen.weights"
    path.write_bytes(frozen)
    source = FROZEN.replace("    part.done", "    ruin(part.round)\n    part.done").replace("\nfor", RUIN)
    bench = Bench(tmp_path, source, frozen_path=str(path))
    with pytest.raises(CodeError, match="ZeroDivisionError"):
        bench.run(round_number=7)
    done = bench.run(round_number=1)
    update = safetensors.torch.load(done.update)
    assert not any(name.startswith("0.") for name in update), "what is frozen is not sent back"
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= update.keys(), "buffers are, by value"
    assert bench.runner.frozen_file() == frozen


RUIN = """
def ruin(number):
    if number == 7:
        model[0].weight.zero_()
        1 / 0

for"""


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(10, 300),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
    holdout=st.sampled_from((0.0, 0.2, 0.5)),
    cuts=st.lists(st.floats(0.01, 0.99), max_size=3),
)
def test_the_parts_of_an_epoch_have_every_row_once(items, seed, epoch, holdout, cuts):
    """However shards are cut into assignments: the rows of all parts together are the data set, each item once."""
    runner = ScriptRunner.__new__(ScriptRunner)
    runner._order = LoadTask(
        task_id="t",
        code_dir=".",
        entry="train.py",
        config={},
        mode=Mode.WEIGHTS,
        seed=seed,
        batch_samples=8,
        dataset_kind="code",
        scratch_dir=".",
    )
    found, first = [], 0
    for index, planned in enumerate(plan_shards(items, items * 4096, holdout)):
        places = [0, *sorted(int(cut * planned.samples) for cut in cuts), planned.samples]
        for start, stop in pairwise(places):
            piece = Piece(
                shard=index,
                split=planned.split,
                shard_samples=planned.samples,
                first_row=first,
                path=None,
                start=start,
                stop=stop,
            )
            found += runner._rows(piece, epoch, items)
        first += planned.samples
    assert sorted(found) == list(range(items))

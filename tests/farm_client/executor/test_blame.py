"""Faults of the task's code are called so, with its file and line, and none ends or hangs the executor."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest
import torch

from farm_client.executor.failures import CodeError, as_failed
from farm_client.executor.messages import Advance, Done, Failed, Loaded, Warm
from farm_client.executor.progress import ProgressReporter
from protocol.framing import pack_frame
from protocol.messages import Scope
from protocol.recipe import Mode
from tests.farm_client.executor.agent_side import load_order, run_order, started
from tests.farm_client.executor.bench_task import LINEAR, Bench, update_of, write_data
from tests.farm_client.executor.rehearsing import complaint, rehearsed

NET = """
    import torch
    from torch import nn

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.inner = nn.Dropout(0.0)
            self.calls = []
        METHOD

    def build_model(config):
        return Net()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""


def net(method: str) -> str:
    return NET.replace("METHOD", method.replace("\n", "\n        "))


OTHER_MEANINGS = {
    "two batches": "def train(self, x_pos, x_neg): raise RuntimeError('mine')",
    "a loader": "def train(self, loader): raise RuntimeError('mine')",
    "a loader and epochs": "def train(self, loader, epochs=10): raise RuntimeError('mine')",
    "evaluates data": "def eval(self, data): raise RuntimeError('mine')",
}


@pytest.mark.parametrize("meaning", list(OTHER_MEANINGS))
@pytest.mark.parametrize("mode", list(Mode))
def test_train_and_eval_may_be_methods_of_the_models_own(tmp_path: Path, meaning: str, mode: Mode) -> None:
    bench = Bench(tmp_path, net(OTHER_MEANINGS[meaning]), mode=mode)
    assert update_of(bench.train())["weight"].any()
    assert bench.runner.tensors.model.training
    assert bench.runner.tensors.model.inner.training
    assert bench.evaluate().metrics["loss"] > 0
    assert not bench.runner.tensors.model.training
    assert not bench.runner.tensors.model.inner.training


def test_an_attribute_may_be_called_train(tmp_path: Path) -> None:
    source = net("").replace("self.calls = []", "self.train = self.eval = True")
    bench = Bench(tmp_path, source)
    bench.train()
    bench.evaluate()
    assert not bench.runner.tensors.model.inner.training


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("def train(self, mode=True):\n    super().train(mode); self.calls.append(mode); return self", [True, False]),
        ("def train(self, flag: bool = True):\n    super().train(flag); self.calls.append(flag)", [True, False]),
        ("def train(self, *args):\n    super().train(*args); self.calls.append(*args)", [True, False]),
        ("def train(self):\n    super().train(); self.calls.append(True)", [True]),
        ("def eval(self):\n    self.training = False; self.calls.append(False)", [False]),
    ],
)
def test_overridden_modes_count(tmp_path: Path, method: str, calls: list[bool]) -> None:
    bench = Bench(tmp_path, net(method))
    bench.train()
    bench.evaluate()
    assert bench.runner.tensors.model.calls == calls
    assert not bench.runner.tensors.model.training


@pytest.mark.parametrize(
    "method",
    [
        "def train(self, mode=True): return self.nothing",
        "def eval(self): return self.nothing",
        "def named_buffers(self, *a, **k): return self.nothing",
        "def named_parameters(self, *a, **k): return self.nothing",
        "def to(self, *a, **k): return self.nothing",
        "def state_dict(self, *a, **k): return self.nothing",
        "def parameters(self, *a, **k): return self.nothing",
        "def children(self): return self.nothing",
    ],
)
def test_what_a_models_own_methods_raise_has_their_line(tmp_path: Path, method: str) -> None:
    with pytest.raises(CodeError, match=r"^task_\d+\.py:10, in \w+: AttributeError") as failed:  # noqa: PT012
        bench = Bench(tmp_path, net(method))
        bench.train()
        bench.evaluate()
    assert as_failed(failed.value, "a").scope is Scope.NOBODY
    assert re.match(r"task_\d+\.py:10, in", complaint(rehearsed(tmp_path, net(method))))


@pytest.mark.parametrize(
    "method", ["def to(self): pass", "def named_parameters(self): pass", "def state_dict(self): pass"]
)
def test_methods_of_a_wrong_signature_are_the_codes_fault_too(tmp_path: Path, method: str) -> None:
    with pytest.raises(CodeError, match=r"reading the model's tensors: (Type|Attribute)Error"):
        Bench(tmp_path, net(method)).train()


def test_an_own_zero_grad_is_not_needed(tmp_path: Path) -> None:
    for index, mode in enumerate(Mode):
        source = net("def zero_grad(self, what): raise RuntimeError")
        assert update_of(Bench(tmp_path / str(index), source, mode=mode).train())["weight"].any()


BUFFERS = {
    "sparse": ('self.register_buffer("adj", torch.eye(8).to_sparse())', r"tensor adj is sparse_coo.*persistent=False"),
    "compressed": ('self.register_buffer("adj", torch.eye(8).to_sparse_csr())', r"adj is sparse_csr.*persistent=False"),
    "meta": ('self.register_buffer("adj", torch.ones(2, device="meta"))', "Cannot copy out of meta tensor"),
    "complex": ('self.register_buffer("adj", torch.ones(2) * 1j)', "adj is torch.complex64"),
    "reserved": ('self.register_buffer("__metadata__", torch.ones(2))', "'__metadata__' cannot be written"),
    "surrogate": (r'self.register_buffer("\ud83d", torch.ones(2))', r"'\\ud83d' cannot be written"),
}


@pytest.mark.parametrize("kind", list(BUFFERS))
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_buffer_that_cannot_travel_is_named(tmp_path: Path, kind: str) -> None:
    line, sentence = BUFFERS[kind]
    with pytest.raises(CodeError, match=sentence) as failed:
        Bench(tmp_path, net("").replace("self.calls = []", line))
    assert len(failed.value.message) < 250


def test_a_sparse_buffer_that_is_not_persistent_works(tmp_path: Path) -> None:
    line = 'self.register_buffer("adj", torch.eye(8).to_sparse(), persistent=False)'
    assert Bench(tmp_path, net("").replace("self.calls = []", line)).train().samples == 72


def test_an_optimizer_whose_closure_is_optional_works(tmp_path: Path) -> None:
    source = (
        LINEAR
        + """
    class Own(torch.optim.SGD):
        def step(self, closure=None, *, scale=1.0):
            return super().step(closure)

        def zero_grad(self, set_to_none):
            return super().zero_grad(set_to_none)

    def build_optimizer(model, config):
        optimizer = Own(model.parameters(), lr=0.1)
        torch.optim.lr_scheduler.ConstantLR(optimizer)
        return optimizer
    """
    )
    assert update_of(Bench(tmp_path, source).train())["weight"].any()


def test_an_optimizer_option_that_is_no_number_is_named(tmp_path: Path) -> None:
    source = (
        LINEAR + "\n    def build_optimizer(model, config): return torch.optim.SGD(model.parameters(), lr=float('inf'))"
    )
    assert "the optimizer's lr is inf" in complaint(rehearsed(tmp_path, source, mode=Mode.GRADIENTS))


ODD_WORDS = {
    "surrogate in a metric": (
        r"return {'loss': model(batch['x']).mean(), '\ud83d': 1.0}",
        r"in loss\(model, batch\): ValueError: the metric name '\\ud83d' cannot be written",
    ),
    "surrogate in an exception": (
        r"raise FileNotFoundError('no caf\udce9.png')",
        r"in loss: FileNotFoundError: no caf",
    ),
    "a large step": ("log(step=2**70, metrics={})", r"in loss: ValueError: log\(step=1180591620717411303424\)"),
    "an infinite step": ("log(step=float('inf'), metrics={})", "in loss: OverflowError"),
    "a step that is a word": ("log(step='one', metrics={})", "in loss: ValueError"),
    "surrogate in a logged name": (r"log(step=1, metrics={'\ud83d': 1.0})", "in loss: ValueError: the metric name"),
    "a value too large": ("log(step=1, metrics={'a': 10**400})", "in loss: OverflowError"),
    "a value that is no number": ("log(step=1, metrics={'a': [1, 2]})", "in loss: TypeError"),
    "a name that cannot be text": ("log(step=1, metrics={Mute(): 1.0})", "in __str__: ZeroDivisionError"),
    "an exception without words": ("raise Wordless", "in loss: Wordless: its text cannot be made"),
    "an interrupt": ("raise KeyboardInterrupt", "in loss: KeyboardInterrupt"),
    "an exit without an exception": ("raise Leave('now')", "in loss: Leave: now"),
    "a generator's end": ("raise GeneratorExit", "in loss: GeneratorExit"),
}
WORDS = (
    LINEAR.replace("return nn.functional", "SAID\n        return nn.functional")
    + """
    from farm_client.task import log

    class Mute:
        def __str__(self): 1 / 0

    class Wordless(Exception):
        def __str__(self): 1 / 0

    class Leave(BaseException):
        pass
"""
)


@pytest.mark.parametrize("word", list(ODD_WORDS))
def test_what_no_message_can_carry_is_the_codes_error_where_it_is_said(tmp_path: Path, word: str) -> None:
    said, sentence = ODD_WORDS[word]
    with pytest.raises(CodeError, match=sentence) as failed:
        Bench(tmp_path, WORDS.replace("SAID", said)).train()
    assert failed.value.message.startswith("task_")
    pack_frame(as_failed(failed.value, "a").model_dump())
    report = rehearsed(tmp_path, WORDS.replace("SAID", said))
    assert report.failed is not None
    report.model_dump_json().encode()


def test_whatever_names_and_numbers_can_be_sent_train_on(tmp_path: Path) -> None:
    said = "log(step=-2**63, metrics={3: 1.7e308, 'x' * 5000: True, '': float('nan'), 'é': 10**300})"
    bench = Bench(tmp_path, WORDS.replace("SAID", said))
    done = bench.train()
    pack_frame(done.model_dump())


def test_prints_and_streams_that_the_code_breaks_harm_nobody(tmp_path: Path) -> None:
    source = WORDS.replace("SAID", "say()") + (
        r"""
    import sys

    def say():
        print("caf\udce9", "\ud83d", "é", flush=True)
        sys.stdout.close()
        sys.stderr = None
        log(step=1, metrics={"gone": float("nan")})
"""
    )
    shards, files = write_data(tmp_path)
    with started(LC_ALL="C.ISO-8859-1", PYTHONIOENCODING="ascii") as agent:
        assert isinstance(agent.hear(), Warm)
        agent.send(load_order(tmp_path, source.replace("say()\n", "say() if not sys.stdout.closed else None\n", 1)))
        assert isinstance(agent.hear(), Loaded)
        agent.send(run_order(shards, files))
        _, done = agent.hear_end()
        assert isinstance(done, Done), done
        printed = agent.process.stdout.readline() if agent.process.stdout else b""
        assert printed.decode() == "caf\\udce9 \\ud83d é\n"


def test_an_executor_outlives_interrupts_and_unsendable_words(tmp_path: Path) -> None:
    shards, files = write_data(tmp_path)
    raised = [r"raise FileNotFoundError('caf\udce9')", "raise KeyboardInterrupt", "raise Leave", "raise SystemExit(3)"]
    said = "\n        ".join(f"if next(turn) == {index}: {line}" for index, line in enumerate(raised))
    source = WORDS.replace("SAID", said.replace("next(turn)", "turn[0]")) + "\n    turn = [-1]\n"
    source = source.replace("def loss(model, batch):", "def loss(model, batch):\n        turn[0] += 1")
    with started() as agent:
        agent.hear()
        agent.send(load_order(tmp_path, source))
        assert isinstance(agent.hear(), Loaded)
        for _ in raised:
            agent.send(run_order(shards, files))
            _, failed = agent.hear_end()
            assert isinstance(failed, Failed)
            assert (failed.code, failed.scope) == ("task_code", Scope.NOBODY)
            assert failed.message.startswith("train.py:")
        agent.send(run_order(shards, files))
        assert isinstance(agent.hear_end()[1], Done)


PARSES = "    import argparse\n    ARGUMENTS = argparse.ArgumentParser().parse_args()\n" + LINEAR


def test_arguments_are_parsed_as_on_a_volunteer(tmp_path: Path) -> None:
    """In a process of its own, whose command line has arguments of the farm's."""
    request = tmp_path / "request.json"
    report = tmp_path / "report.json"
    from farm_client.executor.rehearsal_records import RehearsalReport, RehearsalRequest

    (tmp_path / "train.py").write_text(PARSES.replace("\n    ", "\n").removeprefix("    "))
    asked = RehearsalRequest(
        code_dir=str(tmp_path), entry="train.py", config={}, mode=Mode.WEIGHTS, seed=0, batch_samples=8,
        folder=str(tmp_path), rows=8, tries_batch=False,
    )  # fmt: skip
    request.write_text(asked.model_dump_json())
    command = [sys.executable, "-P", "-m", "farm_client.executor.rehearsal", str(request), str(report)]
    subprocess.run(command, check=True, timeout=100)
    assert complaint(RehearsalReport.model_validate_json(report.read_bytes())) == ""


def test_argparses_own_word_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    source = PARSES.replace("ArgumentParser()", "ArgumentParser()").replace(
        "ARGUMENTS = argparse.ArgumentParser().parse_args()",
        'PARSER = argparse.ArgumentParser(); PARSER.add_argument("--data", required=True); PARSER.parse_args()',
    )
    told = complaint(rehearsed(tmp_path, source))
    assert "SystemExit: 2" in told
    assert "the following arguments are required: --data" in told


FORWARDS = {
    "a layer": ("if not hasattr(self, 'late'): self.late = nn.Linear(2, 2)", "made the parameter late.bias"),
    "a parameter": ("self.late = nn.Parameter(torch.ones(2))", "made the parameter late "),
    "replaced": ("self.weight = nn.Parameter(self.weight.detach().clone())", "parameter weight was replaced"),
    "removed": ("self._parameters.pop('bias', None); self.bias = None", "parameter bias was removed"),
    "a buffer": ("self.calls = None", "the buffer calls is gone"),
    "a longer buffer": (
        "self.calls = torch.cat([self.calls.reshape(-1), torch.ones(1)])",
        r"tensor calls was \[\] float32 and is \[\d+\] float32 after training",
    ),
    "another dtype": (
        "self.bias.data = self.bias.data.double(); x = x.double()",
        r"tensor bias was \[2\] float32 and is \[2\] float64 after",
    ),
}


@pytest.mark.parametrize("what", list(FORWARDS))
@pytest.mark.parametrize("mode", list(Mode))
def test_what_forward_makes_or_replaces_is_refused_by_name(tmp_path: Path, what: str, mode: Mode) -> None:
    line, sentence = FORWARDS[what]
    source = net(
        f"def forward(self, x):\n    {line}\n    return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)"
    ).replace("self.calls = []", 'self.register_buffer("calls", torch.zeros(()))')
    assert re.search(sentence, complaint(rehearsed(tmp_path, source, mode=mode)))
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, source, mode=mode).train()


def test_a_lazy_layer_without_a_shape_is_named_and_works_after_an_input(tmp_path: Path) -> None:
    source = LINEAR.replace("nn.Linear(3, 2)", "nn.LazyLinear(2)")
    with pytest.raises(CodeError, match="tensor weight has no shape yet: run the lazy model on one input"):
        Bench(tmp_path / "cold", source)
    warmed = source.replace("return nn.Lazy", "lazy = nn.Lazy").replace(
        "LazyLinear(2)\n", "LazyLinear(2); lazy(torch.ones(1, 3))\n        return lazy\n"
    )
    assert Bench(tmp_path, warmed).train().samples == 72


EXTRA = {
    "a dict": "def get_extra_state(self): return {'q': 3}\n\ndef set_extra_state(self, v): self.q = v['q']",
    "a tensor": "def get_extra_state(self): return torch.ones(2)\n\ndef set_extra_state(self, v): self.q = v",
}


@pytest.mark.parametrize("kind", list(EXTRA))
def test_what_the_pulled_file_cannot_hold_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    told = complaint(rehearsed(tmp_path, net(EXTRA[kind])))
    assert "_extra_state" in told
    assert "--ignore extra_state" in told
    assert complaint(rehearsed(tmp_path, net(EXTRA[kind]), ignore=("extra_state",))) == ""


def test_a_model_that_loads_what_it_saves_in_its_own_way_is_taken(tmp_path: Path) -> None:
    own = (
        EXTRA["a dict"]
        + "\n\ndef load_state_dict(self, state, strict=True): return super().load_state_dict(state, strict=False)"
    )
    assert complaint(rehearsed(tmp_path, net(own))) == ""


def test_tied_weights_load_strictly(tmp_path: Path) -> None:
    source = net("").replace("self.calls = []", "self.other = nn.Linear(3, 2); self.other.weight = self.weight")
    report = rehearsed(tmp_path, source)
    assert (complaint(report), report.notes) == ("", ())
    assert torch.is_grad_enabled()


def test_threads_may_log_while_progress_is_reported(tmp_path: Path) -> None:
    sent: list[Advance] = []
    reporter = ProgressReporter(sent.append, clock=count().__next__)
    reporter.start("a")
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            reporter.log(1, {"a": 1.0})

    threads = [threading.Thread(target=chatter) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        reporter.advance(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert sum(len(advance.metrics) for advance in sent)


def test_a_metric_that_is_no_number_is_named(tmp_path: Path) -> None:
    source = LINEAR.replace("return nn.functional", "return {'scores': batch['x'], 'loss': nn.functional") + ""
    source = source.replace('batch["y"])', 'batch["y"])}')
    assert "loss returned 'scores' beside the loss, which is no number" in complaint(rehearsed(tmp_path, source))


def test_ragged_items_are_told_of_the_missing_collate_fn(tmp_path: Path) -> None:
    source = LINEAR + "\n    def make_dataset(config): return [{'x': torch.ones(i % 3 + 1)} for i in range(64)]\n"
    told = complaint(rehearsed(tmp_path, source, sample_path=None, sample_rows=0))
    assert "pad them, or add collate_fn(items)" in told

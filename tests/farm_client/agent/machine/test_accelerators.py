"""The NVML reading, against a stand-in with the real module's names (no driver is needed)."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from farm_client.agent.machine import accelerators
from farm_client.agent.machine.accelerators import Accelerators, render_nodes, torch_build
from farm_client.agent.machine.power import PowerLimit
from protocol.resources import DeviceClass, Gpu

GIB = 1024**3


class LostDevice(Exception):
    pass


class StandIn:
    NVMLError = LostDevice

    def __init__(self, count=3, lost=()):
        self.count, self.lost = count, lost

    def nvmlInit(self):
        if not self.count:
            raise LostDevice

    def nvmlShutdown(self):
        self.count = 0

    def nvmlSystemGetDriverVersion(self):
        return b"570.1"

    def nvmlDeviceGetCount(self):
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMinorNumber(self, handle):
        return handle

    def nvmlDeviceGetName(self, handle):
        return f"GPU number {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle in self.lost:
            raise LostDevice
        return SimpleNamespace(total=80 * GIB, free=79 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle == 1:
            raise LostDevice  # as a MIG slice answers
        return SimpleNamespace(gpu=25)


@pytest.fixture
def nvml(monkeypatch):
    def install(**options):
        stand_in = StandIn(**options)
        monkeypatch.setattr(accelerators, "nvml_binding", lambda: stand_in)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return stand_in

    return install


def test_every_gpu_is_read(nvml):
    nvml()
    found = Accelerators()
    assert found.driver == "570.1"
    assert [(gpu.name, gpu.utilization) for gpu in found.sample()] == [
        ("GPU number 0", 0.25),
        ("GPU number 1", 0.0),
        ("GPU number 2", 0.25),
    ]
    assert found.sample()[0].memory_free_bytes == 79 * GIB


def test_the_owners_choice_and_its_order_are_kept(nvml, monkeypatch):
    nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    found = Accelerators()
    assert [gpu.index for gpu in found.sample()] == [2, 0]
    found.keep_only({1})  # in torch's numbering, cuda:1 is GPU number 0
    assert found.visible == "0"


def test_hidden_and_lost_gpus_are_not_lent(nvml, monkeypatch):
    nvml(lost=(1,))
    assert [gpu.index for gpu in Accelerators().sample()] == [0, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Accelerators().sample() == ()


def test_no_driver_means_no_gpu(nvml):
    nvml(count=0)
    found = Accelerators()
    assert (found.driver, found.sample(), found.visible) == ("", (), "")
    found.close()


def test_close_lets_nvml_go(nvml):
    stand_in = nvml()
    found = Accelerators()
    found.close()
    assert stand_in.count == 0
    assert found.sample() == ()


def test_the_nodes_of_the_granted_gpus_and_those_that_all_share(tmp_path):
    names = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps/nvidia-cap1", "sda")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = accelerators.device_nodes([1, 7], tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "nvidia1",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-caps/nvidia-cap1",
    ]


def test_windows_subsystem_for_linux_has_one_node(tmp_path):
    (tmp_path / "dxg").touch()
    assert accelerators.device_nodes([0], tmp_path) == (tmp_path / "dxg",)


def test_without_a_gpu_no_node_is_asked_for(monkeypatch):
    monkeypatch.setattr(accelerators, "nvml_binding", lambda: StandIn(count=0))
    assert Accelerators().device_nodes == ()


def test_one_of_several_is_taken_back_and_lent_again(nvml):
    nvml()
    gpus = Accelerators()
    gpus.grant((0, 2, 7))
    assert (gpus.visible, [gpu.index for gpu in gpus.sample()]) == ("0,2", [0, 2])
    gpus.grant(())
    assert (gpus.visible, gpus.device_nodes, gpus.sample()) == ("", (), ())
    gpus.grant(None)
    assert gpus.visible == "0,1,2"


def test_what_passed_no_self_test_is_not_lent_later(nvml):
    nvml()
    gpus = Accelerators()
    gpus.grant((1, 2))
    gpus.keep_only({1})  # torch's second one is the third here
    gpus.grant(None)
    assert gpus.visible == "2"


class TestPower:
    @pytest.fixture
    def cards(self, nvml):
        stand_in = nvml()
        stand_in.watts = {0: 300_000, 1: 250_000, 2: 300_000}
        stand_in.refuses = set()

        def set_limit(handle, milliwatts):
            if handle in stand_in.refuses:
                raise LostDevice
            stand_in.watts[handle] = milliwatts

        stand_in.nvmlDeviceGetPowerManagementLimit = lambda handle: stand_in.watts[handle]
        stand_in.nvmlDeviceGetPowerManagementLimitConstraints = lambda _: [100_000, 400_000]
        stand_in.nvmlDeviceSetPowerManagementLimit = set_limit
        return stand_in

    def test_a_limit_holds_for_all_and_what_was_before_comes_back(self, cards, tmp_path):
        power = PowerLimit(Accelerators(), tmp_path / "power.json")
        power.limit(275.0)
        assert list(cards.watts.values()) == [275_000, 250_000, 275_000]
        power.limit(20.0)  # less than a card takes
        assert list(cards.watts.values()) == [100_000] * 3
        power.limit(None)
        assert list(cards.watts.values()) == [300_000, 250_000, 300_000]
        assert not (tmp_path / "power.json").exists()

    def test_a_killed_agents_limit_is_taken_back_at_the_next_start(self, cards, tmp_path):
        PowerLimit(Accelerators(), tmp_path / "power.json").limit(200.0)
        again = PowerLimit(Accelerators(), tmp_path / "power.json")
        again.limit(150.0)
        again.restore()
        assert list(cards.watts.values()) == [300_000, 250_000, 300_000]

    def test_what_is_not_permitted_is_told_and_tried_again(self, cards, tmp_path):
        power = PowerLimit(Accelerators(), tmp_path / "power.json")
        cards.refuses = {1}
        power.limit(200.0)
        assert power.refused == (1,)
        assert list(cards.watts.values()) == [200_000, 250_000, 200_000]
        cards.refuses = {0}
        power.restore()
        assert cards.watts[2] == 300_000
        assert (tmp_path / "power.json").exists()
        cards.refuses = set()
        PowerLimit(Accelerators(), tmp_path / "power.json").limit(None)
        assert cards.watts[0] == 300_000

    def test_a_card_that_is_gone_is_left_alone(self, cards, tmp_path):
        gpus = Accelerators()
        gpus.keep_only({0})
        assert not gpus.limit_power(2, 200.0)
        (tmp_path / "power.json").write_text("{")
        PowerLimit(gpus, tmp_path / "power.json").restore()
        assert cards.watts[0] == 300_000


def test_the_binding_is_imported_where_the_library_is(monkeypatch):
    monkeypatch.setattr(accelerators.ctypes, "CDLL", lambda name: name)
    assert accelerators.nvml_binding().__name__ == "pynvml"


@pytest.mark.parametrize(("platform", "imported"), [("linux", False), ("win32", True)])
def test_without_the_library_linux_does_without_the_binding(monkeypatch, platform, imported):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(accelerators.ctypes, "CDLL", missing)
    monkeypatch.setattr(accelerators.sys, "platform", platform)
    assert (accelerators.nvml_binding() is not None) is imported
    monkeypatch.undo()


def test_other_cards_are_nothing_to_torch_beside_nvidias(nvml):
    nvml(count=1)
    found = Accelerators()
    found.adopt([Gpu(index=5, name="Arc", memory_bytes=9, memory_free_bytes=9)], DeviceClass.XPU)
    assert (found.visible, found.device_class, len(found.sample())) == ("0", "cuda", 1)
    found.grant(())
    assert (found.visible, found.device_class, found.device_nodes) == ("", "cpu", ())


@pytest.mark.parametrize(
    ("build", "names"),
    [("rocm6.4", ["kfd", "renderD128", "renderD129"]), ("xpu", ["renderD128", "renderD129"]), ("cpu", []), ("", [])],
)
def test_a_sandbox_has_the_nodes_of_the_cards_that_torch_was_built_for(tmp_path, build, names):
    (tmp_path / "dri").mkdir()
    for name in ("kfd", "dri/renderD129", "dri/renderD128", "dri/card0"):
        (tmp_path / name).touch()
    assert [node.name for node in render_nodes(build, tmp_path)] == names
    assert render_nodes(build, tmp_path / "nowhere") == ()


def test_without_nvidias_the_build_of_torch_says_which_nodes(nvml, monkeypatch):
    nvml(count=0)
    monkeypatch.setattr(accelerators, "torch_build", lambda: "rocm6.4")
    monkeypatch.setattr(accelerators, "render_nodes", lambda build: (Path(build),))
    found = Accelerators()
    assert found.device_nodes == (Path("rocm6.4"),), "the self-test is to see them"
    found.grant(())
    assert found.device_nodes == (), "the owner lends none"


def test_the_build_of_torch_is_in_its_version(monkeypatch):
    for version, build in (("2.13.0+rocm6.4", "rocm6.4"), ("2.13.0", "")):
        monkeypatch.setattr(accelerators.importlib.metadata, "version", lambda _name, version=version: version)
        assert torch_build() == build

    def missing(name):
        raise accelerators.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(accelerators.importlib.metadata, "version", missing)
    assert torch_build() == ""

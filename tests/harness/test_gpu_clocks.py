"""Clocks and neighbours of a GPU, beside an NVML made up for the test; without one, silence."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.request_timing import NEIGHBOUR, Clocks

UUID = "11112222-3333-4444-5555-666677778888"
CUDA = SimpleNamespace(type="cuda", index=0)


class FakeNvml:
    """Two GPUs; torch's number 0 is NVML's number 1. What is None is refused."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "init": True,
            "uuid": True,
            "now": 1500,
            "default": 1600,
            "most": 2000,
            "pids": [1, 2],
        } | answers

    def _answer(self, name: str) -> Any:
        if self.answers[name] is None:
            raise self.NVMLError(f"no {name}")
        return self.answers[name]

    def nvmlInit(self) -> None:
        self._answer("init")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        raise AssertionError("NVML numbers devices otherwise than CUDA")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._answer("uuid")
        assert uuid == f"GPU-{UUID}"
        return "second"

    def nvmlDeviceGetHandleByPciBusId(self, place: str) -> str:
        assert place == "00000000:1B:00.0"
        return "second"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert (handle, kind) == ("second", 1)
        return self._answer("now")

    def nvmlDeviceGetDefaultApplicationsClock(self, handle: str, kind: int) -> int:
        return self._answer("default")

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return self._answer("most")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self._answer("pids")]


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(properties: Any = None, **answers: Any) -> Clocks | None:
        known = SimpleNamespace(uuid=UUID, pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(**answers))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties or known)
        return Clocks.of(CUDA)

    return make


def test_the_clock_is_told_beside_the_one_applications_get(clocks: Any) -> None:
    assert clocks().ratio() == pytest.approx(1500 / 1600)


@pytest.mark.parametrize("default", [None, 0])
def test_without_a_default_clock_the_highest_is_the_nominal_one(clocks: Any, default: int | None) -> None:
    assert clocks(default=default).ratio() == pytest.approx(1500 / 2000)


def test_a_device_without_a_known_uuid_is_found_by_its_place_on_the_bus(clocks: Any) -> None:
    assert clocks(uuid=None).ratio() == pytest.approx(1500 / 1600)
    place = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    assert clocks(place).ratio() == pytest.approx(1500 / 1600)


def test_more_than_one_process_is_a_neighbour(clocks: Any) -> None:
    assert clocks().neighbours() == NEIGHBOUR
    # one is ourselves, under whatever number; the same process may be listed twice
    assert clocks(pids=[7]).neighbours() is None
    assert clocks(pids=[7, 7]).neighbours() is None
    assert clocks(pids=[]).neighbours() is None


def test_what_may_not_be_asked_is_unknown_and_no_fault(clocks: Any) -> None:
    assert clocks(init=None) is None
    assert clocks(SimpleNamespace()) is None
    refused = clocks(now=None, pids=None)
    assert refused.ratio() is None
    assert refused.neighbours() is None
    assert clocks(default=None, most=None).ratio() is None


def test_without_a_gpu_or_without_nvml_there_are_no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Clocks.of(torch.device("cpu")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Clocks.of(CUDA) is None


def test_a_run_on_a_gpu_tells_its_clock_and_the_neighbours_once(clocks: Any) -> None:
    bench = object.__new__(Workbench)
    bench.notices, bench._clocks = [], clocks()
    bench.loaded = SimpleNamespace(threads=None)  # type: ignore[assignment]
    bench._timer = SimpleNamespace(ttft=lambda policy, clip: {"ttft_ms": 5.0})  # type: ignore[assignment]
    for _ in range(3):
        assert bench.timed(None, 0, "ttft") == {"ttft_ms": 5.0, "clock_ratio": pytest.approx(1500 / 1600)}
    assert bench.notices == [NEIGHBOUR]
    bench._clocks = clocks(now=None)
    assert bench.timed(None, 0, "ttft") == {"ttft_ms": 5.0}

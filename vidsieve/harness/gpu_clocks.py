"""The GPU's own word on a measurement: its clock right after a run, and who else computes on it."""

from contextlib import suppress
from typing import Any

NEIGHBOUR = "another process computes on the same GPU: timings are noisier, and slower than on an idle one"


class Clocks:
    """One CUDA device as NVML (nvidia-ml-py) sees it. What the driver does not tell, or not to us, is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._nominal_mhz = self._nominal()

    @classmethod
    def of(cls, device: Any) -> "Clocks | None":
        """The clocks of a torch device; None without a GPU, NVML, or permission to ask it."""
        if device.type != "cuda":
            return None
        with suppress(Exception):  # no module, no driver, no such device: clocks are a help and never a fault
            import pynvml
            import torch

            pynvml.nvmlInit()
            return cls(pynvml, _handle(pynvml, torch.cuda.get_device_properties(device)))
        return None

    def ratio(self) -> float | None:
        """The SM clock now ÷ the nominal one."""
        with suppress(Exception):
            now = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
            return now / self._nominal_mhz if self._nominal_mhz else None
        return None

    def neighbours(self) -> str | None:
        """A warning if another process computes on the GPU."""
        with suppress(Exception):
            running = {p.pid for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
            # the model is on this GPU, so one entry is ours; in a container perhaps under a number of the host's
            return NEIGHBOUR if len(running) > 1 else None
        return None

    def _nominal(self) -> float | None:
        """The clock that applications get by default, in MHz, else the highest."""
        for ask in ("nvmlDeviceGetDefaultApplicationsClock", "nvmlDeviceGetMaxClockInfo"):
            with suppress(Exception):
                mhz = getattr(self._nvml, ask)(self._handle, self._nvml.NVML_CLOCK_SM)
                if mhz > 0:
                    return float(mhz)
        return None


def _handle(nvml: Any, properties: Any) -> Any:
    """The device by what it is and not by its number: CUDA_VISIBLE_DEVICES renumbers for CUDA and not for NVML."""
    uuid = str(getattr(properties, "uuid", ""))
    if uuid:
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
    place = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    return nvml.nvmlDeviceGetHandleByPciBusId("{:08X}:{:02X}:{:02X}.0".format(*place))

"""What was run on what, as text: for the first line, and for provenance."""

import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from vidsieve import __version__
from vidsieve.harness.model_loading import Loaded, fingerprint


def facts(loaded: Loaded, workload: Mapping[str, object]) -> dict[str, str]:
    """Model, machine, versions and `workload`; no paths. Two equal ones must give equal accuracies."""
    import torch
    import transformers

    choice, model = loaded.choice, loaded.model
    revision = choice.revision or (fingerprint(choice.folder) if choice.folder else "in memory")
    told = {
        "model": loaded.adapter.family,
        "checkpoint": choice.name,
        "revision": revision,
        "bundled": "yes" if loaded.is_bundled else "no",
        "device": str(model.device),
        "device_name": device_name(str(model.device)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": str(model.config._attn_implementation),
        "threads": str(torch.get_num_threads()),
        "preprocessing": loaded.processor.kind,
        "vidsieve": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    # plain str, for YAML: torch's version is a subclass of it
    return {name: str(value) for name, value in (told | dict(workload)).items() if value is not None}


@cache
def device_name(device: str) -> str:
    """The GPU's or the processor's own name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""What makes two searches the same search: compared field by field before one goes on where the other stopped."""

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.stage import Stage
from vidsieve.tuner.examples import Data, ids_hash
from vidsieve.tuner.measure.measurement import Measurement

STUDY_FORMAT = 2


def fingerprint(measurement: Measurement, data: Data, policies: Sequence[Policy]) -> dict[str, str]:
    """Model, machine, data, target and policies as flat text; budgets (trials, patience, time) are no part of it."""
    request = measurement.request
    target = f"{request.latency_ms:g} ms" if request.latency_ms is not None else f"{request.speedup:g} times faster"
    fields = {
        "study format": str(STUDY_FORMAT),
        "optuna major": importlib.metadata.version("optuna").split(".")[0],
        "target": f"{target} ({request.metric})",
        "max drop (points)": f"{request.max_drop_points:g}",
        "seed": str(request.seed),
        "data seed": str(request.data_seed),
    }
    fields |= {f"model: {name}": value for name, value in measurement.bench.describe().items()}
    fields |= {f"data: {name}": value for name, value in data.task.items()}
    splits = {"search": data.search, "rerank": data.rerank, "heldout": data.heldout}
    for split, examples in splits.items():
        fields[f"data: {split} examples"] = f"{len(examples)}, {ids_hash([e.id for e in examples])[:16]}"
    for policy in policies:
        fields[f"policy: {policy.name}"] = " ".join([policy.hash, *_foreign_code(policy)])
    return fields


def _foreign_code(policy: Policy) -> list[str]:
    """Hashes of the files of stages that are not part of the package: their code is no part of the policy's hash."""
    files = set()
    for bound in policy.stages:
        if type(bound.stage).__module__.startswith("vidsieve."):
            continue
        files.add(_source(type(bound.stage)))
    return sorted(files)


def _source(stage: type[Stage]) -> str:
    try:
        return hashlib.sha256(Path(inspect.getfile(stage)).read_bytes()).hexdigest()[:12]
    except (OSError, TypeError):
        return stage.__qualname__


def differences(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line a field that differs; empty if the two searches are one."""
    names = [*stored, *(name for name in now if name not in stored)]
    return [
        f"  {name}: {stored.get(name, 'not there')} in the study, {now.get(name, 'not there')} now"
        for name in names
        if stored.get(name) != now.get(name)
    ]


def canonical(fields: Mapping[str, str]) -> str:
    """The fingerprint as text that a study can hold."""
    return json.dumps(dict(fields), ensure_ascii=False, sort_keys=True)

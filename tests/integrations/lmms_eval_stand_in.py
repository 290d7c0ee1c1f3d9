"""Stand-ins for the few names of lmms-eval that its model `vidsieve` uses, and tasks that ask it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

MODULE = "vidsieve.integrations.lmms_eval.lmms_models"


@dataclass
class Told:
    """What was logged, and what was put beside the scores."""

    lines: list[str] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    processes: int = 1


class Instance:
    """A request: `args` as lmms-eval 0.7.3 gives them."""

    def __init__(self, *args: Any, **metadata: Any) -> None:
        self.args, self.metadata = args, metadata


@dataclass
class TokenCounts:
    input_tokens: int
    output_tokens: int


@dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts


@dataclass
class ModelManifest:
    model_id: str
    simple_class_path: str
    chat_class_path: str


class lmms:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank  # type: ignore[attr-defined]

    @classmethod
    def create_from_arg_string(cls, text: str, more: dict[str, Any] | None = None) -> Any:
        return cls()

    def clean(self) -> None:
        pass


def _parsed(text: str) -> dict[str, Any]:
    """As lmms-eval reads `--model_args`."""
    found: dict[str, Any] = {}
    for name, value in (part.split("=", 1) for part in text.split(",") if part):
        try:
            found[name] = int(value) if value.isnumeric() else float(value)
        except ValueError:
            found[name] = value
    return found


@contextmanager
def stand_in() -> Iterator[Told]:
    """Put the stand-ins where lmms-eval's modules are looked for."""
    told = Told()

    def log_metrics(**given: Any) -> None:
        told.metrics.append(given)

    accelerator = SimpleNamespace(process_index=0, num_processes=1, device="cpu")
    modules: dict[str, dict[str, Any]] = {
        "accelerate": {"Accelerator": lambda: accelerator},
        "filelock._api": {"FileLockMeta": type},
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "TokenCounts": TokenCounts,
            "Instance": SimpleNamespace(args=1),
        },
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.model_utils": {},
        "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": log_metrics},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.utils": {"simple_parse_args_string": _parsed},
        "loguru": {"logger": SimpleNamespace(info=told.lines.append, warning=told.lines.append)},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in modules.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, MODULE, raising=False)
        try:
            yield told
        finally:
            sys.modules.pop(MODULE, None)


class LocalTask:
    """Questions of a JSONL file as a task of lmms-eval: what it hands to a model in either form."""

    name = "clips"

    def __init__(self, file: Path) -> None:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        self.docs = [row | {"video": str(file.parent / row["video"])} for row in rows]
        self.args = SimpleNamespace(use_cache=None)

    def serve(self, model: Any) -> Any:
        """Give the model its documents."""
        model.task_dict = {self.name: {"test": self.docs}}
        return model

    def visuals(self, doc: dict[str, Any]) -> list[Any]:
        return [doc["video"]]

    def messages(self, doc: dict[str, Any], **state: Any) -> Any:
        content = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": content}]

    def written(self, chat: bool, **settings: Any) -> list[Instance]:
        """Requests of `generate_until`."""
        given = {"max_new_tokens": 2, "temperature": 0, "do_sample": False} | settings
        places = [(number, self.name, "test") for number in range(len(self.docs))]
        if chat:
            return [Instance("", self.messages, dict(given), *place) for place in places]
        return [Instance(self.docs[place[0]]["question"], dict(given), self.visuals, *place) for place in places]

    def scored(self) -> list[Instance]:
        """Requests of `multiple_choice`: one for each option."""
        return [
            Instance(doc["question"], f" {option}", self.visuals, number, self.name, "test")
            for number, doc in enumerate(self.docs)
            for option in doc["options"]
        ]

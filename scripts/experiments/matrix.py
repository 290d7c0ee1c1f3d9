"""The result matrix of a grid: what every configuration did with every example, and how long it took."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, eq=False, kw_only=True)
class Matrix:
    """Row 0 of `p_gold`, `correct` and `attained` is the uncompressed model, row i + 1 is `header["cells"][i]`.

    Columns are `header["examples"]`. `times_ms` holds, for each entry of `header["timed"]` (cells, then anchors), every
    recorded pair, NaN where none was recorded: wall clock uncompressed and with the policy, then the processor time of
    both, which a busy machine disturbs far less.
    """

    header: dict[str, Any]
    p_gold: np.ndarray
    correct: np.ndarray
    attained: np.ndarray
    times_ms: np.ndarray

    def pairs(self, clock: str) -> tuple[np.ndarray, np.ndarray]:
        """(uncompressed, policy) milliseconds by the "wall" clock or of the "processor"."""
        first = {"wall": 0, "processor": 2}[clock]
        return self.times_ms[first], self.times_ms[first + 1]

    @cached_property
    def groups(self) -> list[str]:
        """The video of every example."""
        return [example["group"] for example in self.header["examples"]]

    def save(self, path: Path) -> None:
        """Write one compressed file."""
        told = np.frombuffer(json.dumps(self.header).encode(), dtype=np.uint8)
        arrays = {
            "header": told,
            "p_gold": self.p_gold.astype(np.float32),
            "correct": np.packbits(self.correct.astype(bool), axis=1),
            "attained": self.attained.astype(np.float32),
            "times_ms": self.times_ms.astype(np.float32),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Matrix":
        """Read what `save` wrote. Raises ValueError for another format."""
        with np.load(path) as stored:
            header = json.loads(stored["header"].tobytes())
            if header.get("format") != FORMAT:
                raise ValueError(f"{path}: format {header.get('format')!r}, this script reads {FORMAT}")
            count = len(header["examples"])
            return cls(
                header=header,
                p_gold=stored["p_gold"].astype(np.float64),
                correct=np.unpackbits(stored["correct"], axis=1, count=count).astype(np.float64),
                attained=stored["attained"].astype(np.float64),
                times_ms=stored["times_ms"].astype(np.float64),
            )

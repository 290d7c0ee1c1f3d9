"""What the bundled models must show, fixed before the first policy table was made.

A miss is reported in the model's card; neither the data nor these numbers are changed to hide it.
"""

from typing import Final

from vidsieve.bundled.words import KINDS

TABLE_KINDS: Final = KINDS
"""Kinds of question that count in policy tables: all. None asks for a number of things, because a model can read
that off the density of the tokens that are left."""

TABLE_RATIOS: Final = (0.5, 0.25, 0.1)
"""Retention ratios of the table's columns; a cell out of reach says so."""

TABLE_POLICIES: Final = (
    "none",
    "random",
    "uniform-frames",
    "vidcom2",
    "vidcom2-released",
    "dycoke",
    "dycoke-released",
)
TABLE_SEEDS: Final = (0, 1)
"""Evaluation seeds: each draws clips of its own from the held-out split."""

FULL_LEAST: Final = 0.97
"""Accuracy with all visual tokens on the static rung: at least."""

RANDOM_DROP_LEAST: Final = 0.25
"""Random tokens at a retention of 0.25 lie at least so far below all tokens (static rung)."""

VIDCOM2_GAIN_LEAST: Final = 0.15
"""`vidcom2` at a retention of 0.25 lies at least so far above random tokens (static rung)."""

CODEC_LOSS_MOST: Final = 0.02
"""Through H.264 (yuv420p, CRF 18) accuracy differs from that in memory by at most so much (static rung)."""

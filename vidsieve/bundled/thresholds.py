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

MINI_FULL_LEAST: Final = 0.95
"""Mini models: accuracy with all visual tokens on the static rung, at least."""

MINI_RANDOM_DROP_LEAST: Final = 0.15
"""Mini models: random tokens at a retention of 0.25 lie at least so far below all tokens (static rung)."""

MINI_BEST_LOSS_MOST: Final = 0.02
"""Mini models: the best published policy at a retention of 0.25 lies at most so far below all tokens (static rung)."""

MINI_BEST_TTFT_MOST: Final = 0.42
"""Mini models: that policy's time to the first token, at most so much of the uncompressed one, on one thread."""

MINI_LAYERS_RETENTION: Final = 0.25
"""Mini models: every published method that prunes inside the language model attains this retention."""

MINI_CODEC_LOSS_MOST: Final = 0.02
"""Mini models: through H.264 (yuv420p, CRF 18) accuracy differs from that in memory by at most so much (static)."""

MINI_LAYER_WORTH_LEAST: Final = 0.03
"""Mini models: leaving out any one decoder layer costs at least so much accuracy with all tokens (static rung)."""

MINI_TOWER_SHARE_MOST: Final = 0.30
"""Mini models: the vision tower's share of the uncompressed time to the first token, on one thread, at most."""

MINI_WEIGHTS_BYTES_MOST: Final = 12_000_000
"""Mini models: size of the weights file, at most."""

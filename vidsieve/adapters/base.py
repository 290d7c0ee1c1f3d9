"""`Adapter`: what Vidsieve knows about one model family. Reading it imports neither torch nor transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vidsieve.adapters.layout import VideoLayout
from vidsieve.framework.hookspecs import VIDEO_HOOKS

VideoModel: TypeAlias = Any
"""A transformers `...ForConditionalGeneration` model. Its parts are found by name, so no class says more."""
RUNS = frozenset({*VIDEO_HOOKS, "prune_layer", "prune_kv"})
"""Stage hooks that the generic machinery carries out on every family."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A model family.

    family              its name on the command line
    model_classes       transformers classes (or subclasses of them) it fits
    default_checkpoint  hub id that stands for the family
    layouts             (config, inputs) -> one VideoLayout per video, in the order of the features
    aliases             other names for the family
    offers              optional inputs and signals a stage may ask for
    runs                stage hooks it can carry out
    special_from        first id of the vocabulary's control tokens, where they form the end of the vocabulary
    """

    family: str
    model_classes: tuple[str, ...]
    default_checkpoint: str
    layouts: Callable[[Any, Mapping[str, Any]], list[VideoLayout]] = field(repr=False)
    aliases: tuple[str, ...] = ()
    offers: frozenset[str] = frozenset({"token_grid", "question"})
    runs: frozenset[str] = RUNS
    special_from: int | None = None

    def fits(self, model_class: type) -> bool:
        """Whether a model of this class belongs to the family."""
        return any(base.__name__ in self.model_classes for base in model_class.__mro__)

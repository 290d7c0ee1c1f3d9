"""`Adapter`: what Vidsieve knows about one model family. Reading it imports neither torch nor transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from vidsieve.adapters.layouts import VideoLayout
from vidsieve.adapters.towers import Tower, Units
from vidsieve.framework.hookspecs import KV_HOOKS, VIDEO_HOOKS

VideoModel: TypeAlias = Any
"""A transformers `...ForConditionalGeneration` model. Its parts are found by name, so no class says more."""
RUNS = frozenset({*VIDEO_HOOKS, "prune_layer", *KV_HOOKS})
"""Stage hooks that the generic machinery carries out on every family."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A model family.

    family              its name on the command line
    model_classes       transformers classes (or subclasses of them) it fits
    default_checkpoint  hub id that stands for the family
    parts_of            transformers classes whose checkpoints hold a model of the first of `model_classes` among others
    needs               what the command line needs for its inputs besides torch and the checkpoint's tokenizer; by
                        default the family's own processor, which needs torchvision
    layouts             (config, inputs) -> one VideoLayout per picture, in the order of the features; `inputs` has the
                        `input_ids` that the pictures belong to
    aliases             other names for the family
    offers              optional inputs a stage may ask for; the signals that `tower` and `units` make are added
    runs                stage hooks it can carry out
    special_from        first id of the vocabulary's control tokens, where they form the end of the vocabulary
    modality            "image" where frames are images to the model; then images have layouts too, without frames
    placeholders        (config, ids) -> where video features go; by default where the modality's token is
    spent               further inputs that go with the videos and that the model must not see again
    units               how the pixels fall into units that the vision tower encodes independently; None where it does
                        not, or where nobody wrote it down: then `reduce_frames` is refused
    tower               where signals are read off the vision side; None where nobody wrote it down: none is offered
    """

    family: str
    model_classes: tuple[str, ...]
    default_checkpoint: str
    layouts: Callable[[Any, Mapping[str, Any]], list[VideoLayout]] = field(repr=False)
    aliases: tuple[str, ...] = ()
    parts_of: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("its own processor", "torchvision")
    offers: frozenset[str] = frozenset({"token_grid", "question"})
    runs: frozenset[str] = RUNS
    special_from: int | None = None
    modality: Literal["video", "image"] = "video"
    placeholders: Callable[[Any, Any], Any] | None = field(default=None, repr=False)
    spent: frozenset[str] = frozenset()
    units: Units | None = field(default=None, repr=False)
    tower: Tower | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.units is not None:
            object.__setattr__(self, "runs", self.runs | {"reduce_frames"})
        object.__setattr__(self, "offers", self.offers | self._signals())

    def _signals(self) -> set[str]:
        made = set() if self.tower is None else {"vision_attention"}
        made |= {"pre_merger_features"} if self.tower is not None and self.tower.entrance is not None else set()
        return made | ({"pixel_difference"} if self.tower is not None and self.units is not None else set())

    @property
    def units_independent(self) -> bool:
        """Whether units can be left out before the vision tower without touching the others."""
        return self.units is not None


def decoder_of(model: VideoModel) -> Any:
    """The language model inside a video LLM, or a bare text LLM's own decoder."""
    return model.get_decoder()

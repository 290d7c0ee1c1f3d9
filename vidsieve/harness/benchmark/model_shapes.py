"""The shapes of real models, as committed configurations, for models with random weights. No torch is imported here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import UnknownNameError, UsageError

FOLDER = Path(__file__).with_name("architectures")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A model's configuration, perhaps with fewer layers. `source` says where the configuration is from.

    `layers` and `vision_layers` are (used, of the real model).
    """

    name: str
    source: str
    config: dict[str, Any]
    layers: tuple[int, int]
    vision_layers: tuple[int, int]

    def sentence(self) -> str:
        """Say what the model is and what was cut."""
        used, real = self.layers
        seen, tower = self.vision_layers
        if used == real:
            return f"{self.name} with random weights, all {real} decoder layers and {tower} vision layers"
        return (
            f"{self.name} with random weights, CUT to {used} of {real} decoder layers and {seen} of {tower} vision "
            "layers: ratios between parts hold roughly, milliseconds are not the real model's"
        )


def shape_names() -> list[str]:
    """List the models that there is a configuration of."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def model_shape(name: str, layers: int | None = None) -> ModelShape:
    """Read a configuration; with `layers`, cut the decoder to so many and the vision tower in proportion.

    Raises:
        UnknownNameError: no such configuration; offers the nearest.
        UsageError: more layers than the model has, or none.
    """
    if name not in shape_names():
        raise UnknownNameError("`random_weights`", "model", name, shape_names())
    config: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    source, text, vision = config.pop("_source"), config["text_config"], config["vision_config"]
    real, depth = text["num_hidden_layers"], "depth" if "depth" in vision else "num_hidden_layers"
    tower = vision[depth]
    used = real if layers is None else layers
    if not 1 <= used <= real:
        raise UsageError(f"`layers`: {name} has {real} decoder layers; give 1 to {real}, got {layers}.")
    text["num_hidden_layers"] = used
    vision[depth] = seen = max(1, round(tower * used / real))
    for indexes in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if indexes in vision:
            vision[indexes] = _cut(vision[indexes], tower, seen)
    # each level of DeepStack is added behind a decoder layer of its own
    if "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = vision["deepstack_visual_indexes"][:used]
    return ModelShape(name=name, source=source, config=config, layers=(used, real), vision_layers=(seen, tower))


def _cut(indexes: list[int], real: int, used: int) -> list[int]:
    """Move numbers of layers to the same share of the depth."""
    return sorted({max(0, round((index + 1) * used / real) - 1) for index in indexes})

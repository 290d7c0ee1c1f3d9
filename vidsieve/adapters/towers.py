"""What a family declares of its vision tower: where signals are read off it, and into which units its pixels fall.

A unit is what a tower encodes by itself: a frame, or a temporal patch of two. Those that a plan leaves out in step 1
never reach the tower. Reading this imports no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.errors import InputError

Inputs = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """The vision side of a family.

    part      the base model's attribute that holds the attention layers, in order
    entrance  dotted name of the module that makes tokens of patches: what enters it are the pre-merger features; None
              where no module takes patches one by one
    tokens    (model, inputs, parts) -> [tokens dim], the mean over the patches that form each token, pooled as the
              features are; a part is [frames patches dim], one behind the other in the tower's own order
    pixels    (model, change) -> [tokens]; change is [units height width], and the mean over each token's area is asked
    patches   (config) -> patches of a frame, where all have as many: one row more is a [CLS]; None for no such row
    """

    part: str
    entrance: str | None
    tokens: Callable[[Any, Inputs, Sequence[Any]], Any]
    pixels: Callable[[Any, Any], Any]
    patches: Callable[[Any], int] | None = None

    def layer(self, model: Any, inputs: Inputs) -> Any:
        """The attention of the layer whose output becomes the visual tokens: the last, or the one that is selected."""
        tower = getattr(model.base_model, self.part)
        found = [one for one in tower.modules() if type(one).__name__.endswith("Attention") and hasattr(one, "config")]
        number = inputs.get("vision_feature_layer", getattr(model.config, "vision_feature_layer", -1))
        number = number[-1] if isinstance(number, list | tuple) else number
        # hidden state 0 is what enters the first layer, and hidden state k what leaves layer k - 1
        return found[number if number < 0 else max(number - 1, 0)]


def grid_tokens(model: Any, inputs: Inputs, parts: Sequence[Any]) -> Any:
    """Patches of a token stand behind one another."""
    import torch

    values = torch.cat([part.flatten(0, 1) for part in parts]).float()
    return values.unflatten(0, (-1, model.config.vision_config.spatial_merge_size**2)).mean(dim=1)


def _window_tokens(model: Any, inputs: Inputs, parts: Sequence[Any]) -> Any:
    """As `grid_tokens`, where the tower has sorted tokens by window."""
    tokens = grid_tokens(model, inputs, parts)
    order = _window_order(model.config.vision_config, inputs["video_grid_thw"].tolist())
    return tokens[order.argsort().to(tokens.device)]


def _window_order(vision: Any, grids: Sequence[Sequence[int]]) -> Any:
    """Token numbers as Qwen2.5-VL's tower orders them: window by window in each unit, row by row in a window."""
    import torch

    merge, start, orders = vision.spatial_merge_size, 0, []
    side = vision.window_size // merge // vision.patch_size
    for time, height, width in grids:
        shape = (time, height // merge, width // merge)
        unit, row, column = torch.meshgrid(*[torch.arange(size) for size in shape], indexing="ij")
        across = -(-shape[2] // side)
        window = (unit * shape[1] + row // side) * across + column // side
        orders.append(window.flatten().argsort(stable=True) + start)
        start += window.numel()
    return torch.cat(orders)


def _grid_pixels(model: Any, change: Any) -> Any:
    """A token covers a square of merged patches."""
    vision = model.config.vision_config
    return _squares(change, vision.patch_size * vision.spatial_merge_size).flatten()


def _squares(change: Any, side: int) -> Any:
    """Means over squares of pixels; what is left over at the lower and right edges belongs to none."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(change[:, None], side).squeeze(1)


def grid_tower(entrance: str = "visual.merger", *, windows: bool = False) -> Tower:
    """Qwen-VL and its kin: flat patches; `windows` where the tower sorts them by window."""
    tokens = _window_tokens if windows else grid_tokens
    return Tower(part="visual", entrance=entrance, tokens=tokens, pixels=_grid_pixels)


def frame_tower(part: str, entrance: str | None, pool: Callable[[Any, Any], Any] | None = None) -> Tower:
    """Towers that see every frame at one size, behind a [CLS] row or none.

    `pool(model, patches [frames patches dim])` makes [frames tokens dim] of them; by default a patch is a token.
    """

    def pooled(model: Any, patches: Any) -> Any:
        return (patches if pool is None else pool(model, patches)).flatten(0, 1)

    def tokens(model: Any, inputs: Inputs, parts: Sequence[Any]) -> Any:
        import torch

        return pooled(model, torch.cat(list(parts))[:, -frame_patches(model.config) :].float())

    def pixels(model: Any, change: Any) -> Any:
        side = _edge(model.config.vision_config.patch_size)
        return pooled(model, _squares(change, side).flatten(1)[..., None]).squeeze(-1)

    return Tower(part=part, entrance=entrance, tokens=tokens, pixels=pixels, patches=frame_patches)


def frame_patches(config: Any) -> int:
    """Patches of a frame, all of one size."""
    vision = config.vision_config
    return (_edge(vision.image_size) // _edge(vision.patch_size)) ** 2


def square_mean(patches: Any, side: int) -> Any:
    """[frames patches dim] to the means of squares of `side` by `side` patches, row by row; a rest is left out."""
    from torch.nn.functional import avg_pool2d

    edge = int(patches.shape[1] ** 0.5)
    grid = patches.transpose(1, 2).unflatten(2, (edge, edge))
    return avg_pool2d(grid, side).flatten(2).transpose(1, 2)


def _edge(size: Any) -> int:
    """One side of what is square: some configurations give both."""
    return int(size[0] if isinstance(size, list | tuple) else size)


@dataclass(frozen=True)
class Units:
    """How a family's pixels fall into units that its vision tower encodes independently of each other.

    `pixels(config, inputs)` gives each video as [units frames channels height width]; `without(inputs, keeps)` the
    inputs of the tower with only the units that each video keeps, one mapping for each call of the tower.
    """

    pixels: Callable[[Any, Inputs], list[Any]]
    without: Callable[[Inputs, Sequence[Any]], list[Inputs]]


def _unit_pixels(config: Any, inputs: Inputs) -> list[Any]:
    """Patches in the order of the Qwen2-VL processor, put together to frames again."""
    vision = config.vision_config
    merge, patch, deep = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    videos = []
    for part, (time, height, width) in zip(_grid_parts(inputs), inputs["video_grid_thw"].tolist(), strict=True):
        blocks = part.view(time, height // merge, width // merge, merge, merge, -1, deep, patch, patch)
        frames = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
        videos.append(frames.reshape(time, deep, -1, height * patch, width * patch))
    return videos


def _grid_parts(inputs: Inputs) -> list[Any]:
    """The patches of each video."""
    return list(inputs["pixel_values_videos"].split(inputs["video_grid_thw"].prod(-1).tolist()))


def _grid_without(inputs: Inputs, keeps: Sequence[Any]) -> list[Inputs]:
    """All videos in one call: fewer patches, and as many steps fewer in the grid."""
    grid = inputs["video_grid_thw"].clone()
    pairs = zip(_grid_parts(inputs), keeps, strict=True)
    parts = [part.unflatten(0, (len(keep), -1))[keep].flatten(0, 1) for part, keep in pairs]
    for index, keep in enumerate(keeps):
        grid[index, 0] = int(keep.sum())
    return [{**inputs, "pixel_values_videos": _joined(parts), "video_grid_thw": grid}]


def _joined(parts: Sequence[Any]) -> Any:
    import torch

    return torch.cat(list(parts))


def _frame_pixels(config: Any, inputs: Inputs) -> list[Any]:
    """Every frame is a unit of one."""
    return [video[:, None] for video in inputs["pixel_values_videos"]]


def _frame_without(inputs: Inputs, keeps: Sequence[Any]) -> list[Inputs]:
    """One call a video: they may keep different numbers of frames."""
    videos = inputs["pixel_values_videos"]
    return [{**inputs, "pixel_values_videos": videos[i : i + 1, keep]} for i, keep in enumerate(keeps)]


GRID_UNITS = Units(_unit_pixels, _grid_without)
"""Temporal patches of models that come with `video_grid_thw` and flat patches."""
FRAME_UNITS = Units(_frame_pixels, _frame_without)
"""Frames of models that come with [videos frames channels height width]."""


def require_pixels(inputs: Inputs) -> None:
    """Raises InputError when the caller computed the features: then there is nothing to leave out of the tower."""
    if inputs.get("pixel_values_videos") is None:
        raise InputError(
            "mm_encoder_outputs: the policy chooses units before the vision tower, which has run already; pass "
            "pixel_values_videos instead, or use a policy without reduce_frames."
        )

"""What signals read off a vision tower: where its attention is, what enters its merger, which patches form a token.

Reading this imports no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

"""Signals: what stages may know of the vision side, taken in the one pass of the tower that is made anyway.

Only what a policy declares is taken. `vision_attention` comes from queries and keys of one layer, block by block:
no weights are asked of the tower, whose kernel stays what it was, and nothing of ours is left when the pass ends.

- `vision_attention` Float[frames tokens]: the attention a token's patches receive, mean over heads and patches: from
  the [CLS] row where the tower has one (the softmax runs over that row too), else from all patches of the frame, mean.
  The layer is the one whose output becomes the visual tokens: the last, or the `vision_feature_layer` of a LLaVA.
  VisionZip (arXiv:2412.04467) and FastVID (arXiv:2503.11187) read such a layer too.
- `pre_merger_features` Float[frames tokens width]: what enters the merger or projector, mean over a token's patches.
- `pixel_difference` Float[frames tokens]: mean absolute difference of a token's pixels, as the model is given them, to
  the same place in the unit before it, of those that are encoded; infinite in the first, which has none.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.attention_taps import AttentionCall, scaling_of, tapped
from vidsieve.adapters.layouts import VideoLayout
from vidsieve.adapters.towers import Tower
from vidsieve.adapters.transformers_internals import broken
from vidsieve.adapters.uncompiled import uncompiled
from vidsieve.adapters.vision.encoded_videos import EncodedVideos, VideoSource
from vidsieve.adapters.vision.encoding import PIXELS, encode
from vidsieve.framework.errors import InputError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import SIGNALS

_WEIGHTS_AT_ONCE = 2**24
"""Attention weights formed at a time: 64 MiB."""


def encode_all(
    model: VideoModel,
    adapter: Adapter,
    calls: Sequence[Mapping[str, Any]],
    policy: Policy,
    given: EncodedVideos | None = None,
) -> tuple[list[Any], dict[str, Tensor]]:
    """The vision side's output for each of `calls`, and a row of each declared signal for every token it makes.

    `given` is what came encoded of these calls together; then no tower runs.

    Raises:
        InputError: a stage needs a signal, but the caller computed the features, so that no tower runs.
    """
    needed, offered = policy.needs().intersection(SIGNALS), adapter.offers.intersection(SIGNALS)
    asked = (needed | policy.wants()) & offered
    if given is None and len(calls) == 1:
        given = (calls[0].get("mm_encoder_outputs") or {}).get(adapter.modality)
    if given is None:
        outputs, signals = take(model, adapter, calls, asked)
    else:
        outputs, signals = [given], _without_tower(model, adapter, calls, asked, getattr(given, "source", None))
    if any(output is not None for output in outputs):
        _refuse_missing(adapter, needed - signals.keys())
    return outputs, signals


def _without_tower(
    model: VideoModel,
    adapter: Adapter,
    calls: Sequence[Mapping[str, Any]],
    asked: Collection[str],
    source: VideoSource | None,
) -> dict[str, Tensor]:
    """The signals of videos that came encoded. The change of pixels is that between the units of these calls."""
    seen = "pixel_difference" in asked and all(call.get("pixel_values_videos") is not None for call in calls)
    rest = set(asked) - ({"pixel_difference"} if seen else set())
    signals = {} if source is None or not rest else dict(source.signals(rest))
    if seen:
        signals["pixel_difference"] = torch.cat([c for call in calls for c in _pixel_difference(model, adapter, call)])
    return signals


def take(
    model: VideoModel, adapter: Adapter, calls: Sequence[Mapping[str, Any]], asked: Collection[str]
) -> tuple[list[Any], dict[str, Tensor]]:
    """The vision side's output for each of `calls`, and a row of each signal that is `asked` for every token.

    A signal is missing where no call has a video.
    """
    outputs, found = [], defaultdict[str, list[Tensor]](list)
    for call in calls:
        parts = defaultdict[str, list[Tensor]](list)
        with _listening(model, adapter.tower, call, asked, parts):
            outputs.append(encode(model, adapter.modality, call))
        for name, heard in parts.items():
            assert adapter.tower is not None
            if outputs[-1] is not None and not heard:
                raise broken(f"the vision tower of {type(model).__name__} runs past the module that shows {name}")
            found[name] += [adapter.tower.tokens(model, call, heard)] if heard else []
        if "pixel_difference" in asked and call.get("pixel_values_videos") is not None:
            found["pixel_difference"] += _pixel_difference(model, adapter, call)
    tokens = {name: torch.cat(parts) for name, parts in found.items() if parts}
    return outputs, {name: rows.squeeze(-1) if name == "vision_attention" else rows for name, rows in tokens.items()}


def signals_by_picture(signals: Mapping[str, Tensor], layouts: Sequence[VideoLayout]) -> list[dict[str, Tensor]]:
    """The signals of each picture, [frames tokens ...]; an image's are passed over."""
    counts = [layout.visual or layout.rows for layout in layouts]
    parts = {name: rows.split(counts) for name, rows in signals.items()}
    return [
        {name: rows[index].unflatten(0, (layout.frames, layout.tokens)) for name, rows in parts.items()}
        if layout.visual
        else {}
        for index, layout in enumerate(layouts)
    ]


def _refuse_missing(adapter: Adapter, names: Collection[str]) -> None:
    if names:
        raise InputError(
            f"mm_encoder_outputs: the policy needs {', '.join(sorted(names))}, which is taken while the vision tower "
            f"runs, but the features came computed; pass {PIXELS[adapter.modality][0]} instead, or use a policy "
            "without that need."
        )


def _pixel_difference(model: VideoModel, adapter: Adapter, call: Mapping[str, Any]) -> list[Tensor]:
    """A row a token, video by video."""
    assert adapter.units is not None
    assert adapter.tower is not None
    rows = []
    for units in adapter.units.pixels(model.config, call):
        values = units.float()
        change = (values[1:] - values[:-1]).abs().mean(dim=(1, 2))
        tokens = adapter.tower.pixels(model, torch.cat([torch.zeros_like(values[:1, 0, 0]), change]))
        # not before pooling, whose weights of zero would make NaN of it
        tokens.unflatten(0, (len(values), -1))[0] = torch.inf
        rows.append(tokens)
    return rows


@contextmanager
def _listening(
    model: VideoModel,
    tower: Tower | None,
    call: Mapping[str, Any],
    asked: Collection[str],
    parts: Mapping[str, list[Tensor]],
) -> Iterator[None]:
    """While open, what a pass of the tower shows is added to `parts`, each [frames patches dim]."""
    with ExitStack() as stack:
        if asked:
            stack.enter_context(uncompiled)
        if tower is not None and "vision_attention" in asked:
            patches = None if tower.patches is None else tower.patches(model.config)
            listen = partial(_attention, parts["vision_attention"], patches)
            stack.enter_context(tapped({0: tower.layer(model, call)}, listen))
        if tower is not None and tower.entrance is not None and "pre_merger_features" in asked:
            entrance = attrgetter(tower.entrance)(model.base_model)
            enters = partial(_enters, parts["pre_merger_features"])
            stack.callback(entrance.register_forward_pre_hook(enters).remove)
        yield


def _enters(parts: list[Tensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    """The merger's input; flat patches count as one frame."""
    parts.append(args[0] if args[0].dim() == 3 else args[0][None])


def _attention(parts: list[Tensor], patches: int | None, call: AttentionCall) -> Any:
    """The tower's kernel runs as it would; queries and keys are looked at beside it."""
    query, key, scaling = call.query, call.key, scaling_of(call)
    bounds = call.options.get("cu_seq_lens_q")
    if bounds is None:
        parts.append(received(query, key, scaling, patches)[..., None])
    else:
        start = 0
        for length, run in groupby(bounds.diff().tolist()):
            count = len(list(run))
            own = slice(start, start + count * length)
            apart = [part[0, :, own].unflatten(1, (count, length)).transpose(0, 1) for part in (query, key)]
            parts.append(received(apart[0], apart[1], scaling, patches)[..., None])
            start = own.stop
    return call.run(call.key, call.value, call.mask)


def received(
    query: Float[Tensor, "frames heads patches dim"],
    key: Float[Tensor, "frames heads patches dim"],
    scaling: float,
    patches: int | None,
) -> Float[Tensor, "frames patches"]:
    """Attention each row of a frame receives, mean over heads: from the [CLS] row, or the mean over all rows.

    With as many rows as `patches`, or None, there is no [CLS]. Softmax in float32; never all weights at once.
    """
    _, heads, rows, _ = query.shape
    if patches is not None and rows > patches:
        query = query[:, :, :1]
    asked = query.shape[2]
    at_once = max(1, _WEIGHTS_AT_ONCE // (heads * asked * rows))
    block = max(1, _WEIGHTS_AT_ONCE // (at_once * heads * rows))
    found = []
    for some, keys in zip(query.split(at_once), key.split(at_once), strict=True):
        keys = keys.float().transpose(2, 3) * scaling
        total = torch.zeros(len(some), rows, device=query.device)
        for part in some.float().split(block, dim=2):
            total += (part @ keys).softmax(dim=-1).sum(dim=(1, 2))
        found.append(total / (heads * asked))
    return torch.cat(found)

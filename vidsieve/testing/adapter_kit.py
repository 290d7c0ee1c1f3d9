"""What the adapter laws are made of: test stages, prompts with videos, runs with and without a policy or rows."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

import vidsieve
from vidsieve.adapters.apply import adapter_for
from vidsieve.framework.composition import BoundStage, Positions
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.report import Report
from vidsieve.framework.stage import Stage


class KeepRandom(Stage):
    """Keep as many random tokens as asked for."""

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        """The highest of one random number a token; all that is alive without a budget."""
        scores = torch.rand(tokens.keep.shape, generator=tokens.rng).masked_fill(~tokens.keep.cpu(), -1)
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().argsort(descending=True)[: tokens.token_budget]] = True
        return Keep(mask.view_as(scores).to(tokens.keep.device) & tokens.keep)


class KeepAll(Stage):
    """Say explicitly that nothing goes."""

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        """What was alive."""
        return Keep(tokens.keep)


class Breaks(Stage):
    """Raise in the middle of a call."""

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        """Never returns."""
        raise ZeroDivisionError("on purpose")


def policy_of(
    *stages: Stage, ratio: float | None = None, positions: Positions = "original", exact: bool = True
) -> Policy:
    """A policy of stages that are registered nowhere."""
    bound = tuple(BoundStage(f"stage-{i}", f"stage-{i}", stage) for i, stage in enumerate(stages))
    return Policy(name="under-test", retention_ratio=ratio, positions=positions, exact=exact, stages=bound)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt: `images`, then `videos` of so many `frames` (taken in turn), with text around them and `words` of
    it at the end (0 for none at all); all drawn from `seed`."""

    seed: int = 0
    videos: int = 1
    words: int = 5
    images: int = 0
    frames: tuple[int, ...] = (4,)


class PromptKit:
    """What an adapter author gives: a tiny model and a video; from it come whole prompts.

    around_video, around_frame, around_image  ids that enclose each; without `around_frame` a video is one run of
                                              placeholders
    video_token                               setting of the model that holds a video's placeholder id
    """

    words: Sequence[int] = range(3, 80)
    around_video: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    around_frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    around_image: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    video_token: str = "video_token_id"

    def build_model(self) -> Any:
        """A tiny random model in eval mode, without an end-of-text id, the same at every call."""
        raise TypeError(f"{type(self).__name__} must implement build_model()")

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        """The model inputs of one video of so many units; those of several are joined along their first axis."""
        raise TypeError(f"{type(self).__name__} must implement make_video(seed, frames)")

    def make_image(self, seed: int) -> dict[str, Tensor]:
        """The model inputs of one image."""
        raise TypeError(f"{type(self).__name__} must implement make_image(seed)")

    def around(self, frame: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that enclose a frame; override it where they number the frames."""
        return self.around_frame or ((), ())

    def join(self, rows: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        """The inputs of the pictures of each prompt as one call's."""
        flat = [picture for row in rows for picture in row]
        names = dict.fromkeys(name for picture in flat for name in picture)
        return {name: torch.cat([picture[name] for picture in flat if name in picture]) for name in names}

    def runs(self, model: Any, video: Mapping[str, Tensor]) -> list[int]:
        """How many placeholders a video has, run by run: one run, or one a frame with `around_frame`."""
        (layout,) = layouts_of(model, video)
        if self.around_frame is None:
            return [layout.placeholders]
        if layout.alive is not None:
            return layout.alive.sum(dim=1).tolist()
        return [layout.lead + layout.tokens] * layout.frames

    def make_inputs(self, model: Any, *rows: Row) -> dict[str, Any]:
        """A left-padded batch of prompts, one a row, as a processor would make it."""
        pictures: list[list[dict[str, Tensor]]] = [[] for _ in rows]
        ids = [self._ids(model, row, own) for row, own in zip(rows, pictures, strict=True)]
        width = max(len(row) for row in ids)
        padded = [[0] * (width - len(row)) + row for row in ids]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        inputs: dict[str, Any] = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        return inputs | self.join(pictures) | self.token_types(model, inputs["input_ids"])

    def token_types(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        """Inputs with one entry a token that the family's processor makes from the ids."""
        return {}

    def _ids(self, model: Any, row: Row, pictures: list[dict[str, Tensor]]) -> list[int]:
        """The ids of one prompt; its pictures are added to `pictures`."""
        draw = torch.Generator().manual_seed(1000 + row.seed)

        def text(count: int) -> list[int]:
            return [self.words[i] for i in torch.randint(len(self.words), (count,), generator=draw).tolist()]

        ids = text(3)
        for index in range(row.images):
            image = self.make_image(row.seed * 10 + index)
            pictures.append(image)
            count = sum(part.shape[:-1].numel() for part in model.base_model.get_image_features(**image).pooler_output)
            ids += [*self.around_image[0], *[model.config.image_token_id] * count, *self.around_image[1], *text(2)]
        for index in range(row.videos):
            video = self.make_video(row.seed * 10 + index, row.frames[index % len(row.frames)])
            pictures.append(video)
            ids += [*self.around_video[0], *self._frames(model, video), *self.around_video[1], *text(2)]
        return ids + text(row.words) if row.words else ids[:-2]

    def _frames(self, model: Any, video: Mapping[str, Tensor]) -> list[int]:
        """The placeholders of a video with the ids around its frames."""
        token, ids = getattr(model.config, self.video_token), []
        for frame, run in enumerate(self.runs(model, video)):
            before, after = self.around(frame)
            ids += [*before, *[token] * run, *after]
        return ids


def layouts_of(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The adapter's layouts of the pictures in `inputs`."""
    return adapter_for(model).layouts(model.config, inputs)


def places_of(model: Any, ids: Tensor) -> Tensor:
    """Where the adapter sees placeholders of videos."""
    adapter = adapter_for(model)
    if adapter.placeholders is not None:
        return adapter.placeholders(model.config, ids)
    return ids == getattr(model.config, f"{adapter.modality}_token_id")


def visual_places(model: Any, inputs: Mapping[str, Any]) -> Bool[Tensor, " columns"]:
    """Which columns of a single prompt hold visual tokens, structural placeholders and images left out."""
    places = places_of(model, inputs["input_ids"])[0]
    flags = [torch.zeros(0, dtype=torch.bool)]
    for layout in layouts_of(model, inputs):
        frames = torch.ones(layout.frames, layout.lead + layout.tokens, dtype=torch.bool)
        frames[:, : layout.lead] = False
        alive = torch.ones(frames.numel(), dtype=torch.bool) if layout.alive is None else layout.alive.flatten()
        flags += [frames.flatten()[alive], torch.zeros(layout.structural, dtype=torch.bool)]
    return torch.zeros_like(places).masked_scatter(places, torch.cat(flags))


def kept_columns(model: Any, inputs: Mapping[str, Any], report: Report) -> Bool[Tensor, " columns"]:
    """Which columns of a single prompt stay, from the report's masks and the rule that nothing else goes."""
    visual = visual_places(model, inputs)
    videos = [layout for layout in layouts_of(model, inputs) if layout.visual]
    kept = [
        keep.flatten() if layout.alive is None else keep.flatten()[layout.alive.flatten()]
        for keep, layout in zip(report.keeps, videos, strict=True)
    ]
    return (~visual).masked_scatter(visual, torch.cat(kept))


@torch.no_grad()
def language_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers itself gives the language model for a whole single prompt: embeddings, positions and more."""
    seen: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    handle = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    try:
        # not a plain forward, which older transformers cannot do with the videos of every family
        model.generate(**with_types(model, inputs), max_new_tokens=1, do_sample=False)
    finally:
        handle.remove()
    return seen


def with_types(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with `mm_token_type_ids` where M-RoPE needs them: without them it silently sees text."""
    rope = getattr(model.base_model, "get_rope_index", None)
    if rope is None or "mm_token_type_ids" not in inspect.signature(rope).parameters or "mm_token_type_ids" in inputs:
        return dict(inputs)
    ids, videos = inputs["input_ids"], places_of(model, inputs["input_ids"])
    return {**inputs, "mm_token_type_ids": ((ids == model.config.image_token_id) & ~videos).int() + 2 * videos.int()}


@torch.no_grad()
def rows_removed(
    model: Any, inputs: Mapping[str, Any], keep: Bool[Tensor, " columns"], steps: int, *, compact: bool = False
) -> Float[Tensor, "steps vocabulary"]:
    """Logits of greedy decoding when the language model is called directly on the rows that stay.

    Positions are those of the full prompt, in decode too; with `compact` the rows are numbered 0, 1, 2, …
    """
    from transformers import DynamicCache

    lm, given = model.get_decoder(), language_inputs(model, inputs)
    positions = full_positions(model, inputs)[..., keep]
    if compact:
        positions = torch.arange(int(keep.sum())).expand(positions.shape)
    given = {name: _rows_taken_out(value, keep, given) for name, value in given.items() if name not in OWN_INPUTS}
    cache, logits = DynamicCache(config=lm.config), []
    for _ in range(steps):
        hidden = lm(**given, position_ids=positions, past_key_values=cache, use_cache=True)[0]
        logits.append(model.lm_head(hidden[:, -1:])[:, -1])
        given = {"input_ids": logits[-1].argmax(-1, keepdim=True)}
        positions = positions[..., -1:] + 1
    return torch.cat(logits).float()


OWN_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache")
"""What the language model is given anew."""


def _rows_taken_out(value: Any, keep: Bool[Tensor, " columns"], given: Mapping[str, Any]) -> Any:
    """A per-token input without the rows that go; DeepStack levels have a row a visual token."""
    if isinstance(value, list | tuple):
        visual = given["visual_pos_masks"][0]
        return [level[keep[visual]] for level in value]
    per_token = isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == len(keep)
    return value[:, keep] if per_token else value


def full_positions(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """What transformers itself numbers a single full prompt with."""
    if not hasattr(model.base_model, "get_rope_index"):
        return torch.arange(inputs["input_ids"].shape[1])[None]
    positions = language_inputs(model, inputs)["position_ids"]
    return positions[1:] if positions.shape[0] == 4 else positions


STEPS = 4
EMPTY = policy_of()
ALL = policy_of(KeepAll(), ratio=1.0)
HALF = policy_of(KeepRandom(), ratio=0.5)
BATCHES = {
    "one prompt": (Row(),),
    "padded batch": (Row(words=4), Row(seed=1, words=9)),
    "two videos": (Row(videos=2),),
    "uneven batch": (Row(videos=2, words=4), Row(seed=1, words=9)),
}
HARDEST = {name: BATCHES[name] for name in ("two videos", "uneven batch")}
"""The batches that hold what the others do: enough where every family repeats a law."""
FEATURES_CAN_BE_SLICED = hasattr(transformers.generation.utils, "_slice_mm_encoder_output")
"""Whether this transformers is new enough to cut features for chunks, and to regroup them for beams in every model."""
needs_chunks = pytest.mark.skipif(
    not FEATURES_CAN_BE_SLICED,
    reason="this transformers cannot prefill a prompt with pictures in chunks",
)
CHUNKS = pytest.param({"prefill_chunk_size": 7}, marks=needs_chunks, id="chunks")
_USES = {
    "num_beams": "beams",
    "num_return_sequences": "beams",
    "prefill_chunk_size": "chunks",
    "cache_implementation": "static cache",
}
"""Options of `generate` that not every family can take. Several answers to a prompt repeat features as beams do."""
_OPTIONS = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def unpatched(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """What `generate` gives without us; M-RoPE models are silently wrong without `mm_token_type_ids`."""
    return model.generate(**with_types(model, inputs), **(_OPTIONS | options))


def run(model: Any, policy: Policy, inputs: dict[str, Any], **options: Any) -> tuple[Any, Report]:
    """What `generate` gives under a policy, and the report."""
    with vidsieve.applied(model, policy) as handle:
        output = model.generate(**inputs, **(_OPTIONS | options))
    return output, handle.reports[-1]


def logits(output: Any) -> Float[Tensor, "rows steps vocabulary"]:
    """Logits of all steps."""
    return torch.stack(output.logits, dim=1)


class ModelKit(PromptKit):
    """`PromptKit` with a fresh model a test.

    `cannot` names what transformers itself cannot do with this family and a video: "beams", "chunks", "images" (beside
    a video), "static cache", "lookup" (prompt-lookup decoding), "no cache", "crop" (of a cache), "uneven videos" (of
    different lengths in one call), "flat positions" (it shows its layers M-RoPE positions), "second turn" (from a
    cache). Laws about it are skipped.
    """

    tolerance: float = 2e-5
    bit_equal: bool = True
    lead_rows: bool = False
    """Whether each frame has rows in front that are no visual tokens."""
    unpatched_beams_work: bool = True
    cannot: frozenset[str] = frozenset()

    def same(self, found: Tensor, expected: Tensor) -> bool:
        """Equal in every bit, or within `tolerance` where a family is not `bit_equal` to its own language model."""
        if self.bit_equal:
            return torch.equal(found, expected)
        return torch.allclose(found, expected, atol=self.tolerance)

    def uses(self, *names: str) -> None:
        """Skip a law about what transformers cannot do with this family."""
        for name in self.cannot.intersection(names):
            pytest.skip(f"transformers cannot do {name} with this family")

    def uses_options(self, options: Mapping[str, Any]) -> None:
        """The same, told by options of `generate`."""
        self.uses(*(what for option, what in _USES.items() if option in options))

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> Any:
        """The tiny model, built once; no test may touch it."""
        return cls().build_model()

    @pytest.fixture
    def model(self, built: Any) -> Any:
        """A fresh tiny model."""
        return copy.deepcopy(built)


def traces(model: Any) -> list[Any]:
    """What a library could leave behind: instance attributes, hooks and attention settings of every module."""
    found: list[Any] = []
    for name, module in model.named_modules():
        own = {
            key: id(value) for key, value in vars(module).items() if not key.startswith("_") and key != "rope_deltas"
        }
        hooks = (len(module._forward_pre_hooks), len(module._forward_hooks))
        config = getattr(module, "config", None)
        found.append((name, own, hooks, getattr(config, "_attn_implementation", None)))
    return found

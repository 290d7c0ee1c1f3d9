"""What the adapter laws are made of: test stages, prompts with videos, and a model run with rows taken out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidsieve.framework import registry
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.policy import BoundStage, Policy, Positions
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.report import Report
from vidsieve.framework.stage import Stage


class KeepRandom(Stage):
    """Keep as many random tokens as asked for."""

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        """The highest of one random number a token."""
        scores = torch.rand(tokens.keep.shape, generator=tokens.rng)
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().argsort(descending=True)[: tokens.token_budget]] = True
        return Keep(mask.view_as(scores).to(tokens.keep.device))


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
    """One prompt: `images`, then `videos`, with `words` of text around them; all drawn from `seed`."""

    seed: int = 0
    videos: int = 1
    words: int = 5
    images: int = 0


class PromptKit:
    """What an adapter author gives: a tiny model and a video; from it come whole prompts."""

    words: Sequence[int] = range(3, 80)
    around_video: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    around_image: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def build_model(self) -> Any:
        """A tiny random model in eval mode, without an end-of-text id, the same at every call."""
        raise TypeError(f"{type(self).__name__} must implement build_model()")

    def make_video(self, seed: int) -> dict[str, Tensor]:
        """The model inputs of one video; those of several are joined along their first axis."""
        raise TypeError(f"{type(self).__name__} must implement make_video(seed)")

    def make_image(self, seed: int) -> dict[str, Tensor]:
        """The model inputs of one image."""
        raise TypeError(f"{type(self).__name__} must implement make_image(seed)")

    def make_inputs(self, model: Any, *rows: Row) -> dict[str, Any]:
        """A left-padded batch of prompts, one a row, as a processor would make it."""
        pictures: list[dict[str, Tensor]] = []
        ids = [self._ids(model, row, pictures) for row in rows]
        width = max(len(row) for row in ids)
        padded = [[0] * (width - len(row)) + row for row in ids]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        inputs: dict[str, Any] = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        for name in dict.fromkeys(name for picture in pictures for name in picture):
            inputs[name] = torch.cat([picture[name] for picture in pictures if name in picture])
        return inputs

    def _ids(self, model: Any, row: Row, pictures: list[dict[str, Tensor]]) -> list[int]:
        """The ids of one prompt; its pictures are added to `pictures`."""
        draw = torch.Generator().manual_seed(1000 + row.seed)

        def text(count: int) -> list[int]:
            return [self.words[i] for i in torch.randint(len(self.words), (count,), generator=draw).tolist()]

        ids = text(3)
        for index in range(row.images):
            image = self.make_image(row.seed * 10 + index)
            pictures.append(image)
            count = sum(len(rows) for rows in model.base_model.get_image_features(**image).pooler_output)
            ids += [*self.around_image[0], *[model.config.image_token_id] * count, *self.around_image[1], *text(2)]
        for index in range(row.videos):
            video = self.make_video(row.seed * 10 + index)
            pictures.append(video)
            count = layouts_of(model, video)[0].rows
            ids += [*self.around_video[0], *[model.config.video_token_id] * count, *self.around_video[1], *text(2)]
        return ids + text(row.words)


def layouts_of(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The adapter's layouts of the videos in `inputs`."""
    adapter = next(one for one in registry.default().models.values() if one.fits(type(model)))
    return adapter.layouts(model.config, inputs)


def kept_columns(model: Any, inputs: Mapping[str, Any], report: Report) -> Bool[Tensor, " columns"]:
    """Which columns of a single prompt stay, from the report's masks and the rule that nothing else goes."""
    stays = [
        torch.cat([keep.flatten(), torch.ones(layout.structural, dtype=torch.bool)])
        for keep, layout in zip(report.keeps, layouts_of(model, inputs), strict=True)
    ]
    ids = inputs["input_ids"][0]
    return (ids != model.config.video_token_id).masked_scatter(ids == model.config.video_token_id, torch.cat(stays))


@torch.no_grad()
def rows_removed(
    model: Any, inputs: Mapping[str, Any], keep: Bool[Tensor, " columns"], steps: int, *, compact: bool = False
) -> Float[Tensor, "steps vocabulary"]:
    """Logits of greedy decoding when the language model is called directly on the rows that stay.

    Positions are those of the full prompt, in decode too; with `compact` the rows are numbered 0, 1, 2, …
    """
    from transformers import DynamicCache

    ids, lm = inputs["input_ids"], model.base_model.language_model
    embeds = model.get_input_embeddings()(ids)
    for modality, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels in inputs:
            places = ids == getattr(model.config, f"{modality}_token_id")
            embeds = scattered(model, inputs, embeds, modality, places)
    positions = full_positions(model, inputs)[..., keep]
    if compact:
        positions = torch.arange(int(keep.sum())).expand(positions.shape)
    cache, logits, embeds = DynamicCache(config=lm.config), [], embeds[:, keep]
    for _ in range(steps):
        hidden = lm(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True)[0]
        logits.append(model.lm_head(hidden[:, -1:])[:, -1])
        embeds = model.get_input_embeddings()(logits[-1].argmax(-1, keepdim=True))
        positions = positions[..., -1:] + 1
    return torch.cat(logits).float()


def scattered(model: Any, inputs: Mapping[str, Any], embeds: Tensor, modality: str, places: Tensor) -> Tensor:
    """Embeddings with the features of a modality at their placeholders."""
    import inspect

    encoder = getattr(model.base_model, f"get_{modality}_features")
    taken = {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}
    pooled = encoder(**taken).pooler_output
    rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in pooled])
    return embeds.masked_scatter(places[..., None], rows.to(embeds))


def full_positions(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """What transformers itself numbers a single full prompt with."""
    ids = inputs["input_ids"]
    if not hasattr(model.base_model, "get_rope_index"):
        return torch.arange(ids.shape[1])[None]
    types = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = {name: inputs[name] for name in names if name in inputs}
    return model.base_model.get_rope_index(ids, mm_token_type_ids=types, **grids)[0]

"""The hooks. A stage implements one or more of the stage hooks; a plugin module the register hooks.

Take only the arguments you use. Stage hooks answer with a plan; None is an error, "nothing to do" is an explicit plan.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from vidsieve.framework.plans import Budget, Keep, KeepFrames, KeepKV, Merge, Scores, Segments
    from vidsieve.framework.records import DecodeStep, FrameBatch, LayerTokens, PromptKV, VideoTokens

PROJECT = "vidsieve"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

VIDEO_HOOKS = ("segment_frames", "budget_frames", "score_tokens", "select_tokens", "merge_tokens")
"""Steps 3 to 7 in house order: they run on projected visual tokens, one video at a time."""
REDUCING_HOOKS = ("select_tokens", "merge_tokens", "prune_layer")
"""Hooks whose plans remove visual tokens from what the language model reads. `reduce_frames` counts apart."""
KV_HOOKS = ("evict_kv", "prune_kv")
"""Hooks that act on the KV cache, after a layer's attention over the prompt: the first token does not see them."""
STAGE_HOOKS = ("reduce_frames", *VIDEO_HOOKS, "prune_layer", *KV_HOOKS)


class StageSpecs:
    """Hooks of a stage, in house order."""

    @hookspec(firstresult=True)
    def reduce_frames(self, frames: "FrameBatch") -> "KeepFrames":
        """Choose the units that the vision tower must encode."""

    @hookspec(firstresult=True)
    def segment_frames(self, tokens: "VideoTokens") -> "Segments":
        """Say which frames belong together."""

    @hookspec(firstresult=True)
    def budget_frames(self, tokens: "VideoTokens") -> "Budget":
        """Share the token total over the frames."""

    @hookspec(firstresult=True)
    def score_tokens(self, tokens: "VideoTokens") -> "Scores":
        """Say how much each visual token matters."""

    @hookspec(firstresult=True)
    def select_tokens(self, tokens: "VideoTokens") -> "Keep":
        """Choose the visual tokens that stay."""

    @hookspec(firstresult=True)
    def merge_tokens(self, tokens: "VideoTokens") -> "Merge | Keep":
        """Choose which visual tokens melt into which."""

    @hookspec(firstresult=True)
    def prune_layer(self, tokens: "LayerTokens") -> "Scores | Keep | Merge":
        """Choose, after a decoder layer in prefill, the visual tokens that go on."""

    @hookspec(firstresult=True)
    def evict_kv(self, entries: "PromptKV") -> "Scores":
        """Say, once a layer has read the prompt, how much each visual entry of its cache matters; the rest leaves."""

    @hookspec(firstresult=True)
    def prune_kv(self, step: "DecodeStep") -> "KeepKV":
        """Choose, in a decode step, the visual KV entries that the coming layers attend to."""


class PluginSpecs:
    """Hooks of a plugin module."""

    @hookspec
    def register_stages(self, register: Callable[[str, type], None]) -> None:
        """Offer stages: call `register(name, stage_class)` for each."""

    @hookspec
    def register_policies(self, register: Callable[[Path], None]) -> None:
        """Offer published policies: call `register(path_of_yaml)` for each."""

    @hookspec
    def register_models(self, register: Callable[[str, Any], None]) -> None:
        """Offer model adapters: call `register(family, adapter)` for each."""

"""Key norm: in each layer's KV cache, keep the visual entries whose keys are shortest."""

from collections.abc import Callable

from pydantic import Field

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import PromptKV
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.evicted_layers import entries_left, layers_from


class KeyNorm(Stage):
    """Let visual entries leave the KV cache for good, once the prompt is read: those with the longest keys.

    Keys with a low L2 norm are those that get much attention in most layers, and the norm is known without any query;
    rotary embedding does not change it. The first layers are the exception, where the paper compresses nothing. Of n
    entries each layer keeps the `keep_ratio` * n with the shortest keys. The paper ranks each head's keys apart; here
    the norm is the mean over the heads of keys, so that all heads of a layer hold the same entries.

    Source: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv 2406.11430, section 3.
    """

    optional = True

    keep_ratio: float = tunable(0.3, low=0.05, high=1.0, help="visual KV entries kept ÷ all, in each layer cut")
    first: int | float = Field(
        2, gt=0, description="first decoder layer cut, zero-based; below 1, a fraction of the depth"
    )

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """From `first` to the last."""
        return layers_from("key-norm.evict", self.first, num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        """The same share in each."""
        return entries_left(offered, self.keep_ratio, self.layers(num_layers))

    @hookimpl
    def evict_kv(self, entries: PromptKV) -> Scores:
        return Scores(-entries.entries("keys").norm(dim=-1).mean(dim=1))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("key-norm.evict", KeyNorm)

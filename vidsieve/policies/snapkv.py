"""SnapKV: in each layer's KV cache, keep the visual entries that the end of the prompt attends to."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch.nn.functional import avg_pool1d, max_pool1d

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import PromptKV
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.evicted_layers import entries_left, layers_from


class SnapKV(Stage):
    """Let visual entries leave the KV cache for good, once the prompt is read: those the question attends to least.

    The softmaxed attention of the last `window` text tokens is summed over them and pooled over neighbouring entries
    in their order of appearance (zeros beyond the ends); of n entries each layer keeps the `keep_ratio` * n highest.
    Text always stays. The paper's window is the end of the prompt, whatever it is, and it ranks each head's entries
    apart; here it is the text behind the video, and attention is averaged over heads, so that all heads of a layer
    hold the same entries. Defaults are those of the released code: a window of 32 and average pooling over 5.

    Source: SnapKV, arXiv 2404.14469, section 4.
    """

    optional = True

    keep_ratio: float = tunable(0.3, low=0.05, high=1.0, help="visual KV entries kept ÷ all, in each layer cut")
    window: int = Field(32, ge=1, description="text tokens at the end of the prompt whose attention counts")
    kernel: Literal[1, 3, 5, 7, 9] = Field(5, description="neighbouring entries pooled; 1 pools nothing")
    pooling: Literal["average", "max"] = Field("average", description="how neighbouring entries are pooled")
    first: int | float = Field(
        1, gt=0, description="first decoder layer cut, zero-based; below 1, a fraction of the depth"
    )

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """From `first` to the last."""
        return layers_from("snapkv.evict", self.first, num_layers)

    def leaves(self, offered: int, num_layers: int) -> tuple[int, ...]:
        """The same share in each."""
        return entries_left(offered, self.keep_ratio, self.layers(num_layers))

    @hookimpl
    def evict_kv(self, entries: PromptKV) -> Scores:
        summed = entries.attention(self.window).mean(dim=1).sum(dim=1)
        pool = avg_pool1d if self.pooling == "average" else max_pool1d
        return Scores(pool(summed[:, None], self.kernel, stride=1, padding=self.kernel // 2)[:, 0])


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("snapkv.evict", SnapKV)

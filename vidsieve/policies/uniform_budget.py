"""The same number of tokens for every frame."""

from collections.abc import Callable

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage


class UniformBudget(Stage):
    """Give every frame the same share of the token total."""

    optional = True

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        return Budget(share=tokens.keep.any(dim=1).float())


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("uniform-budget", UniformBudget)

"""Compiled modules run their hooks while `uncompiled` is open, and run compiled again afterwards."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidsieve.adapters.uncompiled import uncompiled
from vidsieve.framework.errors import UsageError


class Counts:
    """A backend of torch.compile that counts how often its graphs run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Any, examples: Any) -> Any:
        def run(*inputs: Any) -> Any:
            self.runs += 1
            return graph.forward(*inputs)

        return run


class Doubles(nn.Module):
    """A module with a child that hooks are put on."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 2)

    def forward(self, values: Tensor) -> Tensor:
        return 2 * self.child(values)


@pytest.fixture
def compiled() -> tuple[Doubles, Counts]:
    """A module that was compiled and ran once: its graph knows of no hook."""
    torch._dynamo.reset()
    module, counts = Doubles(), Counts()
    module.compile(backend=counts)
    module(torch.ones(1, 2))
    assert counts.runs == 1
    return module, counts


def _zeros(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (torch.zeros_like(args[0]),)


@torch.no_grad()
def test_hooks_inside_a_compiled_module_run_and_it_is_compiled_again_afterwards(
    compiled: tuple[Doubles, Counts],
) -> None:
    module, counts = compiled
    before = module(torch.ones(1, 2))
    runs = counts.runs
    hook = module.child.register_forward_pre_hook(_zeros)
    # this is why: the graph is used although a hook came
    assert torch.equal(module(torch.ones(1, 2)), before)
    with uncompiled, uncompiled:
        assert torch.equal(module(torch.ones(1, 2)), 2 * module.child.bias[None])
    hook.remove()
    assert counts.runs == runs + 1
    assert torch.equal(module(torch.ones(1, 2)), before)
    assert counts.runs == runs + 2


@torch.no_grad()
def test_calls_that_overlap_are_both_uncompiled_whoever_ends_first(compiled: tuple[Doubles, Counts]) -> None:
    module, counts = compiled
    uncompiled.__enter__()
    with uncompiled:
        uncompiled.__exit__(None, None, None)
        module(torch.ones(1, 2))
        assert counts.runs == 1
    module(torch.ones(1, 2))
    assert counts.runs == 2


def test_inside_a_function_under_torch_compile_it_is_refused() -> None:
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def asks(values: Tensor) -> Tensor:
        with uncompiled:
            return values + 1

    with pytest.raises(UsageError, match="compile the model"):
        asks(torch.ones(1))
    assert torch.equal(asks.__wrapped__(torch.ones(1)), torch.full((1,), 2.0))  # type: ignore[attr-defined]

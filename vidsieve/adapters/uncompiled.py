"""Keep torch.compile away from calls that run with hooks or taps on the model.

Dynamo does not guard hooks (`torch._dynamo.config.skip_nnmodule_hook_guards`), so a graph that was compiled before a
hook was registered runs without it, and one compiled with it would outlive it. It does not matter what was compiled:
the model, a part of it, one method, or `generate`'s own decode step.
"""

import threading
from contextlib import ExitStack
from types import TracebackType

from vidsieve.framework.errors import UsageError


class _Uncompiled:
    """Context manager, reentrant and shared by all threads: the first to enter sets the stance, the last undoes it."""

    def __init__(self) -> None:
        self._lock, self._open, self._stance = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if not self._open:
                try:
                    self._stance.enter_context(torch.compiler.set_stance("force_eager"))
                except RuntimeError as error:
                    raise UsageError(
                        "generate: this policy runs with hooks on the model, but the call came from inside a function "
                        "under torch.compile; compile the model (`model.compile()`), not the function that calls "
                        "generate."
                    ) from error
            self._open += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._stance.close()


uncompiled = _Uncompiled()
"""`with uncompiled:` while hooks are registered. Compiled code of other models runs eagerly meanwhile, too."""

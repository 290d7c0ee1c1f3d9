"""The entry point that vLLM calls in each of its processes before it looks at a model."""

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidsieve.integrations.vllm.served_policy import ServedPolicy


def register() -> None:
    """Put the policy of the environment between the vision side and the language model; do nothing without one.

    Raises:
        SystemExit: the policy cannot be read or served; the server ends with a sentence before it opens its port.
    """
    if not any(os.environ.get(name) for name in ("VIDSIEVE_POLICY", "VIDSIEVE_RETENTION")):
        return
    from vidsieve.framework.errors import VidsieveError
    from vidsieve.integrations.vllm.vllm_internals import install

    try:
        policy = _served()
    except VidsieveError as error:
        raise SystemExit(f"vidsieve: {error}") from None
    if policy is not None:
        install(policy)


@cache
def _served() -> "ServedPolicy | None":
    from vidsieve.integrations.vllm.served_policy import served_policy

    return served_policy()


def served() -> "ServedPolicy":
    """The policy of this process."""
    policy = _served()
    assert policy is not None, "models are registered only where there is a policy"
    return policy

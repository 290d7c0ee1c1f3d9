"""One question about one video: the session for it, and what the model writes under several policies."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.task import Example
    from vidsieve.harness.model_bench import Written
    from vidsieve.harness.session import Chosen, Session


def open_one(
    chosen: "Chosen", video: str | None, question: str, *, notice: Callable[[str], None]
) -> "tuple[Session, Example]":
    """Open a session on one video; without one, on the first held-out example of the data.

    `notice` gets a sentence for each video left out. Raises as `choose_task`, `readable` and `load` do.
    """
    from vidsieve.harness.data.example_choice import choose_task
    from vidsieve.harness.data.user_data import OneVideo

    if video is not None:
        task = OneVideo.of_file(video, question)
    else:
        data = choose_task(chosen.setup, chosen.choice)
        task = OneVideo.first_of(chosen.readable(data, lambda task: task.examples("heldout", 1), notice=notice))
    return chosen.open(task), task.example


def written_under(session: "Session", policies: "Sequence[Policy]", example: "Example") -> "Iterator[Written]":
    """Yield what the model writes under each policy, in order.

    Raises:
        PolicyError: before the model runs, a policy that its family cannot carry out.
    """
    from vidsieve.adapters.apply import check_policy

    for policy in policies:
        check_policy(session.loaded.adapter, policy)
    for policy in policies:
        yield session.bench.written(policy, example)

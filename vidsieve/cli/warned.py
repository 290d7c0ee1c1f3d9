"""What a user should know before reading the numbers of `run` and `eval`."""

import re
from typing import TYPE_CHECKING

from vidsieve.cli.output import complain

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.harness.session import Session


def warn_differences(policy: "Policy", session: "Session") -> None:
    """A tuned policy on another model, device or workload than it was measured on."""
    from vidsieve.harness.session import differences

    found = differences(policy, dict(session.bench.describe()))
    if found:
        complain(f"policy {policy.name!r} was measured elsewhere: {'; '.join(found)}.", kind="warning")


def warn_unknown_words(question: str, session: "Session") -> None:
    """The bundled models know few words; a question with others gets no sensible answer."""
    bundled = session.loaded.choice.bundled
    if bundled is None:
        return
    from vidsieve.bundled.words import QUESTIONS

    words = re.findall(r"\w+|[^\w\s]+", question.lower())
    unknown = sorted({word for word in words if word not in bundled.shape.vocabulary})
    if unknown:
        complain(
            f"the bundled model does not know {', '.join(map(repr, unknown))}. It was taught questions like: "
            f"{'; '.join(QUESTIONS[kind] for kind in bundled.shape.kinds[:4])}.",
            kind="warning",
        )

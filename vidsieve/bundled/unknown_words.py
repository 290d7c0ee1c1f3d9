"""Say which words of a question a bundled model was never taught: such a question gets no sensible answer."""

import re
from typing import TYPE_CHECKING

from vidsieve.bundled.words import QUESTIONS

if TYPE_CHECKING:
    from vidsieve.bundled.bundled_models import BundledModel


def unknown_words_warning(question: str, bundled: "BundledModel") -> str | None:
    """Write the warning; None where the model knows every word."""
    words = re.findall(r"\w+|[^\w\s]+", question.lower())
    unknown = sorted({word for word in words if word not in bundled.shape.vocabulary})
    if not unknown:
        return None
    return (
        f"the bundled model does not know {', '.join(map(repr, unknown))}. It was taught questions like: "
        f"{'; '.join(QUESTIONS[kind] for kind in bundled.shape.kinds[:4])}."
    )

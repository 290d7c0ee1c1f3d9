"""Pictures of what a policy kept: `show` puts reports side by side; a `View` is a page, a picture or a film.

Names are imported when they are first used, Jinja2, matplotlib and PyAV when something is drawn.
"""

from typing import Any

from vidsieve.view.output_suffix import SUFFIXES, check_view_output

__all__ = ["SUFFIXES", "View", "check_view_output", "show"]


def __getattr__(name: str) -> Any:
    if name not in ("View", "show"):
        raise AttributeError(f"module 'vidsieve.view' has no attribute {name!r}")
    from vidsieve.view import side_by_side

    return getattr(side_by_side, name)

"""Pictures of what a policy kept: `show` puts reports side by side; a `View` is a page, a picture or a film.

Jinja2, matplotlib and PyAV are imported when they are used.
"""

from vidsieve.view.side_by_side import SUFFIXES, View, check_view_output, show

__all__ = ["SUFFIXES", "View", "check_view_output", "show"]

"""Show a search: the Pareto picture and one HTML report.

matplotlib and Jinja2 are imported when they are used.
"""

from vidsieve.report.page import report_html, write_report
from vidsieve.report.pareto import pareto_figure, write_pareto

__all__ = ["pareto_figure", "report_html", "write_pareto", "write_report"]

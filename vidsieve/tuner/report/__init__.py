"""Showing a search: the Pareto picture, one HTML report, and which settings mattered.

matplotlib, Jinja2 and Optuna are imported when they are used.
"""

from vidsieve.tuner.report.importance import importance_of
from vidsieve.tuner.report.page import report_html, write_report
from vidsieve.tuner.report.pareto import pareto_figure, write_pareto

__all__ = ["importance_of", "pareto_figure", "report_html", "write_pareto", "write_report"]

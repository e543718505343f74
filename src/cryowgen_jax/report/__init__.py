"""Pictures and the HTML page. Returns figures and text, never shows and never writes."""

from cryowgen_jax.report.figures import coverage_figure, shell_figure, slice_figure, spectrum_figure
from cryowgen_jax.report.page import SummaryRow, figure_png, markdown_table, render_report

__all__ = [
    "SummaryRow",
    "coverage_figure",
    "figure_png",
    "markdown_table",
    "render_report",
    "shell_figure",
    "slice_figure",
    "spectrum_figure",
]

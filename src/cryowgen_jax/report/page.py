"""The report: one HTML page that loads nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DOTS_PER_INCH = 160
_CSS_DOTS_PER_INCH = 96  # of a browser, so that pictures appear at their size in inches and are sharp on dense screens


class SummaryRow(NamedTuple):
    """One line of the table of results.

    Attributes
    ----------
    name
        What it is.
    value
        Text, or a number, shown to four digits.
    meaning
        How to read it, in plain words; may be empty.
    """

    name: str
    value: Any
    meaning: str = ""


class _Picture(NamedTuple):
    name: str
    caption: str
    png: str
    width: int


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Headings and rows as a Markdown table."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (columns, ["---"] * len(columns), *rows))


def figure_png(figure: Figure) -> bytes:
    """Draw a figure into the bytes of a PNG file, at 160 dots per inch; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def render_report(
    title: str,
    summary: Sequence[SummaryRow | tuple[str, Any] | tuple[str, Any, str]],
    warnings: Sequence[str],
    figures: Mapping[str, Figure],
    settings: Mapping[str, Any],
    *,
    captions: Mapping[str, str] | None = None,
) -> str:
    """Render the page: whether to trust the result, what was done, pictures, settings.

    Parameters
    ----------
    title
        Heading of the page.
    summary
        Rows (name, value) or (name, value, meaning).
    warnings
        Sentences for people who did not write the software. That there are none is said in words too.
    figures
        Heading to figure, in order. They are inlined as PNG.
    settings
        Name to value; nested mappings are flattened, as in "sampler.step_size".
    captions
        Heading of a figure to a sentence on how to read it.

    Returns
    -------
    str
        HTML, every text escaped, nothing loaded from anywhere.
    """
    captions = captions or {}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = resources.files("cryowgen_jax.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    rows = [SummaryRow(*row) for row in summary]
    return environment.from_string(template).render(
        title=title,
        summary=[row._replace(value=_readable(row.value)) for row in rows],
        warnings=list(warnings),
        figures=[_picture(name, captions.get(name, ""), figure) for name, figure in figures.items()],
        settings=[(name, _readable(value)) for name, value in _flat(settings)],
    )


def _picture(name: str, caption: str, figure: Figure) -> _Picture:
    width = round(figure.get_figwidth() * _CSS_DOTS_PER_INCH)
    return _Picture(name, caption, base64.b64encode(figure_png(figure)).decode("ascii"), width)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _readable(value: Any) -> str:
    """Text of a setting: yes and no, four digits, lists with commas, a dash for nothing."""
    if value is None or (isinstance(value, (Mapping, Sequence)) and len(value) == 0):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_readable(item) for item in value)
    return str(value)

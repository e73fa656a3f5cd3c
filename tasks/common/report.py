"""One self-contained HTML page of cards: text, tables, plots in the colours of the page, 3D views; it works offline.

    page = Report("Generated crystals", chips=[("structures", "20")])
    page.card("Structures", page.views.grid(scenes), note="Drag to turn.")
    page.cards([("Density", figure(plot, "density")), ("Elements", table(["element", "share"], rows))])
    page.write("report.html")

Everything that is given as text is escaped; only what the functions here return is markup.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from manifoldflow.files import write_text
from manifoldflow.tasks.common.viewer import POLICY, Scene, Viewers
from manifoldflow.version import __version__

__all__ = ["PALETTE", "Report", "code", "facts", "figure", "notes", "picture", "several", "style_axes", "table", "text"]

HERE = Path(__file__).parent

PALETTE = {
    "ink": "#17202e",
    "soft": "#5b6778",
    "rule": "#dfe4ec",
    "accent": "#4450c7",
    "reference": "#6b7c93",
    "second": "#c2571a",
    "third": "#14806a",
    "good": "#1c7f56",
    "warn": "#a85a00",
    "card": "#fffffe",
}
"""Colours for plots, by what they are for: :func:`figure` makes them those of the page, in light and dark."""


class _Section(NamedTuple):
    title: str
    parts: list[Markup]
    note: str
    anchor: str


@dataclass
class Report:
    """A page that grows card by card.

    Args:
        title: headline.
        chips: label and value of the numbers that come first.
        lead: a sentence below the headline.
    """

    title: str
    chips: Sequence[tuple[str, str]] = ()
    lead: str = ""
    views: Viewers = field(default_factory=Viewers)
    _rows: list[list[_Section]] = field(default_factory=list)

    def card(self, title: str, *parts: str | Markup, note: str = "", anchor: str = "") -> None:
        """Add one card: text is escaped and becomes a paragraph, markup of this module stays."""
        self._rows.append([_Section(title, [_markup(part) for part in parts], note, anchor)])

    def cards(self, some: Sequence[tuple[str, Markup | str] | tuple[str, Markup | str, str]]) -> None:
        """Add cards that stand side by side where there is room: title, content, and a note below the title if there is one."""
        self._rows.append([_Section(one[0], [_markup(one[1])], one[2] if len(one) > 2 else "", "") for one in some])

    def grid(self, scenes: Iterable[Scene], least: int = 220, tools: bool = True) -> Markup:
        """3D views side by side; see :meth:`manifoldflow.tasks.common.viewer.Viewers.grid`."""
        return Markup(self.views.grid(scenes, least, tools))

    def html(self) -> str:
        """The whole page."""
        try:
            from jinja2 import Environment, FileSystemLoader
        except ImportError as error:
            raise ImportError("reports need jinja2: pip install jinja2") from error
        template = Environment(loader=FileSystemLoader(HERE), autoescape=True).get_template("report.html")
        return template.render(
            title=self.title,
            lead=self.lead,
            chips=self.chips,
            rows=self._rows,
            policy=POLICY,
            css=Markup(_read("report.css") + self.views.css()),
            scripts=Markup(self.views.scripts()),
            script=Markup(_read("report.js")),
            version=__version__,
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, complete or not at all."""
        return write_text(path, self.html())


def text(*paragraphs: str) -> Markup:
    """Paragraphs."""
    return Markup("").join(Markup("<p>{}</p>").format(paragraph) for paragraph in paragraphs)


def notes(lines: Iterable[str]) -> Markup:
    """A list of remarks."""
    return Markup('<ul class="notes">{}</ul>').format(Markup("").join(Markup("<li>{}</li>").format(s) for s in lines))


def facts(values: Mapping[str, Any]) -> Markup:
    """Names and values."""
    rows = (Markup("<dt>{}</dt><dd>{}</dd>").format(key, value) for key, value in values.items())
    return Markup("<dl>{}</dl>").format(Markup("").join(rows))


def code(words: str) -> Markup:
    """A command, with a button that copies it."""
    button = Markup('<button type="button" class="copy" aria-label="Copy the command">Copy</button>')
    return Markup('<div class="code"><pre>{}</pre>{}</div>').format(words, button)


def several(parts: Iterable[str | Markup]) -> Markup:
    """Small parts side by side."""
    return Markup('<div class="few">{}</div>').format(Markup("").join(Markup("<div>{}</div>").format(p) for p in parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], digits: int = 3, sortable: bool = True) -> Markup:
    """A table, sorted by a click on a heading.

    Args:
        columns: headings, with units.
        rows: cells: text is escaped, floats are shown with so many digits behind the point, NaN and None as a dash.
        digits: of floats.
        sortable: headings can be clicked.
    """
    cells = [list(row) for row in rows]
    numeric = [
        any(_is_number(row[i]) for row in cells) and all(row[i] is None or _is_number(row[i]) for row in cells)
        for i in range(len(columns))
    ]
    head = Markup("").join(
        Markup("<th{}{}>{}</th>").format(
            Markup(' class="n"') if is_number else "",
            Markup(' data-sort="{}"').format("number" if is_number else "text") if sortable else "",
            name,
        )
        for name, is_number in zip(columns, numeric, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td{}>{}</td>").format(Markup(' class="n"') if is_number else "", _cell(value, digits))
                for value, is_number in zip(row, numeric, strict=True)
            )
        )
        for row in cells
    )
    return Markup('<div class="wide"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, body
    )


def figure(plot: Any, alt: str, caption: str = "", full: bool = False) -> Markup:
    """A matplotlib figure as vectors in the page, its colours of :data:`PALETTE` those of the page in light and dark.

    Args:
        plot: the figure; :func:`style_axes` sets what surrounds the data.
        alt: what it shows, for those who cannot see it.
        caption: below it.
        full: as wide as the card.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        plot.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for name, value in PALETTE.items():
        drawn = re.sub(re.escape(value), f"var(--{name})", drawn, flags=re.IGNORECASE)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"font-family: [^;\"]*;? ?|font: [^;\"]*", _font, drawn)  # sizes stay, the family is the page's
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    drawn = drawn.replace("<svg", str(label), 1)
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup('<figure class="plot{}">{}{}</figure>').format(" full" if full else "", Markup(drawn), below)


def _font(found: re.Match[str]) -> str:
    if found[0].startswith("font-family"):
        return ""
    size = re.search(r"[\d.]+px", found[0])
    weight = "; font-weight: bold" if "bold" in found[0] or "700" in found[0] else ""
    return f"font-size: {size[0] if size else '12px'}{weight}"


def picture(content: bytes, alt: str, caption: str = "", full: bool = False) -> Markup:
    """A PNG in the page."""
    data = base64.b64encode(content).decode()
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup('<figure class="plot{}"><img alt="{}" src="data:image/png;base64,{}">{}</figure>').format(
        " full" if full else "", alt, data, below
    )


def style_axes(axes: Any) -> None:
    """Axes as the reports draw them: quiet lines, no box, text in the page's colours."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALETTE["rule"])
    axes.tick_params(colors=PALETTE["soft"], labelsize=10, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(PALETTE["ink"])
        label.set_fontsize(11)
    axes.grid(True, color=PALETTE["rule"], linewidth=0.7)
    axes.set_axisbelow(True)
    legend = axes.get_legend()
    if legend is not None:
        legend.set_frame_on(False)
        for entry in legend.get_texts():
            entry.set_color(PALETTE["ink"])
            entry.set_fontsize(10)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any, digits: int) -> Any:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}f}".replace("-", "−")
    return value


def _markup(part: str | Markup) -> Markup:
    return part if isinstance(part, Markup) else Markup("<p>{}</p>").format(part)


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")

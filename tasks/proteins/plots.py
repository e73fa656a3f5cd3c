"""The report's plots as inline SVG: colours come from the page's style sheet, so they follow its light or dark theme."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.proteins.reference import level_of_mass, rama_grid, smooth_density

Array = NDArray[np.float64]
STATE_NAMES = ("coil", "helix", "strand")
MASSES = (0.999, 0.98, 0.8, 0.5, 0.2)  # probability inside each contour of the Ramachandran plot, outermost first


class Axes:
    """A frame with ticks that maps data to SVG coordinates.

    Args:
        x, y: ranges of the data. size: width and height in SVG units.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], size: tuple[int, int] = (460, 340)) -> None:
        self.x, self.y, self.size = x, y, size
        self.left, self.right, self.top, self.bottom = 58, size[0] - 26, 12, size[1] - 50
        self.parts: list[str] = []

    def px(self, value: float) -> float:
        """Horizontal position of a value."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, value: float) -> float:
        """Vertical position of a value."""
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)

    def add(self, element: str) -> None:
        """Append an element, drawn over the ones before."""
        self.parts.append(element)

    def line(self, x: Sequence[float] | Array, y: Sequence[float] | Array, css: str) -> None:
        """A polyline."""
        self.add(f'<path class="{css}" d="{self._path(x, y)}"/>')

    def band(
        self, x: Sequence[float] | Array, low: Sequence[float] | Array, high: Sequence[float] | Array, css: str
    ) -> None:
        """The area between two curves."""
        self.add(f'<path class="{css}" d="{self._path([*x, *list(x)[::-1]], [*low, *list(high)[::-1]])}Z"/>')

    def dot(self, x: float, y: float, css: str, title: str, radius: float = 4.5, chain: int | None = None) -> None:
        """A point with a tooltip; with ``chain``, a click shows that chain in the viewer."""
        data = "" if chain is None else f' data-chain="{chain}" tabindex="0" role="button"'
        self.add(
            f'<circle class="{css}" cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="{radius}"{data}>'
            f"<title>{escape(title)}</title></circle>"
        )

    def _path(self, x: Any, y: Any) -> str:
        return "M" + "L".join(f"{self.px(a):.1f} {self.py(b):.1f}" for a, b in zip(x, y, strict=True))

    def svg(
        self,
        label: str,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        percent: str = "",
    ) -> str:
        """The whole figure; ``percent`` names the axes ("x", "y", "xy") whose ticks are fractions."""

        def text(value: float, axis: str) -> str:
            return f"{100 * value:.0f} %" if axis in percent else f"{value:g}".replace("-", "\u2212")

        grid = []
        for value in x_ticks:
            at = self.px(value)
            grid.append(f'<path class="grid" d="M{at:.1f} {self.top}V{self.bottom}"/>')
            grid.append(
                f'<text class="tick" x="{at:.1f}" y="{self.bottom + 18}" text-anchor="middle">{text(value, "x")}</text>'
            )
        for value in y_ticks:
            at = self.py(value)
            grid.append(f'<path class="grid" d="M{self.left} {at:.1f}H{self.right}"/>')
            grid.append(
                f'<text class="tick" x="{self.left - 8}" y="{at + 4:.1f}" text-anchor="end">{text(value, "y")}</text>'
            )
        middle_x, middle_y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        labels = (
            f'<text class="label" x="{middle_x:.0f}" y="{self.size[1] - 8}" '
            f'text-anchor="middle">{escape(x_label)}</text>'
            f'<text class="label" transform="translate(15 {middle_y:.0f}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
        width, height = self.right - self.left, self.bottom - self.top
        place = f'x="{self.left}" y="{self.top}" width="{width}" height="{height}"'
        frame = f'<rect class="frame" {place}/>'
        return (
            f'<svg viewBox="0 0 {self.size[0]} {self.size[1]}" role="img" aria-label="{escape(label)}">'
            f"{''.join(grid)}{''.join(self.parts)}{frame}{labels}</svg>"
        )


def ramachandran_contours(reference: Mapping[str, Any]) -> list[tuple[float, list[Array]]]:
    """Regions of highest density of (phi, psi): for each mass in `MASSES`, closed curves (n, 2) in degrees."""
    from contourpy import contour_generator

    counts = rama_grid(dict(reference))
    density = smooth_density(counts)
    bins = len(density)
    wrapped = np.pad(density, 1, mode="wrap")
    centers = (np.arange(-1, bins + 1) + 0.5) * (360 / bins) - 180
    walled = np.pad(wrapped, 1)  # zeros around, so that every curve closes
    at = np.concatenate([[centers[0] - 1e-3], centers, [centers[-1] + 1e-3]])
    contours = contour_generator(at, at, walled.T)  # contourpy's rows are y = psi
    return [(mass, [np.asarray(c) for c in contours.lines(level_of_mass(density, mass, counts))]) for mass in MASSES]


def ramachandran_plot(
    phi: Array, psi: Array, states: NDArray[np.int64], names: Sequence[str], reference: Mapping[str, Any] | None
) -> str:
    """Samples' torsions (degrees, with the residue's state and a tooltip each) over the reference's density."""
    axes = Axes((-180, 180), (-180, 180), (460, 440))
    if reference is not None:
        box = f'x="{axes.left}" y="{axes.top}" width="{axes.right - axes.left}" height="{axes.bottom - axes.top}"'
        axes.add(f'<clipPath id="rama-clip"><rect {box}/></clipPath><g clip-path="url(#rama-clip)">')
        for mass, curves in ramachandran_contours(reference):
            path = "".join(axes._path(c[:, 0], c[:, 1]) + "Z" for c in curves)
            title = f"region of {100 * mass:g} % of the training residues"
            axes.add(f'<path class="density" fill-rule="evenodd" d="{path}"><title>{title}</title></path>')
        axes.add("</g>")
    radius = 2.6 if len(phi) < 2500 else 1.6
    for a, b, state, name in zip(phi, psi, states, names, strict=True):
        title = f"{name}, {STATE_NAMES[state]}: φ {a:.0f}°, ψ {b:.0f}°"
        axes.dot(float(a), float(b), f"residue {STATE_NAMES[state]}", title, radius)
    ticks = (-180, -120, -60, 0, 60, 120, 180)
    return axes.svg("Ramachandran plot", "φ (degrees)", "ψ (degrees)", ticks, ticks)


def content_plot(helix: Array, strand: Array, names: Sequence[str], reference: Mapping[str, Any] | None) -> str:
    """Share of helix against share of strand, one dot per sample, over the training chains."""
    axes = Axes((0, 1), (0, 0.8), (460, 440))
    if reference is not None:
        bins = int(reference["content"]["bins"])
        counts = np.asarray(reference["content"]["counts"], float)
        for i, j in zip(*np.nonzero(counts), strict=True):
            if (j + 1) / bins > 0.801:
                continue
            x, y = axes.px(i / bins), axes.py((j + 1) / bins)
            width, height = axes.px(1 / bins) - axes.px(0), axes.py(0) - axes.py(1 / bins)
            share = math.sqrt(counts[i, j] / counts.max())
            axes.add(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height - 1:.1f}" '
                f'fill-opacity="{0.06 + 0.5 * share:.2f}"><title>{int(counts[i, j])} training chains</title></rect>'
            )
    for k, (a, b, name) in enumerate(zip(helix, strand, names, strict=True)):
        title = f"{name}: {100 * a:.0f} % helix, {100 * b:.0f} % strand"
        axes.dot(float(a), float(min(b, 0.8)), "sample", title, chain=k)
    ticks = (0, 0.2, 0.4, 0.6, 0.8)
    return axes.svg("Secondary structure content", "helix", "strand", (*ticks, 1.0), ticks, percent="xy")


def ca_plot(steps: Array, reference: Mapping[str, Any] | None) -> str:
    """Histogram of CA-CA distances of neighbours, samples as bars, training set as a line, 3.8 +- 0.15 A shaded."""
    low, high, bins = (3.3, 4.3, 100) if reference is None else reference["ca_ca"]["range"]
    edges = np.linspace(low, high, int(bins) // 2 + 1)
    share = np.histogram(steps, edges)[0] / max(len(steps), 1)
    known = None
    if reference is not None:
        counts = np.asarray(reference["ca_ca"]["counts"], float)
        known = counts.reshape(-1, 2).sum(1) / (counts.sum() + reference["ca_ca"]["outside"])
    top = 1.12 * max(float(share.max(initial=0)), float(known.max()) if known is not None else 0, 0.05)
    axes = Axes((low, high), (0, top))
    axes.band([3.65, 3.95], [0, 0], [top, top], "goal")
    for a, b, value in zip(edges[:-1], edges[1:], share, strict=True):
        if value > 0:
            x, y = axes.px(a), axes.py(value)
            title = f"{a:.2f} to {b:.2f} Å: {100 * value:.1f} % of neighbours"
            axes.add(
                f'<rect class="bar" x="{x + 0.5:.1f}" y="{y:.1f}" width="{axes.px(b) - x - 1:.1f}" '
                f'height="{axes.bottom - y:.1f}"><title>{title}</title></rect>'
            )
    if known is not None:
        axes.line(np.repeat(edges, 2)[1:-1], np.repeat(known, 2), "trend")
    ticks = (3.4, 3.6, 3.8, 4.0, 4.2)
    return axes.svg("CA-CA distances", "Cα–Cα distance (Å)", "share of neighbours", ticks, _ticks(top, 4), percent="y")


def rg_plot(lengths: Array, rg: Array, names: Sequence[str], reference: Mapping[str, Any] | None) -> str:
    """Radius of gyration against length: samples over the fit to the training set and its spread."""
    low, high = max(0.0, 10 * math.floor(lengths.min() / 10 - 1)), 10 * math.ceil(lengths.max() / 10 + 1)
    x = np.linspace(max(low, 20), high, 40)
    bottom, top = 0.8 * float(rg.min()), 1.15 * float(rg.max())
    if reference is not None:
        a, b = reference["rg"]["trend"]
        trend = a * x**b
        spread = np.asarray(reference["rg"]["spread"])
        middle = spread[:, :2].mean(1)
        lower, upper = (np.interp(x, middle, spread[:, k]) * trend for k in (2, 4))
        bottom, top = min(bottom, 0.75 * float(trend.min())), max(top, 1.35 * float(trend.max()))
    axes = Axes((low, high), (math.floor(bottom), math.ceil(top)))
    if reference is not None:
        axes.band(x, np.maximum(lower, axes.y[0]), np.minimum(upper, axes.y[1]), "spread")
        axes.line(x, trend, "trend")
        for factor in (0.8, 1.2):
            axes.line(x, np.minimum(factor * trend, axes.y[1]), "trend dashed")
    for k, (n, r, name) in enumerate(zip(lengths, rg, names, strict=True)):
        axes.dot(float(n), float(r), "sample", f"{name}: {int(n)} residues, {r:.1f} Å", chain=k)
    step = 10 if high - low <= 80 else 20 if high - low <= 180 else 50
    x_ticks = np.arange(math.ceil(low / step) * step, high + 1, step).tolist()
    y_ticks = np.arange(2 * math.ceil(axes.y[0] / 2), axes.y[1] + 1e-6, 2 if axes.y[1] - axes.y[0] < 16 else 4).tolist()
    return axes.svg("Radius of gyration", "residues", "radius of gyration (Å)", x_ticks, y_ticks)


def strip(letters: str, longest: int) -> str:
    """Secondary structure along one chain: letters over "-HE" as boxes, arrows and a thin line."""
    parts = [f'<path class="coil" d="M0 9H{len(letters)}" stroke-width="2"/>']
    begin = 0
    for i in range(1, len(letters) + 1):
        if i < len(letters) and letters[i] == letters[begin]:
            continue
        a, b, kind = begin, i, letters[begin]
        title = f"<title>{'helix' if kind == 'H' else 'strand'} {a + 1} to {b}</title>"
        if kind == "H":
            parts.append(f'<rect class="helix" x="{a}" y="2" width="{b - a}" height="14" rx="0.6">{title}</rect>')
        elif kind == "E":
            neck = max(b - 2, a)
            shape = f"M{a} 5H{neck}V1L{b} 9L{neck} 17V13H{a}Z"
            parts.append(f'<path class="strand" d="{shape}">{title}</path>')
        begin = i
    head = f'<svg class="strip" viewBox="0 0 {longest} 18" preserveAspectRatio="none" role="img"'
    return f'{head} aria-label="{letters}">{"".join(parts)}</svg>'


def _ticks(top: float, count: int) -> list[float]:
    """At most ``count`` + 1 round values from 0."""
    raw = top / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw)
    return [round(i * step, 10) for i in range(int(top / step) + 1)]

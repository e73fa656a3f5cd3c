"""Plots of sets of crystals: histograms beside a reference, powder patterns, cells as pictures."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.common.plots import new_figure
from manifoldflow.tasks.common.report import PALETTE, style_axes
from manifoldflow.tasks.crystals.elements import COVALENT, SYMBOLS
from manifoldflow.tasks.crystals.powder import pattern
from manifoldflow.tasks.crystals.structure import Crystal

__all__ = ["draw_cell", "histogram", "powder_plot", "shares_plot"]

TAKEN = 0.7
"""Closest contact over the sum of radii below which atoms overlap."""
SMALL = (3.9, 2.6)


def histogram(
    axes: Any,
    values: Sequence[float] | NDArray[np.float64],
    label: str,
    reference: Sequence[float] | NDArray[np.float64] | None = None,
    mark: float | None = None,
) -> None:
    """Shares of values in bins, those of a reference behind them; NaN is left out and what lies far out is in the last bins.

    Args:
        axes: to draw on.
        values: one a crystal.
        label: of the axis.
        reference: one a reference crystal.
        mark: a vertical line at a bound.
    """
    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    both = [x] + ([] if reference is None else [np.asarray(reference, float)])
    every = np.concatenate(both) if len(x) else np.zeros(1)
    every = every[np.isfinite(every)]
    low, high = np.percentile(every, [0.5, 99.5])
    # Values that are one but for rounding get bins that can be told apart.
    pad = 0.05 * (high - low) if high - low > 1e-4 * max(abs(high), 1.0) else 0.25 * max(abs(high), 1.0)
    edges = np.linspace(low - pad, high + pad, 25)

    def counted(some: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.clip(some[np.isfinite(some)], edges[0], edges[-1] - 1e-9)
        return np.histogram(inside, edges)[0] / max(len(inside), 1)

    if reference is not None:
        axes.stairs(counted(both[1]), edges, fill=True, color=PALETTE["reference"], alpha=0.35, label="reference")
    axes.stairs(counted(x), edges, color=PALETTE["accent"], linewidth=1.8, label="these")
    if mark is not None and edges[0] < mark < edges[-1]:
        axes.axvline(mark, color=PALETTE["warn"], linewidth=1.2, linestyle="--")
    axes.set_xlabel(label)
    axes.set_ylabel("share")
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    if reference is not None:
        axes.legend()
    style_axes(axes)


def shares_plot(
    axes: Any, names: Sequence[str], label: str, reference: Sequence[str] | None = None, most: int = 14
) -> None:
    """Bars of the most frequent names, beside those of a reference."""
    counts = Counter(names)
    total = max(sum(counts.values()), 1)
    shown = [name for name, _ in counts.most_common(most)]
    place = np.arange(len(shown))
    width = 0.42 if reference is not None else 0.7
    shift = width / 2 if reference is not None else 0
    axes.bar(place - shift, [counts[n] / total for n in shown], width, color=PALETTE["accent"], label="these")
    if reference is not None:
        known = Counter(reference)
        whole = max(sum(known.values()), 1)
        axes.bar(
            place + shift,
            [known[n] / whole for n in shown],
            width,
            color=PALETTE["reference"],
            alpha=0.6,
            label="reference",
        )
        axes.legend()
    axes.set_xticks(
        place,
        shown,
        rotation=55 if max(map(len, shown), default=0) > 2 else 0,
        ha="right" if max(map(len, shown), default=0) > 2 else "center",
    )
    axes.set_xlabel(label + (f" ({len(counts)} in all)" if len(counts) > most else ""))
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    style_axes(axes)
    axes.grid(False, axis="x")


def powder_plot(crystals: Sequence[Crystal], labels: Sequence[str]) -> Any:
    """Powder patterns above one another, in the order given; the last one, of two or more, is what they are compared with."""
    plot = new_figure(5.4, 1.1 + 0.75 * len(crystals), extra="crystals")
    axes = plot.subplots()
    colors = [PALETTE[name] for name in ("accent", "second", "third", "soft")]
    for i, (crystal, label) in enumerate(zip(crystals, labels, strict=True)):
        made = pattern(crystal)
        base = 1.15 * (len(crystals) - 1 - i)
        is_last = i == len(crystals) - 1 and i > 0
        color = PALETTE["reference"] if is_last else colors[i % len(colors)]
        axes.plot(made.angle, base + made.intensity, color=color, linewidth=1.3, label=label)
        label += "" if len(made.lines) else " (no lines: an impossible cell)"
        axes.text(made.angle[-1], base + 0.82, label, ha="right", fontsize=9.5, color=PALETTE["ink"])
    axes.set_xlabel("2θ (degrees, Cu Kα)")
    axes.set_yticks([])
    axes.set_xlim(10, 90)
    axes.set_ylim(-0.05, 1.15 * len(crystals))  # also where a pattern is flat
    style_axes(axes)
    axes.spines["left"].set_visible(False)
    return plot


_TURN = np.array([[0.93, -0.14, 0.34], [0.36, 0.45, -0.82], [-0.03, 0.88, 0.47]])


def jmol_colors(species: NDArray[np.int64]) -> list[Any]:
    """Colours of elements, those of the 3D views."""
    from ase.data.colors import jmol_colors as colors

    return [tuple(colors[min(int(s) + 1, len(colors) - 1)]) for s in species]


def draw_cell(axes: Any, crystal: Crystal) -> None:
    """One cell as a picture: spheres by depth, the box behind them, atoms on all faces."""
    turn = _TURN / np.linalg.norm(_TURN, axis=1, keepdims=True)
    shifts = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    frac = np.concatenate([crystal.frac + shift for shift in shifts])
    species = np.tile(crystal.species, len(shifts))
    inside = (frac <= 1 + 1e-3).all(1)
    frac, species = frac[inside], species[inside]
    middle = np.full(3, 0.5) @ crystal.cell
    place = (frac @ crystal.cell - middle) @ turn.T
    corner = (shifts @ crystal.cell - middle) @ turn.T
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(shifts[a] - shifts[b]).sum() == 1:
                axes.plot(corner[[a, b], 0], corner[[a, b], 1], color=PALETTE["soft"], linewidth=0.8, zorder=0)
    order = place[:, 2].argsort()
    reach = max(np.abs(corner[:, :2]).max(), np.abs(place[:, :2]).max()) + 0.9
    size = axes.get_window_extent().width / axes.figure.dpi * 72 / (2 * reach)  # points an angstrom
    axes.scatter(
        place[order, 0],
        place[order, 1],
        s=(0.8 * COVALENT[species[order]] * size) ** 2,
        c=jmol_colors(species[order]),
        edgecolors=PALETTE["ink"],
        linewidths=0.5,
    )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.axis("off")


def element_names(crystals: Sequence[Crystal]) -> list[str]:
    """The element of every atom."""
    return [SYMBOLS[s] for crystal in crystals for s in crystal.species.tolist()]

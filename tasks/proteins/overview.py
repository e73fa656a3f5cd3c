"""One picture of a set of backbones: ribbons, torsions, structure content, sizes and key numbers."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manifoldflow.files import atomic
from manifoldflow.tasks.common.tables import wilson
from manifoldflow.tasks.proteins import metrics, ribbon
from manifoldflow.tasks.proteins.plots import ramachandran_contours

if TYPE_CHECKING:
    from manifoldflow.tasks.proteins.report import Measured

INK, SOFT, RULE, ACCENT, REFERENCE = "#17202e", "#5b6778", "#dfe4ec", "#4450c7", "#6b7c93"
SHOWN = 8


def draw_overview(m: "Measured", out_png: str | Path, title: str) -> Path:
    """Draw and write the picture, atomically; see `manifoldflow.tasks.proteins.report.write_overview`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(len(m.names), SHOWN)
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(14, 2.1 + 2.75 * rows + 3.75), facecolor="white")
    FigureCanvasAgg(figure)
    height = figure.get_size_inches()[1]
    top = 1 - 0.95 / height
    split = 4.55 / height
    figure.text(0.035, 1 - 0.42 / height, title, fontsize=21, fontweight="bold", color=INK, va="center")
    lengths = m.table["length"].astype(int)
    more = f", the first {count} shown" if len(m.names) > count else ""
    line = f"{len(m.names)} backbones of {lengths.min()} to {lengths.max()} residues{more}, coloured by secondary structure"
    figure.text(0.035, 1 - 0.76 / height, line, fontsize=12, color=SOFT, va="center")
    grid = figure.add_gridspec(rows, columns, left=0.025, right=0.975, top=top, bottom=split, wspace=0.03, hspace=0.06)
    _ribbons(figure, grid, m, count, columns, rows)
    lower = figure.add_gridspec(
        1,
        4,
        left=0.055,
        right=0.975,
        top=split - 0.55 / height,
        bottom=0.62 / height,
        wspace=0.3,
        width_ratios=[1, 1, 1, 1.25],
    )
    _torsions(figure.add_subplot(lower[0]), m)
    _content(figure.add_subplot(lower[1]), m)
    _sizes(figure.add_subplot(lower[2]), m)
    _numbers(figure.add_subplot(lower[3]), m)
    out = Path(out_png)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as fresh:
        figure.savefig(fresh, dpi=130, format="png")
    return out


def _ribbons(figure: Any, grid: Any, m: "Measured", count: int, columns: int, rows: int) -> None:
    size = (430, 345)
    paths = [m.path(i) for i in range(count)]
    # One scale for all, so that sizes compare; a very long chain may shrink the rest only so far.
    fits = [
        min(size[0] / 2 / (np.abs(p[:, 0]).max() + 2.5), size[1] / 2 / (np.abs(p[:, 1]).max() + 2.5)) for p in paths
    ]
    common = float(np.quantile(fits, 0.6))
    for i, path in enumerate(paths):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        _, states, joined = m.chain(i)
        shown = ribbon.drawn_states(states, joined)
        colors = np.array([ribbon.rgb(ribbon.COLORS[s]) for s in shown.tolist()])
        axes.imshow(ribbon.render(path, colors, size, min(common, fits[i])), interpolation="antialiased")
        axes.set_axis_off()
        axes.text(
            0.5,
            -0.01,
            f"{m.names[i]} · {len(states)} residues",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=10,
            color=SOFT,
        )


def _style(axes: Any, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=12.5, fontweight="bold", color=INK, loc="left", pad=9)
    axes.set_xlabel(x, fontsize=10.5, color=INK)
    axes.set_ylabel(y, fontsize=10.5, color=INK)
    axes.tick_params(labelsize=9.5, colors=SOFT, length=0)
    for side in axes.spines.values():
        side.set_color("#b9c2cf")


def _torsions(axes: Any, m: "Measured") -> None:
    if m.reference is not None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        for _, curves in ramachandran_contours(m.reference):
            if curves:
                path = Curve.make_compound_path(*[Curve(c, closed=True) for c in curves])
                axes.add_patch(PathPatch(path, facecolor=REFERENCE, alpha=0.19, linewidth=0))
    angles = metrics.torsions(m.coords, m.mask, m.residue_index)
    (phi, has_phi), (psi, has_psi) = angles["phi"], angles["psi"]
    valid = has_phi & has_psi
    x, y = (torch.rad2deg(a[valid]).numpy() for a in (phi, psi))
    colors = [ribbon.COLORS[s] for s in m.states[valid].tolist()]
    axes.scatter(x, y, s=7 if len(x) < 2500 else 3, c=colors, linewidths=0.2, edgecolors="white")
    axes.set(xlim=(-180, 180), ylim=(-180, 180), xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    _style(axes, "Torsions", "φ (degrees)", "ψ (degrees)")


def _content(axes: Any, m: "Measured") -> None:
    shown = range(min(len(m.names), 12))
    labels = [m.names[i].removeprefix("sample_") for i in shown]
    rows = [{k: float(m.table[k][i]) for k in ("helix", "strand", "coil")} for i in shown]
    if m.reference is not None:
        labels.append("training")
        rows.append({k: m.reference["per_chain"][k]["mean"] for k in ("helix", "strand", "coil")})
    place = np.arange(len(rows), dtype=float)
    place[len(shown) :] += 0.5
    left = np.zeros(len(rows))
    for code, kind in ((1, "helix"), (2, "strand"), (0, "coil")):
        width = np.array([row[kind] for row in rows])
        axes.barh(place, width, left=left, height=0.74, color=ribbon.COLORS[code], label=kind)
        left += width
    axes.set(
        xlim=(0, 1), ylim=(place[-1] + 0.6, -0.6), yticks=place, yticklabels=labels, xticks=[0, 0.25, 0.5, 0.75, 1]
    )
    axes.set_xticklabels(["0", "25", "50", "75", "100"])
    _style(axes, "Secondary structure", "% of residues: helix, strand, coil")
    for side in axes.spines.values():
        side.set_visible(False)


def _sizes(axes: Any, m: "Measured") -> None:
    lengths, rg = m.table["length"], m.table["rg"]
    x = np.linspace(max(20.0, lengths.min() - 12), lengths.max() + 12, 60)
    top = 1.15 * rg.max()
    if m.reference is not None:
        a, b = m.reference["rg"]["trend"]
        trend, spread = a * x**b, np.asarray(m.reference["rg"]["spread"])
        middle = spread[:, :2].mean(1)
        low, high = (np.interp(x, middle, spread[:, k]) * trend for k in (2, 4))
        top = max(top, 1.35 * trend.max())
        axes.fill_between(x, low, high, color=REFERENCE, alpha=0.18, linewidth=0)
        axes.plot(x, trend, color=REFERENCE, linewidth=1.8)
        for factor in (0.8, 1.2):
            axes.plot(x, factor * trend, color=REFERENCE, linewidth=1, linestyle=(0, (4, 4)))
    axes.scatter(lengths, rg, s=44, color=ACCENT, edgecolors="white", linewidths=1, zorder=3)
    axes.set(xlim=(x[0], x[-1]), ylim=(min(6.0, 0.8 * rg.min()), top))
    _style(axes, "Size against length", "residues", "radius of gyration (Å)")


def _numbers(axes: Any, m: "Measured") -> None:
    o, known = m.overall, (m.reference or {}).get("per_chain", {})

    def theirs(name: str) -> str:
        return f"{100 * known[name]['mean']:.1f} %" if name in known else "–"

    count = len(m.names)
    # Per chain, as the training set's numbers are.
    rows = [
        ("Cα–Cα 3.8 ± 0.15 Å", f"{100 * o['ca_ca_within']:.1f} %", theirs("ca_ca_within")),
        ("C–N 1.33 ± 0.15 Å", f"{100 * o['c_n_within']:.1f} %", theirs("c_n_within")),
        ("favoured torsions", f"{100 * np.nanmean(m.table['rama_favoured']):.1f} %", theirs("rama_favoured")),
        ("helix", f"{100 * m.table['helix'].mean():.1f} %", theirs("helix")),
        ("strand", f"{100 * m.table['strand'].mean():.1f} %", theirs("strand")),
        ("chains with a clash", _share(float(m.table["has_atom_clash"].mean()), count), theirs("has_atom_clash")),
        ("within 20 % of fit", _share(o["rg_follows_trend"], count) if "rg_follows_trend" in o else "–", "–"),
    ]
    if "pairwise_tm" in o:
        real = (m.reference or {}).get("pairwise_tm", {})
        rows.append(("pairwise TM-score", f"{o['pairwise_tm']:.2f}", f"{real['mean']:.2f}" if real else "–"))
    _style(axes, "Key numbers")
    axes.set(xlim=(0, 1), ylim=(len(rows) + 0.45, -0.75), xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    for x, text in ((0.76, "samples"), (1.0, "training")):
        axes.text(x, -0.35, text, ha="right", va="center", fontsize=9.5, color=SOFT)
    for i, (name, mine, real) in enumerate(rows):
        axes.axhline(i + 0.05, color=RULE, linewidth=0.9)
        axes.text(0.0, i + 0.55, name, ha="left", va="center", fontsize=10, color=INK)
        axes.text(0.76, i + 0.55, mine, ha="right", va="center", fontsize=10.5, fontweight="bold", color=INK)
        axes.text(1.0, i + 0.55, real, ha="right", va="center", fontsize=10, color=SOFT)


def _share(value: float, count: int) -> str:
    """A share and its 95 % interval, ``"12 % (2–47)"``."""
    low, high = wilson(value * count, count)
    return f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f})"

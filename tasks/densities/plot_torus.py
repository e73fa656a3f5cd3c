"""Ramachandran plots, curves and corner plots: tori, flat spaces, and the coordinates of anything else."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.tasks.densities.plot_style import (
    DATA,
    SAMPLES,
    Array,
    Panels,
    arrange,
    colour_bar,
    colour_range,
    density_colours,
    dot_style,
    grid_of_panels,
    new_figure,
    scale_of,
    shared_range,
    thin,
)


def plane_figure(
    space: Any,
    evaluate: Any,
    panels: Panels,
    points: Tensor | None,
    samples: Tensor | None,
    labels: Sequence[str] | None,
    rows: int,
) -> Any:
    is_torus = isinstance(space, mf.Torus)
    d = math.prod(space.event_shape)
    if is_torus:
        edges = [np.linspace(-space.period / 2, space.period / 2, rows + 1)] * d
    else:
        known = torch.cat(
            [thin(p) for p in (points, samples) if p is not None] or [torch.tensor([[-4.0] * d, [4.0] * d])]
        )
        low, high = known.amin(0).numpy(), known.amax(0).numpy()
        margin = 0.08 * (high - low).clip(1e-6)
        edges = [np.linspace(a - m, b + m, rows + 1) for a, b, m in zip(low, high, margin, strict=True)]
    scale, unit, per = _units(space)
    if d == 1:
        return _line(space, evaluate, panels, points, samples, labels, edges[0])
    names = list(labels or (("φ", "ψ") if unit == "°" else ("x₁", "x₂")))
    # Points of the grid include both edges, which are one line on a torus: contours then meet across the edge.
    x, y = np.meshgrid(edges[0], edges[1], indexing="xy")
    grid = torch.from_numpy(np.stack([x.ravel(), y.ravel()], -1))
    at = space.project(grid) if is_torus else grid
    images = [evaluate(function, at).reshape(x.shape) / math.log(10) for _, function in panels]
    limits = shared_range(images)
    plan = arrange(panels, points, samples)
    down, across = grid_of_panels(len(plan))
    figure = new_figure(4.4 * across + 1.0, 4.4 * down)
    levels = np.linspace(limits["vmin"], limits["vmax"], 25)
    all_axes = [figure.add_subplot(down, across, i + 1) for i in range(len(plan))]
    for index, (axes, panel) in enumerate(zip(all_axes, plan, strict=True)):
        if panel.log_density is not None:
            axes.contourf(scale * x, scale * y, images[index], levels=levels, cmap=limits["cmap"], extend="min")
        if panel.dots is not None:
            dots = thin(panel.dots)
            dots = space.log(torch.zeros_like(dots), dots) if is_torus else dots
            axes.scatter(*(scale * dots).T.numpy(), linewidths=0, **dot_style(len(panel.dots), panel.colour))
        _degree_axes(axes, (0, 1), space, edges, scale, unit)
        axes.set(
            xlabel=f"{names[0]}{_in(unit)}", ylabel=f"{names[1]}{_in(unit)}", aspect="equal" if is_torus else "auto"
        )
        axes.set_title(panel.title, fontsize=11)
    colour_bar(figure, scale_of(limits), all_axes, f"log₁₀ density per {per}", shrink=0.8, aspect=30)
    return figure


def _line(
    space: Any,
    evaluate: Any,
    panels: Panels,
    points: Tensor | None,
    samples: Tensor | None,
    labels: Sequence[str] | None,
    edges: Array,
) -> Any:
    scale, unit, _ = _units(space)
    grid = torch.linspace(float(edges[0]), float(edges[-1]), 721, dtype=torch.float64).unsqueeze(-1)
    figure = new_figure(6.5, 4.0)
    axes = figure.add_subplot()
    for given, colour, name in ((points, DATA, "data"), (samples, SAMPLES, "samples")):
        if given is not None:
            at = thin(given, 10**6)
            at = space.log(torch.zeros_like(at), at) if isinstance(space, mf.Torus) else at
            axes.hist(
                at[:, 0], bins=edges.tolist(), density=True, histtype="stepfilled", color=colour, alpha=0.35, label=name
            )
    for (name, function), colour in zip(panels, ("#3b0f70", "#de4968"), strict=False):
        axes.plot(grid[:, 0], np.exp(evaluate(function, space.project(grid))), color=colour, label=name)
    ticks = np.linspace(edges[0], edges[-1], 7)
    axes.set(xlabel=f"{(labels or ('x',))[0]}{_in(unit)}", ylabel="density", xlim=(edges[0], edges[-1]))
    axes.set_xticks(ticks, [f"{scale * v:.3g}".replace("-", "\u2212") for v in ticks])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _units(space: Manifold) -> tuple[float, str, str]:
    """Factor, sign and unit of area of the axes."""
    if isinstance(space, mf.Torus) and abs(space.period - 2 * math.pi) < 1e-6:
        return 180 / math.pi, "°", "square radian"
    return 1.0, "", "unit area"


def _in(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _degree_axes(
    axes: Any, which: Sequence[int], space: Manifold, edges: Sequence[Array], scale: float, unit: str
) -> None:
    for k in which:
        low, high = scale * edges[k][0], scale * edges[k][-1]
        (axes.set_xlim if k == 0 else axes.set_ylim)(low, high)
        if unit == "°":
            ticks = np.arange(-180, 181, 60)
            (axes.set_xticks if k == 0 else axes.set_yticks)(ticks, [str(t).replace("-", "\u2212") for t in ticks])
    axes.tick_params(labelsize=8)


def corner_figure(
    space: Manifold, points: Tensor | None, samples: Tensor | None, labels: Sequence[str] | None, title: str
) -> Any:
    """Marginals of single coordinates on the diagonal, of pairs beside it: data below, samples above."""
    known = [(p, colour) for p, colour in ((points, DATA), (samples, SAMPLES)) if p is not None]
    if not known:
        raise ValueError(f"a corner plot of {space} shows points: give points= or samples=")
    is_torus = isinstance(space, mf.Torus)
    scale, unit, _ = _units(space)

    def coordinates(x: Tensor) -> Array:
        x = thin(x, 200_000)
        x = space.log(torch.zeros_like(x), x) if is_torus else x
        return scale * x.flatten(1).numpy()

    flat = [(coordinates(p), colour) for p, colour in known]
    d = flat[0][0].shape[1]
    names = list(labels or [f"x{i + 1}" for i in range(d)])
    if is_torus:
        half = scale * space.period / 2  # type: ignore[attr-defined]
        ranges = [(-half, half)] * d
    else:
        joined = np.concatenate([f for f, _ in flat])
        spread = np.stack([np.quantile(joined, 0.001, 0), np.quantile(joined, 0.999, 0)], -1)
        margin = 0.06 * np.maximum(np.diff(spread, axis=1), 1e-6)
        ranges = [(a - m, b + m) for (a, b), m in zip(spread, margin[:, 0], strict=True)]
    least = min(len(f) for f, _ in flat)
    bins = (36 if least < 20_000 else 72) if is_torus else int(np.clip(round(1.5 * least ** (1 / 3)), 16, 72))
    size = 1.75 if d <= 5 else 1.35
    figure = new_figure(size * d + 0.8, size * d + 0.6)
    grid = figure.subplots(d, d, squeeze=False)
    for row in range(d):
        for column in range(d):
            axes = grid[row, column]
            if row == column:
                for values, colour in flat:
                    axes.hist(
                        values[:, row], bins, range=ranges[row], density=True, color=colour,
                        histtype="stepfilled" if colour == DATA else "step",
                        alpha=0.45 if colour == DATA else 1, linewidth=1.3,
                    )  # fmt: skip
                axes.set(xlim=ranges[row], yticks=[])
                axes.text(0.05, 0.93, names[row], transform=axes.transAxes, va="top", fontsize=10, fontweight="bold")
            else:
                wanted = DATA if row > column else SAMPLES
                found = [v for v, colour in flat if colour == wanted]
                if not found:
                    axes.axis("off")
                    continue
                _pair(axes, found[0][:, column], found[0][:, row], [ranges[column], ranges[row]], bins)
                axes.set(xlim=ranges[column], ylim=ranges[row])
            _corner_ticks(axes, row, column, d, unit)
    handles = _corner_handles(points, samples)
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9, title=title or None)
    figure.align_labels()
    return figure


def _pair(axes: Any, x: Array, y: Array, ranges: Any, bins: int) -> None:
    counts, x_edges, y_edges = np.histogram2d(x, y, bins, range=ranges, density=True)
    with np.errstate(divide="ignore"):
        image = np.log10(counts.T)
    low, high = colour_range(image)
    cmap = density_colours()
    axes.pcolormesh(
        x_edges, y_edges, np.ma.masked_invalid(image), cmap=cmap, vmin=low - 0.3, vmax=high, rasterized=True
    )


def _corner_ticks(axes: Any, row: int, column: int, d: int, unit: str) -> None:
    axes.tick_params(labelsize=7, length=2)
    if unit == "°":
        ticks = [-120, 0, 120]
        axes.set_xticks(ticks, [f"{t}°".replace("-", "\u2212") for t in ticks])
        if row != column:
            axes.set_yticks(ticks, [f"{t}°".replace("-", "\u2212") for t in ticks])
    if row < d - 1:
        axes.tick_params(labelbottom=False)
    if column > 0 or row == 0:
        axes.tick_params(labelleft=False)


def _corner_handles(points: Tensor | None, samples: Tensor | None) -> list[Any]:
    from matplotlib.patches import Patch

    handles = []
    if points is not None:
        handles.append(Patch(color=DATA, alpha=0.45, label=f"{len(points):,} data points (below the diagonal)"))
    if samples is not None:
        handles.append(Patch(fill=False, edgecolor=SAMPLES, label=f"{len(samples):,} samples (above the diagonal)"))
    return handles

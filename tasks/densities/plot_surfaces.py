"""Densities on the triangle of three probabilities and on meshes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifoldflow.manifolds.mesh import Mesh
from manifoldflow.tasks.densities.plot_style import (
    DATA,
    Array,
    Panels,
    arrange,
    colour_bar,
    dot_style,
    grid_of_panels,
    new_figure,
    scale_of,
    shared_range,
    thin,
)


def triangle_figure(
    space: Any,
    evaluate: Any,
    panels: Panels,
    points: Tensor | None,
    samples: Tensor | None,
    labels: Sequence[str] | None,
    rows: int,
) -> Any:
    from matplotlib.tri import Triangulation

    corner = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    i, j = (a.ravel() for a in np.meshgrid(np.arange(rows), np.arange(rows), indexing="ij"))
    up, down_ = i + j < rows, i + j < rows - 1
    middle = (
        np.concatenate([np.stack([i + 1 / 3, j + 1 / 3], -1)[up], np.stack([i + 2 / 3, j + 2 / 3], -1)[down_]]) / rows
    )
    p = torch.from_numpy(np.concatenate([middle, 1 - middle.sum(1, keepdims=True)], 1))
    node = np.full((rows + 1, rows + 1), -1)
    a, b = np.nonzero(np.add.outer(np.arange(rows + 1), np.arange(rows + 1)) <= rows)
    node[a, b] = np.arange(len(a))
    nodes = (np.stack([a, b, rows - a - b], -1) / rows) @ corner
    faces = np.concatenate([
        np.stack([node[i, j], node[i + 1, j], node[i, j + 1]], -1)[up],
        np.stack([node[i[down_] + 1, j[down_]], node[i[down_] + 1, j[down_] + 1], node[i[down_], j[down_] + 1]], -1),
    ])  # fmt: skip
    mesh = Triangulation(nodes[:, 0], nodes[:, 1], faces)
    # Per unit of the flat area that the eye sees, where the sum of the three is 1 and the sides are sqrt(2).
    change = space.log_volume_per_lebesgue(p).numpy() - 0.5 * math.log(3)
    images = [(evaluate(function, p) + change) / math.log(10) for _, function in panels]
    limits = shared_range(images) if images else {}
    plan = arrange(panels, points, samples)
    down, across = grid_of_panels(len(plan))
    figure = new_figure(4.2 * across + 0.8, 4.1 * down)
    names = list(labels or ("p₁", "p₂", "p₃"))
    all_axes = [figure.add_subplot(down, across, k + 1) for k in range(len(plan))]
    shown = None
    for index, (axes, panel) in enumerate(zip(all_axes, plan, strict=True)):
        if panel.log_density is not None:
            shown = axes.tripcolor(
                mesh, facecolors=images[index], edgecolors="face", linewidth=0.3, rasterized=True, **limits
            )
        if panel.dots is not None:
            at = thin(panel.dots).numpy() @ corner
            axes.scatter(*at.T, linewidths=0, zorder=3, **dot_style(len(at), panel.colour))
        outline = corner[[0, 1, 2, 0]]
        axes.plot(outline[:, 0], outline[:, 1], color="#222222", linewidth=0.9)
        for place, (label, shift) in enumerate(zip(names, ((-7, -7), (7, -7), (0, 8)), strict=True)):
            axes.annotate(
                label, corner[place], shift, textcoords="offset points", ha="center", va="center", annotation_clip=False
            )
        axes.set(aspect="equal", xlim=(-0.08, 1.08), ylim=(-0.08, 0.96))
        axes.axis("off")
        axes.set_title(panel.title, fontsize=11)
    if shown is not None:
        colour_bar(figure, shown, all_axes, "log₁₀ density per unit of flat area", shrink=0.8, aspect=30)
    return figure


def mesh_figure(space: Mesh, evaluate: Any, panels: Panels, points: Tensor | None) -> Any:
    """Faces coloured by the density at their middles, seen from two sides."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

    tables = space.tables(torch.float64)
    corners, normals = tables.corners.numpy(), tables.normals.numpy()
    images = [evaluate(function, tables.corners.mean(1)) / math.log(10) for _, function in panels]
    limits = shared_range(images, tables.areas.numpy()) if images else {}
    down = max(1, len(panels))
    figure = new_figure(9.0, 3.5 * down)
    low, high = corners.min((0, 1)), corners.max((0, 1))
    middle, half = (low + high) / 2, (high - low).max() / 2
    all_axes = []
    for row, image in enumerate(images or [None]):
        for column, azimuth in enumerate((-60, 120)):
            axes = figure.add_subplot(down, 2, 2 * row + column + 1, projection="3d", computed_zorder=False)
            axes.set_proj_type("ortho")
            frame = _view(30, azimuth)
            colour = np.full((len(corners), 4), 0.85) if image is None else scale_of(limits).to_rgba(image)
            colour[:, :3] *= (0.75 + 0.25 * np.abs(normals @ frame[2]))[:, None]
            colour[:, 3] = 1
            faces = Poly3DCollection(corners, facecolors=colour, edgecolors=colour, linewidths=0.3, zorder=0)
            faces.set_rasterized(True)
            axes.add_collection3d(faces)
            if points is not None and row == 0:
                at = thin(points, 1500).numpy()
                at = at[is_visible(at @ frame.T, corners @ frame.T, 1e-3 * half)]
                axes.scatter(*at.T, s=3, color=DATA, linewidths=0, depthshade=False, zorder=1)
            axes.set(**{f"{n}lim": (m - half, m + half) for n, m in zip("xyz", middle, strict=True)})
            axes.set_box_aspect((1, 1, 1), zoom=1.55)
            axes.view_init(30, azimuth)
            axes.set_axis_off()
            all_axes.append(axes)
            if column == 0 and row < len(panels):
                axes.set_title(panels[row][0], fontsize=11, loc="left")
    if images:
        colour_bar(figure, scale_of(limits), all_axes, "log₁₀ density per unit area", shrink=0.8, aspect=30)
    return figure


def is_visible(points: Array, corners: Array, margin: float) -> NDArray[np.bool_]:
    """Which points no triangle hides from an eye at z = infinity; points ``(N, 3)``, corners ``(F, 3, 3)``."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    area = np.where(np.abs(area) < 1e-300, 1e-300, area)
    free = np.ones(len(points), bool)
    for rows in np.array_split(np.arange(len(points)), max(1, len(points) * len(corners) // 2_000_000)):
        x, y, z = (points[rows, k : k + 1] for k in range(3))
        v = ((x - a[:, 0]) * (c[:, 1] - a[:, 1]) - (y - a[:, 1]) * (c[:, 0] - a[:, 0])) / area
        w = ((b[:, 0] - a[:, 0]) * (y - a[:, 1]) - (b[:, 1] - a[:, 1]) * (x - a[:, 0])) / area
        height = a[:, 2] + v * (b[:, 2] - a[:, 2]) + w * (c[:, 2] - a[:, 2])
        free[rows] = ~((v >= 0) & (w >= 0) & (v + w <= 1) & (height > z + margin)).any(1)
    return free


def _view(elevation: float, azimuth: float) -> Array:
    """Rows: right, up and towards the eye, for the angles (degrees) of ``view_init``."""
    e, a = math.radians(elevation), math.radians(azimuth)
    eye = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    return np.stack([right, np.cross(eye, right), eye])

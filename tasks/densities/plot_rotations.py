"""Densities of rotations: where the axes of the frame point."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_to_matrix, rotvec_to_matrix
from manifoldflow.tasks.densities.maps import dots_on_map, draw_map, map_grid
from manifoldflow.tasks.densities.plot_style import (
    Array,
    Panels,
    arrange,
    colour_bar,
    dot_style,
    new_figure,
    shared_range,
    thin,
)

LogDensity = Callable[[Tensor], Tensor]


def rotation_figure(
    space: Any, evaluate: Any, panels: Panels, points: Tensor | None, samples: Tensor | None, rows: int
) -> Any:
    """For each axis of the frame the marginal density of its direction, on a map; one row per density, one of dots."""
    is_quaternion = isinstance(space, mf.UnitQuaternion)

    def matrices(x: Tensor) -> Array:
        x = thin(x)
        return (quaternion_to_matrix(x) if is_quaternion else x).numpy()

    def density_of(function: LogDensity) -> Callable[[Array], Array]:
        def value(r: Array) -> Array:
            at = torch.from_numpy(r)
            return evaluate(function, matrix_to_quaternion(at) if is_quaternion else at)

        return value

    vectors, numbers, _ = map_grid(rows)
    images = []
    for _, function in panels:
        rotations, weights, width = weighted_rotations(density_of(function), 12 * rows**2)
        images.append([axis_density(rotations[:, :, k], weights, vectors, width) for k in range(3)])
    plan = arrange(panels, points, samples)
    figure = new_figure(11.5, 1.85 * len(plan) + 0.45)
    limits = shared_range([image for row in images for image in row]) if images else {}
    grid = figure.subplots(len(plan), 3, squeeze=False)
    shown = None
    for row, panel in enumerate(plan):
        dots = None if panel.dots is None else matrices(panel.dots)
        for k in range(3):
            axes = grid[row, k]
            if panel.log_density is None:
                draw_map(axes, labels=False)
            else:
                shown = draw_map(axes, images[row][k], numbers, labels=False, **limits)
            if dots is not None:
                dots_on_map(axes, dots[:, :, k], **dot_style(len(dots), panel.colour))
            if row == 0:
                axes.set_title(f"{'xyz'[k]} axis of the frame", fontsize=11)
            if k == 0:
                name = panel.title.replace(" · ", "\n")
                axes.text(-0.03, 0.5, name, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    if shown is not None:
        label = "log₁₀ density per steradian"
        colour_bar(figure, shown, grid[: len(panels)].ravel().tolist(), label, shrink=0.9, aspect=25)
    return figure


def spread_rotations(count: int) -> Array:
    """``count`` rotations spread evenly over SO(3), ``(count, 3, 3)``: the super-Fibonacci spiral (Alexa 2022)."""
    s = np.arange(count) + 0.5
    r, big = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / np.sqrt(2.0), 2 * np.pi * s / 1.533751168755204288118041
    q = np.stack([r * np.sin(alpha), r * np.cos(alpha), big * np.sin(beta), big * np.cos(beta)], -1)
    return quaternion_to_matrix(torch.from_numpy(q)).numpy()


def weighted_rotations(log_density: Callable[[Array], Array], budget: int) -> tuple[Array, Array, Array]:
    """Rotations, weights (sum 1) and cell sizes (radians) that stand for a density on SO(3).

    Starts from an even set and divides the cells that hold 99.5 % of the probability by eight, as long as the budget of
    evaluations allows it: narrow modes are resolved, empty space is not.
    """
    count = max(256, min(6000, budget // 3))
    rotations = spread_rotations(count)
    values, width = log_density(rotations), np.full(count, (8 * np.pi**2 / count) ** (1 / 3))
    left = budget - count
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], float)
    while True:
        log_mass = values + 3 * np.log(width)
        mass = np.exp(log_mass - log_mass.max())
        mass /= mass.sum()
        order = np.argsort(-mass)
        keep = int(np.searchsorted(np.cumsum(mass[order]), 0.995)) + 1
        split = order[:keep]
        split = split[width[split] > 0.03]  # finer than a pixel is no use
        if not len(split) or 8 * len(split) > left:
            return rotations, mass, width
        turns = rotvec_to_matrix(torch.from_numpy(corners[None] * width[split, None, None] / 4)).numpy()
        fresh = (rotations[split, None] @ turns).reshape(-1, 3, 3)
        left -= len(fresh)
        rest = np.setdiff1d(np.arange(len(values)), split)
        rotations = np.concatenate([rotations[rest], fresh])
        values = np.concatenate([values[rest], log_density(fresh)])
        width = np.concatenate([width[rest], np.repeat(width[split] / 2, 8)])


def axis_density(axis: Array, weights: Array, vectors: Array, width: Array) -> Array:
    """log10 of a kernel estimate on the sphere from weighted directions, von Mises-Fisher of the cell's size."""
    used = weights > 1e-3 * weights.max() / len(weights)
    axis, weights = axis[used].astype(np.float32), weights[used]
    kappa = (1 / np.maximum(0.75 * width[used], 0.03) ** 2).astype(np.float32)
    front = np.log(weights * kappa / (2 * np.pi * -np.expm1(-2 * kappa))).astype(np.float32)
    at = vectors.astype(np.float32)
    total = np.concatenate(
        [np.exp(kappa * (part @ axis.T - 1) + front).sum(1, dtype=np.float64) for part in np.array_split(at, 64)]
    )
    return np.log10(np.maximum(total, 1e-30))

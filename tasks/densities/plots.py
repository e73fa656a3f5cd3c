"""Pictures of densities: Mollweide map, Ramachandran plot, corner plot, axes of rotations, triangle, surface.

Every picture shows log10 of the density over the decades that matter, with the data as dots, and beside it, where they are
given, the density of a reference and samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.mesh import Mesh
from manifoldflow.tasks.densities.maps import dots_on_map, draw_map, map_grid
from manifoldflow.tasks.densities.plot_rotations import rotation_figure
from manifoldflow.tasks.densities.plot_style import (
    Array,
    Panels,
    arrange,
    colour_bar,
    dot_style,
    grid_of_panels,
    new_figure,
    pretty,
    shared_range,
    thin,
)
from manifoldflow.tasks.densities.plot_surfaces import mesh_figure, triangle_figure
from manifoldflow.tasks.densities.plot_torus import corner_figure, plane_figure

LogDensity = Callable[[Tensor], Tensor]


def density_figure(
    space: Manifold,
    log_density: LogDensity | None,
    *,
    points: Tensor | None = None,
    samples: Tensor | None = None,
    title: str = "",
    reference_log_density: LogDensity | None = None,
    reference_title: str = "reference",
    labels: Sequence[str] | None = None,
    earth: bool = True,
    resolution: int | None = None,
    batch: int = 8192,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A picture of a density, chosen by the manifold.

    ============================= =================================================================================
    Sphere(2)                     Mollweide map, with coastlines where global-land-mask is installed
    Torus(2), Torus(1)            filled contours in degrees (Ramachandran), a curve
    Torus(d), Euclidean(d), rest  corner plot of the coordinates: data below the diagonal, samples above
    SO3, UnitQuaternion           three maps: where each axis of the frame points
    Simplex(3)                    triangle; the density per unit of its flat area, whatever the metric
    Mesh                          the surface from two sides
    ============================= =================================================================================

    Args:
        space: the manifold.
        log_density: of points ``(N, *event)`` with respect to the Riemannian volume, in nats, such as ``flow.log_prob``;
            called on batches without gradients. May be None where only points are drawn (corner plots).
        points: data ``(N, *event)``.
        samples: of the model.
        title: of the first panel.
        reference_log_density: drawn beside it in the same colours.
        reference_title: of that panel.
        labels: names of the coordinates; ``phi``, ``chi1`` and the like are written in Greek.
        earth: whether the sphere is the earth, with coastlines.
        resolution: rows of pixels; by default 90 on the sphere (12,700 evaluations), 90 x 90 on a torus. For rotations
            the evaluations are at most 12 times its square (default 60).
        batch: rows per call.
        dtype: of the points that are handed to ``log_density``.

    Returns:
        A :class:`matplotlib.figure.Figure` with a canvas, ready for :func:`save_figure`.

    Raises:
        ValueError: nothing to draw, or points of another shape.
        ImportError: matplotlib is not installed.
    """
    wanted = f"({', '.join(map(str, ('N', *space.event_shape)))})"
    for name, given in (("points", points), ("samples", samples)):
        if given is not None and tuple(given.shape[1:]) != tuple(space.event_shape):
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(given.shape)}")
    panels = [(title or "density", log_density)] if log_density is not None else []
    if reference_log_density is not None:
        panels.append((reference_title, reference_log_density))
    if not panels and points is None and samples is None:
        raise ValueError("nothing to draw: give log_density, points or samples")

    def evaluate(function: LogDensity, at: Tensor) -> Array:
        parts = [_call(function, part) for part in at.to(dtype).split(batch)]
        return torch.cat(parts).double().numpy()

    labels = None if labels is None else [pretty(label) for label in labels]
    if isinstance(space, mf.Sphere) and space.dim == 2:
        return sphere_figure(evaluate, panels, points, samples, earth, resolution or 90)
    if isinstance(space, mf.SO3 | mf.UnitQuaternion):
        return rotation_figure(space, evaluate, panels, points, samples, resolution or 60)
    if isinstance(space, Mesh):
        return mesh_figure(space, evaluate, panels, points)
    if isinstance(space, mf.Simplex) and space.categories == 3:
        return triangle_figure(space, evaluate, panels, points, samples, labels, resolution or 120)
    if isinstance(space, mf.Torus | mf.Euclidean) and math.prod(space.event_shape) <= 2 and panels:
        return plane_figure(space, evaluate, panels, points, samples, labels, resolution or 90)
    return corner_figure(space, points, samples, labels, title)


@torch.no_grad()
def _call(function: LogDensity, x: Tensor) -> Tensor:
    return function(x).detach().cpu()


def sphere_figure(
    evaluate: Any, panels: Panels, points: Tensor | None, samples: Tensor | None, earth: bool, rows: int
) -> Any:
    vectors, numbers, _ = map_grid(rows)
    grid = torch.from_numpy(vectors)
    images = [evaluate(function, grid) / math.log(10) for _, function in panels]
    limits = shared_range(images) if images else {}
    plan = arrange(panels, points, samples)
    down, across = grid_of_panels(len(plan))
    figure = new_figure(6.2 * across + 0.4, (3.4 * down + 0.5) if across > 1 else 3.9)
    shown = None
    all_axes = [figure.add_subplot(down, across, i + 1) for i in range(len(plan))]
    for index, (axes, panel) in enumerate(zip(all_axes, plan, strict=True)):
        has_image = panel.log_density is not None
        drawn = draw_map(
            axes, images[index] if has_image else None, numbers, coast=earth, **(limits if has_image else {})
        )
        shown = drawn if drawn is not None else shown
        axes.set_title(panel.title, fontsize=11)
        if panel.dots is not None:
            dots_on_map(axes, thin(panel.dots).numpy(), **dot_style(len(panel.dots), panel.colour))
    if shown is not None:
        label = "log₁₀ density per steradian"
        colour_bar(
            figure, shown, all_axes[: len(images)], label, orientation="horizontal", shrink=0.5, aspect=40, pad=0.02
        )
    return figure

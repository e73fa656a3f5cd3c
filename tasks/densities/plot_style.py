"""What all pictures of densities share: colours and their limits, dots, panels."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifoldflow.tasks.common import plots

Array = NDArray[np.float64]
Panels = Sequence[tuple[str, Any]]
"""Titles and log-densities."""

DATA, SAMPLES = "#00a7c4", "#1f5fa8"
MOST_DOTS = 6000
MOST_DECADES, LEAST_DECADES = 4.0, 1.5
CARE = 0.998
"""Share of the probability that the colours tell apart; what is rarer gets the lightest one."""


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, its panels a little apart."""
    figure = plots.new_figure(width, height)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.1)
    return figure


def density_colours() -> Any:
    """From white to dark violet: perceptually even (magma, reversed, without its black end)."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    magma = colormaps["magma"](np.linspace(1, 0.12, 256))
    start = np.linspace(1, 0, 40)[:, None] ** 1.5
    magma[:40] = start * np.array([1, 1, 1, 1]) + (1 - start) * magma[:40]
    return LinearSegmentedColormap.from_list("density", magma)


def colour_range(log10: Array, area: Array | float = 1.0) -> tuple[float, float]:
    """Limits of the colours: from the level whose region holds 99.8 % of the probability to the top, at most 4 decades.

    Args:
        log10: of the density at points that stand for ``area`` each.
    """
    values = log10[np.isfinite(log10)]
    if not len(values):
        raise ValueError("the density is finite nowhere on the grid")
    mass = np.broadcast_to(np.asarray(area, float), log10.shape)[np.isfinite(log10)] * 10.0 ** (values - values.max())
    order = np.argsort(-values)
    inside = np.cumsum(mass[order]) / mass.sum()
    level = float(values[order][min(int(np.searchsorted(inside, CARE)), len(order) - 1)])
    top = float(values.max())
    low = max(level, top - MOST_DECADES)
    return (low, top) if top - low >= LEAST_DECADES else (top - LEAST_DECADES, top)


def shared_range(images: Sequence[Array], area: Array | float = 1.0) -> dict[str, Any]:
    limits = [colour_range(image, area) for image in images]
    top = max(high for _, high in limits)
    low = max(min(low for low, _ in limits), top - MOST_DECADES)
    return {"vmin": low, "vmax": top, "cmap": density_colours()}


def scale_of(limits: dict[str, Any]) -> Any:
    """What a colour bar shows where the picture itself is no single image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(limits["vmin"], limits["vmax"]), limits["cmap"])


def colour_bar(figure: Any, shown: Any, axes: Any, label: str, **options: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    bar = figure.colorbar(shown, ax=axes, extend="min", **options)
    bar.set_label(label, fontsize=9)
    bar.locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    bar.formatter = FuncFormatter(lambda v, _: f"{v:g}".replace("-", "\u2212"))
    bar.update_ticks()
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def thin(x: Tensor, most: int = MOST_DOTS) -> Tensor:
    """An even share of at most ``most`` rows."""
    x = x.detach().cpu().double()
    return x if len(x) <= most else x[torch.linspace(0, len(x) - 1, most).round().long()]


def dot_style(count: int, colour: str, size: float = 400.0) -> dict[str, Any]:
    """Smaller and paler the more there are."""
    area = float(np.clip(size / (2 * math.sqrt(max(count, 1))), 0.8, 6))
    return {"s": area, "color": colour, "alpha": 0.75 if count < 800 else 0.5}


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
        title: above it.
        log_density: painted, or None.
        dots: points ``(N, *event)``, or None, and their ``colour``.
    """

    title: str
    log_density: Any
    dots: Tensor | None
    colour: str = DATA


def arrange(panels: Panels, points: Tensor | None, samples: Tensor | None) -> list[Panel]:
    """Densities first, with the data as dots on the first of them, then samples. Data get a panel of their own where there is no
    density, or a fourth place to fill."""
    made = [Panel(name, function, None) for name, function in panels]
    with_own = points is not None and (not panels or (len(panels) > 1 and samples is not None))
    if points is not None and not with_own:
        made[0] = made[0]._replace(dots=points, title=f"{made[0].title} · {len(points):,} data points")
    if samples is not None:
        made.append(Panel(f"{len(samples):,} samples", None, samples, SAMPLES))
    if points is not None and with_own:
        made.append(Panel(f"{len(points):,} data points", None, points))
    return made


GREEK = {"phi": "φ", "psi": "ψ", "chi": "χ", "omega": "ω", "theta": "θ", "tau": "τ"}


def pretty(label: str) -> str:
    """``"chi1"`` as ``"χ₁"``; anything else as it is."""
    stem = label.rstrip("0123456789")
    if stem.lower() not in GREEK:
        return label
    return GREEK[stem.lower()] + label[len(stem) :].translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def grid_of_panels(count: int) -> tuple[int, int]:
    columns = count if count < 4 else 2
    return math.ceil(count / columns), columns

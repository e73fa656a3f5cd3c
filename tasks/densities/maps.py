r"""The Mollweide map: equal areas of the sphere are equal areas of the picture.

:math:`x = \frac{2\sqrt2}{\pi} \lambda \cos\theta, y = \sqrt2 \sin\theta` with :math:`2\theta + \sin 2\theta = \pi \sin\phi` for
longitude :math:`\lambda` and latitude :math:`\phi` (Snyder 1987, p. 249). The whole sphere is an ellipse of half axes
:math:`2\sqrt2` and :math:`\sqrt2`, of area :math:`4\pi`.
"""

import functools
import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WIDTH, HEIGHT = 2 * np.sqrt(2.0), np.sqrt(2.0)
"""Half axes of the map."""

COAST, GRID = "#4a4a4a", "#9a9a9a"
_THETA = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
_SINE = (2 * _THETA + np.sin(2 * _THETA)) / np.pi
_LATITUDE = np.arcsin(np.clip(_SINE, -1, 1))


def mollweide(lat: Any, lon: Any) -> tuple[Array, Array]:
    """Position on the map of latitudes and longitudes in degrees; longitudes are taken to [-180, 180)."""
    lat = np.asarray(lat, float)
    lon = np.asarray(lon, float)
    lon = np.where(np.abs(lon) <= 180, lon, (lon + 180) % 360 - 180)
    theta = np.interp(np.radians(lat), _LATITUDE, _THETA)
    return WIDTH / 180 * lon * np.cos(theta), HEIGHT * np.sin(theta)


def inverse_mollweide(x: Any, y: Any) -> tuple[Array, Array]:
    """Latitude and longitude in degrees of a position on the map; beyond its rim, those of the rim at the same height."""
    theta = np.arcsin(np.clip(np.asarray(y, float) / HEIGHT, -1, 1))
    lat = np.degrees(np.arcsin(np.clip((2 * theta + np.sin(2 * theta)) / np.pi, -1, 1)))
    lon = 180 * np.asarray(x, float) / (WIDTH * np.maximum(np.cos(theta), 1e-12))
    return lat, np.clip(lon, -180, 180)


def angles_to_vector(lat: Any, lon: Any) -> Array:
    """Unit vectors ``(..., 3)`` of degrees: x to (0, 0), y to (0, 90 E), z to the north pole."""
    lat, lon = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def vector_to_angles(x: Any) -> tuple[Array, Array]:
    """Latitude and longitude in degrees of vectors ``(..., 3)``."""
    x = np.asarray(x, float)
    return np.degrees(np.arctan2(x[..., 2], np.hypot(x[..., 0], x[..., 1]))), np.degrees(
        np.arctan2(x[..., 1], x[..., 0])
    )


def map_grid(rows: int) -> tuple[Array, NDArray[np.int64], tuple[int, int]]:
    """Pixels of a map, all of the same area.

    Returns:
        Unit vectors ``(N, 3)`` of the pixels inside the rim; for every pixel the number of its vector, ``(rows, 2 rows)``,
        with pixels outside standing for the nearest inside of their row (so that an interpolated rim has no halo); and the
        shape. Row 0 is the south, column 0 the west: draw with ``origin="lower"``.
    """
    y = ((np.arange(rows) + 0.5) / rows * 2 - 1) * HEIGHT
    x = ((np.arange(2 * rows) + 0.5) / rows - 1) * WIDTH
    inside = (x / WIDTH) ** 2 + (y[:, None] / HEIGHT) ** 2 <= 1
    number = np.cumsum(inside).reshape(inside.shape) - 1
    first, last = inside.argmax(1), inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
    column = np.clip(np.arange(2 * rows), first[:, None], last[:, None])
    grid_x, grid_y = np.broadcast_to(x, inside.shape)[inside], np.broadcast_to(y[:, None], inside.shape)[inside]
    vectors = angles_to_vector(*inverse_mollweide(grid_x, grid_y))
    return vectors, np.take_along_axis(number, column, 1), inside.shape


def draw_map(
    axes: Any,
    values: Array | None = None,
    numbers: NDArray[np.int64] | None = None,
    *,
    coast: bool = False,
    labels: bool = True,
    **image: Any,
) -> Any:
    """An image on the map with graticule, rim and, if asked for and at hand, coastlines.

    Args:
        axes: plain matplotlib axes.
        values: one per vector of :func:`map_grid`, or None for an empty map.
        numbers: the second thing that :func:`map_grid` returns.
        coast: draw the outlines of :func:`coastlines`.
        labels: degrees along the rim and the equator.
        image: for ``imshow``.

    Returns:
        The image, or None.
    """
    from matplotlib.patches import Ellipse

    rim = Ellipse((0, 0), 2 * WIDTH, 2 * HEIGHT, facecolor="none", edgecolor="#222222", linewidth=0.9, zorder=5)
    axes.add_patch(rim)
    shown = None
    if values is not None and numbers is not None:
        shown = axes.imshow(
            values[numbers],
            origin="lower",
            extent=(-WIDTH, WIDTH, -HEIGHT, HEIGHT),
            interpolation="bilinear",
            zorder=0,
            **image,
        )
        shown.set_clip_path(rim)
    fine = np.linspace(-180, 180, 181)
    for lat in range(-60, 61, 30):
        axes.plot(*mollweide(np.full_like(fine, lat), fine), color=GRID, linewidth=0.4, alpha=0.6, zorder=1)
    for lon in range(-120, 121, 60):
        axes.plot(*mollweide(fine / 2, np.full_like(fine, lon)), color=GRID, linewidth=0.4, alpha=0.6, zorder=1)
    for line in coastlines() if coast else ():
        axes.plot(*mollweide(line[:, 0], line[:, 1]), color=COAST, linewidth=0.45, zorder=2)
    if labels:
        for lat in (-60, -30, 0, 30, 60):
            x, y = mollweide(lat, -180)
            sign = "" if lat == 0 else "N" if lat > 0 else "S"
            axes.annotate(
                f"{abs(lat)}°{sign}", (float(x), float(y)), (-4, 0), textcoords="offset points",
                ha="right", va="center", fontsize=7, color="#555555",
            )  # fmt: skip
    axes.set(xlim=(-1.01 * WIDTH, 1.01 * WIDTH), ylim=(-1.02 * HEIGHT, 1.02 * HEIGHT), aspect="equal")
    axes.axis("off")
    return shown


def dots_on_map(axes: Any, vectors: Any, **style: Any) -> Any:
    """Points ``(N, 3)`` as dots."""
    x, y = mollweide(*vector_to_angles(vectors))
    return axes.scatter(x, y, linewidths=0, zorder=4, **style)


@functools.cache
def coastlines(cells: int = 60, shortest: int = 12) -> tuple[Array, ...]:
    """Outlines of land as lines of (latitude, longitude) in degrees; none where global-land-mask is not installed.

    The package's mask has 43,200 columns and takes 0.9 GB when it is imported. It is read here as a stream and averaged
    over blocks, at first use: about two seconds and 30 MB.

    Args:
        cells: size of a block in cells of 30 seconds of arc; 60 is half a degree.
        shortest: lines of fewer points are left out (islets, lakes).
    """
    found = importlib.util.find_spec("global_land_mask")
    if found is None or found.origin is None:
        return ()
    from contourpy import contour_generator

    file = Path(found.origin).parent / "globe_combined_mask_compressed.npz"
    with np.load(file) as arrays:
        lat = arrays["lat"].reshape(-1, cells).mean(1)
        lon = arrays["lon"].reshape(-1, cells).mean(1)
    land = 1 - _block_means(file, len(lat), len(lon), cells)  # the mask is True at sea
    order = np.argsort(lat)
    lines = contour_generator(lon, lat[order], land[order]).lines(0.5)
    return tuple(np.asarray(line)[:, ::-1] for line in lines if len(line) >= shortest)


def _block_means(file: Path, rows: int, columns: int, cells: int) -> Array:
    """Means over blocks of the array ``mask``, read one row of blocks at a time."""
    means = np.empty((rows, columns))
    with zipfile.ZipFile(file) as archive, archive.open("mask.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(stream)
        if by_column or dtype != np.bool_ or shape != (rows * cells, columns * cells):
            raise ValueError(f"{file}: the land mask has shape {shape} and type {dtype}, not what version 1.0 has")
        for row in range(rows):
            part = np.frombuffer(stream.read(cells * columns * cells), np.bool_)
            # Summing bytes along rows first: ten times faster than a mean over both axes of a view.
            means[row] = part.reshape(cells, -1).sum(0, dtype=np.uint8).reshape(columns, cells).sum(1, dtype=np.int64)
    return means / cells**2

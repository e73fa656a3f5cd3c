"""Backbones as ribbons: a smooth path with a cross-section for viewers, and a picture of it drawn without a display.

A path is an array (M, 9), one row per point along the chain: position (angstrom), unit vector across the ribbon,
half-width and half-thickness (angstrom), and the residue, as -(residue + 1) where a new piece of chain starts. The
browser's viewer (viewer.js) sweeps the same cross-section along the same path as `sweep` does here.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PER_RESIDUE = 8  # points of the path
AROUND = 16  # points of the cross-section
HELIX, STRAND = 1, 2
WIDTH = {0: 0.30, HELIX: 1.40, STRAND: 1.15}  # half-widths in angstrom
THICKNESS = {0: 0.30, HELIX: 0.24, STRAND: 0.24}
ARROW_WIDTH, ARROW_LENGTH = 1.95, 1.6  # half-width in angstrom, length in residues
COLORS = {0: "#98a4b3", HELIX: "#d8485f", STRAND: "#2a8fbd"}
RAINBOW = ("#3b56d9", "#1993c4", "#1fae7d", "#b7bd2c", "#f08c2c", "#d4374f")  # N to C


def rainbow(fraction: Array) -> Array:
    """Colours from blue (0, N terminus) to red (1, C terminus): (n,) -> (n, 3) in [0, 1]."""
    stops = np.array([rgb(color) for color in RAINBOW])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(fraction, at, stops[:, k]) for k in range(3)], -1)


def rgb(color: str) -> tuple[float, float, float]:
    """``#rrggbb`` as three numbers in [0, 1]."""
    return (int(color[1:3], 16) / 255, int(color[3:5], 16) / 255, int(color[5:7], 16) / 255)


def upright(coords: Array) -> Array:
    """The same backbone centred and turned so that its longest axis is x and its shortest points at the viewer.

    Args:
        coords: (N, 4, 3) angstrom, atoms N, CA, C, O.
    """
    ca = coords[:, 1] - coords[:, 1].mean(0)
    _, _, axes = np.linalg.svd(ca, full_matrices=False)
    if len(axes) < 3:
        axes = np.eye(3)
    axes[2] = np.cross(axes[0], axes[1])  # a rotation: mirror images of proteins are not proteins
    return (coords - coords[:, 1].mean(0)) @ axes.T


def drawn_states(states: NDArray[np.int64], joined: NDArray[np.bool_]) -> NDArray[np.int64]:
    """States as a cartoon shows them: helices and strands of fewer than three residues become coil."""
    result = states.copy()
    for begin, end in _runs(states, joined):
        if end - begin < 3:
            result[begin:end] = 0
    return result


def ribbon_path(coords: Array, states: NDArray[np.int64], joined: NDArray[np.bool_] | None = None) -> Array:
    """The ribbon of one backbone, (M, 9) as in the module's docstring.

    Args:
        coords: (N, 4, 3) angstrom, atoms N, CA, C, O.
        states: (N,) secondary structure, 0 coil, 1 helix, 2 strand.
        joined: (N-1,) whether residue i is bonded to i+1; default: all.
    """
    count = len(coords)
    joined = np.ones(max(count - 1, 0), bool) if joined is None else joined
    states = drawn_states(states, joined)
    starts = [0, *(np.flatnonzero(~joined) + 1).tolist(), count]
    pieces = [_piece(coords[a:b], states[a:b], a) for a, b in pairwise(starts) if b - a > 1]
    return np.concatenate(pieces) if pieces else np.zeros((0, 9))


def _runs(states: NDArray[np.int64], joined: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges of equal state along unbroken chain."""
    cut = np.flatnonzero((states[1:] != states[:-1]) | ~joined) + 1
    edges = [0, *cut.tolist(), len(states)]
    return list(pairwise(edges))


def _piece(coords: Array, states: NDArray[np.int64], first: int) -> Array:
    n = len(coords)
    is_strand, is_coil = (states == STRAND)[:, None], (states == 0)[:, None]
    points = coords[:, 1]
    for _ in range(2):  # takes the pleats out of strands
        points = np.where(is_strand, _smooth(points, 2), points)
    points = np.where(is_coil, _smooth(points, 4), points)
    side = _across(coords, points, is_strand)
    u = np.linspace(0, n - 1, (n - 1) * PER_RESIDUE + 1)
    position = _catmull_rom(points, u)
    tangent = _unit(np.gradient(position, axis=0))
    along = np.stack([np.interp(u, np.arange(n), side[:, k]) for k in range(3)], -1)
    along = _unit(along - (along * tangent).sum(-1, keepdims=True) * tangent)
    width, thickness = _cross_section(states, u)
    residue = np.clip(np.floor(u + 0.5), 0, n - 1) + first
    path = np.concatenate([position, along, np.stack([width, thickness, residue], -1)], -1)
    head, tail = _cap(path[0], -tangent[0]), _cap(path[-1], tangent[-1])[::-1]
    path = np.concatenate([head, path, tail])
    path[0, 8] = -(first + 1)
    return path


def _smooth(x: Array, weight: float) -> Array:
    """(x[i-1] + weight x[i] + x[i+1]) / (weight + 2); the ends stay."""
    result = x.copy()
    result[1:-1] = (x[:-2] + weight * x[1:-1] + x[2:]) / (weight + 2)
    return result


def _across(coords: Array, points: Array, is_strand: NDArray[np.bool_]) -> Array:
    """Direction across the ribbon at each residue: the carbonyl's, along a helix and in the plane of a sheet."""
    tangent = _unit(np.gradient(points, axis=0))
    side = coords[:, 3] - coords[:, 2]
    side = _unit(side - (side * tangent).sum(-1, keepdims=True) * tangent)
    # Carbonyls of neighbours point to opposite sides in a strand; the ribbon has no front, so signs follow the first.
    turn = np.where((side[1:] * side[:-1]).sum(-1) < 0, -1.0, 1.0)
    side[1:] *= np.cumprod(turn)[:, None]
    side = _smooth(side, 2)
    for _ in range(2):
        side = np.where(is_strand, _smooth(side, 2), side)
    return _unit(side)


def _cross_section(states: NDArray[np.int64], u: Array) -> tuple[Array, Array]:
    """Half-width and half-thickness at the points u (in residues)."""
    here = states[np.clip(np.floor(u + 0.5), 0, len(states) - 1).astype(int)]
    width = np.select([here == HELIX, here == STRAND], [WIDTH[HELIX], WIDTH[0]], WIDTH[0])
    thickness = np.select([here == HELIX, here == STRAND], [THICKNESS[HELIX], THICKNESS[STRAND]], THICKNESS[0])
    box = np.ones(PER_RESIDUE + 1) / (PER_RESIDUE + 1)
    half = PER_RESIDUE // 2
    width, thickness = (np.convolve(np.pad(x, half, mode="edge"), box, "valid") for x in (width, thickness))
    for begin, end in _runs(states, np.ones(len(states) - 1, bool)):
        if states[begin] != STRAND:
            continue
        start, tip = begin - 0.5, end - 0.5
        base = tip - ARROW_LENGTH
        body = (u >= start) & (u < base)
        width = np.where(body, np.minimum(WIDTH[STRAND], WIDTH[0] + (u - start) * 1.7), width)
        head = (u >= base) & (u <= tip)
        width = np.where(head, 0.12 + (ARROW_WIDTH - 0.12) * (tip - u) / ARROW_LENGTH, width)
    return width, thickness


def _cap(row: Array, outward: Array) -> Array:
    """Three points that close the ribbon with a rounded end, from the outermost inwards."""
    rows = np.repeat(row[None], 3, 0)
    bulge = min(row[6], row[7])
    for k, (reach, scale) in enumerate(((1.0, 0.02), (0.87, 0.5), (0.5, 0.87))):
        rows[k, :3] += outward * bulge * reach
        rows[k, 6:8] = row[6:8] - bulge * (1 - scale)
    return rows


def _catmull_rom(points: Array, u: Array) -> Array:
    """A smooth curve through points 0 .. n-1, at the positions u in [0, n-1]."""
    ends = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    p = np.concatenate([ends[0][None], points, ends[1][None]])
    i = np.clip(np.floor(u).astype(int), 0, len(points) - 2)
    t = (u - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def sweep(path: Array) -> list[tuple[Array, Array, NDArray[np.int64]]]:
    """Surfaces of a path, one per piece: vertices (M, AROUND + 1, 3), normals of that shape, residues (M,).

    The cross-section is a superellipse: round where it is as thick as wide, close to a rectangle where it is flat.
    """
    starts = [*np.flatnonzero(path[:, 8] < 0).tolist(), len(path)]
    angle = np.linspace(0, 2 * np.pi, AROUND + 1)
    cos, sin = np.cos(angle), np.sin(angle)
    pieces = []
    for a, b in pairwise(starts):
        position, side, width, thickness = path[a:b, :3], path[a:b, 3:6], path[a:b, 6], path[a:b, 7]
        residue = path[a:b, 8].astype(np.int64)
        residue[0] = -residue[0] - 1
        tangent = _unit(np.gradient(position, axis=0))
        up = _unit(np.cross(tangent, side))
        power = np.clip(1 - (width / np.maximum(thickness, 1e-6) - 1) / 6, 0.55, 1)[:, None]
        x, y = _power(cos, power), _power(sin, power)
        nx, ny = _power(cos, 2 - power) * thickness[:, None], _power(sin, 2 - power) * width[:, None]
        vertex = position[:, None] + side[:, None] * (width[:, None] * x)[..., None]
        vertex = vertex + up[:, None] * (thickness[:, None] * y)[..., None]
        normal = _unit(side[:, None] * nx[..., None] + up[:, None] * ny[..., None])
        pieces.append((vertex, normal, residue))
    return pieces


def _power(x: Array, exponent: Array) -> Array:
    return np.sign(x) * np.abs(x) ** exponent


def render(path: Array, colors: Array, size: tuple[int, int], scale: float, supersample: int = 2) -> Array:
    """A picture of a ribbon, lit from above left, with outlines and fading with depth: (height, width, 4) in [0, 1].

    The surface is sampled more densely than the pixels and the nearest sample of each pixel is kept, so surfaces that
    cross come out right, which sorting whole faces cannot do.

    Args:
        path: (M, 9), see `ribbon_path`; x to the right, y up, z towards the viewer.
        colors: (residues, 3) in [0, 1].
        size: width and height in pixels. scale: pixels per angstrom.
    """
    width, height, zoom = size[0] * supersample, size[1] * supersample, scale * supersample
    depth, image = np.full(width * height, -np.inf), np.zeros((width * height, 3))
    reach = max(float(np.abs(path[:, 2]).max()), 1.0) if len(path) else 1.0
    for vertex, normal, residue in sweep(path):
        shade = _lit(normal, colors[residue][:, None], vertex[..., 2:] / reach)
        surface = np.concatenate([vertex, shade], -1)
        blocks = [surface[i : i + 17] for i in range(0, len(surface) - 1, 16)]  # each as dense as it needs
        points = np.concatenate([_refine(block, *_density(block, 1.25 * zoom)).reshape(-1, 6) for block in blocks])
        column = np.floor(width / 2 + zoom * points[:, 0]).astype(int)
        row = np.floor(height / 2 - zoom * points[:, 1]).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        points, pixel = points[inside], (row * width + column)[inside]
        order = np.argsort(points[:, 2], kind="stable")  # the last write of a pixel, the nearest, stays
        points, pixel = points[order], pixel[order]
        nearest = np.full(width * height, -np.inf)
        nearest[pixel] = points[:, 2]
        color = np.zeros((width * height, 3))
        color[pixel] = points[:, 3:]
        closer = nearest > depth
        depth[closer], image[closer] = nearest[closer], color[closer]
    alpha = np.isfinite(depth).reshape(height, width)
    z = np.where(alpha, depth.reshape(height, width), -1e3)
    edge = _outline(z, 1.6, supersample) & alpha
    picture = image.reshape(height, width, 3) * np.where(edge, 0.42, 1.0)[..., None]
    rgba = np.concatenate([picture * alpha[..., None], alpha[..., None]], -1)
    rgba = rgba.reshape(size[1], supersample, size[0], supersample, 4).mean((1, 3))
    rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
    return np.clip(rgba, 0, 1)


def _lit(normal: Array, base: Array, depth: Array) -> Array:
    """Colour of a surface: sky and sun, a highlight, and paler towards the back (depth -1 to 1)."""
    sun, half = _unit(np.array([-0.45, 0.6, 0.75])), _unit(np.array([-0.45, 0.6, 1.75]))
    diffuse = np.maximum(normal @ sun, 0)[..., None]
    sky = 0.5 + 0.5 * normal[..., 1:2]
    shine = 0.28 * np.maximum(normal @ half, 0)[..., None] ** 28
    lit = base * (0.34 + 0.16 * sky + 0.62 * diffuse) + shine
    fog = 0.32 * np.clip(0.5 - 0.5 * depth, 0, 1) ** 1.3
    return np.minimum(lit, 1) * (1 - fog) + 0.93 * fog


def _density(grid: Array, zoom: float) -> tuple[int, int]:
    """How many times to divide the edges along and around so that none is longer than a pixel."""
    along, around = np.diff(grid[..., :2], axis=0), np.diff(grid[..., :2], axis=1)
    longest = (float(np.sqrt((d**2).sum(-1)).max()) for d in (along, around))
    first, second = (max(1, int(np.ceil(zoom * d))) for d in longest)
    return first, second


def _refine(grid: Array, along: int, around: int) -> Array:
    """Bilinear refinement of a grid (M, K, c)."""
    for axis, factor in ((0, along), (1, around)):
        n = grid.shape[axis]
        at = np.linspace(0, n - 1, (n - 1) * factor + 1)
        i = np.minimum(at.astype(int), n - 2)
        t = (at - i).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)).astype(np.float32)
        low, high = np.take(grid, i, axis), np.take(grid, i + 1, axis)
        grid = low.astype(np.float32) * (1 - t) + high.astype(np.float32) * t
    return grid


def _outline(z: Array, step: float, reach: int) -> NDArray[np.bool_]:
    """Pixels in front of something at least ``step`` angstrom behind, within ``reach`` pixels."""
    padded = np.pad(z, reach, constant_values=-1e3)
    rows, columns = z.shape
    shifts = [(0, reach), (2 * reach, reach), (reach, 0), (reach, 2 * reach)]
    return np.any([z - padded[i : i + rows, j : j + columns] > step for i, j in shifts], axis=0)

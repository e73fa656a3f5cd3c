"""Geometry that is measured where a manifold has no closed form of it: derivatives of exp, areas of geodesic spheres."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NODES = 1 << 14
"""Of the table of distances, evenly spaced: the density of the draws is constant between two of them, every mass is right."""


class Profile(NamedTuple):
    """How the manifold grows around a point.

    Attributes:
        reach: the largest distance.
        area: of the geodesic sphere of a radius, for an array of radii.
        dim: of what is measured.
    """

    reach: float
    area: Callable[[Any], Any]
    dim: int


def precise(*tensors: Tensor) -> list[Tensor]:
    """Tensors of any shape in float64, where the device has it: differences and determinants lose half of the digits."""
    return [t if t.device.type == "mps" else t.double() for t in tensors]


def frame_matrix(m: Any, x: Tensor) -> Tensor:
    """The velocities of the point along an orthonormal frame, ``(..., numbers of a point, dim)``."""
    return m.frame_moves(x)[0].flatten(-m.event_ndim).mT


def exp_matrix(m: Any, x: Tensor, u: Tensor) -> Tensor:
    """The differential of exp at u in orthonormal frames of x and of exp(x, u): ``(..., dim, dim)``, a row per vector of x."""
    basis = m.tangent_basis(x).movedim(-1 - m.tangent_ndim, 0)

    def move(at: Tensor) -> Tensor:
        return m.exp(x, at)

    batch = torch.broadcast_shapes(x.shape[: x.ndim - m.event_ndim], u.shape[: u.ndim - m.tangent_ndim])
    u = u.expand(batch + u.shape[u.ndim - m.tangent_ndim :])
    y, rows = u, []
    for e in basis:
        pushed: Any = torch.func.jvp(move, (u,), (e.expand_as(u).contiguous(),))
        y, moved = pushed
        rows.append(moved.flatten(-m.event_ndim))
    frame = frame_matrix(m, y)
    moved = torch.stack(rows, -1)  # (..., numbers, dim of x)
    return torch.linalg.solve(frame.mT @ frame, frame.mT @ moved).mT


def log_exp_volume(m: Any, x: Tensor, u: Tensor) -> Tensor:
    """log |det d exp_x| at u, ``(...)``."""
    return torch.linalg.slogdet(exp_matrix(m, *precise(x, u)))[1].to(torch.promote_types(x.dtype, u.dtype))


def volume_gradient(m: Any, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """See :meth:`Laws.volume_gradient`."""
    dtype = y.dtype
    x, u, y = precise(x, u, y)
    basis = m.tangent_basis(x).movedim(-1 - m.tangent_ndim, 0)
    u = u.expand(torch.broadcast_shapes(u.shape, basis.shape[1:])).contiguous()

    def volume(at: Tensor) -> Tensor:
        return m.log_exp_volume(x, at)

    along = torch.stack([torch.func.jvp(volume, (u,), (e.expand_as(u).contiguous(),))[1] for e in basis], -1)
    weight = torch.linalg.solve(exp_matrix(m, x, u), along.unsqueeze(-1)).squeeze(-1)
    there = m.tangent_basis(y)
    return (weight.reshape(weight.shape + (1,) * m.tangent_ndim) * there).sum(-1 - m.tangent_ndim).to(dtype)


def carry_noise(m: Any, x: Tensor, motion: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`Laws.carry_noise`; the velocity by central differences of fourth order."""
    dtype = u.dtype
    x, motion, u, z = precise(x, motion, u, z)
    n = m.tangent_ndim
    y = m.exp(x, u)
    squared = m.inner(x, motion, motion)
    speed = squared.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    speed = speed.reshape(speed.shape + (1,) * n)
    step = 1e-3

    def at(k: int) -> Tensor:
        there = m.exp(x, (k * step / speed) * motion)
        return m.log(y, m.exp(there, m.transport(x, u, there)))

    velocity = speed * (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    half = m.exp(x, 0.5 * u)  # transport takes the shortest way; the noise may be longer than that
    carried = m.transport(half, m.transport(x, z, half), y)
    return y.to(dtype), velocity.to(dtype), carried.to(dtype)


def pole_ladder(m: Any, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """Parallel transport of u ``(..., *tangent_event)`` by a rung of the pole ladder, exact on symmetric
    spaces (Pennec 2018), elsewhere of third order.

    u goes over in the length 0.1 and is scaled back.
    """
    n, dtype = m.tangent_ndim, u.dtype
    x, u, y = precise(x, u, y)
    length = m.inner(x, u, u).clamp_min(torch.finfo(u.dtype).tiny).sqrt()
    share = (0.1 / length).reshape(length.shape + (1,) * n)
    middle = m.exp(x, 0.5 * m.log(x, y))
    tip = m.exp(x, share * u)
    return (-m.log(y, m.exp(tip, 2 * m.log(tip, middle))) / share).to(dtype)


@functools.lru_cache(maxsize=32)
def measured_profile(m: Any) -> Profile:
    """Distances and volumes along some directions from the origin.

    Raises:
        ValueError: the manifold is not compact, or differs from direction to direction.
    """
    generator = torch.Generator().manual_seed(0)
    count = 8
    o = m.origin((count,), dtype=torch.float64)
    way = m.random_tangent(o, generator=generator)
    length = m.inner(o, way, way).sqrt()
    way = way / length.reshape(length.shape + (1,) * m.tangent_ndim)

    def is_shortest(r: float) -> Tensor:
        return (m.dist(o, m.exp(o, r * way)) - r).abs() < 1e-6 * (1 + r)

    low, high = 0.0, 1e-3
    while bool(is_shortest(high).all()):
        low, high = high, 2 * high
        if high > 1e4:
            raise ValueError(f"{m} has no largest distance; laws of the distance are for compact manifolds")
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if bool(is_shortest(middle).all()) else (low, middle)
    uneven = f"{m} differs from direction to direction, so a law of the distance has no common form"
    if bool(is_shortest(low + 1e-3 * (1 + low)).any()):
        raise ValueError(uneven)
    at = 0.5 * low * (1 - np.cos(math.pi * (np.arange(65) + 0.5) / 65))
    stretch = torch.stack([m.log_exp_volume(o, float(r) * way).exp() for r in at], -1)
    if float((stretch - stretch.mean(0)).abs().max()) > 1e-5:
        raise ValueError(uneven)
    smooth = np.polynomial.Chebyshev.fit(at, stretch.mean(0).numpy(), 48, domain=[0, low])
    front = math.log(2) + 0.5 * m.dim * math.log(math.pi) - math.lgamma(0.5 * m.dim)  # of the unit sphere of tangents

    def area(r: Any) -> Any:
        return math.exp(front) * r ** (m.dim - 1) * np.clip(smooth(r), 0, None)

    return Profile(low, area, m.dim)


def log_fisher_normalizer(m: Any, kappas: Tensor) -> Tensor:
    """See :meth:`Laws.log_fisher_normalizer`."""
    profile = m.radial_area()
    node, weight = np.polynomial.legendre.leggauss(400)
    out = []
    for kappa in kappas.double().flatten().tolist():
        half = 0.5 * _spread(profile, kappa)
        r = half * (1 + node)
        out.append(-math.log(float((half * weight * profile.area(r) * np.exp(-2 * kappa * np.sin(r / 2) ** 2)).sum())))
    return torch.tensor(out, dtype=torch.float64).reshape(kappas.shape)


def draw_distance(m: Any, kappa: float, place: Tensor) -> Tensor:
    """The distances at cumulative probabilities ``place`` of any shape, by table."""
    angle, cumulative = _table(m, kappa, place.device)
    # The cell is searched for, not computed: steps of equal probability would smear the last one over the whole tail.
    high = torch.searchsorted(cumulative, place, right=True).clamp(1, NODES - 1)
    below, above = cumulative[high - 1], cumulative[high]
    share = (place - below) / (above - below).clamp_min(torch.finfo(place.dtype).tiny)
    return torch.lerp(angle[high - 1], angle[high], share.clamp(0, 1))


def _spread(profile: Profile, kappa: float) -> float:
    """The radius that holds all of the law."""
    return min(profile.reach, 12 / math.sqrt(max(kappa, 1e-9)) * profile.dim**0.5)


@functools.lru_cache(maxsize=64)
def _table(m: Any, kappa: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Distances at equal steps and their cumulative probabilities, ``(NODES,)`` float64."""
    parts = 16  # of a step, for its mass
    profile = m.radial_area()
    angle = np.linspace(0, _spread(profile, kappa), parts * (NODES - 1) + 1)
    density = profile.area(angle) * np.exp(-2 * kappa * np.sin(angle / 2) ** 2)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])[::parts]
    return torch.from_numpy(angle[::parts].copy()).to(device), torch.from_numpy(mass / mass[-1]).to(device)

"""Checks that a manifold, a path or a network keeps its promises; raise ``AssertionError`` that says what failed and
by how much.

They are run on everything in this library and are meant for yours too: ``check_manifold(MyManifold())`` in one test.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.state import State, fields, like

LENGTHS = (0.0, 1e-8, 1e-4, 1e-2, 0.3, 1.0)
"""Lengths of the tangents that :func:`check_manifold` tries unless told otherwise."""


def point_gap(manifold: Manifold, x: Tensor, y: Tensor) -> float:
    """Largest coordinate difference of two sets of points ``(..., *event)``, blind to what is the same point (period, sign)."""
    x, y = x.detach().double(), y.detach().double()
    return float(manifold.coordinate_gap(x, y).max())


def pairs_at_length(
    manifold: Manifold, length: float, count: int = 32, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Points x and exp(x, u), ``(count, *event)``, with random tangents u of a length, made in float64 and then rounded."""
    generator = torch.Generator().manual_seed(seed)
    x = _points(manifold, count, generator)
    u = _tangents(manifold, x, generator)
    u = u * _batch(length / manifold.inner(x, u, u).sqrt(), u)
    return x.to(dtype), manifold.exp(x, u).to(dtype)


def check_manifold(
    manifold: Manifold,
    *,
    dtype: torch.dtype = torch.float64,
    lengths: Sequence[float] = LENGTHS,
    tolerance: float | None = None,
    count: int = 32,
    step: float = 1e-5,
    transforms: bool = True,
    compile: bool = False,
) -> None:
    """Check every method of a manifold against the identities that define it.

    Shapes; exp(x, log(x, y)) = y; log tangent; dist = |log|, symmetric; transport isometric, undone by the way back;
    the basis orthonormal; geodesics with the right ends, constant speed and the stated velocity; finite gradients,
    also at y = x; projections that leave points alone.

    Args:
        manifold: what to check.
        dtype: precision of the points.
        lengths: of the tangents to try; go up to the injectivity radius (pi on a sphere).
        tolerance: largest error, in coordinates. Default 2e-6 in float32 and 1e-12 in float64, both for numbers of
        order 1.
        count: random pairs per length.
        step: of the central difference that checks velocities; larger where log is poor for close points.
        transforms: also check that vmap and jvp agree with plain calls.
        compile: also run under ``torch.compile(fullgraph=True)`` (``aot_eager``: graph capture, no C++ compiler).

    Raises:
        AssertionError: on the first broken promise.
    """
    tol = tolerance if tolerance is not None else (2e-6 if dtype == torch.float32 else 1e-12)
    # First, as random points are often made by projection.
    at = manifold.origin((count,), dtype=dtype)
    _small(
        point_gap(manifold, manifold.project(at), at),
        tol,
        f"{manifold}, {dtype}: project moves a point of the manifold",
    )
    for length in lengths:
        x, y = pairs_at_length(manifold, length, count, dtype)
        _check_pair(manifold, x, y, tol, f"{manifold}, {dtype}, length {length:g}")
    x, y = pairs_at_length(manifold, min(max(lengths), 1.0), count, dtype)
    _check_frames(manifold, x, y, tol, f"{manifold}, {dtype}")
    _check_geodesic(manifold, x, y, tol, step, f"{manifold}, {dtype}")
    if transforms:
        _check_transforms(manifold, x, y, tol, f"{manifold}, {dtype}")
    if compile:
        torch.compiler.reset()  # one closure compiled for many manifolds would reach the recompile limit

        def all_of_it(a: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
            u = manifold.log(a, b)
            return u, manifold.exp(a, u), manifold.geodesic(a, b, t)

        compiled = torch.compile(all_of_it, fullgraph=True, backend="aot_eager")
        log, back, (xt, _) = compiled(x, y, torch.full((count,), 0.3, dtype=dtype))
        _small((log - manifold.log(x, y)).abs().max(), tol, f"{manifold}: compiled log")
        _small(point_gap(manifold, back, y), tol, f"{manifold}: compiled exp")
        _small(point_gap(manifold, xt, manifold.geodesic(x, y, 0.3)[0]), tol, f"{manifold}: compiled geodesic")


def check_path(
    path: Any,
    manifold: Manifold,
    *,
    x0: Tensor | None = None,
    x1: Tensor | None = None,
    tolerance: float = 1e-6,
    step: float = 1e-5,
) -> None:
    """Check that a conditional path starts at x0, ends at x1 and that its velocity is the derivative of its points.

    Args:
        path: has ``bind(manifold)`` and ``sample(x0, x1, t) -> (x, t, velocity, ...)``.
        manifold: space of the path.
        x0, x1: end points in float64, ``(B, *event)``; random by default.
        tolerance: of the points.
        step: of the central difference; the derivative is checked to max(1e-5, 10 step^2) of the speed.

    Raises:
        AssertionError: on the first broken promise.
    """
    generator = torch.Generator().manual_seed(0)
    x0 = _points(manifold, 32, generator) if x0 is None else x0.double()
    x1 = manifold.exp(x0, _tangents(manifold, x0, generator)) if x1 is None else x1.double()
    bound = path.bind(manifold)
    batch = x0.shape[: x0.ndim - manifold.event_ndim]

    def at(t: float) -> Any:
        return bound.sample(x0, x1, torch.full(batch, t, dtype=torch.float64))

    _small(point_gap(manifold, at(0.0).x, x0), tolerance, "path: start x0")
    _small(point_gap(manifold, at(1.0).x, x1), tolerance, "path: end x1")
    for t in (0.1, 0.5, 0.9):
        here, after, before = at(t), at(t + step).x, at(t - step).x
        slope = (manifold.log(here.x, after) - manifold.log(here.x, before)) / (2 * step)
        speed = 1 + float(here.velocity.abs().max())
        _small(
            (slope - here.velocity).abs().max(),
            max(1e-5, 10 * step**2) * speed,
            f"path: velocity is not the derivative of x at t = {t}",
        )


def check_equivariance(
    function: Callable[[State], Any],
    state: State,
    *,
    spaces: Any,
    tolerance: float = 1e-4,
    count: int = 3,
    seed: int = 0,
) -> None:
    """Check that turning and shifting the input of ``function`` turns and shifts its output.

    Fields move as their spaces say (:meth:`Manifold.rotate`, :meth:`Manifold.translate`): rotations are turned from the left,
    3-vectors are turned and shifted, everything else must not change.
    Outputs are read with the spaces of the same fields (endpoint predictions).

    Args:
        function: state -> state.
        state: tensor or dict of tensors.
        spaces: manifold, or one per field.
        tolerance: largest absolute difference.
        count: random motions to try.
        seed: of the motions.

    Raises:
        AssertionError: if an output differs from the moved output.
    """
    generator = torch.Generator().manual_seed(seed)
    space_of, plain = fields(spaces), fields(function(state))
    for _ in range(count):
        motion = SO3().sample_uniform((), generator=generator), torch.randn(3, generator=generator)
        moved = fields(function(like({n: _move(v, space_of[n], *motion) for n, v in fields(state).items()}, state)))
        for name, value in plain.items():
            gap = point_gap(space_of[name], moved[name], _move(value, space_of[name], *motion))
            _small(gap, tolerance, f"equivariance of field {name!r}")


def _move(value: Tensor, space: Manifold, rotation: Tensor, shift: Tensor) -> Tensor:
    return space.translate(shift.to(value), space.rotate(rotation.to(value), value))


def _check_pair(m: Manifold, x: Tensor, y: Tensor, tol: float, name: str) -> None:
    u = m.log(x, y)
    assert m.exp(x, u).shape == x.shape, f"{name}: exp has shape {tuple(m.exp(x, u).shape)}, points {tuple(x.shape)}"
    assert m.dist(x, y).shape == x.shape[: x.ndim - m.event_ndim], f"{name}: dist has shape {tuple(m.dist(x, y).shape)}"
    _small(point_gap(m, m.exp(x, u), y), tol, f"{name}: exp(x, log(x, y)) - y")
    _small((m.to_tangent(x, u) - u).abs().max(), 2 * tol, f"{name}: log is not tangent")
    _small((m.dist(x, y) - m.inner(x, u, u).sqrt()).abs().max(), 2 * tol, f"{name}: dist - |log|")
    _small((m.dist(x, y) - m.dist(y, x)).abs().max(), 2 * tol, f"{name}: dist is not symmetric")
    _small(point_gap(m, m.project(x), x), tol, f"{name}: project moves a point of the manifold")
    for label, function in (
        ("exp", lambda a, b: m.exp(a, m.log(a, b).detach())),
        ("log", m.log),
        ("geodesic", lambda a, b: m.geodesic(a, b, 0.3)[0]),
    ):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        function(a, b).square().sum().backward()
        finite = all(bool(torch.isfinite(v.grad).all()) for v in (a, b) if v.grad is not None)
        assert finite, f"{name}: the gradient of {label} is not finite"


def _check_frames(m: Manifold, x: Tensor, y: Tensor, tol: float, name: str) -> None:
    basis = m.tangent_basis(x)
    batch = x.shape[: x.ndim - m.event_ndim]
    assert basis.shape[: len(batch) + 1] == (*batch, m.dim), f"{name}: tangent_basis has shape {tuple(basis.shape)}"
    first, at = len(batch), x.unsqueeze(len(batch)).unsqueeze(len(batch))
    gram = m.inner(at, basis.unsqueeze(first), basis.unsqueeze(first + 1))
    _small((gram - torch.eye(m.dim, dtype=x.dtype)).abs().max(), 5 * tol, f"{name}: tangent_basis is not orthonormal")
    u, v = basis.select(first, 0), m.log(x, y)
    moved_u, moved_v = m.transport(x, u, y), m.transport(x, v, y)
    _small(
        (m.inner(y, moved_u, moved_v) - m.inner(x, u, v)).abs().max(), 5 * tol, f"{name}: transport is not an isometry"
    )
    _small((m.transport(y, moved_u, x) - u).abs().max(), 5 * tol, f"{name}: transport back does not undo transport")
    _small((moved_v + m.log(y, x)).abs().max(), 5 * tol, f"{name}: transport of log(x, y) is not -log(y, x)")


def _check_geodesic(m: Manifold, x: Tensor, y: Tensor, tol: float, h: float, name: str) -> None:
    _small(point_gap(m, m.geodesic(x, y, 0.0)[0], x), tol, f"{name}: geodesic does not start at x0")
    _small(point_gap(m, m.geodesic(x, y, 1.0)[0], y), tol, f"{name}: geodesic does not end at x1")
    for t in (0.0, 0.25, 0.9, 1.0):
        xt, ut = m.geodesic(x, y, torch.full(x.shape[:1], t, dtype=x.dtype))
        _small(point_gap(m, m.interpolate(x, y, t), xt), tol, f"{name}: interpolate is not the point of geodesic")
        _small(
            (m.inner(xt, ut, ut).sqrt() - m.dist(x, y)).abs().max(),
            5 * tol,
            f"{name}: speed of the geodesic at t = {t}",
        )
        _small(
            (ut - (m.log(xt, y) - m.log(xt, x))).abs().max(),
            20 * tol,
            f"{name}: velocity - (log x1 - log x0) at t = {t}",
        )
    xd, yd = x.double(), y.double()
    xt, ut = m.geodesic(xd, yd, 0.4)
    slope = (m.log(xt, m.geodesic(xd, yd, 0.4 + h)[0]) - m.log(xt, m.geodesic(xd, yd, 0.4 - h)[0])) / (2 * h)
    _small((slope - ut).abs().max(), max(1e-6, 10 * h * h), f"{name}: velocity is not the derivative of the geodesic")


def _check_transforms(m: Manifold, x: Tensor, y: Tensor, tol: float, name: str) -> None:
    u = m.log(x, y)
    _small((torch.vmap(m.log)(x, y) - u).abs().max(), tol, f"{name}: log under vmap")
    _small(point_gap(m, torch.vmap(m.exp)(x, u), m.exp(x, u)), tol, f"{name}: exp under vmap")
    for label, end in (("apart", y), ("together", x)):
        time, one = torch.tensor(0.4, dtype=x.dtype), torch.tensor(1.0, dtype=x.dtype)
        result: Any = torch.func.jvp(lambda t, end=end: m.geodesic(x, end, t)[0], (time,), (one,))
        value, derivative = result
        assert bool(torch.isfinite(derivative).all()), f"{name}: jvp of a geodesic with ends {label} is not finite"
        _small(point_gap(m, value, m.geodesic(x, end, 0.4)[0]), tol, f"{name}: geodesic under jvp")


def _points(m: Manifold, count: int, generator: torch.Generator) -> Tensor:
    """Uniform points of a compact manifold, otherwise points around the origin."""
    try:
        return m.sample_uniform((count,), generator=generator, dtype=torch.float64)
    except ValueError:
        x = m.origin((count,), dtype=torch.float64)
        return m.exp(x, 0.5 * _tangents(m, x, generator))


def _tangents(m: Manifold, x: Tensor, generator: torch.Generator) -> Tensor:
    basis = m.tangent_basis(x)
    axis = x.ndim - m.event_ndim
    weight = torch.randn(basis.shape[: axis + 1], generator=generator, dtype=torch.float64) / math.sqrt(m.dim)
    return (_batch(weight, basis) * basis).sum(axis)


def _batch(value: Tensor, like_: Tensor) -> Tensor:
    return value.reshape(value.shape + (1,) * (like_.ndim - value.ndim))


def _small(value: Tensor | float, bound: float, what: str) -> None:
    number = float(value)
    assert number <= bound, f"{what}: {number:.3g}, more than {bound:.3g}"

"""Every path on every manifold keeps the promises of a conditional path."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.spd import LogEuclideanSPD
from manifoldflow.testing import check_path

MANIFOLDS = [
    mf.Euclidean(3),
    mf.Centered(mf.Euclidean(3)),
    mf.Sphere(2),
    mf.Sphere(7),
    mf.Torus(3, period=2 * math.pi),
    mf.SO3(),
    mf.UnitQuaternion(),
    mf.Simplex(4),
    mf.Simplex(4, metric="flat"),
]
SCHEDULES = [mf.Linear(), mf.Exponential(5.0), mf.Cosine(), mf.Polynomial(2.0)]


def ends(space: Manifold) -> tuple[torch.Tensor, torch.Tensor]:
    """Random points; on a simplex inside it, away from the corners where probabilities turn fast."""
    g = torch.Generator().manual_seed(0)
    if isinstance(space, mf.Euclidean | mf.Centered):
        x0, x1 = (torch.randn(6, 4, 3, generator=g, dtype=torch.float64) for _ in range(2))
        return space.project(x0), space.project(x1)
    x0, x1 = (space.sample_uniform((6, 4), generator=g, dtype=torch.float64) for _ in range(2))
    return (0.1 + 0.6 * x0, 0.1 + 0.6 * x1) if isinstance(space, mf.Simplex) else (x0, x1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("space", MANIFOLDS, ids=str)
def test_geodesic_path_starts_ends_and_moves_as_it_says(space, schedule):
    x0, x1 = ends(space)
    check_path(mf.Geodesic(schedule=schedule), space, x0=x0, x1=x1)


class Late(mf.Geodesic):
    """A path that reports the velocity of another time."""

    def sample(self, x0, x1, t, *, generator=None):
        point = super().sample(x0, x1, t, generator=generator)
        return point._replace(velocity=1.01 * point.velocity)


def test_a_wrong_velocity_is_found():
    with pytest.raises(AssertionError):
        check_path(Late(), mf.Sphere(2))


def perturbed_exp(space: Manifold, scale: float) -> tuple[torch.Tensor, ...]:
    """x, w, a change of w, and how exp(x, w) moves with it as a tangent, all in float64 (central difference)."""
    g = torch.Generator().manual_seed(1)
    x, _ = ends(space)
    basis = space.tangent_basis(x)
    count = basis.shape[-1 - space.tangent_ndim]

    def tangent() -> torch.Tensor:
        weights = torch.randn(*x.shape[: x.ndim - space.event_ndim], count, generator=g, dtype=torch.float64)
        return (weights.unsqueeze(-1) * basis).sum(-2)

    w, change = tangent(), tangent()
    w = scale * w / space.inner(x, w, w).sqrt().unsqueeze(-1)
    h = 1e-5
    y = space.exp(x, w)
    moved = (space.log(y, space.exp(x, w + h * change)) - space.log(y, space.exp(x, w - h * change))) / (2 * h)
    return x, w, change, moved


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("space", MANIFOLDS, ids=str)
def test_dexp_inv_undoes_the_differential_of_exp(space, scale):
    if isinstance(space, mf.Simplex):
        scale *= 0.1  # stay inside
    x, w, change, moved = perturbed_exp(space, scale)
    assert (space.dexp_inv(x, w, moved) - change).abs().max() < 1e-8


@pytest.mark.parametrize("angle", [1.5, 3.0, math.pi - 1e-3])
@pytest.mark.parametrize("space", [mf.SO3(), mf.UnitQuaternion(), mf.Sphere(2)], ids=str)
def test_dexp_inv_is_right_far_from_the_origin(space, angle):
    x, w, change, moved = perturbed_exp(space, angle)
    condition = angle / math.sin(angle) if isinstance(space, mf.Sphere) else 1.0
    assert (space.dexp_inv(x, w, moved) - change).abs().max() < 1e-8 * (1 + abs(condition))


@pytest.mark.parametrize("space", [mf.Euclidean(3), mf.Sphere(2), mf.Sphere(7), mf.Torus(3)], ids=str)
def test_the_generic_dexp_inv_agrees_with_the_closed_forms(space):
    x, w, change, _ = perturbed_exp(space, 0.4)
    v = space.to_tangent(space.exp(x, w), change)
    assert (Manifold.dexp_inv(space, x, w, v) - space.dexp_inv(x, w, v)).abs().max() < 1e-12


SYMMETRIC = [
    mf.Sphere(2),
    mf.Sphere(5),
    mf.Torus(3, period=2 * math.pi),
    mf.SO3(),
    mf.UnitQuaternion(),
    mf.PoincareBall(3),
    mf.Lorentz(3),
    mf.SPD(3),
    LogEuclideanSPD(3),
]


@pytest.mark.parametrize("space", SYMMETRIC, ids=str)
def test_transport_is_parallel(space):
    """A pole ladder, made of exp and log alone, is exact on symmetric spaces (Pennec 2018): reflect exp_x(v) through the
    midpoint of x and y, and look at it from y."""
    g = torch.Generator().manual_seed(0)

    def near(x: torch.Tensor, length: float) -> tuple[torch.Tensor, torch.Tensor]:
        basis = space.tangent_basis(x)
        axis = basis.ndim - 1 - space.tangent_ndim
        weights = torch.randn(basis.shape[: axis + 1], generator=g, dtype=torch.float64)
        v = (weights.reshape(*weights.shape, *[1] * space.tangent_ndim) * basis).sum(axis)
        size = space.inner(x, v, v).sqrt()
        v = length * v / size.reshape(*size.shape, *[1] * space.tangent_ndim)
        return v, space.exp(x, v)

    _, x = near(space.origin((8,), dtype=torch.float64), 0.4)
    _, y = near(x, 1.1)
    v, end = near(x, 0.7)
    middle = space.exp(x, 0.5 * space.log(x, y))
    reflected = space.exp(middle, -space.log(middle, end))
    expected = -space.log(y, reflected)
    carried = space.transport(x, v, y)
    assert (carried - expected).abs().max() < 1e-6 * expected.abs().max()
    flat = isinstance(space, mf.Torus | LogEuclideanSPD)
    assert flat or (carried - v).abs().max() > 1e-2  # not the numbers that it had at x

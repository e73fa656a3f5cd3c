"""Every map of every manifold: one against many, mixed precision, half precision, wrong shapes."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow import manifolds as M
from manifoldflow.testing import pairs_at_length, point_gap

SPACES = [
    mf.Euclidean(3), mf.Sphere(1), mf.Sphere(2), mf.Sphere(5), mf.Torus(3), mf.SO3(), mf.UnitQuaternion(), mf.Simplex(4),
    mf.Simplex(4, "flat"), mf.PoincareBall(2), mf.Lorentz(3), mf.SPD(3), M.LogEuclideanSPD(2), M.Box((0.0, 0.0), (1.0, 1.0)),
    M.Ball(3), M.HalfSpace((1.0, 0.0)), M.ReflectedSimplex(3),
]  # fmt: skip
each = pytest.mark.parametrize("space", SPACES, ids=str)

# name, kinds of the arguments (p point, u tangent, g an ambient vector), function of the space and the arguments
MAPS = [
    ("exp", "pu", lambda m, x, u: m.exp(x, u)),
    ("log", "pp", lambda m, x, y: m.log(x, y)),
    ("dist", "pp", lambda m, x, y: m.dist(x, y)),
    ("geodesic", "pp", lambda m, x, y: m.geodesic(x, y, 0.3)),
    ("interpolate", "pp", lambda m, x, y: m.interpolate(x, y, 0.3)),
    ("transport", "ppu", lambda m, x, y, u: m.transport(x, u, y)),
    ("to_tangent", "pu", lambda m, x, u: m.to_tangent(x, u)),
    ("inner", "puu", lambda m, x, u, v: m.inner(x, u, v)),
    ("dexp_inv", "puu", lambda m, x, u, v: m.dexp_inv(x, u, v)),
    ("log_exp_volume", "pu", lambda m, x, u: m.log_exp_volume(x, u)),
    ("is_minimising", "pu", lambda m, x, u: m.is_minimising(x, u)),
    ("rate", "pu", lambda m, x, u: m.rate(x, u)),
    ("from_rate", "pg", lambda m, x, g: m.from_rate(x, g)),
    ("riemannian_gradient", "pg", lambda m, x, g: m.riemannian_gradient(x, g)),
    ("versine", "pp", lambda m, x, y: m.versine(x, y)),
    ("coordinate_gap", "pp", lambda m, x, y: m.coordinate_gap(x, y)),
    ("wrapped normal", "pp", lambda m, x, y: m.log_wrapped_normal(x, y, 0.3) if m.is_homogeneous else m.dist(x, y)),
    ("project, residual, embed", "p", lambda m, x: (m.project(x), m.residual(x), m.embed(x))),
    ("frames", "p", lambda m, x: (m.tangent_basis(x), *m.frame_moves(x), m.log_volume_element(x))),
]


def arguments(space, kinds, batches, dtype=torch.float64):
    """One argument of every kind with the given batch shapes, all within 0.05 of each other so that all maps are smooth."""
    g = torch.Generator().manual_seed(0)
    tangent = space.tangent_basis(space.origin(dtype=torch.float64)).shape[1:]
    centre = pairs_at_length(space, 0.05, 1, seed=1)[0][0]
    made = []
    for kind, batch in zip(kinds, batches, strict=True):
        noise = 0.02 * torch.randn(
            *batch, *(space.event_shape if kind == "g" else tangent), generator=g, dtype=torch.float64
        )
        noise = noise if kind == "g" else space.to_tangent(centre, noise)
        made.append((space.exp(centre, noise) if kind == "p" else noise).to(dtype))
    return made


def pieces(value):
    return value if isinstance(value, tuple) else (value,)


@each
def test_one_against_many_is_as_many_pairs(space):
    ones = {"p": space.event_ndim, "g": space.event_ndim, "u": space.tangent_ndim}
    for name, kinds, function in MAPS:
        for batches in ([(), (5,), ()], [(5,), (), (5,)], [(5, 1), (1, 4), (4,)], [(), (5, 4), (1, 4)]):
            args = arguments(space, kinds, batches[: len(kinds)])
            full = torch.broadcast_shapes(*batches[: len(kinds)])
            many = [a.expand(full + a.shape[a.ndim - ones[k] :]).contiguous() for a, k in zip(args, kinds, strict=True)]
            for got, want in zip(pieces(function(space, *args)), pieces(function(space, *many)), strict=True):
                # What does not depend on an argument may lack its axes.
                assert torch.allclose(got.expand(want.shape).double(), want.double(), atol=1e-9), (name, batches)


@each
def test_times_of_a_batch_and_one_end_that_all_share(space):
    x, y = arguments(space, "pp", [(), (5,)])
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    many = x.expand_as(y)
    for got, want in zip(space.geodesic(x, y, t), space.geodesic(many, y, t), strict=True):
        assert torch.allclose(got, want, atol=1e-12)
    assert torch.allclose(space.interpolate(y, x, t), space.interpolate(y, many, t), atol=1e-12)


@each
def test_mixed_precision_is_promoted(space):
    for name, kinds, function in MAPS:
        if len(kinds) < 2:
            continue
        args = arguments(space, kinds, [(5,)] * len(kinds))
        rounded = [a.float() for a in args]
        for mixed in ([rounded[0], *(a.double() for a in rounded[1:])], [rounded[0].double(), *rounded[1:]]):
            for got, want in zip(
                pieces(function(space, *mixed)), pieces(function(space, *(a.double() for a in rounded))), strict=True
            ):
                assert torch.allclose(got.double(), want.double(), atol=1e-5), name


@each
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_computed_in_single_and_rounded(space, half):
    for name, kinds, function in MAPS:
        args = arguments(space, kinds, [(5,)] * len(kinds), half)
        for got, want in zip(
            pieces(function(space, *args)), pieces(function(space, *(a.float() for a in args))), strict=True
        ):
            assert got.dtype in (half, torch.bool), name
            gap = (got.float() - want.float()).abs() / (1 + want.float().abs())
            assert gap.max() < 4 * torch.finfo(half).eps, name
    x = pairs_at_length(space, 0.05, 5)[0].to(half)
    space.check(x, atol=0.05)


@each
def test_wrong_shapes_are_one_clear_error(space):
    x = pairs_at_length(space, 0.05, 5)[0]
    wrong = torch.cat([x, x[..., :1]], -1)
    for call in (lambda: space.log(x, wrong), lambda: space.log(wrong, x), lambda: space.geodesic(x, wrong, 0.5)):
        with pytest.raises(ValueError, match=r"points need shape \(\.\.\."):
            call()


def test_wrong_shapes_of_quaternions_and_matrices_name_both():
    q, r = mf.UnitQuaternion().origin((5,)), mf.SO3().origin((5,))
    for call in (lambda: mf.SO3().log(q, q), lambda: mf.SO3().exp(q, q), lambda: mf.UnitQuaternion().log(r, r)):
        with pytest.raises(ValueError, match="points need shape"):
            call()
    with pytest.raises(ValueError, match="sets of points"):
        mf.Centered(mf.Euclidean(3)).center(torch.zeros(3))


def test_a_length_of_pi_survives_one_against_many():
    x = mf.Sphere(2).origin(dtype=torch.float64)
    y = -x.expand(4, 3)
    assert abs(float(mf.Sphere(2).dist(x, y).max()) - math.pi) < 1e-12
    assert point_gap(mf.Sphere(2), mf.Sphere(2).exp(x, mf.Sphere(2).log(x, y)), y) < 1e-12

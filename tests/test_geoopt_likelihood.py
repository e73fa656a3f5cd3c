"""Hyperbolic space and positive-definite matrices, through geoopt's objects: geometry, divergence, densities."""

import math

import geoopt
import numpy as np
import pytest
import torch

from manifoldflow.distributions.uniform import Uniform
from manifoldflow.distributions.wrapped_normal import WrappedNormal
from manifoldflow.flow import Flow
from manifoldflow.manifolds.adapter import FromGeoopt
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.hyperbolic import Lorentz, PoincareBall
from manifoldflow.manifolds.spd import SPD, LogEuclideanSPD, matrix_exp, matrix_log
from manifoldflow.nn.frames import FrameMLP, NormalCoordinates
from manifoldflow.sampling.likelihood import divergence
from manifoldflow.testing import check_manifold, pairs_at_length

F64 = torch.float64
THEIRS = [
    FromGeoopt(geoopt.PoincareBall(0.7), (3,)),
    FromGeoopt(geoopt.Lorentz(1.3), (4,)),
    FromGeoopt(geoopt.SymmetricPositiveDefinite(), (3, 3)),
]
PLANES = [
    FromGeoopt(geoopt.PoincareBall(), (2,)),
    FromGeoopt(geoopt.Lorentz(), (3,)),
    FromGeoopt(geoopt.SymmetricPositiveDefinite(), (2, 2)),
]
OURS = [PoincareBall(3, -0.7), Lorentz(3, -1 / 1.3), SPD(3), LogEuclideanSPD(2)]


def by_name(m):
    return m.manifold.name if isinstance(m, FromGeoopt) else str(m)


def quadrature(space, reach=6.0, count=40):
    """Points and weights of the Riemannian volume, from the textbook element in polar coordinates around the origin.

    Hyperbolic plane: sinh r dr dphi. SPD(2) with eigenvalues exp(a), exp(b) of the matrix and its angle:
    2 sqrt(2) sinh((a - b) / 2) da db dangle (Terras 1988, in lengths of our metric).
    """
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(count))
    share, half = (node + 1) / 2, weight / 2
    if space.event_ndim == 1:
        r, phi = (g.flatten() for g in torch.meshgrid(reach * share, 2 * math.pi * share, indexing="ij"))
        volume = (half[:, None] * half).flatten() * reach * 2 * math.pi * r.sinh()
        way = torch.stack([phi.cos(), phi.sin()], -1)
        if space.shape == (2,):
            return (r / 2).tanh()[:, None] * way, volume
        return torch.cat([r.cosh()[:, None], r.sinh()[:, None] * way], -1), volume
    angles = torch.arange(20, dtype=F64) * math.pi / 20  # periodic: equal weights
    s, d, phi = (g.flatten() for g in torch.meshgrid(2 * reach * (share - 0.5), reach * share, angles, indexing="ij"))
    # s = (a + b) / sqrt 2 and d = (a - b) / sqrt 2 have the same area element as a, b
    outer = (half[:, None, None] * half[None, :, None]).expand(count, count, 20).flatten()
    volume = outer * 2 * reach * reach * math.pi / 20 * 2 * math.sqrt(2) * (d / math.sqrt(2)).sinh()
    turn = torch.stack([torch.stack([phi.cos(), -phi.sin()], -1), torch.stack([phi.sin(), phi.cos()], -1)], -2)
    values = torch.stack([(s + d) / math.sqrt(2), (s - d) / math.sqrt(2)], -1).exp()
    return (turn * values.unsqueeze(-2)) @ turn.mT, volume


@pytest.mark.parametrize("manifold", OURS, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-6), (F64, 1e-11)])
def test_closed_forms_conform_also_at_length_zero(manifold, dtype, tolerance):
    check_manifold(manifold, dtype=dtype, lengths=(0.0, 1e-8, 1e-4, 1.0, 2.0), tolerance=tolerance)


@pytest.mark.parametrize("space", THEIRS, ids=by_name)
def test_closed_forms_are_geoopts_geometry(space):
    x, y = pairs_at_length(space, 1.5)
    u, v = space.log(x, y), space.tangent_basis(x).select(-1 - space.event_ndim, 1)
    theirs = space.manifold
    if isinstance(theirs, geoopt.PoincareBall | geoopt.Lorentz):
        theirs = theirs.double()
    assert (theirs.logmap(x, y) - u).abs().max() < 1e-6
    assert (theirs.expmap(x, 0.3 * u) - space.exp(x, 0.3 * u)).abs().max() < 1e-6
    assert (theirs.transp(x, y, v) - space.transport(x, v, y)).abs().max() < 1e-6
    assert (theirs.dist(x, y) - space.dist(x, y)).abs().max() < 1e-6
    inner = theirs.inner(x, u, v, keepdim=True).reshape(-1)
    assert (inner - space.inner(x, u, v)).abs().max() < 1e-6


@pytest.mark.parametrize("space", [PoincareBall(3), Lorentz(3)], ids=str)
@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2, 1.0])
def test_float32_distances_keep_their_digits_three_radii_out(space, distance):
    x, _ = pairs_at_length(space, 1.0)
    x = space.exp(x, 2 * space.tangent_basis(x)[:, 0]).float()
    x = space.project(x.double())
    y = space.project(space.exp(x, distance * space.tangent_basis(x)[:, 1])).float()
    x, y = x.float(), y
    truth = space.dist(space.project(x.double()), space.project(y.double()))
    # What float32 coordinates resolve there is 1e-7 times the factor by which they stretch, 1e2.
    assert (space.dist(x, y).double() - truth).abs().max() < 5e-6 * max(distance, 1e-3)
    back = space.exp(x, space.log(x, y))
    assert space.dist(space.project(back.double()), space.project(y.double())).max() < 5e-5


@pytest.mark.parametrize("space", OURS[:3], ids=str)
def test_dexp_inv_and_volume_factor_agree_with_derivatives_of_exp(space):
    x, y = pairs_at_length(space, 1.2)
    w = space.log(x, y)
    ends = space.tangent_basis(y)
    axis = -1 - space.event_ndim
    columns = []
    for k in range(space.dim):
        v = ends.select(axis, k)
        u = space.dexp_inv(x, w, v)
        assert (u - Manifold.dexp_inv(space, x, w, v)).abs().max() < 1e-11
        columns.append(
            torch.stack([space.inner(x, space.tangent_basis(x).select(axis, j), u) for j in range(space.dim)], -1)
        )
    volume = -torch.linalg.slogdet(torch.stack(columns, -1))[1]
    assert (volume - space.log_exp_volume(x, w)).abs().max() < 1e-11


def field(space, seed=0):
    torch.manual_seed(seed)
    net = FrameMLP(space, 16, 2).double()
    with torch.no_grad():
        net.net[-1].weight.mul_(4)
    return net


@pytest.mark.parametrize("space", [*THEIRS, LogEuclideanSPD(2), FromGeoopt(geoopt.Sphere(), (3,))], ids=by_name)
def test_divergence_is_the_trace_of_the_covariant_derivative(space):
    x, _ = pairs_at_length(space, 1.0, 8)
    ambient = torch.randn(math.prod(space.event_shape), math.prod(space.event_shape), dtype=F64)
    shift = torch.randn(space.event_shape, dtype=F64, generator=torch.Generator().manual_seed(1))

    def v(at, t=None):
        flat = at.flatten(-space.event_ndim) @ ambient
        return space.to_tangent(at, torch.tanh(flat).reshape(at.shape) + shift)

    _, trace = divergence(v, space, x, torch.tensor(0.5, dtype=F64))
    slope = torch.func.jvp(space.log_volume_element, (x,), (_push(space, x, v(x)),))[1]
    h, expected = 1e-4, torch.zeros(8, dtype=F64)
    basis = space.tangent_basis(x)
    for k in range(space.dim):
        e = basis.select(-1 - space.event_ndim, k)
        ahead, behind = space.exp(x, h * e), space.exp(x, -h * e)
        change = space.transport(ahead, v(ahead), x) - space.transport(behind, v(behind), x)
        expected = expected + space.inner(x, e, change / (2 * h))
    assert (trace + slope - expected).abs().max() < 1e-6 * (1 + expected.abs().max())


def _push(space, x, u):
    """The tangent as the velocity of the point."""
    if not isinstance(space, LogEuclideanSPD):
        return u
    return torch.func.jvp(matrix_exp, (matrix_log(x),), (u,))[1]


@pytest.mark.parametrize("name, function", [("exp", matrix_exp), ("log", matrix_log)])
def test_matrix_functions_have_derivatives_where_eigenvalues_coincide(name, function):
    a = torch.diag(torch.tensor([2.0, 2.0, 1e-3], dtype=F64)).requires_grad_()
    change = torch.randn(5, 3, 3, dtype=F64)
    change = change + change.mT
    slopes = torch.vmap(lambda d: torch.func.jvp(function, (a.detach(),), (d,))[1])(change)
    h = 1e-7
    expected = torch.stack([(function(a + h * d) - function(a - h * d)) / (2 * h) for d in change])
    assert (slopes - expected).abs().max() < 1e-4 * expected.abs().max()
    (gradient,) = torch.autograd.grad((function(a) * change[0]).sum(), a)
    assert ((gradient * change[1]).sum() - (slopes[1] * change[0]).sum()).abs() < 1e-9 * slopes.abs().max()
    b = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda m: function(m + m.mT), (b,))


@pytest.mark.parametrize("space", PLANES, ids=by_name)
def test_wrapped_normal_integrates_to_one_and_is_the_law_of_its_samples(space):
    mean = space.exp(space.origin(dtype=F64), 0.7 * space.tangent_basis(space.origin(dtype=F64))[0])
    law = WrappedNormal(space, 0.5, mean=mean)
    x, weight = quadrature(space, reach=5.0)
    mass = law.log_prob(x).exp() * weight
    assert abs(float(mass.sum()) - 1) < 1e-5
    drawn = law.sample((20_000,), generator=torch.Generator().manual_seed(0), dtype=F64)
    space.check(drawn, 1e-9)
    origin = space.origin(dtype=F64)
    # A wrong volume factor would shift mass between distances to a point that is not the mean.
    for function in (lambda r: r, lambda r: r**2, lambda r: (-8 * (r - 0.5) ** 2).exp()):
        value = function(space.dist(origin.expand_as(drawn), drawn))
        expected = (function(space.dist(origin.expand_as(x), x)) * mass).sum()
        assert (value.mean() - expected).abs() < 4 * value.std() / math.sqrt(len(value))


@pytest.mark.parametrize("space", PLANES, ids=by_name)
def test_density_of_any_flow_integrates_to_one(space):
    flow = Flow(space, model=field(space), source=WrappedNormal(scale=0.6))
    x, weight = quadrature(
        space, reach=5.0 if space.event_ndim == 1 else 4.5, count=40 if space.event_ndim == 1 else 18
    )
    with torch.no_grad():
        log_prob = flow.log_prob(x, steps=12)
        source = flow.source["x"].log_prob(x)
    assert (log_prob - source).abs().median() > 0.2  # the field moves mass
    assert abs(float((log_prob.exp() * weight).sum()) - 1) < 5e-3


@pytest.mark.parametrize("space", PLANES, ids=by_name)
def test_flow_trains_samples_and_knows_its_density(space):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    origin = space.origin()
    frame = space.tangent_basis(origin)
    law = WrappedNormal(space, 0.4, mean=space.exp(origin, frame[0] - 0.5 * frame[-1]))
    net = FrameMLP(space, 64, 3)
    flow = Flow(space, model=net, source=WrappedNormal(scale=0.8))
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        loss = flow.loss(law.sample((256,), generator=generator), generator=generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    made = flow.sample(2_000, steps=20, method="rk4", generator=generator)
    space.check(made, 1e-4)
    truth = law.sample((1_000,), generator=generator)
    with torch.no_grad():
        divergence_to_model = float((law.log_prob(truth) - flow.log_prob(truth, steps=16)).mean())
        x, weight = quadrature(space, reach=3.8, count=30 if space.event_ndim == 1 else 20)
        # In float64: backward from far out a trajectory reaches coordinates of 1e3, beyond what float32 can tell apart.
        mass = float((flow.double().log_prob(x, steps=16).exp() * weight).sum())
    assert divergence_to_model < 0.05
    assert abs(mass - 1) < 0.01
    centre = space.exp(origin, frame[0] - 0.5 * frame[-1]).expand_as(made)
    assert abs(float(space.dist(centre, made).mean() - space.dist(centre[:1000], truth).mean())) < 0.08


def test_what_has_no_density_says_so():
    with pytest.raises(ValueError, match="only the distance"):
        FromGeoopt(geoopt.SymmetricPositiveDefinite("LEM"), (2, 2))
    with pytest.raises(ValueError, match="square"):
        FromGeoopt(geoopt.SymmetricPositiveDefinite(), (2, 3))
    stiefel = FromGeoopt(geoopt.CanonicalStiefel(), (4, 2))
    with pytest.raises(NotImplementedError, match="volume element"):
        stiefel.frame_moves(stiefel.origin((2,), dtype=F64))
    assert Flow(PLANES[0], model=FrameMLP(PLANES[0], 8, 1)).sample(2).isfinite().all()  # from a wrapped normal
    with pytest.raises(ValueError, match="infinite volume"):
        Flow(PLANES[0], model=FrameMLP(PLANES[0], 8, 1), source=Uniform()).sample(2)
    with pytest.raises(ValueError, match="conjugate points"):
        NormalCoordinates(FromGeoopt(geoopt.Sphere(), (3,)))
    with pytest.raises(ValueError, match="curvature must be negative"):
        PoincareBall(2, 1.0)

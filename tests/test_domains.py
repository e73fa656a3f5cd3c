"""Domains with walls: reflections against a billiard followed one wall at a time, and flows that stay inside."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from manifoldflow.distributions.reflected_normal import ReflectedNormal
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.flow import Flow
from manifoldflow.manifolds import ReflectedSimplex
from manifoldflow.manifolds.domains import Ball, Box, HalfSpace
from manifoldflow.manifolds.euclidean import Euclidean
from manifoldflow.manifolds.simplex import Simplex
from manifoldflow.nn import TangentMLP
from manifoldflow.nn.walls import NoFlux
from manifoldflow.testing import check_manifold

BOX = Box((0.0, -1.0, 2.0), (1.0, 3.0, 2.1))
HALF = HalfSpace((1.0, 2.0, -0.5), 0.7)
DOMAINS = [BOX, HALF, Ball(3, 2.0), Ball(1), ReflectedSimplex(4), ReflectedSimplex(2)]
each = pytest.mark.parametrize("domain", DOMAINS, ids=str)


def interior(domain, count, generator, dtype=torch.float64):
    if isinstance(domain, HalfSpace):
        return ReflectedNormal(domain, 1.0).sample((count,), generator=generator, dtype=dtype)
    return domain.sample_uniform((count,), generator=generator, dtype=dtype)


def tangents(domain, x, length, generator):
    u = domain.to_tangent(x, torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return length * u / u.norm(dim=-1, keepdim=True)


def billiard(domain, x, u, other):
    """Follow one ray wall by wall; ``other`` is a vector carried along and reflected with it."""
    x, u, other = x.copy(), u.copy(), other.copy()
    size = len(x)
    if isinstance(domain, Box):
        walls = [(-row, -low) for row, low in zip(np.eye(size), domain.lower, strict=True)]
        walls += [(row, high) for row, high in zip(np.eye(size), domain.upper, strict=True)]
    elif isinstance(domain, HalfSpace):
        walls = [(np.array(domain.normal), domain.offset)]
    elif isinstance(domain, ReflectedSimplex):
        axes = [-(row - 1 / size) for row in np.eye(size)]
        walls = [(a / np.linalg.norm(a), (1 / size) / np.linalg.norm(a)) for a in axes]
    else:
        walls = []
    for _ in range(10_000):
        best, normal = 1.0, None
        for n, offset in walls:
            speed = n @ u
            if speed > 1e-12 and (offset - n @ x) / speed < best:
                best, normal = (offset - n @ x) / speed, n
        if isinstance(domain, Ball):
            a, b, c = u @ u, x @ u, x @ x - domain.radius**2
            time = (-b + math.sqrt(b * b - a * min(c, 0.0))) / a
            if time < 1:
                best, normal = time, (x + time * u) / np.linalg.norm(x + time * u)
        x = x + best * u
        if normal is None:
            return x, other
        u = (1 - best) * (u - 2 * (u @ normal) * normal)
        other = other - 2 * (other @ normal) * normal
    raise AssertionError("the billiard did not end")


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_domain_conforms_where_no_wall_is_met(domain, dtype):
    check_manifold(domain, dtype=dtype, lengths=(0.0, 1e-8, 1e-4, 1e-3))


@pytest.mark.parametrize("domain", [BOX, HALF, Ball(3, 2.0), ReflectedSimplex(4, bounces=2)], ids=str)
def test_domain_compiles(domain):
    check_manifold(domain, lengths=(1e-3,), compile=True)


@each
@pytest.mark.parametrize("length", [0.3, 1.0, 5.0])
def test_exp_ends_where_a_billiard_ball_does(domain, length):
    generator = torch.Generator().manual_seed(1)
    x = interior(domain, 60, generator)
    u = tangents(domain, x, length, generator)
    if isinstance(domain, ReflectedSimplex):
        u = u * 0.4 if domain.categories == 4 else u  # within the number of reflections that are followed
    v = tangents(domain, x, 1.0, generator)
    ends = [billiard(domain, *(w.numpy() for w in row)) for row in zip(x, u, v, strict=True)]
    end, carried = (torch.from_numpy(np.stack(part)) for part in zip(*ends, strict=True))
    assert (domain.exp(x, u) - end).abs().max() < 1e-9
    assert (domain.dexp_inv(x, u, carried) - v).abs().max() < 1e-9


@pytest.mark.parametrize("domain", [BOX, HALF, ReflectedSimplex(4)], ids=str)
def test_dexp_inv_inverts_the_derivative_of_exp_behind_flat_walls(domain):
    generator = torch.Generator().manual_seed(2)
    x = interior(domain, 200, generator)
    w, v = tangents(domain, x, 1.0, generator), tangents(domain, x, 1.0, generator)
    start = domain.dexp_inv(x, w, v)
    moved = torch.func.jvp(lambda a: domain.exp(x, a), (w,), (start,))[1]
    assert (moved - v).abs().amax(-1).sort().values[:190].max() < 1e-9  # the rest ends within round-off of a wall


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_lies_outside_at_any_length_not_even_by_round_off(domain, dtype):
    generator = torch.Generator().manual_seed(3)
    x = interior(domain, 20_000, generator, dtype)
    for length in (1e-3, 0.1, 1.0, 10.0, 1000.0):
        x = domain.exp(x, tangents(domain, x, length, generator))
        assert torch.isfinite(x).all()
        assert domain.residual(x).max() == 0
        assert domain.residual(x.double()).max() <= (3e-7 if dtype == torch.float32 else 0)


def test_uniform_points_have_the_moments_and_the_volume_of_the_domain():
    generator = torch.Generator().manual_seed(4)
    ball = Ball(3, 2.0)
    x = ball.sample_uniform((40_000,), generator=generator, dtype=torch.float64)
    assert abs(float(x.square().sum(-1).mean()) - 4 * 3 / 5) < 0.02
    assert math.isclose(ball.log_volume, math.log(4 / 3 * math.pi * 8))
    y = BOX.sample_uniform((40_000,), generator=generator, dtype=torch.float64)
    assert (y.mean(0) - torch.tensor([0.5, 1.0, 2.05], dtype=torch.float64)).abs().max() < 0.03
    assert math.isclose(BOX.log_volume, math.log(0.4))
    assert math.isclose(ReflectedSimplex(3).log_volume, math.log(math.sqrt(3) / 2))
    # The box is not symmetric, so a reflected draw with the density of the mirror image would show here.
    assert stats.kstest(y[:, 1].numpy(), "uniform", args=(-1, 4)).pvalue > 1e-3


@pytest.mark.parametrize(
    "space, scale, mean, low, high",
    [(Box((-1.0,), (0.5,)), 0.6, (0.3,), -1.0, 0.5), (HalfSpace((-2.0,), 1.0), 0.8, (0.2,), -0.5, 9.0)],
)
def test_reflected_normal_integrates_to_one_and_is_the_law_of_its_samples(space, scale, mean, low, high):
    law = ReflectedNormal(space, scale, mean)
    node, weight = np.polynomial.legendre.leggauss(200)
    x = torch.from_numpy(low + (high - low) * (node + 1) / 2)
    weight = weight * (high - low) / 2
    density = law.log_prob(x.unsqueeze(-1)).exp().numpy()
    assert abs((density * weight).sum() - 1) < 1e-6
    drawn = law.sample((4_000,), generator=torch.Generator().manual_seed(5), dtype=torch.float64)[:, 0].numpy()
    cumulated = np.cumsum(density * weight) - 0.5 * density * weight
    assert stats.kstest(drawn, lambda v: np.interp(v, x.numpy(), cumulated)).pvalue > 1e-3


def quadrature(domain):
    """Nodes and weights of the domain's area."""
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(48))
    share, half = (node + 1) / 2, weight / 2
    area = (half[:, None] * half).flatten()
    a, b = (g.flatten() for g in torch.meshgrid(share, share, indexing="ij"))
    if isinstance(domain, Box):
        low, high = domain.corners(share)
        return low + (high - low) * torch.stack([a, b], -1), area * (high - low).prod()
    if isinstance(domain, Ball):
        r, angle = a * domain.radius, 2 * math.pi * b
        return torch.stack([r * angle.cos(), r * angle.sin()], -1), area * 2 * math.pi * domain.radius * r
    if isinstance(domain, ReflectedSimplex):
        return torch.stack([a, (1 - a) * b, (1 - a) * (1 - b)], -1), area * (1 - a) * math.sqrt(3)
    normal = torch.tensor(domain.normal, dtype=torch.float64)
    across = torch.stack([-normal[1], normal[0]])
    depth, width = 10 * a, 16 * b - 8
    return (domain.offset - depth)[:, None] * normal + width[:, None] * across, area * 160


@pytest.mark.parametrize(
    "domain",
    [Box((0.0, -1.0), (1.0, 1.0)), Ball(2, 1.5), HalfSpace((0.6, 0.8), 0.5), ReflectedSimplex(3)],
    ids=str,
)
def test_density_of_any_field_without_flux_integrates_to_one(domain):
    torch.manual_seed(0)
    net = TangentMLP(domain, 16, 2).double()
    with torch.no_grad():
        net.net[-1].weight.mul_(3)  # an untrained network, made strong enough to move the mass
    source = ReflectedNormal(scale=1.0) if isinstance(domain, HalfSpace) else None
    flow = Flow(domain, model=NoFlux(net, domain, 0.3), source=source)
    x, weight = quadrature(domain)
    with torch.no_grad():
        log_prob = flow.log_prob(domain.project(x), steps=16)
    assert log_prob.max() - log_prob.min() > 0.5 or isinstance(domain, HalfSpace)
    assert abs(float((log_prob.exp() * weight).sum()) - 1) < 2e-3


@pytest.mark.parametrize("domain", [BOX, HALF, Ball(3, 2.0), ReflectedSimplex(4)], ids=str)
def test_field_without_flux_has_no_normal_component_at_the_wall_and_is_the_same_far_from_it(domain):
    generator = torch.Generator().manual_seed(6)
    x = interior(domain, 100, generator)
    v = tangents(domain, x, 1.0, generator)
    if isinstance(domain, Box):
        at = x.clone()
        at[:, 1] = domain.upper[1]
        assert domain.without_flux(at, v, 0.01)[:, 1].abs().max() == 0
    elif isinstance(domain, Ball):
        at = domain.radius * x / x.norm(dim=-1, keepdim=True)
        assert (domain.without_flux(at, v, 0.05) * at).sum(-1).abs().max() < 1e-12
    elif isinstance(domain, HalfSpace):
        normal = torch.tensor(domain.normal, dtype=torch.float64)
        at = x - ((x @ normal) - domain.offset)[:, None] * normal
        assert (domain.without_flux(at, v, 0.05) @ normal).abs().max() < 1e-12
    else:
        at = x.clone()
        at[:, 2] = 0
        at = at / at.sum(-1, keepdim=True)
        made = domain.without_flux(at, v, 0.01)
        assert made[:, 2].abs().max() < 1e-12
        assert made.sum(-1).abs().max() < 1e-12
    assert (domain.without_flux(x, v, 1e-4) - v).abs().amax(-1).median() < 1e-9


@pytest.mark.parametrize("domain", [Box((0.0, 0.0), (1.0, 1.0)), Ball(2), HalfSpace((1.0, 0.0)), ReflectedSimplex(3)])
def test_reflected_flow_leaves_no_sample_outside_and_a_plain_one_does(domain):
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    source = ReflectedNormal(domain, 1.0) if isinstance(domain, HalfSpace) else Uniform(domain)
    at_wall = {Box: [0.95, 0.5], Ball: [0.9, 0.0], HalfSpace: [-0.05, 0.0], ReflectedSimplex: [0.01, 0.5, 0.49]}
    mean = torch.tensor(at_wall[type(domain)])
    net = TangentMLP(domain, 32, 2)
    flow = Flow(domain, model=net, source=source)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for _ in range(100):
        x = mean.expand(256, -1)
        x1 = domain.exp(x, domain.to_tangent(x, 0.1 * torch.randn(x.shape, generator=generator)))
        loss = flow.loss(x1, generator=generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for steps in (1, 2, 10):
        for method in ("euler", "midpoint", "heun", "rk4"):
            made = flow.sample(4_000, steps=steps, method=method, generator=generator)
            assert domain.residual(made).max() == 0
    open_space = Euclidean(2) if not isinstance(domain, ReflectedSimplex) else OpenPlane(3)
    plain = Flow(open_space, model=net, source=source).sample(4_000, steps=10, generator=generator)
    assert (domain.residual(plain) > 0).sum() > 10


class OpenPlane(Euclidean):
    """The plane of sum 1, without walls."""

    def to_tangent(self, x, u):
        return u - u.mean(-1, keepdim=True)


def test_bad_domains_are_refused_in_one_line():
    with pytest.raises(ValueError, match="below its upper"):
        Box((0.0, 1.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="one number per dimension"):
        Box((0.0,), (1.0, 1.0))
    with pytest.raises(ValueError, match="radius must be positive"):
        Ball(2, 0.0)
    with pytest.raises(ValueError, match="normal other than 0"):
        HalfSpace((0.0, 0.0))
    with pytest.raises(ValueError, match="use ReflectedNormal"):
        Uniform(HALF).sample((3,))
    with pytest.raises(ValueError, match="outside"):
        ReflectedNormal(BOX, 1.0, (2.0, 0.0, 2.05))
    with pytest.raises(ValueError, match="WrappedNormal"):
        ReflectedNormal(Simplex(3))
    with pytest.raises(ValueError, match="no closed-form density"):
        ReflectedNormal(Ball(2)).log_prob(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="domain with walls"):
        NoFlux(TangentMLP(Euclidean(2), 8, 1), Euclidean(2), 0.1)
